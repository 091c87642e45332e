"""What a carried state looks like as a text goes on: the diagnosis of state collapse.

Paper: Stuffed Mamba: State Collapse and State Capacity of RNN-Based Long-Context Modeling (arXiv 2410.07145).

Documents are read with the state carried, and after every window each layer's state fields are measured, over all rows:

    mean, variance, largest     of all numbers of the field
    norm, largest_norm          of a head's state: the mean over heads, and the largest head's
    outliers                    share of heads (of channels, in a state without heads) whose variance is more than ten
                                times the median one's
    retention, kept             prod_{i <= t} a_i, what is left of the first window's content: the mean over heads, and
                                the share of heads that kept more than 1 % of it; for fields whose decay is reported

A state that collapses grows in a few heads beyond what training ever showed; a model that has not learned to forget
keeps its retention.

B rows, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from orrery.core.errors import DataError
from orrery.data.shards import TokenFile
from orrery.evaluate.carried import Policy, read_carried

KEPT = 0.01
OUTLIER = 10.0


def state_over_time(
    model: nn.Module,
    tokens: TokenFile,
    longest: int = 4096,
    rows: int = 4,
    length: int = 256,
    policy: Policy | None = None,
    quiet: bool = True,
) -> list[dict[str, Any]]:
    """Statistics of the state after every window, over the `rows` longest documents of at least `longest` tokens.

    Returns:
        One record for every window, layer and state field: {"position" (tokens read), "layer", "field", "mean",
        "variance", "largest", "norm", "largest_norm", "outliers", "retention", "kept"}; the last two are None where no
        decay is reported.

    Raises:
        DataError: when no document is long enough.
        ConfigError: for a model that carries no state.
    """
    sizes = np.diff(np.asarray(tokens.offsets))
    chosen = np.flatnonzero(sizes >= longest)
    if not len(chosen):
        raise DataError(f"no held-out document has {longest} tokens; the longest has {int(sizes.max())}")
    chosen = chosen[np.argsort(-sizes[chosen], kind="stable")][:rows]
    records: list[dict[str, Any]] = []
    kept: dict[tuple[int, str], Tensor] = {}
    for window in read_carried(model, tokens, chosen, length, rows, longest, policy, ("decay_log",), quiet=quiet):
        reports = window.aux.reports.get("decay_log", {})
        for layer, name, field in fields(window.state):
            decay = reports.get(layer, {}).get(name)
            if decay is not None:
                total = decay.double().sum(1)
                if window.start:  # the content is the first window's: what it kept of itself is not counted
                    kept[layer, name] = kept[layer, name] + total
                else:
                    kept[layer, name] = torch.zeros_like(total)
            place = {"position": window.start + window.nats.shape[1], "layer": layer, "field": name}
            records.append({**place, **_measure(field), **_retention(kept.get((layer, name)))})
    return records


def fields(state: Any) -> Iterator[tuple[int, str, Tensor]]:
    """Layer, name and value of every field of the layers' mixer states that holds numbers of the text (no clocks)."""
    for layer, block in enumerate(state.blocks):
        yield from ((layer, name, value) for name, value in _named(block[1], ""))


def _named(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.numel():
            yield name, value
    elif hasattr(value, "_fields"):
        for field, item in zip(value._fields, value, strict=True):
            yield from _named(item, f"{name}.{field}" if name else field)
    elif isinstance(value, tuple):
        for place, item in enumerate(value):
            yield from _named(item, f"{name}.{place}" if name else str(place))


def _measure(field: Tensor) -> dict[str, float]:
    value = field.double()
    heads = value.flatten(2) if value.dim() == 4 else value.flatten(1)[..., None]  # (B,H,numbers of a head)
    spread = heads.pow(2).mean((0, 2)) - heads.mean((0, 2)).pow(2)
    norms = torch.linalg.vector_norm(heads, dim=-1)
    return {
        "mean": float(value.mean()),
        "variance": float(value.var(unbiased=False)),
        "largest": float(value.abs().max()),
        "norm": float(norms.mean()),
        "largest_norm": float(norms.mean(0).max()),
        "outliers": float((spread > OUTLIER * spread.median()).double().mean()),
    }


def _retention(log: Tensor | None) -> dict[str, float | None]:
    if log is None:
        return {"retention": None, "kept": None}
    left = log.exp()
    return {"retention": float(left.mean()), "kept": float((left > KEPT).double().mean())}
