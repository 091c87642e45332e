"""RWKV-7: a matrix memory whose decay, forgetting and learning rate are vectors that the token itself chooses.

Paper: RWKV-7 "Goose" with Expressive Dynamic State Evolution (arXiv 2503.14456, sections 3 and 4).

Equation: x^n_t = m_n x_t + (1 - m_n) x_{t-1} for n in r, w, k, v, a, g;  lora(x) = f(x A) B + c
    r = W_r x^r;  k' = W_k x^k;  v' = W_v x^v;  g = sigmoid(x^g A_g) B_g
    log w = -e^-0.5 sigmoid(lora(x^w)), f = tanh;   a = sigmoid(lora(x^a))
    v = v' + (v1 - v') sigmoid(lora(x^v)),  v1 the v' of the model's first RWKV-7 layer
    kk = (k' kappa) / |k' kappa| per head;   k = k' (1 + (a - 1) alpha)
    S_t = S_{t-1} (diag(w_t) - kk_t^T (a_t kk_t)) + v_t^T k_t;   o_t = S_t r_t
    y = W_o (g * (groupnorm(o) + (sum over the head of r k rho) v))
    channel mix:  y = W_v max(W_k x^k, 0)^2

    v1 belongs to these very tokens, not to the past: the first layer leaves it in `ctx.shared`, which the frame makes for
    each call, and later layers read it there. So the state holds nothing of it, a cut needs nothing of it, and with
    recomputed blocks it is an ordinary tensor that a block closes over. A layer that finds none (a mixer used by itself,
    or the first of a hybrid that does not begin with it) takes v1 = 0 and leaves its own v'.

Shapes: B batch, T time, D width, H heads, K = V head size, R ranks, F hidden size 4 D.

Cost: train and prefill O(T), decode O(1): 8 D^2 + 4 D (ranks) + 8 H K^2 a token, channel mix 4 D F; state D K + 2 D numbers.

Differs from the paper: embedding and head are drawn as the frame draws them (normal with deviation 1e-4; D^-1/2). The ranks
    follow the published code's rule, max(32, 32 round(c sqrt(D) / 32)) with c = 2.5, 2.5, 1.7, 5; the presets have the
    published ones. All parameters learn at one rate; the published code trains the decay's c at twice the rate.

Oracle: tests/oracles/rwkv7.py (float64 loops), and the published parameter counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig
from orrery.nn.contract import Context, Mixer, Part, PartConfig, Place
from orrery.nn.marks import no_decay
from orrery.nn.recompute import linear_of, linears_of, recompute
from orrery.nn.rwkv import depth_ratios, mixed_linears
from orrery.nn.state import state
from orrery.nn.stepping import Step, Stepping, in_order, linear_step, plain_linear
from orrery.nn.timeline import fresh_clock
from orrery.ops.dplr import dplr
from orrery.ops.fused.gates import relu_square
from orrery.ops.fused.rwkv7_gates import rwkv7_gates, rwkv7_out
from orrery.ops.fused.token_shift import last_token, token_mix
from orrery.ops.steps.dplr import RWKV7Weights, rwkv7_stepper
from orrery.ops.steps.row_linear import RowNorm, row_norm_into
from orrery.ops.steps.rwkv4 import mix_step

_FIRST = "rwkv7 values"  # the name in ctx.shared


@dataclass(frozen=True, kw_only=True)
class RWKV7Config(PartConfig):
    """Ranks of the low-rank maps for decay w, learning rate a, value residual v and gate g; None: by the rule for this width."""

    head_dim: int = 64
    decay_rank: int | None = None
    rate_rank: int | None = None
    value_rank: int | None = None
    gate_rank: int | None = None

    def __post_init__(self) -> None:
        require(self.head_dim > 1, f"head_dim must be 2 or more, not {self.head_dim}")
        for name in ("decay_rank", "rate_rank", "value_rank", "gate_rank"):
            rank = getattr(self, name)
            require(rank is None or rank > 0, f"{name} must be positive, not {rank}")


@dataclass(frozen=True, kw_only=True)
class RWKV7ChannelConfig(PartConfig):
    """hidden: F (None: 4 D)."""

    hidden: int | None = None

    def __post_init__(self) -> None:
        require(self.hidden is None or self.hidden > 0, f"channel.hidden must be positive, not {self.hidden}")


@state
class RWKV7State(NamedTuple):
    """shift: the last token (B,D); memory: S as (B,H,K,V), float32; clock: (B,2)."""

    shift: Tensor
    memory: Tensor
    clock: Tensor


@state
class RWKV7ChannelState(NamedTuple):
    """shift: the last token (B,D); clock: (B,2)."""

    shift: Tensor
    clock: Tensor


class RWKV7(Mixer):
    """The time mix."""

    Config = RWKV7Config
    State = RWKV7State
    config: RWKV7Config
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"head_dim": 8, "decay_rank": 6, "rate_rank": 5, "value_rank": 4, "gate_rank": 7},
        {"head_dim": 16},
    )

    def __init__(self, config: RWKV7Config, place: Place) -> None:
        super().__init__(config, place)
        width = place.width
        require(width % config.head_dim == 0, f"width {width} is not a multiple of head_dim {config.head_dim}; set another head_dim")
        self.head_dim, self.heads = config.head_dim, width // config.head_dim
        ranks = (config.decay_rank, config.rate_rank, config.value_rank, config.gate_rank)
        decay, rate, value, gate = (rank or _rank(c, width) for rank, c in zip(ranks, (2.5, 2.5, 1.7, 5.0), strict=True))
        self.mix_ratios = nn.Parameter(torch.empty(6, width))  # share of the present token for r, w, k, v, a, g
        self.receptance = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.decay = _LowRank(width, decay)
        self.rate = _LowRank(width, rate)
        self.residual = _LowRank(width, value) if place.layer > 0 else None
        self.gate = _LowRank(width, gate, bias=False)
        self.key_scale = nn.Parameter(torch.empty(width))  # kappa
        self.key_rate = nn.Parameter(torch.empty(width))  # alpha
        self.bonus = nn.Parameter(torch.empty(width))  # rho
        self.norm_weight = nn.Parameter(torch.empty(width))
        self.norm_bias = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Decays spread over channels, mixtures over channels and depth; low-rank maps and the way out start at zero. Weight
        decay is for the four square matrices alone (the published code)."""
        width, head = self.place.width, self.head_dim
        deep, fill = depth_ratios(self.place)
        channel = torch.arange(width)
        line = channel / max(1, width - 1) - 0.5
        zigzag = (channel % head - (head - 1) / 2) / ((head - 1) / 2)
        zigzag = zigzag * zigzag.abs()
        with torch.no_grad():
            powers = torch.tensor([0.2, 0.9, 0.7, 0.7, 0.9, 0.2]) * fill
            self.mix_ratios.copy_((channel / width) ** powers[:, None])
            self.key_scale.copy_(0.71 - 0.1 * line)
            self.key_rate.fill_(1.02)
            self.bonus.fill_(-0.04)
            self.norm_weight.fill_(((self.place.layer + 1) / self.place.depth) ** 0.7)
            self.norm_bias.zero_()
            starts = {
                self.decay: -6 + 6 * (line + 0.5) ** (1 + deep**0.3) + 0.5 + 2.5 * zigzag,
                self.rate: -0.19 + 0.3 * zigzag + 0.4 * line,
                self.residual: 0.73 - 0.4 * line,
                self.gate: None,
            }
            for pair, bias in starts.items():
                if pair is not None:
                    pair.reset_parameters(bias)
        for linear, size in ((self.receptance, 0.5), (self.key, 0.05), (self.value, 0.5)):
            nn.init.uniform_(linear.weight, -size * width**-0.5, size * width**-0.5)
        nn.init.zeros_(self.out.weight)
        pairs = [pair for pair in starts if pair is not None]
        no_decay(self.mix_ratios, *(linear.weight for pair in pairs for linear in (pair.down, pair.up)))

    def mix(self, x: Tensor, state: RWKV7State | None, ctx: Context) -> tuple[Tensor, RWKV7State]:
        time = ctx.timeline
        r, k, v, a, b, g_log, gate, shift = self._project(x, None if state is None else state.shift, ctx)
        o, memory = dplr(r, k, v, a, b, g_log, None if state is None else state.memory, time.starts)
        read = partial(rwkv7_out, eps=1e-5 * self.head_dim)
        y = linear_of(read, self.out, o, r, k, v, gate, self.bonus, self.norm_weight, self.norm_bias)
        return y, RWKV7State(shift, memory, time.clock)

    def stepper(self, norm: RowNorm, state: RWKV7State, run: Stepping) -> Step | None:
        pairs = [self.decay, self.rate, self.gate, *([] if self.residual is None else [self.residual])]
        maps = [self.receptance, self.key, self.value, self.out, *(m for pair in pairs for m in (pair.down, pair.up))]
        first = run.shared.get(_FIRST)
        if not plain_linear(*maps) or (self.residual is not None and first is None):
            return None
        mixed, before = run.x.new_empty(6, *run.x.shape), run.own(state.shift)
        r, k, v, decay, rate, gate, share, y = (torch.empty_like(run.x) for _ in range(8))
        steps = [linear_step(mixed[n], m, t) for n, m, t in ((0, self.receptance, r), (2, self.key, k), (3, self.value, v))]
        lows = [(1, self.decay, "tanh", "", decay), (4, self.rate, "", "", rate), (5, self.gate, "sigmoid", "", gate)]
        if self.residual is not None:
            lows.append((3, self.residual, "", "sigmoid", share))
        small = [run.x.new_empty(len(run.x), pair.rank) for _, pair, *_ in lows]  # first all of one kind, which need not wait for each other
        steps += [linear_step(mixed[n], pair.down, low, None, inner) for low, (n, pair, inner, _, _) in zip(small, lows, strict=True)]
        steps += [linear_step(low, pair.up, target, None, outer) for low, (_, pair, _, outer, target) in zip(small, lows, strict=True)]
        parts = (r, k, v, decay, rate, gate, *(() if self.residual is None else (share,)))
        fixed = (self.key_scale, self.key_rate, self.bonus, self.norm_weight, self.norm_bias)
        weights, memory = RWKV7Weights(*fixed, 1e-5 * self.head_dim), run.own(state.memory)
        steps.append(rwkv7_stepper(parts, None if self.residual is None else first, memory, y, weights))
        steps.append(linear_step(y, self.out, run.x, add=True))
        run.shared.setdefault(_FIRST, v)
        return _shifted(norm, run, mixed, before, self.mix_ratios, steps)

    def _project(
        self, x: Tensor, shift: Tensor | None, ctx: Context
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """R, k, v, a, b, log w (B,T,H,K), the gate (B,T,D), and the last token."""
        time, valid = ctx.timeline, ctx.timeline.valid(x.shape[1])
        pairs = [self.decay, self.rate, self.gate, *([] if self.residual is None else [self.residual])]
        maps = (self.receptance, self.key, self.value, *(pair.down for pair in pairs))

        def mixtures(x: Tensor, before: Tensor | None, ratios: Tensor) -> tuple[Tensor, ...]:
            r, w, k, v, a, g = token_mix(x, ratios, before, time.starts)[0]
            return (r, k, v, w, a, g, v)[: len(maps)]

        r, k, v, *low = linears_of(mixtures, maps, x, shift, self.mix_ratios)
        first = None if ctx.shared is None else ctx.shared.get(_FIRST)
        if first is None and ctx.shared is not None:
            ctx.shared[_FIRST] = v
        decay, rate, gate = self.decay.up(torch.tanh(low[0])), self.rate.up(low[1]), self.gate.up(torch.sigmoid(low[2]))
        if self.residual is not None:
            v = recompute(partial(_towards, self.heads), v, first, self.residual.up(low[3]))
        else:
            v = v.unflatten(-1, (self.heads, -1))
        k, a, b, g_log = recompute(partial(self._gates, valid), k, rate, decay, self.key_scale, self.key_rate)
        return r.unflatten(-1, (self.heads, -1)), k, v, a, b, g_log, gate, last_token(x, shift, time.lengths)

    def _gates(self, valid: Tensor | None, k: Tensor, rate: Tensor, decay: Tensor, scale: Tensor, alpha: Tensor) -> tuple[Tensor, ...]:
        """Key, a, b and log w (B,T,H,K)."""
        k, a, b, g_log = rwkv7_gates(k, rate, decay, scale, alpha, self.heads)
        if valid is not None:  # padding leaves the memory as it is
            k, b, g_log = (part.masked_fill(~valid[..., None, None], 0.0) for part in (k, b, g_log))
        return k, a, b, g_log

    def transfer(self, x: Tensor, ctx: Context) -> Tensor:
        """The matrices M (B,H,T,T) with o = M v: the recurrence, given unit vectors as values."""
        r, k, _, a, b, g_log, _, _ = self._project(x, None, ctx)
        batch, length = x.shape[:2]
        units = torch.eye(length, dtype=k.dtype, device=x.device)[None, :, None].expand(batch, -1, self.heads, -1)
        return dplr(r, k, units, a, b, g_log, None, ctx.timeline.starts)[0].transpose(1, 2)

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> RWKV7State:
        wide = torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)
        shift = torch.zeros(batch, self.place.width, device=device, dtype=dtype)
        memory = torch.zeros(batch, self.heads, self.head_dim, self.head_dim, device=device, dtype=wide)
        return RWKV7State(shift, memory, fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        number = self.key.weight.element_size()
        return max(4, number) * self.place.width * self.head_dim + number * self.place.width

    def flops(self, length: int) -> int:
        ranks = sum(pair.rank for pair in (self.decay, self.rate, self.residual, self.gate) if pair is not None)
        width = self.place.width
        return (8 * width * width + 4 * width * ranks + 8 * width * self.head_dim) * length


class RWKV7Channel(Part):
    """The channel mix: a two-layer network with squared ReLU on shifted tokens."""

    Config = RWKV7ChannelConfig
    State = RWKV7ChannelState
    config: RWKV7ChannelConfig
    reach = 1

    def __init__(self, config: RWKV7ChannelConfig, place: Place) -> None:
        super().__init__(config, place)
        self.hidden = config.hidden or 4 * place.width
        self.mix_k = nn.Parameter(torch.empty(place.width))
        self.key = nn.Linear(place.width, self.hidden, bias=False)
        self.value = nn.Linear(self.hidden, place.width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The mixture spreads over channels; the way out starts at zero."""
        width = self.place.width
        _, fill = depth_ratios(self.place)
        with torch.no_grad():
            self.mix_k.copy_((torch.arange(width) / width) ** fill**4)
        nn.init.uniform_(self.key.weight, -0.5 * width**-0.5, 0.5 * width**-0.5)
        nn.init.zeros_(self.value.weight)

    def mix(self, x: Tensor, state: RWKV7ChannelState | None, ctx: Context) -> tuple[Tensor, RWKV7ChannelState]:
        time, before = ctx.timeline, None if state is None else state.shift
        (h,), shift = mixed_linears(x, (self.mix_k,), before, time, (self.key,))
        return self.value(relu_square(h)), RWKV7ChannelState(shift, time.clock)

    def stepper(self, norm: RowNorm, state: RWKV7ChannelState, run: Stepping) -> Step | None:
        if not plain_linear(self.key, self.value):
            return None
        mixed, hidden = run.x.new_empty(1, *run.x.shape), run.x.new_empty(len(run.x), self.hidden)
        steps = [linear_step(mixed[0], self.key, hidden, None, "relu2"), linear_step(hidden, self.value, run.x, add=True)]
        return _shifted(norm, run, mixed, run.own(state.shift), self.mix_k[None], steps)

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> RWKV7ChannelState:
        shift = torch.zeros(batch, self.place.width, device=device, dtype=dtype)
        return RWKV7ChannelState(shift, fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        return self.key.weight.element_size() * self.place.width

    def flops(self, length: int) -> int:
        return 4 * self.place.width * self.hidden * length


def _shifted(norm: RowNorm, run: Stepping, mixed: Tensor, before: Tensor, ratios: Tensor, steps: list[Step]) -> Step:
    """The mixtures (M,B,D) of norm(x) with the token `before` it into `mixed`, by `ratios` (M,D), then `steps`."""
    x = torch.empty_like(run.x)
    return in_order(row_norm_into(run.x, norm, x), mix_step(x, before, ratios, mixed), *steps)


def _rank(factor: float, width: int) -> int:
    return max(32, 32 * round(factor * math.sqrt(width) / 32))


class _LowRank(nn.Module):
    """A and B of f(x A) B + c, through `rank` dimensions."""

    def __init__(self, width: int, rank: int, bias: bool = True) -> None:
        super().__init__()
        self.rank = rank
        self.down, self.up = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=bias)

    def reset_parameters(self, bias: Tensor | None) -> None:
        """A is zero, B orthogonal and small."""
        nn.init.zeros_(self.down.weight)
        nn.init.orthogonal_(self.up.weight, gain=0.1 * max(1.0, math.sqrt(self.rank / self.up.out_features)))
        if bias is not None:
            self.up.bias.copy_(bias)


def _towards(heads: int, v: Tensor, first: Tensor | None, share: Tensor) -> Tensor:
    """v (B,T,H,K), as far from this layer's towards the first one's as the token says (2503.14456, eq. 9)."""
    first = torch.zeros_like(v) if first is None else first.to(v.dtype)
    return torch.lerp(v, first, torch.sigmoid(share)).unflatten(-1, (heads, -1))


def _published(width: int, depth: int, ranks: tuple[int, int, int, int], vocab_size: int = 65536) -> dict[str, Any]:
    names = ("mixer.decay_rank", "mixer.rate_rank", "mixer.value_rank", "mixer.gate_rank")
    return {"width": width, "depth": depth, "vocab_size": vocab_size, **dict(zip(names, ranks, strict=True))}


ARCHITECTURE = Architecture(
    block=BlockConfig(mixer={"name": "rwkv7"}, channel={"name": "rwkv7"}, norm="layernorm", eps=1e-5),
    frame={"tied": False, "norm": "layernorm", "eps": 1e-5, "embed_norm": True, "embed_std": 1e-4},
    head="mixer.head_dim",
    fine_ratio=4.0,
    presets={
        "rwkv-7-168m": _published(768, 12, (64, 64, 32, 128), 50304),
        "rwkv-7-0.1b": _published(768, 12, (64, 64, 32, 128)),
        "rwkv-7-0.4b": _published(1024, 24, (64, 64, 32, 128)),
        "rwkv-7-1.5b": _published(2048, 24, (96, 96, 64, 256)),
        "rwkv-7-2.9b": _published(2560, 32, (96, 96, 64, 320)),
    },
)

register(
    "rwkv7",
    mixer="RWKV7",
    channel="RWKV7Channel",
    architecture="ARCHITECTURE",
    summary="RWKV-7: a matrix memory with token-chosen decay, forgetting and learning rate per channel",
    paper="2503.14456",
    year=2025,
    tags=("causal", "recurrent", "parallel", "zero-start"),
    presets=("rwkv-7-168m", "rwkv-7-0.1b", "rwkv-7-0.4b", "rwkv-7-1.5b", "rwkv-7-2.9b"),
)
