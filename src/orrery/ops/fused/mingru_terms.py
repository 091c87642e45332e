"""What the diagonal scan takes, from what the projection of minGRU and minLSTM gives: one elementwise function with its gradient.

    minGRU, p = [v; k]:        ``a_log = -softplus(k)``,  ``b = sigmoid(k) g(v)``,  g(v) = v + 1/2 for v >= 0, sigmoid(v) below
    minLSTM, p = [v; f; i]:    the same with ``k = softplus(-f) - softplus(-i)``          (2410.01201, appendix B.2)
    ``dv = z g'(v) db``,  ``dk = z ((1 - z) g(v) db - da_log)``,  ``df = -sigmoid(-f) dk``,  ``di = sigmoid(-i) dk``,  z = sigmoid(k)

Only p is kept for the backward pass. The compiled loop reads and writes every number once.

B batch, T time, H hidden size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from orrery.ops.backend import choose
from orrery.ops.compiled import compiled, run_blocks, sigmoid, softplus

SMALL = 1 << 14  # numbers below which a call of a compiled loop costs more than torch's own operations
_TOKENS = 16  # of a block
_ONE, _HALF, _ZERO = np.float32(1.0), np.float32(0.5), np.float32(0.0)  # in a kernel, a Python 1 would turn float32 into float64


def mingru_terms(p: Tensor, lstm: bool, backend: str | None = None) -> tuple[Tensor, Tensor]:
    """a_log and b (B,T,H) from p (B,T,2H), or (B,T,3H) of minLSTM; in float32 at least."""
    offered = ("numba", "torch") if p.dtype == torch.float32 and p.numel() >= SMALL else ("torch",)
    if choose(backend, p, op="mingru_terms", offered=offered) == "numba":
        return _CompiledTerms.apply(p, lstm)
    return _Terms.apply(*mingru_parts(p, lstm))


def mingru_parts(p: Tensor, lstm: bool) -> tuple[Tensor, Tensor]:
    """v and k (B,T,H), in float32 at least."""
    v, k, *other = p.to(torch.promote_types(p.dtype, torch.float32)).chunk(3 if lstm else 2, -1)
    return v, F.softplus(-k) - F.softplus(-other[0]) if other else k


class _Terms(torch.autograd.Function):
    """From v and k, which autograd would keep five products of."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(v, k)
        return -F.softplus(k), torch.sigmoid(k) * torch.where(v >= 0, v + 0.5, torch.sigmoid(v))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, da_log: Tensor, db: Tensor) -> tuple[Tensor, Tensor]:
        v, k = ctx.saved_tensors
        z, s = torch.sigmoid(k), torch.sigmoid(v)
        slope = torch.where(v >= 0, 1.0, s * (1 - s))
        return db * z * slope, z * (db * torch.where(v >= 0, v + 0.5, s) * (1 - z) - da_log)


class _CompiledTerms(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, p: Tensor, lstm: bool) -> tuple[Tensor, Tensor]:
        p = p.contiguous()
        a_log, b = (p.new_empty(*p.shape[:-1], p.shape[-1] // (3 if lstm else 2)) for _ in range(2))
        _run(_lstm_forward if lstm else _gru_forward, p, a_log, b)
        ctx.save_for_backward(p)
        ctx.lstm = lstm
        return a_log, b

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, da_log: Tensor, db: Tensor) -> tuple[Tensor, None]:
        (p,) = ctx.saved_tensors
        dp = torch.empty_like(p)
        _run(_lstm_backward if ctx.lstm else _gru_backward, p, da_log.contiguous(), db.contiguous(), dp)
        return dp, None


def _run(kernel: Any, *rows: Tensor) -> None:
    arrays = [x.detach().view(-1, x.shape[-1]).numpy() for x in rows]
    run_blocks(kernel, -(-len(arrays[0]) // _TOKENS), 4 * rows[0].numel(), *arrays)


@compiled
def _gru_forward(first, last, p, a_log, b):  # type: ignore[no-untyped-def]
    width = a_log.shape[1]
    for n in range(first * _TOKENS, min(last * _TOKENS, len(p))):
        v, k, gate, out = p[n, :width], p[n, width:], a_log[n], b[n]
        for i in range(width):
            gate[i] = -softplus(k[i])
            out[i] = sigmoid(k[i]) * (v[i] + _HALF if v[i] >= _ZERO else sigmoid(v[i]))


@compiled
def _lstm_forward(first, last, p, a_log, b):  # type: ignore[no-untyped-def]
    width = a_log.shape[1]
    for n in range(first * _TOKENS, min(last * _TOKENS, len(p))):
        v, forget, enter, gate, out = p[n, :width], p[n, width : 2 * width], p[n, 2 * width :], a_log[n], b[n]
        for i in range(width):
            k = softplus(-forget[i]) - softplus(-enter[i])
            gate[i] = -softplus(k)
            out[i] = sigmoid(k) * (v[i] + _HALF if v[i] >= _ZERO else sigmoid(v[i]))


@compiled
def _gru_backward(first, last, p, da_log, db, dp):  # type: ignore[no-untyped-def]
    width = da_log.shape[1]
    for n in range(first * _TOKENS, min(last * _TOKENS, len(p))):
        v, k, to_gate, to_input = p[n, :width], p[n, width:], da_log[n], db[n]
        dv, dk = dp[n, :width], dp[n, width:]
        for i in range(width):
            z, s = sigmoid(k[i]), sigmoid(v[i])
            given = to_input[i] * z
            dv[i] = given if v[i] >= _ZERO else given * s * (_ONE - s)
            dk[i] = given * (v[i] + _HALF if v[i] >= _ZERO else s) * (_ONE - z) - z * to_gate[i]


@compiled
def _lstm_backward(first, last, p, da_log, db, dp):  # type: ignore[no-untyped-def]
    width = da_log.shape[1]
    for n in range(first * _TOKENS, min(last * _TOKENS, len(p))):
        v, forget, enter, to_gate, to_input = p[n, :width], p[n, width : 2 * width], p[n, 2 * width :], da_log[n], db[n]
        dv, dforget, denter = dp[n, :width], dp[n, width : 2 * width], dp[n, 2 * width :]
        for i in range(width):
            z, s = sigmoid(softplus(-forget[i]) - softplus(-enter[i])), sigmoid(v[i])
            given = to_input[i] * z
            dv[i] = given if v[i] >= _ZERO else given * s * (_ONE - s)
            dk = given * (v[i] + _HALF if v[i] >= _ZERO else s) * (_ONE - z) - z * to_gate[i]
            dforget[i] = -sigmoid(-forget[i]) * dk
            denter[i] = sigmoid(-enter[i]) * dk
