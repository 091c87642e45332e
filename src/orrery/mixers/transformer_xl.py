"""Transformer-XL: attention to a memory of the last M tokens, with positions relative to the query.

Paper: Transformer-XL: Attentive Language Models Beyond a Fixed-Length Context (arXiv 1901.02860).

Equation: per head  a_ts = ((q_t + u).k_s + (q_t + v).W_r R_{t-s}) / sqrt(K)  for 0 <= t - s <= M, same document;
    y_t = sum_s softmax_s(a_ts) v_s;  R_d = [sin(d f), cos(d f)], f_i = 10000^(-2i/D);  out = W_o [y of all heads]

Shapes: B batch, T time, D width, H heads, K head dimension, M memory, S columns (memory and new tokens).

Cost: train and prefill O(T (M + block) H K) beside the projections; decode O(M H K) a token; state 2 H K min(S, M) numbers.

Differs from the paper: every token sees exactly its M predecessors, where the paper's segments give the first token of a
    segment M and the last M + T - 1; so a sequence may be cut anywhere. The memory is not detached here: what stops
    gradients is the trainer. u and v belong to each layer. The adaptive softmax is left out, and the embedding is not multiplied by
    sqrt(D); matrices start by width and the way out by depth, where the published code has a deviation of 0.02 for all.

Oracle: tests/oracles/transformer_xl.py (float64 loops); transformers has dropped this architecture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig
from orrery.nn.contract import Context, Mixer, PartConfig, Place
from orrery.nn.heads import check_heads, count_heads
from orrery.nn.kept import kept
from orrery.nn.marks import no_decay
from orrery.nn.memory import columns, distances, join, keep
from orrery.nn.projection import Projection
from orrery.nn.state import state
from orrery.nn.stepping import Step, Stepping, in_order, linear_step, plain_linear
from orrery.nn.timeline import fresh_clock
from orrery.nn.unchanged import listened_to
from orrery.ops.steps.relative_attention import relative_attention_step
from orrery.ops.steps.row_linear import RowNorm

_BLOCK = 256  # queries that look at their part of the past together


@dataclass(frozen=True, kw_only=True)
class TransformerXLConfig(PartConfig):
    """memory: M. heads None: width / head_dim. bias: of the projections. init_std None: sqrt(2 / 5D)."""

    memory: int = 512
    heads: int | None = None
    head_dim: int = 64
    bias: bool = False
    dropout: float = 0.0
    init_std: float | None = None

    def __post_init__(self) -> None:
        require(self.memory > 0, f"memory must be positive, not {self.memory}")
        check_heads(self, even=False)
        require(0 <= self.dropout < 1, f"dropout must lie in [0, 1), not {self.dropout}")


@state
class TransformerXLState(NamedTuple):
    """Keys and values of the last min(position, M) tokens of the document, from slot 0 on.

    k, v: (B,S,H,K); conv: the projection's last inputs; clock: (B,2).
    """

    k: Tensor
    v: Tensor
    conv: Tensor
    clock: Tensor


class TransformerXL(Mixer):
    """Relative attention over a sliding memory."""

    Config = TransformerXLConfig
    State = TransformerXLState
    config: TransformerXLConfig
    examples = ({"head_dim": 8, "memory": 7}, {"head_dim": 16, "memory": 20, "bias": True})

    def __init__(self, config: TransformerXLConfig, place: Place) -> None:
        super().__init__(config, place)
        self.head_dim = config.head_dim
        self.heads = count_heads(config, place)
        require(place.width % 2 == 0, f"relative positions are pairs of sine and cosine; width {place.width} is odd")
        inner = self.heads * self.head_dim
        self.inputs = Projection(place, 3 * inner, bias=config.bias)
        self.relative = nn.Linear(place.width, inner, bias=False)
        self.content_bias = nn.Parameter(torch.empty(self.heads, self.head_dim))  # u
        self.position_bias = nn.Parameter(torch.empty(self.heads, self.head_dim))  # v
        self.out = nn.Linear(inner, place.width, bias=config.bias)
        self._table: tuple[Tensor, Tensor] | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal with std sqrt(2 / 5D) or as configured, u and v too; the way out is scaled by 1/sqrt(2 depth)."""
        std = self.config.init_std or math.sqrt(2 / (5 * self.place.width))
        for weight in (self.inputs.linear.weight, self.relative.weight, self.content_bias, self.position_bias):
            nn.init.normal_(weight, std=std)
        no_decay(self.content_bias, self.position_bias)
        nn.init.normal_(self.out.weight, std=std / math.sqrt(2 * self.place.depth))
        for linear in (self.inputs.linear, self.out):
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        if self.inputs.conv is not None:
            self.inputs.conv.reset_parameters()

    def mix(self, x: Tensor, state: TransformerXLState | None, ctx: Context) -> tuple[Tensor, TransformerXLState]:
        time, memory = ctx.timeline, self.config.memory
        q, k, v, conv = self._project(x, state, ctx)
        clock = None if state is None else state.clock
        old, total, pieces = columns(time, memory), k.shape[1], []
        for low in range(0, x.shape[1], _BLOCK):
            high = min(low + _BLOCK, x.shape[1])
            begin, end = max(0, old + low - memory) if low >= memory else 0, total - x.shape[1] + high
            far = distances(time, clock, x.shape[1], memory, slice(low, high), slice(begin, end))
            scores = self._bias(q[:, low:high], far, time.starts is None and time.even)
            pieces.append(self._attend(q[:, low:high], k[:, begin:end], v[:, begin:end], scores))
        y = pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)
        kept = keep((k, v), time, clock, memory)
        return self.out(y), TransformerXLState(kept[0], kept[1], conv, time.clock)

    def _project(self, x: Tensor, state: TransformerXLState | None, ctx: Context) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Q (B,T,H,K); k and v (B,S,H,K) with what the memory holds; the projection's last inputs."""
        p, conv = self.inputs(x, None if state is None else state.conv, ctx)
        q, k, v = p.unflatten(-1, (3, self.heads, self.head_dim)).unbind(2)
        memory = self.config.memory
        k, v = (join(None if state is None else past, new, ctx.timeline, memory)
                for past, new in ((None if state is None else state.k, k), (None if state is None else state.v, v)))  # fmt: skip
        return q, k, v, conv

    def _bias(self, q: Tensor, far: Tensor, even: bool) -> Tensor:
        """(q + v).W_r R_d / sqrt(K) at the distances `far` (1|B,T,S), -inf where it is negative: (B,H,T,S)."""
        length, total = far.shape[1:]
        reach = self._relative(total if even else int(far.max()) + 1)
        by_distance = torch.einsum("bthk,dhk->bhtd", q + self.position_bias, reach.to(q.dtype)) * self.head_dim**-0.5
        if even:  # distance falls by one from column to column and grows by one from row to row
            padded = F.pad(by_distance.flip(-1), (1, 0))
            scores = padded.view(*padded.shape[:2], total + 1, length)[:, :, 1:].reshape(*padded.shape[:2], length, total)
        else:
            scores = by_distance.gather(-1, far.clamp(min=0)[:, None].expand(len(q), self.heads, -1, -1))
        return scores.masked_fill((far < 0)[:, None], -math.inf)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, scores: Tensor) -> Tensor:
        """Q (B,T,H,K), k and v (B,S,H,K), scores (B,H,T,S) to add -> (B,T,H*K)."""
        q, k, v = ((q + self.content_bias).transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        dropout = self.config.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, scores.to(q.dtype), dropout).transpose(1, 2).flatten(2)

    def _relative(self, count: int) -> Tensor:
        """W_r R_d for d below `count`: (count,H,K). Without gradients rows are kept from call to call while W_r stays."""
        weight = self.relative.weight
        watched = type(self.relative) is not nn.Linear or listened_to((self.relative,))
        if watched or torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled(weight.device.type):
            return self.relative(_sinusoids(count, self.place.width, weight.device, weight.dtype)).unflatten(-1, (self.heads, -1))
        held = self._table
        if held is None or held[0].dtype != weight.dtype or held[0].device != weight.device or not torch.equal(held[0], weight):
            held = (weight.detach().clone(), weight.new_empty(0, self.heads, self.head_dim))
        if len(held[1]) < count:
            wanted = -(-count // 8) * 8
            new = self.relative(_sinusoids(wanted, self.place.width, weight.device, weight.dtype)[len(held[1]) :])
            held = (held[0], torch.cat([held[1], new.unflatten(-1, (self.heads, -1))]))
        self._table = held
        return held[1][:count]

    def stepper(self, norm: RowNorm, state: TransformerXLState, run: Stepping) -> Step | None:
        if not plain_linear(self.inputs.linear, self.relative, self.out):
            return None
        slots = min(self.config.memory + 1, run.capacity)
        p, y = run.x.new_empty(len(run.x), 3 * self.out.in_features), run.x.new_empty(len(run.x), self.out.in_features)
        k, v = (_ring(held, state.clock[:, 1], slots) for held in (state.k, state.v))
        relative = self._relative(slots).permute(1, 2, 0).contiguous()
        biases = self.content_bias, self.position_bias
        attend = relative_attention_step(p, k, v, run.positions, *biases, relative, y)
        return in_order(self.inputs.step(run.x, state.conv, p, norm), attend, linear_step(y, self.out, run.x, add=True))

    def transfer(self, x: Tensor, ctx: Context) -> Tensor:
        """The attention matrix (B,H,T,T) of a whole sequence; row t sums to 1."""
        q, k, _, _ = self._project(x, None, ctx)
        far = distances(ctx.timeline, None, x.shape[1], self.config.memory)
        content = torch.einsum("bthk,bshk->bhts", q + self.content_bias, k) * self.head_dim**-0.5
        return (content + self._bias(q, far, False)).softmax(-1)

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> TransformerXLState:
        """An empty memory."""
        k, v = (torch.zeros(batch, 0, self.heads, self.head_dim, device=device, dtype=dtype) for _ in range(2))
        return TransformerXLState(k, v, self.inputs.init_state(batch, device, dtype), fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        """Keys and values of at most M tokens."""
        kept = min(length, self.config.memory)
        return 2 * kept * self.heads * self.head_dim * self.out.weight.element_size() + self.inputs.state_bytes()

    def flops(self, length: int) -> int:
        """Projections, W_r of every distance once, and 6 H K for every pair: content, position, values."""
        window = min(self.config.memory + 1, length)
        pairs = window * (window + 1) // 2 + (length - window) * window
        inner = self.heads * self.head_dim
        return self.inputs.flops(length) + 2 * inner * self.place.width * (length + window) + 6 * inner * pairs


def _ring(held: Tensor, positions: Tensor, slots: int) -> Tensor:
    """Keys or values of a memory (B,S,H,K) as a ring (B,H,K,slots): those of position p in slot p mod slots."""
    ring = held.new_empty(len(held), *held.shape[2:], slots)  # a slot is read once it is written
    for row, position in enumerate(positions.tolist()):
        count = min(position, held.shape[1])
        ring[row][..., torch.arange(position - count, position) % slots] = held[row, :count].permute(1, 2, 0)
    return ring


@kept(8)
def _table(count: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        rates = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64, device=device) / width)
        angles = torch.arange(count, dtype=torch.float64, device=device)[:, None] * rates
        return torch.cat([angles.sin(), angles.cos()], 1).to(dtype)


def _sinusoids(count: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """R_d for d below `count`: (count,D)."""
    return _table(1 << max(6, (count - 1).bit_length()), width, device, dtype)[:count]


def _published(width: int, depth: int, head_dim: int, hidden: int, memory: int) -> dict[str, Any]:
    return {
        "width": width, "depth": depth, "vocab_size": 204, "mixer.heads": 8, "mixer.head_dim": head_dim,
        "mixer.memory": memory, "channel.hidden": hidden,
    }  # fmt: skip


ARCHITECTURE = Architecture(
    block=BlockConfig(
        mixer={"name": "transformer-xl"},
        channel={"name": "mlp", "activation": "relu", "bias": True},
        norm="layernorm",
        eps=1e-5,
        placement="post",
    ),
    frame={"tied": True, "norm": "layernorm", "eps": 1e-5},
    head="mixer.head_dim",
    fine_ratio=4.0,
    presets={
        "transformer-xl-41m": _published(512, 12, 64, 2048, 512),
        "transformer-xl-277m": _published(1024, 24, 128, 3072, 768),
    },
)

register(
    "transformer-xl",
    mixer="TransformerXL",
    architecture="ARCHITECTURE",
    summary="Transformer-XL: a sliding memory with relative positions and two biases",
    paper="1901.02860",
    year=2019,
    tags=("causal", "parallel", "cache", "positions"),
    presets=("transformer-xl-41m", "transformer-xl-277m"),
)
