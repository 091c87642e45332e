"""Lightning attention with the block of TransNormerLLM: linear attention whose heads and layers forget at fixed rates.

Paper: Scaling TransNormer to 175 Billion Parameters (arXiv 2307.14995); MiniMax-01 (2501.08313) has the same layer with
    other gates and norms, which are settings here.

Equation: q = silu(W_q x), k = silu(W_k x), v = W_v x, u = W_u x;  per head h of layer l of L
    S_t = exp(-s) S_{t-1} + k_t v_t^T,  y_t = q_t S_t,  s = 2^{-8(h+1)/H} (1 - l/(L-1) + 1e-5)
    out = W_o (u * norm(y)),  the norm over all heads together
    LRPE-d, in the first layer: q_t -> [q_t cos(theta t), q_t sin(theta t)], k_t likewise, theta learned,
        at first theta_i = 10000^(-2i/E) over the channels i of all heads

Shapes: B batch, T time, D width, H heads, K head dimension of keys and values, E = H K.

Cost: train and prefill O(T) in chunks, decode O(1): 2 E K multiply-adds a token; state E K numbers (twice with LRPE-d).

Differs from the paper: the slopes are 2^{-8(h+1)/H} for every H (the paper interpolates where H is no power of 2), and L-1 is
    L-1+1e-5 (MiniMax's, which allows one layer); theta is learned as its initial value times e^delta; the embedding is not
    scaled by sqrt(D).

Oracle: tests/oracles/lightning.py (float64 loops); transformers' MiniMax with the same weights.
"""

from __future__ import annotations

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
from orrery.nn.marks import no_decay
from orrery.nn.projection import Projection
from orrery.nn.recompute import linear_of
from orrery.nn.state import state
from orrery.nn.stepping import Step, Stepping, in_order, linear_step, plain_linear
from orrery.nn.timeline import fresh_clock
from orrery.ops.fused.gates import sigmoid_gate
from orrery.ops.fused.rms_norm import rms_norm
from orrery.ops.scalar_decay import scalar_decay, scalar_decay_matrix, scalar_decay_step
from orrery.ops.steps.lightning import lightning_stepper
from orrery.ops.steps.row_linear import RowNorm

LRPE = ("first", "all", "none")
GATES = ("linear", "sigmoid")


@dataclass(frozen=True, kw_only=True)
class LightningConfig(PartConfig):
    """head_dim: K. heads None: width / head_dim. lrpe: which layers have LRPE-d (first, all, none). activate_values: v = silu(W_v x).
    output_gate: what is done to u (linear, sigmoid). gain: the norm has a weight. init_std: of every matrix."""

    head_dim: int = 128
    heads: int | None = None
    lrpe: str = "first"
    activate_values: bool = False
    output_gate: str = "linear"
    gain: bool = False
    eps: float = 1e-6
    init_std: float = 0.02
    chunk: int | None = None

    def __post_init__(self) -> None:
        check_heads(self, even=False)
        require(self.chunk is None or self.chunk > 0, f"chunk must be positive, not {self.chunk}")
        require(self.lrpe in LRPE, f"lrpe '{self.lrpe}' must be one of {', '.join(LRPE)}")
        require(self.output_gate in GATES, f"output_gate '{self.output_gate}' must be one of {', '.join(GATES)}")


@state
class LightningState(NamedTuple):
    """memory: (B,H,K or 2K,K); conv: the projection's last inputs; clock: (B,2)."""

    memory: Tensor
    conv: Tensor
    clock: Tensor


class Lightning(Mixer):
    """Lightning attention, norm and gate included."""

    Config = LightningConfig
    State = LightningState
    config: LightningConfig
    examples = (
        {"head_dim": 16, "heads": 3, "activate_values": True, "output_gate": "sigmoid", "gain": True},
        {"head_dim": 8, "lrpe": "all"},
    )

    def __init__(self, config: LightningConfig, place: Place) -> None:
        super().__init__(config, place)
        self.heads, self.head_dim = count_heads(config, place), config.head_dim
        self.inner = self.heads * self.head_dim
        self.three_inner = 3 * self.inner
        placed = config.lrpe == "all" or (config.lrpe == "first" and place.layer == 0)
        self.honours = frozenset({"positions"}) if placed else frozenset()  # type: ignore[misc]
        self.keys = self.head_dim * (2 if placed else 1)
        self.decays = lightning_decays(self.heads, place.layer, place.depth)
        self.inputs = Projection(place, 4 * self.inner, canon=3 * self.inner)
        self.theta_log = nn.Parameter(torch.empty(self.heads, self.head_dim)) if placed else None
        self.norm = nn.Parameter(torch.empty(self.inner)) if config.gain else None
        self.out = nn.Linear(self.inner, place.width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Matrices normal with init_std; theta as in the equation above."""
        for linear in (self.inputs.linear, self.out):
            nn.init.normal_(linear.weight, std=self.config.init_std)
        if self.theta_log is not None:
            nn.init.zeros_(self.theta_log)
            no_decay(self.theta_log)
        if self.norm is not None:
            nn.init.ones_(self.norm)
        if self.inputs.conv is not None:
            self.inputs.conv.reset_parameters()

    def mix(self, x: Tensor, state: LightningState | None, ctx: Context) -> tuple[Tensor, LightningState]:
        time = ctx.timeline
        q, k, v, u, conv = self._project(x, None if state is None else state.conv, ctx)
        g_log, memory = self._decay(v), None if state is None else state.memory
        ctx.report_decay(self.place.layer, memory=g_log.expand(v.shape[:3]))
        if x.shape[1] == 1 and memory is not None and time.starts is None and time.lengths is None:
            donate = ctx.donate and not torch.is_grad_enabled()
            y, memory = scalar_decay_step(
                q[:, 0], k[:, 0], v[:, 0], g_log.expand(len(x), -1), memory, donate=donate
            )
            y = y[:, None]
        else:
            y, memory = scalar_decay(  # 2307.14995 eq. 10 to 12
                q, k, v, g_log, memory, time.starts, chunk=self.config.chunk, lengths=time.lengths
            )
        return linear_of(self._read, self.out, y, u, self.norm), LightningState(memory, conv, time.clock)

    def _read(self, y: Tensor, u: Tensor, gain: Tensor | None) -> Tensor:
        """What was read (B,T,H,V), normed over all heads together and gated by u (B,T,E)."""
        y = rms_norm(y.flatten(2), gain, self.config.eps)
        return sigmoid_gate(u, y) if self.config.output_gate == "sigmoid" else u * y

    def stepper(self, norm: RowNorm, state: LightningState, run: Stepping) -> Step | None:
        if not plain_linear(self.inputs.linear, self.out):
            return None
        config, x = self.config, run.x
        p, y = x.new_empty(len(x), 4 * self.inner), x.new_empty(len(x), self.inner)
        project = self.inputs.step(x, state.conv, p, norm)
        recur = lightning_stepper(
            p, run.own(state.memory), y, self.decays, run.positions, self.theta_log, self.norm, config.eps,
            config.activate_values, config.output_gate == "sigmoid",
        )  # fmt: skip
        out = linear_step(y, self.out, x, add=True)
        return in_order(project, recur, out)

    def _project(self, x: Tensor, conv: Tensor | None, ctx: Context) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Q and k (B,T,H,K or 2K), v (B,T,H,K), u (B,T,E), and the projection's last inputs."""
        p, conv = self.inputs(x, conv, ctx)
        active = 3 if self.config.activate_values else 2
        first, rest = p.split([active * self.inner, (4 - active) * self.inner], -1)
        parts = F.silu(first).unflatten(-1, (active, self.heads, self.head_dim)).unbind(2)
        q, k = parts[:2]
        values, u = (None, rest) if active == 3 else rest.chunk(2, -1)
        v = parts[2] if values is None else values.unflatten(-1, (self.heads, self.head_dim))
        if self.theta_log is not None:
            q, k = self._placed(q, k, ctx)
        return q, k, v, u, conv

    def _placed(self, q: Tensor, k: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        """LRPE-d (2307.14995 eq. 2, without its decay, which is the recurrence's)."""
        assert self.theta_log is not None
        exponents = -2 * torch.arange(self.inner, device=q.device, dtype=torch.float64) / self.inner  # as the released code
        theta = 10000.0 ** exponents.view(self.heads, -1) * self.theta_log.double().exp()
        angles = ctx.timeline.positions[..., None, None] * theta  # in float64: positions go far
        wide = torch.promote_types(q.dtype, torch.float32)
        cos, sin = angles.cos().to(wide), angles.sin().to(wide)
        return torch.cat([q * cos, q * sin], -1), torch.cat([k * cos, k * sin], -1)

    def _decay(self, like: Tensor) -> Tensor:
        """-s (H,)."""
        kind = torch.float64 if like.dtype == torch.float64 else torch.float32
        return torch.tensor(self.decays, dtype=kind, device=like.device)

    def transfer(self, x: Tensor, ctx: Context) -> Tensor:
        """The matrix (B,H,T,T) that maps values to y (before norm and gate) for a whole sequence."""
        q, k, v, _, _ = self._project(x, None, ctx)
        return scalar_decay_matrix(q, k, self._decay(v), ctx.timeline.starts)

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> LightningState:
        """Nothing seen; the memory is float32 unless `dtype` is float64."""
        kind = torch.float64 if dtype == torch.float64 else torch.float32
        memory = torch.zeros(batch, self.heads, self.keys, self.head_dim, device=device, dtype=kind)
        return LightningState(memory, self.inputs.init_state(batch, device, dtype), fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        """Constant in the length."""
        number = max(4, self.out.weight.element_size())
        return number * self.inner * self.keys + self.inputs.state_bytes()

    def flops(self, length: int) -> int:
        """Projections, and 2 E K each for writing the memory and reading it, per token."""
        linear = 2 * self.place.width * self.inner
        return self.inputs.flops(length) + (linear + 4 * self.inner * self.keys) * length


def lightning_decays(heads: int, layer: int, depth: int) -> list[float]:
    """-s of every head (2307.14995 eq. 10): the last layer hardly forgets."""
    faded = 1 - layer / (depth - 1 + 1e-5) + 1e-5
    return [-(2.0 ** (-8.0 * (head + 1) / heads)) * faded for head in range(heads)]


def _published(width: int, depth: int, heads: int, hidden: int) -> dict[str, Any]:
    return {"width": width, "depth": depth, "vocab_size": 64000, "mixer.head_dim": width // heads, "channel.hidden": hidden}


ARCHITECTURE = Architecture(
    block=BlockConfig(
        mixer={"name": "lightning"}, channel={"name": "glu", "activation": "identity"}, norm="simple-rmsnorm"
    ),
    frame={"norm": "simple-rmsnorm", "tied": False},
    head="mixer.head_dim",
    presets={
        "transnormerllm-385m": _published(1024, 24, 8, 2816),
        "transnormerllm-1b": _published(2048, 16, 16, 5632),
        "transnormerllm-7b": _published(4096, 30, 32, 11008),
    },
)

register(
    "lightning",
    mixer="Lightning",
    architecture="ARCHITECTURE",
    summary="TransNormerLLM: lightning attention, linear with fixed decay per head and layer",
    paper="2307.14995",
    year=2023,
    tags=("causal", "recurrent", "parallel", "positions"),
    presets=("transnormerllm-385m", "transnormerllm-1b", "transnormerllm-7b"),
)
