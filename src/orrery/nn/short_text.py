"""Reading one short text at a time, prepared once: what parts, blocks and the reader share while it lasts.

A text of some twenty tokens takes less to compute than torch's calls around it: views, results that are allocated, a norm and
a sum apart. So every part binds its weights, and views of buffers that all layers share, to one length of text, and gives a
function of no arguments that goes from `run.given` to `run.y`. Weights are laid out (I,O), which is how a product of few rows
reads them fastest. Reading them is then most of what is left.

N tokens of the text, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from orrery.nn.stepping import plain_linear
from orrery.ops.backend import choose
from orrery.ops.residual_norm import residual_norm, residual_norm_reference
from orrery.ops.row_linear import RowNorm

MOST_TOKENS = 128  # beyond that, what calls take no longer counts and blocked weights are read as fast
Step = Callable[[], Any]


class ShortText:
    """The places of one text, for any length up to MOST_TOKENS: buffers are made once and cut to `length`.

    x: (N,D), the residual stream. given: (N,D), what the next part reads; x itself where norms stand behind parts. y: (N,D), what
    the last part has written. shared: what a layer leaves for later ones while functions are bound, by name.
    """

    def __init__(self, width: int, apart: bool) -> None:
        self._kept: dict[str, Tensor] = {}
        self._width, self._apart = width, apart
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
                self._kept[key] = torch.zeros(MOST_TOKENS, size)
        return self._kept[key][: self.length if length is None else length]


class ShortLinear:
    """A linear map laid out for few rows. The weights are copied: a later change of them is not seen."""

    def __init__(self, linear: nn.Linear) -> None:
        with torch.inference_mode(False), torch.no_grad():
            self.weight = linear.weight.detach().t().contiguous()
            self.bias = None if linear.bias is None else linear.bias.detach().clone()
        self.size = linear.out_features

    def __call__(self, x: Tensor, y: Tensor) -> None:
        """Y (N,O) = x (N,I) W^T + b."""
        if self.bias is None:
            torch.mm(x, self.weight, out=y)
        else:
            torch.addmm(self.bias, x, self.weight, out=y)


def short_linears(*modules: nn.Module) -> list[ShortLinear] | None:
    """All of these laid out; None where one is more than a linear map."""
    return [ShortLinear(module) for module in modules if isinstance(module, nn.Linear)] if plain_linear(*modules) else None


def short_norm(x: Tensor, y: Tensor | None, norm: RowNorm, out: Tensor) -> Step:
    """`x += y; out = norm(x)` as a step, by the rule for backends."""
    if choose(None, x, op="residual-norm") == "numba":
        return residual_norm(x, y, norm, out)
    return lambda: residual_norm_reference(x, y, norm, out)
