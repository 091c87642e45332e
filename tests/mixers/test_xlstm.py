"""mLSTM, sLSTM and their pattern: initial biases, published sizes, settings. (Loops: the contract checks.)"""

from __future__ import annotations

import pytest
import torch

from orrery.core.errors import ConfigError
from orrery.core.registry import lookup
from orrery.mixers.mlstm import MLSTM, MLSTMConfig
from orrery.mixers.slstm import SLSTM, SLSTMConfig
from orrery.models.build import build as build_model
from orrery.models.build import resolve
from orrery.nn.contract import Place
from orrery.optim.groups import parameter_groups


def test_initial_biases():
    mixer = MLSTM(MLSTMConfig(), Place(width=64, depth=4))
    assert mixer.gates.bias[4:].tolist() == pytest.approx([3, 4, 5, 6])
    assert mixer.gates.bias[:4].abs().max() < 0.6 and not mixer.gates.weight.any()
    assert mixer.out.weight.std().item() == pytest.approx(2 / 4 / 8, rel=0.05)
    for layer, middle in ((0, 5 - 12 * 0.5**0.3), (3, 5 - 12 * 0.5**1.6)):
        bias = SLSTM(SLSTMConfig(heads=2), Place(width=34, layer=layer, depth=4)).bias.detach().unflatten(1, (4, 17))
        assert bias[:, 1, 0].tolist() == pytest.approx([5, 5]) and bias[:, 1, -1].tolist() == pytest.approx([-7, -7])
        assert bias[0, 1, 8].item() == pytest.approx(middle) and not bias[:, (0, 2, 3)].any()


def test_biases_of_a_head_are_no_matrix_that_decays():
    groups = parameter_groups(SLSTM(SLSTMConfig(), Place(width=32)), weight_decay=0.1)
    free = {name for group in groups if group["weight_decay"] == 0 for name in group["names"]}
    assert free == {"bias", "recurrent", "norm", "conv.bias"}


@pytest.mark.parametrize(
    ("preset", "millions"), [("xlstm-125m", 163.8), ("xlstm-350m", 406.6), ("xlstm-760m", 840.4), ("xlstm-1.3b", 1420.4)]
)
def test_presets(preset, millions):
    """The paper's counts (table 6), with two embedding matrices."""
    assert lookup(preset).name == "xlstm"
    with torch.device("meta"):
        model = build_model(resolve(preset))
    assert model.num_parameters(embedding=True) / 1e6 == pytest.approx(millions, rel=0.01)
    kinds = [model.config.blocks[i].mixer["name"] for i in model.config.layout]
    assert kinds[:8] == ["mlstm"] * 7 + ["slstm"]


@pytest.mark.parametrize(
    ("cls", "config", "settings", "message"),
    [
        (MLSTM, MLSTMConfig, {"heads": 0}, "heads must be positive"),
        (MLSTM, MLSTMConfig, {"inner": 0}, "inner must be positive"),
        (MLSTM, MLSTMConfig, {"heads": 3}, "must divide the inner size 64"),
        (MLSTM, MLSTMConfig, {"block": 5}, "must divide the inner size 64"),
        (SLSTM, SLSTMConfig, {"heads": 5}, "heads 5 must divide the width 32"),
        (SLSTM, SLSTMConfig, {"conv": 0}, "conv must be positive"),
    ],
)
def test_impossible_settings(cls, config, settings, message):
    with pytest.raises(ConfigError, match=message):
        cls(config(**settings), Place(width=32))
