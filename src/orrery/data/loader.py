"""Batches as a pure function of (seed, step), so that a run can be cut and resumed anywhere without a trace.

Letters: N tokens in the stream, T targets per sequence, B sequences per step (all ranks together), M = N // T sequences
per epoch.

The stream is taken as a ring. Epoch e starts at a random phase; sequence i of the epoch is the T+1 tokens from
phase_e + i T on, so that in every epoch every token but a remainder of fewer than T is a target exactly once, and windows
fall differently from epoch to epoch. The order of an epoch's sequences is a keyed permutation (:mod:`orrery.data.permutation`),
computed for the rows that are needed: no list of N/T indices exists, and step 10,000,000 costs what step 0 costs.

The global order is the sequence number g = step * B + row. Rank r of W holds rows r B/W .. (r+1) B/W - 1, so the ranks'
batches, one behind the other, are the same batch for any W.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from orrery.core.errors import ConfigError, DataError
from orrery.core.seeds import derive
from orrery.data.permutation import permute
from orrery.data.shards import TokenFile

if TYPE_CHECKING:
    import numpy as np
    import torch


class Loader:
    """Packed training batches of a token file.

    Args:
        tokens: the stream.
        batch_size: B, sequences per step over all ranks.
        length: T, targets per sequence; a sequence has T+1 tokens.
        seed: names the order. Equal seeds give equal batches everywhere.
        rank, world: which share of every batch this process reads.

    Raises:
        DataError: when the stream is shorter than one sequence.
        ConfigError: when a number is out of range or B is not a multiple of the world size.
    """

    def __init__(
        self, tokens: TokenFile, batch_size: int, length: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        if batch_size < 1 or length < 1 or not 0 <= rank < world:
            raise ConfigError(
                f"batch size {batch_size} and length {length} must be at least 1, rank {rank} within 0..{world - 1}"
            )
        if batch_size % world:
            raise ConfigError(
                f"a batch of {batch_size} sequences cannot be shared by {world} processes; choose a multiple of {world}"
            )
        if len(tokens) < length + 1:
            raise DataError(
                f"the corpus is smaller than one window: '{tokens.path.name}' holds {len(tokens)} tokens, "
                f"and a length of {length} needs {length + 1}; use a shorter length or more text"
            )
        self.tokens, self.batch_size, self.length, self.seed = tokens, batch_size, length, seed
        self.rank, self.world, self.rows = rank, world, batch_size // world
        self.sequences = len(tokens) // length  # per epoch
        self._together = max(1, min(1024, self.sequences) // self.rows)  # steps whose starts are found at once
        self._block: tuple[int, np.ndarray] | None = None

    @property
    def tokens_per_step(self) -> int:
        """Targets of one step, all ranks together."""
        return self.batch_size * self.length

    def epoch(self, step: int) -> float:
        """How many times the stream has been seen before this step."""
        return step * self.batch_size / self.sequences

    def starts(self, step: int) -> np.ndarray:
        """Where in the stream this rank's sequences of a step begin, (B/W,) int64."""
        if step < 0:
            raise IndexError(f"step {step}")
        block, place = divmod(step, self._together)
        known = self._block  # one look: another thread may replace it
        if known is None or known[0] != block:
            known = self._block = (block, self._block_of_starts(block))
        return known[1][place]

    def _block_of_starts(self, block: int) -> np.ndarray:
        """The starts of several steps, (steps, B/W): a thousand rows cost hardly more than one."""
        import numpy as np

        steps = np.arange(block * self._together, (block + 1) * self._together, dtype=np.int64)
        number = (steps[:, None] * self.batch_size + self.rank * self.rows + np.arange(self.rows)).ravel()
        epochs, places = number // self.sequences, number % self.sequences
        starts = np.empty(len(number), dtype=np.int64)
        for epoch in np.unique(epochs).tolist():
            rows = epochs == epoch
            phase = derive(self.seed, "phase", epoch) % len(self.tokens)
            order = permute(places[rows], self.sequences, self.seed, "order", epoch)
            starts[rows] = (phase + order * self.length) % len(self.tokens)
        return starts.reshape(self._together, self.rows)

    def arrays(self, step: int) -> dict[str, np.ndarray]:
        """:meth:`batch` as numpy arrays."""
        import numpy as np

        size = self.length + 1
        out = np.empty((self.rows, size), dtype=np.int64)
        for row, start in enumerate(self.starts(step).tolist()):
            stop = min(start + size, len(self.tokens))
            out[row, : stop - start] = self.tokens.read(start, stop)
            if stop - start < size:  # around the ring; the stream's first token is a DOC
                out[row, stop - start :] = self.tokens.read(0, size - (stop - start))
        marks = out == self.tokens.doc_id
        if not marks[:, 1:].any():
            return {"tokens": out}
        return {"tokens": out, "segments": np.cumsum(marks, axis=1, dtype=np.int64)}

    def batch(self, step: int) -> dict[str, torch.Tensor]:
        """The batch of a step.

        Returns:
            "tokens" (B/W, T+1) int64, and "segments" (B/W, T+1) int64, which count the documents along a row; it is
            absent when no document begins behind the first token of any row.
        """
        import torch

        return {name: torch.from_numpy(array) for name, array in self.arrays(step).items()}

    def prefetch(
        self, step: int = 0, stop: int | None = None, depth: int = 2
    ) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
        """(step, batch) from `step` on (to `stop`, exclusive), made ahead of time by one thread.

        Leaving the loop ends the thread; what it raises is raised here.
        """
        ready: queue.Queue[Any] = queue.Queue(maxsize=max(1, depth))
        left = threading.Event()

        def work() -> None:
            number = step
            try:
                while (stop is None or number < stop) and not left.is_set():
                    _put(ready, (number, self.batch(number)), left)
                    number += 1
                _put(ready, None, left)
            except BaseException as error:  # noqa: BLE001 - raised again in the reader's thread
                _put(ready, error, left)

        thread = threading.Thread(target=work, name="orrery-loader", daemon=True)
        thread.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            left.set()
            thread.join()


def _put(ready: queue.Queue[Any], item: Any, left: threading.Event) -> None:
    """Hand an item over unless the reader has left."""
    while not left.is_set():
        try:
            ready.put(item, timeout=0.1)
        except queue.Full:
            continue
        return
