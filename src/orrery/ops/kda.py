"""Kimi Delta Attention from its projections to what the state is read for: gates, then the delta rule with vector decay.

On CUDA with fla-core it is :func:`orrery.ops.dplr.vector_delta_rule`, whose kernel is `chunk_kda`; elsewhere the gates are one
compiled pass (:mod:`orrery.ops.fused.kda_gates`), computed again in the backward pass, and the recurrence is
:func:`orrery.ops.dplr.dplr`.  The same function, 2510.26692, equation 1.

B batch, T time, H heads, K head size.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from orrery.ops import fla
from orrery.ops.backend import choose
from orrery.ops.dplr import dplr, vector_delta_rule
from orrery.ops.fused.kda_gates import kda_gates, kda_parts
from orrery.ops.recompute import recompute


def kda(
    mixed: Tensor,
    strength: Tensor,
    decay: Tensor,
    rate_log: Tensor,
    bias: Tensor,
    state: Tensor | None = None,
    starts: Tensor | None = None,
    *,
    most: float = 1.0,
    valid: Tensor | None = None,
    bound: float = 0.0,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence over a sequence, read with K^-1/2.

    Args:
        mixed, strength, decay, rate_log, bias, most, valid, bound: as of :func:`orrery.ops.fused.kda_gates.kda_gates`.
        state: S before the first token (B,H,K,K), zero when None.
        starts: (B,T) bool; True empties the state before the token is consumed.

    Returns:
        y (B,T,H,K) in float32 at least, and S after the last token.
    """
    key = decay.shape[-1] // len(rate_log)
    scale = key**-0.5
    offers = fla.offered("kda", fla.too_wide(decay.unflatten(-1, (len(rate_log), -1))))
    if mixed.shape[1] > 1 and choose(backend, mixed, op="kda", offered=offers) == "fla":
        q, k, v, beta, g_log = kda_parts(mixed, strength, decay, rate_log, bias, most, valid, bound)
        y, after = vector_delta_rule(q, k, v, beta, g_log, state, starts, scale, backend="fla")
        return y.to(q.dtype), after
    gates = partial(kda_gates, most=most, valid=valid, bound=bound)
    q, k, v, a, b, g_log = recompute(gates, mixed, strength, decay, rate_log, bias)
    return dplr(q, k, v.to(q.dtype), a, b, g_log, state, starts, scale)
