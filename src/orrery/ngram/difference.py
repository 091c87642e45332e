"""One index less another: what a corpus holds without a part of it, as when documents have to be taken down.

    without = diff(index, removed)
    without.count(ids)           index.count(ids) - removed.count(ids)

Meant for a `removed` whose documents all stand in `index`. Where it holds something more often, :meth:`count` says so
by a negative number, and a probability, which then makes no sense, is refused.
"""

from __future__ import annotations

import numpy as np

from orrery.core.errors import DataError
from orrery.ngram.answers import InfNext, InfProbability, Next, Probability
from orrery.ngram.index import Ids, Index


class Difference:
    """Counts of `index` less those of `removed`; the queries are those of :class:`~orrery.ngram.index.Index`."""

    def __init__(self, index: Index, removed: Index) -> None:
        self.index, self.removed = index, removed
        self.vocab_size, self.doc_id, self.tokenizer = index.vocab_size, index.doc_id, index.tokenizer

    @property
    def tokens(self) -> int:
        """Tokens and marks that are left."""
        return self.index.tokens - self.removed.tokens

    def __repr__(self) -> str:
        return f"<{self.index!r} less {self.removed!r}>"

    def count(self, ids: Ids) -> int:
        """How much more often the n-gram occurs; negative where `removed` has more of it."""
        return self.index.count(ids) - self.removed.count(ids)

    def prob_info(self, context: Ids, id: int) -> Probability:  # noqa: A002 - the public name
        """P(id | context) over what is left, with its counts; NaN where nothing is left of the context.

        Raises:
            DataError: `removed` has more of it than the index.
        """
        a, b = self.index.prob_info(context, id), self.removed.prob_info(context, id)
        hits, total = a.hits - b.hits, a.total - b.total
        if hits < 0 or total < hits:
            raise DataError("the removed index holds this n-gram more often than the other; is it a part of it?")
        return Probability(hits / total if total else float("nan"), hits, total)

    def prob(self, context: Ids, id: int) -> float:  # noqa: A002
        """The probability of :meth:`prob_info` alone."""
        return self.prob_info(context, id).prob

    def next(self, context: Ids) -> Next:
        """What follows the context in what is left: ids ascending, and counts."""
        a, b = self.index.next(context), self.removed.next(context)
        ids = np.union1d(a.ids, b.ids)
        counts = np.zeros(len(ids), dtype=np.int64)
        counts[np.searchsorted(ids, a.ids)] += a.counts
        counts[np.searchsorted(ids, b.ids)] -= b.counts
        if counts.size and counts.min() < 0:
            raise DataError("the removed index holds a continuation more often than the other; is it a part of it?")
        return Next(ids[counts > 0], counts[counts > 0])

    def inf_next(self, context: Ids) -> InfNext:
        """:meth:`next` of the longest suffix of the context of which something is left."""
        listed = [int(i) for i in context]
        known, bad = 0, self.index.inf_next(listed).n + 1  # what is left occurs in the index
        while bad - known > 1:
            middle = (known + bad) // 2
            if self.next(listed[len(listed) - middle :]).ids.size:
                known = middle
            else:
                bad = middle
        ids, counts = self.next(listed[len(listed) - known :])
        return InfNext(ids, counts, known, len(ids) == 1, int(counts.sum()))

    def inf_prob_info(self, context: Ids, id: int) -> InfProbability:  # noqa: A002
        """P(id | that suffix), with its counts."""
        ids, counts, n, sparse, total = self.inf_next(context)
        hits = int(counts[ids == id].sum())
        return InfProbability(hits / total if total else float("nan"), hits, total, n, sparse)

    def inf_prob(self, context: Ids, id: int) -> float:  # noqa: A002
        """The probability of :meth:`inf_prob_info` alone."""
        return self.inf_prob_info(context, id).prob


def diff(index: Index, removed: Index) -> Difference:
    """`index` without `removed`.

    Raises:
        DataError: their ids do not mean the same.
    """
    names = [each.info["tokenizer"] and each.info["tokenizer"]["hash"] for each in (index, removed)]
    if names[0] != names[1] or index.doc_id != removed.doc_id or index.vocab_size != removed.vocab_size:
        raise DataError(f"'{index.folder}' and '{removed.folder}' were built with different tokenizers or vocabularies")
    return Difference(index, removed)
