"""Passkey retrieval: a few digits hidden in noise, asked for at the end; how far back can a model remember them?

Paper: Mohtashami and Jaggi, "Landmark Attention" (2305.16300), section 4.2, in words; as a measure of what a recurrent
state holds: "Stuffed Mamba" (2410.07145), section 5.

    position   0 ...         | p   p+1 .. p+n |     ...     | T-n    T-n+1 ..  T-1
    token      x x x x x x x | KEY  d1 .. dn  | x x x x x x | ASK     d1   .. d(n-1)
    target     - - - - - - - | -    -  ..  -  | - - - - - - | d1      d2   ..   dn

n digits are independent and uniform over 0 .. 9, so a digit given before does not help with the next one. KEY is token
10, ASK token 11, and noise x is drawn from 12 .. V-1 (`random`), is token 12 throughout (`blank`, the newlines of the
paper), or repeats one random sentence of 16 tokens (`repeat`, the paper's "the grass is green"). `distance` is the number
of tokens between the key's last digit and ASK; -1 puts the key anywhere, uniformly.

Differs from the papers: tokens in place of English words, so that small models trained here can be measured.

Letters: B batch, T length, V vocabulary, n digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from orrery.core.config import require
from orrery.core.registry import register
from orrery.data.task import UNSCORED, Task, TaskConfig

if TYPE_CHECKING:
    import numpy as np

KEY, ASK, NOISE = 10, 11, 12  # the digits are 0 .. 9
FILLERS = ("random", "blank", "repeat")
SENTENCE = 16


@dataclass(frozen=True, kw_only=True)
class PasskeyConfig(TaskConfig):
    """Settings; see the file's head. length: T with everything. distance: -1 for anywhere."""

    length: int = 64
    digits: int = 5
    distance: int = -1
    vocab: int = 32
    filler: str = "random"

    def __post_init__(self) -> None:
        require(self.digits >= 1, f"a passkey needs at least one digit, not {self.digits}")
        require(self.vocab > NOISE, f"passkey needs a vocabulary of at least {NOISE + 1}, not {self.vocab}")
        require(self.filler in FILLERS, f"filler must be one of {', '.join(FILLERS)}, not '{self.filler}'")
        least = 2 * self.digits + 1 + max(0, self.distance)
        require(
            self.length >= least,
            f"{self.digits} digits at distance {self.distance} need a length of {least}, not {self.length}",
        )
        require(self.distance >= -1, f"distance must be a number of tokens, or -1 for anywhere, not {self.distance}")


class Passkey(Task):
    """Passkey retrieval (2305.16300, 2410.07145)."""

    name = "passkey"
    Config = PasskeyConfig
    config: PasskeyConfig

    @property
    def vocab_size(self) -> int:
        """V: digits, two marks, noise."""
        return self.config.vocab

    @property
    def chance(self) -> float:
        """1/10: any digit, without having seen the key."""
        return 0.1

    @property
    def optimum(self) -> float:
        """1: the digits stand in the example."""
        return 1.0

    def generate(self, random: np.random.Generator, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Fresh examples: tokens and targets, (B, T) int64 each."""
        import numpy as np

        length, digits = self.config.length, self.config.digits
        passkey = random.integers(0, 10, size=(batch_size, digits))
        tokens = self._noise(random, batch_size)
        last = length - digits - (digits + 1)  # the latest place of KEY: right before ASK
        if self.config.distance >= 0:
            places = np.full(batch_size, last - self.config.distance)
        else:
            places = random.integers(0, last + 1, size=batch_size)
        inside = places[:, None] + np.arange(digits + 1)
        np.put_along_axis(tokens, inside, np.pad(passkey, ((0, 0), (1, 0)), constant_values=KEY), axis=1)
        tokens[:, length - digits] = ASK
        tokens[:, length - digits + 1 :] = passkey[:, :-1]
        targets = np.full((batch_size, length), UNSCORED, dtype=np.int64)
        targets[:, length - digits :] = passkey
        return tokens, targets

    def _noise(self, random: np.random.Generator, batch_size: int) -> np.ndarray:
        import numpy as np

        shape = (batch_size, self.config.length)
        if self.config.filler == "blank":
            return np.full(shape, NOISE, dtype=np.int64)
        if self.config.filler == "random":
            return random.integers(NOISE, self.config.vocab, size=shape)
        sentence = random.integers(NOISE, self.config.vocab, size=(batch_size, SENTENCE))
        return np.tile(sentence, (1, -(-self.config.length // SENTENCE)))[:, : self.config.length]


register(
    "passkey",
    task="Passkey",
    summary="retrieve digits hidden in noise, by distance and length",
    paper="2305.16300",
    year=2023,
    tags=("recall", "long-context"),
)
