"""BERT's whole encoder against loops in float64: embeddings, post-norm blocks, documents packed and padded."""

from __future__ import annotations

import pytest
import torch

import orrery
from oracles.bert import bert
from orrery.testing.subject import perturb

SEGMENTS = torch.tensor([[0, 0, 0, 2, 2, 5, 5, 5, -1], [1] * 7 + [-1, -1]])
TYPES = torch.tensor([[0, 0, 1, 0, 1, 1, 0, 1, 0], [0] * 4 + [1] * 5])


@pytest.mark.parametrize("segments", [None, SEGMENTS], ids=["whole", "packed"])
@pytest.mark.parametrize("types", [None, TYPES], ids=["one-type", "two-types"])
def test_equals_the_equations(segments, types):
    model = orrery.create_model("bert", width=16, depth=2, vocab_size=11, head=None, seed=1, **{"mixer.head_dim": 8})
    perturb(model, 1)
    model = model.double().eval()
    tokens = torch.randint(11, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = model(tokens, segments=segments, types=types).hidden
    values = {name: value.numpy() for name, value in model.state_dict().items()}
    arrays = [None if a is None else a.numpy() for a in (types, segments)]
    expected = torch.from_numpy(bert(values, model.config.to_dict(), tokens.numpy(), *arrays))
    assert float((found - expected).abs().max()) < 1e-10
