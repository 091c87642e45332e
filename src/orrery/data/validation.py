"""The window rule of evaluation: whole documents, windows that do not overlap, every target scored once.

A document DOC t1 .. tn is scored as the sequence DOC t1 .. tn DOC: each token given those before it, and the end. Its
n+1 targets are cut into windows of T; window k sees the tokens kT .. kT+T and scores the last T of them, so the only
context a window has is its own. No window crosses a document. Rows are filled up with DOC at segment -1, never scored.

    bits per byte = total nats over all targets / ln 2 / `bytes`

counts the bytes of text of exactly the documents covered. The sample of `max_bytes` takes whole stored documents in one
fixed shuffled order, leaving out those that no longer fit; it depends on the token file alone, so every model and seed is
scored on the same text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from orrery.core.errors import ConfigError
from orrery.data.permutation import permute
from orrery.data.shards import TokenFile

if TYPE_CHECKING:
    import numpy as np
    import torch

SAMPLE = 256 * 1024  # bytes of text
_ORDER = 0  # seed of the sample's order; a constant of the protocol


class ValidationWindows:
    """Batches that cover chosen documents once. Iterate as often as wanted; `len()` is the number of batches.

    Attributes:
        documents: numbers of the documents covered, ascending (numpy int64).
        bytes: bytes of text they stand for.
        targets: tokens scored.
    """

    def __init__(self, tokens: TokenFile, length: int, batch_size: int, documents: np.ndarray) -> None:
        import numpy as np

        if length < 1 or batch_size < 1:
            raise ConfigError(f"length {length} and batch size {batch_size} must be at least 1")
        self.tokens, self.length, self.batch_size, self.documents = tokens, length, batch_size, documents
        sizes = np.asarray(tokens.offsets)[documents + 1] - np.asarray(tokens.offsets)[documents]  # targets: n+1
        self.bytes = int(np.asarray(tokens.text_bytes)[documents].sum())
        self.targets = int(sizes.sum())
        windows = -(-sizes // length)
        self._document = np.repeat(documents, windows)
        self._window = np.arange(len(self._document)) - np.repeat(np.cumsum(windows) - windows, windows)

    def __len__(self) -> int:
        return (self.rows + self.batch_size - 1) // self.batch_size

    @property
    def rows(self) -> int:
        """Windows in all."""
        return len(self._document)

    def arrays(self, number: int) -> dict[str, np.ndarray]:
        """Batch `number` as numpy arrays; see :meth:`batch`."""
        import numpy as np

        rows = range(number * self.batch_size, min((number + 1) * self.batch_size, self.rows))
        if not rows:
            raise IndexError(f"batch {number} of {len(self)}")
        tokens = np.full((len(rows), self.length + 1), self.tokens.doc_id, dtype=np.int64)
        segments = np.full(tokens.shape, -1, dtype=np.int64)
        for place, row in enumerate(rows):
            document = self._document[row]
            start, stop = int(self.tokens.offsets[document]), int(self.tokens.offsets[document + 1])
            start += int(self._window[row]) * self.length
            end = min(start + self.length + 1, stop)
            tokens[place, : end - start] = self.tokens.read(start, end)
            filled = min(self.length + 1, stop - start + 1)  # the end mark is in the row already: it is DOC
            segments[place, :filled] = 0
        return {"tokens": tokens, "segments": segments, "documents": self._document[rows.start : rows.stop]}

    def batch(self, number: int) -> dict[str, torch.Tensor]:
        """One batch.

        Returns:
            "tokens" (b, T+1) int64; "segments" (b, T+1) int64: 0, or -1 at padding, so that target j of a row is scored
            if segments[:, j+1] is 0; "documents" (b,) int64: the document of each row. b is B but for the last batch.
        """
        import torch

        return {name: torch.from_numpy(array) for name, array in self.arrays(number).items()}

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return (self.batch(number) for number in range(len(self)))


def validation_windows(
    tokens: TokenFile, length: int, batch_size: int, max_bytes: int | None = SAMPLE
) -> ValidationWindows:
    """Windows over a sample of whole documents of at most `max_bytes` bytes of text, or (None) over all of them.

    If no document fits, the shortest one is taken.
    """
    import numpy as np

    if max_bytes is None or tokens.total_bytes <= max_bytes:
        return ValidationWindows(tokens, length, batch_size, np.arange(tokens.documents, dtype=np.int64))
    sizes = np.asarray(tokens.text_bytes)
    chosen, room = [], max_bytes
    for document in permute(np.arange(tokens.documents), tokens.documents, _ORDER, "validation sample").tolist():
        if sizes[document] <= room:
            chosen.append(document)
            room -= int(sizes[document])
    if not chosen:
        chosen = [int(sizes.argmin())]
    return ValidationWindows(tokens, length, batch_size, np.array(sorted(chosen), dtype=np.int64))
