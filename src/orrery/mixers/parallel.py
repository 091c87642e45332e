"""Several mixers side by side in one layer: the pattern `"mamba2 | attention"`.

Paper: Hybrid Architectures for Language Models (arXiv 2510.04800, section 3: fusions of branches); Hymba (2411.13676) takes
    the mean with vectors b_i, Falcon-H1 (2507.22448) the plain sum.

Equation:  z_i = b_i * norm_i(mixer_i(x)),   norm_i an RMSNorm of every one of G parts, b_i a vector, a number or 1
    norm_at heads:  z_i = b_i * W_i norm_i(heads_i(x)),   W_i the mixer's way out, a part for each of its heads
    mean  1/n sum_i z_i;    sum  sum_i z_i;    difference  z_1 - sum_{i>1} z_i;    concat  W [z_1; ..; z_n]

Shapes: B batch, T time, D width, n branches, G groups of the norm.

Cost: the sum of the branches'; with `shares` that sum to 1, that of one mixer: the heads of a layer are divided.

Differs from the papers: every branch has projections of its own on both sides (Hymba shares one input projection between its
    heads); the norm stands behind the way out unless `norm_at` says otherwise (in 2510.04800 before it).

Oracle: tests/oracles/parallel.py (the branches by themselves, fused in float64); transformers' Falcon-H1.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from orrery.core.config import require
from orrery.core.errors import ConfigError
from orrery.core.registry import register
from orrery.nn.block import make_part, part_config
from orrery.nn.contract import Context, Mixer, PartConfig, Place
from orrery.nn.marks import no_decay
from orrery.nn.normed_linear import NormedLinear
from orrery.nn.state import state
from orrery.nn.stepping import Beside, Step, Stepping
from orrery.nn.timeline import fresh_clock
from orrery.ops.fused.rms_norm import rms_norm
from orrery.ops.steps.row_linear import RowNorm

FUSIONS = ("mean", "sum", "difference", "concat")
BETAS = ("vector", "scalar", "none")
ENDS = ("out", "heads")


@dataclass(frozen=True, kw_only=True)
class ParallelConfig(PartConfig):
    """branches: two or more mixers, each {"name": ..., **settings}. normed, groups: the norm of every branch, on what it puts out,
    or with norm_at "heads" on every head before the branch's way out. shares: part of its heads (or, without heads, of its
    `expand`) that each branch keeps; None: all, so that a layer costs n mixers."""

    branches: tuple[dict[str, Any], ...] = ({"name": "attention"}, {"name": "lstm"})
    fusion: str = "mean"
    normed: bool = True
    groups: int = 1
    norm_at: str = "out"
    beta: str = "vector"
    shares: tuple[float, ...] | None = None
    eps: float = 1e-6

    def __post_init__(self) -> None:
        require(len(self.branches) > 1, "a parallel layer needs two or more branches")
        require(self.fusion in FUSIONS, f"fusion '{self.fusion}' must be one of {', '.join(FUSIONS)}")
        require(self.beta in BETAS, f"beta '{self.beta}' must be one of {', '.join(BETAS)}")
        require(self.groups > 0, f"groups must be positive, not {self.groups}")
        require(self.norm_at in ENDS, f"norm_at '{self.norm_at}' must be one of {', '.join(ENDS)}")
        whole = self.norm_at == "out" or (self.normed and self.groups == 1)
        require(whole, "norm_at 'heads' norms each head: normed must be true, and there are no other groups")
        if self.shares is not None:
            count = len(self.branches)
            require(len(self.shares) == count, f"shares needs a number for each of the {count} branches, not {len(self.shares)}")
            require(all(0 < share <= 1 for share in self.shares), f"shares must lie in (0, 1], not {self.shares}")


@state
class ParallelState(NamedTuple):
    """The branches' states in order."""

    branches: tuple[Any, ...]
    clock: Tensor


class Parallel(Mixer):
    """Branches on the same input, normed and fused."""

    Config = ParallelConfig
    State = ParallelState
    config: ParallelConfig
    examples = (
        {"branches": [{"name": "attention", "head_dim": 8}, {"name": "attention", "head_dim": 16, "window": 5}]},
        {
            "branches": [{"name": "attention", "head_dim": 8}, {"name": "attention", "head_dim": 4}],
            "fusion": "concat", "groups": 4, "beta": "scalar", "shares": [0.25, 0.5],
        },
        {
            "branches": [{"name": "attention", "head_dim": 8}, {"name": "attention", "head_dim": 16}],
            "fusion": "difference", "norm_at": "heads", "beta": "none",
        },
    )  # fmt: skip

    def __init__(self, config: ParallelConfig, place: Place) -> None:
        super().__init__(config, place)
        count, width = len(config.branches), place.width
        require(width % config.groups == 0, f"groups {config.groups} must divide the width {width}")
        shares = config.shares or (1.0,) * count
        specs = [_reduced(spec, share, width) for spec, share in zip(config.branches, shares, strict=True)]
        self.branches = nn.ModuleList(make_part(spec, "mixer", place) for spec in specs)
        if config.norm_at == "heads":
            for spec, branch in zip(specs, self.branches, strict=True):
                branch.out = _behind_norm(spec["name"], branch, config.eps)
        self.beta: nn.Parameter | None = None
        if config.beta != "none":
            self.beta = nn.Parameter(torch.empty(count, width if config.beta == "vector" else 1))
        self.out = nn.Linear(count * width, width, bias=False) if config.fusion == "concat" else None
        self.honours = frozenset.intersection(*(branch.honours for branch in self.branches))  # type: ignore[misc, arg-type]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Each branch's own; the b_i start at 1, the joint projection as the mean of its inputs."""
        for branch in self.branches:
            cast(Mixer, branch).reset_parameters()
        if self.beta is not None:
            nn.init.ones_(self.beta)
            no_decay(self.beta)
        if self.out is not None:
            width, count = self.place.width, len(self.branches)
            nn.init.normal_(self.out.weight, std=(count * width) ** -0.5 / 4)
            with torch.no_grad():
                self.out.weight += torch.eye(width, device=self.out.weight.device).repeat(1, count) / count

    def mix(self, x: Tensor, state: ParallelState | None, ctx: Context) -> tuple[Tensor, ParallelState]:
        found, states = [], []
        for index, branch in enumerate(self.branches):
            y, after = branch(x, None if state is None else state.branches[index], ctx)
            found.append(self._scaled(y[:, -1:] if ctx.last else y, index))  # a branch may give all tokens all the same
            states.append(after)
        return self._fuse(found), ParallelState(tuple(states), ctx.timeline.clock)

    def _scaled(self, y: Tensor, index: int) -> Tensor:
        """Norm and b of one branch on y (B,T,D); 2510.04800 finds the norm to be what matters."""
        config = self.config
        normed = config.normed and config.norm_at == "out"
        if normed and config.beta == "vector" and config.groups == 1 and self.beta is not None:
            return rms_norm(y, self.beta[index], config.eps)
        if normed:
            y = rms_norm(y.unflatten(-1, (config.groups, -1)), None, config.eps).flatten(-2)
        return y if self.beta is None else y * self.beta[index]

    def _fuse(self, parts: list[Tensor]) -> Tensor:
        if self.out is not None:
            return cast(Tensor, self.out(torch.cat(parts, -1)))
        total = parts[0]
        for part in parts[1:]:
            total = total - part if self.config.fusion == "difference" else total + part
        return total / len(parts) if self.config.fusion == "mean" else total

    def stepper(self, norm: RowNorm, state: ParallelState, run: Stepping) -> Step | None:
        rooms = [Beside(run) for _ in self.branches]
        found = [
            cast(Mixer, branch).stepper(norm, held, room)
            for branch, held, room in zip(self.branches, state.branches, rooms, strict=True)
        ]
        if any(step is None for step in found):
            return None
        steps = [cast(Step, step) for step in found]

        def step() -> None:
            before, parts = run.x, []
            for index, (room, own) in enumerate(zip(rooms, steps, strict=True)):
                room.x.copy_(before)
                own()
                parts.append(self._scaled(room.x.sub_(before), index))
            before.add_(self._fuse(parts))

        return step

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> ParallelState:
        states = tuple(cast(Mixer, branch).init_state(batch, device, dtype) for branch in self.branches)
        return ParallelState(states, fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        return sum(cast(Mixer, branch).state_bytes(length) for branch in self.branches)

    def flops(self, length: int) -> int:
        joint = 0 if self.out is None else 2 * self.out.weight.numel() * length
        return joint + sum(cast(Mixer, branch).flops(length) for branch in self.branches)


def _behind_norm(name: str, branch: nn.Module, eps: float) -> NormedLinear:
    """The branch's way out, with a norm of each head before it."""
    out, heads = getattr(branch, "out", None), getattr(branch, "heads", None)
    if type(out) is not nn.Linear or not isinstance(heads, int) or out.in_features % heads:
        raise ConfigError(f"'{name}' has no heads behind which a norm could stand; set norm_at=out")
    return NormedLinear(out.in_features, out.out_features, heads, eps, bias=out.bias is not None)


def _reduced(spec: dict[str, Any], share: float, width: int) -> dict[str, Any]:
    """The spec of a branch that keeps a share of its heads, or of its expansion."""
    if share == 1:
        return spec
    config: Any = part_config(spec, "mixer")
    known = {field.name for field in fields(config)}
    if "heads" in known:
        heads = config.heads or width // config.head_dim
        grouped = getattr(config, "kv_heads", None)
        fewer = {"kv_heads": max(1, round(share * grouped))} if grouped else {}
        return {**spec, "heads": max(1, round(share * heads)), **fewer}
    if "expand" in known:
        return {**spec, "expand": share * config.expand}
    raise ConfigError(f"'{spec['name']}' has neither heads nor an expansion of which a branch could keep a share")


register(
    "parallel",
    mixer="Parallel",
    summary="Several mixers side by side in one layer, normed and fused",
    paper="2510.04800",
    year=2025,
    tags=("causal", "parallel"),
)
