"""Encoders from other models: another head on the same body, and an encoder out of a decoder's layers."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from orrery.core.errors import ConfigError
from orrery.models.build import find_architecture
from orrery.models.config import EmbeddingConfig, EncoderConfig
from orrery.models.decoder import DecoderLM
from orrery.models.encode_config import head_spec
from orrery.models.encoder import Encoder
from orrery.models.patterns import parse_pattern
from orrery.nn.architecture import Architecture


def with_head(model: Encoder, head: str | dict[str, Any] | None, **settings: Any) -> Encoder:
    """A new encoder with the same body, its weights copied, and another head, freshly drawn.

    Args:
        model: an encoder.
        head: a name of :data:`orrery.models.heads.HEADS`, a whole spec, or None for no head.
        **settings: of the head (`labels=9`, `crf=True`, ...).

    Raises:
        ConfigError: for an unknown head or setting, or a model that is no encoder.
    """
    own = getattr(model, "with_head", None)  # a whole model that is an encoder of its own kind
    if own is not None:
        return cast(Encoder, own(head, **settings))
    if not isinstance(model, Encoder):
        raise ConfigError(f"{type(model).__name__} is no encoder; `as_encoder` makes one of a decoder language model")
    keys = {key if key == "labels" else f"head.{key}": value for key, value in settings.items()}
    spec, _ = head_spec(_home(model.config.architecture), {"head": head, **keys})
    made = Encoder(EncoderConfig.from_dict({**model.config.to_dict(), "head": spec}))
    _copy_body(model, made)
    return made


def as_encoder(model: DecoderLM, head: str | dict[str, Any] | None = None, **settings: Any) -> Encoder:
    """An encoder whose layers are those of a decoder language model, its weights copied; they stay causal.

    A document's last token has seen all of it, so heads of documents pool "last" unless told otherwise.

    Raises:
        ConfigError: for a model that is no decoder language model.
    """
    if not isinstance(model, DecoderLM):
        raise ConfigError(f"{type(model).__name__} is no decoder language model whose layers could be an encoder's")
    own = model.config
    keys = {key if key == "labels" else f"head.{key}": value for key, value in settings.items()}
    spec, _ = head_spec(Architecture(), {"head": head, **keys})
    if spec is not None and "pool" not in settings and spec["name"] not in ("masked-lm", "tagging", "span"):
        spec["pool"] = "last"
    embedding = EmbeddingConfig(
        positions=own.positions, max_positions=own.max_positions, norm=own.embed_norm, dropout=own.dropout, std=own.embed_std
    )
    made = Encoder(EncoderConfig(
        architecture=own.architecture, vocab_size=own.vocab_size, width=own.width, blocks=own.blocks, layout=own.layout,
        norm=own.norm, eps=own.eps, embedding=embedding, head=spec,
    ))  # fmt: skip
    _copy_body(model, made)
    return made


def _home(name: str) -> Architecture:
    """The architecture whose heads' settings are the defaults; a plain one for a pattern of several."""
    return find_architecture(parse_pattern(name)[0][0].name)


@torch.no_grad()
def _copy_body(source: nn.Module, target: nn.Module) -> None:
    """Every parameter of the target outside its head, from the source's of the same name."""
    theirs = dict(source.named_parameters())
    for name, parameter in target.named_parameters():
        if not name.startswith("head."):
            parameter.copy_(theirs[name])
    for name, buffer in target.named_buffers():
        if not name.startswith("head."):
            buffer.copy_(dict(source.named_buffers())[name])
    target.to(next(source.parameters()).dtype)
    target.train(source.training)
