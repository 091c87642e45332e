"""What a user can get wrong with any architecture: one sentence each, through the public face, and nothing half done."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

import orrery
from orrery.core import registry
from orrery.core.errors import ConfigError, NonFiniteError, OrreryError, StateError
from orrery.data.shards import write_tokens
from orrery.evaluate.carried import read_carried
from orrery.models.diagnose import find_broken
from orrery.nn.state import state_tensors
from orrery.optim.adamw import AdamW
from orrery.train.engine import Engine, Pair

V = 50
NAMES = [entry.name for entry in registry.entries("architecture") if "causal" in entry.tags or not entry.tags]
RECURRENT = [name for name in ("mamba2", "gated-deltanet", "lstm", "rwkv4") if name in NAMES]


@functools.cache
def build(name: str, width: int = 64, depth: int = 1):
    return orrery.create_model(name, width=width, depth=depth, vocab_size=V, seed=0).eval()


def tokens(batch: int = 2, length: int = 12):
    return torch.randint(0, V, (batch, length), generator=torch.Generator().manual_seed(0))


@functools.cache
def state(name: str, width: int = 64):
    with torch.no_grad():
        return build(name, width)(tokens()).state


def one_sentence(caught) -> None:
    text = str(caught.value)
    assert "\n" not in text and len(text) < 400, text


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_read_is_said_in_one_sentence(name):
    model, other = build(name), "lstm" if name != "lstm" else "mamba2"
    decreasing = torch.tensor([[1] * 6 + [0] * 6] * 2)
    cases = [
        (lambda: model(tokens(2, 0)), "length 0 is empty"),
        (lambda: model(tokens(0, 5)), "batch 0 and length 5 is empty"),
        (lambda: model(tokens(), state=state(other)), "belongs to another architecture|made by another kind of block"),
        (lambda: model(tokens(3), state=state(name)), "the state holds 2 rows, the input 3"),
        (lambda: build(name, 64, 2)(tokens(), state=state(name)), "does not belong to a .* of 2 layers"),
        (lambda: model(tokens(), state=torch.zeros(2, 3)), "does not belong"),
        (lambda: model(tokens(), segments=decreasing), "segments decrease along row 0"),
        (lambda: model(tokens(), segments=decreasing[:, :5]), "segments have shape"),
    ]
    for call, words in cases:
        with pytest.raises(StateError, match=words) as caught:
            call()
        one_sentence(caught)


@pytest.mark.parametrize("name", NAMES)
def test_a_state_of_another_width_is_refused(name):
    one, other = ([tuple(t.shape) for t in state_tensors(build(name, width).init_state(2))] for width in (64, 128))
    if one == other:  # the size of a latent vector, or of heads of a fixed size and number, whatever the width
        assert name in ("deepseek-v3", "zaya")
        return
    for length in (12, 1):  # the step form reads a state without looking, so it must be looked at before
        with pytest.raises(StateError, match=r"another width|given (a )?state of shape") as caught:
            build(name, 128)(tokens(2, length), state=state(name))
        one_sentence(caught)


@pytest.mark.parametrize("name", NAMES)
def test_one_token_and_a_state_used_at_any_length_are_fine(name):
    model = build(name)
    with torch.no_grad():
        for length in (1, 2, 30):
            assert model(tokens(2, length)).hidden.isfinite().all()
            assert model(tokens(2, length), state=state(name)).hidden.isfinite().all()


def chunked() -> list[str]:
    return [name for name in NAMES if hasattr(build(name).blocks[0].mixer.config, "chunk")]


@pytest.mark.parametrize("name", chunked())
def test_a_chunk_longer_than_the_text_is_fine_and_none_is_refused(name):
    make = functools.partial(orrery.create_model, name, width=64, depth=1, vocab_size=V, seed=0)
    with torch.no_grad():
        wanted = make()(tokens()).hidden
        assert torch.allclose(make(**{"mixer.chunk": 1000})(tokens()).hidden, wanted, atol=1e-5)
    with pytest.raises(ConfigError, match="chunk") as caught:
        make(**{"mixer.chunk": 0})
    one_sentence(caught)


@pytest.mark.parametrize("name", NAMES)
def test_heads_that_do_not_divide_are_refused_or_built(name):
    """Every odd number of heads, head size or groups either builds a model that reads, or is one sentence."""
    known = type(build(name).blocks[0].mixer.config).__dataclass_fields__
    for key in {"heads", "kv_heads", "head_dim", "groups"} & set(known):
        for value in (7, 0, -1):
            try:
                model = orrery.create_model(name, width=64, depth=1, vocab_size=V, seed=0, **{f"mixer.{key}": value})
            except OrreryError as error:
                assert "\n" not in str(error) and len(str(error)) < 400  # noqa: PT017
                continue
            with torch.no_grad():
                assert model(tokens()).hidden.isfinite().all()


# ---------------------------------------------------------------- NaN in a gate: named layer and step

GATES = {"mamba2": "dt_bias", "gated-deltanet": "dt_bias", "lstm": "bias", "rwkv4": "decay"}


def poisoned(name: str, parameter: bool):
    """A model of three layers whose second mixer's gate is NaN: by a parameter, or by what it computes."""
    model = orrery.create_model(name, width=32, depth=3, vocab_size=V, seed=0)
    part = model.blocks[1].mixer
    if parameter:
        where, values = next((n, p) for n, p in part.named_parameters() if p.dim() == 1)
        values.data[0] = float("nan")
        return model, f"the parameter blocks.1.mixer.{where}"
    mix = type(part).mix

    def broken(x, state, ctx):
        y, after = mix(part, x, state, ctx)
        return y.masked_fill(torch.arange(y.shape[1])[:, None] == y.shape[1] - 1, float("nan")), after

    part.mix = broken
    return model, f"blocks.1.mixer ({type(part).__name__})"


@pytest.mark.parametrize("parameter", [True, False])
@pytest.mark.parametrize("name", RECURRENT)
def test_nan_in_a_gate_is_named_by_layer_and_step(name, parameter):
    model, place = poisoned(name, parameter)
    assert find_broken(model, lambda: model(tokens())) == place
    pair = Pair(model, orrery.create_objective("next-token"))
    with pytest.raises(NonFiniteError) as caught:
        Engine(pair, AdamW(pair, 1e-3), lambda step: 1e-3).step(5, {"tokens": tokens()})
    assert f"at step 5 on batch 5, first in {place}; the step was not taken" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        orrery.generate(model, tokens(1, 4), 3, seed=0)
    assert f"at new token 0, first in {place}" in str(caught.value)
    one_sentence(caught)


def test_a_whole_model_has_nothing_to_name():
    model = build("mamba2")
    assert find_broken(model, lambda: model(tokens())) is None


def test_reading_names_document_and_window(tmp_path):
    model = orrery.create_model("lstm", width=32, depth=1, vocab_size=V, seed=0, tied=False)
    with torch.no_grad():
        model.embed.weight[40] = float("nan")
    data = write_tokens(tmp_path / "x", [(np.arange(9), 9), (np.r_[np.arange(15), 40, 1, 2], 20)], V, V - 1)
    with pytest.raises(NonFiniteError, match="validation document 1 are not finite in the window from token 14"):
        list(read_carried(model, data, np.arange(2), 7))
