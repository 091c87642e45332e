"""A lock between processes that the operating system takes back when its holder dies, however it dies."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from orrery.core.errors import StorageError


@contextmanager
def exclusive(path: str | Path, wait: float, busy: str) -> Iterator[IO[Any]]:
    """Hold the lock of the file `path`; yields the open file, in which the holder may keep a note.

    Args:
        wait: seconds to wait for another holder.
        busy: the sentence for when it does not let go.

    Raises:
        StorageError: `busy`, or when the file cannot be opened. On a disk without locks the file is simply opened.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = open(path, "a+b")  # noqa: SIM115  closed below, by whoever got it
    except OSError as error:
        raise StorageError(f"cannot write '{path}': {error.strerror or error}") from error
    with handle:
        until = time.monotonic() + wait
        while not _try(handle):
            if time.monotonic() >= until:
                raise StorageError(busy)
            time.sleep(0.05)
        yield handle


def _try(handle: IO[Any]) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            handle.seek(0)
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.flock(handle.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True  # a disk that knows no locks
    return True


def note(handle: IO[Any], text: str) -> None:
    """Replace the note in a held file."""
    with suppress(OSError):
        handle.seek(0)
        handle.truncate()
        handle.write(text.encode())
        handle.flush()
