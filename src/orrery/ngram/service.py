"""What a service answers: the requests of the public infini-gram API with its response fields, and a few of our own.

A request is a JSON object with `index`, `query_type`, and `query` (text) or `query_ids`. Types of the public API:
count, prob, ntd, infgram_prob, infgram_ntd, find, find_cnf, get_doc_by_rank, get_doc_by_ptr, search_docs. Counts are exact;
a distribution is estimated only where `max_support` is given, a conjunction only where `max_clause_freq` is.
Our own, which :class:`orrery.ngram.remote.Remote` speaks: info, tokenize, detokenize, count_batch, next, inf_next,
matches, documents, document, cnf.

This file knows nothing of HTTP: see :mod:`orrery.ngram.http`. Every refusal is a status and a sentence.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orrery.core.errors import ConfigError, CorruptionError, OrreryError, StorageError, suggest
from orrery.ngram import passages
from orrery.ngram.homes import DESCRIPTION, open_steady, plain_text, token_text
from orrery.ngram.union import Union, plain_matches

_QUICK = 1024  # ids up to which a count takes microseconds


@dataclass(frozen=True)
class Limits:
    """What one request, one sender and all of them together may ask for.

    body_bytes: of a request. characters, tokens: of a query. batch: n-grams of a batch. clauses, terms: of a conjunction,
    and of one clause. anchors: occurrences of the rarest clause that are looked through. documents, shown: documents of an
    answer, and tokens of each. seconds: for an answer. threads: answers worked out at once; waiting: those in the queue,
    of which one sender may have `per_sender`. connections: open at once.
    """

    body_bytes: int = 1 << 20
    characters: int = 50_000
    tokens: int = 20_000
    batch: int = 10_000
    clauses: int = 8
    terms: int = 32
    anchors: int = 2_000_000
    documents: int = 100
    shown: int = 10_000
    seconds: float = 10.0
    threads: int = 2
    waiting: int = 64
    per_sender: int = 32
    connections: int = 512


class Refused(OrreryError):
    """A request that is not answered.

    status: of HTTP: 400 malformed, 404 unknown, 413 too large, 429 too many, 503 too busy or too slow.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Continuations(Mapping[str, dict[str, Any]]):
    """A distribution as the public API has it: id -> token, prob, cont_cnt.

    There may be ten thousand entries, so they are written without being made: what an id's entry begins with is known from
    the time before, and most counts are shared by many.
    """

    def __init__(self, served: Served, ids: list[int], counts: list[int]) -> None:
        self._served, self._counts = served, dict(zip(ids, counts, strict=True))
        self.total = sum(counts)

    def __getitem__(self, key: str) -> dict[str, Any]:
        count = self._counts[int(key)]
        return {"token": self._served.texts([int(key)])[0], "prob": count / self.total, "cont_cnt": count}

    def __iter__(self) -> Iterator[str]:
        return map(str, self._counts)

    def __len__(self) -> int:
        return len(self._counts)

    def json(self) -> str:
        """The same as a JSON object."""
        ends = {count: f'"prob":{count / self.total!r},"cont_cnt":{count}}}' for count in set(self._counts.values())}
        begins = self._served.beginnings(self._counts)
        return "{" + ",".join([begins[i] + ends[count] for i, count in self._counts.items()]) + "}"


def encode(answer: Any) -> bytes:
    """JSON in UTF-8; of an answer with a distribution, with that last."""
    found = answer.get("result_by_token_id") if type(answer) is dict else None
    rest = {key: value for key, value in answer.items() if value is not found} if isinstance(found, Continuations) else answer
    text = json.dumps(rest, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    if isinstance(found, Continuations):
        text = f'{text[:-1]},"result_by_token_id":{found.json()}}}'
    return text.encode("utf-8", "replace")


class Served:
    """An index that is being served; of a folder, always its newest build."""

    def __init__(self, name: str, source: Any) -> None:
        self.name = name
        self.folder = source if isinstance(source, Path) else None
        self._stamp = self._look()
        self.index: Any = open_steady(source) if isinstance(source, Path) else source
        self._texts: dict[int, str] = {}
        self._beginnings: dict[int, str] = {}
        _warm(self.index)

    def _look(self) -> tuple[int, int] | None:
        """Changes with every build; None while there is nothing."""
        if self.folder is None:
            return None
        try:
            found = (self.folder / DESCRIPTION).stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def refresh(self) -> bool:
        """Open the index anew if it was built anew; the old one answers until that is done."""
        stamp = self._look()
        if stamp is None or stamp == self._stamp or self.folder is None:
            return False
        try:
            fresh = open_steady(self.folder)
        except (StorageError, CorruptionError):
            return False  # perhaps it is whole the next time
        _warm(fresh)
        self._stamp, self.index, self._texts, self._beginnings = stamp, fresh, {}, {}
        return True

    def texts(self, ids: Any) -> list[str]:
        """What tokens look like."""
        known, index = self._texts, self.index
        found = []
        for token in ids:
            text = known.get(token)
            if text is None:
                text = known[token] = token_text(index, int(token))
            found.append(text)
        return found


    def beginnings(self, ids: Any) -> dict[int, str]:
        """What the entries of tokens begin with, in JSON, of these and of others."""
        known = self._beginnings
        for token in ids:
            if token not in known:
                text = json.dumps(self.texts([token])[0], ensure_ascii=False)
                known[token] = f'"{token}":{{"token":{text},'
        return known


class Service:
    """Indexes by name, and the answers to requests.

    Args:
        indexes: name -> folder, :class:`~orrery.ngram.index.Index` or :class:`~orrery.ngram.union.Union`.
    """

    def __init__(self, indexes: dict[str, Any], limits: Limits | None = None) -> None:
        if not indexes:
            raise ConfigError("there is no index to serve")
        self.limits = limits or Limits()
        self.served = {name: Served(name, source) for name, source in indexes.items()}
        own = ("info", "tokenize", "detokenize", "count_batch", "next", "inf_next", "matches", "documents", "document", "cnf")
        public = ("count", "prob", "ntd", "infgram_prob", "infgram_ntd", "find", "find_cnf", "search_docs")
        fetch = ("get_doc_by_rank", "get_doc_by_ptr")
        self._types: dict[str, Callable[..., dict[str, Any]]] = {
            name: getattr(self, f"_{name}") for name in (*public, *fetch, *own)
        }

    def names(self) -> list[str]:
        """Of the indexes."""
        return list(self.served)

    def refresh(self) -> None:
        """Take up indexes that were built anew."""
        for each in self.served.values():
            each.refresh()

    def parse(self, body: bytes) -> dict[str, Any]:
        """The JSON object of a request.

        Raises:
            Refused: it is none.
        """
        try:
            request = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"the request is not JSON: {str(error)[:100]}") from error
        if type(request) is not dict:
            raise Refused(400, "the request must be a JSON object with index, query_type, and query or query_ids")
        return request

    def quick(self, request: dict[str, Any]) -> bool:
        """Whether the answer takes microseconds, so that it is not worth a thread."""
        if request.get("query_type") not in ("count", "prob", "infgram_prob"):
            return False
        ids, text = request.get("query_ids"), request.get("query")
        small = len(ids) <= _QUICK and not (ids and type(ids[0]) is list) if type(ids) is list else False
        if type(text) is str:
            small = len(text) <= _QUICK and " AND " not in text and " OR " not in text
        served = self.served.get(_name(request)) if type(_name(request)) is str else None
        return small and served is not None and not isinstance(served.index, Union)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The response to a request.

        Raises:
            Refused: it cannot be answered.
        """
        started = time.perf_counter()
        kind, name = request.get("query_type"), _name(request)
        if type(kind) is not str or type(name) is not str:
            raise Refused(400, "a request needs 'index' and 'query_type', both of them text")
        served = self.served.get(name)
        if served is None:
            listed = ", ".join(self.served)
            raise Refused(404, f"there is no index '{name[:80]}'.{suggest(name[:80], self.served)} This service has: {listed}")
        method = self._types.get(kind)
        if method is None:
            raise Refused(400, f"unknown query_type '{kind[:80]}'.{suggest(kind[:80], self._types)}")
        try:
            result = method(served, request)
        except Refused:
            raise
        except (CorruptionError, StorageError) as error:
            raise Refused(500, str(error)) from error
        except OrreryError as error:
            raise Refused(400, str(error)) from error
        result["latency"] = round((time.perf_counter() - started) * 1000, 4)
        return result

    def respond(self, request: dict[str, Any]) -> bytes:
        """:meth:`answer` as it is sent."""
        return encode(self.answer(request))

    # ---------------------------------------------------------------- reading requests

    def _ids(self, served: Served, request: dict[str, Any], key: str = "query_ids", empty: bool = True) -> list[int]:
        """The n-gram of a request."""
        found = self._terms(served, request, key)
        if found and type(found[0]) is list:
            raise Refused(400, "this query_type takes one n-gram, not a conjunction")
        if not found and not empty:
            raise Refused(400, "the query must not be empty")
        return found

    def _terms(self, served: Served, request: dict[str, Any], key: str = "query_ids", conjunction: bool = False) -> list[Any]:
        text, ids = request.get("query"), request.get(key)
        if (text is None) == (ids is None):
            raise Refused(400, "give exactly one of 'query' (text) and 'query_ids' (a list of ids)")
        if text is not None:
            if type(text) is not str:
                raise Refused(400, "'query' must be text")
            if len(text) > self.limits.characters:
                raise Refused(413, f"the query has {len(text):,} characters; at most {self.limits.characters:,} are answered")
            if conjunction and (" AND " in text or " OR " in text):
                return [[self._encode(served, t) for t in clause.split(" OR ")] for clause in text.split(" AND ")]
            return self._encode(served, text)
        if type(ids) is not list:
            raise Refused(400, "'query_ids' must be a list of whole numbers, or of lists of lists of them")
        nested = bool(ids) and type(ids[0]) is list
        if not nested:
            self._check(ids)
        elif not all(type(c) is list and all(type(t) is list for t in c) for c in ids):
            raise Refused(400, "a conjunction is a list of clauses, each a list of n-grams, each a list of ids")
        return ids

    def _check(self, ids: list[Any]) -> None:
        if len(ids) > self.limits.tokens:
            raise Refused(413, f"the query has {len(ids):,} ids; at most {self.limits.tokens:,} are answered")
        for i in ids:
            if type(i) is not int or not 0 <= i < 1 << 32:
                raise Refused(400, "an id must be a whole number from 0 to 2^32 - 1")

    def _encode(self, served: Served, text: str) -> list[int]:
        tokenizer = served.index.tokenizer
        if tokenizer is None:
            raise Refused(400, f"the index '{served.name}' has no tokenizer; give 'query_ids'")
        ids: list[int] = tokenizer.encode(text).tolist() if text else []
        self._check(ids)
        return ids

    def _clauses(self, served: Served, request: dict[str, Any], empty: bool = False) -> list[list[list[int]]]:
        found = self._terms(served, request, conjunction=True)
        clauses = found if found and type(found[0]) is list else [[found]]
        if len(clauses) > self.limits.clauses or any(len(clause) > self.limits.terms for clause in clauses):
            raise Refused(
                413, f"a conjunction has at most {self.limits.clauses} clauses of at most {self.limits.terms} n-grams each"
            )
        if any(not clause or not all(clause) for clause in clauses) and not (empty and clauses == [[[]]]):
            raise Refused(400, "a conjunction needs an n-gram in every clause, and an id in every n-gram")
        for clause in clauses:
            for term in clause:
                self._check(term)
        return clauses

    def _number(self, request: dict[str, Any], key: str, default: Any, least: int, most: int) -> Any:
        value = request.get(key)
        if value is None:
            return default
        if type(value) is not int or not least <= value <= most:
            raise Refused(400, f"'{key}' must be a whole number from {least} to {most}")
        return value

    # ---------------------------------------------------------------- the public API

    def _said(self, served: Served, ids: list[int], **more: Any) -> dict[str, Any]:
        return {**more, "token_ids": ids, "tokens": served.texts(ids)}

    def _count(self, served: Served, request: dict[str, Any]) -> dict[str, Any]:
        found = self._terms(served, request, conjunction=True)
        if not (found and type(found[0]) is list):
            return self._said(served, found, count=served.index.count(found), approx=False)
        clauses = self._clauses(served, request)
        window, cap = self._window(request)
        if len(clauses) == 1 and len(clauses[0]) == 1:
            matches, exact = served.index.count(clauses[0][0]), True
        else:
            self._affordable(served, clauses, cap)
            matches, exact = served.index.count_cnf(clauses, window, cap=cap)
        return {"count": matches, "approx": not exact, "token_ids": clauses, "tokens": _nested(served, clauses)}

    def _window(self, request: dict[str, Any]) -> tuple[int, int | None]:
        return self._number(request, "max_diff_tokens", 100, 1, 1000), self._number(request, "max_clause_freq", None, 1, 500_000)

    def _affordable(self, served: Served, clauses: list[list[list[int]]], cap: int | None) -> None:
        index, most = served.index, self.limits.anchors
        least = min(sum(int(n) for n in index.count_batch(clause)) for clause in clauses)
        if min(least, cap or least) > most:
            raise Refused(413, f"the rarest clause occurs {least:,} times; above {most:,} give 'max_clause_freq' for an estimate")

    def _prob(self, served: Served, request: dict[str, Any]) -> dict[str, Any]:
        ids = self._ids(served, request, empty=False)
        prob, hits, total = served.index.prob_info(ids[:-1], ids[-1])
        return self._said(served, ids, prompt_cnt=total, cont_cnt=hits, prob=-1.0 if math.isnan(prob) else prob)

    def _infgram_prob(self, served: Served, request: dict[str, Any]) -> dict[str, Any]:
        ids = self._ids(served, request, empty=False)
        prob, hits, total, n, sparse = served.index.inf_prob_info(ids[:-1], ids[-1])
        suffix = plain_text(served.index, ids[len(ids) - 1 - n : -1])
        found = {"prompt_cnt": total, "cont_cnt": hits, "prob": prob, "suffix_len": n, "longest_suffix": suffix}
        return self._said(served, ids, **found, sparse=bool(sparse))

    def _ntd(self, served: Served, request: dict[str, Any]) -> dict[str, Any]:
        ids = self._ids(served, request)
        most = self._number(request, "max_support", None, 1, 1 << 40)
        found = served.index.next(ids)
        return self._said(served, ids, **_distribution(served, found.ids, found.counts, most))

    def _infgram_ntd(self, served: Served, request: dict[str, Any]) -> dict[str, Any]:
        ids = self._ids(served, request)
        most = self._number(request, "max_support", None, 1, 1 << 40)
        found = served.index.inf_next(ids)
        suffix = plain_text(served.index, ids[len(ids) - found.n :])
        more = {"suffix_len": found.n, "longest_suffix": suffix, "sparse": bool(found.sparse)}
        return self._said(served, ids, **_distribution(served, found.ids, found.counts, most), **more)

    def _find(self, served: Served, request: dict[str, Any]) -> dict[str, Any]:
        ids = self._ids(served, request, empty=False)
        index = passages.single(served.index)
        ranges = {found.shard: [found.low, found.high] for found in index.find(ids)}
        segments = [ranges.get(number, [0, 0]) for number in range(len(index.shards))]
        return self._said(served, ids, cnt=sum(b - a for a, b in segments), segment_by_shard=segments)

    def _find_cnf(self, served: Served, request: dict[str, Any]) -> dict[str, Any]:
        clauses = self._clauses(served, request)
        window, cap = self._window(request)
        self._affordable(served, clauses, cap)
        found = passages.matches(passages.single(served.index), clauses, window, cap)
        return {
            "cnt": found.hits,
            "approx": not found.exact,
            "ptrs_by_shard": found.places,
            "truncated": found.truncated,
            "token_ids": clauses,
            "tokens": _nested(served, clauses),
        }

    def _shown(self, request: dict[str, Any]) -> int:
        most = self.limits.shown
        return int(self._number(request, "max_disp_len", min(1000, most), 1, most))

    def _get_doc_by_rank(self, served: Served, request: dict[str, Any]) -> dict[str, Any]:
        index, ids = passages.single(served.index), self._ids(served, request)
        shard = self._number(request, "s", 0, 0, len(index.shards) - 1)
        rank = self._number(request, "rank", 0, 0, index.shards[shard].ranks - 1)
        place = passages.place_of_rank(index, shard, rank)
        return passages.passage(index, place, [[ids]] if ids else [], self._shown(request))

    def _get_doc_by_ptr(self, served: Served, request: dict[str, Any]) -> dict[str, Any]:
        index, clauses = passages.single(served.index), self._clauses(served, request)
        shard = self._number(request, "s", 0, 0, len(index.shards) - 1)
        pointer = self._number(request, "ptr", 0, 0, index.shards[shard].n - 1)
        return passages.passage(index, passages.start_of(index, shard) + pointer, clauses, self._shown(request))

    def _search_docs(self, served: Served, request: dict[str, Any]) -> dict[str, Any]:
        index, shown = passages.single(served.index), self._shown(request)
        limit = self._number(request, "maxnum", 1, 1, self.limits.documents)
        clauses = self._clauses(served, request, empty=True)
        if clauses == [[[]]]:  # any document
            count, exact, said = index.count([]), True, self._said(served, [])
            places = [index.catalogue.bounds(number)[0] for number in range(min(limit, index.documents_total))]
        elif len(clauses) == 1 and len(clauses[0]) == 1:
            count, exact = index.count(clauses[0][0]), True
            places = [d.start + 1 + d.places[0] for d in index.documents(clauses[0][0], limit, context=0)]
            said = self._said(served, clauses[0][0])
        else:
            window, cap = self._window(request)
            self._affordable(served, clauses, cap)
            found = passages.matches(index, clauses, window, cap)
            count, exact, places = found.hits, found.exact, passages.first_documents(index, found, limit)
            said = {"token_ids": clauses, "tokens": _nested(served, clauses)}
        documents = [passages.passage(index, place, clauses, shown) for place in places]
        about = "Approximately " * (not exact)
        message = f"{about}{count} occurrences found, {len(documents)} documents shown" if count else "0 occurrences found"
        idxs = list(range(len(documents)))
        return {"cnt": count, "approx": not exact, "idxs": idxs, "documents": documents, "message": message, **said}

    # ---------------------------------------------------------------- our own

    def _info(self, served: Served, request: dict[str, Any]) -> dict[str, Any]:
        index = served.index
        return {
            "name": served.name,
            "tokens": index.tokens,
            "documents": index.documents_total,
            "vocab_size": index.vocab_size,
            "doc_id": index.doc_id,
            "tokenizer": index.info["tokenizer"],
            "about": index.info.get("source", {}),
        }

    def _tokenize(self, served: Served, request: dict[str, Any]) -> dict[str, Any]:
        return self._said(served, self._ids(served, request))

    def _detokenize(self, served: Served, request: dict[str, Any]) -> dict[str, Any]:
        ids = self._ids(served, request)
        return {"text": plain_text(served.index, ids), "tokens": served.texts(ids)}

    def _count_batch(self, served: Served, request: dict[str, Any]) -> dict[str, Any]:
        queries = request.get("queries")
        if type(queries) is not list or any(type(each) is not list for each in queries):
            raise Refused(400, "'queries' must be a list of n-grams, each a list of ids")
        if len(queries) > self.limits.batch:
            raise Refused(413, f"the batch has {len(queries):,} n-grams; at most {self.limits.batch:,} are answered")
        for each in queries:
            self._check(each)
        return {"counts": served.index.count_batch(queries).tolist() if queries else []}

    def _next(self, served: Served, request: dict[str, Any]) -> dict[str, Any]:
        found = served.index.next(self._ids(served, request))
        return {"ids": found.ids.tolist(), "counts": found.counts.tolist()}

    def _inf_next(self, served: Served, request: dict[str, Any]) -> dict[str, Any]:
        found = served.index.inf_next(self._ids(served, request))
        return {"ids": found.ids.tolist(), "counts": found.counts.tolist(), "suffix_len": found.n, "total": int(found.total)}

    def _matches(self, served: Served, request: dict[str, Any]) -> dict[str, Any]:
        arrays = plain_matches(served.index, np.array(self._ids(served, request), dtype=np.int64))
        return {key: array.tolist() for key, array in zip(("hits", "totals", "lengths", "only"), arrays, strict=True)}

    def _documents(self, served: Served, request: dict[str, Any]) -> dict[str, Any]:
        limit = self._number(request, "limit", 10, 0, self.limits.documents)
        context = self._number(request, "context", None, 0, self.limits.shown)
        ids = self._ids(served, request)
        found = served.index.documents(ids, limit, context=self.limits.shown // 2 if context is None else context)
        return {"documents": [passages.described(one, self.limits.shown) for one in found]}

    def _document(self, served: Served, request: dict[str, Any]) -> dict[str, Any]:
        one = served.index.document(self._number(request, "number", 0, 0, 1 << 60))
        if one.length > self.limits.shown:
            raise Refused(413, f"the document has {one.length:,} tokens; at most {self.limits.shown:,} are sent")
        return {"document": passages.described(one, self.limits.shown)}

    def _cnf(self, served: Served, request: dict[str, Any]) -> dict[str, Any]:
        clauses = self._clauses(served, request)
        anchor = self._number(request, "anchor", None, 0, len(clauses) - 1)
        cap, window = self._number(request, "cap", None, 1, 1 << 40), self._number(request, "window", 100, 0, 1000)
        self._affordable(served, clauses if anchor is None else [clauses[anchor]], cap)
        found = served.index.count_cnf(clauses, window, cap=cap, anchor=anchor)
        return {"matches": int(found.matches), "exact": bool(found.exact)}


def _warm(index: Any) -> None:
    """Have the loops compiled before somebody waits for them."""
    index.count([])
    index.prob_info([], index.doc_id)
    index.inf_prob_info([], index.doc_id)
    index.next([index.doc_id])
    index.inf_next([index.doc_id])


def _name(request: dict[str, Any]) -> Any:
    return request.get("index", request.get("corpus"))


def _nested(served: Served, clauses: list[list[list[int]]]) -> list[list[list[str]]]:
    return [[served.texts(term) for term in clause] for clause in clauses]


def _distribution(served: Served, ids: Any, counts: Any, most: int | None) -> dict[str, Any]:
    """Fields of a distribution: of all occurrences, or estimated from `most` of them, spread evenly."""
    total = int(counts.sum())
    approximate = most is not None and total > most
    if most is not None and approximate:
        ids, counts = thinned(ids, counts, most)
    return {"prompt_cnt": total, "result_by_token_id": Continuations(served, ids.tolist(), counts.tolist()), "approx": approximate}


def thinned(ids: Any, counts: Any, most: int) -> tuple[Any, Any]:
    """Continuations (ids and counts, (K,)) as looking at `most` of their occurrences or fewer would give them.

    The occurrences stand in their order in equal stretches; the one in the middle of each speaks for the stretch.
    """
    total = int(counts.sum())
    begins = np.arange(0, total, -(-total // most))
    ends = np.append(begins[1:], total)
    places = np.searchsorted(np.cumsum(counts), (begins + ends) // 2, side="right")
    found, which = np.unique(places, return_inverse=True)
    return ids[found], np.bincount(which, weights=ends - begins).astype(np.int64)
