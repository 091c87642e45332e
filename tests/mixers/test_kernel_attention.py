"""Linear attention, cosFormer and Performer: what their papers promise of the kernels, long documents, and settings."""

from __future__ import annotations

import math

import pytest
import torch

import orrery
from oracles.performer import performer as performer_oracle
from orrery.core.errors import ConfigError
from orrery.mixers.cosformer import CosFormer, CosFormerConfig
from orrery.mixers.linear_attention import LinearAttention
from orrery.mixers.performer import Performer, PerformerConfig, draw_directions
from orrery.models.build import resolve
from orrery.nn.contract import Context, Place
from orrery.nn.kernel_attention import KernelAttentionConfig
from orrery.nn.timeline import plan
from orrery.testing.mixers import checks_for


def context(batch, time):
    return Context(time=plan(None, None, batch, time, torch.device("cpu"))[0])


@pytest.mark.parametrize("orthogonal", [True, False])
def test_the_estimate_is_unbiased_and_orthogonal_directions_are_nearer(orthogonal):
    """2009.14794, lemma 1 and theorem 2: the mean over draws is exp(q.k / sqrt K), with less variance if orthogonal."""
    torch.manual_seed(0)
    size, draws = 8, 400
    q, k = (0.7 * torch.randn(1, 1, 1, size, dtype=torch.float64) for _ in range(2))
    want = math.exp(float((q * k).sum()) / math.sqrt(size))
    found = []
    for seed in range(draws):
        w = draw_directions(16, size, seed, orthogonal)
        phi = [torch.exp(x.flatten() / size**0.25 @ w.t() - (x.flatten() / size**0.25).square().sum() / 2) for x in (q, k)]
        found.append(float(phi[0] @ phi[1]) / 16)
    mean, error = torch.tensor(found).mean().item(), torch.tensor(found).std().item() / math.sqrt(draws)
    assert abs(mean - want) < 4 * error
    if orthogonal:
        plain = [draw_directions(16, size, seed, False) for seed in range(draws)]
        phi = [[torch.exp(x.flatten() / size**0.25 @ w.t() - (x.flatten() / size**0.25).square().sum() / 2) for x in (q, k)] for w in plain]
        assert torch.tensor(found).std() < torch.tensor([float(a @ b) / 16 for a, b in phi]).std()


def test_directions_are_orthogonal_in_blocks_and_as_long_as_gaussian_vectors():
    w = draw_directions(20, 8, 3)
    assert w.shape == (20, 8)
    for block in (w[:8], w[8:16]):
        off = block @ block.t() - torch.diag(block.square().sum(1))
        assert off.abs().max() < 1e-12
    lengths = torch.cat([draw_directions(64, 8, seed) for seed in range(40)]).square().sum(1)
    assert lengths.mean().item() == pytest.approx(8, rel=0.05) and lengths.var().item() == pytest.approx(16, rel=0.2)


def test_performer_nears_softmax_attention():
    torch.manual_seed(0)
    x = 0.3 * torch.randn(1, 20, 16, dtype=torch.float64)
    errors = []
    for count in (16, 4096):
        torch.manual_seed(1)
        mixer = Performer(PerformerConfig(head_dim=8, random=count, rope=0.0), Place(width=16)).double()
        matrix = mixer.transfer(x, context(1, 20))
        q, k, _ = mixer.inputs.linear(x).unflatten(-1, (3, 2, 8)).unbind(2)
        scores = torch.einsum("bthk,bshk->bhts", q, k) / math.sqrt(8)
        exact = scores.masked_fill(torch.ones(20, 20, dtype=torch.bool).triu(1), -math.inf).softmax(-1)
        errors.append((matrix - exact).abs().max().item())
    assert errors[1] < 0.01 and errors[1] < 0.3 * errors[0]


def test_keys_that_would_overflow_do_not():
    """exp(|w|^2 / 2) of a head of 512 is above float32; relative to the greatest key so far it is not."""
    torch.manual_seed(0)
    mixer = Performer(PerformerConfig(head_dim=512, random=64, rope=0.0), Place(width=512))
    x = 30 * torch.randn(2, 50, 512)
    y, state = mixer(x)
    assert y.isfinite().all() and state.memory.isfinite().all() and state.peak.isfinite().all()


def test_the_draw_is_kept_and_named_by_its_seed():
    torch.manual_seed(3)
    mixer = Performer(PerformerConfig(head_dim=8), Place(width=16))
    assert mixer.directions.shape == (32, 8)
    kept = mixer.state_dict()
    assert torch.equal(draw_directions(32, 8, int(kept["seed"])).float(), kept["directions"])
    mixer.reset_parameters()
    assert not torch.equal(mixer.directions, kept["directions"]) or int(mixer.seed) == int(kept["seed"])


RELU = [c for c in checks_for("performer", performer_oracle, {"head_dim": 16, "random": 10, "features": "relu", "rope": 0.0})
        if c.name in ("oracle", "gradients", "split", "steps", "packing", "state_bytes")]  # fmt: skip


@pytest.mark.parametrize("check", RELU, ids=str)
def test_rectified_performer(check):
    check()


def test_cosine_weights_fall_with_distance_and_end_at_the_horizon():
    mixer = CosFormer(CosFormerConfig(head_dim=4, horizon=20), Place(width=4)).double()
    with torch.no_grad():
        mixer.inputs.linear.weight.copy_(torch.eye(4).repeat(3, 1))
    x = torch.ones(1, 60, 4, dtype=torch.float64)
    weights = mixer.transfer(x, context(1, 60))[0, 0]
    row = weights[19] / weights[19, 19]
    assert torch.allclose(row[:20], torch.cos(math.pi / 2 * torch.arange(19, -1, -1).double() / 20), atol=1e-12)
    assert (weights >= -1e-12).all() and torch.allclose(weights.sum(-1), torch.ones(60, dtype=torch.float64))
    late = weights[59] / weights[59, 59]
    assert torch.allclose(late[20:], torch.ones(40, dtype=torch.float64)) and late[0].abs() < 1e-12


@pytest.mark.parametrize(
    ("cls", "config"),
    [(LinearAttention, KernelAttentionConfig(head_dim=8)), (CosFormer, CosFormerConfig(head_dim=8, horizon=100)),
     (Performer, PerformerConfig(head_dim=8, random=16))],
)  # fmt: skip
def test_long_documents_do_not_drift(cls, config):
    """20,000 tokens in float32 against float64, at the end."""
    torch.manual_seed(0)
    mixer = cls(config, Place(width=8))
    x = torch.randn(1, 20000, 8)
    with torch.no_grad():
        y = mixer(x)[0][:, -50:]
        exact = mixer.double()(x.double())[0][:, -50:]
    assert (y - exact).abs().max() < 1e-4 * exact.abs().max()


def test_presets():
    protein, pixels = resolve("performer-trembl"), resolve("linear-attention-cifar10")
    assert protein.depth == 36 and protein.width // protein.blocks[0].mixer["head_dim"] == 8
    assert protein.blocks[0].mixer["random"] == 256 and protein.blocks[0].channel["hidden"] == 1024
    assert pixels.depth == 16 and pixels.width // pixels.blocks[0].mixer["head_dim"] == 8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KernelAttentionConfig(head_dim=3), "even and positive"),
        (lambda: CosFormerConfig(horizon=0), "horizon must be positive"),
        (lambda: PerformerConfig(features="elu"), "must be softmax or relu"),
        (lambda: PerformerConfig(random=-1), "random must be positive"),
        (lambda: LinearAttention(KernelAttentionConfig(head_dim=6), Place(width=32)), "not a multiple"),
    ],
)
def test_impossible_settings(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("name", "loud"),
    [
        ("linear-attention", 1.0),
        ("linear-attention(rope=0.0,canon=b,bias=True)", 8.0),
        ("cosformer(horizon=12)", 1.0),
        ("cosformer(horizon=500,rope=1.0)", 8.0),
        ("performer", 1.0),
        ("performer(random=20)", 40.0),  # exponents of several hundred
        ("performer(features=relu,random=20)", 8.0),
    ],
)
@torch.inference_mode()
def test_the_prepared_step_is_the_model(name, loud):
    """Rows at different positions, past the horizon, and keys whose exponents rise as they come."""
    model, draw = orrery.create_model(name, width=64, depth=2, vocab_size=61, seed=1).eval(), torch.Generator().manual_seed(0)
    for block in model.blocks:
        block.mixer.inputs.linear.weight.mul_(loud)
    tokens, segments = torch.randint(0, 61, (3, 26), generator=draw), torch.zeros(3, 9, dtype=torch.int64)
    segments[1, 4:] = -1
    state = model(tokens[:, :9], segments=segments).state
    stepper = model.stepper(state, 30)
    for t in range(9, 26):
        out = model(tokens[:, t : t + 1], state=state)
        scores, state = out.logits[:, 0], out.state
        assert (stepper(tokens[:, t]) - scores).abs().max() <= 2e-4 * scores.abs().max(), t
    assert not stepper.run.general  # no part is called as always
