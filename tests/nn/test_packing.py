"""Documents laid end to end, relative positions in buckets, attention length by length."""

import pytest
import torch

from oracles.relative import bucket
from orrery.core.errors import StateError
from orrery.nn.document_attention import attend_documents, pairs_seen
from orrery.nn.packing import pack
from orrery.nn.relative import RelativeBias


def test_pack_lays_documents_shortest_first_and_back():
    segments = torch.tensor([[0, 0, 0, -1, -1], [-1, 4, 4, 7, -1], [1, -1, 1, 1, -1]])
    packing, time = pack(segments)
    assert packing.groups == time.groups == ((1, 1), (1, 2), (2, 3))
    x = torch.arange(15.0).view(3, 5, 1)
    row = packing.gather(x)
    assert row.flatten().tolist() == [8, 6, 7, 0, 1, 2, 10, 12, 13]
    assert time.positions.tolist() == [[0, 0, 1, 0, 1, 2, 0, 1, 2]]
    assert time.starts.tolist() == [[False, True, False, True, False, False, True, False, False]]
    assert torch.equal(packing.spread(row), x.masked_fill((segments < 0)[..., None], 0.0))


def test_pack_refuses_what_is_no_batch_of_documents():
    with pytest.raises(StateError, match="decrease along row 1"):
        pack(torch.tensor([[0, 1], [1, 0]]))
    with pytest.raises(StateError, match="every token of the batch is padding"):
        pack(torch.full((2, 3), -1))


@pytest.mark.parametrize(("buckets", "most", "both"), [(32, 128, True), (32, 128, False), (8, 20, True), (8, 20, False)])
def test_buckets(buckets, most, both):
    bias = RelativeBias(2, buckets, most, both)
    ahead = torch.arange(-200, 201)
    assert bias.bucket(ahead).tolist() == [bucket(int(a), buckets, most, both) for a in ahead]


def test_a_square_of_distances_is_looked_up_once_each():
    bias = RelativeBias(3, 8, 20, True)
    steps = torch.arange(37)
    assert torch.equal(bias.square(37), bias((steps - steps[:, None])[None]))


@pytest.mark.parametrize("window", [None, 3, 40])
def test_attention_of_groups_is_that_of_documents(window):
    torch.manual_seed(0)
    groups = ((2, 5), (1, 9), (1, 700))
    heads, bias = torch.randn(1, 719, 6, 4, dtype=torch.float64), torch.randn(1, 2, 700, 700, dtype=torch.float64)
    found, begin = attend_documents(heads, (2, 2, 2), groups, bias, window), 0
    for length in (5, 5, 9, 700):
        q, k, v = heads[0, begin : begin + length].transpose(0, 1).split(2)
        scores = q @ k.transpose(1, 2) / 2 + bias[0, :, :length, :length]
        steps = torch.arange(length)
        if window is not None:
            scores = scores.masked_fill((steps - steps[:, None]).abs() > window, -torch.inf)
        assert torch.allclose(found[0, begin : begin + length], (scores.softmax(-1) @ v).transpose(0, 1), atol=1e-12)
        begin += length
    assert pairs_seen(700, None) == 490000 > pairs_seen(700, 40) > pairs_seen(700, 3)
