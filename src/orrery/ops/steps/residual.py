"""A norm behind a part, between two tokens' passes of a decode step: compiled loops that are called again and again.

    x += n(part(x)),  from a part's own step, which does x += part(x):  the residual is kept before it and the change normed behind it

RMSNorm, float32 on a CPU, no gradient.

B batch, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from orrery.ops.compiled import compiled, prepare_blocks
from orrery.ops.steps.row_linear import RowNorm, array


def norm_change(x: Tensor, kept: Tensor, norm: RowNorm) -> Callable[[], None]:
    """A function that does x = kept + n(x - kept), for x, kept (B,D); `norm` is an RMSNorm."""
    return prepare_blocks(_norm_change, len(x), 0, x.numpy(), kept.numpy(), array(norm.weight, x), norm.eps)


@compiled
def _norm_change(first, last, x, kept, gain, eps):  # type: ignore[no-untyped-def]
    width = x.shape[1]
    for b in range(first, last):
        row, before = x[b], kept[b]
        square = np.float64(0.0)
        for i in range(width):
            row[i] -= before[i]
        for i in range(width):
            square += np.float64(row[i]) * row[i]
        scale = np.float32(1.0 / np.sqrt(square / width + eps))
        if len(gain) > 0:
            for i in range(width):
                row[i] *= gain[i]
        for i in range(width):
            row[i] = before[i] + scale * row[i]
