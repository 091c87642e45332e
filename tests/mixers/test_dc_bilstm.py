"""DC-BiLSTM beside torch's nn.LSTM layers with the same weights, stacked as the paper stacks them; its sizes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from orrery.core.errors import ConfigError
from orrery.mixers.dc_bilstm import DenseBiLSTM, DenseBiLSTMConfig
from orrery.models.build import create_model
from orrery.nn.contract import Place


def stacked(mixer, x):
    """The same by torch's bidirectional layers."""
    seen = x
    for ahead, back in zip(mixer.ahead, mixer.back, strict=True):
        layer = nn.LSTM(seen.shape[-1], ahead.hidden, batch_first=True, bidirectional=True, dtype=x.dtype)
        with torch.no_grad():
            for side, end in ((ahead, ""), (back, "_reverse")):
                getattr(layer, f"weight_ih_l0{end}").copy_(side.weight)
                getattr(layer, f"weight_hh_l0{end}").copy_(side.recurrent)
                getattr(layer, f"bias_ih_l0{end}").copy_(side.bias)
                getattr(layer, f"bias_hh_l0{end}").zero_()
        made = layer(seen)[0]
        seen = torch.cat([seen, made], -1)
    return made


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_equals_torch_s_layers_densely_connected(dtype, tolerance):
    torch.manual_seed(0)
    mixer = DenseBiLSTM(DenseBiLSTMConfig(layers=4, hidden=5), Place(width=12)).to(dtype)
    x = torch.randn(3, 11, 12, dtype=dtype)
    assert (mixer(x)[0] - stacked(mixer, x)).abs().max() < tolerance


def test_the_preset_has_the_paper_s_widths():
    """Inputs of 300, 326, .., 690; fifteen layers of 13 units a direction and one of 100."""
    mixer = create_model("dc-bilstm-15", vocab_size=9, head="classification").blocks[0].mixer
    assert [layer.weight.shape[1] for layer in mixer.ahead] == [300 + 26 * number for number in range(16)]
    assert [layer.hidden for layer in mixer.back] == [13] * 15 + [100]


def test_nothing_stands_around_the_stack():
    """No residual and no norm: hidden is what the stack makes of the embedding, the score that of its mean."""
    model = create_model("dc-bilstm", width=12, depth=1, layers=2, hidden=3, vocab_size=20, head="classification", seed=0).eval()
    tokens = torch.tensor([[3, 9, 1, 4]])
    out = model(tokens)
    hidden = model.blocks[0].mixer(model.embed(tokens))[0]
    torch.testing.assert_close(out.hidden, hidden)
    torch.testing.assert_close(out.logits, model.head.out(hidden.mean(1)))


def test_the_last_layer_carries_no_more_than_it_says():
    with pytest.raises(ConfigError, match="width 7 is odd"):
        DenseBiLSTM(DenseBiLSTMConfig(), Place(width=7))
    with pytest.raises(ConfigError, match="layers must be"):
        DenseBiLSTMConfig(layers=-1)
