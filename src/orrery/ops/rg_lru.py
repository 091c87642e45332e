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
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    a_log = torch.sigmoid(recurrence_gate.to(kind)) * (-SHARPNESS * pace.to(kind))
    room = _BoundedRoot.apply(-torch.expm1(2 * a_log)).masked_fill(first[..., None], 1.0)
    b = x.to(kind) * torch.sigmoid(input_gate.to(kind)) * room
    h, after = diagonal_scan(a_log, b, state, starts, lengths, backend)
    return h.to(x.dtype), after


class _BoundedRoot(torch.autograd.Function):
    """The square root with a derivative of at most 1000."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        root = x.sqrt()
        ctx.save_for_backward(root)
        return root

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (root,) = ctx.saved_tensors
        return grad / (2 * root).clamp(min=1 / _STEEPEST)
