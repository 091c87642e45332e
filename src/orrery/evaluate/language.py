"""Bits per byte of a language model on held-out text: the common currency of models with different tokenizers.

Equation: ``bits per byte = sum over targets of -log2 p(token | its window) / bytes of UTF-8 text covered``. The windows are
those of :mod:`orrery.data.validation`: whole documents, windows that do not overlap and start without memory, every token
of a document and its end scored once.

B batch, T time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from orrery.core.errors import DataError, NonFiniteError
from orrery.core.progress import progress
from orrery.data.shards import TokenFile
from orrery.data.validation import validation_windows
from orrery.models.scoring import nats


class Windows(Protocol):
    """What :class:`orrery.data.validation.ValidationWindows` offers."""

    tokens: TokenFile
    documents: Any  # (documents,) int64 numbers
    bytes: int
    targets: int

    def __len__(self) -> int: ...

    def __iter__(self) -> Any: ...


def bits_per_byte(
    model: nn.Module,
    data: Windows | TokenFile,
    length: int = 256,
    batch_size: int = 16,
    max_bytes: int | None = None,
    dtype: torch.dtype = torch.float32,
    quiet: bool = True,
) -> dict[str, Any]:
    """Score a causal model on held-out documents.

    Args:
        model: maps tokens (B,T) to an Output; evaluated in eval mode and left in the mode it was in.
        data: windows ready made, or a token file, of which windows of `length` targets over a sample of at most
            `max_bytes` bytes of whole documents (None: all) are taken, `batch_size` at a time.
        dtype: torch.bfloat16 runs the model under autocast; the sums are float64 always.
        quiet: show no progress.

    Returns:
        "bits_per_byte"; "nats", "bytes", "tokens" in all; "nats_per_token"; "documents" (how many); "per_document": a
        list of {"document", "nats", "bytes", "tokens"} in the order of the token file, for the bootstrap.

    Raises:
        NonFiniteError: when a token gets a probability that is not a number, naming the document.
        DataError: for text of no bytes.
    """
    windows: Any = data
    if isinstance(data, TokenFile):
        windows = validation_windows(data, length, batch_size, max_bytes)
    if not windows.bytes:
        raise DataError("there is no text to score: the chosen documents are empty")
    numbers = torch.as_tensor(windows.documents)
    total = torch.zeros(len(numbers), dtype=torch.float64)
    count = torch.zeros(len(numbers), dtype=torch.int64)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), progress(len(windows), "validation", "batches", quiet=quiet) as bar:
            for batch in windows:
                scored = batch["segments"][:, 1:] == 0
                each = _score(model, batch["tokens"], scored, device, dtype)
                place = torch.searchsorted(numbers, batch["documents"])
                total.index_add_(0, place, each.sum(1, dtype=torch.float64).cpu())
                count.index_add_(0, place, scored.sum(1))
                bar.update(1)
    finally:
        model.train(training)
    if not bool(total.isfinite().all()):
        wrong = int(numbers[~total.isfinite()][0])
        raise NonFiniteError(f"the model's probabilities on validation document {wrong} are not finite")
    return summary(windows.tokens, numbers.numpy(), total.numpy(), count.numpy())


def _score(model: nn.Module, tokens: Tensor, scored: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Nats (B,T) of one batch of windows, 0 where nothing is scored.

    Every row is one document with padding behind it, and a causal model's outputs do not depend on what follows; so the
    padding need not be declared, and models keep their fastest path.
    """
    tokens, scored = tokens.to(device), scored.to(device)
    context: AbstractContextManager[Any] = nullcontext()
    if dtype != torch.float32:
        context = torch.autocast(device.type, dtype)
    with context:
        targets = tokens[:, 1:].masked_fill(~scored, -100)
        return nats(model, model(tokens[:, :-1]), targets)


def summary(tokens: TokenFile, documents: np.ndarray, total: np.ndarray, count: np.ndarray) -> dict[str, Any]:
    """The result of scoring documents (n,) of a token file, from the nats (n,) and numbers of targets (n,) of each."""
    sizes = [int(size) for size in np.asarray(tokens.text_bytes)[documents]]
    rows: Iterable[tuple[int, float, int, int]] = zip(
        documents.tolist(), total.tolist(), sizes, count.tolist(), strict=True
    )
    everything = float(total.sum())
    return {
        "bits_per_byte": everything / math.log(2) / sum(sizes),
        "nats": everything,
        "bytes": sum(sizes),
        "tokens": int(count.sum()),
        "nats_per_token": everything / int(count.sum()),
        "documents": len(sizes),
        "per_document": [{"document": d, "nats": n, "bytes": b, "tokens": t} for d, n, b, t in rows],
    }
