"""What stands before and behind the layers when one short text is read on a CPU, in float32: its embedding and its mean.

    x_n = E[id_n] + P_n        y = (1/N) sum_n x_n

and, between two maps of a gated feed-forward network,  h = act(g) u  for (g, u) side by side. No gradient.

N tokens, V vocabulary, D width, F hidden size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from orrery.ops.compiled import compiled, prepare_blocks
from orrery.ops.fused.row_tiles import GELU, gelu
from orrery.ops.steps.row_linear import ACTIVATIONS, GATED, activated

_SHARE = 64  # numbers of a block


def embed_text(ids: Tensor, table: Tensor, added: Tensor | None, x: Tensor) -> Any:
    """A function that reads ids and writes x each time it is called: ids (N,) int64, table (V,D), added (N,D) or None, x (N,D)."""
    places = x.new_empty(0, x.shape[1]) if added is None else added.contiguous()
    return prepare_blocks(_embed, len(x), 0, ids.numpy(), table.detach().numpy(), places.numpy(), x.numpy())


def mean_text(x: Tensor, y: Tensor) -> Any:
    """A function that writes the mean over rows of x (N,D) into y (D,) each time it is called."""
    return prepare_blocks(_mean, -(-len(y) // _SHARE), 0, x.numpy(), y.numpy())


def gate_text(both: Tensor, y: Tensor, activation: str) -> Any:
    """A function that writes act(both[:, :F]) both[:, F:] into y (N,F) each time it is called; an activation of ACTIVATIONS that is not gated."""
    code = ACTIVATIONS.index(activation)
    assert code < GATED and both.shape[1] == 2 * y.shape[1]
    return prepare_blocks(_gate, -(-y.shape[1] // _SHARE), 4 * both.numel(), both.numpy(), y.numpy(), code)


def embed_text_reference(ids: Tensor, table: Tensor, added: Tensor | None, x: Tensor) -> None:
    """The same by torch's own operations."""
    torch.index_select(table, 0, ids, out=x)
    if added is not None:
        x.add_(added)


@compiled
def _embed(first, last, ids, table, added, x):  # type: ignore[no-untyped-def]
    for n in range(first, last):
        row, out = table[ids[n]], x[n]
        if len(added) > 0:
            place = added[n]
            for i in range(len(out)):
                out[i] = row[i] + place[i]
        else:
            for i in range(len(out)):
                out[i] = row[i]


@compiled
def _mean(first, last, x, y):  # type: ignore[no-untyped-def]
    share = np.float32(1.0 / len(x))
    for block in range(first, last):
        begin, stop = block * _SHARE, min(len(y), block * _SHARE + _SHARE)
        own = y[begin:stop]
        own[:] = np.float32(0.0)
        for n in range(len(x)):
            row = x[n, begin:stop]
            for i in range(len(own)):
                own[i] += row[i]
        for i in range(len(own)):
            own[i] *= share


@compiled
def _gate(first, last, both, y, code):  # type: ignore[no-untyped-def]
    size = y.shape[1]
    for block in range(first, last):
        begin, stop = block * _SHARE, min(size, block * _SHARE + _SHARE)
        for n in range(len(y)):
            gate, up, out = both[n, begin:stop], both[n, size + begin : size + stop], y[n, begin:stop]
            if code == GELU:
                for i in range(len(out)):
                    out[i] = gelu(gate[i]) * up[i]
            else:
                for i in range(len(out)):
                    out[i] = activated(gate[i], code) * up[i]
