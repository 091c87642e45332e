"""Vectors or scores for many documents: sorted by length, packed without padding, given back in the order they came.

N documents, E size of a vector, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from orrery.core.errors import ConfigError, DataError
from orrery.models.encoder import Encoder
from orrery.models.encoder_decoder import PairReader
from orrery.models.pooling import pool
from orrery.models.reader import read_text

TOKENS = 2048  # of one call: enough for matrix products at full speed, few enough for the caches


@torch.inference_mode()
def encode(model: Encoder | PairReader, documents: Sequence[Tensor | Sequence[int]], tokens: int = TOKENS) -> Tensor:
    """What the head says of every document, or the mean of its last hidden states where there is no head.

    Args:
        model: an encoder or an encoder-decoder with a head, in evaluation mode or not; its head, if any, is one for documents.
        documents: ids of each, one token or more.
        tokens: of one call of the model; longer documents go alone.

    Returns:
        (N,E) or (N,C), in the order of the documents.

    Raises:
        ConfigError: for a head that does not score documents.
        DataError: for a document without tokens.
    """
    if model.head is not None and model.head.level != "document":
        raise ConfigError(f"the head of {model.config.architecture} scores every {model.head.level}; encode takes heads of documents")
    body: Any = model.encoder if isinstance(model, PairReader) else model
    own, was_training, before = vars(body), model.training, body.prepare
    if was_training:
        model.eval()
    own["prepare"] = True  # a module's way of setting an attribute takes longer than some of its layers' operations
    try:
        if len(documents) == 1 and body is model:
            hidden = read_text(model, documents[0], mean=model.head is None)
            if hidden is not None:
                return hidden if model.head is None else cast(Tensor, model.head(hidden))
        rows = [torch.as_tensor(row, dtype=torch.int64) for row in documents]
        if not rows:
            raise DataError("there is no document to encode")
        lengths = [len(row) for row in rows]
        if 0 in lengths:
            raise DataError(f"document {lengths.index(0)} has no tokens")
        order = sorted(range(len(rows)), key=lengths.__getitem__)
        found = torch.cat([_call(model, [rows[i] for i in part]) for part in _parts(order, lengths, tokens)])
    finally:
        own["prepare"] = before
        if was_training:
            model.train()
    back = torch.empty(len(order), dtype=torch.int64)
    back[torch.tensor(order)] = torch.arange(len(order))
    return found[back.to(found.device)]


def _parts(order: list[int], lengths: list[int], tokens: int) -> list[list[int]]:
    """Documents that go together: as many as have at most so many tokens."""
    parts: list[list[int]] = [[]]
    held = 0
    for index in order:
        if parts[-1] and held + lengths[index] > tokens:
            parts.append([])
            held = 0
        parts[-1].append(index)
        held += lengths[index]
    return parts


def _call(model: Encoder | PairReader, rows: list[Tensor]) -> Tensor:
    device = next(model.parameters()).device
    lengths = [len(row) for row in rows]
    if len(set(lengths)) == 1:  # a batch without padding as it is
        batch: tuple[Tensor, Any] = (torch.stack(rows) if len(rows) > 1 else rows[0][None]).to(device), None
    else:
        sizes = torch.tensor(lengths)
        batch = torch.cat(rows)[None].to(device), torch.repeat_interleave(torch.arange(len(rows)), sizes)[None].to(device)
    out = model(batch[0], segments=batch[1])
    return pool(out.hidden, batch[1], "mean") if out.logits is None else out.logits
