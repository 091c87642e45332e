"""What stands before and behind RWKV-7's recurrence: two elementwise functions with a backward of their own.

Before (2503.14456, equations 4 to 8), per head:

    ``kk = k kappa / |k kappa|``,  ``rate = sigmoid(a)``:   ``key = k (1 + (rate - 1) alpha)``,  ``-kk``,  ``kk rate``,
    ``log w = -e^-0.5 sigmoid(d)``

Behind (equations 20, 21):  ``y = gate * (weight (o - mean) / sqrt(var + eps) + bias + (sum r k rho) v)``, mean, var and sum over a head.

Autograd of the formulas reads and writes some 60 tensors of the input's size; the compiled loops read and write each once.

B batch, T time, D = H K width, H heads, K head size.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_SLOWEST = -math.exp(-0.5)  # log w lies between this and 0


def rwkv7_gates(
    k: Tensor, rate: Tensor, decay: Tensor, scale: Tensor, alpha: Tensor, heads: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """From k, rate, decay (B,T,D) and scale, alpha (D,): key, a, b, log w (B,T,H,K) for :func:`orrery.ops.dplr.dplr`."""
    return rwkv7_gates_reference(k, rate, decay, scale, alpha, heads)


def rwkv7_gates_reference(
    k: Tensor, rate: Tensor, decay: Tensor, scale: Tensor, alpha: Tensor, heads: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The formulas as they stand."""
    share = torch.sigmoid(rate)
    direction = F.normalize((k * scale).unflatten(-1, (heads, -1)), dim=-1)
    key = (k * (1 + (share - 1) * alpha)).unflatten(-1, (heads, -1))
    wide = decay if decay.dtype == torch.float64 else decay.float()
    g_log = (_SLOWEST * torch.sigmoid(wide)).unflatten(-1, (heads, -1))
    return key, -direction, direction * share.unflatten(-1, (heads, -1)), g_log


def rwkv7_out(
    o: Tensor, r: Tensor, k: Tensor, v: Tensor, gate: Tensor, bonus: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """From o, r, k, v (B,T,H,K), gate (B,T,D) and bonus, weight, bias (D,): what the way out takes (B,T,D)."""
    return rwkv7_out_reference(o, r, k, v, gate, bonus, weight, bias, eps)


def rwkv7_out_reference(
    o: Tensor, r: Tensor, k: Tensor, v: Tensor, gate: Tensor, bonus: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """The formula as it stands."""
    heads, size = o.shape[-2:]
    normed = F.layer_norm(o.to(gate.dtype), (size,), eps=eps).flatten(-2) * weight + bias
    own = (r * k * bonus.view(heads, size)).sum(-1, keepdim=True) * v
    return gate * (normed + own.flatten(-2))
