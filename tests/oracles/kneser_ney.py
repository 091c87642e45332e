"""Interpolated modified Kneser-Ney by dictionaries, word for word after Chen and Goodman (1998). Plain Python."""

from collections import Counter, defaultdict


def kneser_ney(stream, vocabulary, order, document=None):
    """A function P(word, history tuple); n-grams do not reach over a document's start."""
    starts, start = [], 0
    for t, token in enumerate(stream):
        start = t if token == document else start
        starts.append(start)
    grams = [Counter() for _ in range(order + 1)]
    for t in range(len(stream)):
        for n in range(1, order + 1):
            if t - n + 1 >= starts[t]:
                grams[n][tuple(stream[t - n + 1 : t + 1])] += 1
    counts = [None] * (order + 1)
    counts[order] = dict(grams[order])
    for n in range(1, order):
        continuation = Counter(gram[1:] for gram in grams[n + 1])
        counts[n] = {gram: continuation[gram] or occurrences for gram, occurrences in grams[n].items()}
    discounts = [None, *(_discounts(counts[n].values()) for n in range(1, order + 1))]
    following = [defaultdict(dict) for _ in range(order + 1)]
    for n in range(1, order + 1):
        for gram, count in counts[n].items():
            following[n][gram[:-1]][gram[-1]] = count

    def probability(word, history):
        history = tuple(history)[-(order - 1) :] if order > 1 else ()
        if document in history:
            history = history[len(history) - 1 - history[::-1].index(document) :]
        p = 1 / vocabulary
        for n in range(1, len(history) + 2):
            seen = following[n].get(history[len(history) - n + 1 :])
            if not seen:
                break
            total, d = sum(seen.values()), discounts[n]
            share = sum(d[min(c, 3)] for c in seen.values()) / total
            c = seen.get(word, 0)
            p = max(c - d[min(c, 3)], 0) / total + share * p
        return p

    return probability


def _discounts(values):
    n1, n2, n3, n4 = (sum(1 for v in values if v == c) for c in (1, 2, 3, 4))
    if n1 == 0 or n2 == 0:
        return (0, 0.5, 0.5, 0.5)
    y = n1 / (n1 + 2 * n2)
    d1 = 1 - 2 * y * n2 / n1
    d2 = 2 - 3 * y * n3 / n2 if n3 else y
    d3 = 3 - 4 * y * n4 / n3 if n3 and n4 else d2
    return (0, *(min(max(d, 1e-3), most) for d, most in ((d1, 1), (d2, 2), (d3, 3))))
