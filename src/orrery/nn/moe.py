"""Mixture of experts: a channel mixer whose router picks a few of many feed-forward networks for each token.

Paper: Switch Transformers (arXiv 2101.03961); top-k and capacity GShard 2006.16668; router z-loss ST-MoE 2202.08906;
    fine-grained and shared experts DeepSeekMoE 2401.06066; selection bias 2408.15664; sigmoid scores 2412.19437.

Equation:  p = softmax(W_r x) or sigmoid(W_r x);   S = the k experts with the largest p_i + bias_i
    g_i = scale p_i (/ sum_{j in S} p_j where normalised);   y = sum_{i in S} g_i E_i(x) + (sigmoid(w_s x)) E_shared(x)
    E_i a GLU (or an MLP).  Softmax over the chosen logits alone equals normalised softmax over all of them.
    balance loss  E sum_i f_i P_i,  f_i = choices of expert i / tokens,  P_i = mean_t p_i (normalised to sum 1)
    z loss        mean_t (logsumexp(W_r x))^2
    bias_i += rate sign(mean load - load_i) after each step, the loads of its micro-batches together

Shapes: B batch, T time, N = B T tokens, D width, E experts, k chosen, F hidden size of one expert.

Cost: per token the router (E D) and k + shared expert networks; all E are held in memory.

Differs from the papers: the bias follows the loads with the first training call that finds the router changed by a step (with
    every call where the router does not learn), so that micro-batches and recomputed blocks route alike; a capacity holds in
    training only, so that decoding equals reading; Canon-D has no place here, since hidden features belong to experts. The
    router computes in its weights' precision under autocast too (2101.03961, section 2.4).

Oracle: tests/oracles/moe.py (float64 loops); transformers' Mixtral, Qwen2-MoE, Qwen3-MoE and DeepSeek-V3 blocks.
"""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.contract import Aux, Context, Part, PartConfig, Place
from orrery.nn.feedforward import GATED_CODES, GLU, MLP, FeedForwardConfig, activation
from orrery.nn.stepping import Step, Stepping, in_order, linear_step, plain_linear
from orrery.ops.fused.experts import drop_beyond, experts, plan_dispatch
from orrery.ops.fused.swiglu import swiglu
from orrery.ops.steps.experts import Routing, experts_step
from orrery.ops.steps.row_linear import ACTIVATIONS, RowNorm

SCORES = ("softmax", "sigmoid")


@dataclass(frozen=True, kw_only=True)
class MoEConfig(PartConfig):
    """hidden F (None: the chosen experts together are as wide as a dense layer). normalise: gates are divided by their sum (a
    number is added to it; True: 0). shared: experts that every token uses, counted in F (fractions allowed). bias_rate None: no
    selection bias; 0: a fixed one. balance, router_z: weights of the two losses. capacity: choices an expert takes in training,
    relative to an even share; None: all of them."""

    experts: int = 8
    top_k: int = 2
    hidden: int | None = None
    activation: str = "silu"
    gated: bool = True
    shared: float = 0.0
    shared_gate: bool = False
    score: str = "softmax"
    normalise: bool | float = True
    scale: float = 1.0
    bias_rate: float | None = None
    balance: float = 0.01
    router_z: float = 0.0
    capacity: float | None = None

    def __post_init__(self) -> None:
        require(self.experts > 0, f"experts must be positive, not {self.experts}")
        require(1 <= self.top_k <= self.experts, f"top_k must lie between 1 and the {self.experts} experts, not be {self.top_k}")
        require(self.hidden is None or self.hidden > 0, f"channel.hidden must be positive, not {self.hidden}")
        require(self.score in SCORES, f"score '{self.score}' must be softmax or sigmoid")
        require(
            self.top_k > 1 or self.experts == 1 or not self.normalise,
            "one chosen expert with normalised gates leaves the router without gradient; set normalise=False",
        )
        known = isinstance(self.normalise, bool) or 0 < self.normalise < 1
        require(known, f"normalise is true, false or a number between 0 and 1 that is added to the sum, not {self.normalise}")
        require(self.shared >= 0, f"shared must be 0 or more, not {self.shared}")
        require(self.shared > 0 or not self.shared_gate, "shared_gate needs shared experts")
        require(min(self.balance, self.router_z, self.bias_rate or 0.0) >= 0, "balance, router_z and bias_rate must be 0 or more")
        require(self.capacity is None or self.capacity > 0, f"capacity must be positive, not {self.capacity}")

    @property
    def added(self) -> float:
        """What is added to the sum that gates are divided by."""
        return 0.0 if isinstance(self.normalise, bool) else self.normalise


class MoE(Part):
    """Top-k routed experts, with optional shared ones. Reports `routing` (a dict of statistics) and `experts` (B,T,k)."""

    Config = MoEConfig
    config: MoEConfig
    groups: tuple[int, int] = (1, 1)  # of neighbouring experts: how many there are, and how many of them a token may use
    passing = ("load",)  # buffers that weights and exchanged checkpoints may lack
    selection_bias: Tensor
    load: Tensor

    def __init__(self, config: MoEConfig, place: Place) -> None:
        super().__init__(config, place)
        width = place.width
        dense = (GLU if config.gated else MLP).default_hidden(width)
        self.hidden = hidden = config.hidden or max(8, 8 * round(dense / config.top_k / 8))
        self.router = nn.Linear(width, config.experts, bias=False)
        self.wide = nn.Parameter(torch.empty(config.experts, (2 if config.gated else 1) * hidden, width))
        self.out = nn.Parameter(torch.empty(config.experts, width, hidden))
        self.act = activation(config.activation)
        self.shared: GLU | MLP | None = None
        if config.shared:
            together = FeedForwardConfig(hidden=max(1, round(config.shared * hidden)), activation=config.activation)
            self.shared = (GLU if config.gated else MLP)(together, place.replace(canon=""))
        self.shared_gate = nn.Linear(width, 1, bias=False) if config.shared_gate else None
        if config.bias_rate is not None:
            self.register_buffer("selection_bias", torch.zeros(config.experts))
        if config.bias_rate:
            self.register_buffer("load", torch.zeros(config.experts))  # of the step at hand, not yet followed
        self._counted: weakref.ref[Aux] | None = None  # the call whose loads are in
        self._met: Tensor | None = None  # the router's weights that the loads belong to
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As the dense channel mixers: normal with std sqrt(2 / 5D), the way out scaled by 1/sqrt(2 depth)."""
        std = math.sqrt(2 / (5 * self.place.width))
        nn.init.normal_(self.router.weight, std=std)
        nn.init.normal_(self.wide, std=std)
        nn.init.normal_(self.out, std=std / math.sqrt(2 * self.place.depth))
        if self.shared is not None:
            self.shared.reset_parameters()
        if self.shared_gate is not None:
            nn.init.normal_(self.shared_gate.weight, std=std)
        for buffer in self.buffers(recurse=False):
            nn.init.zeros_(buffer)

    def mix(self, x: Tensor, state: None, ctx: Context) -> tuple[Tensor, None]:
        rows = x.reshape(-1, x.shape[-1])
        valid = ctx.timeline.valid(x.shape[1])
        counting = bool(self.config.bias_rate) and self.training and ctx.aux is not None and self._follow_load(ctx.aux)
        with torch.autocast(x.device.type, enabled=False):
            logits = self.scored(x, ctx)
        probabilities, gates, chosen = self.route(logits)
        if valid is not None:
            chosen = chosen.masked_fill(~valid.flatten()[:, None], self.config.experts)
        if ctx.aux is not None:
            self._account(logits, probabilities, chosen, valid, ctx.aux, x.shape[:2], counting)
        if self.training and self.config.capacity is not None:
            even = self.config.capacity * chosen.numel() / self.config.experts
            chosen = drop_beyond(chosen, self.config.experts, math.ceil(even))
        y = self._experts(rows, chosen, gates).view(x.shape)
        if self.shared is not None:
            together = self.shared.out(self.shared.activate(self.shared.wide(x)))
            y = y + (together if self.shared_gate is None else torch.sigmoid(self.shared_gate(x)) * together)
        return y, None

    def scored(self, x: Tensor, ctx: Context) -> Tensor:
        """Router logits (N,E) of x (B,T,D)."""
        return cast(Tensor, self.router(x.reshape(-1, x.shape[-1]).to(self.router.weight.dtype)))

    def route(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Router logits (N,E) -> probabilities (N,E), gates (N,k) and chosen experts (N,k), the best first."""
        config = self.config
        logits = logits if logits.dtype == torch.float64 else logits.float()
        scores = logits.softmax(-1) if config.score == "softmax" else logits.sigmoid()
        ranks = self.ranks(scores)
        gates, chosen = ranks.topk(config.top_k, -1)
        if ranks is not scores:
            gates = scores.gather(-1, chosen)
        if config.normalise:
            gates = gates / (gates.sum(-1, keepdim=True) + config.added).clamp(min=1e-20)
        if config.scale != 1:
            gates = config.scale * gates
        if config.score == "sigmoid":
            scores = scores / scores.sum(-1, keepdim=True)  # 2412.19437 eq. 19
        return scores, gates, chosen

    def ranks(self, scores: Tensor) -> Tensor:
        """What the choice goes by (N,E): the scores, with the bias where there is one (2408.15664 eq. 3)."""
        return scores if self.config.bias_rate is None else scores + self.selection_bias

    def _experts(self, rows: Tensor, chosen: Tensor, gates: Tensor) -> Tensor:
        """Rows (N,D) through their experts, (N,D)."""
        if len(rows) == 1 and not torch.is_grad_enabled():
            weights = gates.to(rows.dtype).unbind(1)
            wanted = zip(chosen[0].tolist(), weights, strict=True)
            parts = [g * F.linear(self._activate(F.linear(rows, self.wide[e])), self.out[e]) for e, g in wanted if e < len(self.wide)]
            return sum(parts[1:], parts[0]) if parts else torch.zeros_like(rows)
        plan = plan_dispatch(chosen, self.config.experts)
        return experts(rows, gates, self.wide, self.out, plan, self._activate).to(rows.dtype)

    def _activate(self, h: Tensor) -> Tensor:
        if not self.config.gated:
            return self.act(h)
        if self.config.activation == "silu":
            return swiglu(h)
        gate, up = h.chunk(2, -1)
        return self.act(gate) * up

    def _account(
        self, logits: Tensor, probabilities: Tensor, chosen: Tensor, valid: Tensor | None, aux: Aux, shape: torch.Size, counting: bool
    ) -> None:
        """Losses, statistics, and the loads that the selection bias follows; padding counts for nothing."""
        config = self.config
        counts = torch.bincount(chosen.flatten(), minlength=config.experts + 1)[: config.experts].to(probabilities.dtype)
        if counting:
            self.load.add_(counts)
        if valid is not None:
            logits, probabilities = logits[valid.flatten()], probabilities[valid.flatten()]
        tokens = max(1, len(logits))
        mean = probabilities.sum(0)[: config.experts] / tokens
        if config.balance:
            aux.add_loss("balance", config.balance * config.experts * (counts / tokens * mean).sum())  # 2101.03961 eq. 4
        if config.router_z:
            squares = logits.to(probabilities.dtype).logsumexp(-1).square()  # 2202.08906 eq. 5
            aux.add_loss("router_z", config.router_z * squares.sum() / tokens)
        if "routing" in aux.wanted:
            share = counts / counts.sum().clamp(min=1)
            entropy = -(share * share.clamp(min=1e-30).log()).sum() / math.log(max(2, config.experts))
            aux.put("routing", self.place.layer, {"share": share, "probability": mean.detach(), "entropy": float(entropy)})
        if "experts" in aux.wanted:
            aux.put("experts", self.place.layer, chosen.view(*shape, -1))

    @torch.no_grad()
    def _follow_load(self, aux: Aux) -> bool:
        """Move the selection bias towards the experts that had less in a step that is done (2408.15664, algorithm 1).

        Returns:
            Whether this call's loads are to be counted: those of a recomputed block have been.
        """
        if self._counted is not None and aux is self._counted():
            return False
        self._counted, weight = weakref.ref(aux), self.router.weight
        if self._met is None or not weight.requires_grad or not torch.equal(self._met, weight):  # a fused step leaves its version
            change = float(self.config.bias_rate or 0.0) * torch.sign(self.load.mean() - self.load)
            self.selection_bias[: len(change)] += change
            self.load.zero_()
            self._met = weight.detach().clone()
        return True

    def stepper(self, norm: RowNorm, state: None, run: Stepping) -> Step | None:
        config, x = self.config, run.x
        code = GATED_CODES.get(config.activation, "none") if config.gated else config.activation
        if code not in ACTIVATIONS or not plain_linear(self.router):
            return None
        if self.shared is not None and not plain_linear(self.shared.wide, self.shared.out):
            return None
        u, bias = torch.empty_like(x), None if config.bias_rate is None else self.selection_bias
        softmax, normalise = config.score == "softmax", bool(config.normalise)
        rule = Routing(self.router.weight, bias, config.top_k, softmax, normalise, config.scale, config.added, *self.groups)
        chosen = experts_step(x, norm, u, rule, self.wide, self.out, code)
        if self.shared is None:
            return chosen
        return in_order(chosen, self._shared_step(u, x, code))

    def _shared_step(self, u: Tensor, x: Tensor, code: str) -> Step:
        assert self.shared is not None
        h, y = u.new_empty(len(u), self.shared.hidden), torch.empty_like(u)
        into = linear_step(u, self.shared.wide, h, activation=code)
        if self.shared_gate is None:
            return in_order(into, linear_step(h, self.shared.out, x, add=True))
        gate = self.shared_gate
        return in_order(into, linear_step(h, self.shared.out, y), lambda: cast(None, x.add_(y.mul_(torch.sigmoid(gate(u))))))

    def idle_parameters(self) -> int:
        """Parameters that one token does not use."""
        return (self.wide[0].numel() + self.out[0].numel()) * (self.config.experts - self.config.top_k)

    def flops(self, length: int) -> int:
        """Router, k experts, shared experts: what a token uses."""
        config, width = self.config, self.place.width
        own = 2 * width * (config.experts + config.top_k * self.hidden * (3 if config.gated else 2)) * length
        own += 0 if self.shared is None else self.shared.flops(length)
        return own + (0 if self.shared_gate is None else 2 * width * length)


register(
    "moe",
    channel="MoE",
    summary="Mixture of experts: top-k routing with shared experts, losses and statistics",
    paper="2101.03961",
    year=2021,
    tags=("causal",),
)
