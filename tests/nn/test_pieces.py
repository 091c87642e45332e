"""Long texts a piece at a time: the same numbers, only without gradients, with every form of the parts that do it."""

import pytest
import torch

import orrery
from orrery.nn import pieces


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("hypermixer", {}),
        ("hypermixer", {"heads": 2, "tied": False, "positions": "none"}),
        ("hypermixer", {"tied": False}),
        ("bert", {"head_dim": 8}),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_long_text_is_read_alike_in_pieces(name, settings, packed, monkeypatch):
    model = orrery.create_model(name, width=16, depth=2, vocab_size=30, seed=1, head=None, **settings).double().eval()
    tokens = torch.randint(0, 30, (1 if packed else 2, 23), generator=torch.Generator().manual_seed(0))
    segments = torch.zeros_like(tokens) if packed else None
    asked = []
    monkeypatch.setattr(pieces, "PIECE", 7)
    whole = model(tokens, segments=segments).hidden.detach()
    made = pieces.pieces
    monkeypatch.setattr(pieces, "pieces", lambda length: asked.append(length) or made(length))
    with torch.no_grad():
        found = model(tokens, segments=segments).hidden
    assert asked, "nothing was read in pieces"
    torch.testing.assert_close(found, whole, atol=1e-12, rtol=1e-12)
