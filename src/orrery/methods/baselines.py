"""What a model must beat: predictors without a network, fitted in seconds on the same table.

classification, ordinal, multi-label   logistic regression on tf-idf of words and word pairs
regression                             ridge regression on the same
tagging                                the commonest tag of every word (of all words, for a word never seen)
text-to-text                           the answer to the training source nearest by tf-idf, or the source itself: which of
                                       the two does better on the validation table
question-answering                     :mod:`orrery.methods.nearest_words`
multiple-choice                        :mod:`orrery.methods.plain_choices`

:func:`simplest` gives what any of these must beat in its turn: one answer for every row.

tf-idf: ``(1 + log f) log((1 + N) / (1 + n)) + 1)``-weighted counts of lower-cased words and pairs, rows of length 1. The L2
penalty is the best of five on the validation table. Minimised to its optimum by L-BFGS in float64.

N texts, F features, C labels.
"""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orrery.data.answering import read_answers
from orrery.data.choosing import read_choice, read_choices
from orrery.data.examples import TaskSpec
from orrery.data.labelled import read_label
from orrery.data.records import Row, Table
from orrery.data.tokenizers import JOINERS
from orrery.evaluate.tasks import judge
from orrery.methods.nearest_words import nearest_words
from orrery.methods.plain_choices import plain_choices

PENALTIES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
FEATURES = 200_000


class BagOfWords:
    """tf-idf of words and pairs of neighbours; of a pair of texts, each side has words of its own and shared ones a third."""

    def __init__(self, spec: TaskSpec, table: Table) -> None:
        self.spec = spec
        held = [self._counts(row) for row in table.rows]
        seen = Counter(name for counts in held for name in counts)
        self.names = {name: number for number, (name, _) in enumerate(seen.most_common(FEATURES))}
        frequency = np.array([seen[name] for name in self.names], dtype=float)
        self.weights = np.log((1 + len(held)) / (1 + frequency)) + 1

    @classmethod
    def of_words(cls, spec: TaskSpec, names: Sequence[str], weights: NDArray[np.float64]) -> BagOfWords:
        """One that was fitted before: its words and pairs, and what each weighs."""
        made = cls.__new__(cls)
        made.spec, made.names, made.weights = spec, {name: number for number, name in enumerate(names)}, weights
        return made

    def __call__(self, table: Table) -> Tensor:
        """Features (N,F), sparse, float64."""
        places, values = [], []
        for number, row in enumerate(table.rows):
            counts = {self.names[name]: count for name, count in self._counts(row).items() if name in self.names}
            weighed = {name: (1 + math.log(count)) * self.weights[name] for name, count in sorted(counts.items())}
            length = math.sqrt(sum(value * value for value in weighed.values())) or 1.0
            places += [(number, name) for name in weighed]
            values += [value / length for value in weighed.values()]
        index = torch.tensor(places, dtype=torch.int64).reshape(-1, 2).t()
        size = (len(table), max(1, len(self.names)))
        return torch.sparse_coo_tensor(
            index, torch.tensor(values, dtype=torch.float64), size, is_coalesced=True, check_invariants=True
        )

    def _counts(self, row: Row) -> Counter[str]:
        first = _words(row.values.get(self.spec.text))
        if not self.spec.pair:
            return _grams(first)
        second = _words(row.values.get(self.spec.pair))
        sides = Counter({f"1 {name}": count for name, count in _grams(first).items()})
        sides.update({f"2 {name}": count for name, count in _grams(second).items()})
        shared, either = set(first) & set(second), set(first) | set(second)
        sides.update(f"= {word}" for word in shared)
        sides.update({f"overlap {int(10 * len(shared) / max(1, len(either)))}": 3})
        return sides


@dataclass
class Linear:
    """A linear model on a bag of words. weight (F+1,C), the last row the intercept."""

    bag: BagOfWords
    weight: Tensor

    def scores(self, table: Table) -> Tensor:
        """Logits, or numbers, (N,C)."""
        return _scores(self.bag(table), self.weight)


def fit_linear(spec: TaskSpec, train: Table, validation: Table) -> Linear:
    """Fit on `train`; the penalty is the best of five on `validation`."""
    bag, classes = BagOfWords(spec, train), 1 if spec.kind == "regression" else len(spec.names)
    x, wanted = bag(train), linear_targets(spec, train)
    held, answers = bag(validation), _answers(spec, validation)
    best: tuple[float, Tensor] | None = None
    weight = torch.zeros(x.shape[1] + 1, classes, dtype=torch.float64)
    if spec.kind == "regression":
        weight[-1] = wanted.mean(0)
    for penalty in PENALTIES:
        weight = _fit(spec.kind, x, wanted, weight, penalty)
        value = judge(spec, answers, _predict(spec, _scores(held, weight))).value
        if best is None or value >= best[0]:
            best = value, weight
    assert best is not None
    return Linear(bag, best[1])


def baseline(
    spec: TaskSpec, train: Table, validation: Table, other: Table | None = None, fitted: Linear | None = None
) -> tuple[str, dict[str, Any]]:
    """Fit on `train`, choose on `validation`, predict `other` (or `validation`). fitted: the bag of words, where there is one already.

    Returns:
        What it is, in words, and its predictions as :func:`orrery.evaluate.tasks.judge` takes them.
    """
    target = other or validation
    if spec.kind == "tagging":
        return "the commonest tag of every word", {"tags": _commonest_tags(spec, train, target)}
    if spec.kind == "text-to-text":
        return _texts(spec, train, validation, target)
    if spec.kind == "question-answering":
        return nearest_words(spec, train, validation, target)
    if spec.kind == "multiple-choice":
        return plain_choices(spec, train, validation, target)
    name = "ridge regression" if spec.kind == "regression" else "logistic regression"
    linear = fitted or fit_linear(spec, train, validation)
    return f"{name} on a bag of words", _predict(spec, linear.scores(target))


def simplest(spec: TaskSpec, train: Table, other: Table) -> tuple[str, dict[str, Any]]:
    """One answer for every row of `other`: the commonest label, tag, text or choice, the mean number, the middle grade.

    Returns:
        As :func:`baseline`.
    """
    count = len(other)
    if spec.kind == "multiple-choice":
        usual = Counter(read_choice(row, spec, read_choices(row, spec)) for row in train.rows).most_common(1)[0][0]
        numbers = [min(usual, len(read_choices(row, spec)) - 1) for row in other.rows]
        return f"choice {usual + 1}, always", {"predicted": np.array(numbers)}
    answers = _answers(spec, train)
    if spec.kind == "question-answering":
        text = _commonest(answers)
        return "the commonest answer, always" if text else "never an answer", {"texts": [text] * count}
    if spec.kind == "regression":
        return "the mean, always", {"predicted": np.full(count, float(np.mean(answers)))}
    if spec.kind == "tagging":
        tag = _commonest([tag for row in answers for tag in row])
        return "the commonest tag, always", {"tags": [[tag] * len(_words_of(row.values[spec.text])) for row in other.rows]}
    if spec.kind == "text-to-text":
        return "the commonest answer, always", {"texts": [_commonest(answers)] * count}
    held = [row if spec.kind == "multi-label" else [row] for row in answers]
    shares = np.array([np.mean([name in row for row in held]) for name in spec.names])
    given: dict[str, Any] = {"probabilities": np.tile(shares, (count, 1))}
    if spec.kind == "multi-label":
        return "the labels of most rows, always", given
    best = int((shares.cumsum() < 0.5).sum()) if spec.kind == "ordinal" else int(shares.argmax())
    name = "the middle grade, always" if spec.kind == "ordinal" else "the commonest label, always"
    return name, {**given, "predicted": np.full(count, best)}


def _commonest(values: Sequence[str]) -> str:
    """Of those that are equally common the first."""
    return Counter(values).most_common(1)[0][0]


def _texts(spec: TaskSpec, train: Table, validation: Table, target: Table) -> tuple[str, dict[str, Any]]:
    """Copy the source, or take the nearest training row's answer."""
    features, answers = BagOfWords(spec, train), _answers(spec, train)
    near = _Nearest(features(train))
    ways: dict[str, Any] = {
        "the source, copied": lambda table: [_joined(row.values[spec.text]) for row in table.rows],
        "the nearest training row's answer": lambda table: [answers[number] for number in near(features(table))],
    }
    wanted = _answers(spec, validation)
    best = max(ways, key=lambda name: judge(spec, wanted, {"texts": ways[name](validation)}).value)
    return best, {"texts": ways[best](target)}


class _Nearest:
    """The row of features (N,F) with the greatest product, by the lists of rows that each feature occurs in."""

    def __init__(self, features: Tensor) -> None:
        (rows, names), values = features.indices().numpy(), features.values().numpy()
        order = np.argsort(names, kind="stable")
        self.rows, self.values, self.count = rows[order], values[order], features.shape[0]
        self.edges = np.searchsorted(names[order], np.arange(features.shape[1] + 1))

    def __call__(self, features: Tensor) -> list[int]:
        """For every row the number of the nearest; the first of several, and of none that shares a word."""
        (rows, names), values = features.indices().numpy(), features.values().numpy()
        edges = np.searchsorted(rows, np.arange(features.shape[0] + 1))
        found = []
        for start, stop in zip(edges, edges[1:], strict=False):
            score = np.zeros(self.count)
            for name, value in zip(names[start:stop], values[start:stop], strict=True):
                span = slice(self.edges[name], self.edges[name + 1])
                score[self.rows[span]] += value * self.values[span]  # a row holds a feature once
            found.append(int(score.argmax()))
        return found


def _answers(spec: TaskSpec, table: Table) -> list[Any]:
    if spec.kind == "text-to-text":
        return [_joined(value) for value in table.column(spec.label)]
    if spec.kind == "question-answering":
        found = [read_answers(row, spec.label) for row in table.rows]
        return [each[0].text if each else "" for each in found]
    if spec.kind == "regression":
        return [float(value) for value in table.column(spec.label)]
    labels = [read_label(row, spec) for row in table.rows]
    return labels if spec.kind in ("multi-label", "tagging") else [label[0] for label in labels]


def linear_targets(spec: TaskSpec, table: Table) -> Tensor:
    """What a linear model learns: numbers (N,1), several labels (N,C) 0 or 1, or classes (N,), -1 for one that training lacks."""
    answers = _answers(spec, table)
    if spec.kind == "regression":
        return torch.tensor(answers, dtype=torch.float64)[:, None]
    if spec.kind == "multi-label":
        return torch.tensor(np.array([np.isin(spec.names, row) for row in answers]), dtype=torch.float64)
    rank = {name: number for number, name in enumerate(spec.names)}
    return torch.tensor([rank.get(name, -1) for name in answers])


def _fit(kind: str, x: Tensor, targets: Tensor, begin: Tensor, penalty: float) -> Tensor:
    """Weights (F+1,C), the last row the intercept, which is not penalised; from those of a greater penalty on."""
    weight = begin.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weight], max_iter=200, history_size=10, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        scores = _scores(x, weight)
        if kind == "regression":
            loss = torch.nn.functional.mse_loss(scores, targets)
        elif kind == "multi-label":
            loss = torch.nn.functional.binary_cross_entropy_with_logits(scores, targets)
        else:
            loss = torch.nn.functional.cross_entropy(scores, targets)
        loss = loss + penalty * weight[:-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach()


class _Product(torch.autograd.Function):
    """X W and X^T G by counting, five times as fast as torch's products of such matrices."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.x = x
        rows, columns = x.indices()
        return _summed(rows, columns, x.values(), weight, x.shape[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        rows, columns = ctx.x.indices()
        return None, _summed(columns, rows, ctx.x.values(), grads[0], ctx.x.shape[1])


def _summed(to: Tensor, places: Tensor, values: Tensor, weight: Tensor, count: int) -> Tensor:
    """(count,C): the sums of values * weight[places] over equal `to`."""
    index, scale = to.numpy(), values.numpy()
    found = [np.bincount(index, scale * column, count) for column in weight.t()[:, places].numpy()]
    return torch.from_numpy(np.stack(found, 1))


def _scores(x: Tensor, weight: Tensor) -> Tensor:
    return cast(Tensor, _Product.apply(x, weight[:-1])) + weight[-1]


def _predict(spec: TaskSpec, scores: Tensor) -> dict[str, Any]:
    if spec.kind == "regression":
        return {"predicted": scores[:, 0].numpy()}
    if spec.kind == "multi-label":
        return {"probabilities": scores.sigmoid().numpy()}
    probabilities = scores.softmax(-1).numpy()
    return {"probabilities": probabilities, "predicted": probabilities.argmax(-1)}


def _commonest_tags(spec: TaskSpec, train: Table, target: Table) -> list[list[str]]:
    words: defaultdict[str, Counter[str]] = defaultdict(Counter)
    every: Counter[str] = Counter()
    for row in train.rows:
        for word, tag in zip(_words_of(row.values[spec.text]), read_label(row, spec), strict=True):
            words[word][tag] += 1
            every[tag] += 1
    usual = every.most_common(1)[0][0]
    tags = {word: counts.most_common(1)[0][0] for word, counts in words.items()}
    return [[tags.get(word, usual) for word in _words_of(row.values[spec.text])] for row in target.rows]


def _words_of(value: Any) -> list[str]:
    return value.split() if isinstance(value, str) else [str(word) for word in value]


def _joined(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _words(value: Any) -> list[str]:
    return _word().findall(_joined(value).lower())


@functools.cache
def _word() -> re.Pattern[str]:
    r"""Letters and digits in a row, or one other sign; marks (the vowels of Devanagari, ...) are letters, as they are not to `\w`."""
    marks = JOINERS + "".join(char for char in map(chr, range(0x300, 0x20000)) if unicodedata.category(char)[0] == "M")
    return re.compile(rf"[\w{marks}]+|[^\w{marks}\s]")


def _grams(words: Sequence[str]) -> Counter[str]:
    pairs = (f"{a} {b}" for a, b in zip(words, words[1:], strict=False))
    return Counter([*words, *pairs])
