"""A block: a mixer and (mostly) a channel mixer, with norms, residual and Canon layers where the paper puts them.

pre:       x += mixer(norm(x));  x += channel(norm(x))          (arXiv 2002.04745)
post:      x = norm(x + mixer(x));  x = norm(x + channel(x))    (arXiv 1706.03762)
parallel:  x += mixer(norm(x)) + channel(norm(x))
output:    x += norm(mixer(x));  x += norm(channel(x))          (OLMo 2, arXiv 2501.00656)
sandwich:  x += norm(mixer(norm(x)));  x += norm(channel(norm(x)))   (Gemma 2, arXiv 2408.00118)
normed:    x = norm(x); x = a x + b mixer(x);  x = norm(x); x = c x + d channel(x)     (MiniMax-01, arXiv 2501.08313)
gated:     x = g(x, relu(mixer(norm(x))));  x = g'(x, relu(channel(norm(x))))          (GTrXL, arXiv 1910.06764)
scaled:    x = r(x, mixer(norm(x)));  x = r'(x, channel(norm(x))),  r(x, y) = s (x + b) + t (y + c)     (ZAYA1, arXiv 2511.17127)

With a guide (pre only) the mixer sees more than the residual stream keeps:  x += mixer(norm(x + guide(x)))  (Zamba, arXiv 2405.16712).
Canon A stands after the mixer's norm, C after the channel mixer's; B and D are inside the parts.
A block's state is the tuple (canon A, mixer, canon C, channel) of its parts' states. A decoder's block that reads an
encoder's output has a third part between the two, placed as they are (pre and post only); its state stands last, as a guide's.

B batch, T time, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from orrery.core import registry
from orrery.core.config import Config, require
from orrery.core.errors import StateError
from orrery.nn.contract import Context, Part, PartConfig, Place
from orrery.nn.conv import Canon
from orrery.nn.norms import make_norm
from orrery.nn.residual_gate import ResidualGate
from orrery.nn.residual_scale import Affine, ResidualScale
from orrery.nn.stepping import Beside, Step, Stepping, block_step, in_order, norm_of, part_step
from orrery.ops.steps.canon import add_change, canon_step
from orrery.ops.steps.residual import norm_change
from orrery.ops.steps.row_linear import blend, norm_in_place, row_norm
from orrery.ops.steps.row_steps import copy_rows

PLACEMENTS = ("pre", "post", "parallel", "output", "sandwich", "normed", "gated", "scaled")
BlockState = tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class BlockConfig(Config):
    """One layer. `mixer` and `channel` are {"name": registered name, **settings of its config}; channel None: no such part.

    scales: a, b, c, d of the placement "normed"; 1 elsewhere. gate, gate_bias: of the placement "gated"
    (:mod:`orrery.nn.residual_gate`). cross: a mixer that reads `ctx.memory`, or None. first_norm: False takes the norm before the
    mixer from the model's first layer, whose input has been normed (ModernBERT). guide: a mixer whose output is added to what
    the main mixer sees, or None. common: patterns of the names of parameters that all layers of this kind have in common, or "all"
    (:mod:`orrery.nn.sharing`).
    """

    mixer: dict[str, Any]
    channel: dict[str, Any] | None = None
    norm: str = "rmsnorm"
    eps: float = 1e-6
    placement: str = "pre"
    canon: str = ""
    dropout: float = 0.0
    scales: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    gate: str = "gru"
    gate_bias: float = 2.0
    cross: dict[str, Any] | None = None
    first_norm: bool = True
    guide: dict[str, Any] | None = None
    common: tuple[str, ...] | str = ()

    def __post_init__(self) -> None:
        require(
            self.cross is None or self.placement in ("pre", "post"),
            f"a block that reads a memory has the placement 'pre' or 'post', not '{self.placement}'",
        )
        require(
            self.placement == "normed" or set(self.scales) == {1.0},
            f"scales belong to the placement 'normed', not to '{self.placement}'",
        )
        require(self.placement in PLACEMENTS, f"placement '{self.placement}' must be one of {', '.join(PLACEMENTS)}")
        require(0 <= self.dropout < 1, f"dropout must lie in [0, 1), not {self.dropout}")
        require(
            self.guide is None or (self.placement == "pre" and self.cross is None),
            "a block with a guide has the placement 'pre' and reads no memory",
        )
        require(self.first_norm or self.placement == "pre", "only a norm before its part (placement 'pre') can be left out")


def part_config(spec: dict[str, Any], kind: str) -> PartConfig:
    """The typed config behind a {"name": ..., **settings} of a block; unknown settings raise."""
    settings = {key: value for key, value in spec.items() if key != "name"}
    return cast(PartConfig, registry.load(spec["name"], kind).Config.from_dict(settings, where=spec["name"]))


def make_part(spec: dict[str, Any], kind: str, place: Place) -> Part:
    """Build a mixer or channel mixer from its spec."""
    return cast(Part, registry.load(spec["name"], kind)(part_config(spec, kind), place))


def _sum(x: Tensor, keep: float, y: Tensor, add: float) -> Tensor:
    x = x if keep == 1 else x * keep
    return x + y if add == 1 else torch.add(x, y, alpha=add)


def _normed_step(norm: nn.Module, inner: Step, run: Stepping, keep: float, add: float) -> Step:
    """x = norm(x); x = keep x + add part(x), from `inner`, which does x += part(x)."""
    known, x = norm_of(norm), torch.empty_like(run.x)
    joined = [] if keep == add == 1 else [blend(run.x, x, keep, add)]
    if known is not None:
        return in_order(norm_in_place(run.x, known, x), inner, *joined)

    def normed() -> None:
        x.copy_(norm(run.x))
        run.x.copy_(x)

    return in_order(normed, inner, *joined)


def _norm_step(norm: nn.Module, run: Stepping) -> Step:
    """x = norm(x)."""
    known = norm_of(norm)
    return norm_in_place(run.x, known, torch.empty_like(run.x)) if known is not None else lambda: cast(None, run.x.copy_(norm(run.x)))


def _gated_step(gate: ResidualGate, part: nn.Module, norm: nn.Module, state: Any, run: Stepping) -> Step:
    """x = g(x, relu(part(norm(x))))."""
    room = Beside(run)
    inner = part_step(part, norm, state, room)

    def step() -> None:
        room.x.copy_(run.x)
        inner()
        run.x.copy_(gate(run.x, torch.relu_(room.x.sub_(run.x))))

    return step


def _output_step(norm: nn.Module, inner: Step, run: Stepping) -> Step:
    """x += norm(part(x)), from `inner`, which does x += part(x)."""
    x, y, known = torch.empty_like(run.x), torch.empty_like(run.x), norm_of(norm)
    if known is not None and known.kind == "rmsnorm":
        return in_order(copy_rows(run.x, x), inner, norm_change(run.x, x, known))
    normed = row_norm(y, known) if known is not None else lambda: norm(y)

    def step() -> None:
        x.copy_(run.x)
        inner()
        torch.sub(run.x, x, out=y)
        torch.add(x, normed(), out=run.x)

    return step


def _canon_step(canon: Canon, held: Any, norm: nn.Module | None, part: nn.Module, state: Any, run: Stepping) -> Step:
    """x += part(canon(norm(x))): the part works on a stream of its own, whose change is added."""
    room, known = Beside(run), norm_of(norm)
    assert known is not None
    kept, window = torch.empty_like(run.x), run.own(held.inputs)
    before = canon_step(run.x, known, window, canon.conv.weight, room.x, kept)
    return in_order(before, part_step(part, None, state, room), add_change(run.x, room.x, kept))


class Block(nn.Module):
    """One layer of a model; `y, state = block(x, state, ctx)` with x, y (B,T,D) and a prepared ctx."""

    def __init__(self, config: BlockConfig, place: Place) -> None:
        super().__init__()
        self.config, self.place = config, place
        place = place.replace(canon=config.canon)
        self.mixer_norm = make_norm(config.norm if config.first_norm or place.layer else "none", place.width, config.eps)
        self.mixer = make_part(config.mixer, "mixer", place)
        self.cross = make_part(config.cross, "mixer", place) if config.cross else None
        self.cross_norm = make_norm(config.norm, place.width, config.eps) if config.cross else None
        self.guide = make_part(config.guide, "mixer", place) if config.guide else None
        self.channel = make_part(config.channel, "channel", place) if config.channel else None
        second = self.channel is not None and config.placement != "parallel"
        self.channel_norm = make_norm(config.norm, place.width, config.eps) if second else None
        self.canon_a = Canon(place.width) if "a" in config.canon else None
        self.canon_c = Canon(place.width) if "c" in config.canon and self.channel is not None else None
        self.dropout = config.dropout
        gates = (1 if self.channel is None else 2) if config.placement == "gated" else 0
        self.gates = nn.ModuleList(ResidualGate(config.gate, place.width, config.gate_bias) for _ in range(gates))
        sums = (1 if self.channel is None else 2) if config.placement == "scaled" else 0
        self.sums = nn.ModuleList(ResidualScale(place.width) for _ in range(sums))
        self.entry = Affine(place.width) if sums and place.layer == 0 else None
        behind = (1 if self.channel is None else 2) if config.placement == "sandwich" else 0
        self.out_norms = nn.ModuleList(make_norm(config.norm, place.width, config.eps) for _ in range(behind))

    def forward(self, x: Tensor, state: BlockState | None, ctx: Context) -> tuple[Tensor, BlockState]:
        """X (B,T,D) and the block's state or None -> (B,T,D) and the new state."""
        if ctx.last and not self._last_alone(ctx):
            ctx = ctx.replace(last=False)
        if self.cross is not None:
            return self._with_memory(x, state, ctx)
        a, m, c, f, *g = state if state is not None else (None,) * len(self._parts())
        if self.config.placement in ("post", "output"):
            h, a = self.canon_a(x, a, ctx) if self.canon_a is not None else (x, a)
            y, m = self.mixer(h, m, ctx)
            x = self._joined(x, y, self.mixer_norm)
            if self.channel is not None and self.channel_norm is not None:
                h, c = self.canon_c(x, c, ctx) if self.canon_c is not None else (x, c)
                y, f = self.channel(h, f, ctx)
                x = self._joined(x, y, self.channel_norm)
            return x, (a, m, c, f)
        x = x if self.entry is None else self.entry(x)
        led, g = self._led(x, g, ctx)
        h = self.mixer_norm(led)
        if self.config.placement == "normed":
            return self._normed(h, (a, m, c, f), ctx)
        if self.canon_a is not None:
            h, a = self.canon_a(h, a, ctx)
        wanted = 1 + (self._behind() or 0) if ctx.last else 0  # with the tokens before the last that the channel mixer looks at
        y, m = self.mixer(h, m, ctx if wanted < 2 else ctx.replace(last=False))
        if wanted:
            x, y, h = x[:, -wanted:], y[:, -wanted:], h[:, -wanted:]
        x = self._added(x, y, 0)
        if self.channel is not None:
            if self.channel_norm is not None:
                h = self.channel_norm(x)
            if self.canon_c is not None:
                h, c = self.canon_c(h, c, ctx)
            y, f = self.channel(h, f, ctx)
            x = self._added(x, y, 1)
        return x[:, -1:] if ctx.last else x, (a, m, c, f, *g)

    def _led(self, x: Tensor, state: list[Any], ctx: Context) -> tuple[Tensor, list[Any]]:
        """What the mixer's norm is given: x and what the guide makes of it."""
        if self.guide is None:
            return x, state
        y, after = self.guide(x, state[0], ctx.replace(last=False))
        return x + y, [after]

    def _with_memory(self, x: Tensor, state: BlockState | None, ctx: Context) -> tuple[Tensor, BlockState]:
        """The mixer, what reads the memory, and the channel mixer, each with its norm before (pre) or behind it (post)."""
        held = state if state is not None else (None,) * 5
        own = ctx.replace(memory=None, memory_segments=None)
        after: list[Any] = [None] * 5
        canons = {1: (self.canon_a, 0), 3: (self.canon_c, 2)}
        for part, norm, slot in ((self.mixer, self.mixer_norm, 1), (self.cross, self.cross_norm, 4), (self.channel, self.channel_norm, 3)):
            if part is None or norm is None:
                continue
            h = norm(x) if self.config.placement == "pre" else x
            canon, place = canons.get(slot, (None, 0))
            if canon is not None:
                h, after[place] = canon(h, held[place], ctx)
            y, after[slot] = part(h, held[slot], ctx if slot == 4 else own)
            x = self._joined(x, y, norm) if self.config.placement == "post" else x + self._drop(y)
        return x, tuple(after)

    def _last_alone(self, ctx: Context) -> bool:
        """Whether what follows the mixer is needed for the last tokens only: no state behind it wants the others."""
        placed = self.cross is None and self.config.placement in ("pre", "parallel", "sandwich", "normed", "gated")
        behind = self._behind()
        near = behind == 0 or (behind is not None and self.config.placement == "pre")
        return placed and self.canon_c is None and near and ctx.cond is None

    def _behind(self) -> int | None:
        """Tokens before the last that the channel mixer needs for it; None where that is all of them."""
        channel = self.channel
        return 0 if channel is None or channel.State is None else channel.reach

    def _added(self, x: Tensor, y: Tensor, part: int) -> Tensor:
        """The residual x and the output y of the mixer (part 0) or the channel mixer (1), where the norm stands before it."""
        if self.out_norms:
            y = self.out_norms[part](y)
        if self.sums:
            return cast(Tensor, self.sums[part](x, self._drop(y)))
        if not self.gates:
            return x + self._drop(y)
        return cast(Tensor, self.gates[part](x, torch.relu(self._drop(y))))

    def _joined(self, x: Tensor, y: Tensor, norm: nn.Module) -> Tensor:
        """A part's output y and the residual x, where the norm stands behind the part."""
        return cast(Tensor, x + self._drop(norm(y)) if self.config.placement == "output" else norm(x + self._drop(y)))

    def _normed(self, x: Tensor, state: BlockState, ctx: Context) -> tuple[Tensor, BlockState]:
        """The residual is what has been normed; X is, for the mixer."""
        (a, m, c, f), (keep, add, keep_channel, add_channel) = state, self.config.scales
        h = x
        if self.canon_a is not None:
            h, a = self.canon_a(h, a, ctx)
        y, m = self.mixer(h, m, ctx)
        if ctx.last:
            x, y = x[:, -1:], y[:, -1:]
        x = _sum(x, keep, self._drop(y), add)
        if self.channel is not None and self.channel_norm is not None:
            x = h = self.channel_norm(x)
            if self.canon_c is not None:
                h, c = self.canon_c(h, c, ctx)
            y, f = self.channel(h, f, ctx)
            x = _sum(x, keep_channel, self._drop(y), add_channel)
        return x, (a, m, c, f)

    def stepper(self, state: BlockState, run: Stepping) -> list[Step]:
        """What one token needs, in order, on `run.x` in place (:mod:`orrery.nn.stepping`); in evaluation mode only."""
        canon = self.canon_a is not None or self.canon_c is not None
        if self.config.placement == "normed" and not canon and type(self) is Block:
            return self._normed_steps(state, run)
        if self.config.placement in ("output", "sandwich") and not canon and type(self) is Block:
            return self._output_steps(state, run)
        if self.config.placement in ("post", "gated") and not canon and self.cross is None and type(self) is Block:
            return self._joined_steps(state, run)
        serial = self.config.placement == "pre" or (self.config.placement == "parallel" and self.channel is None)
        unknown = canon and (norm_of(self.mixer_norm) is None or norm_of(self.channel_norm) is None or self.guide is not None)
        if unknown or not serial or type(self) is not Block:
            return [block_step(self, state, run)]
        if self.guide is not None:
            steps = [self._guided_step(self.guide, state, run)]
        else:
            steps = [self._part_step(self.canon_a, state[0], self.mixer_norm, self.mixer, state[1], run)]
        if self.cross is not None:
            steps.append(part_step(self.cross, self.cross_norm, state[4], run))
        if self.channel is not None:
            steps.append(self._part_step(self.canon_c, state[2], self.channel_norm, self.channel, state[3], run))
        return steps

    @staticmethod
    def _part_step(canon: Canon | None, held: Any, norm: nn.Module | None, part: nn.Module, state: Any, run: Stepping) -> Step:
        return part_step(part, norm, state, run) if canon is None else _canon_step(canon, held, norm, part, state, run)

    def _guided_step(self, guide: nn.Module, state: BlockState, run: Stepping) -> Step:
        """x += mixer(norm(x + guide(x))): both parts work on a stream of their own, and what the mixer changes there is added."""
        room, kept = Beside(run), torch.empty_like(run.x)
        led = in_order(copy_rows(run.x, room.x), part_step(guide, None, state[4], room), copy_rows(room.x, kept))
        return in_order(led, part_step(self.mixer, self.mixer_norm, state[1], room), add_change(run.x, room.x, kept))

    def _normed_steps(self, state: BlockState, run: Stepping) -> list[Step]:
        parts = [(self.mixer, self.mixer_norm, state[1]), (self.channel, self.channel_norm, state[3])]
        steps = []
        for (part, norm, held), scales in zip(parts, (self.config.scales[:2], self.config.scales[2:]), strict=True):
            if part is not None and norm is not None:
                steps.append(_normed_step(norm, part_step(part, None, held, run), run, *scales))
        return steps

    def _output_steps(self, state: BlockState, run: Stepping) -> list[Step]:
        parts = [(self.mixer, self.mixer_norm, state[1]), (self.channel, self.channel_norm, state[3])]
        parts = [each for each in parts if each[0] is not None]
        if self.out_norms:
            return [
                _output_step(out, part_step(cast(nn.Module, part), norm, held, run), run)
                for out, (part, norm, held) in zip(self.out_norms, parts, strict=True)
            ]
        return [
            _output_step(norm, part_step(part, None, held, run), run)
            for part, norm, held in parts
            if part is not None and norm is not None
        ]

    def _joined_steps(self, state: BlockState, run: Stepping) -> list[Step]:
        parts = [(self.mixer, self.mixer_norm, state[1]), (self.channel, self.channel_norm, state[3])]
        steps = []
        for number, (part, norm, held) in enumerate(parts):
            if part is not None and norm is not None and self.gates:
                steps.append(_gated_step(cast(ResidualGate, self.gates[number]), part, norm, held, run))
            elif part is not None and norm is not None:
                steps += [part_step(part, None, held, run), _norm_step(norm, run)]
        return steps

    def _drop(self, y: Tensor) -> Tensor:
        return nn.functional.dropout(y, self.dropout, self.training) if self.dropout else y

    def _parts(self) -> tuple[Any, ...]:
        parts = (self.canon_a, self.mixer, self.canon_c, self.channel)
        last = self.cross if self.cross is not None else self.guide
        return parts if last is None else (*parts, last)

    @property
    def packs(self) -> bool:
        """Whether all parts may meet a packed row."""
        return all(getattr(part, "packs", False) for part in self._parts() if part is not None)

    def init_state(self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> BlockState:
        """States of the parts before the first token."""
        return tuple(None if p is None else p.init_state(batch, device, dtype) for p in self._parts())

    def state_bytes(self, length: int) -> int:
        """Bytes of state per sequence after `length` tokens."""
        return sum(p.state_bytes(length) for p in self._parts() if p is not None)

    def flops(self, length: int) -> int:
        """Forward operations of the parts for one sequence; norms and residuals (under 1 %) are not counted."""
        gates = sum(cast(ResidualGate, gate).flops(length) for gate in self.gates)
        return gates + sum(p.flops(length) for p in self._parts() if p is not None)

    def check_honoured(self, ctx: Context) -> None:
        """Raise for a context field that one of the parts would ignore."""
        if self.cross is not None:
            ctx = ctx.replace(memory=None, memory_segments=None)
        self.mixer.check_honoured(ctx.replace(cond=None) if self.channel is not None else ctx)
        if self.guide is not None:
            self.guide.check_honoured(ctx.replace(cond=None))

    def check_state(self, state: BlockState, batch: int) -> None:
        """Raise for a state of another block or batch size."""
        if not isinstance(state, tuple) or len(state) != len(self._parts()):
            raise StateError("the state was made by another kind of block")
        for part, held in zip(self._parts(), state, strict=True):
            if isinstance(part, Part):
                part.check_state(held, batch)

    def reset_parameters(self) -> None:
        """Every part's own initialisation."""
        for part in (self.mixer_norm, self.channel_norm, self.cross_norm, *self._parts(), *self.gates, *self.out_norms, *self.sums, self.entry):
            if part is not None:
                part.reset_parameters()
