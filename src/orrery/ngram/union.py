"""Several indexes as one: of the parts of a corpus, in this process or behind services.

    both = Union([orrery.ngram.open("part-1.idx"), Remote("http://other-host:8766/part-2")])
    both.count(ids)      # the sum
    both.inf_next(ids)   # behind the longest suffix that occurs in any of them

All answers are those of one index over all documents, part after part; nothing is estimated. Members must be built with
the same tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from orrery.core.errors import ConfigError, DataError
from orrery.ngram.answers import (
    CnfCount,
    Document,
    InfBatch,
    InfNext,
    InfProbability,
    Next,
    Probability,
    Scores,
    Span,
)
from orrery.ngram.index import Ids, _merge, _ratio

R = TypeVar("R")


class Union:
    """The queries of an :class:`~orrery.ngram.index.Index` over several of them.

    Args:
        members: indexes and :class:`~orrery.ngram.remote.Remote` ones, in the order of their documents.

    Raises:
        ConfigError: no member.
        DataError: their ids do not mean the same.
    """

    def __init__(self, members: Sequence[Any]) -> None:
        if not members:
            raise ConfigError("a union needs at least one index")
        self.members = list(members)
        first = self.members[0]
        for other in self.members[1:]:
            if _meaning(other) != _meaning(first):
                raise DataError(f"{first!r} and {other!r} were built with different tokenizers or vocabularies")
        self.vocab_size, self.doc_id = int(first.vocab_size), int(first.doc_id)
        self.tokens = sum(int(member.tokens) for member in self.members)
        self.documents_total = sum(int(member.documents_total) for member in self.members)
        self.info: dict[str, Any] = {"tokenizer": first.info["tokenizer"]}
        self._pool: ThreadPoolExecutor | None = None
        if any(getattr(member, "remote", False) for member in self.members) and len(self.members) > 1:
            self._pool = ThreadPoolExecutor(len(self.members), thread_name_prefix="orrery-union")

    def close(self) -> None:
        """End the threads, and the connections of remote members."""
        if self._pool is not None:
            self._pool.shutdown()
        for member in self.members:
            if getattr(member, "remote", False):
                member.close()

    def __repr__(self) -> str:
        return f"<n-gram indexes: {self.tokens:,} tokens in {len(self.members)} parts>"

    @property
    def tokenizer(self) -> Any:
        """Of the first member; all have the same."""
        return self.members[0].tokenizer

    def _each(self, ask: Callable[[Any], R]) -> list[R]:
        """Ask all members; where some are remote, at the same time."""
        if self._pool is None:
            return [ask(member) for member in self.members]
        return list(self._pool.map(ask, self.members))

    # ---------------------------------------------------------------- counts and probabilities

    def count(self, ids: Ids) -> int:
        """How often the n-gram occurs, in all members together."""
        return sum(self._each(lambda member: int(member.count(ids))))

    def count_batch(self, queries: Iterable[Ids]) -> NDArray[np.int64]:
        """:meth:`count` of many: (Q,)."""
        listed = list(queries)
        total = np.zeros(len(listed), dtype=np.int64)
        for counts in self._each(lambda member: member.count_batch(listed)):
            total += counts
        return total

    def prob_info(self, context: Ids, id: int) -> Probability:  # noqa: A002 - the public name
        """P(id | context) with its two counts; NaN where the context never occurs."""
        parts = self._each(lambda member: member.prob_info(context, id))
        hits, total = sum(part.hits for part in parts), sum(part.total for part in parts)
        return Probability(hits / total if total else float("nan"), hits, total)

    def prob(self, context: Ids, id: int) -> float:  # noqa: A002
        """The probability of :meth:`prob_info` alone."""
        return self.prob_info(context, id).prob

    def prob_batch(self, contexts: Iterable[Ids], ids: Ids) -> NDArray[np.float64]:
        """:meth:`prob` of many pairs: (Q,)."""
        before, last = [np.asarray(c, dtype=np.int64) for c in contexts], np.asarray(ids, dtype=np.int64)
        if len(before) != len(last):
            raise DataError(f"{len(before)} contexts but {len(last)} ids")
        return np.array([self.prob(c, int(i)) for c, i in zip(before, last, strict=True)])

    def inf_prob_info(self, context: Ids, id: int) -> InfProbability:  # noqa: A002
        """P(id | the longest suffix of the context that occurs in any member)."""
        parts = self._each(lambda member: member.inf_prob_info(context, id))
        n = max(part.n for part in parts)
        best = [(member, part) for member, part in zip(self.members, parts, strict=True) if part.n == n]
        hits, total = sum(part.hits for _, part in best), sum(part.total for _, part in best)
        sparse = all(part.sparse for _, part in best)
        if sparse and len(best) > 1 and hits < total:  # each has one continuation, but perhaps another one
            suffix = np.asarray(context, dtype=np.int64)[len(context) - n :]
            sparse = len({int(token) for member, _ in best for token in member.next(suffix).ids}) == 1
        return InfProbability(hits / total, hits, total, n, sparse)

    def inf_prob(self, context: Ids, id: int) -> float:  # noqa: A002
        """The probability of :meth:`inf_prob_info` alone."""
        return self.inf_prob_info(context, id).prob

    def inf_prob_batch(self, contexts: Iterable[Ids], ids: Ids) -> InfBatch:
        """:meth:`inf_prob_info` of many pairs, as arrays."""
        before, last = list(contexts), np.asarray(ids, dtype=np.int64)
        if len(before) != len(last):
            raise DataError(f"{len(before)} contexts but {len(last)} ids")
        rows = [self.inf_prob_info(c, int(i)) for c, i in zip(before, last, strict=True)]
        kinds = (np.float64, np.int64, np.int64, np.int64, np.bool_)
        return InfBatch(*(np.array([row[k] for row in rows], dtype=kind) for k, kind in enumerate(kinds)))

    def matches(self, ids: Ids) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """See :meth:`orrery.ngram.index.Index.matches`."""
        return cast("tuple[Any, Any, Any, Any]", _merge(self._each(lambda member: plain_matches(member, ids))))

    def score(self, ids: Ids) -> Scores:
        """The ∞-gram probability of every id of a text given all before it: arrays (T,)."""
        count, total, n, only = (array[:-1] for array in self.matches(ids))
        return Scores(_ratio(count, total), n, only >= 0, count, total)

    # ---------------------------------------------------------------- distributions

    def next(self, context: Ids) -> Next:
        """The ids that follow the context somewhere, ascending, and how often each does."""
        return _added([Next(*part) for part in self._each(lambda member: member.next(context))])

    def inf_next(self, context: Ids) -> InfNext:
        """:meth:`next` of the longest suffix of the context that occurs in any member."""
        parts = self._each(lambda member: member.inf_next(context))
        n = max(part.n for part in parts)
        best = [part for part in parts if part.n == n]
        ids, counts = _added([Next(part.ids, part.counts) for part in best])
        return InfNext(ids, counts, n, len(ids) == 1, sum(part.total for part in best))

    # ---------------------------------------------------------------- where it stands

    def documents(self, ids: Ids, limit: int = 10, *, context: int | None = None) -> list[Document]:
        """The first documents that hold an n-gram; numbers and places count through all members."""
        found: list[Document] = []
        base = start = 0
        for member in self.members:
            if len(found) < limit or limit < 0:
                for one in member.documents(ids, limit - len(found), context=context):
                    found.append(one._replace(id=base + one.id, start=start + one.start, stop=start + one.stop))
            base, start = base + int(member.documents_total), start + int(member.tokens)
        return found

    def document(self, number: int) -> Document:
        """A document by its number.

        Raises:
            DataError: there is none.
        """
        base = start = 0
        for member in self.members:
            if 0 <= number - base < member.documents_total:
                one = member.document(number - base)
                return Document(*one)._replace(id=number, start=start + one.start, stop=start + one.stop)
            base, start = base + int(member.documents_total), start + int(member.tokens)
        raise DataError(f"there is no document {number}; the indexes hold 0..{self.documents_total - 1}")

    def attribute(self, ids: Ids, min_length: int = 8, *, limit: int = 3, context: int | None = 32) -> list[Span]:
        """Stretches of a text that occur verbatim in some member: see :meth:`orrery.ngram.index.Index.attribute`."""
        if min_length < 1:
            raise ConfigError(f"min_length must be 1 or more, not {min_length}")
        lengths = self.matches(ids)[2]
        starts = np.arange(len(lengths)) - lengths
        final = np.append(starts[1:] > starts[:-1], True) & (lengths >= min_length)
        spans = []
        for stop in np.flatnonzero(final).tolist():
            start = int(starts[stop])
            part = np.asarray(ids, dtype=np.int64)[start:stop]
            spans.append(Span(start, stop, self.count(part), self.documents(part, limit, context=context) if limit else []))
        return spans

    def count_cnf(self, clauses: Sequence[Sequence[Ids]], window: int = 100, *, cap: int | None = None) -> CnfCount:
        """Count places where all clauses are met; the clause that is rarest over all members is the one that is counted."""
        sizes = self.clause_sizes(clauses)
        anchor = int(np.argmin(sizes))
        total = max(1, sizes[anchor])

        def ask(member: Any) -> CnfCount:
            share = None
            if cap is not None:
                own = sum(int(n) for n in member.count_batch(list(clauses[anchor])))
                share = max(1, cap * own // total)
            found: CnfCount = member.count_cnf(clauses, window, cap=share, anchor=anchor)
            return found

        if cap is not None and cap < 1:
            raise ConfigError(f"cap must be 1 or more, not {cap}")
        parts = self._each(ask)
        return CnfCount(sum(part.matches for part in parts), all(part.exact for part in parts))

    def clause_sizes(self, clauses: Sequence[Sequence[Ids]]) -> list[int]:
        """Occurrences of each clause: those of its n-grams together."""
        if not clauses or any(not len(clause) for clause in clauses):
            raise DataError("a conjunction needs at least one clause, and each clause an n-gram")
        counts = self.count_batch([term for clause in clauses for term in clause])
        edges = np.cumsum([0, *map(len, clauses)])
        return [int(counts[a:b].sum()) for a, b in zip(edges[:-1], edges[1:], strict=True)]


def _meaning(index: Any) -> tuple[Any, ...]:
    """What must be equal for ids to mean the same."""
    tokenizer = index.info["tokenizer"]
    return (tokenizer and tokenizer["hash"], int(index.doc_id), int(index.vocab_size))


def plain_matches(index: Any, ids: Ids) -> tuple[NDArray[np.int64], ...]:
    """:meth:`orrery.ngram.index.Index.matches` where a document's end is `doc_id`, whatever the width of stored tokens."""
    hits, totals, lengths, only = index.matches(ids)
    if "width" in index.info:
        only = np.where(only == (1 << 8 * int(index.info["width"])) - 1, index.doc_id, only)
    return hits, totals, lengths, only


def _added(parts: list[Next]) -> Next:
    """Several distributions as one."""
    ids, inverse = np.unique(np.concatenate([part.ids for part in parts]), return_inverse=True)
    counts = np.zeros(len(ids), dtype=np.int64)
    np.add.at(counts, inverse, np.concatenate([part.counts for part in parts]))
    return Next(ids.astype(np.int64), counts)
