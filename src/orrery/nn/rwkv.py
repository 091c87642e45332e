"""What the layers of the RWKV family begin with: rules that several of its generations share.

Mixtures and decays spread over the channels and shift with depth; in RWKV-4 (2305.13048, appendix E) most
matrices start at zero and the rest is orthogonal. Layers are known by the names of their parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from orrery.nn.contract import Place
from orrery.nn.recompute import linears_of
from orrery.nn.timeline import Timeline
from orrery.ops.fused.token_shift import last_token, token_mix


def mixed_linears(
    x: Tensor,
    ratios: Sequence[Tensor],
    before: Tensor | None,
    time: Timeline,
    linears: Sequence[nn.Module | Tensor],
    read: tuple[Tensor, Tensor] | None = None,
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Each linear map (or matrix) of a mixture of its own of every token with the one before it; and the last token (B,D).

    x (B,T,D), ratios (D,) each, before (B,D) or None; read: shares (N,D) of something (B,T,D) that is added to the mixtures.
    The mixtures are not held for the backward pass but made again.
    """

    def mixtures(
        x: Tensor, before: Tensor | None, shares: Tensor | None, more: Tensor | None, *ratios: Tensor
    ) -> tuple[Tensor, ...]:
        mixed = token_mix(x, torch.stack(ratios), before, time.starts)[0]
        if shares is None or more is None:
            return mixed
        return tuple(each + share * more for each, share in zip(mixed, shares, strict=True))

    return linears_of(mixtures, linears, x, before, *(read or (None, None)), *ratios), last_token(x, before, time.lengths)


def depth_ratios(place: Place) -> tuple[float, float]:
    """(0 at the first layer to 1 at the last, 1 at the first layer to almost 0 at the last)."""
    return place.layer / max(1, place.depth - 1), 1 - place.layer / place.depth


def orthogonal(linear: nn.Linear) -> None:
    """Orthogonal with gain sqrt(out / in) where above 1, as the published code draws what does not start at zero."""
    nn.init.orthogonal_(linear.weight, gain=max(1.0, math.sqrt(linear.out_features / linear.in_features)))


def reset_time_mix(mixer: Any) -> None:
    """RWKV-4's time mix: decays, bonus and mixtures spread over channels; keys, gates and the way out start at zero."""
    last, fill = depth_ratios(mixer.place)
    share = torch.arange(mixer.place.width) / mixer.place.width
    channel = torch.arange(mixer.hidden)
    with torch.no_grad():
        mixer.time_decay.copy_(-5 + 8 * (channel / max(1, mixer.hidden - 1)) ** (0.7 + 1.3 * last))
        mixer.time_first.copy_(math.log(0.3) + 0.5 * ((channel + 1) % 3 - 1))
        mixer.mix_k.copy_(share**fill)
        mixer.mix_v.copy_(share**fill + 0.3 * last)
        mixer.mix_r.copy_(share ** (0.5 * fill))
    for linear in (mixer.key, mixer.receptance, mixer.out):
        nn.init.zeros_(linear.weight)
    orthogonal(mixer.value)


def reset_channel_mix(channel: Any) -> None:
    """RWKV-4's channel mix: mixtures as in the time mix; gate and way out start at zero."""
    _, fill = depth_ratios(channel.place)
    share = torch.arange(channel.place.width) / channel.place.width
    with torch.no_grad():
        channel.mix_k.copy_(share**fill)
        channel.mix_r.copy_(share**fill)
    for linear in (channel.receptance, channel.value):
        nn.init.zeros_(linear.weight)
    orthogonal(channel.key)
