"""How an architecture's settings become an encoder's: where each setting stands, which head, and mixers that run both ways."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

from orrery.core import registry
from orrery.core.config import field_types
from orrery.core.errors import ConfigError
from orrery.models.config import EmbeddingConfig
from orrery.models.heads import head_class
from orrery.nn.architecture import Architecture

PLAIN_HEADS: dict[str, dict[str, Any]] = {
    "masked-lm": {},
    **{name: {"pool": "mean"} for name in ("classification", "multi-label", "regression", "ordinal", "multiple-choice")},
}
"""Settings of the heads of an architecture that names none of its own."""

PAIR_HEADS: dict[str, dict[str, Any]] = {
    **{
        name: {"pool": "last", "transform": "tanh", "dropout_twice": True}
        for name in ("classification", "multi-label", "regression", "ordinal", "multiple-choice")
    },
    "tagging": {},
    "span": {},
}
"""Heads on a whole encoder-decoder and their settings: documents by the decoder's state at their end, through a layer (1910.13461)."""

_FROM_DECODER = {  # what a decoder calls a setting of the embedding
    "positions": "embedding.positions",
    "max_positions": "embedding.max_positions",
    "embed_norm": "embedding.norm",
    "embed_std": "embedding.std",
    "dropout": "embedding.dropout",
    "types": "embedding.types",
    "embed_width": "embedding.width",
}
_OWN = ("norm", "eps", "final_norm", "beside")
_SAME_ATTENTION = ("heads", "kv_heads", "head_dim", "window", "rope", "rope_theta", "bias", "out_bias", "dropout", "init_std", "relative")


def encoder_place(key: str) -> str | None:
    """Where a setting stands in an encoder's config; None for one of a layer."""
    if key in _OWN or (key.startswith("embedding.") and key.partition(".")[2] in field_types(EmbeddingConfig)):
        return key
    return _FROM_DECODER.get(key)


def encoder_settings(lead: Architecture) -> dict[str, Any]:
    """The frame's settings of an architecture; a decoder's count as far as an encoder has them."""
    known = {key: value for key, value in lead.frame.items() if encoder_place(key)}
    unknown = [key for key in lead.frame if key not in known]
    if lead.kind != "decoder" and unknown:
        raise ConfigError(f"an encoder's frame has no setting '{unknown[0]}'")
    plain: dict[str, Any] = {"norm": "rmsnorm"} if lead.kind == "decoder" else {}
    own = {str(encoder_place(key)): value for key, value in known.items()}
    embedding = {key.partition(".")[2]: value for key, value in own.items() if key.startswith("embedding.")}
    return {**plain, **{key: value for key, value in own.items() if key in _OWN}, "embedding": {**EmbeddingConfig().to_dict(), **embedding}}


def head_spec(lead: Architecture, overrides: Mapping[str, Any]) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The head that overrides ask for ("head", "labels", "head.X"), and the overrides that are left.

    Raises:
        ConfigError: for an unknown head, or settings of a head where there is none.
    """
    rest = {key: value for key, value in overrides.items() if key not in ("head", "labels") and not key.startswith("head.")}
    settings = {key.partition(".")[2]: value for key, value in overrides.items() if key.startswith("head.")}
    if "labels" in overrides:
        settings["labels"] = overrides["labels"]
    defaults = lead.heads or PLAIN_HEADS
    asked = overrides.get("head", next(iter(defaults)))
    if asked is None:
        rest.pop("tied", None)
        if settings:
            raise ConfigError(f"head is None, so it has no setting '{next(iter(settings))}'")
        return None, rest
    spec = dict(asked) if isinstance(asked, Mapping) else {"name": asked}
    name = str(spec.get("name", ""))
    known = field_types(cast(type, head_class(name).Config))
    if "tied" in rest:
        tied = rest.pop("tied")
        settings.update({"tied": tied} if "tied" in known else {})
    return {"name": name, **defaults.get(name, {}), **spec, **settings}, rest


def pair_head(lead: Architecture, overrides: Mapping[str, Any]) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The same of a whole encoder-decoder, which has no head unless one is asked for.

    Raises:
        ConfigError: as :func:`head_spec`, and for a head that only encoders have.
    """
    asked = {key: value for key, value in overrides.items() if key in ("head", "labels") or key.startswith("head.")}
    spec, _ = head_spec(dataclasses.replace(lead, heads=PAIR_HEADS), {"head": None, **asked})
    if spec is not None and spec["name"] not in PAIR_HEADS:
        raise ConfigError(
            f"a whole encoder-decoder has no head '{spec['name']}', only {', '.join(PAIR_HEADS)}; its encoder alone may have it: frame='encoder'"
        )
    return spec, {key: value for key, value in overrides.items() if key not in asked}


def both_ways(block: dict[str, Any]) -> dict[str, Any]:
    """A layer that sees the whole document: a mixer that is not bidirectional runs forward and backward."""
    mixer = block["mixer"]
    if mixer["name"] == "parallel":
        return {**block, "mixer": {**mixer, "branches": [_both_ways(branch) for branch in mixer["branches"]]}}
    return {**block, "mixer": _both_ways(mixer)}


def _both_ways(mixer: dict[str, Any]) -> dict[str, Any]:
    if "bidirectional" in registry.lookup(mixer["name"], "mixer").tags:
        return mixer
    settings = {key: value for key, value in mixer.items() if key != "name"}
    if mixer["name"] == "attention" and set(settings) <= set(_SAME_ATTENTION):
        return {"name": "bidirectional-attention", **settings}
    return {"name": "two-way", "branches": [mixer]}


