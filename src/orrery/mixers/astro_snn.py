"""Astrocyte-modulated spiking mixer (a reconstruction): neurons that fire, slow astrocytes that say how much a spike counts.

Paper: Astrocyte-Enabled Advancements in Spiking Neural Networks for Large Language Modeling (arXiv 2312.07625). Of the
    mechanism no code and no full equations are public; what follows is consistent with what is said of it (spikes, token
    shift, a parallel form for training and a recurrent one for inference that are equal, constant memory), and no more.

Equation: x' = mu x_t + (1 - mu) x_{t-1}, one mu each for k, v, r;  k, v, r = W_k x', W_v x', W_r x'
    neuron:     u_t = a u_{t-1} + v_t;  s_t = 1 if u_t > theta else 0          (gradient of s: the triangle max(0, 1 - |u - theta|))
    astrocyte:  c_t = b c_{t-1} + (1 - b) s_t exp(min(k_t, 8));  g_t = sigmoid(w c_t + e)
    y_t = W_o (g_t s_t sigmoid(r_t));  a, b per channel, learned, a faster than b

Shapes: B batch, T time, D width, E channels (D unless set).

Cost: train and prefill O(T) by scans, decode O(1): 4 D E multiply-adds a token; state D + 2 E numbers.

Differs from the paper: as far as can be known, in everything that it does not publish. A neuron is not reset when it fires:
    the reset is what would make the recurrence sequential. The channel mixer is a squared-ReLU network without spikes.

Oracle: tests/oracles/astro_snn.py (float64 loops of the recurrent form).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig
from orrery.nn.contract import Context, Mixer, PartConfig, Place
from orrery.nn.marks import no_decay
from orrery.nn.state import state
from orrery.nn.stepping import Step, Stepping, in_order, linear_step, plain_linear
from orrery.nn.timeline import fresh_clock
from orrery.ops.diagonal_scan import diagonal_scan
from orrery.ops.egru import event
from orrery.ops.fused.token_shift import token_mix
from orrery.ops.steps.row_linear import RowNorm, row_norm_into
from orrery.ops.steps.rwkv4 import mix_step
from orrery.ops.steps.spiking import astrocyte_step

_LARGEST = 8.0  # of k: one spike may weigh e^8


@dataclass(frozen=True, kw_only=True)
class AstroSNNConfig(PartConfig):
    """hidden: E. threshold: initial theta. fast, slow: initial half-lives in tokens of neurons and of astrocytes, spread
    evenly in the logarithm over the channels. astrocyte: False leaves it out (g = 1), for comparison."""

    hidden: int | None = None
    threshold: float = 0.5
    fast: tuple[float, float] = (0.5, 8.0)
    slow: tuple[float, float] = (1.0, 512.0)
    astrocyte: bool = True

    def __post_init__(self) -> None:
        require(self.hidden is None or self.hidden > 0, f"hidden must be positive, not {self.hidden}")
        for name in ("fast", "slow"):
            low, high = getattr(self, name)
            require(0 < low <= high, f"{name} must be a range of positive half-lives, not {low} to {high}")


@state
class AstroSNNState(NamedTuple):
    """shift: the last token (B,D); potential, calcium: (B,E), float32; clock: (B,2)."""

    shift: Tensor
    potential: Tensor
    calcium: Tensor
    clock: Tensor


class AstroSNN(Mixer):
    """The spiking mixer."""

    Config = AstroSNNConfig
    State = AstroSNNState
    config: AstroSNNConfig
    examples = ({}, {"hidden": 24, "astrocyte": False})

    def __init__(self, config: AstroSNNConfig, place: Place) -> None:
        super().__init__(config, place)
        self.hidden = config.hidden or place.width
        self.shares = nn.Parameter(torch.empty(3 if config.astrocyte else 2, place.width))  # mu of v, r, k
        self.value = nn.Linear(place.width, self.hidden, bias=False)
        self.receptance = nn.Linear(place.width, self.hidden, bias=False)
        self.key = nn.Linear(place.width, self.hidden, bias=False) if config.astrocyte else None
        self.out = nn.Linear(self.hidden, place.width, bias=False)
        self.theta = nn.Parameter(torch.empty(self.hidden))
        self.fast_rate = nn.Parameter(torch.empty(self.hidden))  # a = exp(-exp(fast_rate))
        self.slow_rate = nn.Parameter(torch.empty(self.hidden)) if config.astrocyte else None
        self.gain = nn.Parameter(torch.empty(2, self.hidden)) if config.astrocyte else None  # w and e
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Matrices uniform +-1/sqrt(fan-in), the way out scaled by 1/sqrt(2 depth); half-lives as configured; shares spread
        over channels; w 1, e 0."""
        for linear in (self.value, self.receptance, self.key, self.out):
            if linear is not None:
                nn.init.uniform_(linear.weight, -(linear.in_features**-0.5), linear.in_features**-0.5)
        with torch.no_grad():
            self.out.weight /= math.sqrt(2 * self.place.depth)
            self.theta.fill_(self.config.threshold)
            self.shares.copy_((torch.arange(self.place.width) / self.place.width).expand_as(self.shares))
            for rate, (low, high) in ((self.fast_rate, self.config.fast), (self.slow_rate, self.config.slow)):
                if rate is not None:
                    spread = torch.linspace(math.log(low), math.log(high), self.hidden)
                    rate.copy_(math.log(math.log(2.0)) - spread)
            if self.gain is not None:
                self.gain[0].fill_(1.0)
                self.gain[1].fill_(0.0)
        no_decay(self.shares, self.gain)

    def mix(self, x: Tensor, state: AstroSNNState | None, ctx: Context) -> tuple[Tensor, AstroSNNState]:
        time = ctx.timeline
        mixed, shift = token_mix(x, self.shares, None if state is None else state.shift, time.starts, time.lengths)
        kind = torch.float64 if x.dtype == torch.float64 else torch.float32
        v, r = self.value(mixed[0]).to(kind), self.receptance(mixed[1])
        before = (None, None) if state is None else (state.potential, state.calcium)
        u, potential = diagonal_scan(-self.fast_rate.to(kind).exp(), v, before[0], time.starts, time.lengths)
        spikes = event(u - self.theta.to(kind), 1.0, 1.0)
        y, calcium = spikes, torch.zeros_like(potential) if state is None else state.calcium
        if self.key is not None and self.slow_rate is not None and self.gain is not None:
            log_b = -self.slow_rate.to(kind).exp()
            written = -torch.expm1(log_b) * spikes * self.key(mixed[2]).to(kind).clamp(max=_LARGEST).exp()
            c, calcium = diagonal_scan(log_b, written, before[1], time.starts, time.lengths)
            y = spikes * torch.sigmoid(self.gain[0].to(kind) * c + self.gain[1].to(kind))
        if ctx.aux is not None and "activity" in ctx.aux.wanted:
            valid = time.valid(x.shape[1])
            ctx.aux.put("activity", self.place.layer, float((spikes if valid is None else spikes[valid]).detach().mean()))
        y = self.out(y.to(r.dtype) * torch.sigmoid(r))
        return y, AstroSNNState(shift, potential, calcium, time.clock)

    def stepper(self, norm: RowNorm, state: AstroSNNState, run: Stepping) -> Step | None:
        maps = (self.value, self.receptance, *(() if self.key is None else (self.key,)))
        if not plain_linear(*maps, self.out):
            return None
        h, p = torch.empty_like(run.x), run.x.new_empty(len(maps), *run.x.shape)
        read = run.x.new_empty(3, len(run.x), self.hidden)  # v, r, k
        y, potential, calcium = run.x.new_empty(len(run.x), self.hidden), run.own(state.potential), run.own(state.calcium)
        rates = torch.stack([rate.detach() for rate in (self.fast_rate, self.slow_rate) if rate is not None])
        gain = y.new_empty(0, self.hidden) if self.gain is None else self.gain
        mixed = row_norm_into(run.x, norm, h), mix_step(h, run.own(state.shift), self.shares, p)
        own = [linear_step(p[n], linear, read[n]) for n, linear in enumerate(maps)]
        fire = astrocyte_step(read[0], read[2], read[1], self.theta, (-rates.exp()).exp(), gain, potential, calcium, y, _LARGEST)
        return in_order(*mixed, *own, fire, linear_step(y, self.out, run.x, add=True))

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> AstroSNNState:
        """At rest; float32 unless `dtype` is float64."""
        kind = torch.float64 if dtype == torch.float64 else torch.float32
        potential, calcium = torch.zeros(2, batch, self.hidden, device=device, dtype=kind)
        shift = torch.zeros(batch, self.place.width, device=device, dtype=dtype)
        return AstroSNNState(shift, potential, calcium, fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        """Constant in the length."""
        number = self.out.weight.element_size()
        return 2 * self.hidden * max(4, number) + self.place.width * number

    def flops(self, length: int) -> int:
        """The projections; neurons and astrocytes (some 20 E) are not counted."""
        return 2 * self.place.width * self.hidden * (4 if self.key is not None else 3) * length


ARCHITECTURE = Architecture(
    block=BlockConfig(mixer={"name": "astro-snn"}, channel={"name": "mlp", "activation": "relu2"}, norm="layernorm", eps=1e-5),
    frame={"tied": True, "norm": "layernorm", "eps": 1e-5},
    width_step=32,
    fine_ratio=4.0,
)

register(
    "astro-snn",
    mixer="AstroSNN",
    architecture="ARCHITECTURE",
    summary="Astrocyte-modulated spiking recurrence, parallel and recurrent (reconstruction)",
    paper="2312.07625",
    year=2023,
    tags=("causal", "recurrent", "parallel", "surrogate"),
)
