"""RWKV-4: attention as a fading average that a recurrence computes, with token shift in both halves of a block.

Paper: RWKV: Reinventing RNNs for the Transformer Era (arXiv 2305.13048, section 3).

Equation: every projection reads a mixture of the token and the one before it, mu x_t + (1 - mu) x_{t-1}.
    time mix:     wkv_t = (sum_{s<t} e^{k_s - (t-1-s) w} v_s + e^{u + k_t} v_t) / (the same without v),  w = exp(time_decay)
                  y_t = W_o (sigmoid(r_t) * wkv_t)
    channel mix:  y_t = sigmoid(r_t) * (W_v max(k_t, 0)^2)
    x += time mix(LN(x));  x += channel mix(LN(x));  a LayerNorm stands behind the embedding, too

Shapes: B batch, T time, D width, E width of the average (D unless set), F hidden size 4 D.

Cost: train and prefill O(T), decode O(1): 4 D E + 2 D F + D^2 multiply-adds a token; state 3 E + 2 D numbers.

Differs from the paper: the embedding is drawn from a normal distribution with deviation 1e-4, not from a uniform one; the
    head with deviation D^-1/2, twice that of the published code. transformers' copy initialises time_first with ones;
    here it has the paper's zigzag around log 0.3. The rescaling by 1/2 every 6 layers that keeps float16 inference in
    range is left out, so a checkpoint must be read before transformers has run it in evaluation mode. All parameters
    learn at one rate; the published code trains time_decay at twice and time_first at three times the rate.

Oracle: tests/oracles/rwkv4.py (float64 loops); transformers' RWKV with the same weights.
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
from orrery.nn.contract import Context, Mixer, Part, PartConfig, Place
from orrery.nn.exchange import ExchangeMap, Rule, norm_rules
from orrery.nn.recompute import linear_of
from orrery.nn.rwkv import mixed_linears, reset_channel_mix, reset_time_mix
from orrery.nn.state import state
from orrery.nn.stepping import Step, Stepping, in_order, linear_step, plain_linear
from orrery.nn.timeline import fresh_clock
from orrery.ops.fused.gates import relu_square, sigmoid_gate
from orrery.ops.fused.token_shift import token_mix
from orrery.ops.steps.row_linear import RowNorm, row_norm_into
from orrery.ops.steps.rwkv4 import average_step, gate_step, mix_step
from orrery.ops.wkv4 import wkv4, wkv4_initial, wkv4_matrix, wkv4_step


@dataclass(frozen=True, kw_only=True)
class RWKV4Config(PartConfig):
    """hidden: E, the width of keys, values and gates (None: D)."""

    hidden: int | None = None

    def __post_init__(self) -> None:
        require(self.hidden is None or self.hidden > 0, f"hidden must be positive, not {self.hidden}")


@dataclass(frozen=True, kw_only=True)
class RWKV4ChannelConfig(PartConfig):
    """hidden: F (None: 4 D). key_gain: of the keys' orthogonal start (None: sqrt(F / D), RWKV-4's; RWKV-5 and 6 have 1)."""

    hidden: int | None = None
    key_gain: float | None = None

    def __post_init__(self) -> None:
        for name in ("hidden", "key_gain"):
            value = getattr(self, name)
            require(value is None or value > 0, f"channel.{name} must be positive, not {value}")


@state
class RWKV4State(NamedTuple):
    """shift: the last token (B,D); num, den, peak: the average's sums and their scale (B,E), float32; clock: (B,2)."""

    shift: Tensor
    num: Tensor
    den: Tensor
    peak: Tensor
    clock: Tensor


@state
class RWKV4ChannelState(NamedTuple):
    """shift: the last token (B,D); clock: (B,2)."""

    shift: Tensor
    clock: Tensor


class RWKV4(Mixer):
    """The time mix."""

    Config = RWKV4Config
    State = RWKV4State
    config: RWKV4Config
    examples = ({}, {"hidden": 40})

    def __init__(self, config: RWKV4Config, place: Place) -> None:
        super().__init__(config, place)
        self.hidden = config.hidden or place.width
        self.mix_k = nn.Parameter(torch.empty(place.width))
        self.mix_v = nn.Parameter(torch.empty(place.width))
        self.mix_r = nn.Parameter(torch.empty(place.width))
        self.time_decay = nn.Parameter(torch.empty(self.hidden))
        self.time_first = nn.Parameter(torch.empty(self.hidden))
        self.key = nn.Linear(place.width, self.hidden, bias=False)
        self.value = nn.Linear(place.width, self.hidden, bias=False)
        self.receptance = nn.Linear(place.width, self.hidden, bias=False)
        self.out = nn.Linear(self.hidden, place.width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Decays and mixtures spread over channels and shifted with depth; keys, gates and the way out start at zero."""
        reset_time_mix(self)

    def mix(self, x: Tensor, state: RWKV4State | None, ctx: Context) -> tuple[Tensor, RWKV4State]:
        time = ctx.timeline
        if x.shape[1] == 1 and state is not None and time.starts is None and time.lengths is None:
            return self._step(x, state, ctx)
        ratios, linears = (self.mix_k, self.mix_v, self.mix_r), (self.key, self.value, self.receptance)
        (k, v, r), shift = mixed_linears(x, ratios, None if state is None else state.shift, time, linears)
        before = None if state is None else (state.num, state.den, state.peak)
        w_log = -self.time_decay.exp()
        y, after = wkv4(k, v, w_log, self.time_first, before, time.starts, time.lengths)
        if ctx.last:
            r, y = r[:, -1:], y[:, -1:]
        return linear_of(sigmoid_gate, self.out, r, y), RWKV4State(shift, *after, time.clock)

    def _step(self, x: Tensor, state: RWKV4State, ctx: Context) -> tuple[Tensor, RWKV4State]:
        """One token that continues a state: the same function in as few calls as possible."""
        x, earlier = x[:, 0], state.shift.to(x.dtype)
        k = self.key(torch.lerp(earlier, x, self.mix_k))
        v = self.value(torch.lerp(earlier, x, self.mix_v))
        r = self.receptance(torch.lerp(earlier, x, self.mix_r))
        w_log, kind = -self.time_decay.exp(), state.num.dtype
        y, after = wkv4_step(
            k[:, None].to(kind), v[:, None].to(kind), w_log, self.time_first, (state.num, state.den, state.peak)
        )
        return self.out(torch.sigmoid(r) * y[:, 0].to(r.dtype))[:, None], RWKV4State(x, *after, ctx.timeline.clock)

    @torch.no_grad()
    def forget_more(self, decay: float, insertion: float) -> None:
        """Raise the decay to the power `decay` and write `insertion` times as much: in an average, as the token weighing more."""
        self.time_decay.add_(math.log(decay))
        self.time_first.sub_(math.log(insertion))

    def transfer(self, x: Tensor, ctx: Context) -> Tensor:
        """The matrices (B,E,T,T) that average the values, channel by channel, before the gate; rows sum to 1."""
        time = ctx.timeline
        mixed, _ = token_mix(x, self.mix_k[None], None, time.starts, time.lengths)
        return wkv4_matrix(self.key(mixed[0]), -self.time_decay.exp(), self.time_first, time.starts)

    def stepper(self, norm: RowNorm, state: RWKV4State, run: Stepping) -> Step | None:
        maps = (self.key, self.value, self.receptance)
        if not plain_linear(*maps, self.out):
            return None
        ratios = torch.stack([self.mix_k, self.mix_v, self.mix_r]).detach()
        p, (k, v, r, y) = run.x.new_empty(3, *run.x.shape), run.x.new_empty(4, len(run.x), self.hidden)
        sums = run.own(state.num), run.own(state.den), run.own(state.peak)
        mix = _mix_step(norm, state.shift, ratios, p, run)
        average = average_step(k, v, r, -self.time_decay.detach().exp(), self.time_first, sums, y)
        own = [linear_step(p[n], linear, into) for n, (linear, into) in enumerate(zip(maps, (k, v, r), strict=True))]
        return in_order(mix, *own, average, linear_step(y, self.out, run.x, add=True))

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> RWKV4State:
        """Nothing seen; the sums are float32 unless `dtype` is float64."""
        kind = torch.float64 if dtype == torch.float64 else torch.float32
        shift = torch.zeros(batch, self.place.width, device=device, dtype=dtype)
        return RWKV4State(shift, *wkv4_initial(batch, self.hidden, device, kind), fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        """Constant in the length."""
        number = self.key.weight.element_size()
        return max(4, number) * 3 * self.hidden + number * self.place.width

    def flops(self, length: int) -> int:
        """The four projections; the average itself (some 20 E) is not counted."""
        return 8 * self.place.width * self.hidden * length


class RWKV4Channel(Part):
    """The channel mix: a two-layer network on shifted tokens behind a gate."""

    Config = RWKV4ChannelConfig
    State = RWKV4ChannelState
    config: RWKV4ChannelConfig
    reach = 1

    def __init__(self, config: RWKV4ChannelConfig, place: Place) -> None:
        super().__init__(config, place)
        self.hidden = config.hidden or 4 * place.width
        self.mix_k = nn.Parameter(torch.empty(place.width))
        self.mix_r = nn.Parameter(torch.empty(place.width))
        self.key = nn.Linear(place.width, self.hidden, bias=False)
        self.receptance = nn.Linear(place.width, place.width, bias=False)
        self.value = nn.Linear(self.hidden, place.width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Mixtures as in the time mix; gate and way out start at zero."""
        reset_channel_mix(self)
        if self.config.key_gain is not None:
            with torch.no_grad():
                self.key.weight.mul_(self.config.key_gain / max(1.0, math.sqrt(self.hidden / self.place.width)))

    def mix(self, x: Tensor, state: RWKV4ChannelState | None, ctx: Context) -> tuple[Tensor, RWKV4ChannelState]:
        time = ctx.timeline
        ratios, linears = (self.mix_k, self.mix_r), (self.key, self.receptance)
        (k, r), shift = mixed_linears(x, ratios, None if state is None else state.shift, time, linears)
        y = sigmoid_gate(r, self.value(relu_square(k)))
        return y, RWKV4ChannelState(shift, time.clock)

    def stepper(self, norm: RowNorm, state: RWKV4ChannelState, run: Stepping) -> Step | None:
        if not plain_linear(self.key, self.value, self.receptance):
            return None
        p, (gate, z) = run.x.new_empty(2, *run.x.shape), run.x.new_empty(2, *run.x.shape)
        h = run.x.new_empty(len(run.x), self.hidden)
        mix = _mix_step(norm, state.shift, torch.stack([self.mix_k, self.mix_r]).detach(), p, run)
        wide, own = linear_step(p[0], self.key, h, activation="relu2"), linear_step(p[1], self.receptance, gate, activation="sigmoid")
        return in_order(mix, wide, own, linear_step(h, self.value, z), gate_step(gate, z, run.x))

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> RWKV4ChannelState:
        """Nothing seen."""
        shift = torch.zeros(batch, self.place.width, device=device, dtype=dtype)
        return RWKV4ChannelState(shift, fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        """Constant in the length."""
        return self.key.weight.element_size() * self.place.width

    def flops(self, length: int) -> int:
        """The three projections."""
        return 2 * self.place.width * (2 * self.hidden + self.place.width) * length


def _mix_step(norm: RowNorm, shift: Tensor, ratios: Tensor, p: Tensor, run: Stepping) -> Step:
    """The norm of the residual stream, and its mixtures (M,B,D) with the token before."""
    h = torch.empty_like(run.x)
    return in_order(row_norm_into(run.x, norm, h), mix_step(h, run.own(shift), ratios, p))


def _read(hf: dict[str, Any]) -> dict[str, Any]:
    eps = hf.get("layer_norm_epsilon", 1e-5)
    require(
        eps == 1e-5,
        f"the final norm of RWKV in transformers has eps 1e-5 whatever the others have ({eps}); here all are equal",
    )
    return {
        "width": hf["hidden_size"],
        "depth": hf["num_hidden_layers"],
        "vocab_size": hf["vocab_size"],
        "mixer.hidden": hf.get("attention_hidden_size") or hf["hidden_size"],
        "channel.hidden": hf.get("intermediate_size") or 4 * hf["hidden_size"],
        "eps": eps,
        "tied": hf.get("tie_word_embeddings", False),
    }


def _write(own: dict[str, Any]) -> dict[str, Any]:
    block = own["blocks"][0]
    alike = own["layout"] == [0] * len(own["layout"]) and block["placement"] == "pre" and not block["canon"]
    named = (
        alike
        and block["channel"]
        and block["channel"]["name"] == "rwkv4"
        and block["norm"] == own["norm"] == "layernorm"
    )
    require(bool(named) and own["embed_norm"], "RWKV-4 has one kind of block, and a norm behind the embedding")
    require(block["eps"] == own["eps"] == 1e-5, "RWKV in transformers has eps 1e-5 in its final norm")
    return {
        "hidden_size": own["width"],
        "num_hidden_layers": len(own["layout"]),
        "vocab_size": own["vocab_size"],
        "attention_hidden_size": block["mixer"].get("hidden") or own["width"],
        "intermediate_size": block["channel"].get("hidden") or 4 * own["width"],
        "layer_norm_epsilon": own["eps"],
        "rescale_every": 0,
        "tie_word_embeddings": own["tied"],
    }


_LAYER = "rwkv.blocks.{i}"
EXCHANGE = ExchangeMap(
    model_type="rwkv",
    cls="RwkvForCausalLM",
    read=_read,
    write=_write,
    rules=(
        Rule("embed.weight", ("rwkv.embeddings.weight",)),
        *norm_rules("embed_norm", "rwkv.blocks.0.pre_ln"),
        *norm_rules("blocks.{i}.mixer_norm", f"{_LAYER}.ln1"),
        Rule("blocks.{i}.mixer.mix_k", (f"{_LAYER}.attention.time_mix_key",), ("flat",)),
        Rule("blocks.{i}.mixer.mix_v", (f"{_LAYER}.attention.time_mix_value",), ("flat",)),
        Rule("blocks.{i}.mixer.mix_r", (f"{_LAYER}.attention.time_mix_receptance",), ("flat",)),
        Rule("blocks.{i}.mixer.time_decay", (f"{_LAYER}.attention.time_decay",)),
        Rule("blocks.{i}.mixer.time_first", (f"{_LAYER}.attention.time_first",)),
        Rule("blocks.{i}.mixer.key.weight", (f"{_LAYER}.attention.key.weight",)),
        Rule("blocks.{i}.mixer.value.weight", (f"{_LAYER}.attention.value.weight",)),
        Rule("blocks.{i}.mixer.receptance.weight", (f"{_LAYER}.attention.receptance.weight",)),
        Rule("blocks.{i}.mixer.out.weight", (f"{_LAYER}.attention.output.weight",)),
        *norm_rules("blocks.{i}.channel_norm", f"{_LAYER}.ln2"),
        Rule("blocks.{i}.channel.mix_k", (f"{_LAYER}.feed_forward.time_mix_key",), ("flat",)),
        Rule("blocks.{i}.channel.mix_r", (f"{_LAYER}.feed_forward.time_mix_receptance",), ("flat",)),
        Rule("blocks.{i}.channel.key.weight", (f"{_LAYER}.feed_forward.key.weight",)),
        Rule("blocks.{i}.channel.value.weight", (f"{_LAYER}.feed_forward.value.weight",)),
        Rule("blocks.{i}.channel.receptance.weight", (f"{_LAYER}.feed_forward.receptance.weight",)),
        *norm_rules("norm", "rwkv.ln_out"),
        Rule("head.weight", ("head.weight",)),
    ),
    ignored=("head.weight",),  # the copy of a tied head
    prefixes=("rwkv.",),
)


def _published(width: int, depth: int) -> dict[str, Any]:
    return {"width": width, "depth": depth, "vocab_size": 50277}


ARCHITECTURE = Architecture(
    block=BlockConfig(mixer={"name": "rwkv4"}, channel={"name": "rwkv4"}, norm="layernorm", eps=1e-5),
    frame={"tied": False, "norm": "layernorm", "eps": 1e-5, "embed_norm": True, "embed_std": 1e-4},
    width_step=32,
    fine_ratio=4.0,
    presets={
        "rwkv-4-169m": _published(768, 12),
        "rwkv-4-430m": _published(1024, 24),
        "rwkv-4-1b5": _published(2048, 24),
        "rwkv-4-3b": _published(2560, 32),
        "rwkv-4-7b": _published(4096, 32),
        "rwkv-4-14b": _published(5120, 40),
    },
    exchange=(EXCHANGE,),
)

register(
    "rwkv4",
    mixer="RWKV4",
    channel="RWKV4Channel",
    architecture="ARCHITECTURE",
    summary="RWKV-4: fading average of the past with token shift",
    paper="2305.13048",
    year=2023,
    tags=("causal", "recurrent", "parallel", "zero-start"),
    presets=("rwkv-4-169m", "rwkv-4-430m", "rwkv-4-1b5", "rwkv-4-3b", "rwkv-4-7b", "rwkv-4-14b"),
    exchange=("rwkv",),
)
