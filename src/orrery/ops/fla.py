"""The Triton kernels of fla-core behind our operations, on CUDA: what each operation is called there, and in which form.

Package: flash-linear-attention's `fla-core` (extra `gpu`), imported at the first call and never before. The operations
come here when :mod:`orrery.ops.backend` chooses `fla`; `with use_backend("torch"):` switches it off.

    here                                  there                       what differs
    scalar_decay                          chunk_simple_gla            groups of heads are written out; beta and skip are ours;
                                                                      a decay (H,) that never changes stays (H,)
    vector_decay, and with a bonus        chunk_gla, chunk_rwkv6      the bonus is their u
    delta_rule, and without decay         chunk_gated_delta_rule,     without decay in float32: the former with g = 0, since
                                          chunk_delta_rule            the latter refuses float32
    vector_delta_rule                     chunk_kda
    dplr                                  chunk_dplr_delta_rule
    diagonal_scan                         fused_recurrent_hgrn        a document start is a gate of -inf (chunk_hgrn has no
                                                                      gradient through its states)
    wkv4                                  fused_recurrent_rwkv4       without document starts and padding only

Selective scan, sLSTM, LSTM, GRU and EGRU have no kernel there and stay on `torch`; mLSTM's matrix memory is scalar decay.

Layouts agree: (B,T,H,K), states (B,H,K,V) in float32. Their `scale` defaults to K^-1/2 where ours is 1, so it is always given.
Documents are theirs by `cu_seqlens`: rows of a batch are laid end to end, every document start opens a sequence, and a
state goes in at the first sequence of a row and comes out of the last.

Gates: their chunks sum gates in float32 and subtract the sums, so -inf would be NaN; a gate below e^-30 is given as e^-30,
which leaves 1e-13 of what was held. Where gates are strong, differences of such sums cost digits that our own forms keep.

Arithmetic is theirs: matrix products of the operands' type with float32 sums, and for float32 operands tensor-float-32
on GPUs that have it, three digits, unless `TRITON_F32_DEFAULT=ieee` is in the environment. Ours sum in float64 where
64k tokens need it; these do not. tests/ops/test_fla.py runs the kernels themselves in Triton's interpreter.

B batch, T time, H heads, G groups of heads, K key dimension, V value dimension, N sequences.
"""

from __future__ import annotations

import importlib
import math
import warnings
import weakref
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

LEAST = -30.0
"""Gates below this are given to the kernels as this."""

WIDEST = 256
"""Largest key dimension that their delta rules take."""

_HALVES = (torch.bfloat16, torch.float16)
_L2_EPS = 1e-6  # the constant under the root of their normalisation inside the kernel

_KERNELS = {
    "chunk_simple_gla": "simple_gla",
    "chunk_gla": "gla",
    "chunk_rwkv6": "rwkv6",
    "chunk_delta_rule": "delta_rule",
    "chunk_gated_delta_rule": "gated_delta_rule",
    "chunk_kda": "kda",
    "chunk_dplr_delta_rule": "generalized_delta_rule",
    "fused_recurrent_hgrn": "hgrn",
    "fused_recurrent_rwkv4": "rwkv4",
}

_told: set[str] = set()


@cache
def kernel(name: str) -> Callable[..., Any]:
    """One of their functions by its name; imported now."""
    found: Callable[..., Any] = getattr(importlib.import_module(f"fla.ops.{_KERNELS[name]}"), name)
    return found


def offered(op: str, obstacle: str | None, others: tuple[str, ...] = ("numba", "torch")) -> tuple[str, ...]:
    """The backends of `op`: `fla` first, unless there is an obstacle to it; one that matters is named once."""
    if obstacle is None:
        return ("fla", *others)
    if obstacle and op not in _told:
        _told.add(op)
        warnings.warn(f"{op} runs on its torch backend: {obstacle}.", RuntimeWarning, stacklevel=4)
    return others


def too_wide(x: Tensor) -> str | None:
    """The obstacle of keys (...,K) that the delta rules there cannot take; None where there is none, empty off the GPU."""
    if x.shape[-1] <= WIDEST:
        return None
    return f"fla's kernels take keys of at most {WIDEST}, not {x.shape[-1]}" if x.is_cuda else ""


def no_documents(x: Tensor) -> str:
    """The obstacle of document starts and padding, where the kernel knows neither; empty off the GPU."""
    return "fla's kernel knows neither document starts nor padding" if x.is_cuda else ""


class Documents(NamedTuple):
    """Rows of a batch laid end to end. offsets: (N+1,), where sequences begin; first, last: (B,), a row's sequences."""

    offsets: Tensor
    first: Tensor
    last: Tensor


_known: tuple[Any, int, Documents] | None = None


def documents(starts: Tensor) -> Documents:
    """From starts (B,T). The answer for the same tensor is kept: all layers of a model ask with one."""
    global _known
    if _known is not None and _known[0]() is starts and _known[1] == starts._version:
        return _known[2]
    marks = starts.clone()
    marks[:, 0] = True
    begins = marks.flatten().nonzero()[:, 0]
    ends = marks.sum(1).cumsum(0)
    found = Documents(
        torch.cat([begins, begins.new_tensor([marks.numel()])]), torch.cat([ends.new_zeros(1), ends[:-1]]), ends - 1
    )
    _known = weakref.ref(starts), starts._version, found
    return found


def _run(
    name: str, operands: dict[str, Tensor | None], state: Tensor | None, starts: Tensor | None, **settings: Any
) -> tuple[Tensor, Tensor]:
    """A kernel over operands (B,T,...), with documents; the state after every row is float32."""
    opening = None if state is None else state.float()
    extra: dict[str, Any] = {}
    batch, time = next(x for x in operands.values() if x is not None).shape[:2]
    parts: Documents | None = None
    if starts is not None:
        parts = documents(starts)
        extra = {"cu_seqlens": parts.offsets}
        operands = {key: None if x is None else x.reshape(1, batch * time, *x.shape[2:]) for key, x in operands.items()}
        if opening is not None:
            opening = opening.masked_fill(starts[:, 0].view(-1, *[1] * (opening.dim() - 1)), 0.0)
            rows = opening.new_zeros(len(parts.offsets) - 1, *opening.shape[1:])
            opening = rows.index_copy(0, parts.first, opening)
    y, after = kernel(name)(**operands, **settings, initial_state=opening, output_final_state=True, **extra)
    if parts is not None:
        y, after = y.view(batch, time, *y.shape[2:]), after[parts.last]
    return y, after.float()


def _gates(g_log: Tensor) -> Tensor:
    return g_log.float().clamp(min=LEAST)


def scalar_decay(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g_log: Tensor,
    state: Tensor | None = None,
    starts: Tensor | None = None,
    scale: float | None = None,
    *,
    beta: Tensor | None = None,
    skip: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As :func:`orrery.ops.scalar_decay.scalar_decay`; g_log (H,) without a gradient stays what it is."""
    repeat = v.shape[2] // q.shape[2]
    if repeat > 1:
        q, k = q.repeat_interleave(repeat, 2), k.repeat_interleave(repeat, 2)
    written = v if beta is None else v * beta[..., None].to(v.dtype)
    operands: dict[str, Tensor | None] = {"q": q.to(v.dtype), "k": k.to(v.dtype), "v": written}
    settings: dict[str, Any] = {"scale": 1.0 if scale is None else scale}
    if g_log.dim() == 1 and not g_log.requires_grad:
        settings["g_gamma"] = _gates(g_log)
    else:
        operands["g"] = _gates(g_log.expand(*v.shape[:3]))
    y, after = _run("chunk_simple_gla", operands, state, starts, **settings)
    return (y if skip is None else torch.addcmul(y, v, skip[:, None].to(v.dtype))), after


def vector_decay(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g_log: Tensor,
    state: Tensor | None = None,
    starts: Tensor | None = None,
    scale: float | None = None,
    *,
    bonus: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As :func:`orrery.ops.vector_decay.vector_decay`."""
    q, k, gates = q.to(v.dtype), k.to(v.dtype), _gates(g_log)
    factor = 1.0 if scale is None else scale
    if bonus is None:
        return _run("chunk_gla", {"q": q, "k": k, "v": v, "g": gates}, state, starts, scale=factor)
    operands: dict[str, Tensor | None] = {"r": q, "k": k, "v": v, "w": gates}
    return _run("chunk_rwkv6", operands, state, starts, scale=factor, u=bonus.to(v.dtype))


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g_log: Tensor | None = None,
    state: Tensor | None = None,
    starts: Tensor | None = None,
    scale: float = 1.0,
    *,
    l2_eps: float | None = None,
) -> tuple[Tensor, Tensor]:
    """As :func:`orrery.ops.delta_rule.delta_rule`."""
    inside = l2_eps == _L2_EPS
    if l2_eps is not None and not inside:
        q, k = (x * torch.rsqrt(x.float().square().sum(-1, keepdim=True) + l2_eps).to(x.dtype) for x in (q, k))
    operands: dict[str, Tensor | None] = {"q": q.to(v.dtype), "k": k.to(v.dtype), "v": v, "beta": beta.to(v.dtype)}
    settings: dict[str, Any] = {"scale": scale, "use_qk_l2norm_in_kernel": inside}
    if g_log is None and v.dtype in _HALVES:
        return _run("chunk_delta_rule", operands, state, starts, **settings)
    operands["g"] = torch.zeros_like(beta, dtype=torch.float32) if g_log is None else _gates(g_log)
    return _run("chunk_gated_delta_rule", operands, state, starts, **settings)


def vector_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g_log: Tensor,
    state: Tensor | None = None,
    starts: Tensor | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """As :func:`orrery.ops.dplr.vector_delta_rule`."""
    operands: dict[str, Tensor | None] = {
        "q": q.to(v.dtype),
        "k": k.to(v.dtype),
        "v": v,
        "g": _gates(g_log),
        "beta": beta.to(v.dtype),
    }
    return _run("chunk_kda", operands, state, starts, scale=scale)


def dplr(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    g_log: Tensor,
    state: Tensor | None = None,
    starts: Tensor | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """As :func:`orrery.ops.dplr.dplr`."""
    operands: dict[str, Tensor | None] = {name: x.to(v.dtype) for name, x in zip("qkvab", (q, k, v, a, b), strict=True)}
    with warnings.catch_warnings():  # they warn of float32 on "some platforms"; the parity test decides for this one
        warnings.filterwarnings("ignore", message=".*does not support float32", category=RuntimeWarning)
        return _run("chunk_dplr_delta_rule", {**operands, "gk": _gates(g_log)}, state, starts, scale=scale)


def diagonal_scan(a_log: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`orrery.ops.diagonal_scan.diagonal_scan_chunked`: starts are gates of -inf, which this kernel takes as they are."""
    h, after = kernel("fused_recurrent_hgrn")(b, a_log, initial_state=state, output_final_state=True)
    return h, after.float()


def wkv4(
    k: Tensor, v: Tensor, w_log: Tensor, u: Tensor, state: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """As :func:`orrery.ops.wkv4.wkv4_chunked`, without starts and padding. They take the logarithm of -w_log."""
    held = torch.stack(state, 1)[:, :, None]  # (B,3,1,D)
    w = (-w_log).clamp(min=math.exp(-80.0)).log()
    y, after = kernel("fused_recurrent_rwkv4")(w, u, k, v, held)
    num, den, peak = after[:, :, 0].unbind(1)
    return y, (num, den, peak)
