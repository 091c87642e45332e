"""mLSTM: a matrix memory with exponential gates, in xLSTM's block with the projection up around it; xLSTM as its pattern.

Paper: xLSTM: Extended Long Short-Term Memory (arXiv 2405.04517, section 2.3 and figure 10).

Equation: [u, z] = W x;  c = silu(conv(u));  q, k = blocks(c), v = blocks(u);  i, f = W_g [q, k, v] + b;  per head, with
    exp(i) as input gate and sigmoid(f) as forget gate, h = mlstm(q / sqrt(K), k, v)          (:mod:`orrery.ops.mlstm`)
    out = W_o ((w * layernorm_head(h) + skip * c) * silu(z))

Shapes: B batch, T time, D width, E inner size (2 D), H heads, K = E / H, C taps of the convolution, P block size of q, k, v.

Cost: train and prefill O(T) in chunks, decode O(1): 2 E (K+1) multiply-adds a token for the memory; state E (K+1) + H numbers
    and the convolution's.

Differs from the paper: the norms before the parts and the head have a bias; in xLSTM[7:1] each eighth block is an sLSTM,
    where the paper places them by hand; embedding and head are drawn as the frame draws them (normal with deviation 0.02;
    D^-1/2), where the published code has sqrt(2 / 5D) for both.

Oracle: tests/oracles/mlstm.py (float64 loops).
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
from orrery.nn.projection import Projection
from orrery.nn.recompute import block_linear, linear_of
from orrery.nn.state import state
from orrery.nn.stepping import Step, Stepping, in_order, linear_step, plain_linear
from orrery.nn.timeline import fresh_clock
from orrery.ops.mlstm import mlstm, mlstm_initial
from orrery.ops.steps.diagonal import conv_step
from orrery.ops.steps.mlstm_block import BlockWeights, mlstm_block_step
from orrery.ops.steps.row_linear import RowNorm


@dataclass(frozen=True, kw_only=True)
class MLSTMConfig(PartConfig):
    """inner: E, None: 2 D. heads: H. conv: C. block: P, which divides E, as H does. eps: of the mLSTM's denominator.
    norm_eps: of the norm of heads."""

    inner: int | None = None
    heads: int = 4
    conv: int = 4
    block: int = 4
    eps: float = 1e-6
    norm_eps: float = 1e-5
    chunk: int | None = None

    def __post_init__(self) -> None:
        for name in ("heads", "conv", "block"):
            require(getattr(self, name) > 0, f"{name} must be positive, not {getattr(self, name)}")
        for name in ("inner", "chunk"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name} must be positive, not {value}")


@state
class MLSTMState(NamedTuple):
    """memory: (B,H,K,K+1), the normaliser as its last column; peak: (B,H); conv: the last inputs of the convolution
    (B,C-1,E); clock: (B,2)."""

    memory: Tensor
    peak: Tensor
    conv: Tensor
    clock: Tensor


class MLSTM(Mixer):
    """The mLSTM layer, projections, convolution, skip and gate included; its block has no channel mixer."""

    Config = MLSTMConfig
    State = MLSTMState
    config: MLSTMConfig
    # After the first token h = c v: its norm is the sign of c, which bfloat16 cannot tell where c is small, unless eps is large.
    examples = ({"norm_eps": 1e-2}, {"inner": 48, "heads": 2, "conv": 3, "block": 8, "norm_eps": 1e-1})

    def __init__(self, config: MLSTMConfig, place: Place) -> None:
        super().__init__(config, place)
        self.inner = config.inner or 2 * place.width
        require(
            self.inner % config.heads == 0 and self.inner % config.block == 0,
            f"heads {config.heads} and block {config.block} must divide the inner size {self.inner}",
        )
        self.head = self.inner // config.heads
        blocks = self.inner // config.block
        self.inputs = Projection(place, 2 * self.inner, canon=False)
        self.conv = ShortConv(self.inner, config.conv, activation="silu", bias=True)
        self.blocks = nn.Parameter(torch.empty(3, blocks, config.block, config.block))  # of q, k, v
        self.gates = nn.Linear(3 * self.inner, 2 * config.heads)
        self.skip = nn.Parameter(torch.empty(self.inner))
        self.norm = nn.Parameter(torch.empty(self.inner))
        self.out = nn.Linear(self.inner, place.width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Matrices normal with std sqrt(2 / 5D), the way out 2 / (L sqrt(D)); gates without input: i near 0, f = 3 to 6."""
        width, heads = self.place.width, self.config.heads
        for weight in (self.inputs.linear.weight, self.blocks):
            nn.init.normal_(weight, std=math.sqrt(2 / (5 * width)))
        nn.init.normal_(self.out.weight, std=2 / (self.place.depth * math.sqrt(width)))
        nn.init.zeros_(self.gates.weight)
        with torch.no_grad():
            self.gates.bias[:heads].normal_(std=0.1)
            self.gates.bias[heads:] = torch.linspace(3.0, 6.0, heads).to(self.gates.bias.device)
        nn.init.ones_(self.skip)
        nn.init.ones_(self.norm)
        self.conv.reset_parameters()

    def mix(self, x: Tensor, state: MLSTMState | None, ctx: Context) -> tuple[Tensor, MLSTMState]:
        config, time = self.config, ctx.timeline
        p, _ = self.inputs(x, None, ctx)
        u, z = p.chunk(2, -1)
        c, conv = self.conv.recomputed(u, None if state is None else state.conv, ctx)
        q, k, v, i_log, f_log = self._memory(u, c)
        h, (memory, peak) = mlstm(
            q, k, v, i_log, f_log, None if state is None else (state.memory, state.peak), time.starts, time.lengths,
            self.head**-0.5, config.eps, config.chunk,
        )  # fmt: skip
        y = linear_of(self._read, self.out, h, c, z, self.norm, self.skip)
        return y, MLSTMState(memory, peak, conv, time.clock)

    def _read(self, h: Tensor, c: Tensor, z: Tensor, gain: Tensor, skip: Tensor) -> Tensor:
        """The normed heads side by side and a share of the convolution, gated."""
        h = F.layer_norm(h, (self.head,), eps=self.config.norm_eps).flatten(2)
        return torch.addcmul(h * gain, c, skip) * F.silu(z)

    def _memory(self, u: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """From u and c (B,T,E): q, k, v (B,T,H,K), and the logarithms of both gates (B,T,H) in float32 at least."""
        parts = torch.cat([self._blockwise(c, self.blocks[:2]), self._blockwise(u, self.blocks[2:])], 2)
        wide = torch.promote_types(u.dtype, torch.float32)
        i_log, f = self.gates(parts.flatten(2)).to(wide).chunk(2, -1)
        q, k, v = parts.unflatten(-1, (self.config.heads, self.head)).unbind(2)
        return q, k, v, i_log, F.logsigmoid(f)

    def transfer(self, x: Tensor, ctx: Context) -> Tensor:
        """The matrices M (B,H,T,T) with h = M v, before the norm: the recurrence, given unit vectors as values."""
        u = self.inputs(x, None, ctx)[0].chunk(2, -1)[0]
        q, k, _, i_log, f_log = self._memory(u, self.conv(u, None, ctx)[0])
        batch, length = x.shape[:2]
        units = torch.eye(length, dtype=k.dtype, device=x.device)[None, :, None].expand(batch, -1, self.config.heads, -1)
        h, _ = mlstm(q, k, units, i_log, f_log, None, ctx.timeline.starts, None, self.head**-0.5, self.config.eps, self.config.chunk)
        return h.transpose(1, 2)

    def stepper(self, norm: RowNorm, state: MLSTMState, run: Stepping) -> Step | None:
        if not plain_linear(self.inputs.linear, self.gates, self.out):
            return None
        config, x = self.config, run.x
        p, (c, y) = x.new_empty(len(x), 2 * self.inner), x.new_empty(2, len(x), self.inner)
        memory, peak, window = (run.own(held) for held in state[:3])
        convolve = conv_step(p, window, self.conv.weight, self.conv.bias, c, 0, True)
        gates = self.gates.weight, self.gates.bias
        weights = BlockWeights(self.blocks, *gates, self.norm, self.skip, config.eps, config.norm_eps)
        recur = mlstm_block_step(p, c, memory, peak, y, weights)
        return in_order(linear_step(x, self.inputs.linear, p, norm), convolve, recur, linear_step(y, self.out, x, add=True))

    def _blockwise(self, x: Tensor, weight: Tensor) -> Tensor:
        """X (B,T,E) times block-diagonal matrices (M,E/P,P,P), gives (B,T,M,E).

        Blocks of 4 by 4 are too small for products of many tokens: several are laid out as one of up to 64 by 64, zeros included.
        """
        count, blocks, size, _ = weight.shape
        few = x.shape[0] * x.shape[1] <= _FEW
        merged = 1 if few else max(n for n in range(1, max(1, _PRODUCT // size) + 1) if blocks % n == 0)
        own = torch.eye(merged, dtype=weight.dtype, device=weight.device)[:, None, None, :, None]
        wide = weight.view(count, -1, merged, size, 1, size).permute(1, 2, 3, 0, 4, 5) * own  # (G,m,P,M,m,P)
        y = block_linear(x, wide.reshape(len(wide), merged * size, -1).to(x.dtype))  # (G,BT,M*mP)
        return y.unflatten(-1, (count, -1)).permute(1, 2, 0, 3).reshape(*x.shape[:2], count, -1)

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> MLSTMState:
        """Nothing seen; float32 unless `dtype` is float64."""
        kind = torch.float64 if dtype == torch.float64 else torch.float32
        memory, peak = mlstm_initial(batch, self.config.heads, self.head, self.head, device, kind)
        return MLSTMState(memory, peak, self.conv.init_state(batch, device, dtype), fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        """Constant in the length."""
        number = max(4, self.out.weight.element_size())
        return number * (self.inner * (self.head + 1) + self.config.heads) + self.conv.state_bytes()

    def flops(self, length: int) -> int:
        """Projections, convolution, blocks, gates, and 2 E (K+1) each for writing the memory and reading it, per token."""
        linear = 2 * self.place.width * self.inner + 6 * self.inner * (self.config.block + 2 * self.config.heads)
        memory = 4 * self.inner * (self.head + 1)
        return self.inputs.flops(length) + self.conv.flops(length) + (linear + memory) * length


_PRODUCT = 64  # rows of a block that a matrix product takes together
_FEW = 8  # tokens up to which the zeros cost more than they save
_FRAME = {"norm": "layernorm", "eps": 1e-5, "tied": False}
ARCHITECTURE = Architecture(
    block=BlockConfig(mixer={"name": "mlstm"}, norm="layernorm", eps=1e-5),
    frame=_FRAME,
    depth_factor=2.0,
    width_step=8,
    fine="mixer.inner",
    fine_step=4,
    fine_ratio=2.0,
)
XLSTM = Architecture(
    pattern="mlstm*7 + slstm",
    frame=_FRAME,
    presets={
        "xlstm-125m": {"width": 768, "depth": 24, "vocab_size": 50257},
        "xlstm-350m": {"width": 1024, "depth": 48, "vocab_size": 50257},
        "xlstm-760m": {"width": 1536, "depth": 48, "vocab_size": 50257},
        "xlstm-1.3b": {"width": 2048, "depth": 48, "vocab_size": 50257},
    },
)

register(
    "xlstm",
    architecture="XLSTM",
    summary="xLSTM[7:1]: seven mLSTM blocks for each sLSTM block",
    paper="2405.04517",
    year=2024,
    tags=("causal", "recurrent"),
    presets=("xlstm-125m", "xlstm-350m", "xlstm-760m", "xlstm-1.3b"),
)
register(
    "mlstm",
    mixer="MLSTM",
    architecture="ARCHITECTURE",
    summary="mLSTM: a matrix memory with exponential gates (xLSTM[1:0])",
    paper="2405.04517",
    year=2024,
    tags=("causal", "recurrent", "parallel"),
)
