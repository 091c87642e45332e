"""Back-off models over token ids: counted, not trained. Modified Kneser-Ney, Good-Turing, stupid back-off; any order.

    model = BackoffModel.fit(tokens, vocabulary, order=5, document=doc_id)
    model.log_probabilities(tokens)       natural logarithms, (N,)
    model.distribution(context)           P(w | context) for every w, (V,)
    model.save(folder); BackoffModel.open(folder)

Papers: An Empirical Study of Smoothing Techniques for Language Modeling (Chen and Goodman 1998; cmp-lg/9606011); Katz 1987;
Brants et al. 2007. Equations in :mod:`orrery.ngram.smoothing`, the layout of the tables in :mod:`orrery.ngram.trie`.

Looking up: the walker stands on the node of the longest context that was seen. If the next token continues it, the stored
probability is the answer; if not, the context's weight is paid and the walker follows the node's link to the context
without its first token. Most tokens cost one or two binary searches, whatever the order.

V vocabulary, N tokens, n order, G n-grams of all orders, R rows.
"""

from __future__ import annotations

from array import array
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from orrery.core.errors import CorruptionError, DataError, StorageError
from orrery.core.files import MANIFEST, atomic_directory, read_json, sha256_file, write_json
from orrery.ngram.smoothing import smooth
from orrery.ngram.threads import spread
from orrery.ngram.trie import Floats, Ints, Trie, backend_for, count_ngrams, token_type
from orrery.ngram.words import Vocabulary

FORMAT = 1
DESCRIPTION = "backoff.json"
ARRAYS = ("offsets", "word", "first", "link", "probability", "backoff")
VERIFY_BELOW = 64_000_000  # bytes of tables whose checksums are checked whenever they are opened
_PIECE = 8192
_LANES = 32  # pieces that are walked in turns


class Scores(NamedTuple):
    """Of every token: natural logarithm of its probability (N,), order of the n-gram that answered (N,), and the node of the
    context behind it (N,), -1 for none."""

    log_probability: Floats
    order: Ints
    context: Ints


class BackoffModel:
    """Tables of a back-off model; see :meth:`fit`, :meth:`open` and :func:`orrery.ngram.arpa.read_arpa`.

    Attributes:
        vocabulary: V. document: the id that begins a document, or None. ends: whether it is predicted, too.
        order: the longest n-gram. method: how it was smoothed. facts: discounts and the like.
        words: V labels, for models over words and ARPA files; None for token ids.
    """

    def __init__(self, tables: dict[str, Any], vocabulary: int, document: int | None, ends: bool = True,
                 method: str = "kneser-ney", facts: dict[str, Any] | None = None, words: list[str] | None = None) -> None:  # fmt: skip
        self.offsets, self.word, self.first, self.link, self.probability, self.backoff = (tables[name] for name in ARRAYS)
        self.vocabulary, self.document, self.ends, self.method = vocabulary, document, ends, method
        self.facts, self.words = facts or {}, words

    @classmethod
    def fit(
        cls, tokens: Any, vocabulary: int, order: int = 5, document: int | None = None, *, ends: bool = True,
        method: str = "kneser-ney", dtype: Any = np.float32, backend: str | None = None,
    ) -> BackoffModel:  # fmt: skip
        """Count the n-grams of a stream and smooth them.

        Args:
            tokens: (N,) ids below `vocabulary`.
            order: the longest n-gram, 1 to 16; orders for which the text is too short are left out.
            document: the id that begins a document; None: one document.
            ends: that id is also predicted, as the end of the document before; False: it is context only, as <s> is.
            method: `kneser-ney`, `good-turing` or `stupid-backoff`.
            dtype: of the probabilities kept; float32 (4 bytes an n-gram) is exact to 6e-8 of each.
            backend: `numba`, `numpy`, or None: numba for large texts.

        Raises:
            DataError: for an empty stream or ids outside the vocabulary.
            ConfigError: for an unknown method or impossible order.
        """
        trie = count_ngrams(tokens, vocabulary, order, document, ends, backend)
        return cls.from_trie(trie, method, dtype, backend)

    @classmethod
    def fit_sentences(
        cls, sentences: Any, order: int = 5, *, method: str = "kneser-ney", dtype: Any = np.float32, backend: str | None = None
    ) -> BackoffModel:
        """A model over words: sentences (strings, split at white space, or lists of words) between <s> and </s>.

        The ids are <unk> 0, <s> 1, </s> 2, then the words as they appear. Nothing is counted for <unk>: it has its share of
        the uniform distribution below the unigrams, as in KenLM.

        Raises:
            DataError: when there is no sentence, or one holds a mark.
        """
        table: dict[str, int] = {"<unk>": 0, "<s>": 1, "</s>": 2}
        stream = array("i")
        for sentence in sentences:
            words = sentence.split() if isinstance(sentence, str) else sentence
            stream.append(1)
            for word in words:
                token = table.setdefault(word, len(table))
                if token < 3:
                    raise DataError(f"a sentence holds the mark '{word}', which sentences are framed with")
                stream.append(token)
            stream.append(2)
        if not stream:
            raise DataError("there is no sentence to count")
        text = np.frombuffer(stream, dtype=np.int32)
        model = cls.fit(text, len(table), order, document=1, ends=False, method=method, dtype=dtype, backend=backend)
        model.words = list(table)
        return model

    @classmethod
    def from_trie(cls, trie: Trie, method: str, dtype: Any = np.float32, backend: str | None = None) -> BackoffModel:
        """Smooth counts that are there already."""
        probability, backoff, facts = smooth(trie, method, dtype, backend)
        found = {"offsets": trie.offsets, "word": trie.word, "first": trie.first, "link": trie.link}
        tables = {**found, "probability": probability, "backoff": backoff}
        return cls(tables, trie.vocabulary, trie.document, trie.ends, method, facts)

    @property
    def order(self) -> int:
        """The longest n-gram."""
        return len(self.offsets) - 1

    @property
    def sizes(self) -> list[int]:
        """Number of n-grams of each order; of order 1, the vocabulary."""
        return np.diff(self.offsets).tolist()

    @property
    def bytes(self) -> int:
        """Of all tables."""
        return sum(int(getattr(self, name).nbytes) for name in ARRAYS)

    def log_probabilities(self, tokens: Any, backend: str | None = None) -> Floats:
        """Natural logarithm of the probability of each token given those before it in the array: (N,) -> (N,).

        0 at a document's mark that is context only.
        """
        return self.score(tokens, backend=backend).log_probability

    def score(self, tokens: Any, starts: Any = (0,), backend: str | None = None) -> Scores:
        """Walk over rows of text laid end to end.

        Args:
            tokens: (N,) ids.
            starts: (R,) where rows begin, ascending from 0: nothing is remembered across them.

        Raises:
            DataError: for ids outside the vocabulary.
        """
        text, begins = self._text(tokens), np.array(starts, dtype=np.int64)
        value, used, nodes = np.ones(len(text)), np.ones(len(text), dtype=np.int64), np.full(len(text), -1, dtype=np.int64)
        if backend_for(16 * len(text), backend) == "numba" and len(text):
            self._walk(text, begins, value, used, nodes)
        else:
            self._step(text, begins, value, used, nodes)
        with np.errstate(divide="ignore"):
            return Scores(np.log(value), used, nodes)

    def distribution(self, context: Any) -> Floats:
        """P(w | context) for every w: (V,), summing to 1. Only the last order - 1 tokens matter."""
        history = self._text(context)
        node = self.score(history[max(0, len(history) - self.order) :]).context[-1] if len(history) else -1
        return self.distributions(np.array([node]))[0]

    def distributions(self, nodes: Ints, backend: str | None = None, dtype: Any = np.float64) -> Floats:
        """P(w | context) for context nodes (R,) of :meth:`score`: (R,V)."""
        nodes = np.array(nodes, dtype=np.int64)
        out = np.empty((len(nodes), self.vocabulary), dtype=dtype)
        if backend_for(out.size, backend) == "numba":
            from orrery.ngram.backoff_loops import distributions

            given = (nodes, *self._arrays, out)
            spread(lambda a, b: distributions(a, b, *given), len(nodes), 1 + (1 << 16) // self.vocabulary)
            return out
        for row, node in zip(out, nodes.tolist(), strict=True):
            chain, scale = [], 1.0
            while node >= 0:
                chain.append((node, scale))
                scale *= float(self.backoff[node])
                node = int(self.link[node])
            np.multiply(self.probability[: self.vocabulary], np.float64(scale), out=row)
            for x, weight in reversed(chain):
                children = slice(int(self.first[x]), int(self.first[x + 1]))
                row[self.word[children.start - self.vocabulary : children.stop - self.vocabulary]] = (
                    self.probability[children] * np.float64(weight)
                )
        return out

    def save(self, folder: str | Path) -> Path:
        """Write the tables, whole or not at all, with checksums."""
        with atomic_directory(folder) as inside:
            for name in ARRAYS:
                np.save(inside / f"{name}.npy", getattr(self, name), allow_pickle=False)
            write_json(inside / DESCRIPTION, {
                "format": FORMAT, "vocabulary": self.vocabulary, "document": self.document, "ends": self.ends,
                "method": self.method, "facts": self.facts, "words": self.words,
            })  # fmt: skip
        return Path(folder)

    @classmethod
    def open(cls, folder: str | Path, verify: bool | None = None) -> BackoffModel:
        """Map the tables that :meth:`save` wrote; nothing is read until it is asked for.

        Args:
            verify: check the SHA-256 of the tables: True, False, or None for "when they are below 64 MB".

        Raises:
            StorageError: when there is no such folder.
            CorruptionError: when a file is missing, damaged, or they do not fit each other.
        """
        path = Path(folder)
        if not path.is_dir():
            raise StorageError(f"no n-gram model '{path}'")
        _check(path, verify)
        record = read_json(path / DESCRIPTION)
        if record.get("format") != FORMAT:
            raise CorruptionError(f"'{path / DESCRIPTION}' is of format {record.get('format')}; this version reads {FORMAT}")
        try:
            tables = {name: np.asarray(np.load(path / f"{name}.npy", mmap_mode="c", allow_pickle=False)) for name in ARRAYS}
            described = (record["vocabulary"], record["document"], record["ends"], record["method"], record["facts"], record["words"])
        except (OSError, ValueError, KeyError) as error:
            raise CorruptionError(f"'{path}' is damaged: {error}") from error
        check_tables(tables, described[0], str(path))
        return cls(tables, *described)

    def ids(self, words: Any) -> Ints:
        """Ids of labels; unknown ones become `<unk>`.

        Raises:
            DataError: when the model has no labels, or an unknown word meets a model without `<unk>`.
        """
        return self._vocabulary.look_up(words)

    def score_sentences(self, sentences: Any, begin: bool = True, end: bool = True, backend: str | None = None) -> Floats:
        """log10 of the probability of each sentence (a string, split at white space, or a list of words): (R,).

        Args:
            begin: put <s> before it. end: predict </s> behind it. A model that lacks the mark leaves it out.
            backend: as for :meth:`fit`.

        Raises:
            DataError: as for :meth:`ids`.
        """
        return self._sentences(list(sentences), begin, end, backend)[0] / np.log(10)

    def perplexity(self, sentences: Any) -> float:
        """Of sentences with their ends, unknown words included, as KenLM's `query` reports it."""
        nats, targets = self._sentences(list(sentences), True, True, None)
        if not targets:
            raise DataError("there is no word to score")
        return float(np.exp(-nats.sum() / targets))

    def _sentences(self, rows: list[Any], begin: bool, end: bool, backend: str | None) -> tuple[Floats, int]:
        """Natural logarithms of the probabilities of sentences (R,), and of how many words and ends they are made."""
        words = self._vocabulary
        marks = words.ids.get("<s>", -1) if begin else -1, words.ids.get("</s>", -1) if end else -1
        framed = sum(mark >= 0 for mark in marks)
        blocks = None
        if rows and all(isinstance(row, str) for row in rows) and backend_for(4 * sum(map(len, rows)), backend) == "numba":
            blocks = words.blocks(rows)
        if blocks is not None:
            parts = [part for found in spread(lambda a, b: self._blocks(blocks[a:b], marks), len(blocks), 1) for part in found]
            if min(least for _, _, least in parts) >= 0:
                nats = np.concatenate([sums for sums, _, _ in parts])
                return nats, sum(size for _, size, _ in parts) - len(rows) * (framed - (marks[1] >= 0))
        ids, lengths = words.plain(rows, *marks)  # names the first word that is not known, where there is no <unk>
        nats = self.score(ids, np.cumsum(lengths) - lengths, backend).log_probability
        sums: Floats = np.bincount(np.repeat(np.arange(len(lengths)), lengths), weights=nats, minlength=len(lengths)).astype(float)
        return sums, int(lengths.sum()) - len(rows) * (framed - (marks[1] >= 0))

    def _blocks(self, blocks: list[tuple[Any, int]], marks: tuple[int, int]) -> list[tuple[Floats, int, int]]:
        """Of blocks of sentences: natural logarithms, tokens with their marks, and the least id."""
        from orrery.ngram.word_loops import total

        found: list[tuple[Floats, int, int]] = []
        for text, rows in blocks:
            ids, lengths = self._vocabulary.read(text, rows, *marks)
            least = int(ids.min(initial=0))
            value, used, nodes = np.ones(len(ids)), np.empty(len(ids), dtype=np.int64), np.empty(len(ids), dtype=np.int64)
            sums = np.zeros(rows)
            if least >= 0 and len(ids):
                self._walk(ids, np.cumsum(lengths) - lengths, value, used, nodes, together=False)
                total(value, lengths, sums)
            found.append((sums, len(ids), least))
        return found

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        if self.words is None:
            raise DataError("this n-gram model is over token ids and has no words; score ids with log_probabilities")
        if len(self.words) != self.vocabulary:
            raise DataError(f"this n-gram model has {len(self.words):,} words and {self.vocabulary:,} ids; they must be as many")
        return Vocabulary(self.words)

    @property
    def _arrays(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in ARRAYS)

    @cached_property
    def _keys(self) -> list[Ints]:
        """Per order from 2 on: (context node) * V + token of its n-grams, sorted."""
        first, result = np.asarray(self.first), []
        for k in range(2, self.order + 1):
            above, here = slice(*self.offsets[k - 2 : k].tolist()), slice(*self.offsets[k - 1 : k + 1].tolist())
            parents = np.repeat(np.arange(above.start, above.stop), np.diff(first[above.start : above.stop + 1]))
            result.append(parents * self.vocabulary + self.word[here.start - self.vocabulary : here.stop - self.vocabulary])
        return result

    def _text(self, tokens: Any) -> Ints:
        text = np.asarray(tokens)
        if text.size and (text.ndim != 1 or text.dtype.kind not in "iu"):
            raise DataError("tokens are one row of whole numbers")
        if text.size and (int(text.min()) < 0 or int(text.max()) >= self.vocabulary):
            raise DataError(f"token {int(text.max())} is outside the vocabulary of {self.vocabulary}")
        return np.array(text, dtype=np.int64)

    def _walk(self, text: Ints, starts: Ints, value: Floats, used: Ints, nodes: Ints, together: bool = True) -> None:
        """Compiled: rows in pieces, each of which reads the order - 1 tokens before it again, so that they can be walked at the
        same time, and, `together`, in parallel."""
        from orrery.ngram.backoff_loops import score_pieces

        stops = np.append(starts[1:], len(text))
        pieces = np.maximum(1, -(-(stops - starts) // _PIECE))
        row = np.repeat(np.arange(len(starts)), pieces)
        begin = starts[row] + _PIECE * (np.arange(len(row)) - np.repeat(np.cumsum(pieces) - pieces, pieces))
        end, warm = np.minimum(begin + _PIECE, stops[row]), np.maximum(begin - self.order + 1, starts[row])
        settings = np.array([-1 if self.document is None else self.document, int(self.ends)])
        given = (text, warm, begin, end, settings, *self._arrays, value, nodes, used)

        def part(a: int, b: int) -> None:
            lanes = min(_LANES, b - a)
            score_pieces(a, b, *given, np.empty((8, lanes), dtype=np.int64), np.empty(lanes))

        if together:
            spread(part, len(row), 1 + len(row) * _PIECE // (len(text) + 1))
        else:
            part(0, len(row))

    def _step(self, text: Ints, starts: Ints, value: Floats, used: Ints, nodes: Ints) -> None:
        """In numpy: for all positions at once, order after order, the node of the n-gram that ends there."""
        size, place = len(text), np.arange(len(text))
        if not size:
            return
        marks = np.zeros(size, dtype=bool) if self.document is None else text == self.document
        start = np.zeros(size, dtype=np.int64)
        start[starts[starts < size]] = starts[starts < size]
        start = np.maximum.accumulate(np.where(marks & (place > 0), place, start))
        before = np.concatenate([[0], start[:-1]])  # a mark is seen from the document that it ends
        first = np.zeros(size, dtype=bool)
        first[starts[starts < size]] = True
        known = place - np.where(marks & ~first, np.where(self.ends, before, place), start)
        value[:] = self.probability[text]
        context, node = np.full(size, -1), text
        nodes[:] = text if self.order > 1 else -1
        for k in range(2, self.order + 1):
            context = np.concatenate([[-1], np.where(marks & (k > 2), -1, node)[:-1]])
            context[known < k - 1] = -1
            asked = context >= 0
            keys = self._keys[k - 2]
            wanted = context * self.vocabulary + text
            at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            found = asked & (keys[at] == wanted)
            node = np.where(found, at + int(self.offsets[k - 1]), -1)
            paid = np.where(asked, self.backoff[np.maximum(context, 0)], 1.0) * value
            value[:] = np.where(found, self.probability[np.maximum(node, 0)], paid)
            used[found] = k
            if k < self.order:
                nodes[found & ~marks] = node[found & ~marks]
        if self.order > 1:
            nodes[marks] = text[marks]
        if not self.ends:
            value[marks] = 1.0
            used[marks] = 1


class KneserNey(BackoffModel):
    """Interpolated modified Kneser-Ney; what a back-off model is unless another method is asked for."""


def check_tables(tables: dict[str, Any], vocabulary: int, where: str) -> None:
    """Sizes and types of tables that come from outside.

    Raises:
        CorruptionError: when they do not fit each other.
    """
    offsets, word, first, link, probability, backoff = (tables[name] for name in ARRAYS)
    sound = offsets.ndim == 1 and len(offsets) >= 2 and offsets.dtype == np.int64
    sound = sound and offsets[0] == 0 and offsets[1] == vocabulary and bool(np.all(np.diff(offsets) > 0))
    if sound:
        nodes, below = int(offsets[-1]), int(offsets[-2])
        lengths = {len(word): nodes - vocabulary, len(first): below + 1, len(link): nodes, len(probability): nodes}
        sound = all(found == wanted for found, wanted in lengths.items()) and len(backoff) == below
        sound = sound and word.dtype == token_type(vocabulary) and first.dtype.kind == link.dtype.kind == "i"
        sound = sound and probability.dtype.kind == backoff.dtype.kind == "f"
    if not sound:
        raise CorruptionError(f"'{where}' is damaged: the tables do not fit each other")


def _check(path: Path, verify: bool | None) -> None:
    """Sizes of all files; checksums of the description, and of the tables if asked for or small."""
    if not (path / MANIFEST).is_file():
        raise CorruptionError(f"'{path}' has no {MANIFEST}: it is incomplete or is no n-gram model")
    files = read_json(path / MANIFEST).get("files", {})
    wanted = {DESCRIPTION, *(f"{name}.npy" for name in ARRAYS)}
    if not wanted <= set(files):
        raise CorruptionError(f"'{path}' is no n-gram model: its manifest lacks {sorted(wanted - set(files))[0]}")
    small = sum(entry["bytes"] for entry in files.values()) < VERIFY_BELOW
    for name in sorted(wanted):
        file, entry = path / name, files[name]
        if not file.is_file() or file.stat().st_size != entry["bytes"]:
            raise CorruptionError(f"'{file}' is missing or has not the {entry['bytes']} bytes of its manifest")
        if (verify or (verify is None and small) or name == DESCRIPTION) and sha256_file(file) != entry["sha256"]:
            raise CorruptionError(f"'{file}' is damaged: its SHA-256 is not the one in {MANIFEST}")
