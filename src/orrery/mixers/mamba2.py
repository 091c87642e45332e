"""Mamba-2: a selective state space model whose heads decay by one number a token.

Paper: Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space Duality
    (arXiv 2405.21060, sections 6 and 7); selective state spaces 2312.00752.

Equation: [z, xBC, dt] = W_in u;  x, B, C = silu(conv(xBC));  dt = softplus(dt + b_dt);  per head
    S_t = exp(-exp(A_log) dt_t) S_{t-1} + dt_t B_t x_t^T;  y_t = C_t S_t + D x_t
    out = W_out (w * rmsnorm(y * silu(z)))

Shapes: B batch, T time, D width, E inner size (expand D), H heads, P head dimension (E = H P), G groups that share B and
    C, N state size of a head per channel, K taps of the convolution.

Cost: train and prefill O(T) in chunks, decode O(1): 3 E D + 2 E N multiply-adds a token; state E N + (K-1)(E + 2GN) numbers.

Differs from the paper: E is the multiple of the head dimension nearest to expand D, so that any width can be built.

Oracle: tests/oracles/mamba2.py (float64 loops); transformers' Mamba-2 with the same weights.
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
from orrery.nn.conv import ShortConv
from orrery.nn.exchange import ExchangeMap, Rule, mamba2_rules
from orrery.nn.projection import Projection
from orrery.nn.recompute import linear_of
from orrery.nn.state import state
from orrery.nn.stepping import Step, Stepping, in_order, linear_step, plain_linear, plain_out
from orrery.nn.timeline import fresh_clock
from orrery.ops.fused.gated_rms_norm import gated_rms_norm
from orrery.ops.fused.gates import silu_gate
from orrery.ops.fused.rms_norm import rms_norm
from orrery.ops.scalar_decay import scalar_decay, scalar_decay_matrix, scalar_decay_step
from orrery.ops.steps.mamba2 import StepWeights, can_step, mamba2_step, mamba2_stepper
from orrery.ops.steps.row_linear import RowNorm

GATE_NORMS = ("after", "before", "none")


@dataclass(frozen=True, kw_only=True)
class Mamba2Config(PartConfig):
    """state: N. groups: G. expand: E / D. conv: K. dt_init, a_init: ranges of the initial step sizes (log-uniform, at least
    dt_floor) and decay rates (uniform). dt_limit: bounds of the step size in use; None: none. bias: of both projections.
    gate_norm: RMSNorm "after" the gate, "before" it, or "none" (Falcon-H1)."""

    head_dim: int = 64
    state: int = 128
    groups: int = 1
    expand: float = 2.0
    conv: int = 4
    eps: float = 1e-5
    dt_init: tuple[float, float] = (1e-3, 1e-1)
    dt_floor: float = 1e-4
    dt_limit: tuple[float, float] | None = None
    a_init: tuple[float, float] = (1.0, 16.0)
    bias: bool = False
    conv_bias: bool = True
    chunk: int | None = None
    gate_norm: str = "after"

    def __post_init__(self) -> None:
        for name in ("head_dim", "state", "groups", "conv", "expand", "dt_floor"):
            require(getattr(self, name) > 0, f"{name} must be positive, not {getattr(self, name)}")
        require(self.gate_norm in GATE_NORMS, f"gate_norm '{self.gate_norm}' must be one of {', '.join(GATE_NORMS)}")
        require(self.chunk is None or self.chunk > 0, f"chunk must be positive, not {self.chunk}")
        for name in ("dt_init", "a_init"):
            low, high = getattr(self, name)
            require(0 < low <= high, f"{name} must be a range of positive numbers, not {low} to {high}")
        if self.dt_limit is not None:
            low, high = self.dt_limit
            require(0 <= low <= high, f"dt_limit must be a range of numbers from 0 on, not {low} to {high}")


@state
class Mamba2State(NamedTuple):
    """conv: the last inputs of the convolution (B,K-1,E+2GN); ssm: (B,H,N,P); clock: (B,2)."""

    conv: Tensor
    ssm: Tensor
    clock: Tensor


class Mamba2(Mixer):
    """The Mamba-2 mixer, gate and norm included; its block has no channel mixer."""

    Config = Mamba2Config
    State = Mamba2State
    config: Mamba2Config
    examples = (
        {"head_dim": 8, "state": 8},
        {"head_dim": 16, "state": 4, "groups": 2, "dt_limit": (0.05, 0.5), "bias": True, "conv_bias": False, "conv": 3},
        {"head_dim": 16, "state": 4, "groups": 2, "gate_norm": "before"},
        {"head_dim": 16, "state": 4, "gate_norm": "none"},
    )

    def __init__(self, config: Mamba2Config, place: Place) -> None:
        super().__init__(config, place)
        self.heads = max(1, round(config.expand * place.width / config.head_dim))
        require(
            self.heads % config.groups == 0,
            f"groups {config.groups} must divide the {self.heads} heads that width {place.width}, expand {config.expand}"
            f" and head_dim {config.head_dim} make",
        )
        self.inner = self.heads * config.head_dim
        self.shared = config.groups * config.state
        self.mixed = self.inner + 2 * self.shared  # channels of the convolution: x, B, C
        self.inputs = Projection(place, self.inner + self.mixed + self.heads, bias=config.bias, canon=False)
        self.conv = ShortConv(self.mixed, config.conv, activation="silu", bias=config.conv_bias)
        self.dt_bias = nn.Parameter(torch.empty(self.heads))
        self.A_log = nn.Parameter(torch.empty(self.heads))
        self.D = nn.Parameter(torch.empty(self.heads))
        self.norm = nn.Parameter(torch.empty(self.inner)) if config.gate_norm != "none" else None
        self.out = nn.Linear(self.inner, place.width, bias=config.bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Step sizes log-uniform, decay rates uniform, D and norm 1, matrices as PyTorch's linear maps; the way out is
        scaled by 1/sqrt(depth) (the published code's choices)."""
        config = self.config
        for linear in (self.inputs.linear, self.out):
            bound = linear.in_features**-0.5
            nn.init.uniform_(linear.weight, -bound, bound)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        self.conv.reset_parameters()
        with torch.no_grad():
            self.out.weight /= math.sqrt(self.place.depth)
            low, high = (math.log(bound) for bound in config.dt_init)
            dt = nn.init.uniform_(self.dt_bias, low, high).exp().clamp(min=config.dt_floor)
            self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
            nn.init.uniform_(self.A_log, *config.a_init).log_()
        nn.init.ones_(self.D)
        if self.norm is not None:
            nn.init.ones_(self.norm)

    def mix(self, x: Tensor, state: Mamba2State | None, ctx: Context) -> tuple[Tensor, Mamba2State]:
        time, asked = ctx.timeline, ctx.wants("decay_log")
        if x.shape[1] == 1 and state is not None and time.starts is None and time.lengths is None and not asked:
            return self._step(x, state, ctx)
        p, _ = self.inputs(x, None, ctx)
        z, xbc, dt = p.split([self.inner, self.mixed, self.heads], -1)
        xbc, conv = self.conv(xbc, None if state is None else state.conv, ctx)
        v, k, q = self._heads(xbc)
        g_log, dt = self._gates(dt)
        ctx.report_decay(self.place.layer, ssm=g_log)
        y, ssm = scalar_decay(  # 2405.21060 section 6
            q,
            k,
            v,
            g_log,
            None if state is None else state.ssm,
            time.starts,
            chunk=self.config.chunk,
            beta=dt,
            skip=self.D,
            lengths=time.lengths,
        )
        return linear_of(self._gate, self.out, y.flatten(2), z, self.norm), Mamba2State(conv, ssm, time.clock)

    def _step(self, x: Tensor, state: Mamba2State, ctx: Context) -> tuple[Tensor, Mamba2State]:
        """One token that continues a state: the same function in as few calls as possible."""
        config = self.config
        p = self.inputs.linear(x[:, 0])
        if can_step(p, state.conv, state.ssm):
            weights = StepWeights(self.conv.weight, self.conv.bias, self.dt_bias, self.A_log, self.D, self.norm)
            y, window, ssm = mamba2_step(
                p, state.conv, state.ssm, weights, config.groups, config.eps, config.dt_limit, ctx.donate, config.gate_norm == "before"
            )
            return self.out(y)[:, None], Mamba2State(window, ssm, ctx.timeline.clock)
        z, xbc, dt = p.split([self.inner, self.mixed, self.heads], 1)
        window = torch.cat([state.conv.to(p.dtype), xbc[:, None]], 1)
        taps = (window * self.conv.weight.t()).sum(1)
        v, k, q = self._heads(F.silu(taps if self.conv.bias is None else taps.add_(self.conv.bias)))
        g_log, dt = self._gates(dt)
        y, ssm = scalar_decay_step(q, k, v, g_log, state.ssm, beta=dt, skip=self.D, donate=ctx.donate)
        return self.out(self._gate(y.flatten(1), z, self.norm))[:, None], Mamba2State(window[:, 1:], ssm, ctx.timeline.clock)

    def _gate(self, y: Tensor, z: Tensor, gain: Tensor | None) -> Tensor:
        """What the heads put out (..., E), normed and gated by z (..., E)."""
        config = self.config
        if gain is None:
            return silu_gate(z, y.to(z.dtype))
        if config.gate_norm == "after":
            return gated_rms_norm(y, z, gain, config.eps, config.groups)
        parts = rms_norm(y.unflatten(-1, (config.groups, -1)), None, config.eps)
        return silu_gate(z, (parts.flatten(-2) * gain).to(z.dtype))

    def _heads(self, xbc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From (..., E+2GN): x (..., H, P), B and C (..., G, N)."""
        x, b, c = xbc.split([self.inner, self.shared, self.shared], -1)
        groups = (self.config.groups, self.config.state)
        return x.unflatten(-1, (self.heads, -1)), b.unflatten(-1, groups), c.unflatten(-1, groups)

    def _gates(self, dt: Tensor) -> tuple[Tensor, Tensor]:
        """From raw step sizes (..., H): the log of the decay, and the step sizes, in float32 at least."""
        kind = torch.float64 if dt.dtype == torch.float64 else torch.float32
        dt = F.softplus(dt.to(kind) + self.dt_bias)
        if self.config.dt_limit is not None:
            dt = dt.clamp(*self.config.dt_limit)
        return -dt * self.A_log.to(kind).exp(), dt

    @torch.no_grad()
    def forget_more(self, decay: float, insertion: float) -> None:
        """Raise every token's decay to the power `decay` and write `insertion` times as much, by changing parameters.

        Writing less is reading less of a linear state: heads put out b (S read + D/b x), and a norm undoes b (up to eps).
        """
        self.A_log.add_(math.log(decay))
        self.D.div_(insertion)
        if self.norm is None:
            self.out.weight.mul_(insertion)

    def stepper(self, norm: RowNorm, state: Mamba2State, run: Stepping) -> Step | None:
        if not (plain_linear(self.inputs.linear) and plain_out(self.out)):
            return None
        config, batch = self.config, len(run.x)
        p, y = run.x.new_empty(batch, self.inner + self.mixed + self.heads), run.x.new_empty(batch, self.inner)
        window, ssm = run.own(state.conv), run.own(state.ssm)
        weights = StepWeights(self.conv.weight, self.conv.bias, self.dt_bias, self.A_log, self.D, self.norm)
        project = linear_step(run.x, self.inputs.linear, p, norm)
        recur = mamba2_stepper(p, window, ssm, y, weights, config.groups, config.eps, config.dt_limit, config.gate_norm == "before")
        out = linear_step(y, self.out, run.x, add=True)
        return in_order(project, recur, out)

    def transfer(self, x: Tensor, ctx: Context) -> Tensor:
        """The matrix (B,H,T,T) that maps x to y (before gate and norm) for a whole sequence; D is on its diagonal."""
        p, _ = self.inputs(x, None, ctx)
        _, xbc, dt = p.split([self.inner, self.mixed, self.heads], -1)
        _, k, q = self._heads(self.conv(xbc, None, ctx)[0])
        g_log, dt = self._gates(dt)
        return scalar_decay_matrix(q, k, g_log, ctx.timeline.starts, beta=dt, skip=self.D)

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> Mamba2State:
        """Nothing seen; the matrix state is float32 unless `dtype` is float64."""
        shape = (batch, self.heads, self.config.state, self.config.head_dim)
        kind = torch.float64 if dtype == torch.float64 else torch.float32
        ssm = torch.zeros(shape, device=device, dtype=kind)
        return Mamba2State(self.conv.init_state(batch, device, dtype), ssm, fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        """Constant in the length."""
        number = max(4, self.out.weight.element_size())
        return number * self.inner * self.config.state + self.conv.state_bytes()

    def flops(self, length: int) -> int:
        """Projections, convolution, and 2 E N each for writing the state and reading it, per token."""
        projections = self.inputs.flops(length) + 2 * self.inner * self.place.width * length
        return projections + self.conv.flops(length) + 4 * self.inner * self.config.state * length


def _read(hf: dict[str, Any]) -> dict[str, Any]:
    require(hf.get("hidden_act", "silu") in ("silu", "swish"), f"no counterpart for activation {hf.get('hidden_act')}")
    limit = tuple(float(bound) for bound in hf.get("time_step_limit") or (0.0, math.inf))
    return {
        "width": hf["hidden_size"],
        "depth": hf["num_hidden_layers"],
        "vocab_size": hf["vocab_size"],
        "mixer.head_dim": hf["head_dim"],
        "mixer.expand": hf["num_heads"] * hf["head_dim"] / hf["hidden_size"],
        "mixer.state": hf["state_size"],
        "mixer.groups": hf["n_groups"],
        "mixer.conv": hf["conv_kernel"],
        "mixer.eps": hf["layer_norm_epsilon"],
        "mixer.dt_init": (hf.get("time_step_min", 1e-3), hf.get("time_step_max", 1e-1)),
        "mixer.dt_floor": hf.get("time_step_floor", 1e-4),
        "mixer.dt_limit": None if limit == (0.0, math.inf) else limit,
        "mixer.bias": hf.get("use_bias", False),
        "mixer.conv_bias": hf.get("use_conv_bias", True),
        "eps": hf["layer_norm_epsilon"],
        "tied": hf.get("tie_word_embeddings", False),
    }


def _write(own: dict[str, Any]) -> dict[str, Any]:
    block = own["blocks"][0]
    plain = not block["channel"] and block["placement"] == "pre" and block["norm"] == own["norm"] == "rmsnorm"
    require(own["layout"] == [0] * len(own["layout"]) and plain and not block["canon"], "Mamba-2 has one kind of block")
    config = Mamba2Config.from_dict({key: value for key, value in block["mixer"].items() if key != "name"})
    require(config.eps == block["eps"] == own["eps"], "Mamba-2 has one eps for all of its norms")
    require(config.gate_norm == "after", "Mamba-2 in transformers has its norm after the gate")
    heads = max(1, round(config.expand * own["width"] / config.head_dim))
    expand = heads * config.head_dim // own["width"]
    require(
        expand * own["width"] == heads * config.head_dim,
        f"Mamba-2 in transformers needs an inner size ({heads * config.head_dim}) that is a multiple of the width ({own['width']})",
    )
    return {
        "hidden_size": own["width"],
        "num_hidden_layers": len(own["layout"]),
        "vocab_size": own["vocab_size"],
        "num_heads": heads,
        "head_dim": config.head_dim,
        "expand": expand,
        "state_size": config.state,
        "n_groups": config.groups,
        "conv_kernel": config.conv,
        "layer_norm_epsilon": config.eps,
        "time_step_min": config.dt_init[0],
        "time_step_max": config.dt_init[1],
        "time_step_floor": config.dt_floor,
        **({} if config.dt_limit is None else {"time_step_limit": list(config.dt_limit)}),
        "use_bias": config.bias,
        "use_conv_bias": config.conv_bias,
        "chunk_size": 64,
        "hidden_act": "silu",
        "tie_word_embeddings": own["tied"],
    }


_LAYER = "backbone.layers.{i}"
EXCHANGE = ExchangeMap(
    model_type="mamba2",
    cls="Mamba2ForCausalLM",
    read=_read,
    write=_write,
    rules=(
        Rule("embed.weight", ("backbone.embeddings.weight",)),
        Rule("blocks.{i}.mixer_norm.weight", (f"{_LAYER}.norm.weight",)),
        *mamba2_rules("blocks.{i}.mixer", f"{_LAYER}.mixer"),
        Rule("norm.weight", ("backbone.norm_f.weight",)),
        Rule("head.weight", ("lm_head.weight",)),
    ),
    prefixes=("backbone.",),
)


def _published(width: int, depth: int) -> dict[str, Any]:
    return {"width": width, "depth": depth, "vocab_size": 50288, "mixer.head_dim": 64, "mixer.state": 128}


ARCHITECTURE = Architecture(
    block=BlockConfig(mixer={"name": "mamba2"}, eps=1e-5),
    frame={"tied": True, "eps": 1e-5},
    depth_factor=2.0,
    head="mixer.head_dim",
    width_step=8,
    fine="mixer.state",
    fine_step=8,
    fine_ratio=0.0,
    fine_base=128.0,
    presets={
        "mamba2-130m": _published(768, 24),
        "mamba2-370m": _published(1024, 48),
        "mamba2-780m": _published(1536, 48),
        "mamba2-1.3b": _published(2048, 48),
        "mamba2-2.7b": _published(2560, 64),
    },
    exchange=(EXCHANGE,),
)

register(
    "mamba2",
    mixer="Mamba2",
    architecture="ARCHITECTURE",
    summary="Mamba-2: selective state space with scalar decay per head (SSD)",
    paper="2405.21060",
    year=2024,
    tags=("causal", "recurrent", "parallel"),
    presets=("mamba2-130m", "mamba2-370m", "mamba2-780m", "mamba2-1.3b", "mamba2-2.7b"),
    exchange=("mamba2",),
)
