"""Tables that all layers and calls share, kept between calls."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

F = TypeVar("F", bound=Callable[..., Any])


def kept(size: int) -> Callable[[F], F]:
    """Decorator: the last `size` results of a pure function of hashable arguments are kept.

    While a graph is captured the function itself is called: its result belongs to the graph, which folds what is constant.
    """

    def decorate(function: F) -> F:
        remembered = functools.lru_cache(maxsize=size)(function)

        @functools.wraps(function)
        def call(*args: Any) -> Any:
            return function(*args) if torch.compiler.is_compiling() else remembered(*args)

        return cast(F, call)

    return decorate
