"""Positions scaled after training: the same weights, other angles; kept by a save; what has none is refused."""

from __future__ import annotations

import pytest
import torch

import orrery
from orrery.core.errors import ConfigError
from orrery.methods.stretch import stretch
from orrery.nn.rotary import RopeScaling

X = torch.randint(0, 50, (2, 40), generator=torch.Generator().manual_seed(0))
SIZES = {"width": 32, "depth": 3, "vocab_size": 50, "seed": 1}


def scalings(model):
    return [part.scaling for part in model.modules() if hasattr(part, "scaling")]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("transformer", {"mixer.head_dim": 8}),
        ("latent-attention", {"mixer.head_dim": 8}),
        ("mamba2 + attention | gla", {"attention.rope": 0.5}),
        ("modernbert", {"mixer.head_dim": 8}),
        ("zamba2", {"zamba2.rope": 1.0}),
    ],
)
@torch.no_grad()
def test_a_copy_with_other_angles_and_back(name, settings, tmp_path):
    model = orrery.create_model(name, **SIZES, **settings).eval()
    longer = stretch(model, "yarn(factor=4)", original=16)
    found = scalings(longer)
    part = settings.get("attention.rope", 1.0)
    assert found and all(each == RopeScaling(kind="yarn", factor=4.0, original=16, part=part) for each in found)
    assert scalings(model) == [None] * len(found) and not longer.training
    out = longer(X).hidden
    assert not torch.allclose(out, model(X).hidden, atol=1e-5)
    orrery.save(longer, tmp_path / "m")
    assert torch.equal(orrery.load(tmp_path / "m").eval()(X).hidden, out)
    again = stretch(longer, {"kind": "linear", "factor": 2.0})  # takes the place of the other
    assert all(each == RopeScaling(kind="linear", factor=2.0, part=part) for each in scalings(again))
    plain = stretch(again, "none")
    assert torch.equal(plain(X).hidden, model(X).hidden) and plain.config.to_dict()["layout"] == model.config.to_dict()["layout"]


def test_what_makes_no_sense_is_refused():
    model = orrery.create_model("transformer", **SIZES, **{"mixer.head_dim": 8})
    with pytest.raises(ConfigError, match="needs the trained length"):
        stretch(model, "dynamic(factor=4)")
    with pytest.raises(ConfigError, match="unknown scaling of positions 'yran'"):
        stretch(model, "yran(factor=4)")
    for name in ("gpt2", "mamba2"):
        with pytest.raises(ConfigError, match="no layer whose rotary positions can be scaled"):
            stretch(orrery.create_model(name, **SIZES), "linear(factor=2)")
