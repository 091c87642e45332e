"""A choice without a network: the one whose words its text has most of, the longest one, or always the same number.

Which of the three, the validation table decides. A choice scores the inverse document frequencies of the words that it shares with
what it is read behind, divided by the square root of its length in words.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from orrery.data.answering import words_of
from orrery.data.choosing import read_choice, read_choices, read_sides
from orrery.data.examples import TaskSpec
from orrery.data.records import Row, Table


def plain_choices(spec: TaskSpec, train: Table, validation: Table, other: Table | None = None) -> tuple[str, dict[str, Any]]:
    """Fit on `train`, choose in `other` (or `validation`); as :func:`orrery.methods.baselines.baseline`."""
    target = other or validation
    seen = Counter(word for row in train.rows for word in _words(read_sides(row, spec)[0]))
    weights = {word: math.log((1 + len(train)) / (1 + count)) + 1 for word, count in seen.items()}
    rare = math.log(1 + len(train)) + 1
    usual = Counter(read_choice(row, spec, read_choices(row, spec)) for row in train.rows).most_common(1)[0][0]

    def nearest(row: Row) -> int:
        text, choices = read_sides(row, spec)
        there = _words(text)
        own = [_words(choice) for choice in choices]
        return int(np.argmax([sum(weights.get(word, rare) for word in each & there) / math.sqrt(max(1, len(each))) for each in own]))

    ways: dict[str, Callable[[Row], int]] = {
        "the choice that shares most words with its text": nearest,
        "the longest choice": lambda row: int(np.argmax([len(choice) for choice in read_choices(row, spec)])),
        f"choice {usual + 1}, always": lambda row: min(usual, len(read_choices(row, spec)) - 1),
    }
    right = {name: sum(way(row) == read_choice(row, spec, read_choices(row, spec)) for row in validation.rows) for name, way in ways.items()}
    best = max(right, key=lambda name: right[name])
    return best, {"predicted": np.array([ways[best](row) for row in target.rows])}


def _words(text: str) -> set[str]:
    return {text[a:b].lower() for a, b in words_of(text)}
