"""Token files: a stream of token ids on disk, read through memory maps, checked before it is believed.

A token file is a folder:

    tokens-00000.bin ...  ids, little-endian u8/u16/u32, the smallest that holds the vocabulary; 256 MiB each
    offsets.bin           i64 (documents + 1,): where each document starts in the stream; the last entry is its length
    bytes.bin             i64 (documents,): bytes of UTF-8 text that each document stands for
    tokens.json           numbers and provenance
    manifest.json         size and SHA-256 of every file, written last

A document is stored as DOC t1 .. tn, documents follow one another without padding. The folder is built under another
name and renamed when whole, so a reader meets all of it or nothing. Opening always checks every size (so truncation is
always found) and the checksums of everything but the token shards; it checks those too when they are below 64 MB
together, or when asked (`verify=True`, `TokenFile.verify()`).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from orrery.core.errors import CorruptionError, DataError, StorageError
from orrery.core.files import MANIFEST, atomic_directory, read_json, sha256_file, write_json

if TYPE_CHECKING:
    import numpy as np

FORMAT = 1
SHARD_BYTES = 1 << 28
VERIFY_BELOW = 64_000_000  # bytes of token shards whose checksums are checked whenever they are opened
_DTYPES = ("|u1", "<u2", "<u4")
_DESCRIPTION = "tokens.json"


class TokenWriter:
    """Writes the files of a token file into a folder. Use :func:`write_tokens` or :func:`token_writer`."""

    def __init__(self, folder: Path, vocab_size: int, doc_id: int, dtype: np.dtype[Any]) -> None:
        self.folder, self.vocab_size, self.doc_id, self.dtype = folder, vocab_size, doc_id, dtype
        self.offsets, self.text_bytes = array("q", [0]), array("q")
        self.length = 0
        self._shard: BinaryIO | None = None
        self._room = 0
        self._shards = 0

    def start(self) -> None:
        """Begin a document: its DOC token is written."""
        import numpy as np

        self._write(np.array([self.doc_id], dtype=self.dtype))

    def add(self, tokens: np.ndarray) -> None:
        """Append tokens (n,) to the document that was begun.

        Raises:
            DataError: when one is outside the vocabulary or is the document id.
        """
        if tokens.size:
            if int(tokens.max()) >= self.vocab_size or int(tokens.min()) < 0 or bool((tokens == self.doc_id).any()):
                raise DataError(f"tokens must lie in 0..{self.vocab_size - 1} and not be the document id {self.doc_id}")
            self._write(tokens.astype(self.dtype))

    def end(self, text_bytes: int) -> None:
        """Finish the document; `text_bytes` of UTF-8 text went into it."""
        self.offsets.append(self.length)
        self.text_bytes.append(text_bytes)

    def _write(self, tokens: np.ndarray) -> None:
        self.length += int(tokens.size)
        data = memoryview(tokens.tobytes())
        while data:
            if self._room == 0:
                self._next_shard()
            assert self._shard is not None
            piece = data[: self._room]
            self._shard.write(piece)
            self._room -= len(piece)
            data = data[len(piece) :]

    def _next_shard(self) -> None:
        self.close()
        self._shard = open(self.folder / f"tokens-{self._shards:05d}.bin", "wb")  # noqa: SIM115 - closed by close()
        self._shards += 1
        self._room = SHARD_BYTES

    def close(self) -> None:
        """Close the open shard."""
        if self._shard is not None:
            self._shard.close()
            self._shard = None

    def finish(self, info: dict[str, Any]) -> None:
        """Write offsets, bytes and description.

        Raises:
            DataError: when no document was written.
        """
        import numpy as np

        self.close()
        if not self.text_bytes:
            raise DataError("no document was written: there is nothing to make a token file of")
        for name, numbers in (("offsets.bin", self.offsets), ("bytes.bin", self.text_bytes)):
            with open(self.folder / name, "wb") as file:
                file.write(np.asarray(numbers, dtype="<i8").tobytes())
        description = {
            "format": FORMAT,
            "vocab_size": self.vocab_size,
            "doc_id": self.doc_id,
            "dtype": self.dtype.str,
            "tokens": self.length,
            "documents": len(self.text_bytes),
            "text_bytes": sum(self.text_bytes),
            "shard_bytes": SHARD_BYTES,
            "info": info,
        }
        write_json(self.folder / _DESCRIPTION, description)


@contextmanager
def token_writer(
    path: str | Path, vocab_size: int, doc_id: int, dtype: np.dtype[Any], info: dict[str, Any]
) -> Iterator[TokenWriter]:
    """A writer whose folder appears at `path` when the block ends well, and not at all otherwise.

    Raises:
        StorageError: when the disk is full; what stood at `path` is intact.
    """
    with atomic_directory(path) as folder:
        writer = TokenWriter(folder, vocab_size, doc_id, dtype)
        try:
            yield writer
            writer.finish(info)
        finally:
            writer.close()


def write_tokens(
    path: str | Path, documents: Iterable[tuple[np.ndarray, int]], vocab_size: int, doc_id: int
) -> TokenFile:
    """A token file of documents given as (tokens (n,), bytes of text)."""
    import numpy as np

    dtype = np.dtype("u1" if vocab_size <= 256 else "<u2" if vocab_size <= 65536 else "<u4")
    with token_writer(path, vocab_size, doc_id, dtype, {}) as writer:
        for tokens, text_bytes in documents:
            writer.start()
            writer.add(np.asarray(tokens))
            writer.end(text_bytes)
    return TokenFile(path)


class TokenFile:
    """An open token file. `len(tokens)` is the length of the stream; nothing is read until it is asked for.

    Args:
        path: the folder.
        verify: check the shards' SHA-256: True, False, or None for "when they are below 64 MB".

    Raises:
        StorageError: when there is no such folder.
        CorruptionError: naming the file that is missing, truncated or changed.
    """

    def __init__(self, path: str | Path, verify: bool | None = None) -> None:
        import numpy as np

        self.path = Path(path)
        self._manifest = _read_manifest(self.path)
        self._check(verify=False)
        description = read_json(self.path / _DESCRIPTION)
        if description.get("format") != FORMAT:
            found = description.get("format")
            raise CorruptionError(
                f"'{self.path / _DESCRIPTION}' is of format {found}; this version reads format {FORMAT}"
            )
        self.vocab_size, self.doc_id = int(description["vocab_size"]), int(description["doc_id"])
        self.length, self.documents = int(description["tokens"]), int(description["documents"])
        self.total_bytes, self.info = int(description["text_bytes"]), dict(description["info"])
        if description["dtype"] not in _DTYPES:
            raise CorruptionError(f"'{self.path / _DESCRIPTION}' is damaged: unknown type {description['dtype']}")
        self.dtype = np.dtype(description["dtype"])
        self._per_shard = int(description["shard_bytes"]) // self.dtype.itemsize
        names = self._shard_names()
        if verify or (verify is None and self.length * self.dtype.itemsize < VERIFY_BELOW):
            self._check(verify=True)
        self._shards = [np.memmap(self.path / name, dtype=self.dtype, mode="r") for name in names]
        self.offsets: np.ndarray = np.memmap(self.path / "offsets.bin", dtype="<i8", mode="r")
        self.text_bytes: np.ndarray = np.memmap(self.path / "bytes.bin", dtype="<i8", mode="r")
        if (
            len(self.offsets) != self.documents + 1
            or len(self.text_bytes) != self.documents
            or self.offsets[-1] != self.length
        ):
            raise CorruptionError(f"'{self.path}' is damaged: offsets, bytes and tokens do not belong together")

    def _shard_names(self) -> list[str]:
        names = [f"tokens-{number:05d}.bin" for number in range(-(-self.length // self._per_shard))]
        size = sum(self._manifest[name]["bytes"] for name in names if name in self._manifest)
        if size != self.length * self.dtype.itemsize:
            held = size // self.dtype.itemsize
            raise CorruptionError(f"'{self.path}' is damaged: its shards hold {held} tokens instead of {self.length}")
        return names

    def _check(self, verify: bool) -> None:
        """Sizes of all files, and checksums: of the small files, or (`verify`) of the token shards."""
        for name, entry in self._manifest.items():
            file = self.path / name
            if not file.is_file():
                raise CorruptionError(f"'{file}' is missing; {self._remedy()}")
            if file.stat().st_size != entry["bytes"]:
                raise CorruptionError(
                    f"'{file}' is damaged: {file.stat().st_size} bytes instead of {entry['bytes']}; {self._remedy()}"
                )
            if name.startswith("tokens-") == verify and sha256_file(file) != entry["sha256"]:
                raise CorruptionError(
                    f"'{file}' is damaged: its SHA-256 is not the one in {MANIFEST}; {self._remedy()}"
                )

    def _remedy(self) -> str:
        return f"delete the folder '{self.path}' and it will be built again"

    def verify(self) -> None:
        """Check every file against its SHA-256, now.

        Raises:
            CorruptionError: naming the file.
        """
        self._check(verify=False)
        self._check(verify=True)

    def __len__(self) -> int:
        return self.length

    @property
    def hash(self) -> str:
        """Identifies the content: from the manifest's checksums, so equal streams have equal hashes."""
        import hashlib

        names = sorted(name for name in self._manifest if name.endswith(".bin"))
        return hashlib.sha256("".join(self._manifest[name]["sha256"] for name in names).encode()).hexdigest()[:16]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start..stop of the stream, as a view of the file where it lies in one shard.

        Raises:
            IndexError: when the range is not within the stream.
        """
        import numpy as np

        if not 0 <= start <= stop <= self.length:
            raise IndexError(f"tokens {start}..{stop} of a stream of {self.length}")
        first, last = start // self._per_shard, max(start, stop - 1) // self._per_shard
        if start == stop:
            return np.empty(0, self.dtype)
        base = first * self._per_shard
        if first == last:
            return self._shards[first][start - base : stop - base]
        pieces = [
            self._shards[first][start - base :],
            *self._shards[first + 1 : last],
            self._shards[last][: stop - last * self._per_shard],
        ]
        return np.concatenate(pieces)

    def document(self, number: int) -> np.ndarray:
        """Tokens of one document, its DOC first."""
        if not 0 <= number < self.documents:
            raise IndexError(f"document {number} of {self.documents}")
        return self.read(int(self.offsets[number]), int(self.offsets[number + 1]))

    def describe(self) -> dict[str, Any]:
        """Numbers for a result: tokens, documents, bytes of text, hash, and ids that stand for unknown characters."""
        unknown = self.info.get("unknown", 0)
        return {
            "tokens": self.length,
            "documents": self.documents,
            "bytes": self.total_bytes,
            "hash": self.hash,
            "unknown": unknown,
        }

    def __repr__(self) -> str:
        size = f"{self.length:,} {self.dtype.name} in {self.documents:,} documents"
        return f"<tokens {self.path.name}: {size}, {self.total_bytes:,} bytes of text>"


def _read_manifest(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_dir():
        raise StorageError(f"no token file '{path}'")
    if not (path / MANIFEST).is_file():
        raise CorruptionError(f"'{path}' has no {MANIFEST}: it is incomplete or is not a token file")
    manifest = read_json(path / MANIFEST)
    try:
        files = dict(manifest["files"])
        wanted = {_DESCRIPTION, "offsets.bin", "bytes.bin", "tokens-00000.bin"}
        sound = manifest["format"] == 1 and all(
            "/" not in name and isinstance(files[name]["bytes"], int) for name in files
        )
        if not sound or not wanted <= set(files) or not all(isinstance(files[name]["sha256"], str) for name in files):
            raise ValueError
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptionError(f"'{path / MANIFEST}' is damaged or not that of a token file") from error
    return files
