"""From counts to probabilities: modified Kneser-Ney, Good-Turing with Katz's back-off, stupid back-off.

Each gives two numbers per n-gram, as an ARPA file has them: P(w | h) of the n-grams that were seen, and the back-off weight
b(h) by which P(w | h') counts for the others. h' is h without its first token; 1/V stands below the unigrams.

    kneser-ney     P(w|h) = max(c(hw) - D(c(hw)), 0) / c(h.) + b(h) P(w|h')
                   b(h)   = (D1 N1(h.) + D2 N2(h.) + D3 N3+(h.)) / c(h.)
                   Y = n1/(n1 + 2 n2);  Di = i - (i+1) Y n(i+1)/n(i)           per order, from counts of counts
                   c: occurrences at the highest order and of n-grams that open a document; else how many different
                   tokens were seen before hw. Interpolated, three discounts: Chen and Goodman 1998, cmp-lg/9606011.
    good-turing    P(w|h) = d(c) c(hw) / c(h.);  d(c) = (c*/c - A) / (1 - A) for c <= 5, else 1;  A = 6 n6/n1 (Katz 1987)
                   c* = (c+1) n(c+1)/n(c), or the same with the straight line through log n for n, from the c on where
                   the two no longer differ: the simple Good-Turing of Gale and Sampson 1995
                   b(h) so that everything sums to one
    stupid-backoff S(w|h) = c(hw) / c(h.), b(h) = 0.4: scores, not probabilities; Brants et al. 2007

Small texts: where n1, n2 or n3 of an order is zero, or a discount falls outside (0, i], Kneser-Ney takes (0.5, 1, 1.5) for
that order: the figures of KenLM's `--discount_fallback`. Good-Turing takes d(c) = c/(c+0.5) where an order has no line or
a d(c) outside (0, 1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from orrery.core.errors import ConfigError, suggest
from orrery.ngram.threads import spread
from orrery.ngram.trie import Floats, Ints, Trie, backend_for

FALLBACK = (0.5, 1.0, 1.5)
KATZ_LIMIT = 5
STUPID = 0.4
Smoothed = tuple[Floats, Floats, dict[str, Any]]


def smooth(trie: Trie, method: str, dtype: Any = np.float32, backend: str | None = None) -> Smoothed:
    """Probability (G,), back-off weight (offsets[n-1],) and what was estimated, for a method of this file.

    Raises:
        ConfigError: for an unknown method.
    """
    if method not in METHODS:
        raise ConfigError(f"unknown smoothing '{method}'.{suggest(method, METHODS)} Known: {', '.join(METHODS)}")
    return METHODS[method](trie, dtype, backend)


def kneser_ney(trie: Trie, dtype: Any = np.float32, backend: str | None = None) -> Smoothed:
    """Interpolated modified Kneser-Ney; the facts name the discounts of each order and whether they are the fallback."""
    counts = trie.continuations(backend)
    probability, backoff = np.empty(len(counts), dtype=dtype), np.ones(int(trie.offsets[-2]), dtype=dtype)
    found, fallen = [], []
    for k in range(1, trie.order + 1):
        here = trie.nodes(k)
        discounts, usual = chen_goodman(counts[here])
        found.append(list(discounts))
        if not usual:
            fallen.append(k)
        if k == 1:
            probability[here] = _unigrams(trie, counts[here], discounts)
        elif backend_for(len(counts), backend) == "numba":
            _interpolate_compiled(trie, k, counts, discounts, probability, backoff)
        else:
            _interpolate(trie, k, counts, discounts, probability, backoff)
    return probability, backoff, {"discounts": found, "fallback_orders": fallen}


def chen_goodman(counts: Ints) -> tuple[tuple[float, float, float], bool]:
    """D1, D2, D3+ of the counts of one order, and whether they are Chen and Goodman's (False: the fallback)."""
    n = np.bincount(np.minimum(counts, 5), minlength=6)
    if not (n[1] and n[2] and n[3]):
        return FALLBACK, False
    y = n[1] / (n[1] + 2.0 * n[2])
    d1, d2, d3 = (float(i - (i + 1) * y * n[i + 1] / n[i]) for i in (1, 2, 3))
    if not (0 < d1 <= 1 and 0 < d2 <= 2 and 0 < d3 <= 3):
        return FALLBACK, False
    return (d1, d2, d3), True


def _taken(counts: Ints, discounts: tuple[float, float, float]) -> Floats:
    """D(c)."""
    return np.array([0.0, *discounts])[np.minimum(counts, 3)]


def _possible(trie: Trie) -> Floats:
    """The uniform distribution over what can be predicted: a mark that is context only cannot."""
    free = np.ones(trie.vocabulary)
    if trie.document is not None and not trie.ends:
        free[trie.document] = 0.0
    return free / max(1.0, free.sum())


def _unigrams(trie: Trie, counts: Ints, discounts: tuple[float, float, float]) -> Floats:
    total = int(counts.sum())
    if total == 0:
        return _possible(trie)
    taken = _taken(counts, discounts)
    return (counts - taken) / total + taken.sum() / total * _possible(trie)


def _interpolate_compiled(
    trie: Trie, k: int, counts: Ints, discounts: tuple[float, float, float], probability: Floats, backoff: Floats
) -> None:
    from orrery.ngram.backoff_loops import kneser_ney_order

    above = trie.nodes(k - 1)
    given = (above.start, trie.first, trie.link, counts, *discounts, probability, backoff)
    spread(lambda a, b: kneser_ney_order(a, b, *given), above.stop - above.start, 1 << 14)


def _interpolate(
    trie: Trie, k: int, counts: Ints, discounts: tuple[float, float, float], probability: Floats, backoff: Floats
) -> None:
    here, above, parents = trie.nodes(k), trie.nodes(k - 1), trie.parents(k)
    own, taken = counts[here].astype(np.float64), _taken(counts[here], discounts)
    total, share = (np.bincount(parents - above.start, weights=x, minlength=above.stop - above.start) for x in (own, taken))
    share = np.divide(share, total, out=np.ones_like(total), where=total > 0)
    backoff[above] = share
    local = parents - above.start
    probability[here] = (own - taken) / total[local] + share[local] * probability[trie.link[here]]


def good_turing(trie: Trie, dtype: Any = np.float32, backend: str | None = None) -> Smoothed:
    """Katz's back-off with simple Good-Turing discounts; the facts name d(1..5) of each order."""
    probability, backoff = np.empty(len(trie.count), dtype=np.float64), np.ones(int(trie.offsets[-2]))
    found, fallen = [], []
    for k in range(1, trie.order + 1):
        here = trie.nodes(k)
        counts = trie.count[here].astype(np.float64)
        ratios, usual = katz_ratios(trie.count[here])
        found.append(ratios[1 : KATZ_LIMIT + 1].tolist())
        if not usual:
            fallen.append(k)
        kept = counts * ratios[np.minimum(trie.count[here], KATZ_LIMIT + 1)]
        if k == 1:
            probability[here] = _fill_unseen(trie, counts, kept)
            continue
        above, parents, below = trie.nodes(k - 1), trie.parents(k), probability[trie.link[here]]
        local, width = parents - above.start, above.stop - above.start
        total = np.bincount(local, weights=counts, minlength=width)
        probability[here] = kept / total[local]
        seen, covered = (np.bincount(local, weights=x, minlength=width) for x in (probability[here], below))
        left, open_ = np.maximum(1.0 - seen, 0.0), 1.0 - covered
        room = (total > 0) & (open_ > 1e-9)
        backoff[above] = np.where(room, left / np.where(room, open_, 1.0), np.where(total > 0, 0.0, 1.0))
        full = (total > 0) & ~room  # every token was seen here: nothing to back off to, so nothing may be kept back
        probability[here] = np.where(full[local], probability[here] / seen[local], probability[here])
    return probability.astype(dtype), backoff.astype(dtype), {"ratios": found, "fallback_orders": fallen}


def _fill_unseen(trie: Trie, counts: Floats, kept: Floats) -> Floats:
    """Unigrams: what the discounts freed goes to the tokens that were not seen, evenly; if all were, to all."""
    uniform, total = _possible(trie), counts.sum()
    if total == 0:
        return uniform
    own, unseen = kept / total, uniform * (counts == 0)
    target = unseen if unseen.any() else uniform
    return own + (1.0 - own.sum()) * target / target.sum()


def katz_ratios(counts: Ints) -> tuple[Floats, bool]:
    """d(0..6) of the counts of one order (0 and 6 stand for "none" and "more than 5"), and whether they are Good-Turing's."""
    usual = np.array([0.0, *(c / (c + 0.5) for c in range(1, KATZ_LIMIT + 1)), 1.0])
    adjusted = adjusted_counts(counts)
    if adjusted is None:
        return usual, False
    singles, sixes = int((counts == 1).sum()), int((counts == KATZ_LIMIT + 1).sum())
    common = (KATZ_LIMIT + 1) * sixes / singles if singles else 1.0
    if common >= 1:
        return usual, False
    ratios = (adjusted / np.arange(1, KATZ_LIMIT + 1) - common) / (1 - common)
    if not bool(np.all((ratios > 0) & (ratios < 1))):
        return usual, False
    return np.array([0.0, *ratios, 1.0]), True


def adjusted_counts(counts: Ints) -> Floats | None:
    """c* for c = 1..5: (c+1) n(c+1)/n(c) while it lies more than 1.65 deviations off the line's, and the line's from then on.

    The line goes through (log c, log Z(c)), Z(c) = n(c) / half the distance between the neighbouring counts. None when
    fewer than two different counts occur.
    """
    values, n = np.unique(counts[counts > 0], return_counts=True)
    if len(values) < 2:
        return None
    before = np.concatenate([[0], values[:-1]])
    after = np.concatenate([values[1:], [2 * values[-1] - values[-2]]])
    slope = np.polyfit(np.log(values), np.log(2.0 * n / (after - before)), 1)[0]
    c = np.arange(1, KATZ_LIMIT + 1)
    result = (c + 1) * ((c + 1) / c) ** slope
    seen = dict(zip(values.tolist(), n.tolist(), strict=True))
    for i in range(1, KATZ_LIMIT + 1):
        if i not in seen or i + 1 not in seen:
            break
        share = seen[i + 1] / seen[i]
        if abs((i + 1) * share - result[i - 1]) <= 1.65 * (i + 1) * np.sqrt(share / seen[i] * (1 + share)):
            break
        result[i - 1] = (i + 1) * share
    return result


def stupid_backoff(trie: Trie, dtype: Any = np.float32, backend: str | None = None) -> Smoothed:
    """Relative frequencies and a weight of 0.4 wherever a context was seen; unseen unigrams score 0.4 / V."""
    probability, backoff = np.empty(len(trie.count), dtype=dtype), np.ones(int(trie.offsets[-2]), dtype=dtype)
    unigrams = trie.count[trie.nodes(1)]
    probability[trie.nodes(1)] = np.where(unigrams > 0, unigrams / max(1, int(unigrams.sum())), STUPID * _possible(trie))
    for k in range(2, trie.order + 1):
        above, parents = trie.nodes(k - 1), trie.parents(k)
        counts = trie.count[trie.nodes(k)]
        total = np.bincount(parents - above.start, weights=counts, minlength=above.stop - above.start)
        probability[trie.nodes(k)] = counts / total[parents - above.start]
        backoff[above] = np.where(total > 0, STUPID, 1.0)
    return probability, backoff, {"weight": STUPID}


METHODS: dict[str, Callable[[Trie, Any, str | None], Smoothed]] = {
    "kneser-ney": kneser_ney,
    "good-turing": good_turing,
    "stupid-backoff": stupid_backoff,
}
