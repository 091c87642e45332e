"""A mixture of experts for one token of a few rows, in three compiled passes: decoding on a CPU, in float32.

    u = n(x);  s = softmax(R u) or sigmoid(R u);  the k experts of greatest s (+ bias), with gates s, normalised, scaled
    h_i = act(W_i u) of every chosen expert i;   x += sum_i gate_i O_i h_i

Only the chosen experts' weights are read, and which they are never leaves the compiled passes. Of equal scores the earlier
expert is taken. No gradient.

B rows, D width, E experts, k of them chosen, F hidden features of one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from orrery.ops.compiled import compiled, dot, exp, inlined, prepare_blocks, sigmoid
from orrery.ops.program import Steps
from orrery.ops.steps.row_linear import RowNorm, array, chosen_linear, row_norm_into

_OUTPUTS = 16  # of a block


class Routing(NamedTuple):
    """The router (E,D) and its rule. bias: (E,) added for the choice alone, or None; softmax: else a sigmoid of each score. normalise: by
    the sum of the chosen, and `added`. groups: of neighbouring experts; the choice is among the `kept` of them whose two best rank highest."""

    weight: Tensor
    bias: Tensor | None
    top_k: int
    softmax: bool
    normalise: bool
    scale: float
    added: float = 0.0
    groups: int = 1
    kept: int = 1


def experts_step(
    x: Tensor, norm: RowNorm, u: Tensor, routing: Routing, wide: Tensor, out: Tensor, activation: str
) -> Callable[[], None]:
    """A function that adds the experts' share to x each time it is called.

    Args:
        x: (B,D), the residual stream. norm: of x. u: (B,D), where the normed x is left, for shared experts.
        routing: see there.
        wide: (E,F,D), or (E,2F,D) for the gated activations; out: (E,D,F).
        activation: one of :data:`orrery.ops.steps.row_linear.ACTIVATIONS`.
    """
    batch, width, hidden = len(x), x.shape[1], out.shape[2]
    h, gates = x.new_empty(batch, routing.top_k, hidden), x.new_empty(batch, routing.top_k)
    chosen = torch.zeros(batch, routing.top_k, dtype=torch.int64)
    scores = x.new_empty(batch, 2, len(routing.weight))  # a row's own: several threads may be choosing
    picks, work = (chosen.numpy(), gates.numpy()), batch * routing.top_k * hidden * width
    settings = routing.softmax, routing.normalise, np.float32(routing.scale), np.float32(routing.added), routing.groups, routing.kept
    normed = row_norm_into(x, norm, u)
    route = prepare_blocks(
        _route, batch, 0, u.numpy(), array(routing.weight, x), array(routing.bias, x), scores.numpy(), *picks, *settings
    )
    inner = chosen_linear(u, wide, chosen, h, activation)
    outer = prepare_blocks(_out, -(-width // _OUTPUTS), 2 * work, h.numpy(), array(out, x), *picks, x.numpy())
    return Steps((normed, route, inner, outer))


@inlined
def _keep_groups(rank, groups, kept):  # type: ignore[no-untyped-def]
    """Leave the ranks of the `kept` groups whose two greatest sum to most, and put all others out of reach."""
    span, never = len(rank) // groups, np.float32(-np.inf)
    worth, out = np.empty(groups, np.float32), np.ones(groups, np.bool_)
    for g in range(groups):
        one, two = never, never
        for e in range(g * span, (g + 1) * span):
            if rank[e] > one:
                one, two = rank[e], one
            elif rank[e] > two:
                two = rank[e]
        worth[g] = one + two
    for _ in range(kept):
        best = 0
        for g in range(1, groups):
            if worth[g] > worth[best]:
                best = g
        worth[best], out[best] = never, False
    for e in range(len(rank)):
        if out[e // span]:
            rank[e] = never


@compiled
def _route(  # type: ignore[no-untyped-def]
    first, last, u, weight, bias, scores, chosen, gates, softmax, normalise, scale, added, groups, kept
):  # fmt: skip
    experts, count = len(weight), chosen.shape[1]
    for b in range(first, last):
        score, rank = scores[b, 0], scores[b, 1]
        most = np.float32(-np.inf)
        for e in range(experts):
            score[e] = dot(weight[e], u[b])
            most = max(most, score[e])
        mass = np.float32(0.0)
        for e in range(experts):
            score[e] = np.float32(exp(np.float64(score[e] - most))) if softmax else sigmoid(score[e])
            mass += score[e]
        for e in range(experts):
            if softmax:
                score[e] /= mass
            rank[e] = score[e] + (bias[e] if len(bias) > 0 else np.float32(0.0))
        if groups > 1:
            _keep_groups(rank, groups, kept)
        total = np.float32(0.0)
        for i in range(count):
            best = 0
            for e in range(1, experts):
                if rank[e] > rank[best]:
                    best = e
            chosen[b, i], gates[b, i] = best, score[best]
            rank[best] = np.float32(-np.inf)
            total += score[best]
        if normalise:
            for i in range(count):
                gates[b, i] /= max(total + added, np.float32(1e-20))
        for i in range(count):
            gates[b, i] *= scale


@compiled
def _out(first, last, h, weight, chosen, gates, x):  # type: ignore[no-untyped-def]
    batch, count = chosen.shape
    width = x.shape[1]
    for block in range(first, last):
        begin = block * _OUTPUTS
        for j in range(begin, min(begin + _OUTPUTS, width)):
            for b in range(batch):
                total = np.float32(0.0)
                for i in range(count):
                    total += gates[b, i] * dot(weight[chosen[b, i], j], h[b, i])
                x[b, j] += total
