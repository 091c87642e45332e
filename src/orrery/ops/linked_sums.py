"""Running sums along chains of tokens: every token adds to what an earlier one, its link, has gathered.

Equation: ``u_i = x_i + u_{link_i}``, with ``u_{-1} = 0`` and ``link_i < i``.

With links to the last earlier occurrence of the same n-gram, u is what static attention to all of its occurrences sums
(n-gram heads, 2401.12973), in O(T) where a T x T mask takes O(T^2): :func:`earlier_same` finds the links by sorting.

Forms: :func:`linked_sums_reference` is the equation as a loop; the torch form doubles the length of the chains it has
summed until all have ended, O(T log T); the compiled loop (numba, CPU) reads every number once. The gradient is
``dx_i = du_i + sum of dx_j over the j with link_j = i``. Nothing but the links is kept for it.

B batch, T time, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from orrery.core.errors import StateError
from orrery.ops.backend import choose
from orrery.ops.compiled import compiled, run_blocks
from orrery.ops.operands import sizes

_BLOCK = 64  # channels that one thread takes together


def linked_sums(x: Tensor, link: Tensor, backend: str | None = None) -> Tensor:
    """All ``u_i = x_i + u_{link_i}``.

    Args:
        x: (B,T,D).
        link: (B,T) int64, an earlier index of the same row, or -1.
        backend: `numba` or `torch`; None lets :mod:`orrery.ops.backend` choose.

    Returns:
        u (B,T,D) in x's type.

    Raises:
        StateError: when link has another shape than x's first two dimensions.
    """
    sizes("linked_sums", "x", x, "BTD")
    if link.shape != x.shape[:2] or link.dtype != torch.int64:
        raise StateError(f"linked_sums was given x {tuple(x.shape)} and link {tuple(link.shape)} in {link.dtype}; it needs (B,T,D), (B,T) int64")
    if not torch.compiler.is_compiling() and bool((link >= torch.arange(link.shape[1], device=link.device)).any() or (link < -1).any()):
        raise StateError("linked_sums was given a link that is no earlier token of its row; -1 stands for none")
    small = x.dtype not in (torch.float32, torch.float64)
    if small or choose(backend, x, op="linked_sums") == "torch":
        return _doubled(x.float() if small else x, link).to(x.dtype)
    return _Compiled.apply(x, link)


def linked_sums_reference(x: Tensor, link: Tensor) -> Tensor:
    """The equation, token by token; gradients are autograd's."""
    rows = []
    for b in range(len(x)):
        found: list[Tensor] = []
        for i, j in enumerate(link[b].tolist()):
            found.append(x[b, i] if j < 0 else x[b, i] + found[j])
        rows.append(torch.stack(found))
    return torch.stack(rows)


def _doubled(x: Tensor, link: Tensor) -> Tensor:
    """After n rounds every token holds the last 2^n tokens of its chain, and a link to the one before these."""
    rows = torch.arange(len(x), device=x.device)[:, None]
    for _ in range(max(1, (x.shape[1] - 1).bit_length())):
        on = link >= 0
        at = link.clamp(min=0)
        x = x + x[rows, at].masked_fill(~on[..., None], 0.0)
        link = torch.where(on, link[rows, at], -1)
    return x


class _Compiled(torch.autograd.Function):
    """The compiled loop with its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, link: Tensor) -> Tensor:
        u, link = x.clone(memory_format=torch.contiguous_format), link.contiguous()
        _run(_forward, u, link)
        ctx.save_for_backward(link)
        return u

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, du: Tensor) -> tuple[Tensor, None]:
        (link,) = ctx.saved_tensors
        dx = du.clone(memory_format=torch.contiguous_format)
        _run(_backward, dx, link)
        return dx, None


def _run(kernel: Any, u: Tensor, link: Tensor) -> None:
    run_blocks(kernel, len(u) * -(-u.shape[2] // _BLOCK), 2 * u.numel(), link.numpy(), u.detach().numpy())


@compiled
def _forward(first, last, link, u):  # type: ignore[no-untyped-def]
    width = u.shape[2]
    columns = -(-width // _BLOCK)
    for block in range(first, last):
        row, low = block // columns, (block % columns) * _BLOCK
        high = min(low + _BLOCK, width)
        for i in range(u.shape[1]):
            j = link[row, i]
            if j >= 0:
                own, other = u[row, i, low:high], u[row, j, low:high]
                for n in range(high - low):
                    own[n] += other[n]


@compiled
def _backward(first, last, link, dx):  # type: ignore[no-untyped-def]
    width = dx.shape[2]
    columns = -(-width // _BLOCK)
    for block in range(first, last):
        row, low = block // columns, (block % columns) * _BLOCK
        high = min(low + _BLOCK, width)
        for i in range(dx.shape[1] - 1, -1, -1):
            j = link[row, i]
            if j >= 0:
                own, other = dx[row, i, low:high], dx[row, j, low:high]
                for n in range(high - low):
                    other[n] += own[n]


def earlier_same(tokens: Tensor, documents: Tensor, positions: Tensor, order: int) -> Tensor:
    """For every place the last earlier one of its row and document where the same `order` tokens end.

    Args:
        tokens: (B,L) int64, 0 or more.
        documents: (B,L) int64, 0 or more; places with another number never match.
        positions: (B,L) int64 within the document; below order - 1 (or negative: nothing stands here) there is no match.
        order: tokens that have to agree, the place's own among them.

    Returns:
        (B,L) int64 indices along the row, -1 where there is none. Time O(order L log L): no L x L mask.
    """
    batch, length = tokens.shape
    rows = torch.arange(batch, device=tokens.device)[:, None]
    own = _dense((rows * (documents.max() + 1) + documents) * (tokens.max() + 1) + tokens)
    key = own
    for _ in range(order - 1):  # the key one place earlier, and the own token
        key = _dense(torch.cat([key[:, :1], key[:, :-1]], 1) * own.numel() + own)
    key = torch.where(positions >= order - 1, key, -1).flatten()
    ranked = torch.argsort(key, stable=True)
    same = (key[ranked[1:]] == key[ranked[:-1]]) & (key[ranked[1:]] >= 0)
    found = torch.full_like(key, -1)
    found[ranked[1:]] = torch.where(same, ranked[:-1], -1)
    found = found.view(batch, length)
    return torch.where(found >= 0, found - rows * length, -1)


def _dense(key: Tensor) -> Tensor:
    """Equal numbers for equal keys, below the number of keys."""
    flat = key.flatten()
    ranked = torch.argsort(flat)
    new = torch.zeros_like(flat)
    new[1:] = flat[ranked[1:]] != flat[ranked[:-1]]
    found = torch.empty_like(flat)
    found[ranked] = new.cumsum(0)
    return found.view_as(key)
