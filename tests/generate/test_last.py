"""A call that is asked for its last token only: the same hidden vector and the same state, so that decoding goes on as it would."""

from __future__ import annotations

import pytest
import torch

import orrery
from orrery.core.errors import ConfigError
from orrery.nn.contract import Aux, Context
from orrery.nn.state import state_tensors

NAMES = [
    "transformer", "transformer(window=5)", "transformer(mixer.gate=True,kv_heads=1)", "griffin", "minimax", "xlstm-large", "mamba2", "rwkv4",
    "rwkv6", "rwkv7", "transformer(canon=abcd)", "mixtral", "falcon-h1", "gtrxl", "rrwkv", "transformer(channel.name=rwkv7)",
    "parallel(fusion=concat)",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_the_last_token_alone(name: str) -> None:
    model = orrery.create_model(name, width=64, depth=3, vocab_size=61, seed=1).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # some start at zero, which would hide what they are given
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    tokens = torch.randint(0, 61, (2, 9), generator=generator)
    whole, last = model(tokens), model(tokens, ctx=Context(last=True))
    assert last.hidden.shape == (2, 1, 64)
    torch.testing.assert_close(last.hidden, whole.hidden[:, -1:], atol=2e-6, rtol=2e-5)
    for found, wanted in zip(state_tensors(last.state), state_tensors(whole.state), strict=True):
        assert torch.equal(found, wanted)
    more = model(tokens[:, :1], state=last.state, ctx=Context(last=True)).hidden
    torch.testing.assert_close(more, model(tokens[:, :1], state=whole.state).hidden, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize(("name", "left"), [("transformer", 1), ("rwkv4", 2)])
def test_only_the_last_layer_leaves_tokens_out(name: str, left: int) -> None:
    """A channel mixer that looks back is given the token that it looks at, too."""
    model = orrery.create_model(name, width=64, depth=2, vocab_size=61, seed=1).eval()
    seen = []
    for block in model.blocks:
        block.channel.register_forward_hook(lambda module, given, result: seen.append(result[0].shape[1]))
    with torch.inference_mode():
        model(torch.zeros(1, 7, dtype=torch.int64), ctx=Context(last=True))
    assert seen == [7, left]


def test_what_needs_every_token_says_so() -> None:
    model = orrery.create_model("transformer", width=64, depth=1, vocab_size=61, seed=1).eval()
    tokens = torch.zeros(1, 7, dtype=torch.int64)
    for ctx in (Context(last=True, segments=tokens), Context(last=True, aux=Aux("routing"))):
        with pytest.raises(ConfigError, match="last token alone"):
            model(tokens, ctx=ctx)
