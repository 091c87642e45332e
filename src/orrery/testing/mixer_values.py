"""Checks that a mixer computes one function, however it is called: cuts, steps, padding, packing, batches, time's arrow.

Every check takes a :class:`Subject` and raises AssertionError with numbers. B batch, T time, D width.
"""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor

from orrery.core.errors import ConfigError, StateError
from orrery.core.seeds import numpy_generator
from orrery.nn.contract import Context, Mixer
from orrery.nn.state import select, state_tensors
from orrery.testing.subject import Subject, copied, inputs, run
from orrery.testing.tags import KNOWN_TAGS
from orrery.testing.tolerance import assert_close, assert_finite, assert_same

CHUNKY = 100  # longer than a usual chunk of 64, and no multiple of anything


def interface(subject: Subject) -> None:
    """Shapes, dtypes, the state's form, the config as data, and clear errors for what cannot be honoured."""
    unknown = set(subject.tags) - set(KNOWN_TAGS)
    assert not unknown, f"unknown tags {sorted(unknown)}; known: {', '.join(KNOWN_TAGS)}"
    mixer, x = subject.build(torch.float32), inputs(subject, 2, 5, torch.float32)
    assert type(mixer.config).from_dict(mixer.config.to_dict()) == mixer.config, "config -> dict -> config changes it"
    kept = x.clone()
    y, state = run(mixer, x)
    assert_same(x, kept, "the input after the call (it was written to), which")
    assert y.shape == x.shape and y.dtype == x.dtype, (
        f"y is {y.dtype} {tuple(y.shape)}, x is {x.dtype} {tuple(x.shape)}"
    )
    if "bidirectional" not in subject.tags:
        _check_state_form(mixer, state, subject)
    for field in {"positions", "bias", "memory", "cond"} - set(mixer.honours):
        try:
            run(mixer, x, **{field: torch.zeros(2, 5, subject.width)})
        except ConfigError:
            continue
        raise AssertionError(f"ctx.{field} is set, is not in `honours`, and was ignored without an error")


def _check_state_form(mixer: Mixer, state: Any, subject: Subject) -> None:
    assert mixer.State is not None and isinstance(state, mixer.State), (
        f"the state is a {type(state).__name__}, not {mixer.State}"
    )
    names = state._fields
    assert names[-1] == "clock", f"the state's last field is '{names[-1]}', not 'clock'"
    assert state.clock.shape == (2, 2) and state.clock.dtype == torch.int64, "the clock must be (B,2) int64"
    assert state.clock[:, 1].tolist() == [5, 5], f"after 5 tokens the clock says {state.clock[:, 1].tolist()}"
    for name, tensor in zip(names, state, strict=True):
        for part in state_tensors(tensor):
            assert part.shape[0] == 2, f"state.{name} {tuple(part.shape)} is not batch-first"
    fresh = mixer.init_state(2)
    assert fresh._fields == names, f"init_state has fields {fresh._fields}, the state {names}"
    x = inputs(subject, 2, 5, torch.float32)
    assert_close(run(mixer, x, fresh)[0], run(mixer, x)[0], "the output from init_state(), compared to that from None,")
    for wrong in (select(state, torch.tensor([0])), (1, 2)):
        try:
            run(mixer, x, wrong)
        except StateError:
            continue
        raise AssertionError("a state of another batch size or type was taken without a StateError")


def split(subject: Subject) -> None:
    """A sequence cut at random places gives the same outputs, the same state, and the same gradients."""
    mixer, x = subject.build(), inputs(subject, 3, CHUNKY).requires_grad_()
    weight = inputs(subject, 3, CHUNKY, seed=1)
    whole, end = run(mixer, x)
    parameters = [p for p in mixer.parameters() if p.requires_grad]
    expected = torch.autograd.grad((whole * weight).sum(), [x, *parameters], allow_unused=True, retain_graph=True)
    rng = numpy_generator(0, "split", subject.name)
    for pieces in (2, 4):
        cuts = [0, *sorted(int(c) for c in rng.choice(CHUNKY - 1, pieces - 1, replace=False) + 1), CHUNKY]
        y, state = _pieces(mixer, x, cuts)
        assert_close(y, whole, f"the output of a sequence cut at {cuts[1:-1]}")
        _assert_same_future(subject, mixer, state, end, f"a sequence cut at {cuts[1:-1]}")
        found = torch.autograd.grad((y * weight).sum(), [x, *parameters], allow_unused=True, retain_graph=True)
        for name, a, b in zip(
            ["x", *(n for n, p in mixer.named_parameters() if p.requires_grad)], found, expected, strict=True
        ):
            if a is not None and b is not None:
                assert_close(a, b, f"the gradient of {name} through a cut at {cuts[1:-1]}", gradient=True)
            assert (a is None) == (b is None), (
                f"{name} has a gradient only with or only without the cut at {cuts[1:-1]}"
            )


def steps(subject: Subject) -> None:
    """Token by token equals all at once, outputs and state, in float64 and in float32."""
    for dtype in (torch.float64, torch.float32):
        mixer, x = subject.build(dtype), inputs(subject, 2, 21, dtype)
        with torch.no_grad():
            whole, end = run(mixer, x)
            y, state = _pieces(mixer, x, list(range(22)))
        assert_close(y, whole, "the output of 21 single steps")
        _assert_same_future(subject, mixer, state, end, "21 single steps")


def lengths(subject: Subject) -> None:
    """Lengths 1, 2, 63, 64, 65 and 100 are prefixes of one another."""
    mixer, x = subject.build(), inputs(subject, 2, CHUNKY)
    with torch.no_grad():
        whole, _ = run(mixer, x)
        assert_finite(whole, f"the output for length {CHUNKY}")
        for length in (1, 2, 63, 64, 65):
            y, state = run(mixer, x[:, :length])
            assert_close(
                y, whole[:, :length], f"the output for length {length}, compared to the same tokens of a longer run,"
            )
            then, _ = run(mixer, x[:, length:], state)
            assert_close(then, whole[:, length:], f"what follows a first call of length {length}")


def state_twice(subject: Subject) -> None:
    """A state used twice gives the same answer, and using it leaves it as it was."""
    mixer, x = subject.build(), inputs(subject, 2, 12)
    with torch.no_grad():
        _, state = run(mixer, x[:, :7])
        before = copied(state)
        for length in (5, 1):
            first, after = run(mixer, x[:, 7 : 7 + length], state)
            kept = copied(after)
            second, _ = run(mixer, x[:, 7 : 7 + length], state)
            for a, b in zip(state_tensors(state), state_tensors(before), strict=True):
                assert_same(a, b, "a state that was used (it was written to), which")
            assert_same(second, first, f"the second use of a state, for {length} tokens,")
            run(mixer, x[:, :3], after)
            for a, b in zip(state_tensors(after), state_tensors(kept), strict=True):
                assert_same(a, b, "a state after others were made (it shares memory), which")


def state_select(subject: Subject) -> None:
    """Chosen rows of a state continue as the same rows of the whole batch do."""
    mixer, x = subject.build(), inputs(subject, 4, 11)
    index = torch.tensor([2, 0, 2])
    with torch.no_grad():
        _, state = run(mixer, x[:, :6])
        expected, _ = run(mixer, x[:, 6:], state)
        y, _ = run(mixer, x[index, 6:], state.select(index))
    assert_close(y, expected[index], "the output that follows state.select([2, 0, 2])")


def padding(subject: Subject) -> None:
    """Padding to the left, to the right and in between changes nothing, holds anything, and comes out as zero."""
    length = 17
    patterns = [
        "vvvvvvvvvvv......",
        "......vvvvvvvvvvv",
        "vv..vvv.v....vvvv",
        "vvvvvvvvvvvvvvvvv",
        ".................",
        "................v",
    ]
    valid = torch.tensor([[letter == "v" for letter in row] for row in patterns])
    mixer, x = subject.build(), inputs(subject, len(patterns), length)
    segments = torch.where(valid, 3, -1)
    dirty = torch.where(valid[..., None], x, 50.0 * x + 7.0).requires_grad_()
    carries = "bidirectional" not in subject.tags
    before = (
        run(mixer, inputs(subject, len(patterns), 4, seed=2), segments=torch.full((len(patterns), 4), 3))[1]
        if carries
        else None
    )
    for start in (None, before) if carries else (None,):
        y, state = run(mixer, dirty, start, segments=segments)
        assert not bool(y[~valid].any()), (
            f"outputs at padding must be zero; the largest is {float(y[~valid].abs().max()):.3g}"
        )
        (gradient,) = torch.autograd.grad(y.square().sum(), dirty)
        assert not bool(gradient[~valid].any()), "what stands at padding receives a gradient"
        assert_finite(gradient, "the gradient of a padded input")
        for row, mask in enumerate(valid):
            held = None if start is None else select(start, torch.tensor([row]))
            _padded_row(
                subject,
                mixer,
                x[row : row + 1, mask],
                held,
                y[row : row + 1, mask],
                select(state, torch.tensor([row])),
                patterns[row],
            )


def _padded_row(subject: Subject, mixer: Mixer, x: Tensor, held: Any, y: Tensor, state: Any, pattern: str) -> None:
    """One row of a padded batch against the same tokens without padding."""
    end = held
    if x.shape[1]:
        alone, end = run(mixer, x, held, segments=torch.full((1, x.shape[1]), 3))
        assert_close(y, alone, f"the output of a row padded as '{pattern}'")
    if "bidirectional" not in subject.tags:
        _assert_same_future(subject, mixer, state, end, f"a row padded as '{pattern}'", segment=3)


def packing(subject: Subject) -> None:
    """Documents packed into one row give what each gives alone; none sees another; a document may cross a cut."""
    rows = [[5, 1, 1, 9, 24], [40], [1, 38, 1], [20, 20]]
    total = 40
    mixer, x = subject.build(), inputs(subject, len(rows), total)
    segments = torch.stack([torch.repeat_interleave(torch.arange(len(r)) * 2 + 1, torch.tensor(r)) for r in rows])
    x.requires_grad_()
    y, end = run(mixer, x, segments=segments)
    for row, sizes in enumerate(rows):
        begin, alone_end = 0, None
        for number, size in enumerate(sizes):
            alone, alone_end = run(mixer, x[row : row + 1, begin : begin + size])
            what = f"document {number} of the row with lengths {sizes}"
            assert_close(y[row : row + 1, begin : begin + size], alone, what)
            (leak,) = torch.autograd.grad(y[row, begin : begin + size].sum(), x, retain_graph=True)
            leak[row, begin : begin + size] = 0
            assert not bool(leak.any()), (
                f"{what} depends on other documents (gradient up to {float(leak.abs().max()):.3g})"
            )
            begin += size
        if "bidirectional" not in subject.tags:
            _assert_same_future(
                subject, mixer, select(end, torch.tensor([row])), alone_end, f"the row with lengths {sizes}"
            )
    if "bidirectional" not in subject.tags:
        for cut in (3, 7, 16, 21):
            first, state = run(mixer, x[:, :cut], segments=segments[:, :cut])
            second, _ = run(mixer, x[:, cut:], state, segments=segments[:, cut:])
            assert_close(torch.cat([first, second], 1), y, f"packed rows cut at {cut}")


def batch(subject: Subject) -> None:
    """A row's result does not depend on which rows stand beside it, not even when one of them is NaN."""
    for dtype in (torch.float64, torch.float32):
        mixer, x = subject.build(dtype), inputs(subject, 5, 33, dtype)
        with torch.no_grad():
            together, _ = run(mixer, x)
            for row in range(5):
                alone, _ = run(mixer, x[row : row + 1])
                assert_close(together[row : row + 1], alone, f"row {row} of a batch of 5, compared to the row alone,")
            assert_close(run(mixer, x.flip(0))[0].flip(0), together, "a batch in reversed order")
            x[2] = torch.nan
            beside = [0, 1, 3, 4]
            assert_close(run(mixer, x)[0][beside], together[beside], "the rows beside a row of NaN")


def causality(subject: Subject) -> None:
    """No output depends on a later token: by gradient, exactly; and by value, when the future changes."""
    mixer, x = subject.build(), inputs(subject, 2, CHUNKY).requires_grad_()
    y, _ = run(mixer, x)
    for time in (0, 1, 31, 63, 64, 98):
        (gradient,) = torch.autograd.grad(y[:, time].sum(), x, retain_graph=True)
        leak = float(gradient[:, time + 1 :].abs().max())
        assert leak == 0, f"the output at time {time} depends on later tokens (gradient up to {leak:.3g})"
    with torch.no_grad():
        for time in (0, 31, 64):
            other = x.clone()
            other[:, time + 1 :] = 30 * inputs(subject, 2, CHUNKY, seed=5)[:, time + 1 :]
            assert_close(
                run(mixer, other)[0][:, : time + 1],
                y[:, : time + 1],
                f"the output up to time {time} under another future",
            )


def nan_future(subject: Subject) -> None:
    """Outputs before a NaN are as if it were not there."""
    mixer, x = subject.build(), inputs(subject, 2, CHUNKY)
    with torch.no_grad():
        y, _ = run(mixer, x)
        for time in (0, 31, 64):
            other = x.clone()
            other[:, time + 1 :] = torch.nan
            assert_close(
                run(mixer, other)[0][:, : time + 1], y[:, : time + 1], f"the output up to time {time} before a NaN"
            )


def donated(subject: Subject) -> None:
    """A caller that gives its state away (ctx.donate) gets the same outputs."""
    mixer, x = subject.build(), inputs(subject, 2, 16)
    settings: dict[str, Any] = {"capacity": 16} if "capacity" in inspect.signature(mixer.init_state).parameters else {}
    with torch.no_grad():
        whole, _ = run(mixer, x)
        state = cast(Any, mixer).init_state(2, dtype=torch.float64, **settings)
        found = []
        for begin, stop in ((0, 9), (9, 10), (10, 11), (11, 14), (14, 16)):
            y, state = run(mixer, x[:, begin:stop], state, donate=True)
            found.append(y.clone())
    assert_close(torch.cat(found, 1), whole, "the output with donated states")


def transfer(subject: Subject) -> None:
    """The transfer matrix, where a mixer offers one, is (B,H,T,T), finite, causal, and keeps documents apart."""
    mixer, x = subject.build(), inputs(subject, 2, 12)
    if not hasattr(mixer, "transfer"):
        return
    from orrery.nn.timeline import plan

    with torch.no_grad():
        for segments in (None, torch.repeat_interleave(torch.tensor([[1, 2], [1, 2]]), 6, 1)):
            time, _ = plan(segments, None, 2, 12, x.device)
            matrix = cast(Any, mixer).transfer(x, Context(segments=segments, time=time))
            assert matrix.dim() == 4 and matrix.shape[0] == 2 and matrix.shape[2:] == (12, 12), (
                f"shape {tuple(matrix.shape)}"
            )
            assert_finite(matrix, "the transfer matrix")
            if "causal" in subject.tags:
                assert not bool(matrix.triu(1).any()), "the transfer matrix has entries above the diagonal"
            if segments is not None:
                assert not bool(matrix[..., 6:, :6].any()), "the transfer matrix mixes documents"


def update(subject: Subject) -> None:
    """`update(x, state, ctx)`, where a mixer offers a state-only step, leaves the state that the whole call leaves."""
    mixer, x = subject.build(), inputs(subject, 2, 9)
    if not hasattr(mixer, "update"):
        return
    from orrery.nn.timeline import plan

    with torch.no_grad():
        _, before = run(mixer, x[:, :5])
        _, expected = run(mixer, x[:, 5:], before)
        time, _ = plan(None, before.clock, 2, 4, x.device)
        found = cast(Any, mixer).update(x[:, 5:], before, Context(time=time))
    _assert_same_future(subject, mixer, found, expected, "a state-only step")


def _pieces(mixer: Mixer, x: Tensor, cuts: list[int]) -> tuple[Tensor, Any]:
    """Run x piece by piece between the cuts."""
    found, state = [], None
    for begin, stop in pairwise(cuts):
        y, state = run(mixer, x[:, begin:stop], state)
        found.append(y)
    return torch.cat(found, 1), state


def _assert_same_future(subject: Subject, mixer: Mixer, a: Any, b: Any, what: str, segment: int | None = None) -> None:
    """Two states are equal when everything that can follow is: five more tokens, and the clock's position.

    (Buffers may be laid out differently: a cache keeps as many slots as its longest row needs.)
    """
    rows = 1 if a is None else len(a.clock)
    dtype = next(mixer.parameters()).dtype
    x = inputs(subject, rows, 5, dtype, seed=9)
    fields = {} if segment is None else {"segments": torch.full((rows, 5), segment)}
    with torch.no_grad():
        assert_close(run(mixer, x, a, **fields)[0], run(mixer, x, b, **fields)[0], f"what follows {what}")
    if a is not None and b is not None:
        assert torch.equal(a.clock[:, 1], b.clock[:, 1]), (
            f"{what}: positions {a.clock[:, 1].tolist()} and {b.clock[:, 1].tolist()}"
        )
