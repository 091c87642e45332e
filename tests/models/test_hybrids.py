"""Layers side by side and between one another: settings that find their branch, sizes, and training."""

import pytest
import torch

import orrery
from orrery.core.errors import ConfigError
from orrery.models.build import resolve
from orrery.models.ladder import LADDER

SMALL = {"width": 64, "depth": 2, "vocab_size": 31}


def branches(config, layer=0):
    return config.blocks[layer].mixer["branches"]


def test_settings_find_their_branch():
    overrides = {"mamba2.state": 16, "attention.window": 5, "fusion": "sum", "parallel.normed": False, "conv": 3}
    config = resolve("mamba2 | attention", width=64, overrides=overrides)
    mamba, attention = branches(config)
    assert mamba["state"] == 16 and attention["window"] == 5 and "window" not in mamba and "state" not in attention
    assert config.blocks[0].mixer["fusion"] == "sum" and config.blocks[0].mixer["normed"] is False
    assert mamba["conv"] == 3 and "conv" not in attention
    both = resolve("mamba2 | attention", width=64, overrides={"head_dim": 16, "attention.bias": True, "glu.hidden": 40}).blocks[0]
    assert [part["head_dim"] for part in both.mixer["branches"]] == [16, 16] and both.channel["hidden"] == 40
    bamba = resolve("bamba", width=64, overrides={"mamba2.eps": 1e-3, "mamba.eps": 1e-4, "eps": 1e-2}).blocks
    assert bamba[0].mixer["eps"] == 1e-3 and bamba[0].eps == bamba[1].eps == 1e-2
    with pytest.raises(ConfigError, match=r"unknown setting 'stat' of mamba2.*'state'"):
        resolve("mamba2 | attention", width=64, overrides={"mamba2.stat": 16})


def test_a_channel_mixer_is_exchanged_with_what_it_shares():
    config = resolve("gpt2 + gpt2(channel.name=moe,channel.experts=4)", width=64)
    plain, experts = (block.channel for block in config.blocks)
    assert plain["name"] == "mlp" and experts["name"] == "moe" and experts["experts"] == 4
    assert experts["activation"] == plain["activation"] and "bias" not in experts


def test_shared_heads_cost_what_one_mixer_costs():
    whole = resolve("attention", width=64, depth=1, overrides={"head_dim": 16})
    halves = resolve("attention | attention", width=64, depth=1, overrides={"shares": [0.5, 0.5], "head_dim": 16, "beta": "none"})
    sizes = [sum(p.numel() for p in orrery.models.build.build(c).blocks[0].mixer.parameters()) for c in (whole, halves)]
    assert sizes[0] == sizes[1]
    mixed = resolve("mamba2 | attention", width=64, depth=1, overrides={"shares": [0.5, 0.5], "head_dim": 16})
    mamba, attention = orrery.models.build.build(mixed).blocks[0].mixer.branches
    assert mamba.heads == 4 and attention.heads == 2
    with pytest.raises(ConfigError, match="neither heads nor an expansion"):
        orrery.models.build.build(resolve("attention | lstm", width=64, depth=1, overrides={"shares": [0.5, 0.5]}))


@pytest.mark.parametrize("fusion", ["mean", "sum", "difference", "concat"])
def test_every_fusion_trains(fusion):
    model = orrery.create_model("mamba2 | attention", **SMALL, fusion=fusion, seed=0, head_dim=16, state=8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    tokens = ((torch.arange(33) % 7)[None].expand(4, -1) * 3 + torch.arange(4)[:, None]) % 31
    losses = []
    for _ in range(25):
        logits = model(tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", ["mamba2 | attention", "mamba2*3 + mixtral"])
def test_patterns_meet_the_ladder(name):
    for size in ("nano", "tiny"):
        config = resolve(name, size)
        with torch.device("meta"):
            assert orrery.models.build.build(config).num_parameters() == pytest.approx(LADDER[size].parameters, rel=0.02)


def kinds(name, layer_kind):
    with torch.device("meta"):
        model = orrery.create_model(name)
    assert model.num_parameters(embedding=True) / 1e9 == pytest.approx(1.35, abs=0.15)
    return [i for i, kind in enumerate(model.config.layout) if model.config.blocks[kind].mixer["name"] == layer_kind]


def test_ratios_of_the_design_study():
    """2510.04800: attention scattered evenly in the middle, never first."""
    assert kinds("inter-hybrid-1b-1-12", "attention") == [8]
    assert kinds("inter-hybrid-1b-1-5", "attention") == [4, 8, 12]
    assert kinds("inter-hybrid-1b-1-3", "attention") == [3, 6, 9, 12]
    assert kinds("inter-hybrid-1b-1-1", "attention") == list(range(1, 16, 2))
    assert kinds("intra-hybrid-1b-1-5", "parallel") == [4, 8, 12]
    both = resolve("intra-hybrid-1b-1-5").blocks[1].mixer
    assert [branch["head_dim"] for branch in both["branches"]] == [64, 64] and both["branches"][0]["kv_heads"] == 8


def test_intra_hybrid_norms_heads_before_the_way_out():
    """2510.04800: the size of a branch's heads does not matter, the size of its way out does."""
    model = orrery.create_model("intra-hybrid", width=64, depth=4, vocab_size=31, seed=0).eval()
    mixer = model.blocks[2].mixer
    attention, mamba = mixer.branches
    assert (attention.out.groups, mamba.out.groups) == (attention.heads, mamba.heads)
    with torch.no_grad():
        for branch in mixer.branches:
            branch.out.eps = 1e-12
        x = torch.randn(2, 9, 64)
        y, parts = mixer(x)[0], [branch(x)[0] for branch in mixer.branches]
        torch.testing.assert_close(y, parts[0] - parts[1])
        attention.inputs.linear.weight[-attention.kv_heads * attention.head_dim :] *= 7.0
        mamba.norm.mul_(5.0)
        torch.testing.assert_close(mixer(x)[0], y, rtol=1e-4, atol=1e-5)
        mamba.out.weight.mul_(2.0)
        torch.testing.assert_close(mixer(x)[0], parts[0] - 2 * parts[1], rtol=1e-4, atol=1e-5)


def test_a_norm_of_heads_needs_heads():
    with pytest.raises(ConfigError, match="'lstm' has no heads"):
        orrery.create_model("attention | lstm", **SMALL, norm_at="heads")
    with pytest.raises(ConfigError, match="norms each head"):
        orrery.create_model("attention | mamba2", **SMALL, norm_at="heads", groups=4)
    with pytest.raises(ConfigError, match="norm_at 'head' must be one of out, heads"):
        orrery.create_model("attention | mamba2", **SMALL, norm_at="head")


STEPPED = {
    "falcon-h1": {},
    "bamba": {"mamba2.gate_norm": "before"},
    "mamba2 | attention": {"fusion": "concat"},
    "intra-hybrid": {},
    "mixtral": {"shared": 0.5, "shared_gate": True},
    "lola": {},
    "gigachat": {"moe.score": "sigmoid", "moe.bias_rate": 0.0},
}


@pytest.mark.parametrize("name", STEPPED)
def test_compiled_steps_are_the_model(name):
    model = orrery.create_model(name, width=64, depth=4, vocab_size=31, seed=0, **STEPPED[name]).eval()
    with torch.inference_mode():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for batch in (1, 2):
            tokens = torch.randint(31, (batch, 7))
            step = model.stepper(model(tokens).state, 20)
            assert step is not None and not step.run.general
            state, new = model(tokens).state, tokens[:, 0]
            for _ in range(6):
                out = model(new[:, None], state=state)
                torch.testing.assert_close(step(new), out.logits[:, 0], atol=1e-5, rtol=1e-4)
                state, new = out.state, out.logits[:, 0].argmax(-1)
