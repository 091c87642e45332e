"""GIN- and PNA-attention: against torch modules on the dense graph, against attention, and their settings."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from oracles.gin_attention import gin_attention as gin_oracle
from oracles.pna_attention import pna_attention as pna_oracle
from orrery.core.errors import ConfigError
from orrery.mixers.gin_attention import GINAttention, GINAttentionConfig
from orrery.mixers.pna_attention import PNAAttention, PNAAttentionConfig
from orrery.models.build import build as build_model
from orrery.models.build import resolve
from orrery.nn.contract import Context, Place
from orrery.nn.timeline import plan
from orrery.testing.mixers import checks_for

SETTINGS = (
    ("gin-attention", gin_oracle, {"head_dim": 16, "temperature": 0.7}),
    ("pna-attention", pna_oracle, {"head_dim": 16, "aggregators": ["min", "std"], "heads": 3}),
    ("pna-attention", pna_oracle, {"head_dim": 8, "aggregators": ["mean"], "rope": 0.0}),
)
CHECKS = [c for name, oracle, settings in SETTINGS for c in checks_for(name, oracle, settings)
          if c.name in ("oracle", "packing") and not c.disabled and "canon" not in c.subject]  # fmt: skip


@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_other_settings(check):
    check()


def context(batch, time):
    return Context(time=plan(None, None, batch, time, torch.device("cpu"))[0])


def test_gin_is_a_graph_network_on_its_adjacency():
    """(e + A) X per head, then Linear, RMSNorm, SiLU, Linear, with torch's own layers."""
    torch.manual_seed(0)
    mixer = GINAttention(GINAttentionConfig(head_dim=8, one_plus=True), Place(width=16)).double()
    with torch.no_grad():
        mixer.itself.copy_(torch.tensor([0.3, -0.4]))
    x = torch.randn(2, 30, 16, dtype=torch.float64)
    adjacency, nodes, want = mixer.transfer(x, context(2, 30)), x.unflatten(-1, (2, 8)), []
    for h in range(2):
        z = (1 + mixer.itself[h]) * nodes[:, :, h] + adjacency[:, h] @ nodes[:, :, h]
        n = mixer.network
        hidden = F.linear(z, n.wide[h].t(), n.wide_bias[h])
        want.append(F.linear(F.silu(F.rms_norm(hidden, (4,), n.norm[h], 1e-6)), n.narrow[h].t(), n.narrow_bias[h]))
    assert (mixer(x)[0] - torch.cat(want, -1)).abs().max() < 1e-12


def test_pna_s_statistics_are_those_of_the_weighted_past():
    torch.manual_seed(0)
    mixer = PNAAttention(PNAAttentionConfig(head_dim=8), Place(width=8)).double()
    x, seen = torch.randn(1, 20, 8, dtype=torch.float64), []
    mixer.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    mixer(x)
    v, A = mixer.inputs.linear(x)[0, :, 16:], mixer.transfer(x, context(1, 20))[0, 0]
    mean = A @ v
    var = torch.stack([(A[t, :, None] * (v - mean[t]) ** 2).sum(0) for t in range(20)])
    want = torch.cat([mean, v.cummax(0).values, v.cummin(0).values, (var + 1e-5).sqrt()], -1)
    assert (seen[0][0, :, 0] - want).abs().max() < 1e-10


def test_the_variance_of_one_token_is_nothing():
    """In float32, far from the origin, where A v^2 - mean^2 would be rounding."""
    torch.manual_seed(0)
    mixer, seen = PNAAttention(PNAAttentionConfig(head_dim=8, aggregators=("var",)), Place(width=8)), []
    mixer.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    _, state = mixer(torch.full((1, 1, 8), 300.0))
    mixer(torch.full((1, 1, 8), 300.0), state)
    mixer(torch.randn(1, 4, 8) * 3, None, Context(segments=torch.tensor([[0, 1, 1, 2]])))
    assert not seen[0].any() and not seen[1].any() and not seen[2][0, [0, 1, 3]].any() and seen[2][0, 2].any()


def test_preset_is_the_paper_s_protein_model():
    config = resolve("gin-attention-protein")
    with torch.device("meta"):
        model = build_model(config)
    assert len(model.blocks) == 6 and model.blocks[0].mixer.heads == 8 and model.blocks[0].mixer.out is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PNAAttentionConfig(aggregators=("mean", "medain")), "unknown aggregator"),
        (lambda: PNAAttentionConfig(aggregators=()), "one or more"),
        (lambda: GINAttentionConfig(head_dim=7), "even and positive"),
        (lambda: GINAttentionConfig(hidden=0.001), "without a hidden unit"),
        (lambda: GINAttentionConfig(temperature=0.0), "temperature must be positive"),
        (lambda: GINAttention(GINAttentionConfig(head_dim=8, heads=3), Place(width=32)), "must make the width"),
        (lambda: PNAAttention(PNAAttentionConfig(head_dim=12), Place(width=32)), "not a multiple"),
    ],
)
def test_impossible_settings(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
