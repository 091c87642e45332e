"""Batches whose rows go on: row b of a step continues where row b of the step before ended.

Letters: N tokens in the stream, T targets per row and step, B rows (all ranks together).

The stream is taken as a ring. Row b begins at a random phase plus b N/B and moves on by T every step, so the rows read
the ring side by side and after N / (B T) steps have read it once between them; then each goes on into what its neighbour
has read. Where a row stands is a function of (seed, step) alone; what it has read is the state that the trainer carries.

Documents stay in the order of the token file, since a row has to meet them whole: a seed moves the phase, and with it
which documents meet in a batch. Segments are numbers of documents in the row's own stream, counted over the ring's
rounds: they never decrease from step to step, and a document that crosses a cut keeps its number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orrery.core.seeds import derive
from orrery.data.loader import Loader

if TYPE_CHECKING:
    import numpy as np


class StreamLoader(Loader):
    """As :class:`Loader`, in the order of streams. A batch always has its "segments"."""

    def _origins(self) -> np.ndarray:
        """Where this rank's rows begin at step 0, (B/W,) int64, not yet taken around the ring."""
        import numpy as np

        rows = self.rank * self.rows + np.arange(self.rows, dtype=np.int64)
        return derive(self.seed, "phase", "stream") % len(self.tokens) + rows * len(self.tokens) // self.batch_size

    def _block_of_starts(self, block: int) -> np.ndarray:
        import numpy as np

        steps = np.arange(block * self._together, (block + 1) * self._together, dtype=np.int64)
        return (self._origins() + steps[:, None] * self.length) % len(self.tokens)

    def arrays(self, step: int) -> dict[str, np.ndarray]:
        """The batch of a step as numpy arrays; see :meth:`Loader.batch`."""
        import numpy as np

        tokens = super().arrays(step)["tokens"]
        rounds = (self._origins() + step * self.length) // len(self.tokens)
        first = np.searchsorted(np.asarray(self.tokens.offsets), self.starts(step), side="right") - 1
        inside = np.cumsum(tokens[:, 1:] == self.tokens.doc_id, axis=1, dtype=np.int64)
        segments = np.pad(inside, ((0, 0), (1, 0))) + (first + rounds * self.tokens.documents)[:, None]
        return {"tokens": tokens, "segments": segments}
