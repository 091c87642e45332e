"""Compiled loops of the back-off models: sorting n-grams, linking them, smoothing them, and looking them up.

The arrays are those of :mod:`orrery.ngram.trie`: nodes of all orders in one numbering, order after order. Every loop has
a plain counterpart in numpy beside its caller; these are for corpora that the plain ones would be slow for. The loops that
begin with `first, last` or `begin, end` do a part of the work each, on a thread each.

N tokens, V vocabulary, G n-grams of all orders, R rows.
"""

# mypy: disable-error-code="no-untyped-def, assignment"

from __future__ import annotations

import numpy as np

from orrery.ngram.compiled import bare, inlined, kernel

_FRESH, _DONE = -1, -2  # a lane before its first piece, and after its last


@kernel
def sort_pass(tokens, shift, source, target, heads):
    """One stable pass of a radix sort of suffixes, by the token `shift` behind their start; the end sorts first."""
    size = len(tokens)
    heads[:] = 0
    heads[1] = min(shift, size)
    for i in range(shift, size):
        heads[np.int64(tokens[i]) + 2] += 1
    for v in range(1, len(heads)):
        heads[v] += heads[v - 1]
    for r in range(size):
        i = np.int64(source[r])
        key = np.int64(tokens[i + shift]) + 1 if i + shift < size else 0
        target[heads[key]] = i
        heads[key] += 1


@inlined
def reach(tokens, i, order, document, closed):
    """Tokens of the longest n-gram that begins at i: it may end with a document's mark (unless closed), not go past it."""
    length = 1
    while length < order and i + length < len(tokens):
        if np.int64(tokens[i + length]) == document:
            return length if closed else length + 1
        length += 1
    return length


@bare
def neighbours(first, last, tokens, suffixes, order, document, closed, common, valid):
    """For sorted suffixes first..last: tokens shared with the suffix before, and the longest n-gram that begins there."""
    previous = np.int64(suffixes[first - 1]) if first > 0 else 0
    before = reach(tokens, previous, order, document, closed) if first > 0 else 0
    for r in range(first, last):
        i = np.int64(suffixes[r])
        here = reach(tokens, i, order, document, closed)
        length, most = 0, min(before, here)
        while length < most and tokens[previous + length] == tokens[i + length]:
            length += 1
        common[r] = length
        valid[r] = here
        previous, before = i, here


@kernel
def fill(tokens, suffixes, common, valid, cursor, offsets, word, first, count):
    """Write the nodes of all orders in one reading of the sorted suffixes. cursor (n,): next free node of each order."""
    order = len(cursor)
    seen = -1
    for r in range(len(suffixes)):
        i = np.int64(suffixes[r])
        unigram = np.int64(tokens[i])
        if order > 1:
            while seen < unigram:
                seen += 1
                first[seen] = cursor[1]
        count[unigram] += 1
        for k in range(max(common[r], 1) + 1, valid[r] + 1):
            x = cursor[k - 1]
            word[x - offsets[1]] = tokens[i + k - 1]
            if k < order:
                first[x] = cursor[k]
            cursor[k - 1] = x + 1
        for k in range(2, valid[r] + 1):
            count[cursor[k - 1] - 1] += 1
    if order > 1:
        while seen < offsets[1] - 1:
            seen += 1
            first[seen] = cursor[1]
        first[offsets[order - 1]] = offsets[order]


@kernel
def identify(suffixes, common, valid, k, start, ids):
    """ids[i] = the node of the n-gram of order k that begins at position i."""
    x = start - 1
    for r in range(len(suffixes)):
        if valid[r] >= k:
            if common[r] < k:
                x += 1
            ids[suffixes[r]] = x


@kernel
def connect(suffixes, common, valid, k, start, ids, link):
    """link of every node of order k: the node of its n-gram without the first token."""
    x = start
    for r in range(len(suffixes)):
        if valid[r] >= k and common[r] < k:
            link[x] = ids[np.int64(suffixes[r]) + 1]
            x += 1


@kernel
def count_links(link, begin, continued):
    """How many nodes link to each: the number of different tokens seen before an n-gram."""
    for x in range(begin, len(link)):
        continued[link[x]] += 1


@kernel
def kneser_ney_order(begin, end, start, first, link, count, d1, d2, d3, probability, backoff):
    """Interpolate the n-grams below the contexts start+begin .. start+end, and give each context its share g(h)."""
    for h in range(start + begin, start + end):
        total, one, two, more = 0, 0, 0, 0
        for x in range(first[h], first[h + 1]):
            c = np.int64(count[x])
            total += c
            if c == 1:
                one += 1
            elif c == 2:
                two += 1
            elif c > 2:
                more += 1
        if total == 0:
            backoff[h] = 1.0
            continue
        share = (d1 * one + d2 * two + d3 * more) / total
        backoff[h] = share
        for x in range(first[h], first[h + 1]):
            c = np.int64(count[x])
            d = d1 if c == 1 else d2 if c == 2 else d3
            own = (c - d) / total if c > 0 else 0.0
            probability[x] = own + share * probability[link[x]]


@inlined
def look(word, low, size, wanted):
    """Where each lane's token is, among `size` sorted ones from `low` on, if it is there.

    One step of every search after the other and without a branch, so that what they wait for from memory comes at the same
    time and nothing is guessed wrong.
    """
    most = 0
    for k in range(len(low)):
        most = max(most, size[k])
    while most > 1:
        for k in range(len(low)):
            half = size[k] >> 1
            low[k] = low[k] + half if np.int64(word[low[k] + half]) <= wanted[k] else low[k]
            size[k] -= half
        most -= most >> 1


@bare
def score_pieces(begin, end, tokens, warm, start, stop, settings, offsets, word, first, link, probability, backoff, out, nodes, used, lanes, values):
    """Walk pieces of text: the probability of every token, the context node behind it, and the order that answered.

    Each lane walks a piece of its own and takes the next one when it is through; all look for their tokens together.

    warm, start, stop (P,): a piece is read from `warm` with no context and scored from `start` to `stop`.
    settings: document, whether it is predicted. lanes (8,L) int64, values (L,) float64: room for the lanes.
    """
    document, predicted = settings[0], settings[1]
    order, vocabulary = len(offsets) - 1, np.int64(offsets[1])
    low, size, wanted = lanes[0], lanes[1], lanes[2]  # where among the last tokens of nodes, how many, for what
    piece, place, halt = lanes[3], lanes[4], lanes[5]
    context, depth = lanes[6], lanes[7]  # node, and its order
    low[:] = 0
    size[:] = 0
    wanted[:] = 0
    piece[:] = _FRESH
    busy = len(values)
    while busy > 0:
        look(word, low, size, wanted)
        for k in range(len(values)):
            if piece[k] == _DONE:
                continue
            node, level, t, x = context[k], depth[k], place[k], wanted[k]
            if piece[k] != _FRESH:
                if size[k] > 0 and np.int64(word[low[k]]) == x:
                    x = low[k] + vocabulary
                elif level > 0:
                    values[k] *= backoff[node]
                    node = np.int64(link[node])
                    level -= 1
                    if level > 0:
                        context[k] = node
                        depth[k] = level
                        behind = np.int64(first[node])
                        size[k] = np.int64(first[node + 1]) - behind
                        low[k] = behind - vocabulary if size[k] > 0 else 0
                        continue
                node = x
                level += 1
                if t >= start[piece[k]]:
                    out[t] = values[k] * probability[x]
                    used[t] = level
                if wanted[k] == document:
                    node, level = document, 1
                if level == order:
                    node = np.int64(link[node])
                    level -= 1
                if t >= start[piece[k]]:
                    nodes[t] = node if level > 0 else -1
                t += 1
            while piece[k] != _DONE:  # to the next token that has to be looked for
                if piece[k] == _FRESH or t == halt[k]:
                    piece[k] = begin if begin < end else _DONE
                    if begin < end:
                        t, halt[k] = warm[begin], stop[begin]
                        node, level = -1, 0
                    begin += 1
                elif predicted == 0 and np.int64(tokens[t]) == document:
                    node, level = document, 1 if order > 1 else 0
                    if t >= start[piece[k]]:
                        out[t] = 1.0
                        used[t] = 1
                        nodes[t] = node if level > 0 else -1
                    t += 1
                else:
                    break
            low[k], size[k] = 0, 0
            if piece[k] == _DONE:
                busy -= 1
                continue
            values[k], place[k] = 1.0, t
            wanted[k] = np.int64(tokens[t])
            context[k], depth[k] = node, level
            if level > 0:
                behind = np.int64(first[node])
                size[k] = np.int64(first[node + 1]) - behind
                low[k] = behind - vocabulary if size[k] > 0 else 0


@kernel
def distributions(begin, end, nodes, offsets, word, first, link, probability, backoff, out):
    """P(w | context) for every w, (R,V), for context nodes (R,); -1 is no context."""
    vocabulary = np.int64(offsets[1])
    chain = np.empty(64, np.int64)
    scales = np.empty(64, np.float64)
    for r in range(begin, end):
        length, scale, x = 0, 1.0, np.int64(nodes[r])
        while x >= 0:
            chain[length] = x
            scales[length] = scale
            scale *= backoff[x]
            x = np.int64(link[x])
            length += 1
        for v in range(vocabulary):
            out[r, v] = scale * probability[v]
        for j in range(length - 1, -1, -1):
            for y in range(first[chain[j]], first[chain[j] + 1]):
                out[r, word[y - vocabulary]] = scales[j] * probability[y]
