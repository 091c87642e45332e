"""Reading one short text at a time, prepared once: what parts, blocks and the reader share while it lasts.

A text of some twenty tokens takes less to compute than torch's calls around it: views, results that are allocated, a norm and
a sum apart. So every part binds its weights, and views of buffers that all layers share, to one length of text, and gives
steps, functions of no arguments, that go from `run.given` to `run.y`. Compiled, a text is read in some thirty passes over
both cores, weights in blocks (:mod:`orrery.ops.fused.row_tiles`); otherwise by torch, weights (I,O), which is how its products of
few rows read them fastest. Reading weights is most of what is left.

N tokens of the text, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from orrery.nn.stepping import plain_linear
from orrery.ops.backend import choose
from orrery.ops.fused.residual_norm import residual_norm, residual_norm_reference
from orrery.ops.fused.row_tiles import SPARE, blocked, tile_linear
from orrery.ops.fused.short_ends import embed_text, embed_text_reference, mean_text
from orrery.ops.steps.row_linear import RowNorm

MOST_TOKENS = 128  # beyond that, what calls take no longer counts and blocked weights are read as fast
Step = Callable[[], Any]


class ShortText:
    """The places of one text, for any length up to MOST_TOKENS: buffers are made once and cut to `length`.

    x: (N,D), the residual stream. given: (N,D), what the next part reads; x itself where norms stand behind parts. y: (N,D), what
    the last part has written. ids: (MOST_TOKENS,), those of the text first. mean: (D,), over what x ends as.
    shared: what a layer leaves for later ones while functions are bound, by name.
    """

    def __init__(self, width: int, apart: bool) -> None:
        self._kept: dict[str, Tensor] = {}
        self._width, self._apart = width, apart
        with torch.inference_mode(False):
            self.ids, self.mean = np.zeros(MOST_TOKENS, np.int64), torch.zeros(width)
        self.at(1)

    def at(self, length: int) -> ShortText:
        """Itself, for functions of this length that are bound next."""
        self.length = length
        self.shared: dict[str, Tensor] = {}
        self.x, self.y = self.buffer("x", self._width), self.buffer("y", self._width)
        self.given = self.buffer("given", self._width) if self._apart else self.x
        return self

    def buffer(self, name: str, size: int, length: int | None = None) -> Tensor:
        """(N,size), the same memory whenever the same name and size are asked for; N `length`, or that of the present text."""
        key = f"{name} {size}"
        if key not in self._kept:
            with torch.inference_mode(False):  # or nobody could write to it outside
                self._kept[key] = torch.zeros(MOST_TOKENS + SPARE, size)
        return self._kept[key][: self.length if length is None else length]


class ShortLinear:
    """A linear map laid out for few rows. The weights are copied: a later change of them is not seen.

    compiled: whether :meth:`step` knows activations.
    """

    def __init__(self, linear: nn.Linear) -> None:
        self.size = linear.out_features
        self.weight: Tensor
        self.bias: Tensor | None
        self.compiled = choose(None, linear.weight.detach(), op="short-linear") == "numba"
        with torch.inference_mode(False), torch.no_grad():
            if self.compiled:
                self.weight, self.bias = blocked(linear.weight, linear.bias)
            else:
                self.weight = linear.weight.detach().t().contiguous()
                self.bias = None if linear.bias is None else linear.bias.detach().clone()

    def step(self, x: Tensor, y: Tensor, activation: str = "") -> Step:
        """Y (N,O) = act(x (N,I) W^T + b), both of them buffers of a :class:`ShortText`."""
        if self.compiled:
            return tile_linear(x, self.weight, cast(Tensor, self.bias), y, activation)
        assert not activation, "the layout of torch's products has no activation"
        if self.bias is None:
            return functools.partial(torch.mm, x, self.weight, out=y)
        return functools.partial(torch.addmm, self.bias, x, self.weight, out=y)


def short_linears(*modules: nn.Module) -> list[ShortLinear] | None:
    """All of these laid out; None where one is more than a linear map."""
    return [ShortLinear(module) for module in modules if isinstance(module, nn.Linear)] if plain_linear(*modules) else None


def short_norm(x: Tensor, y: Tensor | None, norm: RowNorm, out: Tensor) -> Step:
    """`x += y; out = norm(x)` as a step, by the rule for backends."""
    if choose(None, x, op="residual-norm") == "numba":
        return residual_norm(x, y, norm, out)
    return lambda: residual_norm_reference(x, y, norm, out)


def short_embedding(ids: Tensor, table: Tensor, added: Tensor | None, x: Tensor) -> Step:
    """`x = table[ids] + added` as a step."""
    if choose(None, x, op="short-embedding") == "numba":
        return embed_text(ids, table, added, x)
    return lambda: embed_text_reference(ids, table, added, x)


def short_mean(x: Tensor, y: Tensor) -> Step:
    """`y = the mean of the rows of x` as a step."""
    return mean_text(x, y) if choose(None, x, op="short-mean") == "numba" else functools.partial(torch.mean, x, 0, out=y)
