"""A keyed permutation of 0 .. size-1 that is computed, not stored.

Equation: a Feistel network on pairs (L, R) of h bits, with 2h bits enough for `size`,

    L, R <- R, L xor F(R, k_r)        for r = 1 .. ROUNDS,

is a bijection of 0 .. 4^h - 1 for any F. A value that leaves 0 .. size-1 is put through again until it is back ("cycle
walking"; at most four times on average), which keeps it a bijection. F is the finalizer of SplitMix64. Source: Black and
Rogaway, "Ciphers with arbitrary finite domains" (CT-RSA 2002). Good for shuffling, not for secrets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orrery.core.seeds import derive

if TYPE_CHECKING:
    import numpy as np

ROUNDS = 8


def permute(index: np.ndarray, size: int, seed: int, *keys: object) -> np.ndarray:
    """Images (n,) int64 of `index` (n,) under the permutation of 0 .. size-1 that seed and keys name.

    Raises:
        IndexError: when an index is not within 0 .. size-1.
    """
    import numpy as np

    index = np.asarray(index, dtype=np.int64)
    if index.size and (int(index.min()) < 0 or int(index.max()) >= size):
        raise IndexError(f"indices must lie in 0..{size - 1}")
    rounds = np.random.Philox(derive(seed, "permutation", *keys)).random_raw(ROUNDS)
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    value = _feistel(index.astype(np.uint64), half, rounds)
    while (outside := np.flatnonzero(value >= np.uint64(size))).size:
        value[outside] = _feistel(value[outside], half, rounds)
    return value.astype(np.int64)


def _feistel(value: np.ndarray, half: int, rounds: np.ndarray) -> np.ndarray:
    import numpy as np

    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = value >> bits, value & mask
    for key in rounds:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << bits) | right


def _mix(value: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer: every output bit depends on every input bit."""
    import numpy as np

    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
