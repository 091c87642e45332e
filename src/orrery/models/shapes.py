"""Models by their shapes alone: how many parameters a config has, without a number being drawn or stored."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_FILLS = frozenset({
    "normal_", "uniform_", "trunc_normal_", "constant_", "zeros_", "ones_", "orthogonal_", "kaiming_uniform_", "kaiming_normal_",
    "xavier_uniform_", "xavier_normal_", "copy_", "fill_", "zero_", "mul_", "add_", "sub_", "div_", "neg_", "clamp_", "exponential_",
    "log_", "exp_", "sqrt_", "pow_", "erfinv_",
})  # fmt: skip


class _Unfilled(TorchFunctionMode):
    """What writes values into a tensor without memory is left out: torch would work out shapes that nobody asks for."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")  # torch.nn.init passes it by name
        if getattr(func, "__name__", "") in _FILLS and isinstance(target, torch.Tensor) and target.is_meta:
            return target
        return func(*args, **kwargs)


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Within the block tensors are made on the meta device and initial values are not computed: for counting."""
    with torch.device("meta"), _Unfilled():
        yield
