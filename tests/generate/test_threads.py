"""Decoding on two threads: the scores of one thread, bit for bit, of every architecture, and passes whose blocks share nothing.

A race may not happen while a test looks; what it needs, memory that two blocks share, is found without threads (tests/apart.py).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import orrery
from apart import check_apart
from orrery.core import registry
from orrery.nn.state import map_state
from orrery.ops.compiled import Pass
from orrery.ops.program import flat

pytest.importorskip("numba")

ARCHITECTURES = sorted(
    entry.name for entry in registry.entries("architecture") if not {"encoder", "encoder-decoder"} & set(entry.tags)
)  # fmt: skip
MORE = ["transformer(window=5)", "transformer(channel.name=grouped-moe)", "transformer(canon=abcd)", "mamba2(canon=abcd)"]
CALLS = {"zaya"}  # torch computes a part of the step, and adds up otherwise with other threads
ROWS, TOKENS = 2, 6


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def decode(model, state, ids, count):
    """Scores of every step on `count` threads, or None where nothing is compiled."""
    torch.set_num_threads(count)
    stepper = model.stepper(map_state(torch.clone, state), ids.shape[1])
    return None if stepper is None else torch.stack([stepper(ids[:, t]).clone() for t in range(4, ids.shape[1])])


@pytest.mark.parametrize("name", [*ARCHITECTURES, *MORE])
@torch.inference_mode()
def test_two_threads_give_what_one_gives(name, threads):
    model = orrery.create_model(name, width=64, depth=2, vocab_size=61, seed=1).eval()
    ids = torch.randint(0, 61, (ROWS, 4 + TOKENS), generator=torch.Generator().manual_seed(0))
    torch.set_num_threads(1)
    state = model(ids[:, :4]).state
    one, two = decode(model, state, ids, 1), decode(model, state, ids, 2)
    assert one is not None and two is not None
    torch.testing.assert_close(one, two, **({} if name in CALLS else {"rtol": 0, "atol": 0}))
    torch.set_num_threads(1)
    for each in flat(model.stepper(state, ids.shape[1])._passes):
        if isinstance(each, Pass):
            check_apart(each.kernel, each.blocks, each.given)
            each()
