"""One writer per run folder: a lock file that names its holder, made exclusively, taken over when the holder is gone.

A plain exclusive file needs no lock server and so works on network disks. It names host, process and the start time of
that process (process ids are reused). On the same host a lock whose process is gone is stale and taken over; of another
host nothing can be known, so its lock stands until a person deletes it.
"""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from orrery.core.errors import StorageError

LOCK = "running.lock"
_TAKEOVER = "running.lock.takeover"  # a folder: `mkdir` succeeds for one process only
_TAKEOVER_SECONDS = 30.0  # a process killed inside the takeover, which lasts milliseconds, is forgotten after this


def take(folder: Path) -> dict[str, Any]:
    """Become the one writer of `folder` and return what identifies us (host, process, process_started).

    Raises:
        StorageError: when a living process, or one of another host, holds it.
    """
    mine = holder()
    lock = folder / LOCK
    for _ in range(50):
        if _create(lock, mine):
            return mine
        other = _read(lock)
        if other is None:
            continue  # released just now
        if other != mine and alive(other, unknown=True):
            raise StorageError(
                f"'{folder}' is in use by process {other.get('process')} on {other.get('host')}; "
                f"wait for it, or delete '{lock}' if that machine is gone"
            )
        _remove_stale(folder, other)
    raise StorageError(f"'{folder}' is being taken by other processes again and again; try later")


def release(folder: Path) -> None:
    """Give the folder back; harmless when it was not held."""
    (folder / LOCK).unlink(missing_ok=True)


def holder() -> dict[str, Any]:
    """Who writes: host, process id, and when that process started."""
    return {"host": socket.gethostname(), "process": os.getpid(), "process_started": _started(os.getpid())}


def alive(record: dict[str, Any], unknown: bool) -> bool:
    """Whether the process named in a record still runs; `unknown` is the answer for another host."""
    if record.get("host") != socket.gethostname():
        return unknown
    started, then = _started(record.get("process")), record.get("process_started")
    if started is None:
        return False
    return not isinstance(then, (int, float)) or abs(started - then) < 2.0


def _create(lock: Path, mine: dict[str, Any]) -> bool:
    try:
        handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    except OSError as error:
        raise StorageError(f"cannot write in '{lock.parent}': {error.strerror or error}") from error
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(mine, file)
    return True


def _read(lock: Path) -> dict[str, Any] | None:
    """Content of the lock; an empty one (its writer is between two system calls, or died there) gets a moment."""
    for _ in range(20):
        try:
            content = json.loads(lock.read_text(encoding="utf-8"))
            return content if isinstance(content, dict) else {"host": socket.gethostname()}
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            time.sleep(0.01)
    return {"host": socket.gethostname()}  # never written: as good as a dead process of this host


def _remove_stale(folder: Path, stale: dict[str, Any]) -> None:
    """Delete the lock if it is still the stale one; a guard keeps two processes from deleting each other's."""
    guard = folder / _TAKEOVER
    try:
        guard.mkdir()
    except FileExistsError:
        time.sleep(0.02)
        try:
            if time.time() - guard.stat().st_mtime > _TAKEOVER_SECONDS:
                guard.rmdir()
        except OSError:
            pass  # its owner finished meanwhile
        return
    except OSError as error:
        raise StorageError(f"cannot write in '{folder}': {error.strerror or error}") from error
    try:
        if _read(folder / LOCK) == stale:
            (folder / LOCK).unlink(missing_ok=True)
    finally:
        guard.rmdir()


def _started(process: Any) -> float | None:
    """Start time of a process in seconds since the epoch, None when there is no such process."""
    import psutil

    if not isinstance(process, int) or process <= 0:
        return None
    try:
        found = psutil.Process(process)
        return None if found.status() == psutil.STATUS_ZOMBIE else float(found.create_time())
    except psutil.Error:
        return None
