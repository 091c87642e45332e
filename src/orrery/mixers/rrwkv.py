"""RRWKV (a reconstruction): RWKV-4 whose tokens also read mediums, abstracts of the segments behind them.

Paper: RRWKV: Capturing Long-range Dependencies in RWKV (arXiv 2306.05176). Withdrawn by its author, without experiments or
    code; the formulas here are a reconstruction from its abstract: RWKV-4, squeeze-and-excitation, one medium per segment.

Equation: every m tokens of a document make a medium from the part's input:  z = mean of the m;  M = sigmoid(W2 relu(W1 z)) * z
    a projection reads  mu x_t + (1 - mu) x_{t-1} + nu M_last,  M_last the last finished segment's medium (0 before)
    time mix:     RWKV-4's average over tokens and mediums alike: a medium stands behind the last token of its segment, with
                  k = W_k M and v = W_v M, one step of decay away
    channel mix:  RWKV-4's, with the reading above

Shapes: B batch, T time, D width, E width of the average (D unless set), F hidden size 4 D, R hidden size of the excitation,
    m segment, N segments that a call touches.

Cost: RWKV-4's times 1 + 1/m: train and prefill O(T), decode O(1); state 3 E + 6 D numbers
    (RWKV-4: 3 E + 2 D).

Differs from the paper: as far as can be known, in nothing that it states. segment=None has no mediums and is RWKV-4.

Oracle: tests/oracles/rrwkv.py (float64 sums over all pairs); RWKV-4 where there are no mediums.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig
from orrery.nn.contract import Context, Mixer, Part, PartConfig, Place
from orrery.nn.marks import no_decay
from orrery.nn.recompute import linear_of
from orrery.nn.rwkv import mixed_linears, reset_channel_mix, reset_time_mix
from orrery.nn.state import state
from orrery.nn.stepping import Step, Stepping, in_order, linear_step, plain_linear
from orrery.nn.timeline import Timeline, fresh_clock
from orrery.ops.fused.gates import relu_square, sigmoid_gate
from orrery.ops.steps.row_linear import RowNorm, row_norm_into
from orrery.ops.steps.rwkv4 import average_step, gate_step, mix_step
from orrery.ops.wkv4 import wkv4, wkv4_initial, wkv4_step


@dataclass(frozen=True, kw_only=True)
class RRWKVConfig(PartConfig):
    """hidden: E (None: D). segment: m; None: no mediums. reduction: D / R."""

    hidden: int | None = None
    segment: int | None = 16
    reduction: int = 4

    def __post_init__(self) -> None:
        require(self.hidden is None or self.hidden > 0, f"hidden must be positive, not {self.hidden}")
        require(self.segment is None or self.segment > 0, f"segment must be positive, not {self.segment}")
        require(self.reduction > 0, f"reduction must be positive, not {self.reduction}")


@dataclass(frozen=True, kw_only=True)
class RRWKVChannelConfig(RRWKVConfig):
    """hidden: F (None: 4 D); the rest as in the time mix."""


@state
class RRWKVState(NamedTuple):
    """shift: the last token (B,D); partial: sum of the unfinished segment, medium: the last one, (B,D) float32;

    num, den, peak: the average's sums and their scale (B,E), float32; clock: (B,2).
    """

    shift: Tensor
    partial: Tensor
    medium: Tensor
    num: Tensor
    den: Tensor
    peak: Tensor
    clock: Tensor


@state
class RRWKVChannelState(NamedTuple):
    """shift, partial, medium as in the time mix; clock: (B,2)."""

    shift: Tensor
    partial: Tensor
    medium: Tensor
    clock: Tensor


class Read(NamedTuple):
    """What mediums come to in a call.

    latest: (B,T,D), what each token reads. made: (B,N,D), the medium of each segment of the call, 0 where unfinished.
    which: (B,T), the segment of a token. ends: (B,T) bool, the last token of a finished one. partial, medium: the new state.
    """

    latest: Tensor
    made: Tensor
    which: Tensor
    ends: Tensor
    partial: Tensor
    medium: Tensor


class Mediums(nn.Module):
    """Squeeze and excitation of finished segments."""

    def __init__(self, width: int, segment: int, reduction: int) -> None:
        super().__init__()
        self.segment = segment
        self.squeeze = nn.Linear(width, max(1, width // reduction))
        self.excite = nn.Linear(self.squeeze.out_features, width)

    def reset_parameters(self) -> None:
        """As PyTorch's linear maps."""
        self.squeeze.reset_parameters()
        self.excite.reset_parameters()

    def forward(self, x: Tensor, partial: Tensor | None, medium: Tensor | None, time: Timeline, clock: Tensor | None) -> Read:
        """X (B,T,D), the state's partial sum and medium (B,D) and its clock."""
        batch, length, width = x.shape
        kind = torch.float64 if x.dtype == torch.float64 else torch.float32
        zero = torch.zeros(batch, width, dtype=kind, device=x.device)
        partial, medium = (zero if each is None else each.to(kind) for each in (partial, medium))
        rows, valid = torch.arange(batch, device=x.device)[:, None], time.valid(length)
        places = time.positions.expand(batch, length)
        begins = places % self.segment == 0
        ends = places % self.segment == self.segment - 1
        if valid is not None:
            begins, ends, x = begins & valid, ends & valid, x.masked_fill(~valid[..., None], 0.0)
        begins = begins.clone()
        begins[:, 0] = True
        which = begins.long().cumsum(1) - 1
        count = int(which[:, -1].max()) + 1
        sums = torch.zeros(batch * count, width, dtype=kind, device=x.device)
        sums = sums.index_add(0, (rows * count + which).flatten(), x.to(kind).flatten(0, 1)).view(batch, count, width)
        carried = (places[:, 0] % self.segment != 0)[:, None]
        sums = torch.cat([(sums[:, 0] + partial.where(carried, zero))[:, None], sums[:, 1:]], 1)

        row, at = ends.nonzero(as_tuple=True)
        z = (sums[row, which[row, at]] / self.segment).to(x.dtype)
        new = torch.sigmoid(self.excite(torch.relu(self.squeeze(z)))) * z
        made = torch.zeros_like(sums).index_put((row, which[row, at]), new.to(kind))
        before = torch.cat([medium[:, None], made[:, :-1]], 1)  # of every segment, the medium of the one before it
        latest = before[rows, which].masked_fill((places < self.segment)[..., None], 0.0)

        position, last = time.clock[:, 1:], which[:, -1:]
        whole, empty = position % self.segment == 0, None if valid is None else ~valid.any(1, keepdim=True)
        after = made[rows[:, 0], last[:, 0]].where(whole, before[rows[:, 0], last[:, 0]]).masked_fill(position < self.segment, 0.0)
        rest = sums[rows[:, 0], last[:, 0]].masked_fill(whole, 0.0)
        if empty is not None:
            after, rest = torch.where(empty, medium, after), torch.where(empty, partial, rest)
        return Read(latest.to(x.dtype), made.to(x.dtype), which, ends, rest, after)

    def step(self, h: Tensor, partial: Tensor, medium: Tensor, run: Stepping, write: Callable[[Tensor, Tensor], None] | None = None) -> Step:
        """One token, h (B,D), of every row: a row whose segment it ends has another medium from then on, for `write` too.

        partial, medium: (B,D), overwritten. write: takes the rows (B,1) bool, and mediums (B,D).
        """
        places, size = run.positions.numpy(), self.segment

        def step() -> None:
            partial.add_(h)
            ended = places % size == size - 1
            if ended.any():
                rows, z = torch.from_numpy(ended)[:, None], partial / size
                new = torch.sigmoid(self.excite(torch.relu(self.squeeze(z)))) * z
                medium.copy_(torch.where(rows, new, medium))
                partial.masked_fill_(rows, 0.0)
                if write is not None:
                    write(rows, new)

        return step

    def flops(self, length: int) -> int:
        """Both maps, for every finished segment."""
        return (length // self.segment) * 4 * self.squeeze.weight.numel()


class RRWKV(Mixer):
    """The time mix."""

    Config = RRWKVConfig
    State = RRWKVState
    config: RRWKVConfig
    examples = ({"segment": 5}, {"hidden": 40, "segment": 1, "reduction": 8})

    def __init__(self, config: RRWKVConfig, place: Place) -> None:
        super().__init__(config, place)
        self.hidden = config.hidden or place.width
        self.mix_k = nn.Parameter(torch.empty(place.width))
        self.mix_v = nn.Parameter(torch.empty(place.width))
        self.mix_r = nn.Parameter(torch.empty(place.width))
        self.time_decay = nn.Parameter(torch.empty(self.hidden))
        self.time_first = nn.Parameter(torch.empty(self.hidden))
        self.key = nn.Linear(place.width, self.hidden, bias=False)
        self.value = nn.Linear(place.width, self.hidden, bias=False)
        self.receptance = nn.Linear(place.width, self.hidden, bias=False)
        self.out = nn.Linear(self.hidden, place.width, bias=False)
        self.mediums = Mediums(place.width, config.segment, config.reduction) if config.segment else None
        self.reads = nn.Parameter(torch.empty(3, place.width)) if config.segment else None  # nu of k, v, r
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As RWKV-4's (2305.13048, appendix E): keys, gates and the way out start at zero; so does the reading of mediums."""
        reset_time_mix(self)
        if self.mediums is not None and self.reads is not None:
            self.mediums.reset_parameters()
            nn.init.zeros_(self.reads)
            no_decay(self.reads)

    def mix(self, x: Tensor, state: RRWKVState | None, ctx: Context) -> tuple[Tensor, RRWKVState]:
        time = ctx.timeline
        ratios, linears = (self.mix_k, self.mix_v, self.mix_r), (self.key, self.value, self.receptance)
        earlier = None if state is None else state.shift
        before = None if state is None else (state.num, state.den, state.peak)
        w_log = -self.time_decay.exp()
        if self.mediums is None or self.reads is None:
            partial = medium = torch.zeros(len(x), 0, device=x.device)
            (k, v, r), shift = mixed_linears(x, ratios, earlier, time, linears)
            y, after = wkv4(k, v, w_log, self.time_first, before, time.starts, time.lengths)
        else:
            past = (None, None, None) if state is None else (state.partial, state.medium, state.clock)
            read = self.mediums(x, past[0], past[1], time, past[2])
            (k, v, r), shift = mixed_linears(x, ratios, earlier, time, linears, (self.reads, read.latest))
            y, after = self._average(k, v, w_log, before, read, time)
            partial, medium = read.partial, read.medium
        y = linear_of(sigmoid_gate, self.out, r, y)
        return y, RRWKVState(shift, partial, medium, *after, time.clock)

    def stepper(self, norm: RowNorm, state: RRWKVState, run: Stepping) -> Step | None:
        maps = (self.key, self.value, self.receptance)
        if not plain_linear(*maps, self.out):
            return None
        ratios = torch.stack([self.mix_k, self.mix_v, self.mix_r]).detach()
        h, p, (k, v, r, y) = torch.empty_like(run.x), run.x.new_empty(3, *run.x.shape), run.x.new_empty(4, len(run.x), self.hidden)
        w_log, sums = -self.time_decay.detach().exp(), (state.num.clone(), state.den.clone(), state.peak.clone())
        partial, medium = state.partial.clone(), state.medium.clone()

        def write(rows: Tensor, new: Tensor) -> None:
            after = wkv4_step(self.key(new)[:, None], self.value(new)[:, None], w_log, self.time_first, sums)[1]
            for own, other in zip(sums, after, strict=True):
                own.copy_(torch.where(rows, other, own))

        steps = [row_norm_into(run.x, norm, h), mix_step(h, state.shift.float().clone(), ratios, p), *_reading(self.reads, medium, p)]
        steps += [linear_step(p[n], linear, into) for n, (linear, into) in enumerate(zip(maps, (k, v, r), strict=True))]
        steps += [average_step(k, v, r, w_log, self.time_first, sums, y), linear_step(y, self.out, run.x, add=True)]
        return in_order(*steps, *([] if self.mediums is None else [self.mediums.step(h, partial, medium, run, write)]))

    def _average(self, k: Tensor, v: Tensor, w_log: Tensor, before: Any, read: Read, time: Timeline) -> tuple[Tensor, Any]:
        """The average over the stream of tokens with mediums put between them, read at the tokens."""
        batch, length, _ = k.shape
        inserted = read.ends.long().cumsum(1)
        if not bool(inserted[:, -1].any()):
            return wkv4(k, v, w_log, self.time_first, before, time.starts, time.lengths)
        rows, steps = torch.arange(batch, device=k.device)[:, None], torch.arange(length, device=k.device)
        slots = steps + inserted - read.ends.long()
        total = length + int(inserted[:, -1].max())
        source = torch.full((batch, total), length, dtype=torch.int64, device=k.device)
        source[rows, slots] = steps.expand(batch, -1)
        row, at = read.ends.nonzero(as_tuple=True)
        source[row, slots[row, at] + 1] = length + read.which[row, at]
        picked = row, read.which[row, at]
        made = read.made[picked]
        k, v = (
            torch.cat([each, each.new_zeros(*read.made.shape[:2], self.hidden).index_put(picked, linear(made).to(each.dtype))], 1)
            for each, linear in ((k, self.key), (v, self.value))
        )
        lengths = (length if time.lengths is None else time.lengths) + inserted[:, -1]
        starts = None
        if time.starts is not None:
            starts = torch.zeros(batch, total, dtype=torch.bool, device=k.device)
            starts[rows, slots] = time.starts
        ragged = time.lengths is not None or bool((inserted[:, -1] != inserted[0, -1]).any())
        y, after = wkv4(k[rows, source], v[rows, source], w_log, self.time_first, before, starts, lengths if ragged else None)
        return y[rows, slots], after

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> RRWKVState:
        """Nothing seen; the sums are float32 unless `dtype` is float64."""
        kind = torch.float64 if dtype == torch.float64 else torch.float32
        shift = torch.zeros(batch, self.place.width, device=device, dtype=dtype)
        partial, medium = torch.zeros(2, batch, self.place.width if self.config.segment else 0, device=device, dtype=kind)
        return RRWKVState(shift, partial, medium, *wkv4_initial(batch, self.hidden, device, kind), fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        """Constant in the length."""
        number = self.key.weight.element_size()
        sums = 3 * self.hidden + (2 * self.place.width if self.config.segment else 0)
        return max(4, number) * sums + number * self.place.width

    def flops(self, length: int) -> int:
        """The four projections, and what every medium takes; the average itself (some 20 E) is not counted."""
        own = 8 * self.place.width * self.hidden * length
        if self.mediums is None:
            return own
        return own + self.mediums.flops(length) + (length // self.mediums.segment) * 4 * self.place.width * self.hidden


def _reading(shares: Tensor | None, medium: Tensor, p: Tensor) -> list[Step]:
    """p (M,B,D) += nu medium, nu (M,D), medium (B,D); nothing without mediums."""
    if shares is None:
        return []
    nu = shares.detach()[:, None]
    return [lambda: cast(None, p.addcmul_(nu, medium))]


class RRWKVChannel(Part):
    """The channel mix."""

    Config = RRWKVChannelConfig
    State = RRWKVChannelState
    config: RRWKVChannelConfig

    def __init__(self, config: RRWKVChannelConfig, place: Place) -> None:
        super().__init__(config, place)
        self.hidden = config.hidden or 4 * place.width
        self.mix_k = nn.Parameter(torch.empty(place.width))
        self.mix_r = nn.Parameter(torch.empty(place.width))
        self.key = nn.Linear(place.width, self.hidden, bias=False)
        self.receptance = nn.Linear(place.width, place.width, bias=False)
        self.value = nn.Linear(self.hidden, place.width, bias=False)
        self.mediums = Mediums(place.width, config.segment, config.reduction) if config.segment else None
        self.reads = nn.Parameter(torch.empty(2, place.width)) if config.segment else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Mixtures as in the time mix; gate, way out and the reading of mediums start at zero."""
        reset_channel_mix(self)
        if self.mediums is not None and self.reads is not None:
            self.mediums.reset_parameters()
            nn.init.zeros_(self.reads)
            no_decay(self.reads)

    def mix(self, x: Tensor, state: RRWKVChannelState | None, ctx: Context) -> tuple[Tensor, RRWKVChannelState]:
        time = ctx.timeline
        added, partial = None, torch.zeros(len(x), 0, device=x.device)
        medium = partial
        if self.mediums is not None and self.reads is not None:
            past = (None, None, None) if state is None else (state.partial, state.medium, state.clock)
            read = self.mediums(x, past[0], past[1], time, past[2])
            partial, medium, added = read.partial, read.medium, (self.reads, read.latest)
        ratios, linears = (self.mix_k, self.mix_r), (self.key, self.receptance)
        (k, r), shift = mixed_linears(x, ratios, None if state is None else state.shift, time, linears, added)
        y = sigmoid_gate(r, self.value(relu_square(k)))
        return y, RRWKVChannelState(shift, partial, medium, time.clock)

    def stepper(self, norm: RowNorm, state: RRWKVChannelState, run: Stepping) -> Step | None:
        if not plain_linear(self.key, self.value, self.receptance):
            return None
        h, gate, z = run.x.new_empty(3, *run.x.shape)
        p, wide = run.x.new_empty(2, *run.x.shape), run.x.new_empty(len(run.x), self.hidden)
        partial, medium = state.partial.clone(), state.medium.clone()
        ratios = torch.stack([self.mix_k, self.mix_r]).detach()
        steps = [row_norm_into(run.x, norm, h), mix_step(h, state.shift.float().clone(), ratios, p), *_reading(self.reads, medium, p)]
        steps += [linear_step(p[0], self.key, wide, activation="relu2"), linear_step(wide, self.value, z)]
        steps += [linear_step(p[1], self.receptance, gate, activation="sigmoid"), gate_step(gate, z, run.x)]
        return in_order(*steps, *([] if self.mediums is None else [self.mediums.step(h, partial, medium, run)]))

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> RRWKVChannelState:
        """Nothing seen."""
        kind = torch.float64 if dtype == torch.float64 else torch.float32
        shift = torch.zeros(batch, self.place.width, device=device, dtype=dtype)
        partial, medium = torch.zeros(2, batch, self.place.width if self.config.segment else 0, device=device, dtype=kind)
        return RRWKVChannelState(shift, partial, medium, fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        """Constant in the length."""
        number = self.key.weight.element_size()
        return self.place.width * (number + (2 * max(4, number) if self.config.segment else 0))

    def flops(self, length: int) -> int:
        """The three projections, and what every medium takes."""
        own = 2 * self.place.width * (2 * self.hidden + self.place.width) * length
        return own + (0 if self.mediums is None else self.mediums.flops(length))


ARCHITECTURE = Architecture(
    block=BlockConfig(mixer={"name": "rrwkv"}, channel={"name": "rrwkv"}, norm="layernorm", eps=1e-5),
    frame={"tied": False, "norm": "layernorm", "eps": 1e-5, "embed_norm": True, "embed_std": 1e-4},
    width_step=32,
    fine_ratio=4.0,
)

register(
    "rrwkv",
    mixer="RRWKV",
    channel="RRWKVChannel",
    architecture="ARCHITECTURE",
    summary="RWKV-4 with mediums, abstracts of past segments (reconstruction of a withdrawn paper)",
    paper="2306.05176",
    year=2023,
    tags=("causal", "recurrent", "parallel", "zero-start"),
)
