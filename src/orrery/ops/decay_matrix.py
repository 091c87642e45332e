"""A diagonal recurrence as a matrix: what of each token's input is left at every later token.

Equation: ``h_t = exp(a_log_t) h_{t-1} + b_t`` (:mod:`orrery.ops.diagonal_scan`) from h = 0 is ``h = M b`` channel by channel, with
``M_ts = exp(a_log_{s+1} + .. + a_log_t)`` for s <= t in the same document, and 0 elsewhere.

O(T^2): for pictures and for distillation of short sequences. Differentiable.

B batch, T time, D width.
"""

from __future__ import annotations

from torch import Tensor

_FORGET = -1000.0  # e^-1000 is 0 in float64 too, and sums of it keep eleven digits for the other gates


def decay_matrix(a_log: Tensor, starts: Tensor | None = None) -> Tensor:
    """M (B,D,T,T) of gates a_log (B,T,D), at most 0; starts (B,T) bool as in the scan."""
    gates = a_log.double().clamp(min=_FORGET)
    if starts is not None:
        gates = gates.masked_fill(starts[..., None], _FORGET)
    total = gates.cumsum(1).transpose(1, 2)
    return (total[..., :, None] - total[..., None, :]).clamp(max=0.0).exp().tril().to(a_log.dtype)
