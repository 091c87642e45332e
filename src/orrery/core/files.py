"""Files that are either whole or absent: atomic writes, checksummed folders, JSON and JSON lines.

A single file is written beside its target, flushed to the disk, and renamed over it. A folder is built under a
temporary name, gets a `manifest.json` with the SHA-256 and size of every file, and is renamed as a whole. A reader
therefore never meets half a file, and a flipped byte is found before it is believed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from orrery.core.errors import CorruptionError, StorageError

MANIFEST = "manifest.json"
FORMAT = 1
_CHUNK = 1 << 20


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file's content, read in pieces of one MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def _sync_folder(path: Path) -> None:
    """Flush a directory entry. Windows has no such call, and some network disks refuse it: a rename is kept anyway."""
    if os.name == "nt":
        return
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        return
    finally:
        os.close(handle)


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write `data` so that `path` holds either its old content or all of the new one.

    Raises:
        StorageError: when the disk is full or the place cannot be written; the old content is intact.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):  # where its folder is a file, even this fails
            temporary.unlink(missing_ok=True)
        raise StorageError(f"cannot write '{path}': {error.strerror or error}; free some space or choose another place") from error
    _sync_folder(path.parent)
    return path


def write_text(path: str | Path, text: str) -> Path:
    """:func:`write_bytes` for UTF-8 text."""
    return write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, value: Any) -> Path:
    """:func:`write_bytes` for JSON with sorted keys; NaN and infinity are refused, since JSON has none."""
    return write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Parse a JSON file.

    Raises:
        StorageError: when the file cannot be read.
        CorruptionError: when it is not JSON.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CorruptionError(f"'{path}' is damaged: it is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise StorageError(f"cannot read '{path}': {error.strerror or error}") from error
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise CorruptionError(f"'{path}' is damaged: not valid JSON at line {error.lineno}") from error


def append_jsonl(path: str | Path, record: dict[str, Any]) -> None:
    """Append one record as one line and hand it to the operating system at once."""
    line = json.dumps(record, ensure_ascii=False, sort_keys=False) + "\n"
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(line)
    except OSError as error:
        raise StorageError(f"cannot write '{path}': {error.strerror or error}") from error


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """All records of a JSON-lines file. A torn last line (a process killed while writing) is dropped.

    Raises:
        CorruptionError: when a line other than the last is not JSON.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise StorageError(f"cannot read '{path}': {error.strerror or error}") from error
    while lines and not lines[-1].strip():
        lines.pop()
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            if number == len(lines):
                break
            raise CorruptionError(f"'{path}' is damaged: line {number} is not JSON") from error
    return records


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Build a folder under a temporary name; on success add the manifest and rename it into place.

    An older folder of the same name is replaced only after the new one is complete. On any failure the temporary
    folder is removed and the old one stays.

    Yields:
        The temporary folder to write into.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    except OSError as error:
        raise StorageError(f"cannot write under '{path.parent}': {error.strerror or error}") from error
    try:
        yield temporary
        _seal(temporary)
        _swap(temporary, path)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise StorageError(f"cannot write '{path}': {error.strerror or error}; what stood there before is intact") from error
    except StorageError as error:  # of one file in it
        shutil.rmtree(temporary, ignore_errors=True)
        raise StorageError(f"cannot write '{path}': {error}; what stood there before is intact") from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def publish_directory(temporary: Path, path: str | Path) -> None:
    """Seal a folder that was filled in several sittings (manifest last) and rename it into place, as above.

    Raises:
        StorageError: when that fails; the temporary folder stays as it is, and so does what stood at `path`.
    """
    try:
        _seal(temporary)
        _swap(temporary, Path(path))
    except OSError as error:
        raise StorageError(f"cannot write '{path}': {error.strerror or error}; what stood there before is intact") from error


def _seal(folder: Path) -> None:
    """Flush every file and write the manifest last."""
    entries = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        with open(file, "rb+") as handle:
            os.fsync(handle.fileno())
        entries[file.relative_to(folder).as_posix()] = {"sha256": sha256_file(file), "bytes": file.stat().st_size}
    write_json(folder / MANIFEST, {"format": FORMAT, "files": entries})
    _sync_folder(folder)


def _swap(temporary: Path, path: Path) -> None:
    """Rename `temporary` to `path`. Between the two renames a crash leaves the old folder as `.NAME.HEX.old`."""
    os.chmod(temporary, 0o755)
    old = None
    if path.exists():
        old = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.old")
        os.rename(path, old)
    try:
        os.rename(temporary, path)
    except OSError:
        if old is not None:
            os.rename(old, path)
        raise
    _sync_folder(path.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def verify_directory(path: str | Path) -> dict[str, Any]:
    """Check every file of a folder against its manifest and return the manifest.

    Raises:
        CorruptionError: naming the first file that is missing, has another size, or another checksum.
    """
    path = Path(path)
    if not path.is_dir():
        raise StorageError(f"no folder '{path}'")
    if not (path / MANIFEST).is_file():
        raise CorruptionError(f"'{path}' has no {MANIFEST}: it is incomplete or was not written by orrery")
    manifest = read_json(path / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or not isinstance(manifest.get("files"), dict):
        raise CorruptionError(f"'{path / MANIFEST}' is damaged or of an unknown format; this version reads format {FORMAT}")
    for name, entry in manifest["files"].items():
        file = path / name
        if not file.resolve().is_relative_to(path.resolve()):
            raise CorruptionError(f"'{path / MANIFEST}' names '{name}', which lies outside the folder")
        if not file.is_file():
            raise CorruptionError(f"'{file}' is missing")
        if not isinstance(entry, dict) or not {"bytes", "sha256"} <= set(entry):
            raise CorruptionError(f"'{path / MANIFEST}' is damaged: it does not say how large '{name}' is, or its SHA-256")
        if file.stat().st_size != entry["bytes"]:
            raise CorruptionError(f"'{file}' is damaged: {file.stat().st_size} bytes instead of {entry['bytes']}")
        if sha256_file(file) != entry["sha256"]:
            raise CorruptionError(f"'{file}' is damaged: its SHA-256 is not the one in {MANIFEST}")
    return manifest


def sweep_temporary(folder: str | Path) -> list[str]:
    """Remove what interrupted writers left (`.NAME.*.tmp`, `.NAME.*.old` whose `NAME` exists); names of what went."""
    gone = []
    for item in Path(folder).glob(".*"):
        target = item.with_name(item.name[1:].rsplit(".", 2)[0])
        if item.suffix == ".old" and not target.exists():
            os.rename(item, target)  # killed between the two renames: the old folder is the good one
        elif item.suffix in (".tmp", ".old"):
            shutil.rmtree(item, ignore_errors=True) if item.is_dir() else item.unlink(missing_ok=True)
            gone.append(item.name)
    return gone


def cache_dir() -> Path:
    """Where derived data (token shards, trained tokenizers) is kept: `$ORRERY_CACHE`, else the user's cache folder."""
    if own := os.environ.get("ORRERY_CACHE"):
        return Path(own)
    if os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home()))
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "orrery"


def data_dir() -> Path:
    """Where the user's own data (the papers' store) is kept: `$ORRERY_DATA`, else the user's data folder."""
    if own := os.environ.get("ORRERY_DATA"):
        return Path(own)
    if os.name == "nt":
        base = Path(os.environ.get("APPDATA", Path.home()))
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "orrery"


def check_free_space(path: str | Path, needed: int) -> None:
    """Refuse early when the disk that holds `path` has fewer than `needed` bytes free.

    Raises:
        StorageError: with both numbers.
    """
    folder = Path(path)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(f"'{path}' needs {needed / 1e6:,.0f} MB, but its disk has {free / 1e6:,.0f} MB free")
