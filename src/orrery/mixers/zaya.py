"""ZAYA1: attention in a compressed space behind convolutions, one expert a token, residual sums with learned scales.

Paper: Compressed Convolutional Attention (CCA, arXiv 2510.04476); ZAYA1 (2511.17127) for router, experts and residual sums.

Equation:  q'_t, k'_t = W_q x_t, W_k x_t  of H and G heads, small beside the width;  u = [q', k']
    d_t = b_0 + sum_{i<k0} w_i u_{t-i},   c_t = b_1 + sum_{j<k1} M_j d_{t-j}        (w a vector, M_j a matrix of each head)
    m_t = (q'_t + repeat(k'_t)) / 2;   q_t = c_t^q + m_t,   k_t = c_t^k + mean over a group of m_t
    q_t <- sqrt(K) q_t / |q_t|,   k_t <- g sqrt(K) k_t / |k_t|;   v_t = [W_v x_t, W_v' x_{t-1}], one half of the heads each
    then rotation of a part of each head, softmax attention and the way out
    block:  x = r(x, cca(norm(x)));  x = r'(x, experts(norm(x)))    (:mod:`orrery.nn.residual_scale`, :mod:`orrery.nn.carried_moe`)

Before a document u and x are zero, so d is b_0 there.

Shapes: B batch, T time, D width, H query heads, G key-value heads, K head dimension, C = (H + G) K channels, S cached keys.

Cost: train O(T^2 H K) and D (H + 2G) K + 2 H K D + C (k0 + K k1) multiply-adds a token; decode O(S H K);
    state 2 G K min(S, W) numbers and (C + G K / 2) (k0 + k1 - 2).

Differs from the paper: g starts at 1; a window is the choice of a layer, as in the code of transformers; balancing follows the
    loads by their sign where `bias_rate` is above 0 (the paper has a controller with memory).

Oracle: tests/oracles/cca.py (float64 loops); transformers' ZAYA (equal logits and cached generation through the exchange map).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor, nn

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig, make_part, part_config
from orrery.nn.contract import Context, Mixer, PartConfig, Place
from orrery.nn.exchange import ExchangeMap, Rule
from orrery.nn.exchange_rope import read_rope, write_ropes
from orrery.nn.heads import check_heads, count_groups, count_heads, reset_projections
from orrery.nn.rotary import Rope, rotated_size


@dataclass(frozen=True, kw_only=True)
class CCAConfig(PartConfig):
    """heads H (None: half of what fills the width); kv_heads G (None: as many, or a quarter where four divide them). taps: k0 and k1.
    window None: unlimited. rope: rotated part of each head, or how positions are scaled. bias: of the projections."""

    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int = 64
    taps: tuple[int, int] = (2, 2)
    window: int | None = None
    rope: Rope = 0.5
    rope_theta: float = 10000.0
    bias: bool = False
    dropout: float = 0.0
    init_std: float | None = None

    def __post_init__(self) -> None:
        check_heads(self)
        require(min(self.taps) >= 1, f"taps must be 1 or more, not {self.taps}")
        require(self.window is None or self.window > 0, f"window must be positive, not {self.window}")


class CompressedInputs(nn.Module):
    """Queries and keys of length sqrt(K) and values, side by side (B,T,(H+2G)K), of x (B,T,D)."""

    conv = None  # no Canon layer: the convolutions are here

    def __init__(self, config: CCAConfig, width: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads, self.groups, self.size, self.taps = heads, groups, config.head_dim, config.taps
        self.values = groups * config.head_dim
        require(self.values % 2 == 0, f"half of {self.values} values come from the token before")
        self.channels = (heads + groups) * config.head_dim
        self.memory = max(1, sum(config.taps) - 2)
        self.linear = nn.Linear(width, self.channels + self.values, bias=config.bias)  # of q', k', W_v, W_v'
        self.first = nn.Parameter(torch.empty(self.channels, config.taps[0]))
        self.first_bias = nn.Parameter(torch.empty(self.channels))
        self.second = nn.Parameter(torch.empty(self.channels, config.head_dim, config.taps[1]))
        self.second_bias = nn.Parameter(torch.empty(self.channels))
        self.gain = nn.Parameter(torch.empty(groups))
        self.reset_taps()

    def reset_taps(self) -> None:
        """Uniform +-1/sqrt(fan in); biases 0, gains 1."""
        for weight in (self.first, self.second):
            bound = weight[0].numel() ** -0.5
            nn.init.uniform_(weight, -bound, bound)
        nn.init.zeros_(self.first_bias)
        nn.init.zeros_(self.second_bias)
        nn.init.ones_(self.gain)

    def forward(self, x: Tensor, held: Tensor | None, ctx: Context) -> tuple[Tensor, Tensor]:
        """X (B,T,D), earlier u and W_v' x (B,M,C+GK/2) or None -> p (B,T,(H+2G)K), and the same of the last tokens."""
        p, half = self.linear(x), self.values // 2
        raw, current, delayed = p.split([self.channels, half, half], -1)
        shift = None if self.linear.bias is None else self.linear.bias[-half:]
        seen = torch.cat([raw, delayed if shift is None else delayed - shift], -1)
        before = seen.new_zeros(len(x), self.memory, seen.shape[-1]) if held is None else held.to(seen.dtype)
        window, starts = torch.cat([before, seen], 1), ctx.timeline.starts
        document = None if starts is None else torch.nn.functional.pad(starts.cumsum(1), (self.memory, 0))
        lagged = [self._lag(window, document, back, x.shape[1]) for back in range(self.memory + 1)]
        q, k = self._mixed([each[..., : self.channels] for each in lagged])
        late = lagged[1][..., self.channels :] if shift is None else lagged[1][..., self.channels :] + shift
        return torch.cat([q.flatten(2), k.flatten(2), current, late], -1), self._kept(window, document, ctx)

    def _lag(self, window: Tensor, document: Tensor | None, back: int, length: int) -> Tensor:
        """What stood `back` tokens earlier in the same document (B,T,.), else 0."""
        begin = self.memory - back
        found = window[:, begin : begin + length]
        if document is None or not back:
            return found
        return found.masked_fill((document[:, begin : begin + length] != document[:, self.memory :])[..., None], 0.0)

    def _mixed(self, raw: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Queries (B,T,H,K) and keys (B,T,G,K), of u 0, 1, .. tokens back (2510.04476 section 3)."""
        (deep, wide), shape = self.taps, (self.heads + self.groups, self.size)
        second = self.second.unflatten(0, shape)
        mixed = self.second_bias.view(shape)
        for j in range(wide):
            d = self.first_bias + sum(self.first[:, deep - 1 - i] * raw[j + i] for i in range(deep))
            mixed = mixed + torch.einsum("bthk,hnk->bthn", d.unflatten(-1, shape), second[..., wide - 1 - j])
        own_q, own_k = raw[0].unflatten(-1, shape).split([self.heads, self.groups], 2)
        mean = (own_q + own_k.repeat_interleave(self.heads // self.groups, 2)) / 2
        q, k = mixed.split([self.heads, self.groups], 2)
        return self._unit(q + mean), self._unit(k + mean.unflatten(2, (self.groups, -1)).mean(3)) * self.gain[:, None]

    def _unit(self, x: Tensor) -> Tensor:
        return x * (self.size**0.5 / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=torch.finfo(x.dtype).eps))

    def _kept(self, window: Tensor, document: Tensor | None, ctx: Context) -> Tensor:
        """The last M rows of each row's last document."""
        length, ends = window.shape[1] - self.memory, ctx.timeline.lengths
        if document is None and ends is None:
            return window[:, length:].clone()
        rows = torch.arange(len(window), device=window.device)[:, None]
        last = torch.full((len(window),), length, device=window.device) if ends is None else ends
        index = last[:, None] + torch.arange(self.memory, device=window.device)
        kept = window[rows, index]
        if document is None:
            return kept
        places = document[rows, index]
        return kept.masked_fill((places != places[:, -1:])[..., None], 0.0)

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> Tensor:
        """Nothing before the first token."""
        return torch.zeros(batch, self.memory, self.channels + self.values // 2, device=device, dtype=dtype)

    def state_bytes(self) -> int:
        """Bytes per sequence."""
        return self.memory * (self.channels + self.values // 2) * self.first.element_size()

    def flops(self, length: int) -> int:
        """The projection and both convolutions."""
        deep, wide = self.taps
        return 2 * length * (self.linear.weight.numel() + self.channels * wide * (deep + self.size))


class CCA(Mixer):
    """Softmax attention over queries, keys and values of :class:`CompressedInputs`."""

    Config = CCAConfig
    config: CCAConfig
    honours = frozenset({"positions", "bias"})
    examples = (
        {"head_dim": 8, "heads": 2},
        {"head_dim": 8, "heads": 4, "kv_heads": 2, "taps": [3, 2], "window": 7, "rope": 1.0, "bias": True},
        {"head_dim": 8, "heads": 2, "kv_heads": 1, "taps": [1, 1]},
    )

    def __init__(self, config: CCAConfig, place: Place) -> None:
        super().__init__(config, place)
        self.head_dim = config.head_dim
        self.heads = config.heads or max(1, count_heads(config, place) // 2)
        self.kv_heads = count_groups(config, self.heads) if config.kv_heads or self.heads % 4 else self.heads // 4
        self.rotated = rotated_size(config.rope, self.head_dim)
        settings = {
            "heads": self.heads, "kv_heads": self.kv_heads, "head_dim": self.head_dim, "window": config.window, "rope": config.rope,
            "rope_theta": config.rope_theta, "dropout": config.dropout, "out_bias": config.bias,
        }  # fmt: skip
        self.attention: Any = make_part({"name": "attention", **settings}, "mixer", place.replace(canon=""))
        self.attention.inputs = CompressedInputs(config, place.width, self.heads, self.kv_heads)
        self.State = self.attention.State  # type: ignore[misc]
        self.queries, self.keys = self.heads * self.head_dim, self.kv_heads * self.head_dim  # rows of the maps, for exchange
        self.now = self.late = self.keys // 2
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Projections as attention's, taps as PyTorch's convolutions."""
        reset_projections(self.attention.inputs, self.attention.out, self.config.init_std, self.place)
        self.attention.inputs.reset_taps()

    def mix(self, x: Tensor, state: Any, ctx: Context) -> tuple[Tensor, Any]:
        return cast("tuple[Tensor, Any]", self.attention.mix(x, state, ctx))

    def transfer(self, x: Tensor, ctx: Context) -> Tensor:
        """The attention matrix (B,H,T,T) of a whole sequence; row t sums to 1."""
        return cast(Tensor, self.attention.transfer(x, ctx))

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None, capacity: int = 0) -> Any:
        """No keys yet; `capacity` slots are set aside for a caller that donates its state."""
        return self.attention.init_state(batch, device, dtype, capacity)

    def state_bytes(self, length: int) -> int:
        return int(self.attention.state_bytes(length))

    def flops(self, length: int) -> int:
        return int(self.attention.flops(length))


_TYPES = {"hybrid": "full", "hybrid_sliding": "local"}
_THETA = {"hybrid": 5e6, "hybrid_sliding": 1e4}


def _read(hf: dict[str, Any]) -> dict[str, Any]:
    require(hf.get("hidden_act", "silu") == "silu", f"no counterpart for activation {hf.get('hidden_act')}")
    require(not hf.get("lm_head_bias"), "a bias of the head has no counterpart")
    depth = hf["num_hidden_layers"]
    types = list(hf.get("layer_types") or ["hybrid"] * depth)
    require(set(types) <= set(_TYPES), f"the kinds of layers are not known: {sorted(set(types))}")
    kinds = [_TYPES[each] for each in types]
    heads = hf["num_attention_heads"]
    found: dict[str, Any] = {
        "width": hf["hidden_size"],
        "depth": depth,
        "vocab_size": hf["vocab_size"],
        "pattern": " + ".join(f"{kind}*{len(list(run))}" for kind, run in groupby(kinds)),
        "cca.heads": heads,
        "cca.kv_heads": hf["num_key_value_heads"],
        "cca.head_dim": hf.get("head_dim") or hf["hidden_size"] // heads,
        "cca.taps": [hf.get("cca_time0", 2), hf.get("cca_time1", 2)],
        "cca.bias": hf.get("attention_bias", False),
        "cca.dropout": hf.get("attention_dropout", 0.0),
        "carried-moe.experts": hf["num_experts"],
        "carried-moe.hidden": hf["moe_intermediate_size"],
        "carried-moe.router": hf.get("router_hidden_size", 256),
        "carried-moe.router_eps": hf["rms_norm_eps"],
        "eps": hf["rms_norm_eps"],
        "tied": hf.get("tie_word_embeddings", True),
    }
    for kind in dict.fromkeys(types):
        rope, theta = read_rope(hf, _THETA[kind], 0.5, kind)
        found |= {f"{_TYPES[kind]}.mixer.rope": rope, f"{_TYPES[kind]}.mixer.rope_theta": theta}
        if kind == "hybrid_sliding":
            require(bool(hf.get("sliding_window")), "layers with a window need sliding_window")
            found["local.mixer.window"] = hf["sliding_window"]
    return found


def _write(own: dict[str, Any]) -> dict[str, Any]:
    blocks = [own["blocks"][kind] for kind in own["layout"]]
    plain = all(b["placement"] == "scaled" and not b["canon"] and b["norm"] == "rmsnorm" and b["eps"] == own["eps"] for b in blocks)
    require(plain and own["norm"] == "rmsnorm", "ZAYA has scaled residual sums and RMSNorms of one eps, without Canon layers")
    known = all(b["mixer"]["name"] == "cca" and b["channel"] and b["channel"]["name"] == "carried-moe" for b in blocks)
    require(known, "ZAYA consists of compressed convolutional attention and carried experts")
    mixers = [cast(Any, part_config(b["mixer"], "mixer")) for b in blocks]
    experts = cast(Any, part_config(blocks[0]["channel"], "channel"))
    require(all(b["channel"] == blocks[0]["channel"] for b in blocks), "all experts are alike in ZAYA")
    routed = experts.top_k == 1 and experts.gated and experts.activation == "silu" and not experts.shared and experts.scale == 1
    require(routed and experts.router_eps == own["eps"], "ZAYA has one SwiGLU expert a token and one eps")
    types, ropes, found = [], dict[str, Any](), list[dict[str, Any]]()
    for mixer in mixers:
        types.append("hybrid" if mixer.window is None else "hybrid_sliding")
        rope = (mixer.rope, mixer.rope_theta)
        require(ropes.setdefault(types[-1], rope) == rope, "layers of one kind are rotated alike in ZAYA")
        heads = mixer.heads or max(1, own["width"] // mixer.head_dim // 2)
        found.append(
            {
                "num_attention_heads": heads,
                "num_key_value_heads": mixer.kv_heads or (heads if heads % 4 else heads // 4),
                "head_dim": mixer.head_dim,
                "cca_time0": mixer.taps[0],
                "cca_time1": mixer.taps[1],
                "attention_bias": mixer.bias,
                "attention_dropout": mixer.dropout,
            }
        )
    windows = {mixer.window for mixer in mixers if mixer.window}
    require(all(each == found[0] for each in found) and len(windows) < 2, "all attention is alike in ZAYA, but for one window and rotation")
    rest = {kind: (0.5, theta) for kind, theta in _THETA.items() if kind not in ropes}
    return {
        "hidden_size": own["width"],
        "num_hidden_layers": len(blocks),
        "vocab_size": own["vocab_size"],
        "layer_types": types,
        "sliding_window": next(iter(windows), None),
        "moe_intermediate_size": experts.hidden,
        "num_experts": experts.experts,
        "num_experts_per_tok": 1,
        "router_hidden_size": experts.router or max(8, own["width"] // 8),
        "rms_norm_eps": own["eps"],
        "hidden_act": "silu",
        "max_position_embeddings": 1 << 20,
        "tie_word_embeddings": own["tied"],
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),  # theirs, left out, would end what is generated
        **found[0],
        **write_ropes({**ropes, **rest}, partial=True),
    }


_INPUTS = ("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias", "conv_qk_depthwise.weight", "conv_qk_depthwise.bias")


def _turned(hf: dict[str, Any], tensors: dict[str, Tensor], back: bool) -> dict[str, Tensor]:
    """Channels of queries and keys in the other order: pairs (j, j + R/2) of theirs are neighbours here."""
    types, found = hf.get("layer_types") or ["hybrid"] * hf["num_hidden_layers"], dict(tensors)
    size = hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"]
    for layer, kind in enumerate(types):
        rotated = rotated_size(cast(Any, _share(hf, kind)), size)
        order = torch.arange(size)
        order[:rotated] = torch.arange(rotated).view(2, -1).t().flatten()
        order = order.argsort() if back else order
        home = f"model.layers.{layer}.self_attn.qkv_proj."
        for name in (*_INPUTS, "conv_qk_grouped.weight", "conv_qk_grouped.bias"):
            if f"{home}{name}" in found:
                turned = found[f"{home}{name}"].unflatten(0, (-1, size))[:, order].flatten(0, 1)
                found[f"{home}{name}"] = turned[:, order] if name == "conv_qk_grouped.weight" else turned
    return found


def _share(hf: dict[str, Any], kind: str) -> float:
    rope, _ = read_rope(hf, _THETA[kind], 0.5, kind)
    return float(rope.get("part", 1.0)) if isinstance(rope, dict) else rope


_LAYER, _OURS = "model.layers.{i}", "blocks.{i}"
_CCA, _GATE = f"{_LAYER}.self_attn.qkv_proj", f"{_LAYER}.mlp.gate"
_PARTS = tuple(f"{_CCA}.{name}" for name in ("q_proj", "k_proj", "v_proj_current", "v_proj_delayed"))
_ROWS = ("queries", "keys", "now", "late")
_SUMS = {"stream.scale": "residual_scale", "stream.shift": "residual_bias", "change.scale": "hidden_states_scale"}
_SUMS["change.shift"] = "hidden_states_bias"
_SCORER = {"first": "fc1", "second": "fc2", "out": "out_proj", "norm": "norm"}
EXCHANGE = ExchangeMap(
    model_type="zaya",
    cls="ZayaForCausalLM",
    read=_read,
    write=_write,
    rules=(
        Rule("embed.weight", ("model.embed_tokens.weight",)),
        Rule("blocks.0.entry.scale", ("model.input_hidden_states_scale",)),
        Rule("blocks.0.entry.shift", ("model.input_hidden_states_bias",)),
        Rule(f"{_OURS}.mixer_norm.weight", (f"{_LAYER}.input_layernorm.weight",)),
        *(Rule(f"{_OURS}.mixer.attention.inputs.linear.{kind}", tuple(f"{p}.{kind}" for p in _PARTS), rows=_ROWS) for kind in ("weight", "bias")),
        Rule(f"{_OURS}.mixer.attention.inputs.first", (f"{_CCA}.conv_qk_depthwise.weight",), ("squeeze",)),
        Rule(f"{_OURS}.mixer.attention.inputs.first_bias", (f"{_CCA}.conv_qk_depthwise.bias",)),
        Rule(f"{_OURS}.mixer.attention.inputs.second", (f"{_CCA}.conv_qk_grouped.weight",)),
        Rule(f"{_OURS}.mixer.attention.inputs.second_bias", (f"{_CCA}.conv_qk_grouped.bias",)),
        Rule(f"{_OURS}.mixer.attention.inputs.gain", (f"{_LAYER}.self_attn.qk_norm.temp",)),
        *(Rule(f"{_OURS}.mixer.attention.out.{kind}", (f"{_LAYER}.self_attn.o_proj.{kind}",)) for kind in ("weight", "bias")),
        *(Rule(f"{_OURS}.sums.0.{ours}", (f"{_LAYER}.post_attention_residual_scale.{theirs}",)) for ours, theirs in _SUMS.items()),
        *(Rule(f"{_OURS}.sums.1.{ours}", (f"{_LAYER}.post_mlp_residual_scale.{theirs}",)) for ours, theirs in _SUMS.items()),
        Rule(f"{_OURS}.channel_norm.weight", (f"{_LAYER}.post_attention_layernorm.weight",)),
        *(Rule(f"{_OURS}.channel.router.down.{kind}", (f"{_GATE}.down_proj.{kind}",)) for kind in ("weight", "bias")),
        Rule(f"{_OURS}.channel.router.carry", (f"{_GATE}.router_states_scale",)),
        *(
            Rule(f"{_OURS}.channel.router.{ours}.{kind}", (f"{_GATE}.router_mlp.{theirs}.{kind}",))
            for ours, theirs in _SCORER.items()
            for kind in ("weight", "bias")
        ),
        Rule(f"{_OURS}.channel.selection_bias", (f"{_GATE}.balancing_biases",)),
        Rule(f"{_OURS}.channel.wide", (f"{_LAYER}.mlp.experts.gate_up_proj",)),
        Rule(f"{_OURS}.channel.out", (f"{_LAYER}.mlp.experts.down_proj",)),
        Rule("norm.weight", ("model.norm.weight",)),
        Rule("head.weight", ("lm_head.weight",)),
    ),
    prefixes=("model.",),
    prepare=lambda hf, tensors: _turned(hf, tensors, back=False),
    finish=lambda hf, tensors: _turned(hf, tensors, back=True),
)

_EXPERTS: dict[str, Any] = {"name": "carried-moe"}
ARCHITECTURE = Architecture(
    pattern="full",
    blocks={
        "full": BlockConfig(mixer={"name": "cca"}, channel=_EXPERTS, placement="scaled", eps=1e-5),
        "local": BlockConfig(mixer={"name": "cca", "window": 512}, channel=_EXPERTS, placement="scaled", eps=1e-5),
    },
    frame={"tied": True, "eps": 1e-5},
    head="full/mixer.head_dim",
    fine_step=1,
    fine_ratio=4 / 3,
    presets={
        "zaya1-8b": {
            "width": 2048, "depth": 40, "vocab_size": 262272, "cca.heads": 8, "cca.kv_heads": 2, "cca.head_dim": 128, "cca.rope_theta": 5e6,
            "carried-moe.experts": 16, "carried-moe.hidden": 2048, "carried-moe.router": 256,
        },
    },
    exchange=(EXCHANGE,),
)  # fmt: skip

register(
    "cca",
    mixer="CCA",
    summary="Compressed convolutional attention: few heads behind two convolutions, half of the values from the token before",
    paper="2510.04476",
    year=2025,
    tags=("causal", "parallel", "cache", "positions"),
)
register(
    "zaya",
    architecture="ARCHITECTURE",
    summary="ZAYA1: compressed convolutional attention, one expert a token by a router that goes through the depth, scaled residuals",
    paper="2511.17127",
    year=2025,
    tags=("causal", "parallel", "cache", "positions"),
    presets=("zaya1-8b",),
    exchange=("zaya",),
)
