"""Floating-point operations as they happen: products by their formulas, elementwise arithmetic one per element.

Declared costs (`flops(T)`) may leave elementwise work out or count it; they must lie between the two counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from orrery.nn.contract import Part

_ELEMENTWISE = {
    "add", "sub", "rsub", "mul", "div", "addcmul", "addcdiv", "lerp", "exp", "exp2", "expm1", "log", "log1p", "log2", "sqrt", "rsqrt",
    "reciprocal", "pow", "square", "sigmoid", "log_sigmoid_forward", "tanh", "sin", "cos", "silu", "gelu", "relu", "softplus", "neg",
    "abs", "maximum", "minimum", "clamp", "clamp_min", "clamp_max", "where", "masked_fill", "logaddexp", "threshold", "elu", "hardtanh",
    "leaky_relu",
}  # fmt: skip
_REDUCTIONS = {
    "sum",
    "mean",
    "amax",
    "amin",
    "max",
    "min",
    "cumsum",
    "logsumexp",
    "logcumsumexp",
    "norm",
    "linalg_vector_norm",
    "prod",
    "var",
}
_COMPOUND = {
    "_softmax": 4,
    "_log_softmax": 4,
    "native_layer_norm": 6,
    "native_group_norm": 6,
    "_fused_rms_norm": 4,
    "_safe_softmax": 4,
}


class Counter(TorchDispatchMode):
    """Counts while active: `products` (matrix products, convolutions) and `elementwise` (everything else that computes)."""

    def __init__(self) -> None:
        super().__init__()
        self.products = 0
        self.elementwise = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        name = packet.__name__.rstrip("_")
        if packet in flop_registry:
            self.products += int(flop_registry[packet](*args, **(kwargs or {}), out_val=out))
        elif name in ("mv", "addmv"):
            matrix = args[0] if name == "mv" else args[1]
            self.products += 2 * matrix.numel()
        elif name in ("dot", "vdot"):
            self.products += 2 * args[0].numel()
        elif name in _ELEMENTWISE:
            self.elementwise += _numel(out)
        elif name in _REDUCTIONS:
            self.elementwise += _numel(args[0])
        elif name in _COMPOUND:
            self.elementwise += _COMPOUND[name] * _numel(args[0])
        return out


def _numel(value: Any) -> int:
    return max((leaf.numel() for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)), default=0)


def step_flops(module: nn.Module, length: int) -> int:
    """What a mixer or model declares for `length` tokens one at a time: its `flops`, with its parts' own forms for a step."""
    parts = [part for part in module.modules() if isinstance(part, Part)]
    return int(cast(Any, module).flops(length)) + sum(part.step_flops(length) - part.flops(length) for part in parts)


@contextmanager
def counting() -> Iterator[Counter]:
    """Count operations of the block, with attention and recurrent layers taken apart into what they compute."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from orrery.ops.backend import use_backend

    with (
        torch.no_grad(),
        use_backend("torch"),
        sdpa_kernel(SDPBackend.MATH),
        _without_onednn(),
        Counter() as counter,
    ):
        yield counter


@contextmanager
def _without_onednn() -> Iterator[None]:
    """OneDNN's fused recurrent layers are one opaque operation; without it they are products and elementwise work."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)
