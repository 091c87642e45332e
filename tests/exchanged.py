"""What tests of exchange ask of every language model: transformers' model with drawn parameters, beside ours made from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import orrery
from all_double import AllDouble, double


def drawn(cls: str, settings: dict[str, Any]) -> Any:
    """The causal model of a config class of transformers, no parameter as it starts: default norms and biases would hide mistakes."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, cls)(**settings)).eval()
    with torch.no_grad():
        held = [buffer for name, buffer in model.named_buffers() if name.endswith(("expert_bias", "correction_bias"))]
        for tensor in (*model.parameters(), *held):
            tensor.add_(0.2 * torch.randn_like(tensor))
    return model


def close(ours: torch.Tensor, right: torch.Tensor, limit: float = 1e-4) -> None:
    assert ours.shape == right.shape
    assert (ours - right).abs().max() <= limit * right.abs().max()


@torch.no_grad()
def check_float64(theirs: Callable[[], Any], tokens: torch.Tensor) -> None:
    """Equal to rounding, with every cast to float32 in their code lifted."""
    with AllDouble():
        hf = double(theirs())
        expected = hf(tokens).logits
    assert expected.dtype == torch.float64
    close(orrery.from_transformers(hf).eval()(tokens).logits, expected, 1e-8)


@torch.no_grad()
def check_decoding(hf: Any, tokens: torch.Tensor, count: int = 8) -> None:
    """Greedy generation equals their cached one; token by token gives the logits of the whole."""
    own = orrery.from_transformers(hf).eval()
    expected = hf.generate(tokens, max_new_tokens=count, do_sample=False, eos_token_id=None, attention_mask=torch.ones_like(tokens))
    assert torch.equal(orrery.generate(own, tokens, count, temperature=0), expected)
    state, found = None, []
    for t in range(tokens.shape[1]):
        out = own(tokens[:, t : t + 1], state=state)
        state = out.state
        found.append(out.logits)
    close(torch.cat(found, 1), hf(tokens).logits)
