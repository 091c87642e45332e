"""Held-out documents read whole: window after window, the state carried from one to the next.

Every document is scored as DOC t1 .. tn DOC, each token given all that stands before it; at no time more than one window
of activations and one state per row are held, so length is bounded by patience alone. Documents are taken in groups of
like length, longest first; a row leaves the batch with its document's end, so a state is never read past it.

A policy (:mod:`orrery.generate.policy`) may change the state between windows.

B rows, T tokens of a window.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from orrery.core.errors import ConfigError, DataError, NonFiniteError
from orrery.core.progress import progress
from orrery.data.shards import TokenFile
from orrery.models.carry import check_carries
from orrery.models.scoring import nats
from orrery.nn.contract import Aux, Context


class Policy(Protocol):
    """What is done to a state between windows; see :mod:`orrery.generate.policy`."""

    wanted: tuple[str, ...]  # reports of the parts that it needs

    def begin(self) -> None:
        """New rows begin with the next call."""

    def __call__(self, state: Any, aux: Aux, window: int) -> Any:
        """The state to go on with, from the one after a window of so many tokens."""

    def select(self, index: Tensor) -> None:
        """Only these rows go on."""


class Window(NamedTuple):
    """What one window gave: the documents of its rows (B,), the first position of the window (0-based, of its first
    input within the document), nats (B,T) float64 and which of them count (B,T); the state after it, before any policy."""

    documents: np.ndarray
    start: int
    nats: np.ndarray
    scored: np.ndarray
    state: Any
    aux: Aux


def read_carried(
    model: nn.Module,
    tokens: TokenFile,
    documents: np.ndarray,
    length: int = 256,
    batch_size: int = 16,
    longest: int | None = None,
    policy: Policy | None = None,
    wanted: tuple[str, ...] = (),
    dtype: torch.dtype = torch.float32,
    quiet: bool = True,
) -> Iterator[Window]:
    """Score documents in windows of `length` targets with the state carried along.

    Args:
        model: a causal model that continues from a state; read in eval mode, left in the mode it was in.
        tokens, documents: the token file, and numbers of its documents (any order).
        longest: targets of a document that are read at most; None: all.
        policy: changes the state between windows.
        wanted: further reports of the parts, in `Window.aux`.
        dtype: torch.bfloat16 runs the model under autocast.

    Raises:
        ConfigError: for a model that carries no state.
        NonFiniteError: naming document and window.
    """
    check_carries(model)
    if length < 1 or batch_size < 1:
        raise ConfigError(f"length {length} and batch size {batch_size} must be at least 1")
    offsets = np.asarray(tokens.offsets)
    sizes = offsets[np.asarray(documents) + 1] - offsets[np.asarray(documents)]
    sizes = sizes if longest is None else np.minimum(sizes, longest)
    order = np.argsort(-sizes, kind="stable")
    training = model.training
    model.eval()
    try:
        with progress(int(sizes.sum()), "reading", "tok", quiet=quiet) as bar:
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                group = _Group(tokens, np.asarray(documents)[chosen], sizes[chosen], length)
                for window in group.read(model, policy, wanted, dtype):
                    bar.update(int(window.scored.sum()))
                    yield window
    finally:
        model.train(training)


class _Group:
    """Rows that begin together, longest first."""

    def __init__(self, tokens: TokenFile, documents: np.ndarray, sizes: np.ndarray, length: int) -> None:
        self.tokens, self.documents, self.sizes = tokens, documents, sizes
        self.length = int(min(length, sizes[0]))

    def read(self, model: Any, policy: Policy | None, wanted: tuple[str, ...], dtype: torch.dtype) -> Iterator[Window]:
        """All windows of the group."""
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        state: Any = None
        rows = len(self.sizes)
        if policy is not None:
            policy.begin()
        reports = (*wanted, *(policy.wanted if policy is not None else ()))
        for start in range(0, int(self.sizes[0]), self.length):
            active = int((self.sizes > start).sum())
            if active < rows and state is not None:
                index = torch.arange(active, device=device)
                state = state.select(index)
                if policy is not None:
                    policy.select(index)
            rows = active
            inputs, targets = self._window(start, rows)
            aux = Aux(*reports)
            context: AbstractContextManager[Any] = nullcontext()
            if dtype != torch.float32:
                context = torch.autocast(device.type, dtype)
            with torch.no_grad(), context:
                out = model(torch.from_numpy(inputs).to(device), state=state, ctx=Context(aux=aux))
                each = nats(model, out, torch.from_numpy(targets).to(device)).double().cpu().numpy()
            self._check(each, start)
            state = out.state
            yield Window(self.documents[:rows], start, each, targets >= 0, state, aux)
            if policy is not None:
                with torch.no_grad():
                    state = policy(state, aux, self.length)

    def _window(self, start: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets (rows, T) from position `start` on; filled up with DOC and -100 behind a document's end."""
        room = self.length
        inputs = np.full((rows, room), self.tokens.doc_id, dtype=np.int64)
        targets = np.full((rows, room), -100, dtype=np.int64)
        for row in range(rows):
            begin, size = int(self.tokens.offsets[self.documents[row]]), int(self.sizes[row])
            end = int(self.tokens.offsets[self.documents[row] + 1])
            count = min(room, size - start)
            text = self.tokens.read(begin + start, min(begin + start + count + 1, end))
            inputs[row, :count] = text[:count]
            targets[row, : len(text) - 1] = text[1:]
            if len(text) == count:  # the document's end is its last target
                targets[row, count - 1] = self.tokens.doc_id
        return inputs, targets

    def _check(self, each: np.ndarray, start: int) -> None:
        if np.isfinite(each).all():
            return
        row = int((~np.isfinite(each)).any(1).nonzero()[0][0])
        raise NonFiniteError(
            f"the model's probabilities on validation document {int(self.documents[row])} are not finite "
            f"in the window from token {start} on"
        )


def carried_bits_per_byte(
    model: nn.Module,
    tokens: TokenFile,
    documents: np.ndarray,
    length: int = 256,
    batch_size: int = 16,
    policy: Policy | None = None,
    dtype: torch.dtype = torch.float32,
    quiet: bool = True,
) -> dict[str, Any]:
    """As :func:`orrery.evaluate.language.bits_per_byte`, every token given its whole document up to there.

    Args: as :func:`read_carried`.

    Returns:
        The same keys, and "rule": "carried state".
    """
    from orrery.evaluate.language import summary

    numbers = np.sort(np.asarray(documents))
    if not int(np.asarray(tokens.text_bytes)[numbers].sum()):
        raise DataError("there is no text to score: the chosen documents are empty")
    total, count = np.zeros(len(numbers)), np.zeros(len(numbers), dtype=np.int64)
    for window in read_carried(model, tokens, numbers, length, batch_size, None, policy, (), dtype, quiet):
        place = np.searchsorted(numbers, window.documents)
        total[place] += window.nats.sum(1)
        count[place] += window.scored.sum(1)
    found = summary(tokens, numbers, total, count)
    return {**found, "rule": "carried state"}
