"""One token of a gated short convolution (LFM2, arXiv 2511.23404) between its two projections, as one compiled loop.

    g = b u;   y = c (bias + sum_{j<K} w_j g_{t-K+1+j})

Prepared once for a whole decoding (:mod:`orrery.nn.stepping`). Inference only; the mixer says the same in torch, for
gradients, other types and devices.

B batch, D width, K taps.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from orrery.ops.compiled import compiled, prepare_blocks
from orrery.ops.steps.row_linear import array


def gated_conv_step(p: Tensor, window: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor) -> Callable[[], None]:
    """A function that reads p, moves the window on in place and writes y, each time it is called.

    Args:
        p: (B,3D), b, c, u as the projection leaves them. window: (B,K-1,D), the last g, oldest first.
        weight: (D,K), the present token's tap last. bias: (D,) or None. y: (B,D), what comes out.
    """
    columns = weight.detach().t().contiguous()
    arrays = [array(t, p) for t in (p, window, columns, bias, y)]
    return prepare_blocks(_step, len(y), 2 * weight.numel(), *arrays)


@compiled
def _step(first, last, p, window, columns, bias, y):  # type: ignore[no-untyped-def]
    kept, width = window.shape[1], y.shape[1]
    g = np.empty(width, np.float32)
    for b in range(first, last):
        before, behind, given, out = p[b, :width], p[b, width : 2 * width], p[b, 2 * width :], y[b]
        tap = columns[kept]
        for i in range(width):
            g[i] = before[i] * given[i]
            out[i] = tap[i] * g[i]
        for j in range(kept):
            held, tap = window[b, j], columns[j]
            for i in range(width):
                out[i] += tap[i] * held[i]
        if len(bias) > 0:
            for i in range(width):
                out[i] += bias[i]
        for i in range(width):
            out[i] *= behind[i]
        for j in range(kept - 1):
            window[b, j] = window[b, j + 1]
        if kept:
            window[b, kept - 1] = g
