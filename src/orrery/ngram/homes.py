"""Where indexes with a name lie, and how one is opened: by its name, its folder, its address, or several together.

    stdlib                       the index that `build stdlib` left among the user's derived data
    ./my.idx                     a folder
    http://host:8766/stdlib      an index that a service answers for
    a,b,http://host:8766/c       one object over all of them: counts are added
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orrery.core.errors import ConfigError, CorruptionError, DataError, StorageError, suggest
from orrery.core.files import cache_dir, read_json

if TYPE_CHECKING:
    from orrery.ngram.index import Index

DESCRIPTION = "index.json"
_PATIENCE = 2.0  # seconds that a folder may be away while a new index takes its place


def home(name: str) -> Path:
    """The folder of the index of that name, whether it exists or not.

    Raises:
        ConfigError: the name is none.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name):
        raise ConfigError(f"'{name}' cannot be the name of an index: use letters, digits, '.', '_' and '-'")
    return cache_dir() / "ngram" / name


def named() -> dict[str, Path]:
    """Indexes that have a name."""
    root = cache_dir() / "ngram"
    try:
        found = sorted(root.iterdir()) if root.is_dir() else []
    except OSError as error:
        raise StorageError(f"cannot read '{root}': {error.strerror or error}") from error
    return {path.name: path for path in found if not path.name.startswith(".") and holds_index(path)}


def holds_index(path: Path) -> bool:
    """Whether a folder is that of an index.

    Raises:
        StorageError: it may not be read.
    """
    try:
        return (path / DESCRIPTION).is_file()
    except OSError as error:
        raise StorageError(f"cannot read '{path}': {error.strerror or error}") from error


def locate(spec: str | Path) -> Path:
    """The folder of an index: a path that holds one comes before a name.

    Raises:
        StorageError: there is no such index; says what there is and how one is built.
    """
    path = Path(spec).expanduser()
    if holds_index(path):
        return path
    text = str(spec)
    known = named()
    if text in known:
        return known[text]
    if "/" in text or "\\" in text or path.is_dir() or text.startswith("."):
        if path.is_dir():
            raise CorruptionError(f"the folder '{spec}' holds no whole n-gram index; build one with `orrery ngram build`")
        raise StorageError(f"there is no folder '{spec}'")
    listed = f" There are: {', '.join(known)}." if known else ""
    raise StorageError(f"no index '{spec}'.{suggest(text, known)}{listed} Build it with `orrery ngram build {spec}`")


def open_steady(folder: str | Path) -> Index:
    """Open an index that another process may be replacing: old or new, never parts of both, with nothing left to open later.

    Raises:
        StorageError, CorruptionError: as :func:`orrery.ngram.open`, where nobody is replacing it.
    """
    from orrery.ngram.index import open_index

    path, until = Path(folder).expanduser(), time.monotonic() + _PATIENCE
    while True:
        try:
            index = open_index(path)
            _ = index.catalogue, index.tokenizer
            if read_json(path / DESCRIPTION).get("check") == _check_of(index):
                return index
        except (StorageError, CorruptionError):
            if time.monotonic() > until or not _moving(path):
                raise
        if time.monotonic() > until:
            raise StorageError(f"'{path}' is being replaced again and again; try later")
        time.sleep(0.02)


def _check_of(index: Index) -> str:
    from orrery.core.config import config_hash

    return config_hash(index.info)


def _moving(path: Path) -> bool:
    """Whether a finished build is being renamed into place."""
    return any(path.parent.glob(f".{path.name}.*.old")) or (path.with_name(f".{path.name}.build") / "manifest.json").is_file()


def open_any(spec: str | Path) -> Any:
    """An index by name, folder or address; several, with commas between them, as one object.

    Returns:
        An :class:`~orrery.ngram.index.Index`, a :class:`~orrery.ngram.remote.Remote` or a
        :class:`~orrery.ngram.union.Union`, which answer the same queries.
    """
    parts = [part.strip() for part in str(spec).split(",")]
    if not isinstance(spec, Path) and len(parts) > 1 and not (Path(spec) / DESCRIPTION).is_file():
        from orrery.ngram.union import Union

        if not all(parts):
            raise ConfigError(f"'{spec}' names an empty index; write them as in a,b")
        return Union([open_any(part) for part in parts])
    if str(spec).startswith(("http://", "https://")):
        from orrery.ngram.remote import Remote

        return Remote(str(spec))
    return open_steady(locate(spec))


def token_text(index: Any, token: int) -> str:
    """What a token looks like; of an index without a tokenizer its id.

    Bytes that are no character by themselves are written as in `\\xe2`.
    """
    if token == index.doc_id:
        return "<document>"
    tokenizer = index.tokenizer
    if tokenizer is None:
        return str(token)
    text = str(tokenizer.decode([token]))
    if text == "\ufffd" and tokenizer.name == "bytes":
        return f"\\x{token:02x}"
    return text


def plain_text(index: Any, ids: Any) -> str:
    """Ids as text; of an index without a tokenizer the ids.

    Raises:
        DataError: an id that no token has.
    """
    listed = [int(i) for i in ids]
    if any(not 0 <= i < index.vocab_size for i in listed):
        raise DataError(f"ids must lie in 0..{index.vocab_size - 1}")
    if index.tokenizer is None:
        return " ".join(map(str, listed))
    return str(index.tokenizer.decode(listed))
