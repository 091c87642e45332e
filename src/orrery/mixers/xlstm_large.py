"""xLSTM-7B's layer: the mLSTM with soft-capped gates in a Transformer's block.

Paper: xLSTM 7B: A Recurrent LLM for Fast and Efficient Inference (arXiv 2503.13427); the mLSTM 2405.04517.

Equation: [q, k, v, o, i, f] = W x (gates with a bias);  i, f <- c tanh(. / c);  per head, with exp(i) as input gate and
    sigmoid(f) as forget gate, h = mlstm(q / sqrt(K), k, v)          (:mod:`orrery.ops.mlstm`)
    out = W_o (sigmoid(o) * w * layernorm_head(h))

Shapes: B batch, T time, D width, H heads, K key dimension, V value dimension of a head.

Cost: train and prefill O(T) in chunks, decode O(1): 2 H K (V+1) multiply-adds a token; state H (K (V+1) + 1) numbers.

Differs from the paper: embedding and head are drawn as the frame draws them (normal with deviation 0.02; D^-1/2), where
    the published code has sqrt(2 / 5D) for both, and the feed-forward's way out with 1 / sqrt(5 D L), where it has 2 / (L
    sqrt(D)). transformers' copy starts output gates and the feed-forward's gates at zero, too.

Oracle: tests/oracles/xlstm_large.py (float64 loops); transformers' xLSTM with the same weights.
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
from orrery.nn.exchange import ExchangeMap, Rule, linear_rules
from orrery.nn.heads import check_heads, count_heads
from orrery.nn.projection import Projection
from orrery.nn.recompute import linear_of
from orrery.nn.state import state
from orrery.nn.stepping import Step, Stepping, in_order, linear_step, plain_linear
from orrery.nn.timeline import fresh_clock
from orrery.ops.fused.head_norm_gate import head_norm_gate
from orrery.ops.mlstm import mlstm, mlstm_initial
from orrery.ops.steps.mlstm import can_step, large_step, large_stepper
from orrery.ops.steps.row_linear import RowNorm


@dataclass(frozen=True, kw_only=True)
class XLSTMLargeConfig(PartConfig):
    """head_dim: V. heads None: width / head_dim. key_dim: K, None: V / 2. gate_cap: c. eps: of the mLSTM's denominator.
    norm_eps: of the norm of heads."""

    head_dim: int = 64
    heads: int | None = None
    key_dim: int | None = None
    gate_cap: float = 15.0
    eps: float = 1e-6
    norm_eps: float = 1e-6
    chunk: int | None = None

    def __post_init__(self) -> None:
        check_heads(self, even=False)
        require(self.key_dim is None or self.key_dim > 0, f"key_dim must be positive, not {self.key_dim}")
        require(self.gate_cap > 0, f"gate_cap must be positive, not {self.gate_cap}")
        require(self.chunk is None or self.chunk > 0, f"chunk must be positive, not {self.chunk}")


@state
class XLSTMLargeState(NamedTuple):
    """memory: (B,H,K,V+1), the normaliser as its last column; peak: (B,H); conv: the projection's last inputs; clock: (B,2)."""

    memory: Tensor
    peak: Tensor
    conv: Tensor
    clock: Tensor


class XLSTMLarge(Mixer):
    """The mLSTM layer of xLSTM-7B, norm and output gate included."""

    Config = XLSTMLargeConfig
    State = XLSTMLargeState
    config: XLSTMLargeConfig
    # After the first token h = c v: its norm is the sign of c, which bfloat16 cannot tell where c is small, unless eps is large.
    examples = ({"head_dim": 8}, {"head_dim": 8, "heads": 3, "key_dim": 12, "gate_cap": 3.0, "norm_eps": 1e-2})

    def __init__(self, config: XLSTMLargeConfig, place: Place) -> None:
        super().__init__(config, place)
        self.heads = count_heads(config, place)
        self.key = config.key_dim or max(1, config.head_dim // 2)
        self.keys, self.values = self.heads * self.key, self.heads * config.head_dim
        self.parts = [self.keys, self.keys, self.values, self.values, self.heads, self.heads]
        self.inputs = Projection(place, sum(self.parts), canon=2 * self.keys + self.values)
        self.gate_bias = nn.Parameter(torch.empty(2 * self.heads))
        self.norm = nn.Parameter(torch.empty(self.values))
        self.out = nn.Linear(self.values, place.width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Matrices normal with std sqrt(2 / 5D), the way out 2 / (L sqrt(D)); gates without input: i = -10, f = 3 to 6."""
        width = self.place.width
        nn.init.normal_(self.inputs.linear.weight, std=math.sqrt(2 / (5 * width)))
        nn.init.normal_(self.out.weight, std=2 / (self.place.depth * math.sqrt(width)))
        nn.init.ones_(self.norm)
        with torch.no_grad():
            self.inputs.linear.weight[-2 * self.heads :].zero_()
            self.gate_bias[: self.heads].fill_(-10.0)
            self.gate_bias[self.heads :].copy_(torch.linspace(3.0, 6.0, self.heads))
        if self.inputs.conv is not None:
            self.inputs.conv.reset_parameters()

    def mix(self, x: Tensor, state: XLSTMLargeState | None, ctx: Context) -> tuple[Tensor, XLSTMLargeState]:
        config, time = self.config, ctx.timeline
        p, conv = self.inputs(x, None if state is None else state.conv, ctx)
        plain = state is not None and x.shape[1] == 1 and time.starts is None and time.lengths is None
        if plain and state is not None and can_step(p, state.memory, state.peak):
            y, memory, peak = large_step(
                p[:, 0], state.memory, state.peak, self.gate_bias, self.norm, self.key, config.gate_cap, config.eps,
                config.norm_eps, ctx.donate,
            )  # fmt: skip
            return self.out(y)[:, None], XLSTMLargeState(memory, peak, conv, time.clock)
        q, k, v, o, i_log, f_log = self._split(p)
        h, (memory, peak) = mlstm(
            q, k, v, i_log, f_log, None if state is None else (state.memory, state.peak), time.starts, time.lengths,
            self.key**-0.5, config.eps, config.chunk,
        )  # fmt: skip
        return linear_of(self._read, self.out, h, o, self.norm), XLSTMLargeState(memory, peak, conv, time.clock)

    def _read(self, h: Tensor, o: Tensor, gain: Tensor) -> Tensor:
        return head_norm_gate(h, o, gain, self.config.norm_eps)

    def stepper(self, norm: RowNorm, state: XLSTMLargeState, run: Stepping) -> Step | None:
        if not plain_linear(self.inputs.linear, self.out):
            return None
        config, x = self.config, run.x
        p, y = x.new_empty(len(x), sum(self.parts)), x.new_empty(len(x), self.values)
        memory, peak = run.own(state.memory), run.own(state.peak)
        project = self.inputs.step(x, state.conv, p, norm)
        recur = large_stepper(p, memory, peak, y, self.gate_bias, self.norm, self.key, config.gate_cap, config.eps, config.norm_eps)
        out = linear_step(y, self.out, x, add=True)
        return in_order(project, recur, out)

    def _split(self, p: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Q, k (B,T,H,K), v (B,T,H,V), o (B,T,H*V), and the gates' logarithms (B,T,H)."""
        q, k, v, o, gates = p.split([*self.parts[:4], 2 * self.heads], -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in (q, k, v))
        wide = torch.promote_types(p.dtype, torch.float32)
        cap = self.config.gate_cap
        i_log, f = (torch.tanh((gates.to(wide) + self.gate_bias) / cap) * cap).chunk(2, -1)  # 2503.13427 eq. 8
        return q, k, v, o, i_log, F.logsigmoid(f)

    def transfer(self, x: Tensor, ctx: Context) -> Tensor:
        """The matrices M (B,H,T,T) with h = M v, before norm and gate: the recurrence, given unit vectors as values."""
        q, k, _, _, i_log, f_log = self._split(self.inputs(x, None, ctx)[0])
        batch, length = x.shape[:2]
        units = torch.eye(length, dtype=k.dtype, device=x.device)[None, :, None].expand(batch, -1, self.heads, -1)
        h, _ = mlstm(q, k, units, i_log, f_log, None, ctx.timeline.starts, None, self.key**-0.5, self.config.eps, self.config.chunk)
        return h.transpose(1, 2)

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> XLSTMLargeState:
        """Nothing seen; float32 unless `dtype` is float64."""
        kind = torch.float64 if dtype == torch.float64 else torch.float32
        memory, peak = mlstm_initial(batch, self.heads, self.key, self.config.head_dim, device, kind)
        return XLSTMLargeState(memory, peak, self.inputs.init_state(batch, device, dtype), fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        """Constant in the length."""
        number = max(4, self.out.weight.element_size())
        return number * (self.keys * (self.config.head_dim + 1) + self.heads) + self.inputs.state_bytes()

    def flops(self, length: int) -> int:
        """Projections, and 2 H K (V+1) each for writing the memory and reading it, per token."""
        linear = 2 * self.place.width * self.values
        return self.inputs.flops(length) + (linear + 4 * self.keys * (self.config.head_dim + 1)) * length


def _read(hf: dict[str, Any]) -> dict[str, Any]:
    require(not hf.get("use_bias", False), "no counterpart for use_bias: the published models have none")
    require(hf.get("weight_mode", "single") == "single", "no counterpart for weight_mode 'fused'; save the model as 'single'")
    require(hf.get("add_out_norm", True), "no counterpart for a model without a norm before the head")
    width, heads = hf["hidden_size"], hf["num_heads"]
    step = hf.get("ffn_round_up_to_multiple_of", 64)
    return {
        "width": width,
        "depth": hf.get("num_blocks") or hf["num_hidden_layers"],
        "vocab_size": hf["vocab_size"],
        "mixer.heads": heads,
        "mixer.head_dim": int(width * hf.get("v_dim_factor", 1.0)) // heads,
        "mixer.key_dim": int(width * hf.get("qk_dim_factor", 0.5)) // heads,
        "mixer.gate_cap": hf.get("gate_soft_cap", 15.0),
        "mixer.eps": hf.get("eps", 1e-6),
        "mixer.norm_eps": hf.get("norm_eps", 1e-6),
        "channel.hidden": int((width * hf.get("ffn_proj_factor", 2.667) + step - 1) // step * step),
        "eps": hf.get("norm_eps", 1e-6),
        "softcap": hf.get("output_logit_soft_cap", 30.0),
        "tied": hf.get("tie_word_embeddings", False),
    }


def _factor(part: int, width: int) -> float:
    """A factor with int(width * factor) == part."""
    factor = part / width
    return factor if int(width * factor) == part else math.nextafter(factor, math.inf)


def _write(own: dict[str, Any]) -> dict[str, Any]:
    block = own["blocks"][0]
    channel = block["channel"] or {}
    plain = block["placement"] == "pre" and block["norm"] == own["norm"] == "rmsnorm" and not block["canon"]
    swiglu = channel.get("name") == "glu" and channel.get("activation", "silu") == "silu"
    require(own["layout"] == [0] * len(own["layout"]) and plain and swiglu, "xLSTM in transformers has one kind of block")
    config = XLSTMLargeConfig.from_dict({key: value for key, value in block["mixer"].items() if key != "name"})
    require(config.norm_eps == block["eps"] == own["eps"], "xLSTM in transformers has one eps for all of its norms")
    require(own["softcap"] is not None, "xLSTM in transformers bounds its logits; set softcap (30 in the published model)")
    width, heads = own["width"], config.heads or own["width"] // config.head_dim
    key = config.key_dim or max(1, config.head_dim // 2)
    hidden = channel.get("hidden") or 8 * math.ceil(width / 3)
    return {
        "hidden_size": width,
        "embedding_dim": width,
        "num_hidden_layers": len(own["layout"]),
        "num_blocks": len(own["layout"]),
        "vocab_size": own["vocab_size"],
        "num_heads": heads,
        "v_dim_factor": _factor(heads * config.head_dim, width),
        "qk_dim_factor": _factor(heads * key, width),
        "ffn_proj_factor": (hidden + 0.5) / width,
        "ffn_round_up_to_multiple_of": 1,
        "gate_soft_cap": config.gate_cap,
        "output_logit_soft_cap": own["softcap"],
        "eps": config.eps,
        "norm_eps": own["eps"],
        "use_bias": False,
        "weight_mode": "single",
        "tie_word_embeddings": own["tied"],
    }


_LAYER = "backbone.blocks.{i}"
_MLSTM = f"{_LAYER}.mlstm_layer"
_INWARDS = ("q", "k", "v", "ogate_preact", "igate_preact", "fgate_preact")
EXCHANGE = ExchangeMap(
    model_type="xlstm",
    cls="xLSTMForCausalLM",
    read=_read,
    write=_write,
    rules=(
        Rule("embed.weight", ("backbone.embeddings.weight",)),
        Rule("blocks.{i}.mixer_norm.weight", (f"{_LAYER}.norm_mlstm.weight",)),
        Rule(
            "blocks.{i}.mixer.inputs.linear.weight",
            tuple(f"{_MLSTM}.{name}.weight" for name in _INWARDS),
            rows=("keys", "keys", "values", "values", "heads", "heads"),
        ),
        Rule("blocks.{i}.mixer.gate_bias", (f"{_MLSTM}.igate_preact.bias", f"{_MLSTM}.fgate_preact.bias")),
        Rule("blocks.{i}.mixer.norm", (f"{_MLSTM}.multihead_norm.weight",)),
        Rule("blocks.{i}.mixer.out.weight", (f"{_MLSTM}.out_proj.weight",)),
        Rule("blocks.{i}.channel_norm.weight", (f"{_LAYER}.norm_ffn.weight",)),
        *linear_rules("blocks.{i}.channel.wide", (f"{_LAYER}.ffn.proj_up_gate", f"{_LAYER}.ffn.proj_up")),
        *linear_rules("blocks.{i}.channel.out", f"{_LAYER}.ffn.proj_down"),
        Rule("norm.weight", ("backbone.out_norm.weight",)),
        Rule("head.weight", ("lm_head.weight",)),
    ),
    prefixes=("backbone.",),
)

ARCHITECTURE = Architecture(
    block=BlockConfig(mixer={"name": "xlstm-large"}, channel={"name": "glu"}),
    frame={"tied": False, "softcap": 30.0},
    head="mixer.head_dim",
    presets={
        "xlstm-7b": {
            "width": 4096, "depth": 32, "vocab_size": 50304, "mixer.head_dim": 512, "mixer.key_dim": 256,
            "channel.hidden": 10944,
        },
    },
    exchange=(EXCHANGE,),
)  # fmt: skip

register(
    "xlstm-large",
    mixer="XLSTMLarge",
    architecture="ARCHITECTURE",
    summary="xLSTM-7B: the mLSTM with soft-capped gates and a SwiGLU",
    paper="2503.13427",
    year=2025,
    tags=("causal", "recurrent", "parallel"),
    presets=("xlstm-7b",),
    exchange=("xlstm",),
)
