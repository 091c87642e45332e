"""From runs to verdicts: curves align, pairs are by seed, failed runs are left out, sentences say what was seen."""

from __future__ import annotations

import math

import numpy as np
import pytest

from orrery.compare import analyse
from orrery.compare.analyse import NOISE, RunData
from orrery.compare.result import Protocol, RunRow


def run(label, seed, value, role=analyse.COMPARISON, status="done", points=(), nats=(), sizes=()):
    row = RunRow(label, seed, status, value if status == "done" else None, role=role)
    return RunData(row, list(points), list(nats), list(sizes))


def runs_of(label, values, **more):
    return [run(label, seed, value, **more) for seed, value in enumerate(values, 1)]


def protocol(n: int, m: int = 1) -> Protocol:
    return Protocol(seeds=list(range(1, n + 1)), baseline="base", margin=0.02, family_size=m)


def test_quality_counts_finished_runs_only():
    runs = [run("a", 1, 2.0), run("a", 2, 2.2), run("a", 3, 9.0, status="failed"), run("a", 1, 5.0, role=NOISE)]
    quality = analyse.quality(runs, "a")
    assert quality.seeds == {"1": 2.0, "2": 2.2} and quality.mean == pytest.approx(2.1)
    assert quality.deviation == pytest.approx(np.std([2.0, 2.2], ddof=1)) and quality.low < 2.0 < 2.2 < quality.high
    assert analyse.quality(runs, "b").mean is None
    single = analyse.quality(runs[:1], "a")
    assert (single.mean, single.deviation, single.low, single.high) == (2.0, None, None, None)


def test_curves_align_over_seeds():
    runs = [
        run("a", 1, 2.0, points=[(10, 3.0), (20, 2.0)]),
        run("a", 2, None, status="interrupted", points=[(10, 4.0)]),
        run("a", 3, 2.0),
        run("b", 1, 2.0, points=[(10, 1.0)]),
    ]
    curve = analyse.curve(runs, "a")
    assert curve.x == [10.0, 20.0] and curve.values == {"1": [3.0, 2.0], "2": [4.0, None]}
    assert curve.mean == [3.5, None] and curve.low == [3.0, 2.0] and curve.high == [4.0, 2.0]
    assert analyse.curve(runs, "c").x == []


def test_primary_contrasts_are_paired_by_seed_against_the_baseline():
    random = np.random.default_rng(0)
    base = 2.6 + random.normal(0, 0.05, 8)
    runs = runs_of("base", base) + runs_of("good", base - 0.2 + random.normal(0, 0.005, 8))
    runs += runs_of("same", base + random.normal(0, 0.003, 8)) + runs_of("bad", base + 0.3 + random.normal(0, 0.01, 8))
    found = {item.first: item for item in analyse.contrasts(runs, ["base", "good", "same", "bad"], protocol(8, 3))}
    assert {label: item.verdict for label, item in found.items()} == {
        "good": "better",
        "same": "no difference shown",
        "bad": "worse",
    }
    good = found["good"]
    assert good.second == "base" and good.primary and good.seeds == list(range(1, 9)) and good.needed_seeds == 7
    assert good.p == 2.0**-7 and good.p_adjusted == pytest.approx(3 * 2.0**-7) and "exact" in good.p_method
    assert good.low < good.mean < good.high < 0 and "paired t" in good.interval
    assert good.sentence.startswith("good is better than base: lower by 0.")
    assert "within the margin 0.02" in found["same"].sentence


def test_three_seeds_say_that_they_are_few():
    runs = runs_of("base", [2.6, 2.7, 2.65]) + runs_of("good", [2.3, 2.41, 2.34])
    (item,) = analyse.contrasts(runs, ["base", "good"], protocol(3))
    assert item.verdict == "too few seeds to say" and item.needed_seeds == 6
    assert "in 3 of 3" in item.sentence and "needs 6 seeds" in item.sentence


def test_failed_runs_leave_pairs_out_and_do_not_shrink_the_family():
    runs = runs_of("base", [2.6] * 6) + [run("good", s, 2.0 + 0.001 * s) for s in range(2, 7)]
    runs += [run("good", 1, None, status="oom")]
    found = analyse.contrasts(runs, ["base", "good", "gone"], protocol(6, 2))
    assert found[0].seeds == [2, 3, 4, 5, 6] and found[0].verdict == "too few seeds to say"
    assert found[0].p_adjusted == pytest.approx(2 * 2.0**-4)
    assert found[1].deltas == [] and "nothing to say" in found[1].sentence and found[1].mean is None


def test_the_secondary_contrast_is_between_the_two_best_and_pays_for_being_chosen():
    runs = runs_of("base", [3.0] * 8) + runs_of("a", [2.0 + 0.001 * i for i in range(8)]) + runs_of("b", [2.5] * 8)
    found = analyse.contrasts(runs, ["base", "a", "b"], protocol(8, 2))
    assert [(item.first, item.second, item.primary) for item in found] == [
        ("a", "base", True),
        ("b", "base", True),
        ("a", "b", False),
    ]
    assert found[2].verdict == "better" and found[2].p_adjusted == pytest.approx(3 * 2.0**-7)


def test_evaluation_noise_over_documents():
    random = np.random.default_rng(1)
    sizes = random.integers(100, 2000, 60).tolist()
    shared = random.normal(0, 30, 60)
    runs = []
    for label, rate in (("base", 1.9), ("good", 1.8)):
        for seed in (1, 2):
            own = random.normal(0, 2, 60)
            nats = (np.array(sizes) * rate + shared + own - own.mean()).tolist()
            runs.append(run(label, seed, sum(nats) / math.log(2) / sum(sizes), nats=nats, sizes=sizes))
    (item,) = analyse.contrasts(runs, ["base", "good"], protocol(2))
    expected = -0.1 / math.log(2)
    assert item.documents == 60 and item.documents_low <= expected <= item.documents_high
    assert item.documents_high - item.documents_low < 0.01  # what both share has cancelled
    runs[0].sizes[0] += 1
    (item,) = analyse.contrasts(runs, ["base", "good"], protocol(2))
    assert item.documents_low is None and item.documents == 0


def test_noise_floor_and_its_false_alarm():
    base = runs_of("base", [2.6, 2.61, 2.62, 2.6, 2.61, 2.63])
    quiet = [run("base", s, r.row.bits_per_byte + 0.002 * (-1) ** s, role=NOISE) for s, r in enumerate(base, 1)]
    floor = analyse.noise_floor(base + quiet, protocol(6))
    assert floor.largest == pytest.approx(0.002) and floor.verdict == "no difference shown"
    assert "FALSE ALARM" not in floor.sentence and "would drown" in floor.sentence
    loud = [run("base", s, r.row.bits_per_byte - 0.3 - 0.001 * s, role=NOISE) for s, r in enumerate(base, 1)]
    assert "FALSE ALARM" in analyse.noise_floor(base + loud, protocol(6)).sentence
    assert analyse.noise_floor(base, protocol(6)) is None


def test_false_alarms_of_the_whole_pipeline():
    """Six architectures that are all the same thing, eight seeds: any better or worse is false; at most 5 % may be."""
    random = np.random.default_rng(2)
    labels, alarms, trials = ["base", *"abcde"], 0, 250
    for _ in range(trials):
        runs = [r for label in labels for r in runs_of(label, 2.6 + random.normal(0, 0.1, 8))]
        setting = protocol(8, 5)
        setting.margin = 0.0
        found = [item for item in analyse.contrasts(runs, labels, setting) if item.primary]
        alarms += any(item.verdict in ("better", "worse") for item in found)
    assert alarms / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)
