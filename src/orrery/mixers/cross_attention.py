"""Cross-attention: a decoder's tokens look at what an encoder has read.

Paper: Attention Is All You Need (arXiv 1706.03762, section 3.2.3).

Equation: per head  y_t = sum_{s in M(t)} softmax_s( (W_q x_t) . (W_k m_s) / sqrt(K) ) W_v m_s;   y = W_o [y_1 .. y_H]
    M(t) = memory of the document of t (ctx.memory_segments), y_t = W_o 0 where it has none; all of it where no segments are given

Shapes: B batch, T time, M memory, D width, C width of the memory, H query heads, G key-value heads, K head dimension.

Cost: 4 H K M a token beside the projections; the memory's keys and values are computed once, 4 G K C a memory token, and are
    the state: 2 G K M numbers, however many tokens are decoded.

Differs from the paper: no positions of its own, as in the paper; biases are a setting.

Oracle: tests/oracles/cross_attention.py (float64 loops); transformers' T5 through the exchange map.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orrery.core.config import require
from orrery.core.errors import ConfigError, StateError
from orrery.core.registry import register
from orrery.nn.contract import Context, Mixer, PartConfig, Place
from orrery.nn.state import state
from orrery.nn.timeline import fresh_clock


@dataclass(frozen=True, kw_only=True)
class CrossAttentionConfig(PartConfig):
    """heads None: width / head_dim. kv_heads None: as many. memory_width None: the decoder's width. init_std None: sqrt(2 / 5D)."""

    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int = 64
    memory_width: int | None = None
    bias: bool = False
    dropout: float = 0.0
    init_std: float | None = None
    init_scaled: bool = True

    def __post_init__(self) -> None:
        require(self.head_dim > 0, f"head_dim must be positive, not {self.head_dim}")


@state
class CrossAttentionState(NamedTuple):
    """Keys and values of the memory (B,M,G,K), the segments of its tokens (B,M) int64 (B,0: one document, no padding); clock (B,2)."""

    k: Tensor
    v: Tensor
    segments: Tensor
    clock: Tensor


class CrossAttention(Mixer):
    """Attention to `ctx.memory`; a state holds the memory's keys and values, and is used in its place."""

    Config = CrossAttentionConfig
    State = CrossAttentionState
    config: CrossAttentionConfig
    packs = True
    honours = frozenset({"memory", "positions", "bias"})  # positions and biases are those of self-attention
    examples = ({"head_dim": 8}, {"head_dim": 16, "heads": 4, "kv_heads": 2, "bias": True})

    def __init__(self, config: CrossAttentionConfig, place: Place) -> None:
        super().__init__(config, place)
        self.head_dim = config.head_dim
        self.heads = config.heads or place.width // config.head_dim
        self.kv_heads = config.kv_heads or self.heads
        require(self.heads > 0 and self.heads % self.kv_heads == 0, f"kv_heads {self.kv_heads} must divide heads {self.heads}")
        inner = self.heads * self.head_dim
        self.memory_width = config.memory_width or place.width
        self.query = nn.Linear(place.width, inner, bias=config.bias)
        self.memory = nn.Linear(self.memory_width, 2 * self.kv_heads * self.head_dim, bias=config.bias)  # keys, then values
        self.out = nn.Linear(inner, place.width, bias=config.bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal with std sqrt(2 / 5 fan-in) or as configured; the way out by 1/sqrt(2 depth) less; biases 0."""
        for linear in (self.query, self.memory, self.out):
            nn.init.normal_(linear.weight, std=self.config.init_std or math.sqrt(2 / (5 * linear.in_features)))
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        if self.config.init_scaled:
            with torch.no_grad():
                self.out.weight.div_(math.sqrt(2 * self.place.depth))

    def mix(self, x: Tensor, state: CrossAttentionState | None, ctx: Context) -> tuple[Tensor, CrossAttentionState]:
        packing = ctx.packing
        if packing is not None:  # rows for the scores, which are each row's own; maps for the valid tokens only
            held, given = self._memory(packing.batch, state, ctx), cast(Tensor, ctx.segments)
            ctx = ctx.replace(segments=packing.spread(given))
            q = packing.spread(self.query(x))
        else:
            held, q = self._memory(len(x), state, ctx), self.query(x)
        q = q.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
        mask, blind = self._mask(held, ctx)
        dropout = self.config.dropout if self.training else 0.0
        grouped = self.kv_heads != self.heads
        y = F.scaled_dot_product_attention(q, held.k.transpose(1, 2), held.v.transpose(1, 2), mask, dropout, enable_gqa=grouped)
        y = y.transpose(1, 2).flatten(2)
        y = y if blind is None else y.masked_fill(blind, 0.0)
        return self.out(y if packing is None else packing.gather(y)), held._replace(clock=ctx.timeline.clock)

    def _memory(self, batch: int, state: CrossAttentionState | None, ctx: Context) -> CrossAttentionState:
        """What is read: the state's keys and values, else those of ctx.memory."""
        if state is not None and state.k.shape[1]:
            return state
        memory, segments = ctx.memory, ctx.memory_segments
        if memory is None:
            raise ConfigError("cross-attention has nothing to read: pass ctx.memory (batch, memory, width), or the state of an earlier call")
        if memory.dim() != 3 or len(memory) != batch or memory.shape[-1] != self.memory_width:
            raise StateError(f"the memory must have shape ({batch}, memory, {self.memory_width}), not {tuple(memory.shape)}")
        if segments is not None and segments.shape != memory.shape[:2]:
            raise StateError(f"memory_segments have shape {tuple(segments.shape)}, the memory {tuple(memory.shape[:2])}")
        if segments is None:
            segments = torch.zeros(batch, 0, dtype=torch.int64, device=memory.device)
        else:
            memory = memory.masked_fill((segments < 0)[..., None], 0.0)
        k, v = self._mapped(memory, segments).unflatten(-1, (2, self.kv_heads, self.head_dim)).unbind(2)
        return CrossAttentionState(k, v, segments, ctx.timeline.clock)

    def _mapped(self, memory: Tensor, segments: Tensor) -> Tensor:
        """Keys and values beside each other, computed for valid tokens only where many are padding; 0 at padding."""
        if not segments.shape[1] or not torch.is_grad_enabled() or bool((segments >= 0).all()):
            return self.memory(memory)
        places = (segments >= 0).flatten().nonzero()[:, 0]
        found = self.memory(memory.flatten(0, 1).index_select(0, places))
        return found.new_zeros(segments.numel(), found.shape[1]).index_copy(0, places, found).unflatten(0, segments.shape)

    def _mask(self, held: CrossAttentionState, ctx: Context) -> tuple[Tensor | None, Tensor | None]:
        """Which memory each token sees, (B,1,1|T,M) bool, None: all of it; and which tokens see none, (B,1|T,1), None: there are none.

        The scores of a token that sees none are everything's, so that they are numbers; what it reads is put to 0 behind.
        """
        if not held.segments.shape[1]:
            return None, None
        given = ctx.segments
        now = ctx.timeline.clock[:, :1] if given is None else given
        seen = now[:, :, None] == held.segments[:, None, :]
        blind = ~seen.any(-1, keepdim=True)
        lost = (blind & (now >= 0)[..., None]).any()  # of padding nothing is asked
        return (seen | blind)[:, None], blind if bool(lost) else None

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> CrossAttentionState:
        """No memory yet: the next call brings one."""
        k, v = (torch.zeros(batch, 0, self.kv_heads, self.head_dim, device=device, dtype=dtype) for _ in range(2))
        return CrossAttentionState(k, v, torch.zeros(batch, 0, dtype=torch.int64, device=device), fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        """Of a memory of `length` tokens: what it is for a decoder that reads as many as it writes."""
        return 2 * length * self.kv_heads * self.head_dim * self.out.weight.element_size()

    def flops(self, length: int) -> int:
        """For `length` tokens and as many of memory."""
        inner = self.heads * self.head_dim
        maps = 2 * inner * self.place.width * 2 + 2 * self.memory.weight.numel()
        return maps * length + 4 * inner * length * length


register(
    "cross-attention",
    mixer="CrossAttention",
    summary="Attention of a decoder's tokens to an encoder's output, whose keys and values are computed once",
    paper="1706.03762",
    year=2017,
    tags=("causal", "parallel", "cache", "memory"),
)
