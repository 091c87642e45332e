"""Tokenizers from folders and files: what :meth:`Tokenizer.save` wrote, checked against its hash, and `tokenizer.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orrery.core.config import config_hash
from orrery.core.errors import CorruptionError, DataError
from orrery.core.files import read_json
from orrery.data.marks import MarkedTokenizer
from orrery.data.tokenizers import (
    DESCRIPTION,
    FORMAT,
    LIBRARY_FILE,
    ByteTokenizer,
    CharTokenizer,
    LibraryTokenizer,
    Tokenizer,
)


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """A tokenizer that :meth:`Tokenizer.save` wrote.

    Raises:
        StorageError: when there is none.
        CorruptionError: when it does not match its hash.
    """
    path = Path(folder) / DESCRIPTION
    stored = read_json(path)
    try:
        if stored.pop("check") != config_hash(stored):
            raise CorruptionError(f"'{path}' is damaged: its content does not match its checksum")
        if stored["format"] != FORMAT:
            raise CorruptionError(f"'{path}' is of format {stored['format']}; this version reads format {FORMAT}")
        tokenizer = _rebuild(stored, Path(folder))
        wanted = stored["hash"]
    except (KeyError, TypeError, AttributeError, DataError) as error:
        raise CorruptionError(f"'{path}' is damaged: {error}") from error
    if tokenizer.hash != wanted:
        raise CorruptionError(f"the tokenizer in '{folder}' is damaged: its hash is {tokenizer.hash}, not {wanted}")
    return tokenizer


def _rebuild(stored: dict[str, Any], folder: Path) -> Tokenizer:
    if stored["kind"] == "marked":
        return MarkedTokenizer(_rebuild(stored["base"] | {"name": stored["base_name"]}, folder), tuple(stored["roles"]))
    if stored["kind"] == "bytes":
        return ByteTokenizer()
    if stored["kind"] == "chars":
        return CharTokenizer(stored["alphabet"], stored["name"])
    if stored["kind"] != "library":
        raise CorruptionError(f"'{folder / DESCRIPTION}' is damaged: unknown kind '{stored['kind']}'")
    library = _library_text(folder / LIBRARY_FILE)
    if config_hash(library) != stored["library_check"]:
        raise CorruptionError(f"'{folder / LIBRARY_FILE}' is damaged: it does not match {DESCRIPTION}")
    return LibraryTokenizer(library, stored["name"], stored["doc_id"])


def _library_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is not UTF-8 text (byte {error.start})") from error


def open_tokenizer_file(path: Path) -> Tokenizer:
    """A `tokenizer.json`, or a folder with one or with a saved tokenizer.

    Raises:
        DataError: when it is no tokenizer.
    """
    if path.is_dir():
        if (path / DESCRIPTION).is_file():
            return load_tokenizer(path)
        path = path / LIBRARY_FILE
    return LibraryTokenizer(_library_text(path), str(path))
