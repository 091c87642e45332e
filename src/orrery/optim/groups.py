"""Which parameters decay, and at what share of the learning rate: the one rule all optimizers here follow.

Weight decay is for matrices. Left out of it: parameters with fewer than two dimensions (biases, norm gains, decay rates),
embeddings unless asked for, every parameter that carries `no_decay = True` (nn/marks.py). A parameter with `lr_scale = x` learns at x
times the rate (recurrences whose time constants want a smaller one). Frozen parameters are left out; a tied parameter
counts once, as an embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from orrery.core.errors import ConfigError


def parameter_groups(model: nn.Module, weight_decay: float, decay_embeddings: bool = False) -> list[dict[str, Any]]:
    """Groups for a torch optimizer, in a fixed order: `params`, `names`, `weight_decay`, `lr_scale`.

    Args:
        model: whose trainable parameters are grouped; the order within a group is that of `named_parameters`.
        weight_decay: of the groups that decay.
        decay_embeddings: also decay token and position tables.

    Raises:
        ConfigError: where nothing is trainable.
    """
    tables = embedding_parameters(model)
    groups: dict[tuple[bool, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        free = parameter.dim() < 2 or getattr(parameter, "no_decay", False)
        free = free or (parameter in tables and not decay_embeddings)
        scale = float(getattr(parameter, "lr_scale", 1.0))
        decay = 0.0 if free else weight_decay
        group = groups.setdefault((free, scale), {"params": [], "names": [], "weight_decay": decay, "lr_scale": scale})
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups:
        raise ConfigError("the model has no parameters to train by steps; count its tables with fit(tokens), or unfreeze what is to learn")
    return [groups[key] for key in sorted(groups)]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of `rate` for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def embedding_parameters(model: nn.Module) -> set[Tensor]:
    """The tables of every embedding in the model (`nn.Embedding` and classes called so)."""
    found: set[Tensor] = set()
    for module in model.modules():
        if isinstance(module, nn.Embedding) or type(module).__name__.endswith("Embedding"):
            found.update(p for p in module.parameters(recurse=False) if p.dim() >= 2)
    return found
