"""`stretch`: a trained model that reads longer texts, its rotary positions scaled after training (:mod:`orrery.nn.rotary`).

    longer = stretch(model, "yarn(factor=4)", original=256)        the weights are as they were; continue training if you like

Papers: position interpolation (arXiv 2306.15595), YaRN (2309.00071), LongRoPE (2402.13753). Layers without rotary positions, and
those of a short window that keeps to itself (lizard), stay as they are.
"""

from __future__ import annotations

import typing
from typing import Any, cast

from torch import nn

from orrery.core import registry
from orrery.core.config import field_types
from orrery.core.errors import ConfigError
from orrery.core.registry import register
from orrery.models.carry import model_name
from orrery.models.storage import describe, from_description
from orrery.nn.block import part_config
from orrery.nn.rotary import RopeScaling, part_of, spelled_scaling


def stretch(model: nn.Module, rope: str | dict[str, Any] | RopeScaling, original: int | None = None) -> nn.Module:
    """A copy of a model with another scaling of its positions, which `orrery.save` keeps.

    Args:
        model: what `create_model` or `load` returned.
        rope: the scaling, such as "yarn(factor=4, original=4096)"; "none" for positions as they are without any.
        original: the trained length, where `rope` does not name it.

    Raises:
        ConfigError: for a scaling that makes no sense, or a model without rotary positions.
    """
    record = describe(model)
    settings = None if rope == "none" else _settings(rope, original)
    specs = [(spec, held) for spec in _specs(record["config"]) if part_of(held := _rope(spec)) > 0]
    if not specs:
        raise ConfigError(f"'{model_name(model)}' has no layer whose rotary positions can be scaled")
    for spec, held in specs:
        plain = True if bool in _kinds(spec) else part_of(held)
        spec["rope"] = plain if settings is None else {**settings, "part": part_of(held)}
    made = from_description(record, where=model_name(model))
    first = next(model.parameters())
    made.to(device=first.device, dtype=first.dtype).load_state_dict(model.state_dict())
    if hasattr(model, "folder"):
        made.folder = model.folder  # where a tokenizer saved beside it is found
    return made.train(model.training)


def _settings(rope: str | dict[str, Any] | RopeScaling, original: int | None) -> dict[str, Any]:
    given = rope.given() if isinstance(rope, RopeScaling) else spelled_scaling(rope) if isinstance(rope, str) else dict(rope)
    if given.get("original") is None and original is not None:
        given["original"] = original
    return RopeScaling.from_dict(given, "rope").given()


def _specs(config: dict[str, Any]) -> list[dict[str, Any]]:
    """All {"name": ..., **settings} of mixers in a frame's config, branches included."""
    blocks = [block for frame in (config, config.get("encoder"), config.get("decoder")) if frame for block in frame.get("blocks", ())]
    parts = [block[kind] for block in blocks for kind in ("mixer", "cross", "guide") if block.get(kind)]
    return [*parts, *(branch for part in parts for branch in part.get("branches", ()))]


def _kinds(spec: dict[str, Any]) -> tuple[Any, ...]:
    """Types that the setting `rope` of a mixer may have."""
    return typing.get_args(field_types(registry.load(spec["name"], "mixer").Config).get("rope"))


def _rope(spec: dict[str, Any]) -> Any:
    """The setting `rope` of a mixer whose positions can be scaled, else 0."""
    return cast(Any, part_config(spec, "mixer")).rope if RopeScaling in _kinds(spec) else 0.0


register(
    "stretch",
    method="stretch",
    summary="scale the rotary positions of a trained model, so that it reads longer texts",
    paper="2309.00071",
    year=2023,
    tags=("long-context",),
)
