"""What an index can be built from, as documents of token ids: a corpus, a token file, arrays.

A source yields `(name, ids)` pieces; a document is a run of pieces, the last of which says so. Names are kept in the
index, so that an answer can say where it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from orrery.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from orrery.data.tokenizers import Tokenizer

_BATCH = 1 << 20  # characters encoded at once, or a piece more; the library takes some 60 bytes for each
_STRETCH = 1 << 20  # ids of one piece at most
SPLITS = ("all", "train", "validation")


class Piece(NamedTuple):
    """A stretch of a document. last: whether the document ends with it. size: bytes of text it stands for, if any."""

    name: str
    ids: np.ndarray
    last: bool
    size: int = 0


@dataclass(frozen=True)
class Source:
    """Documents of ids below `vocab_size`, where `doc_id` stands for the mark between documents.

    largest: no id but the mark is larger than this. key: equal for equal content, so that a build can go on.
    """

    pieces: Callable[[], Iterator[Piece]]
    vocab_size: int
    doc_id: int
    largest: int
    key: str
    total: float | None
    unit: str
    about: dict[str, Any]
    tokenizer: Tokenizer | None = None

    @property
    def encodes(self) -> bool:
        """Whether text is encoded by a library."""
        return self.unit == "B" and self.tokenizer is not None and self.tokenizer.name != "bytes"

    @property
    def width(self) -> int:
        """Bytes of a stored token: the fewest in which every id has room below the mark, which is all ones."""
        return 1 if self.largest < 0xFF else 2 if self.largest < 0xFFFF else 4


def open_source(
    source: Any,
    tokenizer: Any = None,
    split: str = "all",
    vocab_size: int | None = None,
    document: int | None = None,
    names: Iterable[str] | None = None,
    quiet: bool = False,
) -> Source:
    """Find out what `source` is.

    Args:
        source: a corpus (name, path, Corpus, list of texts), a TokenFile, an array of ids, or a list of such arrays.
        tokenizer: of a corpus; for ids the one that made them, kept with the index.
        split: of a corpus: `all`, `train` or `validation`, as every other part of Orrery divides it.
        vocab_size: of ids: their number; None: one more than the largest.
        document: of ids in one array: the id that begins (or separates) documents.
        names: of documents given as arrays.

    Raises:
        DataError: it is none of these, is empty, or holds ids outside the vocabulary.
    """
    from orrery.data.corpora import Corpus, MemoryCorpus
    from orrery.data.shards import TokenFile

    if split not in SPLITS:
        raise ConfigError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    if isinstance(source, list | tuple) and source and all(isinstance(each, str) for each in source):
        source = MemoryCorpus(list(source))
    if isinstance(source, str | Path) and (Path(source) / "tokens.json").is_file():
        source = TokenFile(source)
    if isinstance(source, str | Path | Corpus):
        if vocab_size is not None or document is not None or names is not None:
            raise ConfigError("vocab_size, document and names describe arrays of ids; a corpus has its tokenizer")
        return _from_corpus(source, tokenizer if tokenizer is not None else "bytes", split, quiet)
    if isinstance(tokenizer, str):
        raise ConfigError("for ids give the tokenizer itself (orrery.data.load_tokenizer), not its name")
    if isinstance(source, TokenFile):
        return _from_file(source, tokenizer)
    return _from_arrays(source, tokenizer, vocab_size, document, names)


def _from_corpus(spec: Any, tokenizer: Any, split: str, quiet: bool) -> Source:
    from orrery.core.config import config_hash
    from orrery.data.corpora import open_corpus
    from orrery.data.dataset import assigned, build_tokenizer
    from orrery.data.text import Tally
    from orrery.data.tokenizers import Tokenizer

    corpus = open_corpus(spec)
    encoder = tokenizer if isinstance(tokenizer, Tokenizer) else build_tokenizer(tokenizer, corpus, quiet)
    facts = corpus.facts(quiet)

    def pieces() -> Iterator[Piece]:
        if split == "all":
            documents = corpus.documents(Tally())
        else:
            documents = (document for side, document in assigned(corpus, facts) if side == split)
        yield from _encoded(((one.name, one.pieces(Tally())) for one in documents), encoder)

    # bytes of UTF-8 never are 0xFF, which therefore can be the mark
    largest = 0xFE if encoder.name == "bytes" else max(i for i in (encoder.vocab_size - 1, encoder.vocab_size - 2) if i != encoder.doc_id)
    about = {"corpus": facts.name, "corpus_hash": facts.hash, "split": split, "bytes": facts.bytes}
    key = config_hash([facts.hash, facts.split.to_dict(), split, encoder.hash])
    total = facts.bytes if split == "all" else None
    return Source(pieces, encoder.vocab_size, encoder.doc_id, largest, key, total, "B", about, encoder)


def _encoded(documents: Iterable[tuple[str, Iterator[str]]], encoder: Tokenizer) -> Iterator[Piece]:
    """Encode a megabyte or two at once, so that the library can use all cores."""
    queue: list[tuple[str, str, bool]] = []
    size = 0
    for name, texts in documents:
        before: str | None = None
        for text in texts:
            if before is not None:
                queue.append((name, before, False))
                size += len(before)
            before = text
        if before is not None:
            queue.append((name, before, True))
            size += len(before)
        if size > _BATCH:
            yield from _encode(queue, encoder)
            queue, size = [], 0
    yield from _encode(queue, encoder)


def _encode(queue: list[tuple[str, str, bool]], encoder: Tokenizer) -> Iterator[Piece]:
    for (name, text, last), ids in zip(queue, encoder.encode_batch([text for _, text, _ in queue]), strict=True):
        yield Piece(name, ids, last, len(text.encode("utf-8", "replace")))


def _from_file(tokens: Any, tokenizer: Any) -> Source:
    """A token file: every document begins with the mark, which is not passed on."""
    if tokenizer is not None and tokenizer.hash != tokens.info.get("tokenizer_hash", tokenizer.hash):
        raise DataError(f"'{tokens.path}' was not made with the tokenizer {tokenizer.name}; give the one that it was made with")

    def pieces() -> Iterator[Piece]:
        reader, taken = type(tokens)(tokens.path, verify=False), 0
        for number in range(tokens.documents):
            start, stop = int(tokens.offsets[number]) + 1, int(tokens.offsets[number + 1])
            size, name = int(tokens.text_bytes[number]), f"document {number}"
            for first in range(start, max(stop, start + 1), _STRETCH):
                last = min(stop, first + _STRETCH)
                taken += last - first
                if taken > _STRETCH << 3:  # a map of its own, whose pages go when it does
                    reader, taken = type(tokens)(tokens.path, verify=False), 0
                yield Piece(name, reader.read(first, last), last == stop, size if last == stop else 0)

    largest = tokens.vocab_size - (2 if tokens.doc_id == tokens.vocab_size - 1 else 1)
    about = {"tokens_hash": tokens.hash, **{k: v for k, v in tokens.info.items() if isinstance(v, str | int)}}
    return Source(pieces, tokens.vocab_size, tokens.doc_id, largest, tokens.hash, len(tokens), "tok", about, tokenizer)


def _from_arrays(source: Any, tokenizer: Any, vocab_size: int | None, document: int | None, names: Iterable[str] | None) -> Source:
    import hashlib

    one = hasattr(source, "ndim") or (isinstance(source, list | tuple) and all(isinstance(i, int | np.integer) for i in source))
    arrays = [_ids(source)] if one else [_ids(each) for each in source]
    if tokenizer is not None:
        vocab_size, document = tokenizer.vocab_size, tokenizer.doc_id
    if one and document is not None:
        arrays = _cut(arrays[0], document)
    if not arrays or (one and not arrays[0].size and len(arrays) == 1):
        raise DataError("there is no token to build an index of")
    top = max((int(a.max()) for a in arrays if a.size), default=-1)
    if vocab_size is None:
        vocab_size = max(top, -1 if document is None else document) + 1
    doc_id = vocab_size if document is None else document
    if top >= vocab_size or any(a.size and int(a.min()) < 0 for a in arrays):
        raise DataError(f"the ids must lie in 0..{vocab_size - 1}; the largest is {top}")
    if any(bool((part == doc_id).any()) for a in arrays for part in _stretches(a)):
        raise DataError(f"a document holds the id {doc_id}, which marks the start of documents")
    if top >= 0xFFFFFFFF:
        raise DataError(f"ids reach {top}; they must be below 2^32 - 1")
    labels = [f"document {i}" for i in range(len(arrays))] if names is None else list(names)
    if len(labels) != len(arrays):
        raise DataError(f"{len(labels)} names for {len(arrays)} documents")
    digest = hashlib.sha256(f"{vocab_size} {doc_id}".encode())
    for label, array in zip(labels, arrays, strict=True):
        digest.update(f"{label}\0{len(array)}\0".encode())
        for part in _stretches(array):
            digest.update(np.ascontiguousarray(part).tobytes())

    def pieces() -> Iterator[Piece]:
        for label, array in zip(labels, arrays, strict=True):
            parts = _stretches(array)
            for number, part in enumerate(parts, 1):
                yield Piece(label, part, number == len(parts))

    total = sum(len(a) + 1 for a in arrays)
    size = max(vocab_size, doc_id + 1)
    return Source(pieces, size, doc_id, top, digest.hexdigest()[:16], total, "tok", {}, tokenizer)


def _ids(values: Any) -> np.ndarray:
    array = values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
    if array.size == 0:
        return np.empty(0, dtype=np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise DataError(f"token ids must be whole numbers in one dimension, not {array.dtype} of shape {array.shape}")
    return array


def _stretches(array: np.ndarray) -> list[np.ndarray]:
    """A document in pieces, so that what is made of one does not depend on its length; an empty one is one."""
    return [array[first : first + _STRETCH] for first in range(0, max(1, len(array)), _STRETCH)]


def _cut(array: np.ndarray, document: int) -> list[np.ndarray]:
    """The stretches between marks; what stands before the first mark is a document if there is anything."""
    marks = np.flatnonzero(array == document)
    edges = [-1, *marks.tolist(), len(array)]
    found = [array[a + 1 : b] for a, b in zip(edges[:-1], edges[1:], strict=True)]
    return found if found[0].size or len(found) == 1 else found[1:]
