"""RWKV-6 (Finch): a matrix memory with a decay per channel and token, behind a token shift that looks at the token.

RWKV-5 (Eagle) is one setting of it: no low-rank parts, so that mixtures and decays are the same for every token.

Paper: Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence (arXiv 2404.05892, section 4).

Equation: with the token before, x' (0 at the start of a document), and for n in w, k, v, r, g,
    m_n = lambda_n + tanh((x + mu (x' - x)) A_n) B_n;   x_n = x + m_n (x' - x)           RWKV-5: m_n = lambda_n
    r, k, v, g = W_r x_r, W_k x_k, W_v x_v, W_g x_g;   d = omega + tanh(x_w A) B          RWKV-5: d = omega
and per head, with decays exp(-exp(d_t)) and bonus u,
    o_t = r_t (S_{t-1} + diag(u) k_t v_t^T);   S_t = diag(exp(-exp(d_t))) S_{t-1} + k_t v_t^T
    y = W_o (LayerNorm of each head (o) * silu(g))
The channel mix is RWKV-4's (named in the block), with F = 3.5 D.

Shapes: B batch, T time, D width, H heads, K dimension of a head (D = H K), R rank of the mixtures, S rank of the decay.

Cost: train and prefill 10 D^2 + 20 D R + 4 D S + 5 D K a token; decode the same, independent of T; state D K + D numbers.

Differs from the paper: the embedding is drawn from a normal distribution with deviation 1e-4, not from a uniform one; the
    head with deviation D^-1/2, twice that of the published code; the ranks are 32 and 64 at every width (the paper doubles
    them at width 4096, as does that preset). All parameters learn at one rate; the published code trains omega at twice the
    rate.

Oracle: tests/oracles/rwkv6.py (float64 loops).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig
from orrery.nn.contract import Context, Mixer, PartConfig, Place
from orrery.nn.marks import no_decay
from orrery.nn.recompute import linear_of, linears_of, recompute
from orrery.nn.rwkv import depth_ratios, mixed_linears
from orrery.nn.state import state
from orrery.nn.stepping import Step, Stepping, in_order, linear_step, plain_linear
from orrery.nn.timeline import Timeline, fresh_clock
from orrery.ops.fused.token_shift import token_mix
from orrery.ops.steps.row_linear import RowNorm, row_linear, row_norm_into
from orrery.ops.steps.row_steps import copy_rows
from orrery.ops.steps.vector_decay import rwkv6_stepper, shift_stepper
from orrery.ops.vector_decay import vector_decay, vector_decay_matrix, vector_decay_step

_EPS = 64e-5  # of the norm of the heads: 1e-5 after a division by 8, as RWKV-5 wrote it
_MIXTURES = 5  # w, k, v, r, g


@dataclass(frozen=True, kw_only=True)
class RWKV6Config(PartConfig):
    """head_dim: K. mix_rank: R, 0 for mixtures that are the same for all tokens; decay_rank: S, 0 for such decays (RWKV-5)."""

    head_dim: int = 64
    mix_rank: int = 32
    decay_rank: int = 64

    def __post_init__(self) -> None:
        require(self.head_dim > 0, f"head_dim must be positive, not {self.head_dim}")
        for name in ("mix_rank", "decay_rank"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, but is {getattr(self, name)}")
        require(
            self.mix_rank == 0 or self.decay_rank > 0, "mix_rank without decay_rank would mix tokens for a decay that none reads"
        )


@state
class RWKV6State(NamedTuple):
    """shift: the last token (B,D); memory: S (B,H,K,K), float32; clock: (B,2)."""

    shift: Tensor
    memory: Tensor
    clock: Tensor


class RWKV6(Mixer):
    """The time mix."""

    Config = RWKV6Config
    State = RWKV6State
    config: RWKV6Config
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"head_dim": 8, "mix_rank": 4, "decay_rank": 6},
        {"head_dim": 32, "mix_rank": 0, "decay_rank": 0},
    )

    def __init__(self, config: RWKV6Config, place: Place) -> None:
        super().__init__(config, place)
        width, ranks = place.width, (config.mix_rank, config.decay_rank)
        self.key, self.heads = config.head_dim, width // config.head_dim
        require(width % self.key == 0 and self.heads > 0, f"width {width} is not a multiple of head_dim {self.key}")
        self.first = 0 if ranks[1] else 1  # without a dynamic decay there is no mixture w
        self.mixture = nn.Parameter(torch.empty(_MIXTURES - self.first, width))  # lambda: the share of the token before
        self.mix_share = nn.Parameter(torch.empty(width)) if ranks[0] else None  # mu
        self.mix_in = nn.Parameter(torch.empty(_MIXTURES * ranks[0], width)) if ranks[0] else None
        self.mix_out = nn.Parameter(torch.empty(_MIXTURES, ranks[0], width)) if ranks[0] else None
        self.decay = nn.Parameter(torch.empty(width))
        self.decay_in = nn.Parameter(torch.empty(ranks[1], width)) if ranks[1] else None
        self.decay_out = nn.Parameter(torch.empty(width, ranks[1])) if ranks[1] else None
        self.bonus = nn.Parameter(torch.empty(self.heads, self.key))
        self.receptance = nn.Linear(width, width, bias=False)
        self.keys = nn.Linear(width, width, bias=False)
        self.values = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, width, bias=False)
        self.norm = nn.GroupNorm(self.heads, width, eps=_EPS)
        self.out = nn.Linear(width, width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Mixtures, decays and bonus spread over channels and shifted with depth; low-rank parts and the way out start at
        zero; keys and gates are orthogonal with gain 0.1, receptance and values with gain 1; weight decay is for these four
        and the way out alone (the published code)."""
        place, width = self.place, self.place.width
        last, fill = depth_ratios(place)
        share, along = torch.arange(width) / width, torch.arange(width) / max(1, width - 1)
        late, early = share**fill, share ** (0.5 * fill)
        with torch.no_grad():
            shares = torch.stack([late, late, late + 0.3 * last, early, early])
            self.mixture.copy_(1 - shares[self.first :])
            self.decay.copy_(-6 + 5 * along ** (0.7 + 1.3 * last))
            zigzag = 0.1 * ((torch.arange(width) + 1) % 3 - 1)
            self.bonus.copy_((last * (1 - along) + zigzag).view_as(self.bonus))
            if self.mix_share is not None:
                self.mix_share.copy_(1 - late)
        for down, up in ((self.mix_in, self.mix_out), (self.decay_in, self.decay_out)):
            if down is not None and up is not None:
                nn.init.zeros_(down)
                nn.init.uniform_(up, -0.01, 0.01)
        for linear, gain in ((self.receptance, 1.0), (self.keys, 0.1), (self.values, 1.0), (self.gate, 0.1)):
            nn.init.orthogonal_(linear.weight, gain)
        nn.init.zeros_(self.out.weight)
        nn.init.constant_(self.norm.weight, ((1 + place.layer) / place.depth) ** 0.7)
        nn.init.zeros_(self.norm.bias)
        no_decay(self.mixture, self.bonus, self.mix_in, self.mix_out, self.decay_in, self.decay_out)

    def mix(self, x: Tensor, state: RWKV6State | None, ctx: Context) -> tuple[Tensor, RWKV6State]:
        time = ctx.timeline
        r, k, v, g, w_log, shift = self._project(x, None if state is None else state.shift, time)
        ctx.report_decay(self.place.layer, memory=w_log)
        memory = None if state is None else state.memory
        if x.shape[1] == 1 and time.starts is None and time.lengths is None:
            one = (r[:, 0], k[:, 0], v[:, 0], w_log[:, 0])
            o, memory = vector_decay_step(*one, memory, bonus=self.bonus, donate=ctx.donate)
        else:
            o, memory = vector_decay(  # 2404.05892 eq. 19
                r, k, v, w_log, memory, time.starts, bonus=self.bonus, lengths=time.lengths
            )
        scale, shift_by = self.norm.weight.to(o.dtype), self.norm.bias.to(o.dtype)

        def read(o: Tensor, g: Tensor, scale: Tensor, shift_by: Tensor) -> Tensor:
            o = F.group_norm(o.reshape(-1, x.shape[2]), self.heads, scale, shift_by, _EPS).view(g.shape)
            return (o * F.silu(g)).to(x.dtype)

        return linear_of(read, self.out, o, g, scale, shift_by), RWKV6State(shift, memory, time.clock)

    def stepper(self, norm: RowNorm, state: RWKV6State, run: Stepping) -> Step | None:
        if not norm.kind or not plain_linear(self.receptance, self.keys, self.values, self.gate, self.out):
            return None
        now, before, memory = torch.empty_like(run.x), run.own(state.shift), run.own(state.memory)
        mixed = run.x.new_empty(len(self.mixture), *run.x.shape)
        k, v, r, g, y = (torch.empty_like(run.x) for _ in range(5))
        low, steps = None, []
        if self.mix_in is not None and self.mix_share is not None:
            shared, low = run.x.new_empty(1, *run.x.shape), run.x.new_empty(len(run.x), len(self.mix_in))
            steps.append(shift_stepper(now, before, self.mix_share[None], None, None, shared))
            steps.append(row_linear(shared[0], self.mix_in, None, low, activation="tanh"))
        steps.append(shift_stepper(now, before, self.mixture, low, self.mix_out, mixed))
        decay = self.decay.detach()[None]
        if self.decay_in is not None and self.decay_out is not None:
            small, decay = run.x.new_empty(len(run.x), len(self.decay_in)), torch.empty_like(run.x)
            steps.append(row_linear(mixed[0], self.decay_in, None, small, activation="tanh"))
            steps.append(row_linear(small, self.decay_out, self.decay, decay))
        ways = ((self.keys, -4, k, ""), (self.values, -3, v, ""), (self.receptance, -2, r, ""), (self.gate, -1, g, "silu"))
        steps += [linear_step(mixed[place], linear, to, activation=act) for linear, place, to, act in ways]
        steps.append(rwkv6_stepper((r, k, v, g, decay), memory, y, self.bonus, (self.norm.weight, self.norm.bias), _EPS))
        steps.append(linear_step(y, self.out, run.x, add=True))
        return in_order(row_norm_into(run.x, norm, now), *steps, copy_rows(now, before))

    def _project(self, x: Tensor, before: Tensor | None, time: Timeline) -> tuple[Tensor, ...]:
        """R, k, v (B,T,H,K), g (B,T,D), the decays' logarithms (B,T,H,K), and the last token (B,D)."""
        linears = (self.keys, self.values, self.receptance, self.gate)
        maps = linears if self.decay_in is None else (self.decay_in, *linears)
        if self.mix_in is None:
            found, shift = mixed_linears(x, (1 - self.mixture).unbind(), before, time, maps)
        else:
            mixed, shift = self._shift(x, before, time)
            found = linears_of(lambda *parts: parts, maps, *mixed)  # which holds no mixture either
        *low, k, v, r, g = found
        k, v, r = (part.unflatten(-1, (self.heads, -1)) for part in (k, v, r))
        wide = torch.promote_types(x.dtype, torch.float32)
        decay, v = self.decay.to(wide), v.to(wide)  # with v the output: the norm's gradient cancels where a memory is young
        if self.decay_out is not None:
            decay = decay + F.linear(torch.tanh(low[0]), self.decay_out)
        w_log = -decay.exp()
        return r, k, v, g, w_log.expand(x.shape).unflatten(-1, (self.heads, -1)), shift

    def _shift(self, x: Tensor, before: Tensor | None, time: Timeline) -> tuple[tuple[Tensor, ...], Tensor]:
        """RWKV-6's mixtures w, k, v, r, g of every token with the one before it, and the last token."""
        assert self.mix_in is not None and self.mix_out is not None and self.mix_share is not None
        (shared,), shift = token_mix(x, 1 - self.mix_share[None], before, time.starts, time.lengths)
        low = torch.tanh(F.linear(shared, self.mix_in)).flatten(0, 1).unflatten(1, (_MIXTURES, -1))
        earlier = x.new_zeros(x.shape[0], x.shape[2]) if before is None else before.to(x.dtype)
        return recompute(partial(_mixtures, time.starts), x, earlier, low, self.mixture, self.mix_out), shift

    @torch.no_grad()
    def forget_more(self, decay: float, insertion: float) -> None:
        """Raise every token's decay to the power `decay` and write `insertion` times as much, by changing parameters.

        Writing less is a greater bonus: heads put out b r (S + diag(u/b) k v), and their norm undoes b (up to eps).
        """
        self.decay.add_(math.log(decay))
        self.bonus.div_(insertion)

    def transfer(self, x: Tensor, ctx: Context) -> Tensor:
        """The matrices M (B,H,T,T) with o = M v, before norm and gate."""
        r, k, _, _, w_log, _ = self._project(x, None, ctx.timeline)
        return vector_decay_matrix(r, k, w_log, ctx.timeline.starts, bonus=self.bonus)

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> RWKV6State:
        """Nothing seen; the memory is float32 unless `dtype` is float64."""
        kind = torch.float64 if dtype == torch.float64 else torch.float32
        shift = torch.zeros(batch, self.place.width, device=device, dtype=dtype)
        memory = torch.zeros(batch, self.heads, self.key, self.key, device=device, dtype=kind)
        return RWKV6State(shift, memory, fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        """Constant in the length."""
        number = self.out.weight.element_size()
        return self.place.width * (max(4, number) * self.key + number)

    def flops(self, length: int) -> int:
        """The projections, the low-rank parts, and to fade, write and read the memory."""
        width = self.place.width
        ranks = 2 * _MIXTURES * self.config.mix_rank + 2 * self.config.decay_rank
        return width * (10 * width + 2 * ranks + 5 * self.key) * length


def _mixtures(starts: Tensor | None, x: Tensor, before: Tensor, low: Tensor, mixture: Tensor, out: Tensor) -> tuple[Tensor, ...]:
    """Every token x (B,T,D) with the one before it, in shares that the token says by low (BT,M,R)."""
    weights = torch.baddbmm(mixture[:, None], low.transpose(0, 1), out)  # 2404.05892 eq. 17
    earlier = torch.cat([before[:, None], x[:, :-1]], 1)
    if starts is not None:
        earlier = earlier.masked_fill(starts[..., None], 0.0)
    gap = earlier - x
    return tuple(torch.addcmul(x, gap, weight.view_as(x)) for weight in weights)


def _published(width: int, depth: int, **more: Any) -> dict[str, Any]:
    return {"width": width, "depth": depth, "vocab_size": 65536, "channel.hidden": int(3.5 * width) // 32 * 32, **more}


_CHANNEL = {"name": "rwkv4", "key_gain": 1.0}
_FRAME = {"tied": False, "norm": "layernorm", "eps": 1e-5, "embed_norm": True, "embed_std": 1e-4}

ARCHITECTURE = Architecture(
    block=BlockConfig(mixer={"name": "rwkv6"}, channel=_CHANNEL, norm="layernorm", eps=1e-5),
    frame=_FRAME,
    head="mixer.head_dim",
    fine_ratio=3.5,
    presets={
        "rwkv-6-1.6b": _published(2048, 24),
        "rwkv-6-3b": _published(2560, 32),
        "rwkv-6-7b": _published(4096, 32, **{"mixer.mix_rank": 64, "mixer.decay_rank": 128}),
    },
)

EAGLE = Architecture(
    block=BlockConfig(
        mixer={"name": "rwkv6", "mix_rank": 0, "decay_rank": 0}, channel=_CHANNEL, norm="layernorm", eps=1e-5
    ),
    frame=_FRAME,
    head="mixer.head_dim",
    fine_ratio=3.5,
    presets={
        "rwkv-5-0.4b": _published(1024, 24),
        "rwkv-5-1.5b": _published(2048, 24),
        "rwkv-5-3b": _published(2560, 32),
        "rwkv-5-7b": _published(4096, 32),
    },
)

register(
    "rwkv5",
    architecture="EAGLE",
    summary="RWKV-5 (Eagle): a matrix memory with a fixed decay per channel, and token shift",
    paper="2404.05892",
    year=2024,
    tags=("causal", "recurrent", "parallel", "zero-start"),
    presets=("rwkv-5-0.4b", "rwkv-5-1.5b", "rwkv-5-3b", "rwkv-5-7b"),
)
register(
    "rwkv6",
    mixer="RWKV6",
    architecture="ARCHITECTURE",
    summary="RWKV-6 (Finch): matrix memory, data-dependent decay and token shift",
    paper="2404.05892",
    year=2024,
    tags=("causal", "recurrent", "parallel", "zero-start"),
    presets=("rwkv-6-1.6b", "rwkv-6-3b", "rwkv-6-7b"),
)
