"""Counts of all n-grams up to an order, as one trie in five flat arrays: what every back-off model is made from.

Nodes are numbered order after order, and within an order as sorted words: the n-grams of order k are the nodes
`offsets[k-1] .. offsets[k]`. Unigrams are dense: node w is the token w, seen or not. The n-grams that continue a node x are
the nodes `first[x] .. first[x+1]`, by token. `link[x]` is the n-gram without its first token, one order below.

Documents: a token may mark where one begins. With `ends` it is also the event that ends the document before it: an n-gram
may begin or end with the mark, but not go past it. Without `ends` (the <s> of sentence models) it is context only: nothing
ends with it, and it has no count of its own.

Counting is sorting: all suffixes of the text by their first n tokens (n passes of a radix sort), then one reading of the
sorted list in which every n-gram of every order is a run. Small texts are counted with numpy alone; both give equal arrays.

Memory while counting N tokens (compiled): 10 N bytes for sorting, and 14 bytes per different n-gram.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orrery.core.errors import ConfigError, DataError
from orrery.ngram.compiled import available
from orrery.ngram.threads import spread

Ints = NDArray[np.integer[Any]]
Floats = NDArray[np.floating[Any]]
LONGEST = 16  # order
WORTH = 1 << 18  # tokens from which on compiled loops earn the time of loading them
_PIECE = 1 << 20


def backend_for(work: int, backend: str | None) -> str:
    """`numba` or `numpy`: what was asked for, else numba where it is installed, for large work or once it is loaded.

    Raises:
        ConfigError: for an unknown backend, or one that is not installed.
    """
    if backend is None:
        loaded = "orrery.ngram.backoff_loops" in sys.modules
        return "numba" if (loaded or work >= WORTH) and available() else "numpy"
    if backend not in ("numba", "numpy"):
        raise ConfigError(f"unknown backend '{backend}' of the n-gram models; known are numba and numpy")
    if backend == "numba" and not available():
        raise ConfigError("the backend 'numba' needs the package of that name; install it or leave the backend out")
    return backend


@dataclass(frozen=True)
class Trie:
    """Sorted n-grams of all orders with their occurrences.

    offsets: (n+1,) int64. word: (G-V,) token that ends each node of order 2 and more. first: (offsets[n-1]+1,).
    link: (G,), -1 for unigrams. count: (G,) occurrences.
    """

    vocabulary: int
    document: int | None
    ends: bool
    offsets: Ints
    word: Ints
    first: Ints
    link: Ints
    count: Ints

    @property
    def order(self) -> int:
        """The longest n-gram that was seen."""
        return len(self.offsets) - 1

    def nodes(self, order: int) -> slice:
        """The nodes of one order."""
        return slice(int(self.offsets[order - 1]), int(self.offsets[order]))

    def parents(self, order: int) -> Ints:
        """The context node of every node of an order (2 or more)."""
        above = self.nodes(order - 1)
        return np.repeat(np.arange(above.start, above.stop), np.diff(self.first[above.start : above.stop + 1]))

    def continuations(self, backend: str | None = None) -> Ints:
        """(G,) counts that Kneser-Ney is made from: below the highest order, the number of different tokens before.

        n-grams that nothing stands before (they open a document) keep their occurrences.
        """
        below = int(self.offsets[-2])
        begin = self.vocabulary
        if backend_for(len(self.link), backend) == "numba":
            from orrery.ngram.backoff_loops import count_links

            continued = np.zeros(below, dtype=self.count.dtype)
            count_links(self.link, begin, continued)
        else:
            continued = np.bincount(self.link[begin:], minlength=below).astype(self.count.dtype)
        result = self.count.copy()
        np.copyto(result[:below], continued, where=continued > 0)
        return result


def count_ngrams(
    tokens: Any, vocabulary: int, order: int, document: int | None = None, ends: bool = True, backend: str | None = None
) -> Trie:
    """Count a stream.

    Args:
        tokens: (N,) ids below `vocabulary`.
        order: the longest n-gram, 1 to 16; orders for which the text is too short are left out.
        document: the id that begins a document; None: the stream is one document.
        ends: the mark also ends the document before it and is predicted; False: it is context only.
        backend: `numba`, `numpy`, or None: numba from 262,144 tokens on.

    Raises:
        DataError: for an empty stream or ids outside the vocabulary.
        ConfigError: for an impossible order.
    """
    if not 1 <= order <= LONGEST:
        raise ConfigError(f"the order of an n-gram model lies between 1 and {LONGEST}, not {order}")
    stream = np.asarray(tokens)
    if stream.ndim != 1 or stream.size == 0:
        raise DataError("an n-gram model needs at least one token to count, in one row")
    if stream.dtype.kind not in "iu":
        raise DataError(f"tokens are whole numbers, not {stream.dtype}")
    low, high = int(stream.min()), int(stream.max())
    if low < 0 or high >= vocabulary:
        raise DataError(f"token {low if low < 0 else high} is outside the vocabulary of {vocabulary}")
    if document is not None and not 0 <= document < vocabulary:
        raise DataError(f"the document id {document} is outside the vocabulary of {vocabulary}")
    count = _count_compiled if backend_for(stream.size, backend) == "numba" else _count_plain
    trie = count(stream, vocabulary, order, document, ends)
    if document is not None and not ends:
        trie.count[document] = 0
    return trie


def token_type(vocabulary: int) -> type[np.uint16] | type[np.int32]:
    """The type that tokens are kept in: 16 bits where they suffice."""
    return np.uint16 if vocabulary <= 1 << 16 else np.int32


def _node_type(nodes: int) -> type[np.int32] | type[np.int64]:
    return np.int32 if nodes < 1 << 31 else np.int64


def _count_compiled(stream: Ints, vocabulary: int, order: int, document: int | None, ends: bool) -> Trie:
    from orrery.ngram import backoff_loops as loops

    text = np.ascontiguousarray(stream, dtype=token_type(vocabulary))
    size, mark = len(text), -1 if document is None else document
    position = _node_type(size)
    suffixes: Ints = np.arange(size, dtype=position)
    spare: Ints = np.empty(size, dtype=position)
    heads = np.zeros(vocabulary + 2, dtype=np.int64)
    for shift in range(min(order, size) - 1, -1, -1):
        loops.sort_pass(text, shift, suffixes, spare, heads)
        suffixes, spare = spare, suffixes
    common, valid = np.empty(size, dtype=np.uint8), np.empty(size, dtype=np.uint8)
    settings = (text, suffixes, order, mark, not ends, common, valid)
    spread(lambda a, b: loops.neighbours(a, b, *settings), size, 1 << 16)
    sizes = [vocabulary]
    for k in range(2, order + 1):
        pieces = range(0, size, _PIECE)
        new = sum(int(np.count_nonzero((common[i : i + _PIECE] < k) & (valid[i : i + _PIECE] >= k))) for i in pieces)
        if not new:
            break
        sizes.append(new)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    nodes, order = int(offsets[-1]), len(sizes)
    kind = _node_type(nodes)
    word: Ints = np.empty(nodes - vocabulary, dtype=text.dtype)
    count: Ints = np.zeros(nodes, dtype=kind)
    first: Ints = np.zeros(int(offsets[-2]) + 1, dtype=kind)
    link: Ints = np.full(nodes, -1, dtype=kind)
    loops.fill(text, suffixes, common, valid, offsets[:-1].copy(), offsets, word, first, count)
    if order > 1:
        link[vocabulary : offsets[2]] = word[: sizes[1]]
    ids = spare if spare.dtype == kind else np.empty(size, dtype=kind)
    for k in range(2, order):
        loops.identify(suffixes, common, valid, k, int(offsets[k - 1]), ids)
        loops.connect(suffixes, common, valid, k + 1, int(offsets[k]), ids, link)
    return Trie(vocabulary, document, ends, offsets, word, first, link, count)


def _count_plain(stream: Ints, vocabulary: int, order: int, document: int | None, ends: bool) -> Trie:
    """As compiled: per order, the sorted keys (node of the context) * V + token of the n-grams that end at each position."""
    text = stream.astype(np.int64)
    size, offsets = len(text), [0, vocabulary]
    marks = np.zeros(size, dtype=bool) if document is None else text == document
    start = np.maximum.accumulate(np.where(marks, np.arange(size), 0))
    begun = np.arange(size) - start  # tokens of the document before each
    if ends and size > 1:  # a mark may end an n-gram of the document before it
        begun[1:] = np.where(marks[1:], begun[:-1] + 1, begun[1:])
    counts, words, links = [np.bincount(text, minlength=vocabulary)], [], [np.full(vocabulary, -1)]
    children: list[Ints] = []
    node = text  # of the n-gram of the order below that ends at each position; -1 where there is none
    for k in range(2, order + 1):
        context = np.concatenate([[-1], np.where(marks & (k > 2), -1, node)[:-1]])
        here = np.flatnonzero((begun >= k - 1) & (context >= 0))
        if len(here) == 0:
            break
        keys, at, inverse, occurrences = np.unique(
            context[here] * vocabulary + text[here], return_index=True, return_inverse=True, return_counts=True
        )
        counts.append(occurrences)
        words.append(keys % vocabulary)
        links.append(node[here[at]])
        children.append(np.bincount(keys // vocabulary - offsets[-2], minlength=offsets[-1] - offsets[-2]))
        node = np.full(size, -1)
        node[here] = inverse + offsets[-1]
        offsets.append(offsets[-1] + len(keys))
    kind = _node_type(offsets[-1])
    first: Ints = np.concatenate([[vocabulary], vocabulary + np.cumsum(np.concatenate(children))]) if children else np.zeros(1, np.int64)
    word = np.concatenate(words) if words else np.empty(0)
    return Trie(
        vocabulary, document, ends, np.array(offsets, dtype=np.int64), word.astype(token_type(vocabulary)),
        first.astype(kind), np.concatenate(links).astype(kind), np.concatenate(counts).astype(kind),
    )  # fmt: skip
