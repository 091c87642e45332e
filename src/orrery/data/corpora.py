"""Corpora: documents in a fixed order, streamed, with the facts that identify them.

    open_corpus("stdlib")                  a registered corpus
    open_corpus("book.txt")                a file is one document; .gz, .bz2 and .xz are decompressed
    open_corpus("notes/")                  a folder: every text file below it, by path; hidden and binary files left out
    open_corpus("notes/**/*.md")           a pattern
    open_corpus("web.jsonl.gz:body.text")  one document per line, from a field of JSON lines (default field: text)
    open_corpus("reviews.csv:review")      one document per row, from a column of a table (.csv, .tsv, .json, .conll, .conllu)
    open_corpus("cp1250:notes/")           any of these in an encoding other than UTF-8

`corpus.facts()` reads everything once (and remembers the answer for files that have not changed since): size, content
hash and the split. Nothing is held in memory but sixteen bytes per document.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import time
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from orrery.core.config import config_hash
from orrery.core.errors import CorruptionError, DataError, StorageError, suggest
from orrery.core.files import cache_dir, read_json, write_json
from orrery.core.progress import progress
from orrery.core.registry import load, names
from orrery.data import split as splitting
from orrery.data.encodings import UTF_8, split_source
from orrery.data.records import open_rows
from orrery.data.split import Hash, Split
from orrery.data.text import Document, Tally, file_pieces, memory_document, read_head, records, why_not_text

_SPEC_FIELD = re.compile(r"^(?P<path>.+\.(?:jsonl|ndjson)(?:\.gz|\.bz2|\.xz)?):(?P<field>[^/\\:]+)$", re.IGNORECASE)
_JSON_LINES = re.compile(r"\.(?:jsonl|ndjson)(?:\.gz|\.bz2|\.xz)?$", re.IGNORECASE)
_COLUMN = re.compile(r"^(?P<path>.+\.(?:csv|tsv|json|conllu?)(?:\.gz|\.bz2|\.xz)?):(?P<column>[^/\\:]+)$", re.IGNORECASE)
_SETTLED = 2.0  # seconds: files younger than this may still change unnoticed, so their facts are not remembered


@dataclass(frozen=True)
class Facts:
    """What a corpus is, from one reading of it."""

    name: str
    hash: str  # of the documents' texts, in order; 32 hex digits
    documents: int
    bytes: int  # of UTF-8 text
    encoding: str = UTF_8
    replaced: int = 0  # characters that stand for bytes that were not of the encoding
    replaced_in: str = ""  # the first document with such bytes
    doubts: tuple[str, ...] = ()  # what a reader should know of how it was decoded, in words
    binary: int = 0  # files left out because they are not text
    empty: int = 0  # files or records without text
    split: Split = field(default_factory=Split)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**asdict(self), "split": self.split.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Facts:
        """Inverse of :meth:`to_dict`."""
        return cls(**{**data, "split": Split.from_dict(data["split"]), "doubts": tuple(data.get("doubts", ()))})


class Corpus(ABC):
    """Documents in a fixed order."""

    def __init__(self, name: str, strict: bool = False) -> None:
        self.name, self.strict = name, strict
        self._facts: Facts | None = None

    @abstractmethod
    def documents(self, tally: Tally | None = None) -> Iterator[Document]:
        """The documents, lazily; what is left out or replaced is counted in `tally`."""

    def fingerprint(self) -> str | None:
        """A cheap stand-in for the content (paths, sizes, times of the files); None where there is none."""
        return None

    def tally(self) -> Tally:
        """Fresh counters that know whether this corpus is strict."""
        return Tally(strict=self.strict)

    def facts(self, quiet: bool = False) -> Facts:
        """Size, hash and split; reads the corpus unless its files are unchanged since it was last read.

        Raises:
            DataError: when there is no text, or in strict mode when it is not UTF-8.
        """
        if self._facts is None:
            mark = self.fingerprint()
            remembered = _recall(mark) if mark else None
            if remembered is None or (remembered.replaced and (self.strict or not remembered.doubts)):
                remembered = self._scan(quiet)
                if mark:
                    _remember(mark, remembered)
            self._facts = replace(remembered, name=self.name)
        return self._facts

    def _scan(self, quiet: bool) -> Facts:
        tally, whole = self.tally(), hashlib.blake2b(digest_size=16)
        us, sizes = array("Q"), array("Q")
        with progress(None, f"reading {self.name}", "B", quiet=quiet) as bar:
            for document in self.documents(tally):
                running = Hash()
                for piece in document.pieces(tally):
                    running.update(piece)
                if not running.bytes:
                    continue
                whole.update(running.digest)
                us.append(running.u)
                sizes.append(running.bytes)
                bar.update(running.bytes)
        if not us:
            raise DataError(
                f"the corpus '{self.name}' holds no text ({tally.binary} binary and {tally.empty} empty files or records)"
            )
        decided = splitting.decide(us, sizes)
        if decided.cut >= 0:
            decided = self._cut(decided, us, sizes)
        return Facts(
            name=self.name,
            hash=whole.hexdigest(),
            documents=len(us),
            bytes=sum(sizes),
            encoding=tally.encoding,
            replaced=tally.replaced,
            replaced_in=tally.replaced_in,
            doubts=tuple(tally.notes()),
            binary=tally.binary,
            empty=tally.empty,
            split=decided,
        )

    def _cut(self, decided: Split, us: Iterable[int], sizes: Iterable[int]) -> Split:
        """Find the boundary at which the only (or overwhelming) document is cut."""
        size = next(size for u, size in zip(us, sizes, strict=True) if u == decided.cut)
        for document in self.documents(Tally()):
            running = Hash()
            for piece in document.pieces(Tally()):
                running.update(piece)
            if running.u == decided.cut:
                offset, boundary = splitting.locate_cut(document, size)
                return replace(decided, offset=offset, boundary=boundary)
        raise DataError(f"the corpus '{self.name}' changed while it was read; run again")


class MemoryCorpus(Corpus):
    """Texts that are in memory already: `MemoryCorpus({"a": "text of a", ...})` or any texts in order."""

    def __init__(self, texts: dict[str, str] | Iterable[str], name: str = "memory", strict: bool = False) -> None:
        super().__init__(name, strict)
        self.texts = dict(texts) if isinstance(texts, dict) else {str(i): text for i, text in enumerate(texts)}

    def documents(self, tally: Tally | None = None) -> Iterator[Document]:
        """One document per text that is not empty."""
        for name, text in self.texts.items():
            if text:
                yield memory_document(name, text)
            elif tally is not None:
                tally.empty += 1


class FileCorpus(Corpus):
    """Local files. In a folder or pattern, binary files are left out and counted; a single binary file is an error."""

    def __init__(
        self, name: str, files: dict[str, Path], record_field: str = "", strict: bool = False, encoding: str = UTF_8
    ) -> None:  # fmt: skip
        super().__init__(name, strict)
        self.files, self.field, self.encoding = files, record_field, encoding

    def documents(self, tally: Tally | None = None) -> Iterator[Document]:
        """One document per text file or JSON line."""
        tally = tally if tally is not None else self.tally()
        for label, path in self.files.items():
            start = read_head(path, self.encoding)
            if not start:
                tally.empty += 1
                continue
            reason = why_not_text(start, self.encoding)
            if reason and len(self.files) == 1:
                raise DataError(f"'{path}' is not a text file: {reason}")
            if reason:
                tally.binary += 1
            elif self.field or _JSON_LINES.search(path.name):
                yield from records(path, label, self.field or "text", tally, self.encoding)
            else:
                yield _file_document(label, path, self.encoding)

    def fingerprint(self) -> str | None:
        """Changes when a file is added, removed, renamed, or written to, or read in another encoding."""
        return stat_fingerprint(["files", self.field, *_unusual(self.encoding)], self.files)


class TableCorpus(Corpus):
    """A column of a table, one document for each of its rows."""

    def __init__(self, path: Path, column: str, strict: bool = False, encoding: str = UTF_8) -> None:
        super().__init__(f"{path.name}:{column}", strict)
        self.path, self.column, self.encoding = path, column, encoding

    def documents(self, tally: Tally | None = None) -> Iterator[Document]:
        """One document per row whose cell is not empty; words of a sentence are joined by spaces."""
        tally = tally if tally is not None else self.tally()
        rows = open_rows(self.path, tally, encoding=self.encoding)[2]
        for row in rows:
            if self.column not in row.values:
                listed = ", ".join(f"'{column}'" for column in list(row.values)[:12])
                raise DataError(f"{row.where}: no column '{self.column}'.{suggest(self.column, row.values)} There are {listed}")
            value = row.values[self.column]
            missing = value is None or value != value  # JSON's null and NaN
            text = " ".join(map(str, value)) if isinstance(value, list) else "" if missing else str(value)
            if text:
                yield memory_document(row.where, text)
            else:
                tally.empty += 1

    def fingerprint(self) -> str | None:
        """Changes when the file is written to, or read in another encoding."""
        return stat_fingerprint(["column", self.column, *_unusual(self.encoding)], {self.path.name: self.path})


def _unusual(encoding: str) -> list[str]:
    return [] if encoding == UTF_8 else [encoding]


def _file_document(label: str, path: Path, encoding: str) -> Document:
    return Document(label, lambda tally: file_pieces(path, label, tally, encoding))


def stat_fingerprint(about: list[str], files: dict[str, Path]) -> str | None:
    """Hash of names, sizes and times of files; None when one is so young that it may still change unnoticed."""
    digest, newest = hashlib.sha256(json.dumps([splitting.RULE, *about]).encode()), 0
    for label, path in files.items():
        try:
            status = path.stat()
        except OSError:
            return None
        newest = max(newest, status.st_mtime_ns, status.st_ctime_ns)
        times = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        digest.update(json.dumps([label, str(path.absolute()), *times]).encode())
    return digest.hexdigest()[:32] if newest < time.time_ns() - _SETTLED * 1e9 else None


def _memory_of(mark: str) -> Path:
    return cache_dir() / "corpora" / f"{mark}.json"


def _remember(mark: str, facts: Facts) -> None:
    """Keep facts for the next call. They can be had again by reading, so a cache that cannot be written is no error."""
    data = facts.to_dict()
    try:
        write_json(_memory_of(mark), {"facts": data, "check": config_hash(data)})
    except StorageError:
        return


def _recall(mark: str) -> Facts | None:
    """Facts of an earlier call; None when there are none or their checksum is wrong (they are then found anew)."""
    try:
        stored = read_json(_memory_of(mark))
        return Facts.from_dict(stored["facts"]) if stored["check"] == config_hash(stored["facts"]) else None
    except (StorageError, CorruptionError, KeyError, TypeError, ValueError):
        return None


def open_corpus(spec: str | Path | Corpus, strict: bool = False) -> Corpus:
    """A corpus: a registered name, a file, a folder, a pattern, `FILE.jsonl:FIELD`, `TABLE.csv:COLUMN`, any of files behind `ENCODING:`; or
    a Corpus, as it is.

    Raises:
        DataError: when there is no such name, file or match, or an encoding is said of a registered name.
    """
    if isinstance(spec, Corpus):
        return spec
    said, text = split_source(str(spec))
    encoding = said or UTF_8
    if not text.strip():
        raise DataError("no corpus named; give a registered name, a file, a folder or a pattern")
    if text in names(kind="corpus"):
        if said:
            raise DataError(f"the corpus '{text}' knows its own encoding; leave {said} out")
        return load(text, "corpus")(strict=strict)
    path, wanted = text, ""
    if not os.path.exists(text) and (match := _COLUMN.match(text)) and os.path.isfile(os.path.expanduser(match["path"])):
        return TableCorpus(Path(match["path"]).expanduser(), match["column"], strict, encoding)
    if not os.path.exists(text) and (match := _SPEC_FIELD.match(text)):
        path, wanted = match["path"], match["field"]
    path = os.path.expanduser(path)
    if os.path.isdir(path):
        files, name = _below(Path(path)), Path(path).resolve().name
    elif os.path.exists(path):
        files, name = {Path(path).name: Path(path)}, Path(path).name
    else:
        files, name = _matching(path), path
    if not files:
        known = names(kind="corpus")
        if glob.has_magic(path) or os.path.isdir(path):
            raise DataError(f"no file to read in '{path}' (hidden files are left out)")
        raise DataError(
            f"no corpus, file or folder '{text}'.{suggest(text, known)} Registered corpora: {', '.join(known)}"
        )
    return FileCorpus(name, files, wanted, strict, encoding)


def _below(folder: Path) -> dict[str, Path]:
    """Every file below a folder that is not hidden, by its path with forward slashes, in the order of those."""
    found = {}
    for here, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__pycache__"]
        for name in files:
            path = Path(here) / name
            if not name.startswith(".") and path.is_file():
                found[path.relative_to(folder).as_posix()] = path
    return dict(sorted(found.items()))


def _matching(pattern: str) -> dict[str, Path]:
    if not glob.has_magic(pattern):
        return {}
    found = {Path(name).as_posix(): Path(name) for name in glob.glob(pattern, recursive=True) if os.path.isfile(name)}
    return dict(sorted(found.items()))
