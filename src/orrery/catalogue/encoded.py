"""Papers placed by an encoder from outside, in place of the catalogue's own space: what a search may be given.

An encoder is a name and a function from texts to vectors. Nothing of torch is known here. A name stands for its weights:
what papers' texts gave under it is kept in `encoded/NAME/` beside the store, with checksums and the digest of every paper,
so only papers that are new or changed are read again. Deleting the folder loses nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from orrery.core import files
from orrery.core.errors import ConfigError, OrreryError

if TYPE_CHECKING:
    import numpy as np

    from orrery.catalogue.store import Store

    Array = np.ndarray[Any, Any]

FOLDER = "encoded"
FORMAT = 1
_PIECE = 256  # papers that are read and encoded at once
_ARRAYS = ("ids", "digests", "vectors")


class Encoder(Protocol):
    """What places texts."""

    name: str  # of these very weights: letters, digits, - and _

    def __call__(self, texts: Sequence[str]) -> Array:
        """One vector for each text, (N,K); of any length but 0."""
        ...


@dataclass
class Encoded:
    """Placed papers: numbers in the store, ascending, their digests, and unit vectors."""

    encoder: Encoder
    ids: Array  # (N,) int64
    digests: Array  # (N,) uint64
    vectors: Array  # (N,K) float32
    missing: int = 0

    def wide(self) -> Array:
        """All vectors (N,K)."""
        return self.vectors

    def near(self, vector: Array) -> Array:
        """Cosine (N,) of every paper to a unit vector (K,)."""
        found: Array = self.vectors @ vector
        return found

    def ask(self, text: str) -> Array:
        """The unit vector (K,) of a question; zero where it says nothing."""
        return _unit(self.encoder, [text])[0]

    def place(self, number: int) -> int | None:
        """The row of a paper's number in the store."""
        import numpy as np

        row = int(np.searchsorted(self.ids, number))
        return row if row < len(self.ids) and self.ids[row] == number else None


def current(store: Store, encoder: Encoder) -> Encoded:
    """Every paper of a store, placed by an encoder; those that it has not read yet are read now.

    Raises:
        ConfigError: a name that is no folder's, or vectors that are not (N,K).
    """
    import numpy as np

    if not re.fullmatch(r"[A-Za-z0-9][\w-]{0,79}", encoder.name):
        raise ConfigError(f"an encoder's name must be letters, digits, - and _, at most 80, not {encoder.name!r}")
    rows = store.connection().execute("SELECT id, digest FROM papers ORDER BY id").fetchall()
    ids = np.fromiter((row[0] for row in rows), np.int64, len(rows))
    digests = np.fromiter((int(row[1], 16) for row in rows), np.uint64, len(rows))
    old = _load(store, encoder)
    fresh = np.ones(len(ids), bool)
    if old is not None and len(old.ids):
        where = np.searchsorted(old.ids, ids).clip(max=len(old.ids) - 1)
        fresh = (old.ids[where] != ids) | (old.digests[where] != digests)
        if not fresh.any() and len(old.ids) == len(ids):
            return old
    read = _read(store, encoder, ids[fresh].tolist())
    vectors = np.zeros((len(ids), read.shape[1] if old is None or not len(old.ids) else old.vectors.shape[1]), np.float32)
    if old is not None and len(old.ids):
        vectors[~fresh] = old.vectors[np.searchsorted(old.ids, ids[~fresh])]
    if fresh.any():
        if read.shape[1] != vectors.shape[1]:
            raise ConfigError(f"the encoder '{encoder.name}' gave vectors of {vectors.shape[1]} numbers before and {read.shape[1]} now")
        vectors[fresh] = read
    made = Encoded(encoder, ids, digests, vectors)
    _save(store, made)
    return made


def _read(store: Store, encoder: Encoder, numbers: list[int]) -> Array:
    """Unit vectors of papers: title, our sentence and abstract as one text."""
    import numpy as np

    parts = []
    for start in range(0, len(numbers), _PIECE):
        piece = numbers[start : start + _PIECE]
        marks = ", ".join("?" * len(piece))
        rows = store.connection().execute(
            f"SELECT title, sentence, abstract FROM papers WHERE id IN ({marks}) ORDER BY id", piece
        )
        parts.append(_unit(encoder, [". ".join(text for text in row if text) for row in rows]))
    return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)


def _unit(encoder: Encoder, texts: list[str]) -> Array:
    import numpy as np

    found = np.asarray(encoder(texts), np.float32)
    if found.ndim != 2 or len(found) != len(texts) or not np.isfinite(found).all():
        raise ConfigError(f"the encoder '{encoder.name}' must give one finite vector for each of {len(texts)} texts, not {found.shape}")
    length = np.linalg.norm(found, axis=1, keepdims=True)
    unit: Array = found / np.where(length > 0, length, 1)
    return unit


def _save(store: Store, made: Encoded) -> None:
    import numpy as np

    try:
        with files.atomic_directory(store.folder / FOLDER / made.encoder.name) as folder:
            for name in _ARRAYS:
                np.save(folder / f"{name}.npy", getattr(made, name), allow_pickle=False)
            files.write_json(folder / "meta.json", {"format": FORMAT})
    except OrreryError:  # a folder that cannot be written costs time only
        return


def _load(store: Store, encoder: Encoder) -> Encoded | None:
    """What is on the disk, or None: absent, damaged or of another format; it is made anew then."""
    import numpy as np

    folder = store.folder / FOLDER / encoder.name
    try:
        files.verify_directory(folder)
        if files.read_json(folder / "meta.json").get("format") != FORMAT:
            return None
        return Encoded(encoder, *(np.load(folder / f"{name}.npy", allow_pickle=False) for name in _ARRAYS))
    except (OrreryError, OSError, ValueError):
        return None
