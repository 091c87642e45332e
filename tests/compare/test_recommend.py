"""The last sentence: the choice, its reason, its doubt, and the chooser's limits."""

from __future__ import annotations

import pytest

from orrery.compare.recommend import Limits, overtakes, recommend
from orrery.compare.result import (
    ArchitectureRow,
    ComparisonResult,
    Contrast,
    Curve,
    Floor,
    NoiseFloor,
    Point,
    Protocol,
    Quality,
    Series,
)


def row(label, quality, ms=1.0, state=1000.0, params=300_000, curve=()):
    made = ArchitectureRow(label, label, quality=Quality(mean=quality))
    made.costs.parameters_total = params
    made.costs.decode = Series("t", "ms/token", points=[Point(128.0, ms / 2), Point(2048.0, ms), Point(8192.0, None)])
    made.costs.state = Series("t", "bytes", points=[Point(128.0, state / 4), Point(32768.0, state)])
    made.curve = Curve(x=[float(x) for x, _ in curve], mean=[y for _, y in curve])
    return made


def result(*rows, **more):
    protocol = Protocol(seeds=[1, 2, 3], needed_seeds=6, caveat="early in training: ranks data efficiency, not final quality")
    return ComparisonResult(architectures=list(rows), protocol=protocol, **more)


def against(verdicts):
    return lambda first, second: Contrast(first, second, verdict=verdicts.get((first, second), "worse"))


def test_the_best_is_chosen_with_reason_and_doubt():
    made = result(row("a", 2.6, ms=0.5, state=2048), row("b", 2.8))
    found = recommend(made, against({("b", "a"): "too few seeds to say"}), Limits(), "orrery compare a b --seeds 6")
    assert found.choice == "a" and found.tied == ["b"]
    assert found.sentence == (
        "Take a: it reaches 2.600 bits per byte where the next best, b, reaches 2.800, and decodes at 0.5 ms per token at "
        "2,048 tokens with 2.05 kB of state; but 3 seeds cannot decide (a verdict needs 6), "
        "early in training: ranks data efficiency, not final quality."
    )
    assert found.next_command == "orrery compare a b --seeds 6"


def test_no_difference_is_broken_by_cost():
    made = result(row("a", 2.60, ms=5.0), row("b", 2.61, ms=1.0), row("c", 2.61, ms=0.1), row("d", 2.9, ms=0.01))
    found = recommend(made, against({("b", "a"): "no difference shown", ("c", "a"): "inconclusive"}), Limits())
    assert found.choice == "b" and found.tied == ["a", "c"] and "against c the result is inconclusive" in found.doubt
    assert "no difference in quality was shown between it and a, and it needs 1 ms per decoded token instead of 5 ms" in found.sentence
    near = result(row("a", 2.60, ms=1.1, state=4000), row("b", 2.61, ms=1.0, state=1000))
    found = recommend(near, against({("b", "a"): "no difference shown"}), Limits())
    assert found.choice == "b" and "it needs 1 kB of state instead of 4 kB of state" in found.reason
    equal = result(row("a", 2.60), row("b", 2.61))
    assert recommend(equal, against({("b", "a"): "no difference shown"}), Limits()).choice == "a"


def test_limits_exclude_and_say_why():
    made = result(row("a", 2.5, state=1e6), row("b", 2.6, ms=9.0), row("c", 2.7, params=10**7), row("d", 2.8), row("e", None))
    made.architectures[4].error = "out of memory"
    found = recommend(made, against({}), Limits(max_params=1e6, max_state=1e5, max_ms_per_token=2.0))
    assert found.choice == "d" and found.limits == {"max_params": 1e6, "max_state": 1e5, "max_ms_per_token": 2.0}
    why = {item.architecture: (item.limit, item.why) for item in found.excluded}
    assert why["a"] == ("max_state", "1,000,000 bytes of state at 32,768 tokens, above max_state 100,000")
    assert why["b"] == ("max_ms_per_token", "9 ms at 2,048 tokens, above max_ms_per_token 2")
    assert why["c"][0] == "max_params" and why["e"] == ("failed", "out of memory")


def test_an_unknown_cost_does_not_pass_a_limit():
    made = result(row("a", 2.5))
    made.architectures[0].costs.decode = None
    found = recommend(made, against({}), Limits(max_ms_per_token=1.0))
    assert found.choice is None and "not known" in found.sentence
    assert recommend(made, against({}), Limits()).choice == "a"


def test_nothing_left_is_said():
    found = recommend(result(row("a", None)), against({}), Limits())
    assert found.choice is None and found.sentence.startswith("Nothing can be recommended") and "no run" in found.reason


def test_doubts_about_floors_noise_and_curves():
    falling = [(100, 4.0), (200, 3.6), (400, 3.2), (800, 2.75)]
    flat = [(100, 2.72), (200, 2.70), (400, 2.70), (800, 2.70)]
    made = result(
        row("a", 2.70, curve=flat),
        row("b", 2.75, curve=falling),
        floors=[Floor("Kneser-Ney 5-gram", 2.5), Floor("bigram", 3.9), Floor("none", None)],
        noise_floor=NoiseFloor("a", sentence="... a FALSE ALARM: ..."),
    )
    found = recommend(made, against({}), Limits())
    assert "Kneser-Ney 5-gram, which only counts, reaches 2.500" in found.doubt
    assert "differs from itself" in found.doubt and "b was still falling faster" in found.doubt


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ([(100, 4.0), (200, 3.6), (400, 3.2), (800, 2.8)], True),
        ([(100, 4.0), (200, 3.9), (400, 3.8), (800, 3.7)], False),
        ([(100, 2.9), (200, 2.85), (400, 2.80), (800, 2.80)], False),
        ([], False),
    ],
)
def test_overtaking_is_judged_on_the_last_half(other, expected):
    best = [(100, 2.9), (200, 2.8), (400, 2.75), (800, 2.7)]
    assert overtakes(row("a", 2.7, curve=best), row("b", 2.8, curve=other)) is expected
