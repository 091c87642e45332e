"""A task's predictions judged: which figures, on which items, and what a reader should know beside them.

One function, :func:`judge`, turns what the table says and what a model gave into a :class:`Judged`, whatever the kind of
task; two models on the same table are then compared item by item (:func:`orrery.evaluate.predictions.paired_interval`).

N examples, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orrery.core.errors import DataError
from orrery.data.examples import TaskSpec
from orrery.evaluate.answers import ORDERS, chrf_counts, chrf_of, exact_match, word_f1
from orrery.evaluate.predictions import FIGURES, Figure, Measured, measure, reliability
from orrery.evaluate.spans import SpanReport, scheme_of, score_spans

Items = dict[str, NDArray[np.generic]]


@dataclass
class Judged:
    """figures: by name, the main one first. items: what they are functions of. notes: sentences for the reader."""

    kind: str
    figures: dict[str, Figure]
    items: Items
    notes: list[str] = field(default_factory=list)
    spans: SpanReport | None = None
    bins: list[tuple[float, float, int]] = field(default_factory=list)  # of the reliability picture

    @property
    def main(self) -> str:
        """The figure that choices are made by."""
        return next(iter(self.figures))

    @property
    def value(self) -> float:
        """The main figure, higher is better."""
        found = self.figures[self.main](self.items)
        return -found if self.main in LOWER else found

    def measured(self, draws: int = 2000) -> dict[str, Measured]:
        """Every figure with its interval over items."""
        return measure(self.figures, self.items, draws)


LOWER = frozenset({"absolute_error", "root_mean_square", "calibration_error", "brier", "nats"})
"""Figures of which less is better."""


def judge(spec: TaskSpec, answers: Sequence[Any], given: Mapping[str, Any]) -> Judged:
    """Judge predictions.

    Args:
        spec: of the task. answers: what the table says, one of each example.
        given: by kind: "probabilities" (N,C) and "predicted" (N,) for classes and grades; "probabilities" (N,C) for
            several labels; "predicted" (N,) for numbers; "tags", a list for each sentence; "texts" (of questions too, "" for no answer);
            "predicted" (N,) for choices, and if there are "shares", the probabilities of each row's.

    Raises:
        DataError: another number of predictions than of answers.
    """
    count = len(next(iter(given.values())))
    if count != len(answers):
        raise DataError(f"{len(answers)} answers, but {count} predictions")
    return _JUDGES[spec.kind](spec, answers, given)


def _classes(spec: TaskSpec, answers: Sequence[Any], given: Mapping[str, Any]) -> Judged:
    unseen = sorted(set(answers) - set(spec.names))
    rank = {name: number for number, name in enumerate([*spec.names, *unseen])}
    probabilities = np.asarray(given["probabilities"], dtype=float)
    predicted = np.asarray(given["predicted"])
    items: Items = {"true": np.array([rank[answer] for answer in answers]), "predicted": predicted}
    figures = dict(FIGURES[spec.kind])
    notes = []
    if unseen:
        count = sum(answer in unseen for answer in answers)
        listed = ", ".join(f"'{name}'" for name in unseen[:5])
        notes.append(
            f"{count} of {len(answers)} rows have a label that training never saw ({listed}); they count as errors"
        )
    else:
        items["probabilities"] = probabilities
        items["confidence"] = probabilities[np.arange(len(predicted)), predicted]
        figures |= FIGURES["calibration"]
    right = (items["true"] == predicted).astype(float)
    bins = [] if unseen else reliability(items["confidence"].astype(float), right)
    return Judged(spec.kind, figures, items, notes, bins=bins)


def _labels(spec: TaskSpec, answers: Sequence[Any], given: Mapping[str, Any]) -> Judged:
    names = [*spec.names, *sorted({name for answer in answers for name in answer} - set(spec.names))]
    true = np.array([np.isin(names, list(answer)) for answer in answers])
    predicted = np.zeros_like(true)
    predicted[:, : len(spec.names)] = np.asarray(given["probabilities"]) > 0.5
    unseen = names[len(spec.names) :]
    notes = [f"labels that training never saw count as missed: {', '.join(unseen[:5])}"] if unseen else []
    return Judged(spec.kind, dict(FIGURES["multi-label"]), {"true": true, "predicted": predicted}, notes)


def _numbers(spec: TaskSpec, answers: Sequence[Any], given: Mapping[str, Any]) -> Judged:
    items: Items = {"true": np.array(answers, dtype=float), "predicted": np.asarray(given["predicted"], dtype=float)}
    return Judged(spec.kind, dict(FIGURES["regression"]), items)


def _tags(spec: TaskSpec, answers: Sequence[Any], given: Mapping[str, Any]) -> Judged:
    found = given["tags"]
    report = score_spans(answers, found)
    right = [sum(a == b for a, b in zip(x, y, strict=True)) for x, y in zip(answers, found, strict=True)]
    items: Items = {"right": np.array(right), "tokens": np.array([len(row) for row in answers])}
    figures: dict[str, Figure] = {"token_accuracy": _token_accuracy}
    if scheme_of(answers) != "plain":
        items |= {name: np.array([getattr(s, name) for s in report.sentences]) for name in ("predicted", "true")}
        items["spans"] = np.array([s.right for s in report.sentences])
        figures = {"span_f1": _span_f1, **figures}
    unseen = sorted({tag for row in answers for tag in row} - set(spec.names))
    notes = [f"tags that training never saw count as errors: {', '.join(unseen[:5])}"] if unseen else []
    return Judged(spec.kind, figures, items, notes, spans=report)


def _texts(spec: TaskSpec, answers: Sequence[Any], given: Mapping[str, Any]) -> Judged:
    texts = given["texts"]
    counts = [chrf_counts(text, answer) for text, answer in zip(texts, answers, strict=True)]
    items: Items = {
        "counts": np.array(counts).reshape(len(answers), ORDERS, 3),
        "exact": np.array([exact_match(text, [answer]) for text, answer in zip(texts, answers, strict=True)]),
    }
    return Judged(spec.kind, {"chrf": _chrf, "exact_match": _exact}, items)


def _passages(spec: TaskSpec, answers: Sequence[Any], given: Mapping[str, Any]) -> Judged:
    """SQuAD's figures; where some questions have no answer, those of both kinds of questions too."""
    wanted = [list(each) or [""] for each in answers]
    found = given["texts"]
    items: Items = {
        "f1": np.array([word_f1(text, each) for text, each in zip(found, wanted, strict=True)]),
        "exact": np.array([exact_match(text, each) for text, each in zip(found, wanted, strict=True)]),
        "answerable": np.array([bool(each) for each in answers]),
    }
    figures: dict[str, Figure] = {"f1": lambda held: float(held["f1"].astype(float).mean()), "exact_match": _exact}
    if not items["answerable"].all() and items["answerable"].any():
        figures |= {"f1_answerable": lambda held: _mean_where(held, True), "right_without_answer": lambda held: _mean_where(held, False)}
    return Judged(spec.kind, figures, items)


def _choices(spec: TaskSpec, answers: Sequence[Any], given: Mapping[str, Any]) -> Judged:
    """How often the right choice was made; with probabilities, how likely it was held to be."""
    items: Items = {"right": np.asarray(given["predicted"]) == np.asarray(answers)}
    figures: dict[str, Figure] = {"accuracy": lambda held: float(held["right"].astype(float).mean())}
    if "shares" in given:
        held = [float(shares[answer]) for shares, answer in zip(given["shares"], answers, strict=True)]
        items["surprise"] = -np.log(np.maximum(held, np.finfo(float).tiny))
        figures["nats"] = lambda found: float(found["surprise"].astype(float).mean())
    return Judged(spec.kind, figures, items)


def _mean_where(items: Mapping[str, NDArray[np.generic]], answerable: bool) -> float:
    held = items["f1"][items["answerable"] == answerable]
    return float(held.astype(float).mean()) if len(held) else 0.0


def _token_accuracy(items: Mapping[str, NDArray[np.generic]]) -> float:
    return float(items["right"].sum() / max(1, items["tokens"].sum()))


def _span_f1(items: Mapping[str, NDArray[np.generic]]) -> float:
    total = items["predicted"].sum() + items["true"].sum()
    return float(2 * items["spans"].sum() / total) if total else 1.0


def _chrf(items: Mapping[str, NDArray[np.generic]]) -> float:
    return chrf_of(items["counts"].sum(0).tolist())


def _exact(items: Mapping[str, NDArray[np.generic]]) -> float:
    return float(items["exact"].astype(float).mean())


_JUDGES = {
    "classification": _classes,
    "ordinal": _classes,
    "multi-label": _labels,
    "regression": _numbers,
    "tagging": _tags,
    "text-to-text": _texts,
    "question-answering": _passages,
    "multiple-choice": _choices,
}
