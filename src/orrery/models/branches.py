"""One body with several heads: models by name that share every part but their head, so that each is a whole model by itself."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from orrery.core.errors import ConfigError


class Branches(nn.Module):
    """`branches[name]` is a model; all have the first one's body.

    Args:
        models: of one kind and size. A model may stand there several times (one without heads, for several tables).

    Raises:
        ConfigError: a model has parts, beside its head, that the first one lacks.
    """

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        super().__init__()
        first = next(iter(models.values()))
        body = {name: child for name, child in first.named_children() if name != "head"}
        held = {id(p) for child in body.values() for p in child.parameters()}
        for model in models.values():
            for name, child in body.items():
                setattr(model, name, child)
            own = {name for name, p in model.named_parameters() if id(p) not in held and not name.startswith("head.")}
            if own and model is not first:
                raise ConfigError(f"{type(model).__name__} does not fit the first model's body: {sorted(own)[0]} is its own")
        self.branches = nn.ModuleDict(models)
        self.vocab_size = int(getattr(first, "vocab_size", 0))
