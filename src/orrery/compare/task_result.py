"""The result of a comparison over a task: one JSON document, and the analysis that fills it in from finished runs.

Two kinds of doubt, kept apart. Over *seeds*: another draw of the initial weights and of the order of examples; verdicts
are about this one (:func:`orrery.evaluate.statistics.decide`). Over *items*: another draw of test rows; the interval
stands beside, with the seeds held fixed, each draw taking the same rows for all seeds and both architectures.

Differences are of the main figure, `first - second` of the same seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from orrery.compare.analyse import bounded
from orrery.compare.result import Contrast, Quality, from_plain, to_plain
from orrery.core.errors import CorruptionError
from orrery.core.files import read_json, write_json
from orrery.core.seeds import numpy_generator
from orrery.evaluate import statistics
from orrery.evaluate.predictions import Figure
from orrery.evaluate.tasks import Items, Judged

FORMAT = 1
FILE = "result.json"
DRAWS = 1000  # of test rows, for intervals over items


@dataclass
class TaskProtocol:
    """What was held equal and how verdicts are reached, stated before the runs."""

    table: str = ""
    task: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    tokenizer: str = ""
    vocabulary: int = 0
    size: str = ""
    target_parameters: int | None = None
    budget: str = ""
    epochs: int = 0
    steps: int = 0
    batch: int = 0
    seeds: list[int] = field(default_factory=list)
    baseline: str = ""
    figure: str = ""
    lower_is_better: bool = False
    margin: float = 0.0
    margin_reason: str = ""
    alpha: float = 0.05
    family: str = ""
    family_size: int = 0
    needed_seeds: int = 0
    equal: list[str] = field(default_factory=list)


@dataclass
class TaskRun:
    """One fine-tuning."""

    architecture: str
    seed: int
    status: str = "pending"  # done | failed | oom | interrupted | pending
    error: str = ""
    value: float | None = None  # of the main figure, on the test table
    figures: dict[str, float] = field(default_factory=dict)
    best_epoch: int = 0
    learning_rate: float | None = None
    seconds: float | None = None  # of training, validation apart
    rate: float | None = None  # examples predicted per second
    memory: int | None = None  # peak bytes of its process
    folder: str = ""
    history: list[float] = field(default_factory=list)  # the main figure on the validation table, epoch by epoch


@dataclass
class TaskSweep:
    """The learning rates tried for one architecture, by the rule of :mod:`orrery.compare.rates`, under a seed of its own."""

    architecture: str
    tried: dict[str, float | None] = field(default_factory=dict)  # rate -> main figure on the validation table; None: it failed
    chosen: float | None = None


@dataclass
class TaskRow:
    """One architecture over its seeds."""

    label: str
    source: str
    pretrained: bool = False
    parameters: int = 0  # all
    matched: int = 0  # without embedding and head
    quality: Quality = field(default_factory=Quality)
    items_low: float | None = None  # of the mean over seeds, over test rows
    items_high: float | None = None
    figures: dict[str, float] = field(default_factory=dict)  # means over seeds
    learning_rate: float | None = None
    seconds: float | None = None  # medians over seeds
    rate: float | None = None
    memory: int | None = None
    beyond_floor: Contrast | None = None  # against what has no network; over items only
    status: str = "pending"
    error: str = ""


@dataclass
class Words:
    """What has no network: the same table, read as a bag of words or the like."""

    label: str
    value: float | None = None
    low: float | None = None  # over items
    high: float | None = None
    seconds: float = 0.0


@dataclass
class TaskComparison:
    """See the top of the file."""

    kind: str = "task comparison"
    created: str = ""
    status: str = "partial"  # complete | partial
    command: str = ""
    protocol: TaskProtocol = field(default_factory=TaskProtocol)
    environment: dict[str, Any] = field(default_factory=dict)
    architectures: list[TaskRow] = field(default_factory=list)
    runs: list[TaskRun] = field(default_factory=list)
    contrasts: list[Contrast] = field(default_factory=list)
    floor: Words | None = None
    trivial: Words | None = None  # one answer for every row
    sweeps: list[TaskSweep] = field(default_factory=list)
    seconds: float = 0.0  # of everything, over all calls of the command
    notes: list[str] = field(default_factory=list)
    format: int = FORMAT

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; numbers that are not finite become null."""
        return dict(to_plain(self))

    def save(self, folder: str | Path) -> Path:
        """Write `result.json`, atomically."""
        return write_json(Path(folder) / FILE, self.to_dict())


def load(path: str | Path) -> TaskComparison:
    """Read a comparison over a task from its folder or its file.

    Raises:
        CorruptionError: it is none, or of another format.
    """
    file = Path(path) / FILE if Path(path).is_dir() else Path(path)
    document = read_json(file)
    if (
        not isinstance(document, dict)
        or document.get("format") != FORMAT
        or document.get("kind") != TaskComparison.kind
    ):
        raise CorruptionError(f"'{file}' is no comparison over a task of format {FORMAT}")
    return from_plain(TaskComparison, document, str(file))


Answers = dict[int, Judged]  # of one architecture by seed


def fill(result: TaskComparison, judged: dict[str, Answers], floor: Judged | None) -> None:
    """Quality, intervals, contrasts and verdicts from what the finished runs answered.

    Args:
        judged: by label and seed; labels without a finished run may be absent.
        floor: what the bag of words answered.
    """
    protocol = result.protocol
    for row in result.architectures:
        _summarise(row, [run for run in result.runs if run.architecture == row.label], judged.get(row.label, {}))
        answers = judged.get(row.label, {})
        if floor is not None and answers:
            row.beyond_floor = _beyond(row.label, result, list(answers.values()), floor)
    others = [row.label for row in result.architectures if row.label != protocol.baseline]
    pairs = [_paired(label, protocol, judged) for label in others]
    decisions = statistics.decide(
        [one.deltas for one in pairs], protocol.margin, protocol.alpha, protocol.lower_is_better, protocol.family_size
    )
    for one, decision in zip(pairs, decisions, strict=True):
        one.mean = bounded(decision.interval.estimate)
        one.low, one.high = bounded(decision.interval.low), bounded(decision.interval.high)
        one.interval, one.p_method = decision.interval.method, decision.p_method
        one.p, one.p_adjusted = decision.p, decision.p_adjusted
        one.needed_seeds, one.verdict = decision.needed_seeds, decision.verdict
        one.sentence = say(one)
    result.contrasts = pairs


def _summarise(row: TaskRow, runs: list[TaskRun], answers: Answers) -> None:
    done = [run for run in runs if run.status == "done" and run.value is not None]
    row.status = next((run.status for run in runs if run.status != "done"), "done")
    row.error = next((run.error for run in runs if run.error), "")
    if not done:
        return
    values = [float(run.value or 0.0) for run in done]
    interval = statistics.t_interval(values)
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    seeds = {str(run.seed): value for run, value in zip(done, values, strict=True)}
    row.quality = Quality(seeds, interval.estimate, deviation, bounded(interval.low), bounded(interval.high), "")
    row.figures = {name: float(np.mean([run.figures[name] for run in done])) for name in done[0].figures}
    row.learning_rate = done[0].learning_rate
    row.seconds, row.rate, memory = (
        _median([getattr(run, key) for run in done]) for key in ("seconds", "rate", "memory")
    )
    row.memory = None if memory is None else int(memory)
    first = next(iter(answers.values()))
    _, low, high = over_items(first.figures[first.main], [each.items for each in answers.values()])
    row.items_low, row.items_high = bounded(low), bounded(high)


def _paired(label: str, protocol: TaskProtocol, judged: dict[str, Answers]) -> Contrast:
    a, b = judged.get(label, {}), judged.get(protocol.baseline, {})
    seeds = sorted(set(a) & set(b))
    values = [(a[seed].figures[a[seed].main], a[seed].items, b[seed].items) for seed in seeds]
    deltas = [figure(first) - figure(second) for figure, first, second in values]
    one = Contrast(
        label,
        protocol.baseline,
        protocol.figure,
        protocol.lower_is_better,
        seeds=seeds,
        deltas=deltas,
        margin=protocol.margin,
    )
    if seeds:
        _, low, high = over_items(values[0][0], [first for _, first, _ in values], [second for _, _, second in values])
        one.documents_low, one.documents_high = bounded(low), bounded(high)
        one.documents = len(next(iter(values[0][1].values())))
    return one


def _beyond(label: str, result: TaskComparison, answers: Sequence[Judged], floor: Judged) -> Contrast:
    """An architecture, its seeds averaged, against the bag of words: over items only, for that has no seeds."""
    assert result.floor is not None
    protocol, first = result.protocol, answers[0]
    items = [each.items for each in answers]
    mean, low, high = over_items(first.figures[first.main], items, [floor.items] * len(items))
    sign = -1 if protocol.lower_is_better else 1
    said = (
        "better"
        if min(sign * low, sign * high) > 0
        else "worse"
        if max(sign * low, sign * high) < 0
        else "inconclusive"
    )
    one = Contrast(
        label,
        result.floor.label,
        protocol.figure,
        protocol.lower_is_better,
        primary=False,
        mean=bounded(mean),
        verdict=said,
    )
    one.documents_low, one.documents_high = bounded(low), bounded(high)
    one.documents = len(next(iter(first.items.values())))
    words = {"better": "beats", "worse": "does NOT beat (is worse than)", "inconclusive": "is not shown to beat"}[said]
    effect = f"{protocol.figure.replace('_', ' ')} {mean:+.4f} ({low:+.4f} to {high:+.4f} over {one.documents} rows)"
    one.sentence = f"{label} {words} {one.second}: {effect}"
    return one


def over_items(
    figure: Figure, first: Sequence[Items], second: Sequence[Items] = (), draws: int = DRAWS, seed: int = 0
) -> tuple[float, float, float]:
    """Mean over seeds of a figure, or of its difference `first - second`, with its 95 % interval over rows.

    Args:
        first, second: items of each seed, all of the same rows in the same order; every draw takes the same rows of all.

    Returns:
        Estimate, low, high; percentiles of `draws` draws.
    """

    def value(index: Any) -> float:
        held = [figure({name: column[index] for name, column in items.items()}) for items in first]
        taken = [figure({name: column[index] for name, column in items.items()}) for items in second]
        return float(np.mean(held)) - (float(np.mean(taken)) if taken else 0.0)

    size = len(next(iter(first[0].values())))
    estimate = value(slice(None))
    if size < 2:
        return estimate, -math.inf, math.inf
    rng = numpy_generator(seed, "items")
    low, high = np.quantile([value(rng.integers(0, size, size)) for _ in range(draws)], (0.025, 0.975))
    return estimate, float(low), float(high)


def say(one: Contrast) -> str:
    """The verdict as a sentence, with numbers and both intervals."""
    n, name = len(one.deltas), one.metric.replace("_", " ")
    if not n or one.mean is None:
        return f"{one.first} against {one.second}: no pair of finished runs, nothing to say"
    seeds = "one seed, no interval over seeds"
    if one.low is not None and one.high is not None:
        seeds = f"95 % over {n} seeds {one.low:+.4f} to {one.high:+.4f}"
    items = (
        f"over {one.documents} rows {one.documents_low:+.4f} to {one.documents_high:+.4f}"
        if one.documents_low is not None and one.documents_high is not None
        else "no interval over rows"
    )
    effect = f"{name} {one.mean:+.4f} ({seeds}; {items})"
    if one.verdict in (statistics.BETTER, statistics.WORSE):
        return f"{one.first} is {one.verdict} than {one.second}: {effect}"
    if one.verdict == statistics.NO_DIFFERENCE:
        return (
            f"no difference shown between {one.first} and {one.second}: {effect} lies within the margin {one.margin:g}"
        )
    if one.verdict == statistics.TOO_FEW:
        return (
            f"too few seeds to say: {one.first} against {one.second} {effect}; a verdict needs {one.needed_seeds} seeds"
        )
    return f"inconclusive: {one.first} against {one.second} {effect}, margin {one.margin:g}"


def _median(values: Sequence[float | None]) -> float | None:
    held = [value for value in values if value is not None]
    return float(np.median(held)) if held else None
