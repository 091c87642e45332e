"""An index behind a service, with the queries of one that is here.

    index = Remote("http://127.0.0.1:8766/stdlib")
    index.count(ids); index.inf_next(ids)
    Union([Remote("http://a:8766/part-1"), Remote("http://b:8766/part-2")])     # one corpus on two hosts

Connections are kept open, one per thread. A service that answers with an error is heard: the error is raised here.
"""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from orrery.core.errors import ConfigError, DataError, StorageError
from orrery.ngram.answers import CnfCount, Document, InfNext, InfProbability, Next, Probability
from orrery.ngram.index import Ids

_BATCH, _BATCH_IDS = 5_000, 100_000  # n-grams, and ids, of one request


class RemoteTokenizer:
    """The tokenizer of a service's index: texts go there to be encoded."""

    def __init__(self, remote: Remote, name: str, digest: str) -> None:
        self._remote, self.name, self.hash = remote, name, digest
        self.unknown_id: int | None = None

    def encode(self, text: str) -> NDArray[np.int64]:
        """Ids of a text: (n,)."""
        return np.array(self._remote.ask("tokenize", query=text)["token_ids"], dtype=np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids."""
        listed = [int(i) for i in ids]
        return str(self._remote.ask("detokenize", query_ids=listed)["text"]) if listed else ""


class Remote:
    """A service's index.

    Args:
        url: of the service, with the index's name as its path: `http://host:8766/stdlib`.
        timeout: seconds to wait for an answer.

    Raises:
        ConfigError: the address is none.
        StorageError: nobody answers there.
        DataError: the service has no such index.
    """

    remote = True

    def __init__(self, url: str, *, timeout: float = 30.0) -> None:
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"'{url}' is no address of an index: {error}") from error
        self.name = unquote(parts.path.strip("/"))
        if parts.scheme not in ("http", "https") or not parts.hostname or not self.name or "/" in self.name:
            raise ConfigError(f"'{url}' is no address of an index; write it as in http://host:8766/NAME")
        self.url, self.timeout = url, timeout
        self._where = (parts.scheme, parts.hostname, port)
        self._local = threading.local()
        self._opened: set[http.client.HTTPConnection] = set()
        about = self.ask("info")
        self.info: dict[str, Any] = {"tokenizer": about["tokenizer"], "source": about["about"]}
        self.tokens, self.documents_total = int(about["tokens"]), int(about["documents"])
        self.vocab_size, self.doc_id = int(about["vocab_size"]), int(about["doc_id"])
        known = about["tokenizer"]
        self.tokenizer = RemoteTokenizer(self, known["name"], known["hash"]) if known else None

    def __repr__(self) -> str:
        return f"<n-gram index {self.url}>"

    def __del__(self) -> None:
        if hasattr(self, "_opened"):
            self.close()

    def close(self) -> None:
        """Close all connections; a later query opens a new one."""
        while self._opened:
            self._opened.pop().close()
        self._local = threading.local()

    def _drop(self) -> None:
        """Close this thread's connection."""
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            self._local.connection = None
            self._opened.discard(connection)

    def _connection(self) -> http.client.HTTPConnection:
        found: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if found is None:
            scheme, host, port = self._where
            kind = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
            found = self._local.connection = kind(host, port, timeout=self.timeout)
            self._opened.add(found)
        return found

    def ask(self, query_type: str, **fields: Any) -> dict[str, Any]:
        """Send a request and return the response.

        Raises:
            DataError: the service refuses the request.
            StorageError: it cannot be reached, is too busy, or what it says is no answer.
        """
        body = json.dumps({"index": self.name, "query_type": query_type, **fields}).encode()
        status, data = self._exchange(body)
        try:
            answer = json.loads(data)
        except ValueError as error:
            raise StorageError(f"what answers at {self.url} is no n-gram service (status {status})") from error
        if not isinstance(answer, dict) or "error" in answer or status != 200:
            why = answer.get("error") if isinstance(answer, dict) else None
            kind = DataError if status in (200, 400, 404, 413) else StorageError
            raise kind(f"{self.url} says: {why or f'status {status}'}")
        return answer

    def _exchange(self, body: bytes) -> tuple[int, bytes]:
        """One request; a connection that the service has closed meanwhile is opened anew, once."""
        for attempt in (0, 1):
            kept = getattr(self._local, "connection", None) is not None
            connection = self._connection()
            try:
                connection.request("POST", "/", body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                return response.status, response.read()
            except (OSError, http.client.HTTPException) as error:
                self._drop()
                stale = isinstance(error, ConnectionError | http.client.BadStatusLine)
                if attempt or not (kept and stale):
                    raise StorageError(f"nobody answers at {self.url}: {str(error) or type(error).__name__}") from error
        raise AssertionError("unreachable")

    # ---------------------------------------------------------------- queries

    def count(self, ids: Ids) -> int:
        """See :meth:`orrery.ngram.index.Index.count`."""
        return int(self.ask("count", query_ids=_listed(ids))["count"])

    def count_batch(self, queries: Iterable[Ids]) -> NDArray[np.int64]:
        """See :meth:`orrery.ngram.index.Index.count_batch`."""
        counts: list[int] = []
        batch: list[list[int]] = []
        size = 0
        for query in queries:
            batch.append(_listed(query))
            size += len(batch[-1])
            if len(batch) == _BATCH or size > _BATCH_IDS:
                counts += self.ask("count_batch", queries=batch)["counts"]
                batch, size = [], 0
        if batch:
            counts += self.ask("count_batch", queries=batch)["counts"]
        return np.array(counts, dtype=np.int64)

    def prob_info(self, context: Ids, id: int) -> Probability:  # noqa: A002 - the public name
        """See :meth:`orrery.ngram.index.Index.prob_info`."""
        found = self.ask("prob", query_ids=[*_listed(context), int(id)])
        hits, total = int(found["cont_cnt"]), int(found["prompt_cnt"])
        return Probability(hits / total if total else float("nan"), hits, total)

    def prob(self, context: Ids, id: int) -> float:  # noqa: A002
        """The probability of :meth:`prob_info` alone."""
        return self.prob_info(context, id).prob

    def inf_prob_info(self, context: Ids, id: int) -> InfProbability:  # noqa: A002
        """See :meth:`orrery.ngram.index.Index.inf_prob_info`."""
        found = self.ask("infgram_prob", query_ids=[*_listed(context), int(id)])
        hits, total = int(found["cont_cnt"]), int(found["prompt_cnt"])
        return InfProbability(hits / total, hits, total, int(found["suffix_len"]), bool(found["sparse"]))

    def inf_prob(self, context: Ids, id: int) -> float:  # noqa: A002
        """The probability of :meth:`inf_prob_info` alone."""
        return self.inf_prob_info(context, id).prob

    def matches(self, ids: Ids) -> tuple[NDArray[np.int64], ...]:
        """See :meth:`orrery.ngram.index.Index.matches`; a document's end is `doc_id`."""
        found = self.ask("matches", query_ids=_listed(ids))
        return tuple(np.array(found[key], dtype=np.int64) for key in ("hits", "totals", "lengths", "only"))

    def next(self, context: Ids) -> Next:
        """See :meth:`orrery.ngram.index.Index.next`."""
        found = self.ask("next", query_ids=_listed(context))
        return Next(np.array(found["ids"], dtype=np.int64), np.array(found["counts"], dtype=np.int64))

    def inf_next(self, context: Ids) -> InfNext:
        """See :meth:`orrery.ngram.index.Index.inf_next`."""
        found = self.ask("inf_next", query_ids=_listed(context))
        ids, counts = np.array(found["ids"], dtype=np.int64), np.array(found["counts"], dtype=np.int64)
        return InfNext(ids, counts, int(found["suffix_len"]), len(ids) == 1, int(found["total"]))

    def documents(self, ids: Ids, limit: int = 10, *, context: int | None = None) -> list[Document]:
        """See :meth:`orrery.ngram.index.Index.documents`; of long documents the service sends a part."""
        found = self.ask("documents", query_ids=_listed(ids), limit=limit, context=context)
        return [_document(each) for each in found["documents"]]

    def document(self, number: int) -> Document:
        """See :meth:`orrery.ngram.index.Index.document`."""
        return _document(self.ask("document", number=number)["document"])

    def count_cnf(
        self, clauses: Sequence[Sequence[Ids]], window: int = 100, *, cap: int | None = None, anchor: int | None = None
    ) -> CnfCount:
        """See :meth:`orrery.ngram.index.Index.count_cnf`."""
        listed = [[_listed(term) for term in clause] for clause in clauses]
        found = self.ask("cnf", query_ids=listed, window=window, cap=cap, anchor=anchor)
        return CnfCount(int(found["matches"]), bool(found["exact"]))


def _listed(ids: Ids) -> list[int]:
    return [int(i) for i in ids]


def _document(fields: dict[str, Any]) -> Document:
    return Document(**{**fields, "ids": np.array(fields["ids"], dtype=np.int64)})
