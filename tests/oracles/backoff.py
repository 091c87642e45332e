"""Katz's back-off with simple Good-Turing discounts, and stupid back-off, by dictionaries. Plain Python."""

from collections import Counter, defaultdict
from math import log, sqrt


def _grams(stream, order):
    return [None, *(Counter(tuple(stream[i : i + n]) for i in range(len(stream) - n + 1)) for n in range(1, order + 1))]


def stupid_backoff(stream, vocabulary, order):
    """A function S(word, history): relative frequencies, times 0.4 for every token of the history that is given up."""
    grams = _grams(stream, order)
    context = [None, *(Counter() for _ in range(order))]
    for n in range(1, order + 1):
        for gram, count in grams[n].items():
            context[n][gram[:-1]] += count

    def score(word, history):
        for n in range(len(history) + 1, 0, -1):
            h = tuple(history)[len(history) - n + 1 :]
            total = context[n][h]
            if total and grams[n][(*h, word)]:
                return grams[n][(*h, word)] / total
            if n > 1 and total:
                return 0.4 * score(word, history[1:] if n == len(history) + 1 else h[1:])
        return 0.4 / vocabulary

    return score


def good_turing(stream, vocabulary, order):
    """A function P(word, history)."""
    grams = _grams(stream, order)
    ratios = [None, *(_ratios(list(grams[n].values())) for n in range(1, order + 1))]
    following = [None, *(defaultdict(dict) for _ in range(order))]
    for n in range(1, order + 1):
        for gram, count in grams[n].items():
            following[n][gram[:-1]][gram[-1]] = count
    kept = {w: ratios[1](c) * c / len(stream) for (w,), c in grams[1].items()}
    unseen = [w for w in range(vocabulary) if w not in kept] or list(range(vocabulary))
    free = 1 - sum(kept.values())
    unigrams = {w: kept.get(w, 0.0) + (free / len(unseen) if w in unseen else 0.0) for w in range(vocabulary)}

    def probability(word, history):
        if not history:
            return unigrams[word]
        seen = following[len(history) + 1].get(tuple(history))
        if not seen:
            return probability(word, history[1:])
        total, discount = sum(seen.values()), ratios[len(history) + 1]
        own = {w: discount(c) * c / total for w, c in seen.items()}
        covered = sum(probability(w, history[1:]) for w in seen)
        if 1 - covered <= 1e-9:
            return own.get(word, 0.0) / sum(own.values())
        if word in own:
            return own[word]
        return (1 - sum(own.values())) / (1 - covered) * probability(word, history[1:])

    return probability


def _ratios(counts):
    def usual(c):
        return c / (c + 0.5) if c <= 5 else 1.0

    n = Counter(counts)
    r = sorted(n)
    if len(r) < 2 or not n[1] or 6 * n[6] >= n[1]:
        return usual
    z = []
    for i, c in enumerate(r):
        low = r[i - 1] if i else 0
        high = r[i + 1] if i + 1 < len(r) else 2 * c - low
        z.append(2 * n[c] / (high - low))
    x, y = [log(c) for c in r], [log(v) for v in z]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)
    adjusted, line = {}, False
    for c in range(1, 6):
        on_line = (c + 1) * (1 + 1 / c) ** slope
        if not line and n[c] and n[c + 1]:
            turing = (c + 1) * n[c + 1] / n[c]
            line = abs(turing - on_line) <= 1.65 * sqrt((c + 1) ** 2 * n[c + 1] / n[c] ** 2 * (1 + n[c + 1] / n[c]))
        else:
            line = True
        adjusted[c] = on_line if line else turing
    common = 6 * n[6] / n[1]
    d = {c: (adjusted[c] / c - common) / (1 - common) for c in adjusted}
    if not all(0 < v < 1 for v in d.values()):
        return usual
    return lambda c: d.get(c, 1.0)
