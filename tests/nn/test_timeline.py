"""Documents, padding and positions on the time axis, against a loop."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orrery.core.errors import StateError
from orrery.nn.timeline import gather_time, plan, spread_time


def loop(rows, clocks):
    """Per row: positions and starts of valid tokens, lengths, clock."""
    result = []
    for row, (segment, position) in zip(rows, clocks, strict=True):
        positions, starts = [], []
        for s in row:
            if s < 0:
                continue
            new = s != segment
            position = 0 if new else position
            positions.append(position)
            starts.append(new)
            segment, position = s, position + 1
        result.append((positions, starts, (segment, position)))
    return result


rows = st.lists(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=7, max_size=7), min_size=1, max_size=3)


@given(rows, st.booleans())
def test_plan_equals_the_loop(raw, continued):
    segments = []
    for row in raw:
        total, built = 0, []
        for step, padding in row:
            total += step
            built.append(-1 if padding else total)
        segments.append(built)
    clocks = [(0, 3)] * len(segments) if continued else [(-1, 0)] * len(segments)
    clock = torch.tensor(clocks) if continued else None
    time, order = plan(torch.tensor(segments), clock, len(segments), 7, torch.device("cpu"))
    for b, (positions, starts, after) in enumerate(loop(segments, clocks)):
        n = len(positions)
        assert time.positions[b, :n].tolist() == positions
        found = torch.zeros(7, dtype=torch.bool) if time.starts is None else time.starts[b]
        assert found[1:n].tolist() == starts[1:]
        if continued and n:
            assert bool(found[0]) == starts[0]
        assert (7 if time.lengths is None else int(time.lengths[b])) == n
        assert tuple(time.clock[b].tolist()) == after
    if order is not None:
        x = torch.arange(len(segments) * 7).view(len(segments), 7)
        assert torch.equal(spread_time(gather_time(x, order), order), x)
        compact = gather_time(torch.tensor(segments), order) >= 0
        assert not bool((compact[:, 1:] & ~compact[:, :-1]).any())


def test_without_segments_a_call_continues_the_document():
    time, order = plan(None, torch.tensor([[4, 9], [0, 2]]), 2, 3, torch.device("cpu"))
    assert order is None and time.positions.tolist() == [[9, 10, 11], [2, 3, 4]]
    assert time.clock.tolist() == [[4, 12], [0, 5]] and time.past == 9 and not time.even


@pytest.mark.parametrize(
    ("segments", "clock", "words"),
    [([[0, 2, 1]], None, "decrease along row 0"), ([[1, 1, 1]], [[2, 5]], "decrease"), ([[0, 0]], None, "shape")],
)
def test_impossible_segments_are_refused(segments, clock, words):
    with pytest.raises(StateError, match=words):
        plan(torch.tensor(segments), None if clock is None else torch.tensor(clock), 1, 3, torch.device("cpu"))


@pytest.mark.parametrize(("batch", "length"), [(0, 3), (2, 0)])
def test_empty_input_is_refused(batch, length):
    with pytest.raises(StateError, match="empty"):
        plan(None, None, batch, length, torch.device("cpu"))
