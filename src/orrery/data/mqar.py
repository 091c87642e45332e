"""Multi-query associative recall: key-value pairs first, then keys again; at each the model has to name its value.

Paper: Arora et al., "Zoology: Measuring and improving recall in efficient language models" (2312.04927), section 4 and
appendix; code HazyResearch/zoology, whose token layout and gap distribution this follows.

    position   0 1 2 3 ...  2P-1 | 2P            ...                         T-1
    token      k v k v ...  v    | x x k x x x k x ...       (x: filler; a query stands at an even position)
    target     - - - - ...  -    | - - v - - - v - ...

Keys are distinct and from 1 .. V/2-1, values distinct and from V/2 .. V-1. Each key is asked for once. Which of the
S = (T - 2P)/2 query places it gets follows a power law: keys draw one after another, without replacement, place i = 1 .. S
with weight i^(a-1), a = `power`; 0.01 as in the paper keeps most questions near the pairs, 1 is uniform.

Differs from the reference: filler never repeats a key of the example (there it may, at random, followed by a wrong
value, so that the optimum is a little below 1). The defaults are the easy setting, 8 pairs in 48 tokens; the paper's
hardest is `mqar(pairs=64, length=512, vocab=8192)`.

Letters: B batch, T length, P pairs, V vocabulary, S query places.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from orrery.core.config import require
from orrery.core.registry import register
from orrery.data.task import UNSCORED, Task, TaskConfig

if TYPE_CHECKING:
    import numpy as np

FILLERS = ("random", "blank")


@dataclass(frozen=True, kw_only=True)
class MQARConfig(TaskConfig):
    """Settings; `power` is a, `filler` what stands between the queries: any token but a key in use, or token 0."""

    pairs: int = 8
    length: int = 48
    vocab: int = 64
    power: float = 0.01
    filler: str = "random"

    def __post_init__(self) -> None:
        require(self.pairs >= 1, f"mqar needs at least one pair, not {self.pairs}")
        require(self.length % 2 == 0, f"mqar needs an even length, not {self.length}")
        least = 4 * self.pairs
        require(
            self.length >= least, f"{self.pairs} pairs and as many queries need a length of {least}, not {self.length}"
        )
        least = 2 * self.pairs + 2
        require(self.vocab >= least, f"{self.pairs} distinct keys need a vocabulary of {least}, not {self.vocab}")
        require(self.power > 0, f"the power of the gaps must be positive, not {self.power}")
        require(self.filler in FILLERS, f"filler must be one of {', '.join(FILLERS)}, not '{self.filler}'")


class MQAR(Task):
    """Multi-query associative recall (2312.04927)."""

    name = "mqar"
    Config = MQARConfig
    config: MQARConfig

    @property
    def vocab_size(self) -> int:
        """V: keys in its lower half, values in its upper half."""
        return self.config.vocab

    @property
    def chance(self) -> float:
        """1/P: naming one of the values that were shown, without knowing whose it is."""
        return 1.0 / self.config.pairs

    @property
    def optimum(self) -> float:
        """1: every query's answer stands in the example."""
        return 1.0

    def generate(self, random: np.random.Generator, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Fresh examples: tokens and targets, (B, T) int64 each."""
        import numpy as np

        pairs, length, vocab = self.config.pairs, self.config.length, self.config.vocab
        half, context = vocab // 2, 2 * pairs
        keys = 1 + _distinct(random, batch_size, half - 1, pairs)
        values = half + _distinct(random, batch_size, vocab - half, pairs)
        tokens = self._filler(random, keys, batch_size)
        tokens[:, 0:context:2], tokens[:, 1:context:2] = keys, values
        places = context + 2 * self._gaps(random, batch_size, (length - context) // 2)
        targets = np.full((batch_size, length), UNSCORED, dtype=np.int64)
        np.put_along_axis(tokens, places, keys, axis=1)
        np.put_along_axis(targets, places, values, axis=1)
        return tokens, targets

    def _gaps(self, random: np.random.Generator, batch_size: int, places: int) -> np.ndarray:
        """(B, P) places: sampling without replacement by weight is sorting log-weights plus Gumbel noise."""
        import numpy as np

        log_weights = (self.config.power - 1) * np.log(np.arange(1, places + 1))  # 2312.04927, appendix: power-law gaps
        noisy = log_weights + random.gumbel(size=(batch_size, places))
        return np.argsort(-noisy, axis=1, kind="stable")[:, : self.config.pairs]

    def _filler(self, random: np.random.Generator, keys: np.ndarray, batch_size: int) -> np.ndarray:
        """(B, T) tokens none of which is a key of its row: one of V-P, counted past the keys in ascending order."""
        import numpy as np

        if self.config.filler == "blank":
            return np.zeros((batch_size, self.config.length), dtype=np.int64)
        tokens = random.integers(0, self.config.vocab - self.config.pairs, size=(batch_size, self.config.length))
        for key in np.sort(keys, axis=1).T:
            tokens += tokens >= key[:, None]
        return tokens


def _distinct(random: np.random.Generator, rows: int, size: int, count: int) -> np.ndarray:
    """(rows, count) int64: each row `count` different numbers below `size`, in random order."""
    import numpy as np

    if count * count > 4 * size:
        return np.argsort(random.random((rows, size)), axis=1)[:, :count].astype(np.int64)
    drawn = random.integers(0, size, size=(rows, count))  # few of many: rows with a repetition are drawn again
    while True:
        ordered = np.sort(drawn, axis=1)
        repeated = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))
        if not repeated.size:
            return drawn
        drawn[repeated] = random.integers(0, size, size=(repeated.size, count))


register(
    "mqar",
    task="MQAR",
    summary="multi-query associative recall: name the value of each key again",
    paper="2312.04927",
    year=2023,
    tags=("recall",),
)
