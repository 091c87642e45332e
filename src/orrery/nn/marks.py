"""Marks on parameters, by which the optimizer groups them (optim/groups.py).

Weight decay is for matrices. A stack of vectors (the biases of all heads, the shares of a token mix, a table of positions) has
two dimensions and is none: its part marks it in `reset_parameters`, because a copy of a parameter carries no marks and whoever
copies a part to train it draws its parameters anew.
"""

from __future__ import annotations

from torch import Tensor


def no_decay(*parameters: Tensor | None) -> None:
    """Leave these parameters out of weight decay."""
    for parameter in parameters:
        if parameter is not None:
            parameter.no_decay = True  # type: ignore[attr-defined]
