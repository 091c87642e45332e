"""Encoders from other models: another head on the same body, and an encoder out of a decoder's layers."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from orrery.core.errors import ConfigError
from orrery.models.build import find_architecture
from orrery.models.config import EmbeddingConfig, EncoderConfig
from orrery.models.decoder import DecoderLM
from orrery.models.encode_config import head_spec, pair_head
from orrery.models.encoder import Encoder
from orrery.models.encoder_decoder import PairFrame, PairReader
from orrery.models.patterns import parse_pattern
from orrery.nn.architecture import Architecture


def with_head(model: Encoder | PairFrame, head: str | dict[str, Any] | None, **settings: Any) -> Encoder | PairReader:
    """A new encoder with the same body, its weights copied, and another head, freshly drawn; or an encoder-decoder with one.

    An encoder-decoder that wrote loses its own last layer. Where that asked for a small last norm (`small_logits`), the norm
    is multiplied by sqrt(D), so that the head reads states of unit size, as T5's heads do.

    Args:
        model: an encoder, or an encoder-decoder (with a head already, or one that writes).
        head: a name of :data:`orrery.models.heads.HEADS`, a whole spec, or None for no head.
        **settings: of the head (`labels=9`, `crf=True`, ...).

    Raises:
        ConfigError: for an unknown head or setting, or a model that is neither.
    """
    keys = {key if key == "labels" else f"head.{key}": value for key, value in settings.items()}
    if isinstance(model, PairFrame):
        return _reader(model, {"head": head, **keys})
    own = getattr(model, "with_head", None)  # a whole model that is an encoder of its own kind
    if own is not None:
        return cast(Encoder, own(head, **settings))
    if not isinstance(model, Encoder):
        raise ConfigError(f"{type(model).__name__} is no encoder; `as_encoder` makes one of a decoder language model")
    spec, _ = head_spec(_home(model.config.architecture), {"head": head, **keys})
    made = Encoder(EncoderConfig.from_dict({**model.config.to_dict(), "head": spec}))
    _copy_body(model, made)
    return made


def _reader(model: PairFrame, asked: dict[str, Any]) -> PairReader:
    """An encoder-decoder that answers with the head that is asked for."""
    own = model.config
    if hasattr(model, "registered_name"):
        raise ConfigError(f"'{cast(Any, model).registered_name}' writes what it has read, and takes no head")
    spec, _ = pair_head(_home(own.architecture), asked)
    if spec is None:
        raise ConfigError(f"a reader needs a head; '{own.architecture}' without one is an encoder-decoder that writes")
    made = PairReader(own.replace(**{"head": spec, "small_logits": False, "decoder.tied": True}))
    _copy_body(model, made)
    if own.small_logits:
        with torch.no_grad():
            made.last_gain().mul_(own.width**0.5)
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
