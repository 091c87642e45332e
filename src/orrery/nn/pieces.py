"""Work on tokens by themselves, a piece of a long text at a time: while there are no gradients, nothing wide is held for all of it.

Hidden features of 8,192 tokens leave every cache, and memory of that size comes fresh from the system in every call, a page at a
time; of PIECE tokens they stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

PIECE = 1024  # tokens: matrix products are at full speed, and 1,024 features of them take 4 MB


def in_pieces(length: int) -> bool:
    """Whether a text of so many tokens is worked on in pieces now."""
    return length > PIECE and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def pieces(length: int) -> Iterator[slice]:
    """The pieces, in order."""
    return (slice(begin, min(begin + PIECE, length)) for begin in range(0, length, PIECE))


def by_pieces(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """function(x), x (B,T,D) -> (B,T,E), for a function that sees every token by itself."""
    if not in_pieces(x.shape[1]):
        return function(x)
    whole: Tensor | None = None
    for piece in pieces(x.shape[1]):
        y = function(x[:, piece])
        if whole is None:
            whole = y.new_empty(*x.shape[:2], y.shape[-1])
        whole[:, piece] = y
    assert whole is not None
    return whole
