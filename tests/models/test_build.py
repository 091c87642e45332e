"""From names, sizes and overrides to models."""

import pytest
import torch

import orrery
from orrery.core.errors import ConfigError, UnknownNameError
from orrery.models.build import resolve
from orrery.models.ladder import LADDER, TOLERANCE, solve
from orrery.models.patterns import Branch, parse_pattern
from orrery.models.shapes import shapes_only

ARCHITECTURES = orrery.list_models(kind="architecture")
PRESETS = [name for name in ARCHITECTURES if name != __import__("orrery.core.registry", fromlist=["x"]).lookup(name).name]


@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - set(PRESETS)))
@pytest.mark.parametrize("size", LADDER)
def test_every_architecture_meets_the_ladder(name, size):
    config = resolve(name, size)
    with shapes_only():
        model = orrery.models.build.build(config)
    assert abs(model.num_parameters() / LADDER[size].parameters - 1) <= TOLERANCE


@pytest.mark.parametrize("name", ["transformer(canon=abcd)", "gpt2*2 + transformer", "transformer | gpt2", "attention(window=8)"])
def test_patterns_meet_it_too(name):
    model = orrery.create_model(name, size="nano")
    assert abs(model.num_parameters() / LADDER["nano"].parameters - 1) <= TOLERANCE
    assert model(torch.zeros(1, 3, dtype=torch.int64)).logits.shape == (1, 3, 257)


@pytest.mark.parametrize(("preset", "millions"), [("gpt2-124m", 124.4), ("gpt2-355m", 354.8), ("gpt2-774m", 774.0), ("gpt2-1.5b", 1557.6)])
def test_presets_have_their_published_sizes(preset, millions):
    with torch.device("meta"):
        model = orrery.create_model(preset)
    assert model.num_parameters(embedding=True) / 1e6 == pytest.approx(millions, rel=1e-3)


def test_pattern_grammar():
    a, m = Branch("a"), Branch("m", (("k", 2), ("s", "x")))
    assert parse_pattern("a") == [(a,)]
    assert parse_pattern("m(k=2, s=x)*2 + a") == [(m,), (m,), (a,)]
    assert parse_pattern("a | m(s=x,k=2)") == [(a, m)]
    scaled = Branch("m", (("k", [3, 2]), ("rope", "yarn(factor=4, original=64)")))
    assert parse_pattern("m(rope=yarn(factor=4, original=64), k=[3, 2])*2 + a") == [(scaled,), (scaled,), (a,)]
    for bad in ("", "a +", "a(k=1", "a*0", "a*9999", "a b", "a(k)"):
        with pytest.raises(ConfigError):
            parse_pattern(bad)


def test_layers_are_tiled_over_the_depth():
    config = resolve("gpt2*2 + transformer", depth=6, width=64)
    assert config.layout == (0, 0, 1, 0, 0, 1)
    assert [config.blocks[i].norm for i in config.layout] == ["layernorm", "layernorm", "rmsnorm"] * 2


def test_overrides_find_their_place():
    overrides = {"canon": "a", "transformer.rope_theta": 5.0, "gpt2.bias": False, "tied": False}
    config = resolve("gpt2 + transformer", width=64, overrides=overrides)
    gpt2, llama = config.blocks
    assert gpt2.canon == llama.canon == "a" and not config.tied
    assert llama.mixer["rope_theta"] == 5.0 and gpt2.mixer["bias"] is False and "rope_theta" not in gpt2.mixer
    assert resolve("transformer", width=64, overrides={"hidden": 40}).blocks[0].channel["hidden"] == 40
    assert resolve("transformer", width=64, overrides={"mixer.window": 4}).blocks[0].mixer["window"] == 4


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: orrery.create_model("transfomer"), UnknownNameError, "'transformer'"),
        (lambda: orrery.create_model("transformer", size="nanno"), ConfigError, "'nano'"),
        (lambda: orrery.create_model("transformer", hiden=3), ConfigError, "'hidden'"),
        (lambda: orrery.create_model("transformer", **{"mixer.winow": 3}), ConfigError, "'window'"),
        (lambda: orrery.create_model("transformer", width=65, **{"mixer.head_dim": 64}), ConfigError, "not a multiple"),
        (lambda: orrery.create_model("transformer", width=64, kv_heads=3, heads=4), ConfigError, "must divide"),
        (lambda: orrery.create_model("transformer", width=64, placement="mid"), ConfigError, "pre, post, parallel"),
        (lambda: orrery.create_model("transformer", width=64, canon="xyz"), ConfigError, "canon"),
        (lambda: orrery.create_model("transformer", width=64, hidden="os.system"), ConfigError, "whole number"),
        (lambda: orrery.create_model("next-token"), (UnknownNameError, ConfigError), "next-token"),
        (lambda: orrery.create_model("kneser-ney", oder=3), ConfigError, "'order'|kneser-ney.order"),
    ],
)
def test_mistakes_are_one_sentence(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_target_that_no_width_meets_is_said():
    with pytest.raises(ConfigError, match="no width meets"):
        solve(lambda width, scale: 1000 * width, 100, 1)


def test_a_size_that_a_large_step_misses_is_met_by_a_smaller_one():
    both_ways = orrery.create_model("lstm", size="nano", frame="encoder", vocab_size=64)
    assert abs(both_ways.num_parameters() / 300_000 - 1) <= 0.02 and both_ways.blocks[0].mixer.ahead.config.hidden == 78
    assert orrery.create_model("lstm", size="nano", vocab_size=64).blocks[0].mixer.config.hidden % 8 == 0


def test_seeds_decide_the_parameters_and_leave_the_global_stream_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b, c = (orrery.create_model("transformer", size="nano", seed=s).state_dict() for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a[k], b[k]) for k in a) and not torch.equal(a["embed.weight"], c["embed.weight"])


def test_reset_parameters_draws_what_construction_draws():
    model = orrery.create_model("transformer", size="nano", seed=1)
    first = {k: v.clone() for k, v in model.state_dict().items()}
    model.reset_parameters()
    spread = {k: (v.std() / first[k].std()).item() for k, v in model.state_dict().items() if v.dim() > 1}
    assert all(0.9 < ratio < 1.1 for ratio in spread.values())
