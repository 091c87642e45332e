"""From a corpus and a tokenizer to two token files, train and validation, kept under the hash of what made them.

    data = prepare("stdlib", "bpe:8192")
    data.train, data.validation      TokenFile
    data.tokenizer                   Tokenizer
    data.info                        names, hashes, sizes: all that a result has to say about its data

The cache (`orrery.core.files.cache_dir()`) holds `corpora/` (facts of files that have not changed), `tokenizers/` and
`tokens/`. Keys are hashes of content, split rule and tokenizer, so a changed file is never answered from the cache.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orrery.core.config import config_hash
from orrery.core.errors import CorruptionError, DataError, StorageError, suggest
from orrery.core.files import atomic_directory, cache_dir, check_free_space, verify_directory
from orrery.core.progress import Progress, progress
from orrery.core.registry import load, names
from orrery.data import split as splitting
from orrery.data.corpora import Corpus, Facts, open_corpus
from orrery.data.marks import parse_roles, with_marks
from orrery.data.shards import FORMAT, TokenFile, TokenWriter, token_writer
from orrery.data.split import Hash, head, parts, tail
from orrery.data.text import Document, Tally
from orrery.data.tokenizer_files import load_tokenizer, open_tokenizer_file
from orrery.data.tokenizers import LIBRARY_FILE, Tokenizer, parse_spec

_RUN = re.compile(r"\S{1000}|\s{1000}")
_LONG_RUN = re.compile(r"(?<!\S)\S{1001}|(?<!\s)\s{1001}")
TRAINING_TEXT = 1 << 26  # bytes that a tokenizer is trained on at most: an even sample of the training split's pieces
_HELD = (
    1 << 24
)  # bytes of a document kept in memory between finding its side and encoding it; a longer one is read twice
_BATCH = 1 << 22  # bytes of text encoded at once


@dataclass(frozen=True)
class Dataset:
    """Train and validation tokens of one corpus under one tokenizer."""

    train: TokenFile
    validation: TokenFile
    tokenizer: Tokenizer
    info: dict[str, Any]

    @property
    def hash(self) -> str:
        """Equal for equal token streams."""
        return hashlib.sha256(f"{self.train.hash} {self.validation.hash}".encode()).hexdigest()[:16]

    @property
    def notes(self) -> list[str]:
        """What a reader of results should know: text that was replaced, left out, or lost by the tokenizer."""
        corpus, found = self.info["corpus"], []
        found += corpus["doubts"]
        if corpus["replaced"]:
            found[0] += "; --strict refuses such text"
        if corpus["binary"]:
            found.append(f"{corpus['binary']:,} binary file{'s were' if corpus['binary'] > 1 else ' was'} left out")
        unknown = sum(self.info[side]["unknown"] for side in ("train", "validation"))
        if unknown:
            found.append(
                f"{unknown:,} characters are unknown to the tokenizer {self.tokenizer.name} and lost: bits per byte come out too low"
            )
        elif not self.tokenizer.lossless and self.tokenizer.unknown_id is None:
            found.append(
                f"the tokenizer {self.tokenizer.name} does not give every text back unchanged: its bits per byte compare with no other's"
            )
        return found


def prepare(
    corpus: str | Path | Corpus,
    tokenizer: str | Tokenizer = "bytes",
    strict: bool = False,
    verify: bool | None = None,
    quiet: bool = False,
) -> Dataset:
    """Tokens of a corpus, built when they are not in the cache.

    Args:
        corpus: what :func:`open_corpus` takes.
        tokenizer: `bytes`, `chars`, `bpe:8192`, `unigram:8192`, a path, or a Tokenizer.
        strict: refuse text that is not UTF-8 instead of replacing and counting it.
        verify: check the shards' checksums: True, False, or None for "when they are below 64 MB".
        quiet: show neither progress nor notes.

    Raises:
        DataError: no text, too little text, or a tokenizer that does not exist.
        CorruptionError: a file of the cache is damaged.
        StorageError: no room or no permission.
    """
    source = open_corpus(corpus, strict)
    facts = source.facts(quiet)
    encoder = tokenizer if isinstance(tokenizer, Tokenizer) else build_tokenizer(tokenizer, source, quiet)
    key = config_hash([FORMAT, splitting.RULE, facts.hash, facts.split.to_dict(), encoder.hash])
    base = cache_dir() / "tokens" / f"{_slug(source.name)}-{_slug(encoder.name)}-{key}"
    paths = {side: base.with_name(f"{base.name}-{side}") for side in ("train", "validation")}
    with exclusive(base):
        if not all(path.is_dir() for path in paths.values()):
            _build(source, facts, encoder, paths, quiet)
    files = {side: TokenFile(path, verify) for side, path in paths.items()}
    data = Dataset(files["train"], files["validation"], encoder, _info(facts, encoder, files))
    if not quiet:
        for note in data.notes:
            print(f"{source.name}: {note}", file=sys.stderr)
    return data


def build_tokenizer(spec: str, corpus: str | Path | Corpus, quiet: bool = False) -> Tokenizer:
    """The tokenizer of a spec; one that is trained sees the training split only, and is kept for the next call.

    Raises:
        DataError: an unknown spec, or a file that is no tokenizer.
    """
    known = names(kind="tokenizer")
    if "+" in spec and not Path(spec).expanduser().exists():
        base, *roles = spec.split("+")
        return with_marks(build_tokenizer(base, corpus, quiet), parse_roles(roles))
    kind, argument = parse_spec(spec)
    if kind not in known:
        path = Path(spec).expanduser()
        if path.is_file() or any((path / name).is_file() for name in (LIBRARY_FILE, "orrery-tokenizer.json")):
            return open_tokenizer_file(path)
        listed = ", ".join(known)
        raise DataError(
            f"no tokenizer '{spec}'.{suggest(kind, known)} Known: {listed} (as in bpe:8192), or the path of a tokenizer.json"
        )
    cls = load(kind, "tokenizer")
    build, rule = cls.build, str(getattr(cls, "rule", ""))
    if kind == "bytes":
        return build(argument, ())
    source = open_corpus(corpus)
    facts = source.facts(quiet)
    key = config_hash([splitting.RULE, facts.hash, facts.split.to_dict(), TRAINING_TEXT, _library_version(), rule])
    path = cache_dir() / "tokenizers" / f"{_slug(source.name)}-{_slug(spec)}-{key}"
    with exclusive(path):
        if not path.is_dir():
            limit = None if kind == "chars" else TRAINING_TEXT
            with progress(facts.bytes, f"training {spec}", "B", quiet=quiet) as bar:
                trained = build(argument, _training_text(source, facts, limit, bar))
            with atomic_directory(path) as folder:
                trained.save(folder)
    try:
        verify_directory(path)
        return load_tokenizer(path)
    except CorruptionError as error:
        raise CorruptionError(f"{error}; delete the folder '{path}' and it will be trained again") from error


def _library_version() -> str:
    """Trained tokenizers of another version of the library are not reused: its trainers may differ."""
    from importlib.metadata import version

    return version("tokenizers")


def _training_text(corpus: Corpus, facts: Facts, limit: int | None, bar: Progress) -> Iterator[str]:
    """Pieces of the training split; beyond `limit` bytes an even sample of them, chosen by hash."""
    share = 1.0 if limit is None else min(1.0, limit / facts.bytes)
    for side, document in assigned(corpus, facts):
        if side == "train":
            for number, piece in enumerate(document.pieces(Tally())):
                bar.update(len(piece))
                mark = hashlib.blake2b(f"{document.name}\0{number}".encode(), digest_size=8).digest()
                if share == 1.0 or int.from_bytes(mark, "big") < share * 2**64:
                    yield from _short_runs(piece)


def _short_runs(text: str) -> Iterator[str]:
    """A text in parts, none of them with an unbroken run of more than a thousand characters: trainers take the square of a word's length."""
    if _LONG_RUN.search(text) is None:
        yield text
        return
    start = 0
    for run in _RUN.finditer(text):
        yield text[start : run.end()]
        start = run.end()
    if start < len(text):
        yield text[start:]


def assigned(corpus: Corpus, facts: Facts) -> Iterator[tuple[str, Document]]:
    """Every document with its side, "train" or "validation", in the corpus' order; a cut document gives both.

    Raises:
        DataError: when the corpus is no longer what `facts` were taken of.
    """
    tally, whole, tails = corpus.tally(), hashlib.blake2b(digest_size=16), 0
    for document in corpus.documents(tally):
        running, held = _measure(document, tally)
        if not running.bytes:
            continue
        whole.update(running.digest)
        if running.u != facts.split.cut:
            yield ("validation" if facts.split.held_out(running.u) else "train"), held
            continue
        yield "train", _head(held, facts.split.offset)
        if not tails:  # copies of the document are cut alike; its tail is held out once
            yield "validation", _tail(held, facts.split.offset)
        tails += 1
    if whole.hexdigest() != facts.hash:
        raise DataError(f"the corpus '{corpus.name}' changed while it was read; run again")


def _head(document: Document, offset: int) -> Document:
    return Document(f"{document.name} (head)", lambda tally: head(document.pieces(tally), offset))


def _tail(document: Document, offset: int) -> Document:
    return Document(f"{document.name} (tail)", lambda tally: tail(document.pieces(tally), offset))


def _measure(document: Document, tally: Tally) -> tuple[Hash, Document]:
    """Hash a document; it is returned with its pieces held in memory unless they are many."""
    running = Hash()
    held: list[str] | None = []
    for piece in document.pieces(tally):
        running.update(piece)
        if held is not None:
            held.append(piece)
            if running.bytes > _HELD:
                held = None
    if held is None:
        return running, document
    return running, Document(document.name, lambda _: iter(held))


def _build(corpus: Corpus, facts: Facts, encoder: Tokenizer, paths: dict[str, Path], quiet: bool) -> None:
    """Write both token files in one pass."""
    check_free_space(
        paths["train"].parent, facts.bytes * encoder.dtype.itemsize // (1 if encoder.vocab_size <= 257 else 2)
    )
    about = {
        "corpus": corpus.name,
        "corpus_hash": facts.hash,
        "tokenizer": encoder.name,
        "tokenizer_hash": encoder.hash,
    }
    infos: dict[str, dict[str, Any]] = {side: {**about, "split": side} for side in paths}
    with ExitStack() as stack:
        writers = {}
        for side, path in paths.items():
            for rest in path.parent.glob(f".{path.name}.*.tmp"):
                shutil.rmtree(rest, ignore_errors=True)  # of a build that was killed; we hold its lock
            opened = token_writer(path, encoder.vocab_size, encoder.doc_id, encoder.dtype, infos[side])
            writers[side] = _Encoding(stack.enter_context(opened), encoder)
        bar = stack.enter_context(
            progress(facts.bytes, f"encoding {corpus.name} with {encoder.name}", "B", quiet=quiet)
        )
        for side, document in assigned(corpus, facts):
            for text in _stored(side, document):
                bar.update(writers[side].add(text))
        for side, writer in writers.items():
            writer.flush()
            infos[side]["unknown"] = writer.unknown
            if not writer.documents:
                raise DataError(
                    f"the corpus '{corpus.name}' ({facts.bytes} bytes) leaves nothing for {side}; use more text"
                )


def _stored(side: str, document: Document) -> Iterator[Iterator[str]]:
    """A document as it is stored: as it is, or, when it is held out and long, in parts. Each is a stream of pieces."""
    if side == "train":
        yield document.pieces(Tally())
        return
    size = sum(len(piece.encode("utf-8")) for piece in document.pieces(Tally()))
    if size <= splitting.PART:
        yield document.pieces(Tally())
        return
    for part in parts(document.pieces(Tally()), size):
        yield iter((part,))


class _Encoding:
    """Encodes documents into a writer, several megabytes at once, so that the library can use all cores."""

    def __init__(self, writer: TokenWriter, encoder: Tokenizer) -> None:
        self.writer, self.encoder = writer, encoder
        self.documents = 0
        self.unknown = 0
        self._texts: list[str] = []
        self._ends: list[int | None] = []  # bytes of the document that ends with this text; None inside one
        self._size = 0
        self._fresh = True

    def add(self, pieces: Iterator[str]) -> int:
        """Queue one document; its bytes."""
        total, last = 0, None
        for piece in pieces:
            if last is not None:
                self._push(last, None)
            total, last = total + len(piece.encode("utf-8")), piece
        if last is not None:
            self._push(last, total)
            self.documents += 1
        return total

    def _push(self, text: str, end: int | None) -> None:
        self._texts.append(text)
        self._ends.append(end)
        self._size += len(text)
        if self._size > _BATCH:
            self.flush()

    def flush(self) -> None:
        """Encode and write what is queued."""
        for tokens, end in zip(self.encoder.encode_batch(self._texts), self._ends, strict=True):
            if self._fresh:
                self.writer.start()
            if self.encoder.unknown_id is not None:
                self.unknown += int((tokens == self.encoder.unknown_id).sum())
            self.writer.add(tokens)
            if end is not None:
                self.writer.end(end)
            self._fresh = end is not None
        self._texts, self._ends, self._size = [], [], 0


def _info(facts: Facts, encoder: Tokenizer, files: dict[str, TokenFile]) -> dict[str, Any]:
    """What a result has to say about its data."""
    return {
        "corpus": facts.to_dict(),
        "split": facts.split.describe(),
        "tokenizer": {
            "name": encoder.name,
            "hash": encoder.hash,
            "vocab_size": encoder.vocab_size,
            "lossless": encoder.lossless,
        },
        **{side: file.describe() for side, file in files.items()},
    }


def _slug(name: str) -> str:
    """A short name that every file system takes."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[:40] or "data"


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Let one process at a time build `path`; others wait and then find it built. Freed by the system if it dies."""
    lock = path.with_name(f".{path.name}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        reason = error.strerror or error
        raise StorageError(
            f"cannot write under '{lock.parent}': {reason}; set ORRERY_CACHE to a folder that can be written"
        ) from error
    with open(lock, "r+b") as handle:
        with suppress(OSError):  # a disk without locks: two processes may both build, and the later rename wins
            _lock(handle)
        yield


def _lock(handle: Any) -> None:
    """Released when the file is closed."""
    if sys.platform == "win32":
        import msvcrt

        handle.seek(0)
        msvcrt.locking(handle.fileno(), msvcrt.LK_LOCK, 1)
    else:
        import fcntl

        fcntl.flock(handle.fileno(), fcntl.LOCK_EX)
