"""N-gram head: static attention to what followed the last n tokens wherever they stood before.

Paper: In-Context Language Learning: Architectures and Algorithms (arXiv 2401.12973, section 6).

Equation: J(i) = { j < i : the n tokens that end at j - 1 are the n tokens that end at i };
    y_i = W0 mean_{j in J(i)} h_j + W1 h_i,  with biases; the mean over nothing is 0

Shapes: B batch, T time, D width, S tokens seen of the current document, n order.

Cost: train, prefill O(n T log T) comparisons (links by sorting) and O(T D) sums, 2 D^2 multiply-adds a token; decode O(n S)
    comparisons, O(D) sums; state: a sum of D numbers, a count and an id for every token seen.

Differs from the paper: the same function in O(T D) instead of O(T^2 D): tokens are linked to the last earlier occurrence of
    their n-gram, and sums run along the links.

Oracle: tests/oracles/ngram_head.py (float64, comparing all pairs).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orrery.core.config import require
from orrery.core.errors import ConfigError
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig
from orrery.nn.contract import Context, Mixer, PartConfig, Place
from orrery.nn.state import state
from orrery.nn.timeline import Timeline, fresh_clock
from orrery.ops.linked_sums import earlier_same, linked_sums


@dataclass(frozen=True, kw_only=True)
class NgramHeadConfig(PartConfig):
    """order: n, the tokens that have to agree, the present one among them."""

    order: int = 1

    def __post_init__(self) -> None:
        require(self.order > 0, f"order must be positive, not {self.order}")


@state
class NgramHeadState(NamedTuple):
    """The current document: row b holds `position` tokens, from slot 0 on.

    tokens: (B,S) int64. counts: (B,S) int64, occurrences of the n-gram that ends at a slot, itself among them. sums: (B,S,D)
    float32, the inputs that followed these; what follows the last token is not in yet. clock: (B,2).
    """

    tokens: Tensor
    counts: Tensor
    sums: Tensor
    clock: Tensor

    def with_capacity(self, capacity: int) -> NgramHeadState:
        """The same in buffers of at least `capacity` slots."""
        more = capacity - self.tokens.shape[1]
        if more <= 0:
            return self
        tokens, counts = F.pad(self.tokens, (0, more)), F.pad(self.counts, (0, more))
        return NgramHeadState(tokens, counts, F.pad(self.sums, (0, 0, 0, more)), self.clock)


class NgramHead(Mixer):
    """One static n-gram head with its two linear maps."""

    Config = NgramHeadConfig
    State = NgramHeadState
    config: NgramHeadConfig
    examples = ({"order": 1}, {"order": 3})

    def __init__(self, config: NgramHeadConfig, place: Place) -> None:
        super().__init__(config, place)
        self.followed = nn.Linear(place.width, place.width)
        self.present = nn.Linear(place.width, place.width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Matrices and biases uniform +-1/sqrt(D), PyTorch's choice, which the paper's code keeps."""
        bound = self.place.width**-0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def mix(self, x: Tensor, state: NgramHeadState | None, ctx: Context) -> tuple[Tensor, NgramHeadState]:
        if ctx.tokens is None:
            raise ConfigError(
                "an n-gram head compares token ids and was given none; pass tokens, or embeds together with ctx.tokens"
            )
        time = ctx.timeline
        if state is None:
            state = self.init_state(len(x), x.device, x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            h = x.double() if state.sums.dtype == torch.float64 else x.float()
            if x.shape[1] == 1 and time.starts is None and time.lengths is None:
                mean, state = self._step(h, state, ctx.tokens, ctx)
            else:
                mean, state = self._whole(h, state, ctx.tokens, time)
        return self.followed(mean.to(x.dtype)) + self.present(x), state

    def _whole(self, h: Tensor, state: NgramHeadState, tokens: Tensor, time: Timeline) -> tuple[Tensor, NgramHeadState]:
        """Any number of tokens. The stream of a row is what it holds, in the last of `old` columns, then its T new tokens."""
        batch, length, _ = h.shape
        rows, steps = torch.arange(batch, device=h.device)[:, None], torch.arange(length, device=h.device)
        old, held = time.past, state.clock[:, 1:]
        slots = torch.arange(old, device=h.device) - (old - held)  # of the stream's first columns, negative: empty
        at = slots.clamp(min=0)
        valid = time.valid(length)
        opens = torch.zeros_like(tokens, dtype=torch.bool) if time.starts is None else time.starts
        positions = time.positions.expand(batch, length)
        positions = positions if valid is None else positions.masked_fill(~valid, -1)
        stream = torch.cat([state.tokens[rows, at], tokens], 1)
        documents = torch.cat([torch.zeros_like(slots), opens.long().cumsum(1)], 1)
        link = earlier_same(stream, documents, torch.cat([slots, positions], 1), self.config.order)

        last = F.pad(opens[:, 1:], (0, 1), value=True)  # nothing follows this token, or not in this call
        if time.lengths is not None:
            last = last | (steps >= time.lengths[:, None] - 1)
        gathered = state.sums[rows, at].masked_fill(slots[..., None] < 0, 0.0)
        if old:  # what follows the last token held is known now
            closed = (held == 0) | opens[:, :1] if valid is None else (held == 0) | opens[:, :1] | ~valid[:, :1]
            joined = gathered[:, -1] + h[:, 0].masked_fill(closed, 0.0)
            gathered = torch.cat([gathered[:, :-1], joined[:, None]], 1)
        following = F.pad(h[:, 1:], (0, 0, 0, 1)).masked_fill(last[..., None], 0.0)
        inner = torch.cat([torch.full_like(slots, -1), link[:, old:]], 1)  # what is held is summed already
        sums = linked_sums(torch.cat([gathered, following], 1), inner)
        ones = torch.ones_like(tokens, dtype=torch.float64)
        counts = linked_sums(torch.cat([state.counts[rows, at].double(), ones], 1)[..., None], inner)[..., 0].long()

        query = link[:, old:]
        itself = query == old + steps - 1  # the n-gram ended one token before too: its successor is the present token
        query = torch.where(itself & (query >= 0), link[rows, query.clamp(min=0)], query)
        mean = _mean(sums[rows, query.clamp(min=0)], counts[rows, query.clamp(min=0)], query >= 0)
        new = torch.full_like(held, length) if time.lengths is None else time.lengths[:, None]
        kept = [_keep(part, old + new, time) for part in (stream, counts, sums)]
        return mean, NgramHeadState(kept[0], kept[1], kept[2], time.clock)

    def _step(self, h: Tensor, state: NgramHeadState, tokens: Tensor, ctx: Context) -> tuple[Tensor, NgramHeadState]:
        """One token that continues a document: h (B,1,D), tokens (B,1)."""
        order, time, held = self.config.order, ctx.timeline, state.clock[:, 1:]
        old, rows = time.past, torch.arange(len(h), device=h.device)[:, None]
        slots = torch.arange(old, device=h.device)
        same = (slots < held) & (state.tokens[:, :old] == tokens) & (slots >= order - 1) & (held >= order - 1)
        for back in range(1, order if old else 1):
            earlier = state.tokens[rows, (held - back).clamp(min=0)]
            same = same & (F.pad(state.tokens[:, : max(0, old - back)], (min(back, old), 0), value=-1) == earlier)
        place = torch.where(same, slots, -1)
        query, link = (_last(each) for each in (torch.where(slots < held - 1, place, -1), place))
        donated = ctx.donate and old < state.tokens.shape[1]
        tokens_, counts, sums = state.tokens, state.counts, state.sums
        if not donated:
            tokens_, counts, sums = (
                F.pad(each[:, :old], (0, 0) * (each.dim() - 2) + (0, 1)) for each in (tokens_, counts, sums)
            )
        at, on = query.clamp(min=0), query >= 0
        mean = _mean(sums[rows, at], counts[rows, at], on)
        before, at, on = (held - 1).clamp(min=0), link.clamp(min=0), link >= 0
        joined = sums[rows, before] + h
        own = sums[rows, at].where((at != before)[..., None], joined).masked_fill(~on[..., None], 0.0)
        number = torch.where(on, counts[rows, at], 0) + 1
        joined = joined.where((held > 0)[..., None], own)
        if donated:
            sums[rows, before], sums[rows, held] = joined, own
            counts[rows, held], tokens_[rows, held] = number, tokens
        else:
            sums = sums.index_put((rows, before), joined).index_put((rows, held), own)
            counts, tokens_ = counts.index_put((rows, held), number), tokens_.index_put((rows, held), tokens)
        return mean, NgramHeadState(tokens_, counts, sums, time.clock)

    def init_state(
        self, batch: int, device: Any = None, dtype: torch.dtype | None = None, capacity: int = 0
    ) -> NgramHeadState:
        """No tokens yet; `capacity` slots are set aside for a caller that donates its state."""
        kind = torch.float64 if dtype == torch.float64 else torch.float32
        numbers = torch.zeros(2, batch, capacity, dtype=torch.int64, device=device)
        sums = torch.zeros(batch, capacity, self.place.width, dtype=kind, device=device)
        return NgramHeadState(numbers[0], numbers[1], sums, fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        """An id, a count and a sum for every token."""
        return length * (16 + self.place.width * max(4, self.present.weight.element_size()))

    def flops(self, length: int) -> int:
        """The two linear maps; a sum and a mean of D numbers a token."""
        return (4 * self.place.width**2 + 2 * self.place.width) * length


def _mean(sums: Tensor, counts: Tensor, on: Tensor) -> Tensor:
    """Sums (B,T,D) over counts (B,T), zero where `on` (B,T) is not."""
    return (sums / counts.clamp(min=1)[..., None]).masked_fill(~on[..., None], 0.0)


def _last(places: Tensor) -> Tensor:
    """The greatest of places (B,S), -1 where there is none: (B,1)."""
    return places.amax(1, keepdim=True) if places.shape[1] else places.new_full((len(places), 1), -1)


def _keep(part: Tensor, ends: Tensor, time: Timeline) -> Tensor:
    """Of every row's stream, which ends before column `ends` (B,1), the last `position` columns, from slot 0 on."""
    if time.even and time.starts is None and time.lengths is None:
        return part
    kept = time.clock[:, 1:]
    slots = torch.arange(int(kept.max()), device=ends.device)
    columns, rows = (ends - kept + slots).clamp(max=part.shape[1] - 1), torch.arange(len(ends), device=ends.device)[:, None]
    empty = slots >= kept
    return part[rows, columns].masked_fill(empty if part.dim() == 2 else empty[..., None], 0)


ARCHITECTURE = Architecture(
    block=BlockConfig(mixer={"name": "ngram-head"}, norm="layernorm", eps=1e-5),
    frame={"tied": True},
    width_step=8,
    fine="",
)

TRANSFORMER = Architecture(
    pattern="transformer*2 + ngram-head + ngram-head(order=2) + ngram-head(order=3) + transformer",
    frame={"tied": True},
    presets={
        "ngram-transformer-340m": {
            "pattern": "transformer*2 + ngram-head + ngram-head(order=2) + ngram-head(order=3) + transformer*22",
            "width": 1024, "depth": 27, "vocab_size": 32000,
        }
    },
)  # fmt: skip

RETNET = Architecture(
    pattern="retnet*2 + ngram-head + ngram-head(order=2) + ngram-head(order=3) + retnet",
    frame={"tied": True},
    presets={
        "ngram-retnet-340m": {
            "pattern": "retnet*2 + ngram-head + ngram-head(order=2) + ngram-head(order=3) + retnet*22",
            "width": 1024, "depth": 27, "vocab_size": 32000,
        }
    },
)  # fmt: skip

register(
    "ngram-head",
    mixer="NgramHead",
    architecture="ARCHITECTURE",
    summary="In-context n-gram head: static attention to what followed earlier occurrences of the last n tokens",
    paper="2401.12973",
    year=2024,
    tags=("causal", "parallel", "cache", "tokens"),
)

register(
    "ngram-transformer",
    architecture="TRANSFORMER",
    summary="Transformer with n-gram heads of orders 1, 2 and 3 after its second layer",
    paper="2401.12973",
    year=2024,
    tags=("causal", "parallel", "cache", "tokens"),
    presets=("ngram-transformer-340m",),
)

register(
    "ngram-retnet",
    architecture="RETNET",
    summary="RetNet with n-gram heads of orders 1, 2 and 3 after its second layer",
    paper="2401.12973",
    year=2024,
    tags=("causal", "parallel", "cache", "tokens"),
    presets=("ngram-retnet-340m",),
)
