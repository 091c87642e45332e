"""Transformer-XL and GTrXL: the sliding memory, relative positions, the cached table of positions, gates against loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import orrery
from orrery.core.errors import ConfigError
from orrery.mixers.transformer_xl import TransformerXL, TransformerXLConfig
from orrery.models.build import build as build_model
from orrery.models.build import resolve
from orrery.nn.contract import Context, Place
from orrery.nn.residual_gate import KINDS, ResidualGate


def xl(memory=10, width=16, seed=0, **settings):
    torch.manual_seed(seed)
    return TransformerXL(TransformerXLConfig(head_dim=8, memory=memory, **settings), Place(width=width)).double()


def test_a_token_sees_exactly_its_memory():
    mixer = xl(memory=6)
    x = torch.randn(1, 40, 16, dtype=torch.float64, requires_grad=True)
    y, state = mixer(x)
    (gradient,) = torch.autograd.grad(y[0, 30].sum(), x)
    assert gradient[0].abs().sum(1).nonzero()[:, 0].tolist() == list(range(24, 31))
    assert state.k.shape[1] == 6


@pytest.mark.parametrize("memory", [5, 300, 1000])
def test_long_sequences_are_cut_into_blocks_without_a_trace(memory):
    """700 tokens are three blocks of queries; in pieces that cut elsewhere they give the same."""
    mixer, x = xl(memory=memory), torch.randn(2, 700, 16, dtype=torch.float64)
    with torch.no_grad():
        whole, _ = mixer(x)
        state, found = None, []
        for low, high in ((0, 90), (90, 91), (91, 500), (500, 700)):
            y, state = mixer(x[:, low:high], state)
            found.append(y)
        documents = torch.tensor([[0] * 400 + [1] * 300, [2] * 300 + [3] * 400])
        packed, _ = mixer(x, None, Context(segments=documents))
        alone = mixer(x[:1, 400:])[0]
    assert (torch.cat(found, 1) - whole).abs().max() < 1e-12
    assert (packed[0, 400:] - alone[0]).abs().max() < 1e-12


def test_only_distance_counts():
    """A repeated input gives repeated outputs once the memory is full."""
    mixer = xl(memory=8)
    x = torch.randn(1, 4, 16, dtype=torch.float64).repeat(1, 10, 1)
    y, _ = mixer(x)
    assert (y[:, 20:24] - y[:, 36:]).abs().max() < 1e-12


def test_kept_positions_follow_the_weight():
    """Rows of W_r R are kept between calls without gradients; any change of W_r, even behind autograd's back, is seen."""
    mixer, x = xl(), torch.randn(1, 12, 16, dtype=torch.float64)
    with torch.no_grad():
        first, _ = mixer(x)
        kept = mixer._table[1]
        mixer(x)
        assert mixer._table[1] is kept
        mixer.relative.weight.data.mul_(3.0)
        second, _ = mixer(x)
    third, _ = mixer(x)
    assert (first - second).abs().max() > 1e-6 and (second - third).abs().max() < 1e-13


def test_kept_positions_see_one_number_and_who_listens():
    mixer, x = xl(width=32), torch.randn(1, 7, 32, dtype=torch.float64)
    with torch.no_grad():
        before = mixer(x)[0]
        mixer.relative.weight.data[3, 5] += 2.0  # without a version
        after = mixer(x)[0]
    torch.testing.assert_close(after, mixer(x)[0].detach())
    assert not torch.equal(after, before)
    calls = []
    with mixer.relative.register_forward_hook(lambda *_: calls.append("heard")), torch.no_grad():
        mixer(x)
    assert calls == ["heard"]


def test_transfer_times_values():
    mixer, x = xl(memory=7), torch.randn(2, 20, 16, dtype=torch.float64)
    from orrery.nn.timeline import plan

    matrix = mixer.transfer(x, Context(time=plan(None, None, 2, 20, x.device)[0]))
    values = mixer.inputs.linear(x)[..., 32:].unflatten(-1, (2, 8))
    want = mixer.out(torch.einsum("bhts,bshk->bthk", matrix, values).flatten(2))
    assert (mixer(x)[0] - want).abs().max() < 1e-12 and torch.allclose(matrix.sum(-1), torch.ones(2, 2, 20, dtype=torch.float64))


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def gate_loop(kind, w, b, x, y):
    """One vector at a time, as 1910.06764 writes them."""
    if kind == "input":
        return sigmoid(w[0] @ x) * x + y
    if kind == "output":
        return x + sigmoid(w[0] @ x - b) * y
    if kind == "highway":
        return sigmoid(w[0] @ x + b) * x + (1 - sigmoid(w[0] @ x + b)) * y
    if kind == "sigtanh":
        return x + sigmoid(w[0] @ y - b) * np.tanh(w[1] @ y)
    r, z = sigmoid(w[0] @ y + w[3] @ x), sigmoid(w[1] @ y + w[4] @ x - b)
    return (1 - z) * x + z * np.tanh(w[2] @ y + w[5] @ (r * x))


@pytest.mark.parametrize("kind", KINDS)
def test_gates(kind):
    torch.manual_seed(0)
    gate = ResidualGate(kind, 6).double()
    x, y = torch.randn(2, 3, 6, dtype=torch.float64), torch.randn(2, 3, 6, dtype=torch.float64)
    if gate.bias is not None:
        torch.nn.init.normal_(gate.bias)
    got, w = gate(x, y).detach().numpy(), gate.weight.detach().numpy()
    b = 0.0 if gate.bias is None else gate.bias.detach().numpy()
    for i in range(2):
        for t in range(3):
            assert np.allclose(got[i, t], gate_loop(kind, w, b, x[i, t].numpy(), y[i, t].numpy()), atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gated_block_is_the_paper_s(kind):
    """x = g(x, relu(mixer(LN x))); x = g(x, relu(channel(LN x))); the norms stand on the way into the parts alone."""
    model = orrery.create_model("gtrxl", width=16, depth=1, vocab_size=11, gate=kind, seed=0).double().eval()
    block, h = model.blocks[0], torch.randn(1, 9, 16, dtype=torch.float64)
    x = block.gates[0](h, torch.relu(block.mixer(block.mixer_norm(h))[0]))
    want = block.gates[1](x, torch.relu(block.channel(block.channel_norm(x))[0]))
    tokens = torch.zeros(1, 9, dtype=torch.int64)
    model.norm = torch.nn.Identity()
    assert torch.allclose(model(embeds=h).hidden, want, atol=1e-12) and model(tokens).logits.isfinite().all()


def test_a_gtrxl_begins_near_the_identity():
    """With b = 2 a block changes its input less than with b = 0: the Markovian start of section 3.2."""
    changes = []
    for bias in (0.0, 2.0, 6.0):
        torch.manual_seed(0)
        gate, x, y = ResidualGate("gru", 32, bias), torch.randn(1, 50, 32), torch.relu(torch.randn(1, 50, 32))
        changes.append((gate(x, y) - x).norm() / x.norm())
    assert changes[2] < 0.05 < changes[1] < 0.5 * changes[0]


@pytest.mark.parametrize(("preset", "millions"), [("transformer-xl-41m", 41), ("transformer-xl-277m", 277)])
def test_presets_have_their_published_sizes(preset, millions):
    config = resolve(preset)
    with torch.device("meta"):
        assert build_model(config).num_parameters(embedding=True) / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TransformerXLConfig(memory=0), "memory must be positive"),
        (lambda: TransformerXLConfig(dropout=1.0), "dropout"),
        (lambda: TransformerXL(TransformerXLConfig(heads=1), Place(width=33)), "width 33 is odd"),
        (lambda: ResidualGate("grue", 4), "Did you mean 'gru'"),
        (lambda: TransformerXL(TransformerXLConfig(head_dim=7), Place(width=32)), "not a multiple"),
    ],
)
def test_impossible_settings(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_softmax_scale_is_that_of_both_terms():
    """Scores of a single pair, written out."""
    mixer = xl(memory=3, width=8)
    x = torch.randn(1, 2, 8, dtype=torch.float64)
    q, k, _ = (p[0] for p in mixer.inputs.linear(x).split(8, -1))
    u, v, rates = mixer.content_bias[0], mixer.position_bias[0], 10000.0 ** (-torch.arange(0, 8, 2).double() / 8)
    r = [mixer.relative(torch.cat([(d * rates).sin(), (d * rates).cos()])) for d in (0, 1)]
    a = torch.stack([(q[1] + u) @ k[s] + (q[1] + v) @ r[1 - s] for s in (0, 1)]) / math.sqrt(8)
    from orrery.nn.timeline import plan

    matrix = mixer.transfer(x, Context(time=plan(None, None, 1, 2, x.device)[0]))
    assert torch.allclose(matrix[0, 0, 1], a.softmax(0), atol=1e-13)
