"""LFM2: short convolutions between two gates, and an attention layer now and then; dense or with a mixture of experts.

Paper: LFM2 Technical Report (arXiv 2511.23404); query-key norm 2010.04245, selection bias of the experts 2408.15664.

Equation:  x += mixer(norm(x));  x += F(norm(x))
    conv:  [b, c, u] = W_in x;  h_t = sum_{j<K} w_j (b u)_{t-K+1+j};  mixer(x) = W_out (c h)
    full:  grouped-query attention, rotary, with an RMSNorm of every query and key
    F: SwiGLU, or sum_{i in S} p_i / (1e-6 + sum_{j in S} p_j) E_i(h), S the k largest of p_i + bias_i, p = sigmoid(W_r h)

Shapes: B batch, T time, D width, K taps of the convolution, E experts, k chosen, F hidden size of an MLP or expert.

Cost: of a convolution layer, train and prefill O(T), decode O(1): 4 D^2 + (K + 2) D multiply-adds a token, state (K - 1) D
    numbers; the few attention layers cost O(T^2) in training and O(T) a token in decoding.

Differs from the paper: initialised by width as `transformer` here; along the size ladder every third layer is attention and,
    with experts, none of the first layers is dense (the published sizes' first two are).

Oracle: tests/oracles/gated_conv.py (float64 loops); transformers' LFM2 and LFM2-MoE (equal logits and cached generation
    through the exchange maps); tests/oracles/attention.py and moe.py.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig, part_config
from orrery.nn.contract import Context, Mixer, PartConfig, Place
from orrery.nn.conv import ShortConv
from orrery.nn.exchange import ExchangeMap, Rule, linear_rules, plain_blocks
from orrery.nn.exchange_rope import rope_settings, write_rope
from orrery.nn.recompute import linear_of
from orrery.nn.rotary import part_of
from orrery.nn.state import state
from orrery.nn.stepping import Step, Stepping, in_order, linear_step, plain_linear
from orrery.nn.timeline import fresh_clock
from orrery.ops.fused.gated_conv import gated_conv, last_gated
from orrery.ops.steps.gated_conv import gated_conv_step
from orrery.ops.steps.row_linear import RowNorm

_ADDED = 1e-6  # to the sum that the chosen experts' gates are divided by


@dataclass(frozen=True, kw_only=True)
class GatedConvConfig(PartConfig):
    """kernel: K, taps including the present token. bias: of both projections and the convolution. init_std None: sqrt(2 / 5D)."""

    kernel: int = 3
    bias: bool = False
    init_std: float | None = None

    def __post_init__(self) -> None:
        require(self.kernel >= 1, f"kernel must be 1 token or more, not {self.kernel}")


@state
class GatedConvState(NamedTuple):
    """inputs: the last gated inputs of the convolution (B,K-1,D), oldest first; clock: (B,2)."""

    inputs: Tensor
    clock: Tensor


class GatedConv(Mixer):
    """A depthwise causal convolution of a few tokens between two gates that depend on the input."""

    Config = GatedConvConfig
    State = GatedConvState
    config: GatedConvConfig
    examples = ({}, {"kernel": 5, "bias": True}, {"kernel": 1})

    def __init__(self, config: GatedConvConfig, place: Place) -> None:
        super().__init__(config, place)
        width = place.width
        self.inputs = nn.Linear(width, 3 * width, bias=config.bias)  # of b, c, u
        self.conv = ShortConv(width, config.kernel, bias=config.bias)
        self.out = nn.Linear(width, width, bias=config.bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal with std sqrt(2 / 5D) or as configured, the way out scaled by 1/sqrt(2 depth); taps uniform +-1/sqrt(K)."""
        std = self.config.init_std or math.sqrt(2 / (5 * self.place.width))
        nn.init.normal_(self.inputs.weight, std=std)
        nn.init.normal_(self.out.weight, std=std / math.sqrt(2 * self.place.depth))
        for linear in (self.inputs, self.out):
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        self.conv.reset_parameters()

    def mix(self, x: Tensor, state: GatedConvState | None, ctx: Context) -> tuple[Tensor, GatedConvState]:
        time, conv = ctx.timeline, self.conv
        p, held = self.inputs(x), None if state is None else state.inputs.to(x.dtype)
        mixed = functools.partial(gated_conv, starts=time.starts)
        y = linear_of(mixed, self.out, p, conv.weight, conv.bias, held)  # 2511.23404 section 2.2
        return y, GatedConvState(last_gated(p, conv.kernel, held, time.starts, time.lengths), time.clock)

    def stepper(self, norm: RowNorm, state: GatedConvState, run: Stepping) -> Step | None:
        if not plain_linear(self.inputs, self.out):
            return None
        p, y = run.x.new_empty(len(run.x), self.inputs.out_features), torch.empty_like(run.x)
        window = run.own(state.inputs)
        mixed = gated_conv_step(p, window, self.conv.weight, self.conv.bias, y)
        return in_order(linear_step(run.x, self.inputs, p, norm), mixed, linear_step(y, self.out, run.x, add=True))

    def transfer(self, x: Tensor, ctx: Context) -> Tensor:
        """The matrices (B,D,T,T) that map u to what goes into the way out, channel by channel, without the bias."""
        time, kernel = ctx.timeline, self.conv.kernel
        before, behind, _ = (part.transpose(1, 2) for part in self.inputs(x).chunk(3, -1))
        steps = torch.arange(x.shape[1], device=x.device)
        back = steps[:, None] - steps
        near = (back >= 0) & (back < kernel)
        taps = self.conv.weight[:, (kernel - 1 - back).clamp(0, kernel - 1)] * near
        if time.starts is not None:
            document = time.starts.cumsum(1)
            taps = taps * (document[:, None, :, None] == document[:, None, None, :])
        return behind[..., None] * taps * before[:, :, None]

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> GatedConvState:
        """Nothing seen."""
        return GatedConvState(self.conv.init_state(batch, device, dtype), fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        """Constant in the length."""
        return self.conv.state_bytes()

    def flops(self, length: int) -> int:
        """Projections, convolution, and a product for each gate."""
        return (8 * self.place.width + 2) * self.place.width * length + self.conv.flops(length)


def _hidden(hf: dict[str, Any]) -> int:
    """The size of their SwiGLU, which their config may state before it is made two thirds and rounded up."""
    hidden = int(hf.get("block_ff_dim", hf.get("intermediate_size", 12288)))
    if not hf.get("block_auto_adjust_ff_dim", True):
        return hidden
    hidden, step = int(2 * hidden / 3), hf.get("block_multiple_of", 256)
    factor = hf.get("block_ffn_dim_multiplier", 1.0)
    hidden = hidden if factor is None else int(factor * hidden)
    return hidden if factor is None else int(step * -(-hidden // step))


def _read(hf: dict[str, Any]) -> dict[str, Any]:
    moe = hf.get("model_type") == "lfm2_moe"
    depth, width, heads = hf["num_hidden_layers"], hf["hidden_size"], hf["num_attention_heads"]
    attend = range(depth) if hf.get("full_attn_idxs") is None else hf["full_attn_idxs"]
    types = hf.get("layer_types") or ["full_attention" if layer in attend else "conv" for layer in range(depth)]
    require(set(types) <= {"conv", "full_attention"}, f"the kinds of layers are not known: {sorted(set(types))}")
    dense = hf.get("num_dense_layers", 2) if moe else depth
    kinds = [("conv" if kind == "conv" else "full") + ("-moe" if layer >= dense else "") for layer, kind in enumerate(types[:depth])]
    eps = hf.get("norm_eps", 1e-5)
    found: dict[str, Any] = {
        "width": width,
        "depth": depth,
        "vocab_size": hf["vocab_size"],
        "pattern": " + ".join(f"{kind}*{len(list(run))}" for kind, run in groupby(kinds)),
        "eps": eps,
        "tied": hf.get("tie_embedding", hf.get("tie_word_embeddings", True)),
    }
    if "conv" in types:
        found |= {"gated-conv.kernel": hf.get("conv_L_cache", 3), "gated-conv.bias": hf.get("conv_bias", False)}
    if "full_attention" in types:
        found |= {
            "attention.heads": heads,
            "attention.kv_heads": hf.get("num_key_value_heads") or heads,
            "attention.head_dim": hf.get("head_dim") or width // heads,
            **rope_settings(hf, "attention", 1e6),
            "attention.qk_norm": eps,
        }
    if dense > 0:
        found["glu.hidden"] = hf["intermediate_size"] if moe else _hidden(hf)
    if dense < depth:
        found |= {
            "moe.experts": hf["num_experts"],
            "moe.top_k": hf["num_experts_per_tok"],
            "moe.hidden": hf["moe_intermediate_size"],
            "moe.scale": float(hf.get("routed_scaling_factor", 1.0)),
            "moe.normalise": _ADDED if hf.get("norm_topk_prob", True) else False,
            "moe.bias_rate": 0.0 if hf.get("use_expert_bias", True) else None,
        }
    return found


def _write(own: dict[str, Any]) -> dict[str, Any]:
    blocks = plain_blocks(own, "LFM2")
    require(all(b["channel"] for b in blocks), "LFM2 has a channel mixer in every layer")
    config = {
        "hidden_size": own["width"],
        "num_hidden_layers": len(blocks),
        "vocab_size": own["vocab_size"],
        "layer_types": ["full_attention" if b["mixer"]["name"] == "attention" else "conv" for b in blocks],
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "norm_eps": own["eps"],
        "max_position_embeddings": 1 << 20,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),  # theirs, left out, would end what is generated
        "tie_word_embeddings": own["tied"],
    }
    writers = {"attention": _write_attention, "gated-conv": _write_conv, "glu": _write_glu, "moe": _write_moe}
    seen: dict[str, dict[str, Any]] = {}
    for block in blocks:
        for kind in ("mixer", "channel"):
            spec = block[kind]
            require(spec["name"] in writers, f"LFM2 has no {kind} '{spec['name']}'")
            part = writers[spec["name"]](cast(Any, part_config(spec, kind)), own)
            require(seen.setdefault(spec["name"], part) == part, f"all layers with '{spec['name']}' are alike in LFM2")
    for part in seen.values():
        config |= part
    return config


def _write_dense(own: dict[str, Any]) -> dict[str, Any]:
    require(all(own["blocks"][kind]["channel"]["name"] == "glu" for kind in own["layout"]), "LFM2 without experts has SwiGLU in all layers")
    return {**_write(own), "block_auto_adjust_ff_dim": False}


def _write_sparse(own: dict[str, Any]) -> dict[str, Any]:
    config = _write(own)
    names = [own["blocks"][kind]["channel"]["name"] for kind in own["layout"]]
    dense = names.count("glu")
    require("moe" not in names[:dense], "the layers without experts come first in LFM2-MoE")
    return {**config, "num_dense_layers": dense}


def _write_attention(mixer: Any, own: dict[str, Any]) -> dict[str, Any]:
    alike = part_of(mixer.rope) == 1.0 and not (mixer.norm_whole or mixer.gate or mixer.bias or mixer.out_bias or mixer.dropout)
    require(alike and mixer.window is None and mixer.relative is None, "LFM2's attention is rotary, without gate, bias, window or dropout")
    eps = 1e-6 if mixer.qk_norm is True else mixer.qk_norm
    require(eps == own["eps"], f"LFM2 has a query-key norm with the eps of all norms; set attention.qk_norm={own['eps']:g}")
    heads = mixer.heads or own["width"] // mixer.head_dim
    return {
        "num_attention_heads": heads,
        "num_key_value_heads": mixer.kv_heads or heads,
        "head_dim": mixer.head_dim,
        **write_rope(mixer.rope, mixer.rope_theta),
    }


def _write_conv(mixer: Any, own: dict[str, Any]) -> dict[str, Any]:
    return {"conv_L_cache": mixer.kernel, "conv_bias": mixer.bias}


def _write_glu(channel: Any, own: dict[str, Any]) -> dict[str, Any]:
    require(channel.activation == "silu" and not channel.bias, "LFM2 has SwiGLU without bias")
    return {"intermediate_size": channel.hidden}


def _write_moe(channel: Any, own: dict[str, Any]) -> dict[str, Any]:
    routed = channel.score == "sigmoid" and channel.gated and channel.activation == "silu" and not channel.shared
    require(routed, "LFM2-MoE has SwiGLU experts, sigmoid scores and no shared experts")
    known = channel.normalise is False or channel.normalise == _ADDED
    require(known, f"LFM2-MoE divides gates by their sum and {_ADDED:g}, or not at all; set moe.normalise")
    return {
        "num_experts": channel.experts,
        "num_experts_per_tok": channel.top_k,
        "moe_intermediate_size": channel.hidden,
        "routed_scaling_factor": channel.scale,
        "norm_topk_prob": bool(channel.normalise),
        "use_expert_bias": channel.bias_rate is not None,
    }


_LAYER = "model.layers.{i}"
_CONV, _ATTENTION, _FEED, _CHANNEL = f"{_LAYER}.conv", f"{_LAYER}.self_attn", f"{_LAYER}.feed_forward", "blocks.{i}.channel"
_RULES = (
    Rule("embed.weight", ("model.embed_tokens.weight",)),
    Rule("blocks.{i}.mixer_norm.weight", (f"{_LAYER}.operator_norm.weight",)),
    *linear_rules("blocks.{i}.mixer.inputs", f"{_CONV}.in_proj", mixer="gated-conv"),
    Rule("blocks.{i}.mixer.conv.weight", (f"{_CONV}.conv.weight",), ("squeeze",), mixer="gated-conv"),
    Rule("blocks.{i}.mixer.conv.bias", (f"{_CONV}.conv.bias",), mixer="gated-conv"),
    *linear_rules("blocks.{i}.mixer.out", f"{_CONV}.out_proj", mixer="gated-conv"),
    *linear_rules("blocks.{i}.mixer.inputs.linear", tuple(f"{_ATTENTION}.{part}_proj" for part in "qkv"), "rotary", "rotary", ""),
    Rule("blocks.{i}.mixer.q_norm.weight", (f"{_ATTENTION}.q_layernorm.weight",), ("rotary",)),
    Rule("blocks.{i}.mixer.k_norm.weight", (f"{_ATTENTION}.k_layernorm.weight",), ("rotary",)),
    *linear_rules("blocks.{i}.mixer.out", f"{_ATTENTION}.out_proj", mixer="attention"),
    Rule("blocks.{i}.channel_norm.weight", (f"{_LAYER}.ffn_norm.weight",)),
    *linear_rules(f"{_CHANNEL}.wide", (f"{_FEED}.w1", f"{_FEED}.w3"), "", ""),
    *linear_rules(f"{_CHANNEL}.out", f"{_FEED}.w2"),
    Rule(f"{_CHANNEL}.router.weight", (f"{_FEED}.gate.weight",)),
    Rule(f"{_CHANNEL}.selection_bias", (f"{_FEED}.expert_bias",)),
    Rule(f"{_CHANNEL}.wide", (f"{_FEED}.experts.gate_up_proj",)),
    Rule(f"{_CHANNEL}.out", (f"{_FEED}.experts.down_proj",)),
    Rule("norm.weight", ("model.embedding_norm.weight",)),
    Rule("head.weight", ("lm_head.weight",)),
)
DENSE = ExchangeMap(model_type="lfm2", cls="Lfm2ForCausalLM", read=_read, write=_write_dense, rules=_RULES, prefixes=("model.",))
SPARSE = ExchangeMap(
    model_type="lfm2_moe", cls="Lfm2MoeForCausalLM", read=_read, write=_write_sparse, rules=_RULES, prefixes=("model.",)
)

_MIXERS: dict[str, dict[str, Any]] = {
    "conv": {"name": "gated-conv"},
    "full": {"name": "attention", "qk_norm": 1e-5, "rope_theta": 1e6},
}
_MOE = {"name": "moe", "score": "sigmoid", "normalise": _ADDED, "bias_rate": 0.0}
_BLOCKS = {
    f"{name}{mark}": BlockConfig(mixer=mixer, channel=channel, eps=1e-5)
    for mark, channel in (("", {"name": "glu"}), ("-moe", _MOE))
    for name, mixer in _MIXERS.items()
}
_FRAME = {"tied": True, "eps": 1e-5}
_SIXTEEN = "conv*2 + full + conv*2 + full + conv*2 + full + conv + full + conv + full + conv + full + conv"


def _published(width: int, heads: int, hidden: int, pattern: str = _SIXTEEN, depth: int = 16) -> dict[str, Any]:
    return {
        "width": width, "depth": depth, "vocab_size": 65536, "pattern": pattern, "glu.hidden": hidden,
        "attention.heads": heads, "attention.kv_heads": 8, "attention.head_dim": 64,
    }  # fmt: skip


ARCHITECTURE = Architecture(
    pattern="conv*2 + full",
    blocks=_BLOCKS,
    frame=_FRAME,
    head="full/mixer.head_dim",
    fine_ratio=4.0,
    presets={
        "lfm2-350m": _published(1024, 16, 4608),
        "lfm2-700m": _published(1536, 24, 6912),
        "lfm2-1.2b": _published(2048, 32, 8192),
        "lfm2-2.6b": _published(
            2048, 32, 10752, "conv*2 + full + conv*2 + full" + " + conv*3 + full" * 4 + " + conv*2 + full" * 2 + " + conv*2", 30
        ),
    },
    exchange=(DENSE,),
)

SPARSE_ARCHITECTURE = Architecture(
    pattern="conv-moe*2 + full-moe",
    blocks=_BLOCKS,
    frame=_FRAME,
    head="full-moe/mixer.head_dim",
    fine_step=1,
    fine_ratio=7 / 8,
    presets={
        "lfm2-8b-a1b": {
            **_published(2048, 32, 7168, depth=24),
            "pattern": "conv*2 + full-moe" + " + conv-moe*3 + full-moe" * 4 + " + conv-moe*2 + full-moe + conv-moe*2",
            "moe.experts": 32, "moe.top_k": 4, "moe.hidden": 1792,
        },
    },
    exchange=(SPARSE,),
)  # fmt: skip

register(
    "gated-conv",
    mixer="GatedConv",
    summary="LFM2's short convolution between two gates, alone",
    paper="2511.23404",
    year=2025,
    tags=("causal", "recurrent", "parallel"),
)
register(
    "lfm2",
    architecture="ARCHITECTURE",
    summary="LFM2: gated short convolutions with an attention layer now and then",
    paper="2511.23404",
    year=2025,
    tags=("causal", "parallel", "cache"),
    presets=("lfm2-350m", "lfm2-700m", "lfm2-1.2b", "lfm2-2.6b"),
    exchange=("lfm2",),
)
register(
    "lfm2-moe",
    architecture="SPARSE_ARCHITECTURE",
    summary="LFM2-MoE: LFM2 with sigmoid-routed experts in all but the first layers",
    paper="2511.23404",
    year=2025,
    tags=("causal", "parallel", "cache"),
    presets=("lfm2-8b-a1b",),
    exchange=("lfm2_moe",),
)
