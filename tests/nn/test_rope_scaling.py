"""Scaled rotary positions: rates and gains against plain loops and transformers' own, attention over growing texts, bad settings."""

from __future__ import annotations

import math

import pytest
import torch

import orrery
from all_double import DoubleRates
from oracles import rotary as oracle
from orrery.core.errors import ConfigError
from orrery.nn import rotary
from orrery.nn.exchange_rope import read_rope, write_rope
from orrery.nn.rotary import RopeScaling, cached_table, rotary_rates, rotary_table, rotate, rotate_by_reals, step_table
from orrery.nn.state import map_state

SHORT, LONG = tuple(1 + 0.1 * i for i in range(8)), tuple(1 + 0.7 * i for i in range(8))
KINDS = {
    "linear": {"kind": "linear", "factor": 4.0},
    "dynamic": {"kind": "dynamic", "factor": 4.0, "original": 20},
    "yarn": {"kind": "yarn", "factor": 4.0, "original": 20},
    "yarn-deepseek": {"kind": "yarn", "factor": 40.0, "original": 4096, "mscale": 0.7, "mscale_all": 1.0},
    "yarn-other": {"kind": "yarn", "factor": 8.0, "original": 300, "slow": 2.0, "fast": 11.0, "truncate": False, "attention": 1.3},
    "yarn-steep": {"kind": "yarn", "factor": 8.0, "original": 2, "mscale": 1.0},
    "llama3": {"kind": "llama3", "factor": 8.0, "original": 60},
    "llama3-other": {"kind": "llama3", "factor": 8.0, "original": 600, "slow": 2.0, "fast": 9.0},
    "longrope": {"kind": "longrope", "factor": 4.0, "original": 20, "short": SHORT, "long": LONG},
    "longrope-given": {"kind": "longrope", "factor": 4.0, "original": 20, "short": SHORT, "long": LONG, "attention": 1.2},
}


@pytest.mark.parametrize("name", KINDS)
def test_rates_and_gains_are_those_of_plain_loops_and_of_transformers(name):
    """Rates to 1e-14 in float64, for texts within and beyond the trained length."""
    pytest.importorskip("transformers")
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = RopeScaling.from_dict(KINDS[name])
    given = {"max_position_embeddings": 80, **write_rope(scaling, 700.0)}
    theirs = LlamaConfig(hidden_size=32, num_attention_heads=2, **given)
    for length in (7, 20, 21, 64):
        lengths = torch.tensor(length) if scaling.grows else None
        found = rotary_rates(16, 700.0, scaling, lengths)
        expected = [oracle.rate(i, 16, 700.0, length, **KINDS[name]) for i in range(8)]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=0)
        with DoubleRates():
            rates, gain = ROPE_INIT_FUNCTIONS[scaling.kind](theirs, torch.device("cpu"), seq_len=length)
        assert rates.dtype == torch.float64
        torch.testing.assert_close(found, rates, rtol=1e-14, atol=0)
        assert scaling.gain == pytest.approx(gain, rel=1e-15) == pytest.approx(oracle.gain(**KINDS[name]), rel=1e-15)
    assert read_rope({"max_position_embeddings": 80, **given}) == (scaling.given(), 700.0)  # there and back


def test_rates_where_scaling_does_nothing_and_where_it_does_all():
    plain = rotary_rates(16, 700.0)
    for name in ("yarn", "llama3", "linear"):
        torch.testing.assert_close(rotary_rates(16, 700.0, RopeScaling(kind=name, factor=1.0, original=20)), plain, rtol=1e-14, atol=0)
    yarn = rotary_rates(16, 700.0, RopeScaling(kind="yarn", factor=4.0, original=200))
    assert yarn[0] == plain[0] and yarn[-1] == plain[-1] / 4
    dynamic = RopeScaling(kind="dynamic", factor=4.0, original=20)
    assert torch.equal(rotary_rates(16, 700.0, dynamic, torch.tensor([3, 20])), plain.expand(2, -1))


@pytest.mark.parametrize("name", ["yarn", "dynamic", "longrope"])
def test_tables_and_their_real_form(name):
    scaling = RopeScaling.from_dict(KINDS[name])
    steps = step_table(33, 16, 700.0, scaling)
    for p in (0, 19, 20, 32):
        row = rotary_table(torch.tensor([p]), 16, 700.0, scaling=scaling, lengths=torch.tensor([p + 1]) if scaling.grows else None)
        torch.testing.assert_close(steps[p : p + 1], row, rtol=1e-6, atol=1e-6)
    x, places = torch.randn(1, 33, 3, 20, dtype=torch.float64), torch.arange(33)
    table = cached_table(places, 33, 16, 700.0, torch.float64, scaling)
    expected = oracle.turned(x[0, :, 0].numpy(), range(33), 16, 700.0, 33, **KINDS[name])
    torch.testing.assert_close(rotate(x, table, 2)[0, :, 0], torch.tensor(expected), rtol=1e-12, atol=1e-12)
    if scaling.grows:
        with pytest.raises(ConfigError, match="cannot be exported"):
            rotate_by_reals(x, places, 16, 700.0, 2, scaling)
    else:
        torch.testing.assert_close(rotate_by_reals(x, places, 16, 700.0, 2, scaling), rotate(x, table, 2), rtol=1e-12, atol=1e-12)


def _model(rope, name="transformer", **more):
    model = orrery.create_model(name, width=32, depth=2, vocab_size=50, seed=3, **{"mixer.head_dim": 16, "mixer.rope": rope, **more}).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return model


X = torch.randint(0, 50, (2, 40), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["yarn", "dynamic", "longrope"])
@torch.no_grad()
def test_attention_over_a_growing_text_is_that_of_plain_loops(name):
    """Read in three calls: keys stay as they were turned when they were read, of a text as long as it was then."""
    part = _model(KINDS[name]).double().blocks[0].mixer
    x = torch.randn(1, 30, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    q, k, v = (each[0].unflatten(-1, (2, 16)) for each in part.inputs.linear(x).split(32, -1))
    cuts, state, found = (0, 12, 25, 30), None, []
    for begin, end in zip(cuts, cuts[1:], strict=False):
        y, state = part(x[:, begin:end], state)
        found.append(y)
    lengths = [next(end for end in cuts[1:] if t < end) for t in range(30)]
    heads = [oracle.attention(*(each[:, h].tolist() for each in (q, k, v)), 10000.0, 0.25, lengths, **KINDS[name]) for h in range(2)]
    expected = part.out(torch.cat([torch.tensor(each) for each in heads], 1))
    torch.testing.assert_close(torch.cat(found, 1)[0], expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["dynamic", "longrope"])
@torch.no_grad()
def test_what_counts_is_the_length_of_a_document_not_of_its_row(name):
    model = _model(KINDS[name])
    segments = torch.tensor([[0] * 31 + [1] * 9, [0] * 10 + [1] * 22 + [-1] * 8])
    found = model(X, segments=segments).logits
    for row, begin, end in ((0, 0, 31), (0, 31, 40), (1, 0, 10), (1, 10, 32)):
        alone = model(X[row : row + 1, begin:end]).logits[0]
        torch.testing.assert_close(found[row, begin:end], alone, rtol=1e-4, atol=1e-4)
    encoder = orrery.create_model("modernbert", width=32, depth=2, vocab_size=50, seed=3, **{"mixer.head_dim": 16, "mixer.rope": KINDS[name]})
    whole = encoder.eval()(X, segments=segments).hidden
    torch.testing.assert_close(whole[0, :31], encoder(X[:1, :31]).hidden[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole[1, 10:32], encoder(X[1:, 10:32]).hidden[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["linear", "dynamic", "yarn", "yarn-deepseek", "llama3", "longrope"])
@pytest.mark.parametrize("model", ["transformer", "latent-attention", "linear-attention"])
@torch.inference_mode()
def test_the_prepared_step_is_the_model_beyond_the_trained_length(model, name):
    """Rows stand at different positions, within and beyond 20; the step's tables against calls of one token."""
    scaling = {**KINDS[name], **({"original": 20} if "original" in KINDS[name] else {})}
    own = _model(scaling, model, **({"mixer.shared": 16} if model == "latent-attention" else {}))
    segments = torch.zeros(2, 26, dtype=torch.int64)
    segments[1, 11:] = -1
    out = own(X[:, :26], segments=segments)
    state = out.state
    step = own.stepper(own(X[:, :26], segments=segments).state, 40)
    assert step is not None
    for t in range(26, 38):
        out = own(X[:, t : t + 1], state=state)
        state = out.state
        torch.testing.assert_close(step(X[:, t]), out.logits[:, 0], rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
    ("name", "rope", "settings"),
    [
        ("transformer", 0.5, {"mixer.window": 9}),
        ("transformer", KINDS["dynamic"], {"mixer.window": 9}),
        ("linear-attention", KINDS["yarn"], {}),
        ("latent-attention", True, {"mixer.window": 9, "mixer.shared": 16}),
        ("lizard", True, {"mixer.window": 9}),
    ],
)
@torch.inference_mode()
def test_far_on_in_a_stream_a_step_holds_no_turns_of_what_is_past(name, rope, settings, monkeypatch):
    """Two rows that stand apart, a million tokens on; the step belongs to them and is not kept for another state."""
    own = _model(rope, name, **settings)
    state, far = own(X[:, :20]).state, torch.tensor([[0, 999_980], [0, 999_977]])
    state = state._replace(clock=state.clock + far)
    monkeypatch.setattr(rotary, "_table", None)  # the table of all positions
    step = own.stepper(map_state(torch.clone, state), 1_000_040)
    assert step is not None
    for t in range(20, 30):
        out = own(X[:, t : t + 1], state=state)
        state = out.state
        torch.testing.assert_close(step(X[:, t]), out.logits[:, 0], rtol=2e-4, atol=2e-4)
    step.close()
    monkeypatch.undo()
    out = own(X[:, :20])
    near = own.stepper(map_state(torch.clone, out.state), 40)
    torch.testing.assert_close(near(X[:, 20]), own(X[:, 20:21], state=out.state).logits[:, 0], rtol=2e-4, atol=2e-4)


def test_scores_of_latent_attention_grow_as_deepseek_says():
    part = _model({"kind": "yarn", "factor": 40.0, "original": 20, "mscale": 1.0, "mscale_all": 1.0}, "latent-attention").blocks[0].mixer
    assert part.scaling.gain == 1.0
    assert part.scale == pytest.approx((part.shared + part.head_dim) ** -0.5 * (0.1 * math.log(40) + 1) ** 2, rel=1e-14)


def test_a_scaling_is_typed_as_text_saved_and_read_again(tmp_path):
    model = _model("yarn(factor=4, original=20, truncate=false, part=0.5)")
    found = model.blocks[0].mixer
    assert found.scaling == RopeScaling(kind="yarn", factor=4.0, original=20, truncate=False, part=0.5) and found.rotated == 8
    orrery.save(model, tmp_path / "m")
    assert torch.equal(orrery.load(tmp_path / "m")(X).logits, model(X).logits)


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ("yrn(factor=4)", "unknown scaling of positions 'yrn'. Did you mean 'yarn'"),
        ("yarn(4)", "write kind"),
        ("yarn(factor=4", "write kind"),
        ("yarn(factor=4, original=20, beta=3)", "unknown setting 'attention.rope.beta'"),
        ("dynamic(factor=4)", "needs the trained length"),
        ("linear(factor=0.5)", "must be 1 or more"),
        ("linear(factor='a')", "must be a number"),
        ("llama3(factor=2, original=20, slow=5)", "must ascend"),
        ("longrope(factor=2, original=20, short=[1, 1], long=[1, 1])", "2 divisors for 8 rotated pairs"),
        ("longrope(factor=2, original=20)", "as many divisors"),
        ("dynamic(factor=2, original=20, part=0.2)", "more than one rotated pair"),
        ("yarn(factor=2, factor=4, original=20)", "write kind"),
        ("linear", "'linear' needs a factor"),
        ("yarn(factor=2, original=20, fast=0)", "must ascend"),
        ("yarn(factor=2, original=20, mscale=-90, mscale_all=1)", "mscale_all must be finite and 0 or more"),
        ({"kind": "yarn", "factor": 2.0, "original": 20, "fast": math.inf}, "must ascend"),
        ({"kind": "linear", "factor": 2.0, "attention": math.inf}, "positive and finite"),
        ({"kind": "longrope", "factor": 2.0, "original": 20, "short": [1.0] * 8, "long": [math.inf] * 8}, "positive and finite"),
        (1.5, "rotated part of a head, in"),
        (True, "must be a number or a scaling such as"),
        (None, "must be a number or a scaling such as"),
        ([1], "must be a number or a scaling such as"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(rope, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        _model(rope)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("transformer", {"mixer.rope.factor": 4}, "'rope' is given whole, as rope="),
        ("transformer", {"rope.factor": 4}, "'rope' is given whole, as rope="),
        ("mamba2 + attention | gla", {"attention.rope.factor": 4}, "'rope' is given whole, as rope="),
        ("mamba2 + attention", {"rope.factor": 4}, "'rope' is given whole, as rope="),
        ("latent-attention", {"mixer.rope": 0.5}, "must be true or false or a scaling such as"),
        ("latent-attention", {"mixer.rope_theta": 0.0}, "rope_theta must be positive"),
        ("transformer", {"mixer.rope_theta": math.inf}, "rope_theta must be positive and finite"),
        ("transformer", {"mixer.rope_theta": 1.0, "mixer.rope": "yarn(factor=4, original=20)"}, "needs a rope_theta above 1"),
    ],
)
def test_settings_beside_or_inside_a_scaling_are_refused_in_one_sentence(name, settings, message):
    with pytest.raises(ConfigError, match=message):
        orrery.create_model(name, width=32, depth=2, **settings)
