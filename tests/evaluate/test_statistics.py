"""Statistics against scipy, against enumeration, and against synthetic experiments whose truth is known."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats

from orrery.evaluate import statistics as own


@pytest.mark.parametrize("df", [1, 2, 3, 4.5, 5, 7, 9, 10, 29, 100, 1000, 123456])
def test_t_quantile_matches_scipy(df):
    for p in (1e-10, 1e-6, 0.001, 0.025, 0.3, 0.4999, 0.5, 0.50001, 0.7, 0.95, 0.975, 0.99583333, 0.9999, 1 - 1e-9):
        expected = scipy_stats.t.ppf(p, df)
        if p < 0.5:  # the reflected value: 1 - p itself is rounded for tiny p
            assert own.t_quantile(p, df) == pytest.approx(expected, rel=1e-8), (p, df)
        else:
            assert own.t_quantile(p, df) == pytest.approx(expected, rel=1e-8, abs=1e-15), (p, df)
        assert own.t_cdf(own.t_quantile(p, df), df) == pytest.approx(p, rel=1e-9)


@pytest.mark.parametrize("df", [1, 3, 30, 5000])
def test_t_cdf_matches_scipy(df):
    for t in (-40.0, -3.0, -0.1, 0.0, 1e-9, 0.5, 2.0, 12.7, 300.0):
        assert own.t_cdf(t, df) == pytest.approx(scipy_stats.t.cdf(t, df), rel=1e-9)


@pytest.mark.parametrize(("p", "df"), [(0.0, 3), (1.0, 3), (0.5, 0), (0.5, -1), (float("nan"), 3)])
def test_t_quantile_refuses_what_has_none(p, df):
    with pytest.raises(ValueError, match="t quantile"):
        own.t_quantile(p, df)


def test_paired_t_interval_matches_scipy():
    random = np.random.default_rng(0)
    for n in (2, 3, 6, 9, 25):
        first, second = random.normal(2.6, 0.02, n), random.normal(2.7, 0.02, n)
        interval = own.t_interval(first - second, 0.95)
        expected = scipy_stats.ttest_rel(first, second).confidence_interval(0.95)
        assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
        assert interval.n == n and interval.estimate == pytest.approx((first - second).mean())


def test_one_delta_gives_an_unbounded_interval():
    assert own.t_interval([0.3]) == own.Interval(0.3, -math.inf, math.inf, 0.95, "paired t, 95 %", 1)
    assert math.isnan(own.t_interval([]).estimate)


@pytest.mark.parametrize("n", [1, 2, 5, 8, 10])
def test_sign_flip_equals_enumeration_and_scipy(n):
    random = np.random.default_rng(n)
    for shift in (0.0, 0.5, 3.0):
        deltas = np.round(random.normal(shift, 1.0, n), 1)  # rounding makes ties, which must count
        found = own.sign_flip(deltas)
        reach = abs(deltas.sum()) - 1e-9
        counted = np.mean([abs(np.dot(signs, deltas)) >= reach for signs in itertools.product((-1, 1), repeat=n)])
        assert found.exact and found.assignments == 2**n and found.p == pytest.approx(counted, abs=1e-15)
        if n > 1:
            expected = scipy_stats.permutation_test(
                (deltas,),
                lambda x, axis: np.abs(x.sum(axis)),
                permutation_type="samples",
                n_resamples=np.inf,
                alternative="greater",
            )
            assert found.p == pytest.approx(expected.pvalue, abs=1e-12)


def test_sign_flip_is_exact_up_to_twenty_and_stated_beyond():
    random = np.random.default_rng(3)
    deltas = random.normal(0.4, 1.0, 20)
    exact = own.sign_flip(deltas)
    assert exact.exact and "exact" in exact.method and exact.assignments == 2**20
    longer = np.append(deltas, 1e-13)  # one more delta of no weight: the same p, by sampling
    sampled = own.sign_flip(longer)
    assert not sampled.exact and "Monte Carlo" in sampled.method
    assert sampled.p == pytest.approx(exact.p, abs=4 * math.sqrt(exact.p / sampled.assignments))
    assert own.sign_flip(np.full(30, 1.0)).p > 0.0


def test_sign_flip_floor_is_two_to_the_one_minus_n():
    for n in range(1, 12):
        assert own.sign_flip(np.linspace(1, 2, n)).p == 2.0 ** (1 - n)
    assert own.sign_flip([0.0, 0.0, 0.0]).p == 1.0 and own.sign_flip([]).p == 1.0


def test_failed_runs_must_be_left_out():
    with pytest.raises(ValueError, match="left out"):
        own.sign_flip([0.1, float("nan")])
    with pytest.raises(ValueError, match="left out"):
        own.t_interval([0.1, float("inf")])


def test_holm_by_its_definition_and_by_a_published_shape():
    assert own.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    random = np.random.default_rng(1)
    for size in (1, 2, 5, 9):
        p = list(random.uniform(0, 0.3, size))
        adjusted = own.holm(p)
        for index, value in enumerate(p):  # definition: the largest (m - rank + 1) p over those not larger
            ranks = sorted(p)
            steps = [min(1.0, (size - rank) * q) for rank, q in enumerate(ranks) if q <= value]
            assert adjusted[index] == pytest.approx(max(steps))
    assert own.holm([]) == [] and own.holm([0.9, 0.9]) == [1.0, 1.0]


def test_least_seeds_are_the_design_s_figures():
    assert [own.least_seeds(m) for m in (1, 6, 12)] == [6, 8, 9]
    for m in range(1, 200):
        n = own.least_seeds(m)
        assert 2.0 ** (1 - n) <= 0.05 / m < 2.0 ** (2 - n)


def interval(low: float, high: float, n: int = 8) -> own.Interval:
    return own.Interval((low + high) / 2, low, high, 0.95, "paired t, 95 %", n)


@pytest.mark.parametrize(
    ("low", "high", "n", "m", "p", "expected"),
    [
        (-0.10, -0.05, 8, 6, 0.04, "better"),
        (0.05, 0.10, 8, 6, 0.04, "worse"),
        (-0.10, -0.05, 8, 6, 0.06, "inconclusive"),  # Holm says no
        (-0.10, -0.05, 7, 6, None, "too few seeds to say"),
        (-0.10, -0.05, 6, 1, None, "better"),
        (-0.10, -0.05, 5, 1, None, "too few seeds to say"),
        (-0.019, 0.02, 8, 6, 1.0, "no difference shown"),
        (-0.019, 0.02, 3, 6, 1.0, "no difference shown"),
        (-0.001, 0.001, 2, 1, None, "too few seeds to say"),  # two deltas do not show their spread
        (-0.10, -0.02, 8, 1, 0.01, "inconclusive"),  # touches the margin
        (-0.10, 0.05, 8, 1, 1.0, "inconclusive"),
        (-math.inf, math.inf, 1, 1, None, "too few seeds to say"),
    ],
)
def test_verdict_table(low, high, n, m, p, expected):
    assert own.verdict(interval(low, high, n), 0.02, n, m, p) == expected
    mirrored = own.verdict(interval(-high, -low, n), 0.02, n, m, p, lower_is_better=False)
    assert mirrored == expected


def false_alarms(draw, n: int, m: int, families: int = 1500) -> float:
    """Share of families of m null contrasts against one shared baseline in which any is called better or worse."""
    alarms = 0
    for _ in range(families):
        baseline = draw(n)
        contrasts = [draw(n) - baseline for _ in range(m)]
        decisions = own.decide(contrasts, margin=0.0)
        alarms += any(d.verdict in ("better", "worse") for d in decisions)
    return alarms / families


@pytest.mark.parametrize(("n", "m"), [(6, 1), (8, 6), (9, 3)])
@pytest.mark.parametrize("shape", ["normal", "heavy", "skewed"])
def test_false_alarm_rate_of_the_whole_rule_stays_below_alpha(n, m, shape):
    """Even with no margin at all, the hardest case; three standard errors of the simulation are allowed above 5 %."""
    random = np.random.default_rng(n * 100 + m)
    draw = {
        "normal": lambda k: random.normal(2.6, 0.02, k),
        "heavy": lambda k: 2.6 + 0.02 * random.standard_t(2, k),
        "skewed": lambda k: 2.6 + 0.02 * random.lognormal(0, 1, k),
    }[shape]
    families = 1500 if m == 1 else 500
    rate = false_alarms(draw, n, m, families)
    assert rate <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / families), rate


def test_false_alarm_rate_at_the_edge_of_the_margin():
    """A true difference exactly at the margin is called relevant in at most 2.5 % of experiments (one-sided)."""
    random = np.random.default_rng(5)
    calls = [own.decide([random.normal(-0.02, 0.01, 8)], margin=0.02)[0].verdict for _ in range(2000)]
    assert calls.count("better") / 2000 <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / 2000)
    assert calls.count("worse") == 0


def test_the_rule_finds_what_is_there():
    random = np.random.default_rng(6)
    found = [own.decide([random.normal(-0.2, 0.02, 8)] * 1, margin=0.02, family=6)[0].verdict for _ in range(300)]
    assert found.count("better") >= 295
    same = [own.decide([random.normal(0.0, 0.005, 8)], margin=0.02)[0].verdict for _ in range(300)]
    assert same.count("no difference shown") >= 295
    few = own.decide([random.normal(-0.2, 0.02, 3)], margin=0.02)[0]
    assert few.verdict == "too few seeds to say" and few.needed_seeds == 6


def test_a_family_stated_before_the_runs_does_not_shrink():
    deltas = np.linspace(-0.3, -0.2, 7)
    assert own.decide([deltas], 0.02)[0].verdict == "better"
    assert own.decide([deltas], 0.02, family=6)[0].verdict == "too few seeds to say"
    assert own.decide([deltas], 0.02, family=6)[0].p_adjusted == pytest.approx(6 * 2.0**-6)


def test_noise_floor_of_a_baseline_against_itself():
    random = np.random.default_rng(7)
    deltas = random.normal(0, 0.01, 8)
    floor = own.noise_floor(deltas, margin=0.02)
    assert floor.deviation == pytest.approx(deltas.std(ddof=1)) and floor.largest == pytest.approx(np.abs(deltas).max())
    assert not floor.false_alarm and floor.resolution == pytest.approx(floor.interval.high - deltas.mean())
    assert own.noise_floor(deltas + 1.0, margin=0.02).false_alarm
    assert own.noise_floor([], 0.02).verdict == "too few seeds to say"


@pytest.mark.parametrize("method", ["BCa", "percentile"])
def test_bootstrap_matches_scipy(method):
    random = np.random.default_rng(8)
    nats = random.lognormal(0, 1, 150)
    sizes = random.integers(50, 5000, 150).astype(float)
    found = own.bootstrap(nats, sizes, samples=40_000, method=method.lower())
    expected = scipy_stats.bootstrap(
        (nats, sizes),
        lambda v, w, axis: v.sum(axis) / w.sum(axis),
        paired=True,
        n_resamples=40_000,
        method=method,
        rng=9,
        batch=2000,
    ).confidence_interval
    width = expected.high - expected.low
    assert found.low == pytest.approx(expected.low, abs=0.02 * width)
    assert found.high == pytest.approx(expected.high, abs=0.02 * width)
    assert found.estimate == pytest.approx(nats.sum() / sizes.sum()) and found.n == 150
    assert "150 documents" in found.method


def test_bootstrap_is_deterministic_and_handles_the_degenerate():
    values = np.random.default_rng(0).normal(size=40)
    assert own.bootstrap(values) == own.bootstrap(values)
    assert own.bootstrap(values) != own.bootstrap(values, seed=1)
    same = own.bootstrap(np.full(30, 2.0))
    assert (same.low, same.high) == (2.0, 2.0)
    assert own.bootstrap([1.0]).high == math.inf
    with pytest.raises(ValueError, match="positive weight"):
        own.bootstrap([1.0, 2.0], [1.0, 0.0])
    with pytest.raises(ValueError, match="'bca' or 'percentile'"):
        own.bootstrap([1.0, 2.0], method="basic")


def test_bootstrap_interval_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(10)
    covered = 0
    for trial in range(300):
        found = own.bootstrap(random.exponential(1.0, 120), samples=800, seed=trial)
        covered += found.low <= 1.0 <= found.high
    assert 0.95 - 3.5 * math.sqrt(0.95 * 0.05 / 300) <= covered / 300 <= 1.0


def test_words_and_weight():
    """The statistics need neither torch nor scipy, and no sentence of theirs uses the word that settles nothing."""
    root = Path(own.__file__).parents[1]
    word = "signific" + "ant"
    for file in [Path(own.__file__), *sorted((root / "compare").rglob("*.py"))]:
        assert word not in file.read_text(encoding="utf-8").lower(), file
    code = "import sys, orrery.evaluate.statistics; print([m for m in ('torch', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
