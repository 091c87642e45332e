"""`forget-more`: a trained recurrence that decays faster and writes less, so that its state stays what it knows.

Paper: Stuffed Mamba: State Collapse and State Capacity of RNN-Based Long-Context Modeling (arXiv 2410.07145):
    every token's decay a_t is replaced by a_t^g, g > 1, and what is written is multiplied by b < 1.

    longer = forget_more(model, decay=1.2, insertion=0.9)

Exact for mamba2, mamba, rwkv4, rwkv5 and rwkv6; of gated-deltanet and kda the decay alone, since a delta rule writes what is
missing. Gates that write as much as they forget (qrnn, mingru, rg-lru, hgrn, hgrn2) would write more when they forget more, and those
whose decay is no power of anything learned (gla, rwkv7, mlstm) have no parameter for it: they do not take part.

A mixer takes part by offering `forget_more(decay, insertion)`, which changes its own parameters; the model given is left
as it is.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import nn

from orrery.core.errors import ConfigError
from orrery.core.registry import register
from orrery.models.carry import model_name

M = TypeVar("M", bound=nn.Module)


def forget_more(model: M, decay: float = 1.0, insertion: float = 1.0) -> M:
    """A copy of a model whose recurrences forget more.

    Args:
        decay: g, the exponent of every token's decay; above 1 forgets more.
        insertion: b, the factor of what is written; below 1 remembers less.

    Raises:
        ConfigError: for factors that are not positive, or a model none of whose mixers can.
    """
    if not (decay > 0 and insertion > 0):
        raise ConfigError(f"decay and insertion must be positive, not {decay} and {insertion}")
    changed = copy.deepcopy(model)
    parts: list[Any] = [part for part in changed.modules() if hasattr(part, "forget_more")]
    if not parts:
        raise ConfigError(f"no mixer of '{model_name(model)}' offers forget_more(decay, insertion); mamba2, mamba, rwkv4, rwkv6 do")
    done: set[int] = set()
    for part in parts:
        shared = [(own, own.detach().clone()) for own in part.parameters() if id(own) in done]  # by an earlier layer
        part.forget_more(decay, insertion)
        with torch.no_grad():
            for own, after in shared:
                own.copy_(after)
        done.update(id(own) for own in part.parameters())
    return changed


register(
    "forget-more",
    method="forget_more",
    summary="raise the decay and lower the insertion of a trained recurrence, against state collapse",
    paper="2410.07145",
    year=2024,
    tags=("long-context",),
)
