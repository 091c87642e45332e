"""State tracking as the word problem of a finite group: after every element, name the product so far.

Paper: Merrill, Petty and Sabharwal, "The Illusion of State in State-Space Models" (2404.08819), section 5.

    tokens m_1 .. m_T, independent and uniform over the group G;   target at t:  s_t = s_{t-1} m_t,   s_0 = 1

Products are read from the left: first m_1, then m_2. Groups: `parity` (= Z2), `Zn`, `Sn`, `An`, and products such as
`A4xZ5`; the paper compares Z60, A4xZ5 and A5 (60 elements each: commutative, solvable, not solvable). Fixed-depth
transformers and SSMs with positive diagonal transitions cannot do A5 or S5 at every length (they compute within TC0, the
word problem is NC1-complete); one layer of an LSTM can.

Tokens and targets are the numbers of elements; 0 is the identity. Letters: B batch, T length.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orrery.core.config import require
from orrery.core.errors import ConfigError
from orrery.core.registry import register
from orrery.data.task import Task, TaskConfig

if TYPE_CHECKING:
    import numpy as np

LARGEST = 1024  # elements
_FACTOR = re.compile(r"^(?P<kind>[ZSA])(?P<degree>[1-9]\d{0,3})$")


@dataclass(frozen=True, kw_only=True)
class StateTrackingConfig(TaskConfig):
    """Settings: the group, as in `A4xZ5`, and the length of the word."""

    group: str = "S3"
    length: int = 32

    def __post_init__(self) -> None:
        require(self.length >= 1, f"state-tracking needs a length of at least 1, not {self.length}")
        factors(self.group)


class StateTracking(Task):
    """The word problem of a finite group (2404.08819)."""

    name = "state-tracking"
    Config = StateTrackingConfig
    config: StateTrackingConfig

    @property
    def vocab_size(self) -> int:
        """The number of elements."""
        return len(multiplication_table(self.config.group))

    @property
    def chance(self) -> float:
        """1/|G|: a product with one unknown uniform factor is uniform. (The first position alone can be copied.)"""
        return 1.0 / self.vocab_size

    @property
    def optimum(self) -> float:
        """1: the product is determined."""
        return 1.0

    def generate(self, random: np.random.Generator, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Fresh examples: tokens and targets, (B, T) int64 each."""
        import numpy as np

        table = multiplication_table(self.config.group)
        tokens = random.integers(0, len(table), size=(batch_size, self.config.length))
        targets = np.empty_like(tokens)
        state = np.zeros(batch_size, dtype=np.int64)
        for step in range(self.config.length):
            state = table[state, tokens[:, step]]  # 2404.08819, definition of the word problem
            targets[:, step] = state
        return tokens, targets


def factors(group: str) -> list[tuple[str, int]]:
    """`"A4xZ5"` -> [("A", 4), ("Z", 5)].

    Raises:
        ConfigError: when it is no group that can be written so, or one of more than 1,024 elements.
    """
    name = "Z2" if group == "parity" else group
    found = [_FACTOR.match(part) for part in name.split("x")]
    if not all(found):
        raise ConfigError(f"'{group}' is not a group; write parity, Z60, S3, S5, A5 or a product such as A4xZ5")
    result = [(match["kind"], int(match["degree"])) for match in found if match]
    size = math.prod(
        n if kind == "Z" else max(1, math.factorial(min(n, 20)) // (2 if kind == "A" else 1)) for kind, n in result
    )
    if not 2 <= size <= LARGEST:
        raise ConfigError(f"the group {group} has {size} elements; between 2 and {LARGEST} are supported")
    return result


@functools.lru_cache(maxsize=16)
def multiplication_table(group: str) -> np.ndarray:
    """(|G|, |G|) int64: entry [a, b] is the element "first a, then b". Element 0 is the identity."""
    import numpy as np

    blocks, base = [], 0
    for kind, degree in factors(group):
        blocks.append([tuple(base + point for point in element) for element in _elements(kind, degree)])
        base += degree
    elements = np.array([sum(parts, ()) for parts in itertools.product(*blocks)])  # permutations of all points, sorted
    place = {element.tobytes(): number for number, element in enumerate(elements)}
    table = np.array([[place[second[first].tobytes()] for second in elements] for first in elements], dtype=np.int64)
    table.setflags(write=False)
    return table


def _elements(kind: str, degree: int) -> list[tuple[int, ...]]:
    """Permutations of 0 .. degree-1 in lexicographic order, the identity first."""
    if kind == "Z":
        return [tuple((point + turn) % degree for point in range(degree)) for turn in range(degree)]
    every = list(itertools.permutations(range(degree)))
    return every if kind == "S" else [element for element in every if _even(element)]


def _even(element: tuple[int, ...]) -> bool:
    inversions = sum(a > b for a, b in itertools.combinations(element, 2))
    return inversions % 2 == 0


register(
    "state-tracking",
    task="StateTracking",
    summary="word problem of a finite group (parity, S3, A5, S5): name the product so far",
    paper="2404.08819",
    year=2024,
    tags=("state",),
)
