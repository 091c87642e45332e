"""The catalogue's vectors, kept beside the store: made when first needed, extended when papers come, checked when read.

The folder `semantic/` of a store is derived data: what the papers' texts give through :mod:`orrery.catalogue.semantic`,
and the vocabulary that suggestions choose from. It carries a manifest of checksums, the journal's number when it was
written, and the digest of every paper that it covers. A paper that is new or changed since is folded in; the space
itself is fitted anew when the catalogue has grown twofold, or is small enough for that to take no time. Deleting the
folder loses nothing. A folder that cannot be written, or is damaged, costs time only; a note says so.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orrery.catalogue import content, semantic
from orrery.catalogue.words import STOP, words
from orrery.core import files
from orrery.core.errors import OrreryError

if TYPE_CHECKING:
    import numpy as np

    from orrery.catalogue.store import Store

    Array = np.ndarray[Any, Any]

FOLDER = "semantic"
FORMAT = 1
SMALL = 1000  # papers: the space is fitted anew whenever anything changes; 0.2 s
AT_ONCE = 3000  # papers that a search itself folds in or fits on; more wait for `prepare`
WEIGHTS = {"title": 3.0, "sentence": 2.0, "abstract": 1.0, "names": 2.0, "kind": 1.0}
_TEXTS = "title, sentence, abstract, names, kind"
_PIECE = 2000  # papers that are read and placed at once
_known: dict[Path, Vectors] = {}
_lock = threading.RLock()


@dataclass
class Vectors:
    """Placed papers: numbers in the store, their digests, their packed vectors; and the words that papers use."""

    space: semantic.Space
    ids: Array  # (N,) int64, ascending
    digests: Array  # (N,) uint64
    packed: Array  # (N,K) int8
    scales: Array  # (N,) float32
    vocabulary: list[str]
    counts: Array  # (V,) int32: papers that use the word
    fitted: int  # papers in the store when the space was fitted
    key: tuple[Any, ...] = ()  # what the store said when this was last found current
    missing: int = 0  # papers of the store that are not placed yet
    notes: list[str] = field(default_factory=list)
    _wide: Array | None = None

    def wide(self) -> Array:
        """All vectors (N,K) as float32; widened once in a process."""
        if self._wide is None:
            self._wide = semantic.unpack(self.packed, self.scales)
        return self._wide

    def near(self, vector: Array) -> Array:
        """Cosine (N,) of every paper to a unit vector (K,)."""
        found: Array = self.wide() @ vector
        return found

    def ask(self, text: str) -> Array:
        """The unit vector (K,) of a question; zero where the space knows no word of it."""
        found: Array = self.space.embed([semantic.bag((text, 1.0))])[0]
        return found

    def place(self, number: int) -> int | None:
        """The row of a paper's number in the store."""
        import numpy as np

        row = int(np.searchsorted(self.ids, number))
        return row if row < len(self.ids) and self.ids[row] == number else None


def current(store: Store, *, wait: bool = False) -> Vectors | None:
    """The vectors of a store, brought up to date where that is quick; None when there are none and making them is not.

    Args:
        wait: make whatever is missing, however long it takes (13 s for 100,000 papers).
    """
    with _lock:
        connection = store.connection()
        found = _known.get(store.folder)
        now = content.key(store, connection)
        if found is not None and found.key == now and not (wait and found.missing):
            return found
        if found is None:
            found = _load(store.folder / FOLDER)
        if found is None or found.key != now or (wait and found.missing):
            found = _updated(store, connection, found, now, wait)
        if found is not None:
            found.key = now
            _known[store.folder] = found
        return found


def forget(folder: Path) -> None:
    """Drop what this process holds of a store's folder."""
    with _lock:
        _known.pop(folder, None)


def _updated(
    store: Store, connection: sqlite3.Connection, old: Vectors | None, now: tuple[Any, ...], wait: bool
) -> Vectors | None:
    import numpy as np

    rows = connection.execute("SELECT id, digest FROM papers ORDER BY id").fetchall()
    ids = np.fromiter((row[0] for row in rows), np.int64, len(rows))
    digests = np.fromiter((int(row[1], 16) for row in rows), np.uint64, len(rows))
    if old is not None and np.array_equal(old.ids, ids) and np.array_equal(old.digests, digests):
        old.missing, old.key = 0, now
        _save(store, connection, old)  # so that the next process need not compare
        return old
    refit = old is None or len(ids) <= SMALL or len(ids) > 2 * max(old.fitted, SMALL)
    fresh = np.ones(len(ids), bool)
    if old is not None and not refit:
        where = np.searchsorted(old.ids, ids).clip(max=max(0, len(old.ids) - 1))
        fresh = (old.ids[where] != ids) | (old.digests[where] != digests)
    if not wait and int(fresh.sum()) > AT_ONCE:
        if old is not None:
            old.missing = len(ids) - int(np.isin(ids, old.ids).sum())
        return old
    made = _fit(connection, ids, digests) if old is None or refit else _extend(connection, old, ids, digests, fresh)
    made.key = now
    _save(store, connection, made)
    return made


def _fit(connection: sqlite3.Connection, ids: Array, digests: Array) -> Vectors:
    chosen = [int(ids[place]) for place in semantic.sample(len(ids))]
    counts: Counter[str] = Counter()
    space = semantic.fit([bag for _, bag in _bags(connection, chosen, Counter())])
    packed, scales = _placed(connection, space, [int(number) for number in ids], counts)
    vocabulary, frequency = _vocabulary(counts, len(ids))
    return Vectors(space, ids, digests, packed, scales, vocabulary, frequency, fitted=len(ids))


def _extend(connection: sqlite3.Connection, old: Vectors, ids: Array, digests: Array, fresh: Array) -> Vectors:
    """The old space with the papers that are still as they were, and the others folded in."""
    import numpy as np

    counts = Counter(dict(zip(old.vocabulary, old.counts.tolist(), strict=True)))
    packed, scales = _placed(connection, old.space, ids[fresh].tolist(), counts)
    where = np.searchsorted(old.ids, ids[~fresh])
    all_packed = np.zeros((len(ids), old.packed.shape[1]), np.int8)
    all_scales = np.zeros(len(ids), np.float32)
    all_packed[fresh], all_scales[fresh] = packed, scales
    all_packed[~fresh], all_scales[~fresh] = old.packed[where], old.scales[where]
    vocabulary, frequency = _vocabulary(counts, len(ids))
    return Vectors(old.space, ids, digests, all_packed, all_scales, vocabulary, frequency, fitted=old.fitted)


def _placed(
    connection: sqlite3.Connection, space: semantic.Space, numbers: list[int], counts: Counter[str]
) -> tuple[Array, Array]:
    """Packed vectors of papers, in pieces, so that texts are never held all at once; their words are counted on the way."""
    import numpy as np

    width = space.directions.shape[1]
    packed, scales = np.zeros((len(numbers), width), np.int8), np.zeros(len(numbers), np.float32)
    for start in range(0, len(numbers), _PIECE):
        piece = numbers[start : start + _PIECE]
        found = dict(_bags(connection, piece, counts))
        vectors = space.embed(found.get(number, {}) for number in piece)
        packed[start : start + len(piece)], scales[start : start + len(piece)] = semantic.pack(vectors)
    return packed, scales


def _bags(
    connection: sqlite3.Connection, numbers: list[int], counts: Counter[str]
) -> Iterator[tuple[int, semantic.Bag]]:
    for start in range(0, len(numbers), 500):
        part = numbers[start : start + 500]
        marks = ", ".join("?" * len(part))
        for row in connection.execute(
            f"SELECT id, {_TEXTS} FROM papers WHERE id IN ({marks}) ORDER BY id", part
        ):  # no names of people: a mistyped word of the field is not a name that is spelt alike
            counts.update({w for name in ("title", "sentence", "abstract", "names") for w in words(row[name])})
            yield row["id"], semantic.bag(*((row[name] or "", weight) for name, weight in WEIGHTS.items()))


def _vocabulary(counts: Counter[str], papers: int) -> tuple[list[str], Array]:
    """Words worth suggesting: of three letters and more, no numbers; in a large catalogue used by two papers at least."""
    import numpy as np

    least = 1 if papers <= SMALL else 2
    kept = sorted(
        word for word, n in counts.items() if n >= least and len(word) > 2 and word not in STOP and not word.isdigit()
    )
    return kept, np.fromiter((counts[word] for word in kept), np.int32, len(kept))


# ---------------------------------------------------------------- on disk

_ARRAYS = ("ids", "digests", "packed", "scales", "counts")


def _save(store: Store, connection: sqlite3.Connection, made: Vectors) -> None:
    import numpy as np

    seq = connection.execute("SELECT value FROM meta WHERE key = 'journal_seq'").fetchone()
    try:
        with files.atomic_directory(store.folder / FOLDER) as folder:
            for name in _ARRAYS:
                np.save(folder / f"{name}.npy", getattr(made, name), allow_pickle=False)
            np.savez(folder / "space.npz", idf=made.space.idf, directions=made.space.directions, mean=made.space.mean)
            (folder / "features.txt").write_text("\n".join(made.space.features), encoding="utf-8")
            (folder / "vocabulary.txt").write_text("\n".join(made.vocabulary), encoding="utf-8")
            meta = {
                "format": FORMAT,
                "journal_seq": int(seq[0]) if seq else 0,
                "fitted": made.fitted,
                "key": list(made.key),
            }
            files.write_json(folder / "meta.json", meta)
    except OrreryError as error:
        made.notes.append(f"the semantic index is not kept: {error}")


def _load(folder: Path) -> Vectors | None:
    """What is on the disk, or None: absent, damaged or of another format; it is made anew then."""
    import numpy as np

    if not folder.is_dir():
        return None
    try:
        files.verify_directory(folder)
        meta = files.read_json(folder / "meta.json")
        if meta.get("format") != FORMAT:
            return None
        arrays = {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in _ARRAYS}
        features = (folder / "features.txt").read_text(encoding="utf-8")
        vocabulary = (folder / "vocabulary.txt").read_text(encoding="utf-8")
        with np.load(folder / "space.npz", allow_pickle=False) as stored:
            space = semantic.Space(
                tuple(features.split("\n")) if features else (), stored["idf"], stored["directions"], stored["mean"]
            )
        return Vectors(
            space=space,
            vocabulary=vocabulary.split("\n") if vocabulary else [],
            fitted=int(meta["fitted"]),
            key=tuple(meta["key"]),
            **arrays,
        )
    except (OrreryError, OSError, ValueError, KeyError, TypeError):
        return None
