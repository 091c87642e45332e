"""How near is equal: one table by dtype for every contract check, and the comparison that uses it.

An error is the largest absolute difference, divided by the largest magnitude of what was expected (or by 1e-3 where
that is smaller). So a tolerance means the same for outputs of any scale, and zeros among large numbers do no harm.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """value: forward results computed in two ways. gradient: the same for gradients. both relative to the largest entry."""

    value: float
    gradient: float


TOLERANCES: dict[torch.dtype, Tolerance] = {
    torch.float64: Tolerance(value=1e-9, gradient=1e-8),
    torch.float32: Tolerance(value=1e-5, gradient=3e-5),
    torch.bfloat16: Tolerance(value=2e-2, gradient=3e-2),
}
ORACLE = 1e-9  # float64 against an independent float64 oracle
DIFFERENCE = 1e-5  # float64 gradient against a central difference, relative to the gradient's size
FLOPS = 0.05  # relative; declared operations against counted ones
SCALE_FLOOR = 1e-3


def error(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute difference relative to the largest magnitude of `expected`; infinite if either is not finite."""
    if actual.shape != expected.shape:
        raise AssertionError(f"shapes differ: {tuple(actual.shape)} instead of {tuple(expected.shape)}")
    if expected.numel() == 0:
        return 0.0
    actual, expected = actual.detach().double(), expected.detach().double()
    if not bool(torch.isfinite(actual).all() & torch.isfinite(expected).all()):
        return float("inf")
    scale = max(float(expected.abs().max()), SCALE_FLOOR)
    return float((actual - expected).abs().max()) / scale


def assert_close(
    actual: Tensor, expected: Tensor, what: str, limit: float | None = None, gradient: bool = False
) -> float:
    """Raise AssertionError with the error and the worst place unless `actual` equals `expected` within the table.

    Args:
        actual, expected: tensors of one shape.
        what: the sentence's subject ("the output after a cut at 7").
        limit: another limit than the table's for `actual`'s dtype.
        gradient: take the table's column for gradients.

    Returns:
        The error.
    """
    row = TOLERANCES[actual.dtype if actual.dtype in TOLERANCES else torch.float32]
    limit = limit if limit is not None else (row.gradient if gradient else row.value)
    try:
        found = error(actual, expected)
    except AssertionError as problem:
        raise AssertionError(f"{what}: {problem}") from None
    if found <= limit:
        return found
    raise AssertionError(
        f"{what} differs by {found:.3g} (allowed {limit:.3g}, {actual.dtype}){_worst(actual, expected)}"
    )


def assert_same(actual: Tensor, expected: Tensor, what: str) -> None:
    """Raise AssertionError unless the two are bitwise equal (NaN equals NaN)."""
    same = actual.shape == expected.shape and torch.equal(torch.nan_to_num(actual), torch.nan_to_num(expected))
    if not same or not torch.equal(actual.isnan(), expected.isnan()):
        raise AssertionError(f"{what} is not bitwise the same{_worst(actual, expected)}")


def assert_finite(value: Tensor, what: str) -> None:
    """Raise AssertionError with a count unless all entries are finite."""
    bad = int((~torch.isfinite(value)).sum())
    if bad:
        first = (~torch.isfinite(value)).nonzero()[0].tolist()
        raise AssertionError(
            f"{what} holds {bad} of {value.numel()} entries that are NaN or infinite, the first at {first}"
        )


def _worst(actual: Tensor, expected: Tensor) -> str:
    if actual.shape != expected.shape or actual.numel() == 0:
        return f": shapes {tuple(actual.shape)} and {tuple(expected.shape)}"
    gap = torch.nan_to_num((actual.detach().double() - expected.detach().double()).abs(), nan=float("inf"))
    flat, actual, expected = int(gap.argmax()), actual.detach(), expected.detach()
    index = [int(i) for i in torch.unravel_index(torch.tensor(flat), actual.shape)]
    return f"; worst at {index}: {float(actual.flatten()[flat]):.9g} instead of {float(expected.flatten()[flat]):.9g}"
