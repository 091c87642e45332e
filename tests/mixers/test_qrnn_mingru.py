"""QRNN and minGRU: what their papers say beyond the float64 loops, which run with the contract checks."""

from __future__ import annotations

import pytest
import torch

from orrery.core.errors import ConfigError
from orrery.mixers.mingru import MinGRU, MinGRUConfig
from orrery.mixers.qrnn import QRNN, QRNNConfig
from orrery.models.build import create_model
from orrery.nn.contract import Place
from orrery.ops.fused.windows import windows


def qrnn(**settings):
    torch.manual_seed(0)
    return QRNN(QRNNConfig(**settings), Place(width=8))


def test_zoneout_keeps_states_in_training_only():
    """With zoneout near 1 hardly any state changes; evaluation is that of the layer without."""
    layer, plain, x = qrnn(zoneout=0.9), qrnn(), torch.randn(4, 30, 8)
    torch.testing.assert_close(layer.eval()(x)[0], plain(x)[0])
    c = layer.train()(x)[1].c
    ones = torch.ones(4, 1, 8)
    torch.manual_seed(1)
    _, after = layer(ones, layer.init_state(4)._replace(c=c))
    still = (after.c == c).float().mean().item()
    assert 0.6 < still < 1.0  # 32 draws at 0.9


def test_windows_stop_at_documents_and_padding():
    x = torch.arange(1.0, 7).view(1, 6, 1)
    starts = torch.tensor([[False, False, True, False, False, False]])
    y, last = windows(x, 3, torch.tensor([[[-2.0], [-1.0]]]), starts, torch.tensor([5]))
    expected = [[-2, -1, 1], [-1, 1, 2], [0, 0, 3], [0, 3, 4], [3, 4, 5]]
    assert torch.equal(y[0, :5], torch.tensor(expected, dtype=torch.float32))
    assert torch.equal(last, torch.tensor([[[4.0], [5.0]]]))


def test_the_forget_bias_and_a_layer_without_a_way_out():
    layer = qrnn(forget_bias=2.0)
    assert torch.equal(layer.inputs.bias, torch.tensor([0.0] * 8 + [2.0] * 8 + [0.0] * 8))
    assert layer.out is None and qrnn(hidden=8).out is not None


def test_the_opposite_gate_of_salesforce_s_library():
    """Its recurrence, f z_t + (1 - f) c_{t-1} on [x_t, x_{t-1}] with c_1 = f z_1, by weights carried over."""
    layer, linear, x = qrnn(), torch.nn.Linear(16, 24), torch.randn(2, 12, 8)
    c, outs, before = torch.zeros(2, 8), [], torch.zeros(2, 8)
    with torch.no_grad():
        sign = torch.tensor([1.0, -1.0, 1.0]).repeat_interleave(8)
        layer.inputs.weight.copy_(sign[:, None] * linear.weight.roll(8, 1))
        layer.inputs.bias.copy_(sign * linear.bias)
        for t in range(12):
            z, f, o = linear(torch.cat([x[:, t], before], 1)).chunk(3, 1)
            c = f.sigmoid() * z.tanh() + (1 - f.sigmoid()) * c
            outs.append(o.sigmoid() * c)
            before = x[:, t]
        torch.testing.assert_close(layer(x)[0], torch.stack(outs, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_shut_and_an_open_gate(cell):
    """minGRU with z = 0 keeps its state bit by bit, with z = 1 forgets it; so does minLSTM with the gates' ratio."""
    layer = MinGRU(MinGRUConfig(hidden=6, cell=cell, conv=1), Place(width=8))
    state = layer.init_state(2)._replace(h=torch.full((2, 6), 3.0))
    with torch.no_grad():
        layer.inputs.weight.zero_()
        for gate, wanted in ((-200.0, 3.0), (200.0, 0.5)):  # g(0) = 1/2
            layer.inputs.bias.zero_()
            layer.inputs.bias[6:12] = gate if cell == "gru" else -gate
            layer.inputs.bias[12:] = gate
            assert torch.equal(layer(torch.randn(2, 5, 8), state)[1].h, torch.full((2, 6), wanted))


def test_the_hybrid_s_layers():
    model = create_model("rnn-transformer", width=64, depth=6, vocab_size=11)
    names = [type(block.mixer).__name__ for block in model.blocks]
    assert names == ["Attention", "QRNN", "QRNN"] * 2
    assert create_model("minlstm", width=32, depth=1, vocab_size=11).blocks[0].mixer.config.cell == "lstm"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QRNNConfig(window=0), "window must be 1"),
        (lambda: QRNNConfig(pooling="of"), "f, fo, ifo"),
        (lambda: QRNNConfig(zoneout=1.0), "zoneout"),
        (lambda: MinGRUConfig(cell="rnn"), "gru or lstm"),
        (lambda: MinGRUConfig(hidden=0), "hidden must be positive"),
    ],
)
def test_impossible_settings(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
