"""Zamba2: Mamba-2 with a few attention blocks that many layers share, each use told apart by maps of low rank.

Paper: The Zamba2 Suite (arXiv 2411.15242); shared attention that reads the embedding again: Zamba (2405.16712).

Equation, in a layer with shared attention, e the embedding and h the stream:
    s = W_o attend(norm_1([h; e]));  g = W_l F(norm_2(s));  h += mamba2(norm(h + g));  elsewhere  h += mamba2(norm(h))
    F(s) = W_2 (gelu(W_g s) * W_u s),  attend with scores q . k / sqrt(K / 2)
    W_q, W_k, W_v (where `attention_rank`), W_g and W_u have U V of a rank added, which like W_l are every use's own

Shapes: B batch, T time, D width, H heads of size K = 2 D / H, F hidden size of the MLP, R rank.

Cost: as Mamba-2; a layer with shared attention adds 14 D^2 + 3 D F + D^2 multiply-adds a token and a cache of 2 x 2 D numbers
    a token of its own: the parameters are shared, what they see and keep is not.

Differs from the paper: along the size ladder every second layer has shared attention, two blocks of it by turns (in the paper
    about every sixth); initialisation as `mamba2` and `transformer` here. Theirs bounds step sizes from below when it reads a
    prompt and not when it decodes; here they are bounded in both. Alone, without a model's embedding, e is the input.

Oracle: tests/oracles/zamba2.py (float64 loops); transformers' Zamba2 (equal logits through the exchange map).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from orrery.core.config import require
from orrery.core.errors import StateError
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig, make_part
from orrery.nn.contract import Context, Mixer, PartConfig, Place
from orrery.nn.exchange import ExchangeMap, Rule, attention_rules, linear_rules, mamba2_rules, plain_blocks
from orrery.nn.exchange_rope import read_rope, write_rope
from orrery.nn.feedforward import GLU, FeedForwardConfig
from orrery.nn.low_rank import LowRankLinear
from orrery.nn.norms import RMSNorm
from orrery.nn.rotary import Rope, part_of
from orrery.nn.stepping import Step, Stepping, in_order, linear_step, norm_of, plain_linear
from orrery.nn.zamba import (
    ACTIVATIONS,
    COMMON,
    MOST,
    hybrid_names,
    kinds_of,
    own_places,
    pattern_of,
    shared_blocks,
    their_places,
)
from orrery.ops.steps.canon import activate_step
from orrery.ops.steps.row_linear import ACTIVATIONS as ACTIVATION_CODES
from orrery.ops.steps.row_linear import RowNorm, row_linear, row_norm_into
from orrery.ops.steps.row_steps import copy_rows, multiply_rows


@dataclass(frozen=True, kw_only=True)
class Zamba2Config(PartConfig):
    """heads H; kv_heads None: as many. hidden F (None: 4 D). activation: of the MLP's gate. rope: rotated part of a head (0: no
    positions), or how positions are scaled. window: tokens that attention sees; None: all. rank, attention_rank: of the maps beside the MLP's
    and the attention's ways in; 0: none. bias: of the MLP."""

    heads: int = 4
    kv_heads: int | None = None
    hidden: int | None = None
    activation: str = "gelu"
    rope: Rope = 0.0
    rope_theta: float = 10000.0
    window: int | None = None
    rank: int = 0
    attention_rank: int = 0
    bias: bool = False
    dropout: float = 0.0
    eps: float = 1e-5

    def __post_init__(self) -> None:
        require(self.heads > 0, f"heads must be positive, not {self.heads}")
        for name in ("rank", "attention_rank"):
            require(getattr(self, name) >= 0, f"{name} must be 0 or more, not {getattr(self, name)}")
        alike = self.kv_heads in (None, self.heads)
        require(alike or not self.attention_rank, "maps beside queries, keys and values (attention_rank) need as many heads of each")


class Zamba2(Mixer):
    """Attention and an MLP, one behind the other, that read the stream and the embedding; a layer's guide."""

    Config = Zamba2Config
    config: Zamba2Config
    recalls = True
    examples = (
        {"heads": 4, "hidden": 24},
        {"heads": 2, "hidden": 16, "rank": 3, "attention_rank": 2, "rope": 1.0, "bias": True, "activation": "silu"},
        {"heads": 4, "kv_heads": 2, "hidden": 16, "rank": 2, "activation": "gelu-tanh", "window": 7},
    )

    def __init__(self, config: Zamba2Config, place: Place) -> None:
        super().__init__(config, place)
        both = 2 * place.width
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads or config.heads, both // config.heads
        require(both % config.heads == 0 and self.head_dim % 2 == 0, f"heads {config.heads} must divide the width {place.width}")
        canon = "b" if "b" in place.canon else ""
        settings = {
            "heads": self.heads, "kv_heads": self.kv_heads, "head_dim": self.head_dim, "dropout": config.dropout,
            "rope": config.rope, "rope_theta": config.rope_theta, "window": config.window,
        }  # fmt: skip
        entry = place.replace(width=both, out=place.width, canon=canon)
        self.entry_norm, self.norm = RMSNorm(both, config.eps), RMSNorm(place.width, config.eps)
        self.attention: Any = make_part({"name": "attention", **settings}, "mixer", entry)
        self.attention.scale = (self.head_dim / 2) ** -0.5  # 2405.16712: half of what a head reads is the stream
        self.State = self.attention.State  # type: ignore[misc]
        self.rotated = self.attention.rotated
        hidden = config.hidden or 4 * place.width
        ways = FeedForwardConfig(hidden=hidden, activation=config.activation, bias=config.bias)
        self.mlp = GLU(ways, place.replace(canon=""))
        self.back = nn.Linear(place.width, place.width, bias=False)
        self.attention_rank = config.attention_rank
        if config.attention_rank:  # 2411.15242 section II
            inputs: Any = self.attention.inputs
            inputs.linear = LowRankLinear(both, inputs.linear.out_features, config.attention_rank, parts=3)
        if config.rank:
            self.mlp.wide = LowRankLinear(place.width, 2 * hidden, config.rank, bias=config.bias)
        self.packs = self.attention.packs
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Attention and MLP as everywhere here, maps of low rank as linear maps; the way back starts smaller by sqrt(depth)."""
        for part in (self.entry_norm, self.norm, self.attention, self.mlp):
            part.reset_parameters()
        for linear in self._low_rank():
            linear.reset_low_rank()
        nn.init.normal_(self.back.weight, std=(self.place.width * self.place.depth) ** -0.5)

    def _low_rank(self) -> list[LowRankLinear]:
        return [each for each in (self.attention.inputs.linear, self.mlp.wide) if isinstance(each, LowRankLinear)]

    def mix(self, x: Tensor, state: Any, ctx: Context) -> tuple[Tensor, Any]:
        y, state = self.attention(self.entry_norm(torch.cat([x, self._embedding(x, ctx)], -1)), state, ctx)
        y, _ = self.mlp(self.norm(y), None, ctx)
        return self.back(y), state

    def _embedding(self, x: Tensor, ctx: Context) -> Tensor:
        """What the first layer was given (B,T,D); by itself a part is the first layer."""
        if ctx.shared is None:
            return x
        if "embedding" not in ctx.shared:
            raise StateError("a layer with shared attention reads the embedding; run all layers of a call with one ctx of the model's")
        return ctx.shared["embedding"]

    def transfer(self, x: Tensor, ctx: Context) -> Tensor:
        """The attention matrix (B,H,T,T) of a whole sequence; row t sums to 1."""
        entry = self.entry_norm(torch.cat([x, self._embedding(x, ctx)], -1))
        return cast(Tensor, self.attention.transfer(entry, ctx))

    def stepper(self, norm: RowNorm, state: Any, run: Stepping) -> Step | None:
        code = {"identity": ""}.get(self.config.activation, self.config.activation)
        known = all(type(each) in (nn.Linear, LowRankLinear) for each in (self.attention.inputs.linear, self.mlp.wide))
        plain = plain_linear(self.attention.out, self.mlp.out, self.back)
        if not (known and plain) or code not in ACTIVATION_CODES or "embedding" not in run.shared:
            return None
        (batch, width), hidden = run.x.shape, self.mlp.hidden
        both, s, y = (run.x.new_empty(batch, size) for size in (2 * width, width, width))
        gate, up = run.x.new_empty(2, batch, hidden)
        attend, heads = self.attention.heads_step(both, cast(RowNorm, norm_of(self.entry_norm)), state, run)
        return in_order(
            row_norm_into(run.x, norm, both[:, :width]),
            copy_rows(run.shared["embedding"], both[:, width:]),
            attend,
            linear_step(heads, self.attention.out, s),
            *self._hidden_steps(s, gate, up, code),
            multiply_rows(gate, up),
            linear_step(gate, self.mlp.out, y),
            linear_step(y, self.back, run.x, add=True),
        )

    def _hidden_steps(self, s: Tensor, gate: Tensor, up: Tensor, code: str) -> list[Step]:
        """The MLP's two hidden vectors of s (B,D), the first activated."""
        wide, norm = self.mlp.wide, norm_of(self.norm)
        weights, biases = wide.weight.chunk(2), (None, None) if wide.bias is None else wide.bias.chunk(2)
        if not isinstance(wide, LowRankLinear):
            return [row_linear(s, weights[0], biases[0], gate, norm, code), row_linear(s, weights[1], biases[1], up, norm)]
        low = s.new_empty(len(s), wide.rank)
        ways = zip(weights, biases, wide.up.chunk(2), (gate, up), strict=True)
        steps = [row_linear(s, wide.down, None, low, norm)]
        for weight, bias, own, y in ways:
            steps += [row_linear(s, weight, bias, y, norm), row_linear(low, own, None, y, add=True)]
        return [*steps, activate_step(gate, gate, code)] if code else steps

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> Any:
        """No keys yet."""
        return self.attention.init_state(batch, device, dtype)

    def state_bytes(self, length: int) -> int:
        return int(self.attention.state_bytes(length))

    def flops(self, length: int) -> int:
        """Attention, MLP, the maps beside them, the way back."""
        beside = sum(each.flops(length) for each in self._low_rank())
        return int(self.attention.flops(length)) + self.mlp.flops(length) + beside + 2 * self.place.width**2 * length


_LEAST = 1e-30  # a step size that bounds nothing: they need a positive one
_HOME = "shared_transformer"


def _read(hf: dict[str, Any]) -> dict[str, Any]:
    rope, theta = read_rope(hf)
    require(hf.get("hidden_act", "gelu") in ACTIVATIONS, f"no counterpart for activation {hf.get('hidden_act')}")
    width, kinds, least, most = hf["hidden_size"], kinds_of(hf), hf.get("time_step_min", 1e-3), hf.get("time_step_max", 0.1)
    inner, heads = hf["mamba_expand"] * width, hf["n_mamba_heads"]
    rank = hf.get("adapter_rank", 128)
    guide = {
        "zamba2.heads": hf["num_attention_heads"],
        "zamba2.kv_heads": hf.get("num_key_value_heads") or hf["num_attention_heads"],
        "zamba2.hidden": hf.get("intermediate_size") or 4 * width,
        "zamba2.activation": ACTIVATIONS[hf.get("hidden_act", "gelu")],
        "zamba2.rope": rope if hf.get("use_mem_rope") else 0.0,
        "zamba2.rope_theta": theta,
        "zamba2.rank": rank,
        "zamba2.attention_rank": rank if hf.get("use_shared_attention_adapter") else 0,
        "zamba2.bias": hf.get("add_bias_linear", False),
        "zamba2.dropout": hf.get("attention_dropout", 0.0),
        "zamba2.eps": hf["rms_norm_eps"],
    }
    return {
        "width": width,
        "depth": len(kinds),
        "vocab_size": hf["vocab_size"],
        "pattern": pattern_of(kinds, hf.get("num_mem_blocks", 1)),
        "mamba2.head_dim": inner // heads,
        "mamba2.expand": inner / width,
        "mamba2.state": hf["mamba_d_state"],
        "mamba2.groups": hf.get("mamba_ngroups", 1),
        "mamba2.conv": hf.get("mamba_d_conv", 4),
        "mamba2.bias": hf.get("add_bias_linear", False),
        "mamba2.eps": 1e-5,  # theirs is fixed
        "mamba2.dt_init": (min(max(least, _LEAST), most), most),
        "mamba2.dt_floor": hf.get("time_step_floor", 1e-4),
        "mamba2.dt_limit": (float(least), math.inf) if least > _LEAST else None,
        **(guide if "hybrid" in kinds else {}),
        "eps": hf["rms_norm_eps"],
        "tied": hf.get("tie_word_embeddings", True),
    }


def _write(own: dict[str, Any]) -> dict[str, Any]:
    width, blocks = own["width"], plain_blocks(own, "Zamba2")
    mamba = blocks[0]["mixer"]
    alone = all(block["mixer"] == mamba and not block["channel"] for block in blocks)
    require(alone, "Zamba2 has blocks of one kind of Mamba-2, without channel mixers")
    require(mamba["name"] == "mamba2", "Zamba2 consists of Mamba-2 and shared attention")
    count = shared_blocks(own)
    guide = next(block["guide"] for block in blocks if block["guide"])
    require(guide["name"] == "zamba2", f"Zamba2's guide is its shared attention, not '{guide['name']}'")
    shared = Zamba2Config.from_dict({key: value for key, value in guide.items() if key != "name"})
    require(shared.rank > 0 and shared.attention_rank in (0, shared.rank), "Zamba2 has maps of one rank beside the MLP and perhaps the attention")
    require(shared.eps == own["eps"] and part_of(shared.rope) in (0.0, 1.0), "Zamba2 has one eps, and heads that are rotated whole or not at all")
    names = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    require(shared.window is None, "Zamba2's attention sees all tokens")
    require(shared.activation in names, f"no counterpart for activation {shared.activation}")
    least, most = mamba.get("dt_limit") or (_LEAST, math.inf)
    alike = mamba.get("eps", 1e-5) == 1e-5 and mamba.get("gate_norm", "after") == "after" and mamba.get("conv_bias", True)
    require(alike and most == math.inf, "Zamba2's Mamba-2 has its norm after the gate, eps 1e-5, and no upper bound of the step size")
    require(mamba.get("bias", False) == shared.bias, "Zamba2 has biases in Mamba-2 and the MLP, or in neither")
    heads = max(1, round(mamba.get("expand", 2.0) * width / mamba["head_dim"]))
    require(heads * mamba["head_dim"] % width == 0, f"Zamba2 needs an inner size that is a multiple of the width {width}")
    dt = mamba.get("dt_init") or (1e-3, 1e-1)
    return {
        "hidden_size": width,
        "num_hidden_layers": len(blocks),
        "layers_block_type": ["hybrid" if block["guide"] else "mamba" for block in blocks],
        "vocab_size": own["vocab_size"],
        "num_mem_blocks": count,
        "num_attention_heads": shared.heads,
        "num_key_value_heads": shared.kv_heads or shared.heads,
        "intermediate_size": shared.hidden or 4 * width,
        "hidden_act": names[shared.activation],
        "use_mem_rope": part_of(shared.rope) > 0,
        "rope_theta": shared.rope_theta,
        **write_rope(shared.rope or 1.0, shared.rope_theta),
        "adapter_rank": shared.rank,
        "use_shared_attention_adapter": shared.attention_rank > 0,
        "add_bias_linear": shared.bias,
        "attention_dropout": shared.dropout,
        "n_mamba_heads": heads,
        "mamba_expand": heads * mamba["head_dim"] // width,
        "mamba_d_state": mamba.get("state", 128),
        "mamba_ngroups": mamba.get("groups", 1),
        "mamba_d_conv": mamba.get("conv", 4),
        "time_step_min": max(float(least), _LEAST),
        "time_step_max": float(dt[1]),
        "time_step_floor": mamba.get("dt_floor", 1e-4),
        "chunk_size": 64,
        "rms_norm_eps": own["eps"],
        "tie_word_embeddings": own["tied"],
    }


def _prepare(hf: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    return own_places(kinds_of(hf), hf.get("num_mem_blocks", 1), tensors, _HOME)


def _finish(hf: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    return their_places(kinds_of(hf), hf["num_mem_blocks"], tensors, _HOME, hf["tie_word_embeddings"])


_LAYER, _GUIDE = "model.layers.{i}", "blocks.{i}.guide"
_SHARED = f"{_LAYER}.{_HOME}"
_WIDE = f"{_SHARED}.feed_forward.gate_up_proj_adapter"
_BESIDE = {
    part: tuple(f"{_SHARED}.self_attn.linear_{each}_adapter.{number}.weight" for each in "qkv") for number, part in enumerate(("down", "up"))
}
EXCHANGE = ExchangeMap(
    model_type="zamba2",
    cls="Zamba2ForCausalLM",
    read=_read,
    write=_write,
    rules=(
        Rule("embed.weight", ("model.embed_tokens.weight",)),
        Rule("blocks.{i}.mixer_norm.weight", (f"{_LAYER}.input_layernorm.weight",)),
        *mamba2_rules("blocks.{i}.mixer", f"{_LAYER}.mamba"),
        Rule(f"{_GUIDE}.entry_norm.weight", (f"{_SHARED}.input_layernorm.weight",)),
        *attention_rules(f"{_GUIDE}.attention", f"{_SHARED}.self_attn"),
        Rule(f"{_GUIDE}.attention.inputs.linear.down", _BESIDE["down"], rows=("attention_rank",) * 3),
        Rule(f"{_GUIDE}.attention.inputs.linear.up", _BESIDE["up"], ("rotary", "rotary", "")),
        Rule(f"{_GUIDE}.norm.weight", (f"{_SHARED}.pre_ff_layernorm.weight",)),
        *linear_rules(f"{_GUIDE}.mlp.wide", f"{_SHARED}.feed_forward.gate_up_proj"),
        Rule(f"{_GUIDE}.mlp.wide.down", (f"{_WIDE}.0.weight",)),
        Rule(f"{_GUIDE}.mlp.wide.up", (f"{_WIDE}.1.weight",)),
        *linear_rules(f"{_GUIDE}.mlp.out", f"{_SHARED}.feed_forward.down_proj"),
        Rule(f"{_GUIDE}.back.weight", (f"{_LAYER}.linear.weight",)),
        Rule("norm.weight", ("model.final_layernorm.weight",)),
        Rule("head.weight", ("lm_head.weight",)),
    ),
    prefixes=("model.",),
    prepare=_prepare,
    finish=_finish,
)

_MAMBA = {"name": "mamba2"}
_BLOCKS = ["hybrid", "hybrid-2"]
_LAYERS = [(6 if use == 0 else 5 if use < 7 else 4 if use == 7 else 3, _BLOCKS[use % 2]) for use in range(9)]  # of the 2.7B
ARCHITECTURE = Architecture(
    pattern="mamba + hybrid + mamba + hybrid-2",
    blocks={
        "mamba": BlockConfig(mixer=_MAMBA, eps=1e-5),
        **{
            name: BlockConfig(mixer=_MAMBA, guide={"name": "zamba2", "rank": 16}, common=COMMON, eps=1e-5)
            for name in hybrid_names(MOST)
        },
    },
    frame={"tied": True, "eps": 1e-5},
    depth_factor=2.0,
    head="mixer.head_dim",
    width_step=8,
    fine="mixer.state",
    fine_step=8,
    fine_ratio=0.0,
    fine_base=64.0,
    presets={
        "zamba2-1.2b": {
            "width": 2048, "depth": 38, "vocab_size": 32000, "pattern": "mamba*5 + hybrid", "mamba2.head_dim": 64, "mamba2.state": 128,
            "zamba2.heads": 32, "zamba2.rope": 1.0, "zamba2.rank": 128, "zamba2.attention_rank": 128,
        },
        "zamba2-2.7b": {
            "width": 2560, "depth": 54, "vocab_size": 32000, "mamba2.head_dim": 64, "mamba2.state": 64,
            "pattern": " + ".join(f"mamba*{count} + {name}" for count, name in _LAYERS) + " + mamba*2",
            "zamba2.heads": 32, "zamba2.rank": 128,
        },
    },
    exchange=(EXCHANGE,),
)  # fmt: skip

register(
    "zamba2",
    mixer="Zamba2",
    architecture="ARCHITECTURE",
    summary="Zamba2: Mamba-2 with attention blocks that layers share, told apart by maps of low rank",
    paper="2411.15242",
    year=2024,
    tags=("causal", "parallel", "cache"),
    presets=("zamba2-1.2b", "zamba2-2.7b"),
    exchange=("zamba2",),
)
