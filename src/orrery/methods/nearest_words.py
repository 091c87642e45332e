"""The answer to a question without a network: the words of the text that stand nearest to the question's words.

Every run of at most n words is tried, n the usual length of an answer in training; it scores the inverse document frequencies of the
question's words within ten words of it, divided by one plus their distance, less those inside it (an answer does not repeat its
question). Where most training questions have no answer, that is the answer. As the sliding window of MCTest and SQuAD (1606.05250,
section 5.1), with distances.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np

from orrery.data.answering import read_answers, words_of
from orrery.data.examples import TaskSpec
from orrery.data.records import Table

REACH = 10


def nearest_words(spec: TaskSpec, train: Table, validation: Table, other: Table | None = None) -> tuple[str, dict[str, Any]]:
    """Fit on `train`, answer `other` (or `validation`); as :func:`orrery.methods.baselines.baseline`."""
    target = other or validation
    answers = [read_answers(row, spec.label) for row in train.rows]
    if sum(not each for each in answers) * 2 > len(answers):
        return "never an answer", {"texts": [""] * len(target)}
    usual = round(float(np.median([len(words_of(each[0].text)) for each in answers if each])))
    texts = list(dict.fromkeys(str(row.values[spec.text]) for row in train.rows))
    seen = Counter(word for text in texts for word in {text[a:b].lower() for a, b in words_of(text)})
    weights = {word: math.log((1 + len(texts)) / (1 + count)) + 1 for word, count in seen.items()}
    rare = math.log(1 + len(texts)) + 1
    found = [_answer(str(row.values[spec.text]), str(row.values[spec.pair]), max(1, usual), weights, rare) for row in target.rows]
    return "the words nearest to the question's", {"texts": found}


def _answer(text: str, question: str, longest: int, weights: dict[str, float], rare: float) -> str:
    places = words_of(text)
    if not places:
        return ""
    asked = {question[a:b].lower() for a, b in words_of(question) if _plain(question[a:b])}
    worth = np.array([weights.get(word, rare) if (word := text[a:b].lower()) in asked else 0.0 for a, b in places])
    near = np.zeros(len(places))
    for distance in range(1, REACH + 1):
        near[distance:] += worth[:-distance] / (1 + distance)
        near[:-distance] += worth[distance:] / (1 + distance)
    value = near - rare * (worth > 0)
    best, where = -math.inf, (0, 1)
    plain = [_plain(text[a:b]) for a, b in places]
    for first in range(len(places)):
        for last in range(first + 1, min(first + longest, len(places)) + 1):
            if not (plain[first] and plain[last - 1]):
                continue  # an answer neither begins nor ends with punctuation
            if (score := float(value[first:last].mean())) >= best + (1e-12 if last - first == 1 else 0.0):
                best, where = score, (first, last)
    return text[places[where[0]][0] : places[where[1] - 1][1]]


def _plain(word: str) -> bool:
    """Whether it is no punctuation mark; vowels that are marks make none of it."""
    return any(map(str.isalnum, word))
