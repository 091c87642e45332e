"""Interpolated modified Kneser-Ney by dictionaries, word for word after Chen and Goodman (1998). Plain Python."""

from collections import Counter, defaultdict


def kneser_ney(stream, vocabulary, order, document=None, ends=True):
    """A function P(word, history tuple). n-grams may begin with the document's mark and, with `ends`, end with it."""
    grams = [Counter() for _ in range(order + 1)]
    for t in range(len(stream)):
        for n in range(1, order + 1):
            gram = tuple(stream[t - n + 1 : t + 1]) if t >= n - 1 else ()
            if gram and document not in gram[1 : n - 1] and (ends or document not in gram[1:]):
                grams[n][gram] += 1
    if not ends:
        grams[1].pop((document,), None)
    longest = max(n for n in range(1, order + 1) if n == 1 or grams[n])
    counts = [None] * (order + 1)
    counts[longest] = dict(grams[longest])
    for n in range(1, longest):
        continuation = Counter(gram[1:] for gram in grams[n + 1])
        counts[n] = {gram: continuation[gram] or occurrences for gram, occurrences in grams[n].items()}
    discounts = [None, *(_discounts(counts[n].values()) for n in range(1, longest + 1))]
    following = [defaultdict(dict) for _ in range(longest + 1)]
    for n in range(1, longest + 1):
        for gram, count in counts[n].items():
            following[n][gram[:-1]][gram[-1]] = count
    possible = vocabulary - (document is not None and not ends)

    def probability(word, history):
        history = tuple(history)[-(longest - 1) :] if longest > 1 else ()
        if document in history:
            history = history[len(history) - 1 - history[::-1].index(document) :]
        if word == document and not ends:
            return 1.0
        p = 1 / possible
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
    """Chen and Goodman's; (0.5, 1, 1.5) where they cannot be had or make no sense, as KenLM falls back."""
    n1, n2, n3, n4 = (sum(1 for v in values if v == c) for c in (1, 2, 3, 4))
    if not (n1 and n2 and n3):
        return (0, 0.5, 1.0, 1.5)
    y = n1 / (n1 + 2 * n2)
    found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    return (0, *found) if all(0 < d <= i for i, d in enumerate(found, 1)) else (0, 0.5, 1.0, 1.5)
