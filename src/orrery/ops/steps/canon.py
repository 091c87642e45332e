"""One token of a Canon layer (Physics of LMs 4.1) between the parts of a block, as compiled loops that are called again and again.

    Canon A, C:  u = n(x) + sum_j w_j n(x)_{t-K+1+j};  a part then does u += part(u), and x += the part's share of that
    Canon B, D:  p = r + sum_j w_j r_{t-K+1+j}, on what a projection leaves

Where an activation stood in the projection's own pass (:mod:`orrery.ops.steps.row_linear`), it comes after Canon D as a loop of its
own. Float32 on a CPU, no gradient.

B batch, D width, E outputs of a projection, K taps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from orrery.ops.compiled import compiled, prepare_blocks
from orrery.ops.program import Steps
from orrery.ops.steps.diagonal import conv_step
from orrery.ops.steps.row_linear import ACTIVATIONS, GATED, RowNorm, activated, row_norm_into
from orrery.ops.steps.row_steps import copy_rows


def canon_step(x: Tensor, norm: RowNorm | None, window: Tensor, weight: Tensor, u: Tensor, kept: Tensor) -> Callable[[], None]:
    """A function that writes Canon of n(x) into u and kept.

    Args:
        x, u, kept: (B,D). norm: n, or None. window: (B,K-1,D), the last n(x), oldest first; moved on. weight: (D,K).
    """
    normed = torch.empty_like(x)
    return Steps((row_norm_into(x, norm, normed), residual_conv_step(normed, window, weight, u), copy_rows(u, kept)))


def residual_conv_step(raw: Tensor, window: Tensor, weight: Tensor, y: Tensor) -> Callable[[], None]:
    """A function that writes raw (B,E) and its convolution into y (B,E); the residual is 1 more on the last tap."""
    taps = weight.detach().clone()
    taps[:, -1] += 1.0
    return conv_step(raw, window, taps, None, y, 0, False)


def add_change(x: Tensor, u: Tensor, kept: Tensor) -> Callable[[], None]:
    """A function that does x += u - kept, for x, u, kept (B,D)."""
    return prepare_blocks(_add_change, len(x), 0, x.numpy(), u.numpy(), kept.numpy())


def activate_step(h: Tensor, y: Tensor, activation: str) -> Callable[[], None]:
    """A function that writes the activation of h (B,F), or of a gated one of h (B,2F), into y (B,F)."""
    return prepare_blocks(_activate, len(h), 0, h.numpy(), y.numpy(), ACTIVATIONS.index(activation), GATED)


@compiled
def _add_change(first, last, x, u, kept):  # type: ignore[no-untyped-def]
    for b in range(first, last):
        for i in range(x.shape[1]):
            x[b, i] += u[b, i] - kept[b, i]


@compiled
def _activate(first, last, h, y, code, gated):  # type: ignore[no-untyped-def]
    size = y.shape[1]
    for b in range(first, last):
        given, up, out = h[b, :size], h[b, h.shape[1] - size :], y[b]
        for i in range(size):
            v = activated(given[i], code)
            out[i] = v * up[i] if code >= gated else v
