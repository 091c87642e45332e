"""How many units fire, told layer by layer: against counting, padding left out, and nothing for models without events."""

import pytest
import torch

import orrery
from orrery.evaluate.activity import activity, firing_layers
from orrery.nn.contract import Aux, Context


def windows(model, lengths):
    draw = torch.Generator().manual_seed(0)
    for length in lengths:
        segments = torch.zeros(3, 13, dtype=torch.int64)
        segments[0, length:] = -1
        yield {"tokens": torch.randint(0, 40, (3, 13), generator=draw), "segments": segments}


def test_rows_are_means_over_valid_tokens():
    model = orrery.create_model("egru + attention(head_dim=8) + astro-snn", width=32, depth=3, vocab_size=40, seed=0).train()
    found = activity(model, windows(model, (13, 6)))
    assert firing_layers(model) == [0, 2] == [row["layer"] for row in found] and model.training
    model.eval()
    total, tokens = 0.0, 0
    for batch in windows(model, (13, 6)):
        aux, segments = Aux("activity"), batch["segments"][:, :-1]
        model(batch["tokens"][:, :-1], ctx=Context(aux=aux, segments=segments))
        total, tokens = total + int((segments >= 0).sum()) * aux.reports["activity"][0], tokens + int((segments >= 0).sum())
    share, mixer = total / tokens, model.blocks[0].mixer
    assert tokens < 2 * 36 and found[0]["activity"] == pytest.approx(share) and 0 < share < 1
    own, inner = 3 * mixer.hidden * 32, mixer.hidden * (3 * mixer.hidden + (0 if mixer.out is None else 32))
    assert found[0]["work"] == pytest.approx((own + share * inner) / (own + inner))
    assert found[1]["work"] is None, "astro-snn does not tell its products, whoever stands beside it"
    assert activity(model, []) == []


def test_who_sends_no_events_has_no_rows():
    model = orrery.create_model("lstm", width=32, depth=1, vocab_size=40, seed=0)
    assert activity(model, windows(model, (13,))) == [] == activity(torch.nn.Linear(2, 2), [])
