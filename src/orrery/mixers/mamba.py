"""Mamba: a selective state space model; every channel keeps N numbers, which fade and fill as the token says.

Paper: Mamba: Linear-Time Sequence Modeling with Selective State Spaces (arXiv 2312.00752); the norms of Falcon Mamba
    (2410.05355) and Jamba (2403.19887) are settings.

Equation: [u, z] = W_in x;  u = silu(conv(u));  [r, B, C] = W_x u;  delta = softplus(W_dt r + b_dt);  A = -exp(A_log);  per
    channel  h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t;  s_t = C_t . h_t + D u_t;  y = W_out (s * silu(z))

Shapes: B batch, T time, D width, E inner size (2 D unless set), N state size of a channel, R rank of the step size
    (D / 16 unless set), K taps of the convolution.

Cost: train and prefill O(T) in one pass, decode O(1): 3 D E + E (2 R + 2 N) + 3 E N multiply-adds a token; state
    E N + (K-1) E numbers.

Differs from the paper: nothing.

Oracle: tests/oracles/mamba.py (float64 loops); transformers' Mamba and Falcon Mamba with the same weights.
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
from orrery.nn.conv import ShortConv
from orrery.nn.exchange import ExchangeMap, Rule, linear_rules
from orrery.nn.marks import no_decay
from orrery.nn.projection import Projection
from orrery.nn.state import state
from orrery.nn.stepping import Step, Stepping, in_order, linear_step, plain_linear
from orrery.nn.timeline import fresh_clock
from orrery.ops.fused.rms_norm import rms_norm
from orrery.ops.selective_scan import selective_scan, selective_scan_matrix
from orrery.ops.steps.diagonal import conv_step, selective_step
from orrery.ops.steps.row_linear import RowNorm, row_linear
from orrery.ops.steps.row_steps import copy_rows


@dataclass(frozen=True, kw_only=True)
class MambaConfig(PartConfig):
    """hidden: E (None: 2 D). state: N. rank: R (None: D / 16, rounded up). conv: K. norm_eps: B, C and the step size's input go
    through an RMSNorm with this eps (None: none); norm_gain: with weights. dt_init, dt_floor, dt_scale: range and least of the initial step
    sizes (log-uniform), and the scale of W_dt. bias: of the way in and out. heads: groups of channels, each with B, C and step sizes
    from its own channels (Zamba, 2405.16712); 1 in the paper."""

    hidden: int | None = None
    state: int = 16
    rank: int | None = None
    conv: int = 4
    norm_eps: float | None = None
    norm_gain: bool = False
    dt_init: tuple[float, float] = (1e-3, 1e-1)
    dt_floor: float = 1e-4
    dt_scale: float = 1.0
    bias: bool = False
    conv_bias: bool = True
    heads: int = 1

    def __post_init__(self) -> None:
        for name in ("state", "conv", "dt_floor", "dt_scale", "heads"):
            require(getattr(self, name) > 0, f"{name} must be positive, not {getattr(self, name)}")
        for name in ("hidden", "rank", "norm_eps"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name} must be positive, not {value}")
        require(self.norm_eps is not None or not self.norm_gain, "norm_gain needs norm_eps")
        require(self.norm_eps is None or self.heads == 1, "norms of B, C and step sizes (norm_eps) go with one head")
        low, high = self.dt_init
        require(0 < low <= high, f"dt_init must be a range of positive numbers, not {low} to {high}")


@state
class MambaState(NamedTuple):
    """conv: the last inputs of the convolution (B,K-1,E); ssm: (B,N,E), float32; clock: (B,2)."""

    conv: Tensor
    ssm: Tensor
    clock: Tensor


class Mamba(Mixer):
    """The Mamba mixer, gate included; its block has no channel mixer."""

    Config = MambaConfig
    State = MambaState
    config: MambaConfig
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"state": 4, "hidden": 40},
        {"state": 3, "hidden": 24, "rank": 5, "norm_eps": 1e-3, "norm_gain": True, "bias": True, "conv_bias": False, "conv": 3},
        {"state": 3, "hidden": 24, "rank": 4, "heads": 2},
    )

    def __init__(self, config: MambaConfig, place: Place) -> None:
        super().__init__(config, place)
        self.inner = config.hidden or 2 * place.width
        self.rank = config.rank or math.ceil(place.width / 16)
        self.inputs = Projection(place, 2 * self.inner, bias=config.bias, canon=False)
        self.conv = ShortConv(self.inner, config.conv, activation="silu", bias=config.conv_bias)
        require(self.inner % config.heads == 0, f"heads {config.heads} must divide the {self.inner} channels")
        self.select = nn.Linear(self.inner // config.heads, config.heads * (self.rank + 2 * config.state), bias=False)
        sizes = (self.rank, config.state, config.state) if config.norm_gain else ()
        self.gains = nn.ParameterList([torch.empty(size) for size in sizes])  # of the norms of r, B and C
        self.dt = nn.Linear(self.rank, self.inner, bias=True)
        self.A_log = nn.Parameter(torch.empty(self.inner, config.state))
        self.D = nn.Parameter(torch.empty(self.inner))
        self.out = nn.Linear(self.inner, place.width, bias=config.bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A = -1 .. -N in every channel (S4D-real), D 1, step sizes log-uniform, W_dt uniform +-R^-1/2, other matrices as PyTorch's
        linear maps; the way out is scaled by 1/sqrt(depth) (the published code's choices)."""
        config = self.config
        for linear in (self.inputs.linear, self.select, self.out):
            nn.init.uniform_(linear.weight, -(linear.in_features**-0.5), linear.in_features**-0.5)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        self.conv.reset_parameters()
        bound = config.dt_scale * self.rank**-0.5
        nn.init.uniform_(self.dt.weight, -bound, bound)
        with torch.no_grad():
            self.out.weight /= math.sqrt(self.place.depth)
            low, high = (math.log(end) for end in config.dt_init)
            dt = nn.init.uniform_(self.dt.bias, low, high).exp().clamp(min=config.dt_floor)
            self.dt.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
            self.A_log.copy_(torch.arange(1, config.state + 1).log().expand_as(self.A_log))
        for gain in (self.D, *self.gains):
            nn.init.ones_(gain)
        no_decay(self.A_log)

    def mix(self, x: Tensor, state: MambaState | None, ctx: Context) -> tuple[Tensor, MambaState]:
        time = ctx.timeline
        u, z, conv = self._inputs(x, None if state is None else state.conv, ctx)
        ssm = None if state is None else state.ssm
        if self.config.heads == 1:
            dt, b, c = self._selected(u)
            y, ssm = selective_scan(  # 2312.00752 section 3.2
                u, dt, self._rates(), b, c, self.D, z, self.dt.bias, ssm, time.starts, time.lengths
            )
            return self.out(y), MambaState(conv, ssm, time.clock)
        states = (None,) * self.config.heads if ssm is None else ssm.chunk(self.config.heads, -1)
        found = [
            selective_scan(own, dt, rates, b, c, skip, gate, bias, held, time.starts, time.lengths)
            for (own, dt, b, c), (rates, skip, bias), gate, held in zip(
                self._selected_by_heads(u), self._by_heads(), z.chunk(self.config.heads, -1), states, strict=True
            )
        ]
        y, ssm = (torch.cat(parts, -1) for parts in zip(*found, strict=True))
        return self.out(y), MambaState(conv, ssm, time.clock)

    def _inputs(self, x: Tensor, conv: Tensor | None, ctx: Context) -> tuple[Tensor, Tensor, Tensor]:
        """The convolved input and the gate (B,T,E), and the convolution's last inputs."""
        u, z = self.inputs.linear(x).chunk(2, -1)
        u, conv = self.conv(u, conv, ctx)
        return u, z, conv

    def _selected(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From u (B,T,E): step sizes without bias (B,T,E), B and C (B,T,N)."""
        parts = self.select(u).split([self.rank, self.config.state, self.config.state], -1)
        if self.config.norm_eps is not None:
            gains = list(self.gains) or [None] * 3
            parts = tuple(rms_norm(part, gain, self.config.norm_eps) for part, gain in zip(parts, gains, strict=True))  # 2410.05355
        dt, b, c = parts
        return F.linear(dt, self.dt.weight), b, c

    def _selected_by_heads(self, u: Tensor) -> list[tuple[Tensor, ...]]:
        """The same for every head from its own channels (B,T,E/H): these, step sizes, B and C."""
        found: list[tuple[Tensor, ...]] = []
        sizes = [self.rank, self.config.state, self.config.state]
        parts = (t.chunk(self.config.heads, dim) for t, dim in ((u, -1), (self.select.weight, 0), (self.dt.weight, 0)))
        for own, select, widen in zip(*parts, strict=True):
            dt, b, c = F.linear(own, select).split(sizes, -1)
            found.append((own, F.linear(dt, widen), b, c))
        return found

    def _by_heads(self) -> list[tuple[Tensor, ...]]:
        """Every head's rates (E/H,N), D and bias of step sizes (E/H,)."""
        return list(zip(*(each.chunk(self.config.heads) for each in (self._rates(), self.D, self.dt.bias)), strict=True))

    def _rates(self) -> Tensor:
        return -torch.exp(self.A_log if self.A_log.dtype == torch.float64 else self.A_log.float())

    def stepper(self, norm: RowNorm, state: MambaState, run: Stepping) -> Step | None:
        if self.config.norm_eps is not None or not plain_linear(self.inputs.linear, self.select, self.dt, self.out):
            return None
        p, y = run.x.new_empty(len(run.x), 2 * self.inner), run.x.new_empty(len(run.x), self.inner)
        recur = [step for head in range(self.config.heads) for step in self._head_steps(head, p, state, y, run)]
        return in_order(linear_step(run.x, self.inputs.linear, p, norm), *recur, linear_step(y, self.out, run.x, add=True))

    def _head_steps(self, head: int, p: Tensor, state: MambaState, y: Tensor, run: Stepping) -> list[Step]:
        """From what the way in leaves, p (B,2E), the columns of y (B,E) that are a head's channels."""
        heads, size = self.config.heads, self.inner // self.config.heads
        u, dt, out = (y.new_empty(len(y), size) for _ in range(3))
        low, selected = y.new_empty(len(y), self.rank), y.new_empty(len(y), 2 * self.config.state)
        out = y if heads == 1 else out
        both = ((held, y.new_empty(*held.shape[:-1], size)) for held in (state.conv, state.ssm))
        window, ssm = (run.own(held, own, lambda to, whole: to.copy_(whole.chunk(heads, -1)[head])) for held, own in both)
        taps, select, widen = (each.weight.chunk(heads)[head] for each in (self.conv, self.select, self.dt))
        rates, skip, dt_bias = self._by_heads()[head]
        shift = None if self.conv.bias is None else self.conv.bias.chunk(heads)[head]
        begin = head * size
        steps = [
            conv_step(p, window, taps, shift, u, begin, True),
            row_linear(u, select[: self.rank], None, low),
            row_linear(u, select[self.rank :], None, selected),
            row_linear(low, widen, dt_bias, dt),
            selective_step(u, dt, selected, p, self.inner + begin, rates, skip, ssm, out),
        ]
        return steps if heads == 1 else [*steps, copy_rows(out, y[:, begin : begin + size])]

    @torch.no_grad()
    def forget_more(self, decay: float, insertion: float) -> None:
        """Raise every token's decay to the power `decay` and write `insertion` times as much, by changing parameters.

        Writing less is reading less of a linear state: channels put out b (C . h + D/b u).
        """
        self.A_log.add_(math.log(decay))
        self.D.div_(insertion)
        self.out.weight.mul_(insertion)

    def transfer(self, x: Tensor, ctx: Context) -> Tensor:
        """The matrices (B,E,T,T) that map u to s, channel by channel, for a whole sequence; D is on their diagonals."""
        u, _, _ = self._inputs(x, None, ctx)
        selected = [(u, *self._selected(u))] if self.config.heads == 1 else self._selected_by_heads(u)
        found = [
            selective_scan_matrix(dt, rates, b, c, skip, bias, ctx.timeline.starts)
            for (_, dt, b, c), (rates, skip, bias) in zip(selected, self._by_heads(), strict=True)
        ]
        return torch.cat(found, 1)

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> MambaState:
        """Nothing seen; the states are float32 unless `dtype` is float64."""
        kind = torch.float64 if dtype == torch.float64 else torch.float32
        ssm = torch.zeros(batch, self.config.state, self.inner, device=device, dtype=kind)
        return MambaState(self.conv.init_state(batch, device, dtype), ssm, fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        """Constant in the length."""
        number = max(4, self.out.weight.element_size())
        return number * self.inner * self.config.state + self.conv.state_bytes()

    def flops(self, length: int) -> int:
        """Projections, convolution, and 2 E N each for fading, writing and reading the states, per token."""
        selected = self.rank + 2 * self.config.state
        own = 2 * self.inner * (self.place.width + selected + self.rank) + 6 * self.inner * self.config.state
        return self.inputs.flops(length) + self.conv.flops(length) + own * length


def _read(hf: dict[str, Any]) -> dict[str, Any]:
    require(hf.get("hidden_act", "silu") in ("silu", "swish"), f"no counterpart for activation {hf.get('hidden_act')}")
    width, rank = hf["hidden_size"], hf.get("time_step_rank", "auto")
    falcon = hf.get("model_type") == "falcon_mamba"
    return {
        "width": width,
        "depth": hf["num_hidden_layers"],
        "vocab_size": hf["vocab_size"],
        "mixer.hidden": hf.get("intermediate_size") or int(hf.get("expand", 2) * width),
        "mixer.state": hf["state_size"],
        "mixer.rank": None if rank == "auto" else rank,
        "mixer.conv": hf["conv_kernel"],
        "mixer.norm_eps": hf.get("mixer_rms_eps", 1e-6) if falcon else None,
        "mixer.dt_init": (hf.get("time_step_min", 1e-3), hf.get("time_step_max", 1e-1)),
        "mixer.dt_floor": hf.get("time_step_floor", 1e-4),
        "mixer.dt_scale": hf.get("time_step_scale", 1.0),
        "mixer.bias": hf.get("use_bias", False),
        "mixer.conv_bias": hf.get("use_conv_bias", True),
        "eps": hf["layer_norm_epsilon"],
        "tied": hf.get("tie_word_embeddings", True),
    }


def _write(own: dict[str, Any]) -> dict[str, Any]:
    block = own["blocks"][0]
    plain = not block["channel"] and block["placement"] == "pre" and block["norm"] == own["norm"] == "rmsnorm"
    require(own["layout"] == [0] * len(own["layout"]) and plain and not block["canon"], "Mamba has one kind of block")
    require(
        block["eps"] == own["eps"] and not own["embed_norm"],
        "Mamba has one eps for all of its norms, none behind the embedding",
    )
    config = MambaConfig.from_dict({key: value for key, value in block["mixer"].items() if key != "name"})
    require(config.heads == 1, "Mamba in transformers has one head")
    inner = config.hidden or 2 * own["width"]
    require(
        inner % own["width"] == 0,
        f"Mamba in transformers needs an inner size ({inner}) that is a multiple of the width ({own['width']})",
    )
    return {
        "hidden_size": own["width"],
        "num_hidden_layers": len(own["layout"]),
        "vocab_size": own["vocab_size"],
        "expand": inner // own["width"],
        "intermediate_size": inner,
        "state_size": config.state,
        "time_step_rank": config.rank or math.ceil(own["width"] / 16),
        "conv_kernel": config.conv,
        "layer_norm_epsilon": own["eps"],
        "time_step_min": config.dt_init[0],
        "time_step_max": config.dt_init[1],
        "time_step_floor": config.dt_floor,
        "time_step_scale": config.dt_scale,
        "use_bias": config.bias,
        "use_conv_bias": config.conv_bias,
        "hidden_act": "silu",
        "tie_word_embeddings": own["tied"],
        **({} if config.norm_eps is None else {"mixer_rms_eps": config.norm_eps}),
    }


def _write_mamba(own: dict[str, Any]) -> dict[str, Any]:
    require(
        own["blocks"][0]["mixer"].get("norm_eps") is None, "Mamba in transformers has no norms inside; Falcon Mamba has"
    )
    return _write(own)


def _write_falcon(own: dict[str, Any]) -> dict[str, Any]:
    require(own["blocks"][0]["mixer"].get("norm_eps") is not None, "Falcon Mamba has norms of B, C and the step size")
    return _write(own)


_LAYER = "backbone.layers.{i}"
_RULES = (
    Rule("embed.weight", ("backbone.embeddings.weight",)),
    Rule("blocks.{i}.mixer_norm.weight", (f"{_LAYER}.norm.weight",)),
    *linear_rules("blocks.{i}.mixer.inputs.linear", f"{_LAYER}.mixer.in_proj"),
    Rule("blocks.{i}.mixer.conv.weight", (f"{_LAYER}.mixer.conv1d.weight",), ("squeeze",)),
    Rule("blocks.{i}.mixer.conv.bias", (f"{_LAYER}.mixer.conv1d.bias",)),
    Rule("blocks.{i}.mixer.select.weight", (f"{_LAYER}.mixer.x_proj.weight",)),
    *linear_rules("blocks.{i}.mixer.dt", f"{_LAYER}.mixer.dt_proj"),
    Rule("blocks.{i}.mixer.A_log", (f"{_LAYER}.mixer.A_log",)),
    Rule("blocks.{i}.mixer.D", (f"{_LAYER}.mixer.D",)),
    *linear_rules("blocks.{i}.mixer.out", f"{_LAYER}.mixer.out_proj"),
    Rule("norm.weight", ("backbone.norm_f.weight",)),
    Rule("head.weight", ("lm_head.weight",)),
)
EXCHANGE = ExchangeMap(
    model_type="mamba", cls="MambaForCausalLM", read=_read, write=_write_mamba, rules=_RULES, prefixes=("backbone.",)
)
FALCON = ExchangeMap(
    model_type="falcon_mamba",
    cls="FalconMambaForCausalLM",
    read=_read,
    write=_write_falcon,
    rules=_RULES,
    prefixes=("backbone.",),
)


def _published(width: int, depth: int) -> dict[str, Any]:
    return {"width": width, "depth": depth, "vocab_size": 50280}


ARCHITECTURE = Architecture(
    block=BlockConfig(mixer={"name": "mamba"}, eps=1e-5),
    frame={"tied": True, "eps": 1e-5},
    depth_factor=2.0,
    width_step=16,
    fine="mixer.hidden",
    fine_ratio=2.0,
    presets={
        "mamba-130m": _published(768, 24),
        "mamba-370m": _published(1024, 48),
        "mamba-790m": _published(1536, 48),
        "mamba-1.4b": _published(2048, 48),
        "mamba-2.8b": _published(2560, 64),
        "falcon-mamba-7b": {"width": 4096, "depth": 64, "vocab_size": 65024, "norm_eps": 1e-6, "tied": False},
    },
    exchange=(EXCHANGE, FALCON),
)

register(
    "mamba",
    mixer="Mamba",
    architecture="ARCHITECTURE",
    summary="Mamba: selective state spaces, a diagonal scan whose step size follows the input",
    paper="2312.00752",
    year=2023,
    tags=("causal", "recurrent", "parallel"),
    presets=("mamba-130m", "mamba-370m", "mamba-790m", "mamba-1.4b", "mamba-2.8b", "falcon-mamba-7b"),
    exchange=("mamba", "falcon_mamba"),
)
