"""How many of a model's units send something: of event-based and spiking mixers (2206.06178, 2312.07625).

    activity of a layer = units that fired / units, over valid tokens;   work = multiply-adds that were not with zeros / all of them

B batch, T time.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, cast

import torch
from torch import nn

from orrery.core.registry import lookup
from orrery.models.decoder import DecoderLM
from orrery.nn.block import Block
from orrery.nn.contract import Aux, Context

BATCHES = 8  # that are looked at


def firing_layers(model: nn.Module) -> list[int]:
    """The layers whose mixers send events."""
    if not isinstance(model, DecoderLM):
        return []
    names = [cast(Block, block).config.mixer["name"] for block in model.blocks]
    return [layer for layer, name in enumerate(names) if "surrogate" in lookup(name, "mixer").tags]


def activity(model: nn.Module, windows: Any) -> list[dict[str, Any]]:
    """A row for every layer whose mixer sends events: {"layer", "activity", "work"}; work None where it is not told. No rows without text.

    Args:
        model: a decoder, evaluated in eval mode and left in the mode it was in.
        windows: of :func:`orrery.data.validation.validation_windows`; the first few batches are read.
    """
    layers = firing_layers(model)
    if not layers:
        return []
    fired, used = dict.fromkeys(layers, 0.0), dict[int, float]()  # `used` only of those that tell
    training, tokens, device = model.training, 0, next(model.parameters()).device
    model.eval()
    try:
        with torch.no_grad():
            for batch in islice(windows, BATCHES):
                aux, segments = Aux("activity", "macs"), batch["segments"][:, :-1].to(device)
                cast(Any, model)(batch["tokens"][:, :-1].to(device), ctx=Context(aux=aux, segments=segments))
                count = int((segments >= 0).sum())
                tokens += count
                for layer in layers:
                    fired[layer] += count * aux.reports["activity"][layer]
                for layer, macs in aux.reports.get("macs", {}).items():
                    used[layer] = used.get(layer, 0.0) + count * macs
    finally:
        model.train(training)
    if not tokens:
        return []
    rows = []
    for layer in layers:
        dense = cast(Any, model).blocks[layer].mixer.flops(1) / 2
        work = used[layer] / tokens / dense if layer in used else None
        rows.append({"layer": layer, "activity": fired[layer] / tokens, "work": work})
    return rows
