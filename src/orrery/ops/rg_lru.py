"""The real-gated linear recurrent unit of Griffin: a diagonal scan whose gate and input are set by the token.

Paper: Griffin (2402.19427), section 2.4. With input gate i and recurrence gate r in (0, 1), and pace p > 0 per channel,

    ``log a_t = -c r_t p``,  c = 8;   ``h_t = a_t h_{t-1} + sqrt(1 - a_t^2) i_t x_t``

(the paper writes p as -log sigmoid(Lambda)). The root keeps the size of h; a document's first token has nothing to make room
for and is taken whole, as in the published code. Near a = 1 the root's derivative grows without bound; it is cut off at
1000, as there.

The recurrence itself is :func:`orrery.ops.diagonal_scan.diagonal_scan`; its gate and input are one compiled pass over memory in
each direction where numba runs, and the formula in torch elsewhere.

B batch, T time, R channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from orrery.ops.backend import choose
from orrery.ops.compiled import compiled, expm1, run_blocks, sigmoid
from orrery.ops.diagonal_scan import diagonal_scan
from orrery.ops.operands import check_operands, sizes

SHARPNESS = 8.0
"""c of the equation."""
_STEEPEST = 1000.0  # derivative of the root
_TOKENS = 128  # that one thread takes together
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)  # in a kernel, a Python 1 would turn float32 into float64
_LEAST = np.float32(1 / _STEEPEST)


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
    a_log, b = rg_lru_terms(x, input_gate, recurrence_gate, pace, first, backend)
    h, after = diagonal_scan(a_log, b, state, starts, lengths, backend)
    return h.to(x.dtype), after


def rg_lru_terms(
    x: Tensor, input_gate: Tensor, recurrence_gate: Tensor, pace: Tensor, first: Tensor, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """log a and sqrt(1 - a^2) i x, both (B,T,R) in float32 at least; arguments as of :func:`rg_lru`."""
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    operands = [each.to(kind) for each in (x, input_gate, recurrence_gate, pace)]
    use = choose(backend if backend in (None, "numba") else "torch", operands[0], op="rg_lru_terms")
    terms: tuple[Tensor, Tensor] = (_CompiledTerms if use == "numba" else _Terms).apply(*operands, first)
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


class _CompiledTerms(torch.autograd.Function):
    """The same in one pass over memory in each direction."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, i: Tensor, r: Tensor, pace: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        operands = [each.contiguous() for each in (x, i, r)]
        scale, first = -SHARPNESS * pace, first.expand(x.shape[:2]).contiguous()
        a_log, b = torch.empty_like(operands[0]), torch.empty_like(operands[0])
        _run(_terms_forward, x, *operands, a_log, b, scale=scale, first=first)
        ctx.save_for_backward(*operands, scale, first)
        return a_log, b

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, da_log: Tensor, db: Tensor) -> tuple[Tensor | None, ...]:
        *operands, scale, first = ctx.saved_tensors
        x = operands[0]
        grads = [torch.empty_like(x) for _ in operands]
        blocks = -(-x.shape[0] * x.shape[1] // _TOKENS)
        share = x.new_empty(blocks, x.shape[2], dtype=torch.float64)  # of the gradient of the pace
        given = (da_log.contiguous(), db.contiguous())
        _run(_terms_backward, x, *operands, *given, *grads, scale=scale, first=first, share=share)
        return *grads, share.sum(0).to(x.dtype) * -SHARPNESS, None


def _run(kernel: Any, like: Tensor, *rows: Tensor, **others: Tensor) -> None:
    """A kernel over tokens, whatever row they are in: `rows` as (BT,R)."""
    tokens = like.shape[0] * like.shape[1]
    arrays = [each.detach().reshape(tokens, -1).numpy() for each in rows]
    rest = [each.detach().reshape(-1) if each.dtype == torch.bool else each.detach() for each in others.values()]
    run_blocks(kernel, -(-tokens // _TOKENS), len(rows) * 2 * like.numel(), *arrays, *(each.numpy() for each in rest))


@compiled
def _terms_forward(start, stop, x, i, r, a_log, b, scale, first):  # type: ignore[no-untyped-def]
    for n in range(start * _TOKENS, min(stop * _TOKENS, len(x))):
        given, enter, recur, log_gate, out = x[n], i[n], r[n], a_log[n], b[n]
        whole = first[n]
        for c in range(len(given)):
            power = sigmoid(recur[c]) * scale[c]
            log_gate[c] = power
            room = _ONE if whole else np.sqrt(-expm1(power + power))
            out[c] = room * given[c] * sigmoid(enter[c])


@compiled
def _terms_backward(start, stop, x, i, r, da_log, db, dx, di, dr, scale, first, share):  # type: ignore[no-untyped-def]
    sums = np.empty(x.shape[1], x.dtype)
    for block in range(start, stop):
        sums[:] = 0.0
        for n in range(block * _TOKENS, min((block + 1) * _TOKENS, len(x))):
            given, enter, recur, to_gate, to_input = x[n], i[n], r[n], da_log[n], db[n]
            dgiven, denter, drecur, whole = dx[n], di[n], dr[n], first[n]
            for c in range(len(given)):
                gate, pull = sigmoid(enter[c]), sigmoid(recur[c])
                power = pull * scale[c]
                left = -expm1(power + power)  # 1 - a^2
                root = np.sqrt(left)
                twice = root + root
                wide = _LEAST if twice < _LEAST else twice
                entered = to_input[c] * gate
                through = entered * given[c]  # the gradient of the root
                steep = _ZERO if whole else through / wide
                dpower = to_gate[c] - (steep + steep) * (_ONE - left)
                room = _ONE if whole else root
                dgiven[c] = entered * room
                denter[c] = through * room * (_ONE - gate)
                turned = dpower * pull
                drecur[c] = turned * scale[c] * (_ONE - pull)
                sums[c] += turned
        share[block] = sums
