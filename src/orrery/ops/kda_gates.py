"""What Kimi Delta Attention's recurrence takes, from what its projections give: one elementwise function.

    ``kh = k / |k|``,  ``beta = most sigmoid(s)``,  ``g = -exp(A) softplus(f + bias)``:
    ``q / |q|``,  ``key = beta kh``,  ``a = exp(g) kh``,  ``b = -beta kh``,  ``g``          (2510.26692, equations 1 and 10; a and b as
    :mod:`orrery.ops.dplr` takes them).  Norms are sqrt(|x|^2 + 1e-6).

B batch, T time, H heads, K head size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_EPS = 1e-6  # under the root, as fla and transformers have it


def kda_gates(
    q: Tensor, k: Tensor, strength: Tensor, decay: Tensor, rate_log: Tensor, bias: Tensor, most: float, valid: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """q, key, a, b, g (B,T,H,K), all of them 0 in their effect on the state where a token is padding.

    Args:
        q, k: (B,T,H,K); decay: f (B,T,H*K); strength: s (B,T,H).
        rate_log: A (H,); bias: (H*K,).
        most: the largest beta.
        valid: (B,T) bool, False at padding; None: all tokens count.
    """
    return kda_gates_reference(q, k, strength, decay, rate_log, bias, most, valid)


def kda_gates_reference(
    q: Tensor, k: Tensor, strength: Tensor, decay: Tensor, rate_log: Tensor, bias: Tensor, most: float, valid: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The formulas as they stand."""
    heads, wide = k.shape[2], torch.promote_types(k.dtype, torch.float32)
    beta = most * torch.sigmoid(strength.to(wide))[..., None]
    soft = F.softplus(decay.to(wide) + bias).unflatten(-1, (heads, -1))
    g_log = -rate_log.to(wide).exp()[:, None] * soft
    if valid is not None:
        beta, g_log = (x.masked_fill(~valid[..., None, None], 0.0) for x in (beta, g_log))
    q, k = (x.to(wide) * torch.rsqrt(x.to(wide).square().sum(-1, keepdim=True) + _EPS) for x in (q, k))
    key = beta * k
    return q, key, g_log.exp() * k, -key, g_log
