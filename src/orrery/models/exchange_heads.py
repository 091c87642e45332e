"""Task heads in the exchange with transformers: which of their classes is which head of ours, and the names of labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orrery.core.errors import ConfigError
from orrery.models.encoder import Encoder
from orrery.models.encoder_decoder import PairReader
from orrery.nn.exchange import ExchangeMap, HeadMap

_PROBLEMS = {"regression": "regression", "multi-label": "multi_label_classification", "classification": "single_label_classification"}


def find_head(config: Mapping[str, Any], tensors: Mapping[str, Any], exchange: ExchangeMap) -> HeadMap | None:
    """The head of a checkpoint by the class that its config names; None for a bare body.

    Raises:
        ConfigError: for a class whose head has no counterpart here.
    """
    cls = next(iter(config.get("architectures") or ()), exchange.cls)
    if cls in exchange.refused:
        raise ConfigError(f"{cls} has no counterpart here: {exchange.refused[cls]}")
    for each in exchange.heads:
        if each.cls == cls and (not each.needs or each.needs in tensors):
            return each
    if exchange.heads and cls != exchange.cls:
        known = ", ".join(dict.fromkeys([exchange.cls, *(each.cls for each in exchange.heads)]))
        raise ConfigError(f"the head of {cls} has no counterpart here; known: {known}")
    return None


def head_settings(config: Mapping[str, Any], head: HeadMap | None) -> dict[str, Any] | None:
    """Our head's spec, with the number and names of labels that their config gives."""
    if head is None or head.head is None:
        return None
    spec = dict(head.head)
    if head.read is not None:
        spec.update(head.read(dict(config)))
    if not head.labelled:
        return spec
    names = config.get("id2label") or {}
    count = int(config.get("num_labels") or len(names) or 2)
    if spec["name"] == "classification":
        problem = config.get("problem_type")
        guessed = "regression" if problem is None and count == 1 else "classification"
        spec["name"] = next((ours for ours, theirs in _PROBLEMS.items() if theirs == problem), guessed)
    spec["labels"] = count
    ordered = [str(names[key]) for key in sorted(names, key=int)]
    if len(ordered) == count and ordered != [f"LABEL_{k}" for k in range(count)]:
        spec["names"] = ordered
    return spec


def written_head(model: Any, exchange: ExchangeMap) -> HeadMap | None:
    """Which of their classes has the model's head.

    Raises:
        ConfigError: when none has.
    """
    if not isinstance(model, (Encoder, PairReader)) or model.head is None:
        return None
    own = {**model.head.config.to_dict(), "name": str((model.config.head or {}).get("name"))}
    name = "classification" if own["name"] in _PROBLEMS else own["name"]
    for each in exchange.heads:
        if each.head is not None and {**own, "name": name}.items() >= each.head.items():
            return each
    raise ConfigError(f"{exchange.model_type} has no class with the head '{own['name']}' as it is set here ({own})")


def label_settings(model: Any, head: HeadMap | None) -> dict[str, Any]:
    """What their config says of the labels."""
    if head is None or not head.labelled:
        return {}
    own = model.head.config
    names = own.names or tuple(f"LABEL_{k}" for k in range(own.labels))
    found: dict[str, Any] = {"id2label": {str(k): name for k, name in enumerate(names)}, "label2id": {name: k for k, name in enumerate(names)}}
    problem = _PROBLEMS.get(str((model.config.head or {}).get("name")))
    return {**found, "problem_type": problem} if problem and model.head.level == "document" else found
