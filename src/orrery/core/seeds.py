"""Randomness as values: every stream is named by a seed and keys, so no stream depends on how often another was used.

`numpy_generator(7, "init", 3)` and `generator(7, "init", 3)` give the same stream in every process and on every
machine (torch promises its CPU generator's stream across platforms for equal versions).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy
    import torch


def derive(seed: int, *keys: object) -> int:
    """A 63-bit seed from a base seed and any printable keys; different keys give unrelated streams."""
    text = "\x1f".join([str(int(seed)), *(str(key) for key in keys)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def numpy_generator(seed: int, *keys: object) -> numpy.random.Generator:
    """A numpy generator (Philox: counter-based, cheap to make) for the stream named by `seed` and `keys`."""
    import numpy

    return numpy.random.Generator(numpy.random.Philox(derive(seed, *keys)))


def generator(seed: int, *keys: object) -> torch.Generator:
    """A torch CPU generator for the stream named by `seed` and `keys`."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *keys))


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch (all devices), for code that knows no generator."""
    import random

    import numpy
    import torch

    random.seed(derive(seed, "python"))
    numpy.random.seed(derive(seed, "numpy") % 2**32)
    torch.manual_seed(derive(seed, "torch"))
