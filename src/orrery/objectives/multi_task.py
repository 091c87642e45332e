"""Several objectives over one model: their losses weighed by hand, or by the noise that each is found to have.

Paper: Multi-Task Learning Using Uncertainty to Weigh Losses (1705.07115).

Equation: parts i with losses L_i and weights w_i of one's own

    fixed          sum_i w_i L_i
    uncertainty    sum_i w_i (c_i exp(-s_i) L_i + s_i / 2),   s_i = log sigma_i^2 learnt from 0;  c_i 1/2 where L_i is a squared error, else 1

A part is any registered objective. All of them get the same batch (a mixture of pretext tasks), or each its own: a batch with
"parts", {name: batch}, or one with "part", the name of the only one that it is for (the others then learn nothing from it). A
model with `branches`, {name: model}, has one for each part: one body with several heads.

Shapes: those of the parts.

Cost: the sum of the parts'.

Differs: with one part a batch, the sum stands for its expectation: how often a part comes is a second weight.

Oracle: tests/oracles/multi_task.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from orrery.core import registry
from orrery.core.config import Config, require
from orrery.core.errors import ConfigError
from orrery.core.registry import register

WEIGHTINGS = ("fixed", "uncertainty")
_KEYS: dict[str, Any] = {"objective": str, "settings": dict, "weight": (int, float), "squared": bool}


@dataclass(frozen=True, kw_only=True)
class MultiTaskConfig(Config):
    """parts: by name {"objective": (the name itself), "settings": {}, "weight": 1.0, "squared": false}. weighting: see the top."""

    parts: dict[str, Any] = field(default_factory=dict)
    weighting: str = "fixed"

    def __post_init__(self) -> None:
        require(self.weighting in WEIGHTINGS, f"weighting must be one of {', '.join(WEIGHTINGS)}, not '{self.weighting}'")
        for name, part in self.parts.items():
            fits = isinstance(part, Mapping) and all(key in _KEYS and isinstance(value, _KEYS[key]) for key, value in part.items())
            require(fits and "." not in name, f"the part '{name}' must be given as {{objective, settings, weight, squared}}, each optional")
            require(part.get("weight", 1.0) >= 0, f"the weight of '{name}' must be 0 or more, not {part.get('weight')}")


class MultiTask(nn.Module):
    """`objective(model, batch) -> (loss, metrics)`; a module, because uncertainties are learnt."""

    Config = MultiTaskConfig

    def __init__(self, config: MultiTaskConfig | None = None) -> None:
        super().__init__()
        self.config = config or MultiTaskConfig()
        require(bool(self.config.parts), "multi-task needs parts: {name: {objective, settings, weight}}")
        self.parts: dict[str, Any] = {}
        self.modules_of_parts = nn.ModuleDict()
        for name, part in self.config.parts.items():
            cls = registry.load(part.get("objective", name), "objective")
            built = cls(cls.Config.from_dict(dict(part.get("settings", {})), where=name))
            self.parts[name] = built
            if isinstance(built, nn.Module):
                self.modules_of_parts[name] = built
        learnt = self.config.weighting == "uncertainty"
        self.logs = nn.ParameterDict({name: nn.Parameter(torch.zeros(1)) for name in self.parts} if learnt else {})

    def meet(self, model: nn.Module, tokenizer: Any = None) -> None:
        """Let every part meet its model."""
        home = next(model.parameters())
        self.logs.to(home.device)
        for name, part in self.parts.items():
            if hasattr(part, "meet"):
                part.meet(_branch(model, name), tokenizer)

    def settle(self, model: nn.Module) -> None:
        """Let every part bring its model up to date."""
        for name, part in self.parts.items():
            if hasattr(part, "settle"):
                part.settle(_branch(model, name))

    def forward(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The weighed sum of the parts that a batch is for.

        Returns:
            The loss, and "loss" (mean of the parts' own, by their weights of one's own), "tokens" (of all), every part's loss by its
            name, its tokens as "tokens/NAME", and with uncertainty "weight/NAME", what a loss counts now.
        """
        total: Tensor | float = 0.0
        plain: Tensor | float = 0.0
        weights, tokens = 0.0, torch.zeros((), dtype=torch.int64)
        metrics: dict[str, Any] = {}
        for name, own in self._batches(batch).items():
            loss, found = self.parts[name](_branch(model, name), own)
            part = self.config.parts[name]
            weight = float(part.get("weight", 1.0))
            if name in self.logs:
                log = self.logs[name][0].to(loss.dtype)
                now = torch.exp(-log) * (0.5 if part.get("squared") else 1.0)
                total = total + weight * (now * loss + log / 2)
                metrics[f"weight/{name}"] = (weight * now).detach()
            else:
                total = total + weight * loss
            metrics[name] = torch.as_tensor(found["loss"]).detach()
            metrics[f"tokens/{name}"] = torch.as_tensor(found["tokens"]).detach()
            plain, weights = plain + weight * metrics[name], weights + weight
            tokens = tokens + torch.as_tensor(found["tokens"]).detach().to(tokens.device)
        return cast(Tensor, total), {"loss": plain / (weights or 1.0), "tokens": tokens, **metrics}

    def _batches(self, batch: dict[str, Any]) -> dict[str, dict[str, Any]]:
        if "part" in batch:
            found = {str(batch["part"]): {key: value for key, value in batch.items() if key != "part"}}
        elif "parts" in batch:
            found = dict(batch["parts"])
        else:
            whole = {key: value for key, value in batch.items() if key != "state"}
            found = dict.fromkeys(self.parts, whole)
        unknown = sorted(found.keys() - self.parts.keys())
        if unknown or not found:
            raise ConfigError(f"a batch is for '{unknown[0] if unknown else ''}', which is no part of {', '.join(self.parts)}")
        return found


def _branch(model: nn.Module, name: str) -> nn.Module:
    branches = getattr(model, "branches", None)
    return model if branches is None else branches[name]


register(
    "multi-task",
    objective="MultiTask",
    summary="several objectives over one model, weighed by hand or by learnt uncertainty",
    paper="1705.07115",
    year=2017,
    tags=("composed",),
)
