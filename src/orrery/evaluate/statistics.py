r"""The statistics of a comparison: paired differences, intervals, a margin of relevance, and a verdict in plain words.

What is compared are paired deltas: `delta_i = metric(first, seed i) - metric(second, seed i)`, both arms trained on the
same tokens in the same order. The whole rule, applied by :func:`decide` to a family of m primary contrasts that is
stated before the runs:

  1. p: exact two-sided sign-flip test of each contrast (all 2^n assignments up to n = 20, Monte Carlo beyond, stated).
     Its smallest possible value is 2^(1-n), so fewer than `least_seeds(m)` seeds can never decide.
  2. Holm's step-down adjustment of the m values of p.
  3. interval: paired t, 95 %, of the mean delta.
  4. verdict (:func:`verdict`): the interval wholly inside +-margin: "no difference shown"; too few seeds for step 1:
     "too few seeds to say"; the interval wholly beyond the margin and adjusted p <= alpha: "better" or "worse";
     everything else: "inconclusive".

The t-interval is kept at any n: with ten or twenty paired runs a bootstrap over *seeds* covers less than it states.
The bootstrap (BCa: Efron 1987, doi 10.1080/01621459.1987.10478410) serves evaluation noise, over *documents*, of which
there are hundreds. Holm: Scand. J. Statist. 6 (1979) 65-70. Only numpy and the standard library are used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

EXACT_UP_TO = 20  # 2^19 distinct absolute sums: 4 MB, some milliseconds
VERDICTS = ("better", "worse", "no difference shown", "too few seeds to say", "inconclusive")
BETTER, WORSE, NO_DIFFERENCE, TOO_FEW, INCONCLUSIVE = VERDICTS
EQUIVALENCE_SEEDS = 3  # two deltas that happen to agree say nothing about their spread
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Interval:
    """An interval of confidence for `estimate`; unbounded (infinite) ends say that nothing can be told."""

    estimate: float
    low: float
    high: float
    level: float
    method: str
    n: int

    def within(self, margin: float) -> bool:
        """Whether the whole interval lies inside [-margin, margin]."""
        return -margin <= self.low and self.high <= margin


@dataclass(frozen=True)
class SignFlip:
    """A two-sided sign-flip test: `p`, the number of assignments looked at, and whether that was all of them."""

    p: float
    assignments: int
    exact: bool

    @property
    def method(self) -> str:
        """How p was obtained, for the record."""
        return f"{'exact' if self.exact else 'Monte Carlo'} sign-flip, {self.assignments} assignments"


@dataclass(frozen=True)
class Decision:
    """One contrast after the whole rule."""

    interval: Interval
    p: float
    p_adjusted: float
    p_method: str
    needed_seeds: int
    verdict: str


@dataclass(frozen=True)
class NoiseFloor:
    """What a difference of nothing looks like: a baseline against itself with other initialisations."""

    interval: Interval
    deviation: float  # sample standard deviation of one paired delta
    largest: float  # largest absolute delta
    resolution: float  # half-width of the t-interval that as many seeds give: smaller differences drown
    verdict: str
    false_alarm: bool  # the rule declared a difference where there is none


# ---------------------------------------------------------------------------------------------------- distributions


def t_cdf(t: float, df: float) -> float:
    """P(T <= t) of Student's t with `df` degrees of freedom."""
    tail = _t_tail(abs(t), df)
    return 1.0 - tail if t > 0 else tail


def t_quantile(p: float, df: float) -> float:
    """The t with P(T <= t) = p, relative error below 1e-8 (tests: 1e-10) for df >= 1 and 1e-12 < p < 1 - 1e-12.

    Raises:
        ValueError: when p is not inside (0, 1) or df is not positive.
    """
    if not 0.0 < p < 1.0 or not df > 0:
        raise ValueError(f"t quantile needs 0 < p < 1 and df > 0, not p={p}, df={df}")
    if p == 0.5:
        return 0.0
    tail = min(p, 1.0 - p)
    low, high = 0.0, 1.0
    while _t_tail(high, df) > tail:
        low, high = high, high * 2.0
    t = 0.5 * (low + high)
    for _ in range(200):  # Newton's step on log(tail), kept inside the bracket by bisection
        found = _t_tail(t, df)
        low, high = (t, high) if found > tail else (low, t)
        step = t + (math.log(found) - math.log(tail)) * found / _t_density(t, df)
        new = step if low < step < high else 0.5 * (low + high)
        if abs(new - t) <= 1e-14 * t:
            break
        t = new
    return t if p > 0.5 else -t


def _t_density(t: float, df: float) -> float:
    log = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi)
    return math.exp(log - (df + 1) / 2 * math.log1p(t * t / df))


def _t_tail(t: float, df: float) -> float:
    """P(T > t), t >= 0: half of the regularised incomplete beta function I_x(df/2, 1/2) at x = df / (df + t^2)."""
    if t == 0.0:
        return 0.5
    square = t * t
    return 0.5 * _beta(df / 2, 0.5, df / (df + square), square / (df + square))


def _beta(a: float, b: float, x: float, y: float) -> float:
    """I_x(a, b) with y = 1 - x given apart, so that x near 1 loses no digits."""
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(y))
    if x < (a + 1) / (a + b + 2):
        return front * _beta_fraction(a, b, x) / a
    return 1.0 - front * _beta_fraction(b, a, y) / b


def _beta_fraction(a: float, b: float, x: float) -> float:
    """Continued fraction of the incomplete beta function (DLMF 8.17.22) by the modified Lentz method."""
    tiny = 1e-300
    c, d = 1.0, 1.0 - (a + b) * x / (a + 1)
    d = 1.0 / (d if abs(d) > tiny else tiny)
    value = d
    for m in range(1, 10_000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 + term * d
            c = 1.0 + term / c
            d = 1.0 / (d if abs(d) > tiny else tiny)
            c = c if abs(c) > tiny else tiny
            value *= d * c
        if abs(d * c - 1.0) < 1e-16:
            break
    return value


# ---------------------------------------------------------------------------------------------------- seeds


def t_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Interval of the mean of `values` (n,), a paired t-interval when they are paired deltas; unbounded below two."""
    data = _finite(values)
    n = data.size
    mean = float(data.mean()) if n else math.nan
    method = f"paired t, {100 * level:g} %"
    if n < 2:
        return Interval(mean, -math.inf, math.inf, level, method, n)
    half = t_quantile(0.5 + level / 2, n - 1) * float(data.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, level, method, n)


def sign_flip(deltas: ArrayLike, samples: int = 200_000, seed: int = 0) -> SignFlip:
    """Two-sided sign-flip test of paired deltas (n,): how often |sum of +-delta| reaches the observed |sum|.

    Args:
        deltas: paired differences; under the null each is as likely to be of the other sign.
        samples: assignments drawn when n > 20; the observed one is counted in, so p is never zero.
        seed: of those draws.
    """
    data = _finite(deltas)
    n = data.size
    if n == 0:
        return SignFlip(1.0, 1, True)
    slack = 1e-12 * float(np.abs(data).sum())  # ties must count although sums are rounded
    reach = abs(float(data.sum())) - slack
    if n <= EXACT_UP_TO:
        sums = np.array([data[0]])  # the first sign is held: an assignment and its negative have the same |sum|
        for delta in data[1:]:
            sums = np.concatenate([sums + delta, sums - delta])
        return SignFlip(float(np.mean(np.abs(sums) >= reach)), 2**n, True)
    random = np.random.Generator(np.random.Philox(seed))
    hits = 1
    for start in range(0, samples, 20_000):
        signs = random.integers(0, 2, size=(min(20_000, samples - start), n), dtype=np.int8) * 2.0 - 1.0
        hits += int(np.count_nonzero(np.abs(signs @ data) >= reach))
    return SignFlip(hits / (samples + 1), samples, False)


def holm(values: Sequence[float]) -> list[float]:
    """Holm's adjusted p of a family, in the order given: step-down, monotone, never above one."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    adjusted = [0.0] * len(values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = highest
    return adjusted


def least_seeds(contrasts: int = 1, alpha: float = 0.05) -> int:
    """Least n with 2^(1-n) <= alpha / m: below it the sign-flip test of m primary contrasts can decide nothing."""
    n = 1
    while 2.0 ** (1 - n) > alpha / max(1, contrasts):
        n += 1
    return n


def verdict(
    interval: Interval,
    margin: float,
    n: int,
    m: int,
    p_adjusted: float | None = None,
    alpha: float = 0.05,
    lower_is_better: bool = True,
) -> str:
    """What may be said of `first` against `second`, from the interval of `first - second`: one of `VERDICTS`.

    Args:
        interval: of the mean paired delta.
        margin: smallest difference that matters, in the metric's unit, >= 0.
        n: paired seeds.
        m: primary contrasts of the family.
        p_adjusted: Holm-adjusted p; where given it must not exceed alpha for "better" or "worse".
        lower_is_better: for bits per byte; False for accuracies.
    """
    if n >= EQUIVALENCE_SEEDS and interval.within(margin):
        return NO_DIFFERENCE
    if n < least_seeds(m, alpha):
        return TOO_FEW
    if p_adjusted is None or p_adjusted <= alpha:
        if interval.high < -margin:
            return BETTER if lower_is_better else WORSE
        if interval.low > margin:
            return WORSE if lower_is_better else BETTER
    return INCONCLUSIVE


def decide(
    contrasts: Sequence[ArrayLike],
    margin: float,
    alpha: float = 0.05,
    lower_is_better: bool = True,
    family: int | None = None,
) -> list[Decision]:
    """The whole rule over a family of contrasts, each given by its paired deltas.

    Args:
        contrasts: one sequence of deltas per primary contrast; lengths may differ where runs failed.
        family: size of the family as stated before the runs, when larger than the contrasts that could be made
            (failed runs do not shrink it).
    """
    m = max(family or 0, len(contrasts))
    tests = [sign_flip(deltas) for deltas in contrasts]
    adjusted = holm([test.p for test in tests] + [1.0] * (m - len(tests)))
    decisions = []
    for deltas, test, p in zip(contrasts, tests, adjusted, strict=False):
        interval = t_interval(deltas, 1.0 - alpha)
        said = verdict(interval, margin, interval.n, m, p, alpha, lower_is_better)
        decisions.append(Decision(interval, test.p, p, test.method, least_seeds(m, alpha), said))
    return decisions


def noise_floor(deltas: ArrayLike, margin: float, alpha: float = 0.05) -> NoiseFloor:
    """The rule turned on a baseline against itself: its deltas, and whether it would have cried wolf."""
    data = _finite(deltas)
    (decision,) = decide([data], margin, alpha)
    deviation = float(data.std(ddof=1)) if data.size > 1 else math.nan
    half = decision.interval.high - decision.interval.estimate
    largest = float(np.abs(data).max()) if data.size else math.nan
    alarm = decision.verdict in (BETTER, WORSE)
    return NoiseFloor(decision.interval, deviation, largest, half, decision.verdict, alarm)


# ---------------------------------------------------------------------------------------------------- documents


def bootstrap(
    values: ArrayLike,
    weights: ArrayLike | None = None,
    level: float = 0.95,
    samples: int = 10_000,
    seed: int = 0,
    method: str = "bca",
) -> Interval:
    """Bootstrap interval over documents of `sum(values) / sum(weights)` (the mean when no weights are given).

    With `values` the difference of two models' bits on each document and `weights` the document's bytes this is the
    paired interval of their difference in bits per byte.

    Args:
        values: (N,) one number per document.
        weights: (N,) positive size of each document.
        method: "bca" (bias-corrected and accelerated) or "percentile".

    Raises:
        ValueError: on another method, unequal lengths, or weights that are not positive.
    """
    if method not in ("bca", "percentile"):
        raise ValueError(f"bootstrap method must be 'bca' or 'percentile', not '{method}'")
    data = np.asarray(values, dtype=np.float64)
    size = np.ones_like(data) if weights is None else np.asarray(weights, dtype=np.float64)
    if data.shape != size.shape or data.ndim != 1 or bool(np.any(size <= 0)):
        raise ValueError("bootstrap needs one value and one positive weight per document")
    n = data.size
    title = "BCa" if method == "bca" else "percentile"
    name = f"{title} bootstrap over {n} documents, {100 * level:g} %, {samples} resamples"
    estimate = float(data.sum() / size.sum()) if n else math.nan
    if n < 2:
        return Interval(estimate, -math.inf, math.inf, level, name, n)
    draws = _resample(data, size, samples, seed)
    ends = np.array([(1 - level) / 2, (1 + level) / 2])
    if method == "bca":
        ends = _bca_ends(ends, draws, estimate, (data.sum() - data) / (size.sum() - size))
    low, high = (float(end) for end in np.quantile(draws, ends))
    return Interval(estimate, low, high, level, name, n)


def _resample(data: NDArray[np.float64], size: NDArray[np.float64], samples: int, seed: int) -> NDArray[np.float64]:
    random = np.random.Generator(np.random.Philox(seed))
    rows = max(1, 2_000_000 // data.size)
    draws = np.empty(samples)
    for start in range(0, samples, rows):
        stop = min(samples, start + rows)
        index = random.integers(0, data.size, size=(stop - start, data.size))
        draws[start:stop] = data[index].sum(1) / size[index].sum(1)
    return draws


def _bca_ends(
    ends: NDArray[np.float64], draws: NDArray[np.float64], estimate: float, jackknife: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Efron 1987: quantile levels shifted by the bias z0 and stretched by the acceleration a."""
    below = (np.count_nonzero(draws < estimate) + np.count_nonzero(draws <= estimate)) / (2 * draws.size)
    if not 0.0 < below < 1.0:
        return ends  # every draw equals the estimate or lies on one side: nothing to correct by
    z0 = _NORMAL.inv_cdf(below)
    away = jackknife.mean() - jackknife
    spread = float((away**2).sum())
    a = float((away**3).sum()) / (6.0 * spread**1.5) if spread > 0 else 0.0
    corrected = []
    for end in ends:
        z = z0 + _NORMAL.inv_cdf(float(end))
        corrected.append(_NORMAL.cdf(z0 + z / (1.0 - a * z)))
    return np.array(corrected)


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    data = np.asarray(values, dtype=np.float64).reshape(-1)
    if not bool(np.all(np.isfinite(data))):
        raise ValueError("statistics need finite values: a failed run must be left out, not counted as a number")
    return data
