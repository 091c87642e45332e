"""Weight decay is for matrices: whatever decays in any part here is one that this file names, or the weight of a plain linear map."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from orrery.core import registry
from orrery.models.build import create_model
from orrery.optim.groups import parameter_groups
from orrery.testing.subject import subjects

# parameters of two or more dimensions that multiply what goes through their part: matrices, blocks of them, filters
MATRICES = {
    "ShortConv.weight",
    "MoE.wide", "MoE.out", "CarriedMoE.wide", "CarriedMoE.out",
    "CompressedInputs.first", "CompressedInputs.second",
    "LSTM.recurrent", "GRU.recurrent", "EGRU.recurrent", "DirectedLSTM.weight", "DirectedLSTM.recurrent",
    "RGLRU.input_gate", "RGLRU.recurrence_gate",
    "HeadMLP.wide", "HeadMLP.narrow",
    "WeightMaker.inner", "WeightMaker.outer",
    "ResidualGate.weight",
    "Lizard.maps",
    "MLSTM.blocks", "SLSTM.gates",
    "LowRankLinear.down", "LowRankLinear.up",
}  # fmt: skip

PRESETS = {preset for name in registry.names() for preset in registry.lookup(name).presets}
ARCHITECTURES = [name for name in registry.names(kind="architecture") if name not in PRESETS]
MIXERS = registry.names(kind="mixer")


def decaying(model: nn.Module) -> set[str]:
    """"Class.parameter" of everything that decays and is no plain linear map's weight."""
    groups = parameter_groups(model, 0.1)
    decayed = {name for group in groups if group["weight_decay"] for name in group["names"]}
    found = set()
    for name in decayed:
        owner, _, own = name.rpartition(".")
        module = model.get_submodule(owner)
        if not (isinstance(module, nn.Linear) and own == "weight"):
            found.add(f"{type(module).__name__}.{own}")
    return found


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(name):
    with torch.device("meta"):
        model = create_model(name, width=64, depth=2, vocab_size=31)
    assert decaying(model) <= MATRICES


@pytest.mark.parametrize("name", MIXERS)
def test_settings_of_mixers(name):
    for subject in subjects(name):
        with torch.device("meta"):
            mixer = subject.build(torch.float32, randomise=False)
        assert decaying(mixer) <= MATRICES, subject.label
