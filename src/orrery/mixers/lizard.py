"""Lizard: gated linear attention for all of the past beside softmax attention for the last few tokens.

Paper: Lizard: An Efficient Linearization Framework for Large Language Models (arXiv 2507.09025); features of Hedgehog
    (2402.04347). The mixer that stands in for a trained model's attention; how it is distilled is a method of its own.

Equation: q, k, v = W x;  phi(x) = [exp(x A), exp(-x A)], another A for queries and for keys;  gamma = sigmoid(W_g x), one number
    a token;  and per head
    l_t = sum_{j <= t} (gamma_{j+1} .. gamma_t) phi(q_t).phi(k_j) v_j / (the same without v)
    w_t = sum_{t-W < j <= t} e^{s_tj} v_j / (sum_j e^{s_tj} + sum_m e^{b_m}),   s_tj = q_t.k_j / sqrt(K)
    y_t = W_o (l_t + alpha w_t);   b: learned logits that only the denominator sees

Shapes: B batch, T time, D width, H heads, K head dimension, F features of a head (2 x features), W window, M sinks.

Cost: train and prefill O(T W) for the window and 4 F (K + 1) for the memory, a token and head; decode the same,
    independent of T; state H F (K + 1) + 2 (W - 1) D numbers.

Differs from the paper: exponents of features are clamped to +-20, where the paper leaves them to overflow. Every head has
    maps A and sinks b of its own (the paper has one set of sinks for a layer, and leaves open whose the maps are); the gate
    has a bias. The sinks' part of the denominator is a sum of exponentials, where the paper writes the logits themselves, which
    could make it 0. Of the paper's two forms of l_t, with and without its denominator, norm="row" is the first and norm="none" the
    second; of its two feature maps, "exp" stands in section 4 and "softmax" in table 13. No rotary positions, as the paper; `rope`
    brings them into the window, which an independent reproduction found better, and norm="joint" divides both branches by one
    denominator, without alpha, so that weights and sinks sum to 1 as in the attention they replace.

Oracle: tests/oracles/lizard.py (float64 loops over pairs of tokens).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig
from orrery.nn.contract import Context, Mixer, PartConfig, Place
from orrery.nn.heads import check_heads, count_heads
from orrery.nn.marks import no_decay
from orrery.nn.projection import Projection
from orrery.nn.recompute import recompute
from orrery.nn.rotary import cached_table, rotate
from orrery.nn.state import state
from orrery.nn.stepping import Step, Stepping, in_order, linear_step, plain_linear
from orrery.nn.timeline import Timeline, fresh_clock
from orrery.ops.recompute import with_ones
from orrery.ops.scalar_decay import scalar_decay, scalar_decay_matrix
from orrery.ops.steps.lizard import LizardWeights, lizard_stepper, ring
from orrery.ops.steps.row_linear import RowNorm

_HIGHEST = 20.0  # e^40 times any number of tokens stays far from float32's end
_LEAST = 1e-30  # of a denominator; only padding before any token comes near it
NORMS, FEATURES = ("row", "joint", "none"), ("exp", "softmax")


@dataclass(frozen=True, kw_only=True)
class LizardConfig(PartConfig):
    """heads None: width / head_dim. features: columns of A (F is twice that; None: head_dim). window: W. sinks: M.

    norm: "row" as above; "joint": one denominator for both branches; "none": the memory's own denominator is left out.
    feature_map: "exp" as above, or "softmax": softmax(x A) beside softmax(-x A). gate_per_head: a gamma for each head. rope: in the window.
    """

    heads: int | None = None
    head_dim: int = 64
    features: int | None = None
    window: int = 128
    sinks: int = 4
    norm: str = "row"
    feature_map: str = "exp"
    gate_per_head: bool = False
    rope: bool = False
    rope_theta: float = 10000.0

    def __post_init__(self) -> None:
        check_heads(self)
        require(self.features is None or self.features > 0, f"features must be positive, not {self.features}")
        require(self.window > 0, f"window must be positive, not {self.window}")
        require(self.sinks >= 0, f"sinks must not be negative, but is {self.sinks}")
        require(self.norm in NORMS, f"norm '{self.norm}' must be one of {', '.join(NORMS)}")
        require(self.feature_map in FEATURES, f"feature_map '{self.feature_map}' must be one of {', '.join(FEATURES)}")


@state
class LizardState(NamedTuple):
    """memory: numerators and denominators (B,H,F,K+1), float32. k, v: the last W-1 tokens (B,W-1,H,K), the newest last; the
    first of them are zero where the document is shorter. inputs: of Canon-B; clock: (B,2)."""

    memory: Tensor
    k: Tensor
    v: Tensor
    inputs: Tensor
    clock: Tensor


class Lizard(Mixer):
    """Gated linear attention plus a window of softmax attention."""

    Config = LizardConfig
    State = LizardState
    config: LizardConfig
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"head_dim": 8, "window": 7, "features": 6},
        {"head_dim": 16, "window": 5, "sinks": 0, "norm": "joint", "feature_map": "softmax", "gate_per_head": True, "rope": True},
    )

    def __init__(self, config: LizardConfig, place: Place) -> None:
        super().__init__(config, place)
        self.head_dim, self.heads = config.head_dim, count_heads(config, place)
        inner, self.features = self.heads * self.head_dim, config.features or config.head_dim
        self.inputs = Projection(place, 3 * inner)
        self.gate = nn.Linear(place.width, self.heads if config.gate_per_head else 1)
        self.maps = nn.Parameter(torch.empty(2, self.heads, self.head_dim, self.features))  # A of queries, of keys
        self.sinks = nn.Parameter(torch.empty(self.heads, config.sinks)) if config.sinks else None
        self.alpha = nn.Parameter(torch.empty(())) if config.norm != "joint" else None
        self.out = nn.Linear(inner, place.width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Projections as a Transformer's; A the identity as far as it goes, the rest normal with deviation K^-1/2; gates at
        1/2, alpha 1, sinks 0."""
        std = math.sqrt(2 / (5 * self.place.width))
        nn.init.normal_(self.inputs.linear.weight, std=std)
        nn.init.normal_(self.out.weight, std=std / math.sqrt(2 * self.place.depth))
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)
        with torch.no_grad():
            self.maps.normal_(std=self.head_dim**-0.5)
            same = min(self.head_dim, self.features)
            self.maps[..., :same] = torch.eye(self.head_dim, same)
        if self.sinks is not None:
            nn.init.zeros_(self.sinks)
            no_decay(self.sinks)
        if self.alpha is not None:
            nn.init.ones_(self.alpha)
        if self.inputs.conv is not None:
            self.inputs.conv.reset_parameters()

    def mix(self, x: Tensor, state: LizardState | None, ctx: Context) -> tuple[Tensor, LizardState]:
        time = ctx.timeline
        q, k, v, g_log, inputs = self._project(x, None if state is None else state.inputs, ctx)
        ctx.report_decay(self.place.layer, memory=g_log)
        with torch.autocast(x.device.type, enabled=False):
            before = None if state is None else state.memory
            ones = with_ones(v)
            read, memory = scalar_decay(
                self._features(q, 0), self._features(k, 1), ones, g_log, before, time.starts, lengths=time.lengths
            )
            near, total, kept = self._window(q, k, v, state, time)
            y = self._join(read, near, total)
        return self.out(y.flatten(2).to(x.dtype)), LizardState(memory, *kept, inputs, time.clock)

    def _project(self, x: Tensor, inputs: Tensor | None, ctx: Context) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Q, k, v (B,T,H,K) and the gates (B,T,H), in float32 at least, and the projection's last inputs."""
        p, inputs = self.inputs(x, inputs, ctx)
        raw = self.gate(x)
        wide = torch.promote_types(p.dtype, torch.float32)
        q, k, v = p.to(wide).unflatten(-1, (3, self.heads, self.head_dim)).unbind(2)
        return q, k, v, F.logsigmoid(raw.to(wide)).expand(*x.shape[:2], self.heads), inputs

    def _features(self, x: Tensor, which: int) -> Tensor:
        """Phi of queries (0) or keys (1) (B,T,H,K) -> (B,T,H,F), positive."""
        found: Tensor = recompute(self._phi, x, self.maps[which])
        return found

    def _phi(self, x: Tensor, maps: Tensor) -> Tensor:
        u = torch.einsum("bthk,hkf->bthf", x, maps.to(x.dtype)).clamp(-_HIGHEST, _HIGHEST)
        if self.config.feature_map == "softmax":
            return torch.cat([u.softmax(-1), (-u).softmax(-1)], -1)  # 2507.09025 table 13
        return torch.cat([u, -u], -1).exp()

    def _join(self, read: Tensor, near: Tensor, total: Tensor | None) -> Tensor:
        """From the memory's numerators and denominator (B,T,H,K+1) and the window's output (B,T,H,K)."""
        far, weight = read[..., :-1], read[..., -1:].clamp(min=_LEAST)
        if total is not None:  # the logarithm of the window's denominator: both as shares of one sum
            return torch.lerp(near, far / weight, torch.sigmoid(weight.log() - total))
        assert self.alpha is not None
        return (far if self.config.norm == "none" else far / weight) + self.alpha.to(near.dtype) * near

    def _window(
        self, q: Tensor, k: Tensor, v: Tensor, state: LizardState | None, time: Timeline
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor, Tensor]]:
        """Softmax attention to the last W tokens, in blocks of W queries: its output (B,T,H,K), the logarithm of its
        denominators (B,T,H,1) for a joint norm, and the keys and values to keep."""
        (batch, length), past = q.shape[:2], self.config.window - 1
        q, k = self._turned(q, k, time)
        none = k.new_zeros(batch, past, *k.shape[2:])
        keys = torch.cat([none if state is None else state.k.to(k.dtype), k], 1)
        values = torch.cat([none if state is None else state.v.to(v.dtype), v], 1)
        document = k.new_zeros(1, length) if time.starts is None else time.starts.cumsum(1)
        clock = time.clock.new_zeros(1) if state is None else state.clock[:, 1]
        held = torch.arange(past, device=k.device) >= past - clock.clamp(max=past)[:, None]
        rows = max(len(document), len(held))
        of_query = document.expand(rows, -1).to(torch.int64)
        of_key = torch.cat([torch.where(held, 0, -1).expand(rows, -1), of_query], 1)

        size = min(self.config.window, length)
        short = -length % size  # padded queries see padded keys
        q = F.pad(q, (0, 0, 0, 0, 0, short)).unflatten(1, (-1, size))
        of_query = F.pad(of_query, (0, short), value=-2).unflatten(1, (-1, size))
        of_key = F.pad(of_key, (0, short), value=-2).unfold(1, past + size, size)
        of_keys, of_values = (F.pad(x, (0, 0, 0, 0, 0, short)).unfold(1, past + size, size) for x in (keys, values))
        distance = torch.arange(size, device=k.device)[:, None] + past - torch.arange(past + size, device=k.device)
        seen = (of_query[..., None] == of_key[:, :, None]) & (distance >= 0) & (distance <= past)
        near, total = self._blocks(q, of_keys, of_values, seen[:, :, None])
        total = None if total is None else total.flatten(1, 2)[:, :length]
        return near.flatten(1, 2)[:, :length], total, self._keep(keys, values, time)

    def _blocks(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> tuple[Tensor, Tensor | None]:
        """Attention of every block: q (B,N,S,H,K), k and v (B,N,H,K,C), seen (B|1,N,1,S,C) -> near (B,N,S,H,K), total (B,N,S,H,1)."""
        (batch, blocks, size), key, columns, scale = q.shape[:3], self.head_dim, k.shape[4], self.head_dim**-0.5
        if self.config.norm == "joint":
            scores = (torch.einsum("bnqhk,bnhkc->bnhqc", q, k) * scale).masked_fill(~seen, -math.inf)
            if self.sinks is not None:
                scores = torch.cat([scores, self.sinks.to(scores.dtype)[:, None].expand(batch, blocks, -1, size, -1)], -1)
            total = scores.logsumexp(-1, keepdim=True)
            near = torch.einsum("bnhqc,bnhkc->bnqhk", (scores - total).exp()[..., :columns], v)
            return near, total.transpose(2, 3)
        q, k, v = (part.flatten(0, 1) for part in (q.transpose(2, 3), k.transpose(3, 4), v.transpose(3, 4)))
        seen = seen.expand(batch, -1, -1, -1, -1).flatten(0, 1)
        if self.sinks is not None:  # as keys with a number more, which meets a 1 in every query; their values are 0
            sinks = F.pad(self.sinks.to(k.dtype)[:, :, None] / scale, (key, 0)).expand(len(k), -1, -1, -1)
            q, seen = F.pad(q, (0, 1), value=1.0), F.pad(seen, (0, self.config.sinks), value=True)
            k, v = torch.cat([F.pad(k, (0, 1)), sinks], 2), F.pad(v, (0, 1, 0, self.config.sinks))
        near = F.scaled_dot_product_attention(q, k, v, seen, scale=scale)[..., :key]
        return near.transpose(1, 2).unflatten(0, (batch, blocks)), None

    def _turned(self, q: Tensor, k: Tensor, time: Timeline) -> tuple[Tensor, Tensor]:
        if not self.config.rope:
            return q, k
        table = cached_table(time.positions, time.past + q.shape[1], self.head_dim, self.config.rope_theta, q.dtype)
        return rotate(q, table), rotate(k, table)

    def _keep(self, keys: Tensor, values: Tensor, time: Timeline) -> tuple[Tensor, Tensor]:
        """Of W-1 old and T new ones (B,W-1+T,H,K), each row's last W-1 that are valid and of its last document."""
        past, new = self.config.window - 1, keys.shape[1] - self.config.window + 1
        if time.lengths is None and time.starts is None:
            return keys[:, new:].clone(), values[:, new:].clone()
        ends = time.clock.new_full((len(keys),), new) if time.lengths is None else time.lengths
        slots = torch.arange(past, device=keys.device)
        index, rows = ends[:, None] + slots, torch.arange(len(keys), device=keys.device)[:, None]
        empty = (slots < past - time.clock[:, 1:].clamp(max=past))[..., None, None]
        return keys[rows, index].masked_fill(empty, 0.0), values[rows, index].masked_fill(empty, 0.0)

    def stepper(self, norm: RowNorm, state: LizardState, run: Stepping) -> Step | None:
        if not plain_linear(self.inputs.linear, self.gate, self.out):
            return None
        config, x = self.config, run.x
        p, y = x.new_empty(len(x), self.inputs.linear.out_features), x.new_empty(len(x), self.out.in_features)
        gate, memory = x.new_empty(len(x), self.gate.out_features), run.own(state.memory)
        window = [run.own(held, ring(held, run.positions), lambda to, held: to.copy_(ring(held, run.positions))) for held in (state.k, state.v)]
        table = torch.zeros(0, 0, dtype=torch.complex64)
        if config.rope:
            table = run.turns(self.head_dim, config.rope_theta)
        weights = LizardWeights(
            self.maps, self.sinks, self.alpha, config.feature_map == "softmax", config.norm, _HIGHEST, _LEAST
        )
        project = self.inputs.step(x, state.inputs, p, norm)
        weigh = linear_step(x, self.gate, gate, norm)
        recur = lizard_stepper(p, gate, memory, (window[0], window[1]), run.positions, table, y, weights)
        return in_order(project, weigh, recur, linear_step(y, self.out, x, add=True))

    def transfer(self, x: Tensor, ctx: Context) -> Tensor:
        """The weights (B,H,T,T) of all values in the sum of both branches."""
        q, k, _, g_log, _ = self._project(x, None, ctx)
        time = ctx.timeline
        far = scalar_decay_matrix(self._features(q, 0), self._features(k, 1), g_log, time.starts)
        weight = far.sum(-1, keepdim=True)
        q, k = self._turned(q, k, time)
        steps = torch.arange(x.shape[1], device=x.device)
        distance = steps[:, None] - steps
        seen = ((distance >= 0) & (distance < self.config.window))[None]
        if time.starts is not None:
            document = time.starts.cumsum(1)
            seen = seen & (document[:, :, None] == document[:, None])
        scores = torch.einsum("bthk,bshk->bhts", q, k) * self.head_dim**-0.5
        scores = scores.masked_fill(~seen[:, None], -math.inf)
        if self.sinks is not None:
            sinks = self.sinks.to(scores.dtype)[:, None].expand(len(x), -1, x.shape[1], -1)
            scores = torch.cat([scores, sinks], -1)
        near = scores.softmax(-1)[..., : x.shape[1]]
        if self.config.norm == "joint":
            return torch.lerp(near, far / weight, torch.sigmoid(weight.log() - scores.logsumexp(-1, keepdim=True)))
        assert self.alpha is not None
        return (far if self.config.norm == "none" else far / weight) + self.alpha.to(near.dtype) * near

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> LizardState:
        """Nothing seen; float32 unless `dtype` is float64."""
        kind = torch.float64 if dtype == torch.float64 else torch.float32
        memory = torch.zeros(batch, self.heads, 2 * self.features, self.head_dim + 1, device=device, dtype=kind)
        shape = (batch, self.config.window - 1, self.heads, self.head_dim)
        k, v = (torch.zeros(shape, device=device, dtype=kind) for _ in range(2))
        return LizardState(memory, k, v, self.inputs.init_state(batch, device, dtype), fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        """Constant in the length: the window's places are there from the start."""
        memory = 2 * self.features * (self.head_dim + 1) + 2 * (self.config.window - 1) * self.head_dim
        return max(4, self.out.weight.element_size()) * self.heads * memory + self.inputs.state_bytes()

    def flops(self, length: int) -> int:
        """Projections, features, to write and read the memory, and W pairs for the window, per token."""
        width, gates = self.place.width, self.gate.out_features
        head = 4 * self.head_dim * self.features + 8 * self.features * (self.head_dim + 1) + 4 * self.config.window * self.head_dim
        linear = 2 * width * (gates + self.heads * self.head_dim)
        return self.inputs.flops(length) + (linear + self.heads * head) * length


ARCHITECTURE = Architecture(
    block=BlockConfig(mixer={"name": "lizard"}, channel={"name": "glu"}),
    frame={"tied": True},
    head="mixer.head_dim",
)

register(
    "lizard",
    mixer="Lizard",
    architecture="ARCHITECTURE",
    summary="Lizard: gated linear attention plus a window of softmax attention with sinks",
    paper="2507.09025",
    year=2025,
    tags=("causal", "recurrent", "parallel"),
)
