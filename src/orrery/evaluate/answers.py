"""Answers in words: exact match, overlap of words, overlap of characters.

EM and F1 as in SQuAD (1606.05250, section 6.1): lower case, without punctuation, articles and surplus white space; F1 over
the bag of words; the best over the reference answers. An empty reference means that there is no answer.
chrF (Popovic 2015, W15-3049): F_2 of character n-grams of orders 1 to 6 without white space, counts added over the corpus,
as sacrebleu's default (which is the tests' oracle).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

ORDERS, BETA = 6, 2.0
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """An answer without what does not matter in English."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 when the answer equals a reference, both normalised."""
    return float(any(normalise(answer) == normalise(reference) for reference in references))


def word_f1(answer: str, references: Sequence[str]) -> float:
    """The best F1 of the words over the references."""
    return max(_word_f1(normalise(answer).split(), normalise(reference).split()) for reference in references)


def _word_f1(found: list[str], wanted: list[str]) -> float:
    if not found or not wanted:  # "no answer" is right or wrong, never half
        return float(found == wanted)
    common = (Counter(found) & Counter(wanted)).total()
    return 2 * common / (len(found) + len(wanted))


def chrf(outputs: Sequence[str], references: Sequence[str]) -> float:
    """chrF of a corpus, between 0 and 1."""
    totals = [[0, 0, 0] for _ in range(ORDERS)]
    for output, reference in zip(outputs, references, strict=True):
        for total, counts in zip(totals, chrf_counts(output, reference), strict=True):
            for index, value in enumerate(counts):
                total[index] += value
    return chrf_of(totals)


def chrf_counts(output: str, reference: str) -> list[tuple[int, int, int]]:
    """For every order: n-grams in common, of the output, of the reference. What a bootstrap over sentences adds up."""
    a, b = "".join(output.split()), "".join(reference.split())
    found = []
    for order in range(1, ORDERS + 1):
        x = Counter(a[i : i + order] for i in range(len(a) - order + 1))
        y = Counter(b[i : i + order] for i in range(len(b) - order + 1))
        found.append(((x & y).total(), x.total() if y else 0, y.total()))  # no reference: nothing was asked for
    return found


def chrf_of(totals: Sequence[Sequence[int]]) -> float:
    """chrF from counts: the mean of precisions and of recalls over the orders that occur, then F_2."""
    held = [(common / found, common / wanted) for common, found, wanted in totals if found and wanted]
    if not held:
        return 0.0
    precision, recall = (sum(values) / len(held) for values in zip(*held, strict=True))
    weight = BETA**2
    return (1 + weight) * precision * recall / (weight * precision + recall) if precision + recall else 0.0
