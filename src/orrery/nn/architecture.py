"""An architecture: a mixer with its block and frame as its paper has them, and how it grows along the size ladder.

Every file of `mixers/` that offers a whole model ends with one :class:`Architecture` and a register line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orrery.core import registry
from orrery.core.config import field_types
from orrery.nn.block import BlockConfig


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How a mixer becomes a model.

    block: one layer; the mixer and channel settings given here are defaults that overrides replace.
    pattern: what the name stands for when its layers differ ("mlstm*7 + slstm"); there is no `block` then.
    blocks: layers that only this architecture has, by the names its pattern uses; elsewhere "architecture/name".
    frame: settings of the frame (tied, norm, eps, embed_norm, positions, max_positions, dropout, softcap).
    depth_factor: layers relative to the ladder's depth (2 for blocks without a channel mixer).
    head: dotted setting that holds a head size; the ladder sets it to 32 up to `tiny` and 64 from `small` on; "layer/setting" or
        "layer+layer/setting": only in those of `blocks`.
    width_step: widths are multiples of this (None: of the head size).
    fine: dotted setting that absorbs what is left of the parameter budget; "layer/setting": only in that one of `blocks`.
    fine_step: its granularity.
    fine_ratio, fine_base: its natural value is ratio * width + base; the ladder picks the width that brings it nearest.
    kind: the frame it is built in: "decoder", "encoder" or "encoder-decoder".
    decoder: of an encoder-decoder, the decoder's layer (`block` is the encoder's); its own `frame` settings begin with "decoder.".
    heads: default settings of an encoder's heads by their names (:mod:`orrery.models.heads`); the first is the default head.
    pair: settings of an encoder-decoder's frame (start, stop, shared, small_logits).
    presets: published sizes by their papers' names -> {setting: value}, with `width`, `depth` and any dotted setting.
    exchange: maps to and from other libraries' checkpoints (:mod:`orrery.models.exchange`), as data.
    """

    block: BlockConfig | None = None
    pattern: str = ""
    blocks: Mapping[str, BlockConfig] = field(default_factory=dict)
    frame: Mapping[str, Any] = field(default_factory=dict)
    depth_factor: float = 1.0
    head: str | None = None
    width_step: int | None = None
    fine: str = "channel.hidden"
    fine_step: int = 8
    fine_ratio: float = 8 / 3
    fine_base: float = 0.0
    kind: str = "decoder"
    decoder: BlockConfig | None = None
    heads: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pair: Mapping[str, Any] = field(default_factory=dict)
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    exchange: tuple[Any, ...] = ()


def default_architecture(mixer: str) -> Architecture:
    """What a bare mixer's name builds: pre-norm RMSNorm, the mixer, SwiGLU."""
    headed = "head_dim" in field_types(registry.load(mixer, "mixer").Config)
    return Architecture(
        block=BlockConfig(mixer={"name": mixer}, channel={"name": "glu"}),
        head="mixer.head_dim" if headed else None,
        width_step=None if headed else 32,
    )
