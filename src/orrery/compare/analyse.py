"""From finished runs to curves, paired contrasts, verdicts and the noise floor. Nothing here trains or measures.

The family of primary contrasts is stated before the runs: every architecture against the baseline, so m is one less
than the architectures asked for, and failed runs do not shrink it. One secondary contrast, the best mean against the
second best, is chosen after looking; its family is therefore all pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from orrery.compare.result import Contrast, Curve, NoiseFloor, Protocol, Quality, RunRow
from orrery.evaluate import statistics

COMPARISON, NOISE = "comparison", "noise floor"


@dataclass
class RunData:
    """A run with what its folder holds of it."""

    row: RunRow
    points: list[tuple[float, float]] = field(default_factory=list)  # (training tokens, validation bits per byte)
    nats: list[float] = field(default_factory=list)  # per validation document, at the end
    sizes: list[int] = field(default_factory=list)  # bytes of those documents

    @property
    def finished(self) -> bool:
        """Whether it has a final number."""
        return self.row.status == "done" and self.row.bits_per_byte is not None


def of(runs: Sequence[RunData], label: str, role: str = COMPARISON) -> dict[int, RunData]:
    """Finished runs of an architecture by seed."""
    return {run.row.seed: run for run in runs if run.row.architecture == label and run.row.role == role and run.finished}


def quality(runs: Sequence[RunData], label: str) -> Quality:
    """Final bits per byte over the seeds of an architecture."""
    values = {seed: float(run.row.bits_per_byte or 0.0) for seed, run in sorted(of(runs, label).items())}
    if not values:
        return Quality()
    interval = statistics.t_interval(list(values.values()))
    deviation = float(np.std(list(values.values()), ddof=1)) if len(values) > 1 else None
    seeds = {str(seed): value for seed, value in values.items()}
    return Quality(seeds, interval.estimate, deviation, bounded(interval.low), bounded(interval.high))


def curve(runs: Sequence[RunData], label: str) -> Curve:
    """The learning curve of an architecture: one line per seed that has points, finished or not, and what spans them."""
    lines = {
        str(run.row.seed): dict(run.points)
        for run in sorted(runs, key=lambda run: run.row.seed)
        if run.row.architecture == label and run.row.role == COMPARISON and run.points
    }
    return band(lines, "training tokens", "bits per byte")


def band(lines: dict[str, dict[float, float]], x_unit: str, y_unit: str, split: str = "validation") -> Curve:
    """Align lines on the union of their x; mean where every line has a value, band from smallest to largest."""
    xs = sorted({float(x) for line in lines.values() for x in line})
    values: dict[str, list[float | None]] = {name: [line.get(x) for x in xs] for name, line in lines.items()}
    mean: list[float | None] = []
    low: list[float | None] = []
    high: list[float | None] = []
    for column in zip(*values.values(), strict=True):
        seen = [value for value in column if value is not None]
        mean.append(sum(seen) / len(seen) if len(seen) == len(column) else None)
        low.append(min(seen) if seen else None)
        high.append(max(seen) if seen else None)
    return Curve(xs, x_unit, y_unit, split, values, mean, low, high)


def contrasts(runs: Sequence[RunData], labels: Sequence[str], protocol: Protocol) -> list[Contrast]:
    """Primary contrasts of every other architecture with the baseline, then the secondary one of the two best."""
    others = [label for label in labels if label != protocol.baseline]
    pairs = [(label, protocol.baseline) for label in others]
    found = _decided(runs, pairs, protocol, len(pairs), primary=True)
    means = {label: mean for label in labels if (mean := quality(runs, label).mean) is not None}
    best = sorted(means, key=lambda label: means[label])[:2]
    if len(best) == 2 and protocol.baseline not in best:
        found += _decided(runs, [(best[0], best[1])], protocol, math.comb(len(labels), 2), primary=False)
    return found


def contrast(runs: Sequence[RunData], first: str, second: str, protocol: Protocol, family: int) -> Contrast:
    """One paired contrast outside the primary family, judged as one of `family`."""
    return _decided(runs, [(first, second)], protocol, family, primary=False)[0]


def _decided(
    runs: Sequence[RunData], pairs: Sequence[tuple[str, str]], protocol: Protocol, family: int, primary: bool
) -> list[Contrast]:
    made = [_paired(runs, first, second, protocol, primary) for first, second in pairs]
    decisions = statistics.decide([c.deltas for c in made], protocol.margin, protocol.alpha, family=family)
    for item, decision in zip(made, decisions, strict=True):
        item.mean = bounded(decision.interval.estimate)
        item.low, item.high = bounded(decision.interval.low), bounded(decision.interval.high)
        item.interval, item.p_method = decision.interval.method, decision.p_method
        item.p, item.p_adjusted = decision.p, decision.p_adjusted
        item.needed_seeds, item.verdict = decision.needed_seeds, decision.verdict
        item.sentence = say(item)
    return made


def _paired(runs: Sequence[RunData], first: str, second: str, protocol: Protocol, primary: bool) -> Contrast:
    a, b = of(runs, first), of(runs, second)
    seeds = sorted(set(a) & set(b))
    deltas = [float(a[s].row.bits_per_byte or 0.0) - float(b[s].row.bits_per_byte or 0.0) for s in seeds]
    result = Contrast(first, second, seeds=seeds, deltas=deltas, primary=primary, margin=protocol.margin)
    documents = _documents([(a[s], b[s]) for s in seeds])
    if documents is not None:
        result.documents_low, result.documents_high = bounded(documents.low), bounded(documents.high)
        result.documents = documents.n
    return result


def _documents(pairs: Sequence[tuple[RunData, RunData]]) -> statistics.Interval | None:
    """Bootstrap over validation documents of the difference averaged over seeds: evaluation noise alone."""
    usable = [(a, b) for a, b in pairs if a.nats and a.sizes == b.sizes and len(a.nats) == len(b.nats) == len(a.sizes)]
    if not usable or len(usable) != len(pairs) or any(a.sizes != usable[0][0].sizes for a, _ in usable):
        return None
    difference = np.mean([np.subtract(a.nats, b.nats) for a, b in usable], axis=0) / math.log(2)
    return statistics.bootstrap(difference, usable[0][0].sizes, samples=4000)


def say(item: Contrast) -> str:
    """The verdict as a sentence about the two, with numbers."""
    n = len(item.deltas)
    if not n or item.mean is None:
        return f"{item.first} against {item.second}: no pair of finished runs, nothing to say"
    effect = f"{abs(item.mean):.3f} bits per byte"
    if item.low is not None and item.high is not None:
        effect += f" (95 % of {item.low:+.3f} to {item.high:+.3f}, {n} paired seeds)"
    else:
        effect += " (one seed: no interval)"
    side = "lower" if item.mean < 0 else "higher"
    if item.verdict in (statistics.BETTER, statistics.WORSE):
        return f"{item.first} is {item.verdict} than {item.second}: {side} by {effect}"
    if item.verdict == statistics.NO_DIFFERENCE:
        return (
            f"no difference shown between {item.first} and {item.second}: {effect} lies within the margin {item.margin:g}"
        )
    if item.verdict == statistics.TOO_FEW:
        agree = sum(delta * item.mean > 0 for delta in item.deltas)
        return (
            f"too few seeds to say: {item.first} is {side} than {item.second} by {effect} in {agree} of {n}; "
            f"a verdict needs {item.needed_seeds} seeds"
        )
    return f"inconclusive: {item.first} is {side} than {item.second} by {effect}, margin {item.margin:g}"


def noise_floor(runs: Sequence[RunData], protocol: Protocol) -> NoiseFloor | None:
    """The baseline against itself, where such runs were made."""
    again, base = of(runs, protocol.baseline, NOISE), of(runs, protocol.baseline)
    seeds = sorted(set(again) & set(base))
    if not seeds:
        return None
    deltas = [float(again[s].row.bits_per_byte or 0.0) - float(base[s].row.bits_per_byte or 0.0) for s in seeds]
    floor = statistics.noise_floor(deltas, protocol.margin, protocol.alpha)
    result = NoiseFloor(protocol.baseline, deltas, bounded(floor.interval.estimate), bounded(floor.deviation))
    result.largest, result.verdict = bounded(floor.largest), floor.verdict
    result.sentence = (
        f"{protocol.baseline} against itself with other initial weights, same tokens: differences up to {floor.largest:.3f} "
        f"bits per byte over {len(deltas)} seeds"
    )
    if floor.false_alarm:
        result.sentence += f"; the rule called that '{floor.verdict}', a FALSE ALARM: distrust this comparison's verdicts"
    elif math.isfinite(floor.resolution):
        result.sentence += f"; differences below {floor.resolution:.3f} would drown in that"
    return result


def bounded(value: float) -> float | None:
    """The value, or None when it is not finite."""
    return float(value) if math.isfinite(value) else None
