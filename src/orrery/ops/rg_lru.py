"""The real-gated linear recurrent unit of Griffin: a diagonal scan whose gate and input are set by the token.

Paper: Griffin (2402.19427), section 2.4. With input gate i and recurrence gate r in (0, 1), and pace p > 0 per channel,

    ``log a_t = -c r_t p``,  c = 8;   ``h_t = a_t h_{t-1} + sqrt(1 - a_t^2) i_t x_t``

(the paper writes p as -log sigmoid(Lambda)). The root keeps the size of h; a document's first token has nothing to make room
for and is taken whole, as in the published code. Near a = 1 the root's derivative grows without bound; it is cut off at
1000, as there.

The recurrence itself is :func:`orrery.ops.diagonal_scan.diagonal_scan`.

B batch, T time, R channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from orrery.ops.diagonal_scan import diagonal_scan
from orrery.ops.operands import check_operands, sizes

SHARPNESS = 8.0
"""c of the equation."""
_STEEPEST = 1000.0  # derivative of the root


def rg_lru(
    x: Tensor,
    input_gate: Tensor,
    recurrence_gate: Tensor,
    pace: Tensor,
    first: Tensor,
    state: Tensor | None = None,
    starts: Tensor | None = None,
    lengths: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence of the equation above.

    Args:
        x: inputs (B,T,R).
        input_gate, recurrence_gate: before their sigmoid, (B,T,R).
        pace: p, positive, (R,).
        first: (T,) or (B,T) bool, tokens that are the first of their document.
        state, starts, lengths, backend: as in :func:`orrery.ops.diagonal_scan.diagonal_scan`.

    Returns:
        h (B,T,R) in x's type, and h after the last valid token (B,R), float32 (float64 for float64 inputs).

    Raises:
        StateError: when the state or `starts` has another shape.
    """
    shape = sizes("rg_lru", "x", x, "BTR")
    gates = {"input_gate": (input_gate, shape), "recurrence_gate": (recurrence_gate, shape), "pace": (pace, shape[2:])}
    check_operands("rg_lru", gates, (shape[0], shape[1]))
    a_log, b = rg_lru_terms(x, input_gate, recurrence_gate, pace, first)
    h, after = diagonal_scan(a_log, b, state, starts, lengths, backend)
    return h.to(x.dtype), after


def rg_lru_terms(
    x: Tensor, input_gate: Tensor, recurrence_gate: Tensor, pace: Tensor, first: Tensor
) -> tuple[Tensor, Tensor]:
    """log a and sqrt(1 - a^2) i x, both (B,T,R) in float32 at least; arguments as of :func:`rg_lru`."""
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    terms: tuple[Tensor, Tensor] = _Terms.apply(*(each.to(kind) for each in (x, input_gate, recurrence_gate, pace)), first)
    return terms


class _Terms(torch.autograd.Function):
    """Gate and input of the scan. Keeps the three inputs alone, where autograd would keep a dozen products of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, i: Tensor, r: Tensor, pace: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, i, r, pace, first)
        a_log = torch.sigmoid(r) * (-SHARPNESS * pace)
        room = torch.expm1(2 * a_log).neg_().sqrt_().masked_fill_(first[..., None], 1.0)
        return a_log, room.mul_(x).mul_(torch.sigmoid(i))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, da_log: Tensor, db: Tensor) -> tuple[Tensor | None, ...]:
        x, i, r, pace, first = ctx.saved_tensors
        i, r, first = torch.sigmoid(i), torch.sigmoid(r), first[..., None]
        a_log = r * (-SHARPNESS * pace)
        left = -torch.expm1(2 * a_log)  # 1 - a^2
        room = left.sqrt()
        dleft = (db * x * i / (2 * room).clamp_(min=1 / _STEEPEST)).masked_fill_(first, 0.0)
        da_log = da_log - 2 * dleft * (1 - left)
        room = room.masked_fill_(first, 1.0)
        dx, di = db * i * room, db * x * room * i * (1 - i)
        dr = da_log * (-SHARPNESS * pace) * r * (1 - r)
        return dx, di, dr, (da_log * r).flatten(0, 1).sum(0) * -SHARPNESS, None
