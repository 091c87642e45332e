"""One run's folder: the truth about a run, readable without this program.

    run.json      format, id, name, created, config, config_hash, seed, command, environment, status, host, process,
                  and at the end: finished, files (SHA-256 and size of what is final); `digest` covers all of it
    log.jsonl     events, one JSON object per line, in the order they happened
    result.json   final numbers, once there are any
    checkpoint/   atomic, with a manifest (written by the trainer)
    weights/      `orrery.save`

`run.json` and `result.json` are replaced atomically, so a reader never meets half of one. A process that writes into a
folder holds `running.lock`.
"""

from __future__ import annotations

import json
import math
import re
import secrets
import sys
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

from orrery.core.config import config_hash
from orrery.core.environment import environment
from orrery.core.errors import CorruptionError, OrreryError, StorageError
from orrery.core.files import append_jsonl, read_json, read_jsonl, sha256_file, verify_directory, write_json
from orrery.runs import lock

FORMAT = 1
RUN, LOG, RESULT = "run.json", "log.jsonl", "result.json"
WRITTEN = (LOG, RESULT, "weights", "checkpoint", "checkpoint-next", "best", "words", "tasks", "task.json", "MODEL_CARD.md")  # beside RUN, by any run
STATUS = ("running", "done", "failed", "oom", "interrupted")
_REQUIRED = {"id": str, "name": str, "created": str, "config": dict, "config_hash": str, "status": str}


class Run:
    """A run being written or read. `with run:` records failure, memory exhaustion and Ctrl-C as outcomes."""

    def __init__(self, path: str | Path, record: dict[str, Any]) -> None:
        self.path = Path(path)
        self.record = record

    @classmethod
    def create(
        cls,
        path: str | Path,
        config: dict[str, Any],
        name: str = "run",
        seed: int | None = None,
        command: list[str] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> Run:
        """Make the folder `path` (it must not hold a run yet) and write `run.json` with status "running".

        Args:
            config: the resolved configuration, JSON-able; its hash identifies equal work.
            name: for people.
            seed: recorded apart from the config as well, for listings.
            command: the command line; default: this process's.
            extra: further facts (data hash, backend), stored under "facts".

        Raises:
            StorageError: when the folder already holds a run, or something of a name that runs write, or cannot be made.
        """
        folder = Path(path)
        if (folder / RUN).exists():
            raise StorageError(f"'{folder}' already holds a run; open it to resume, or choose another folder")
        if theirs := next((each for each in WRITTEN if (folder / each).exists()), None):
            raise StorageError(f"'{folder}' holds no run, but '{theirs}', which a run would write over; choose another folder")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot make the run folder '{folder}': {error.strerror or error}") from error
        plain = json.loads(json.dumps(config))
        record = {
            "format": FORMAT,
            "id": secrets.token_hex(8),
            "name": name,
            "created": now(),
            "config": plain,
            "config_hash": config_hash(plain),
            "seed": seed,
            "command": list(sys.argv) if command is None else list(command),
            "environment": environment(),
            "facts": dict(extra or {}),
            "status": "running",
        }
        run = cls(folder, record)
        run.acquire()
        return run

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Read a run's folder.

        Raises:
            CorruptionError: when `run.json` is damaged or of another format.
            StorageError: when there is none.
        """
        return cls(path, read_record(path))

    @property
    def id(self) -> str:
        """Sixteen hex digits, unique to this run wherever its folder travels."""
        return str(self.record["id"])

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        return dict(self.record["config"])

    @property
    def config_hash(self) -> str:
        """Hash of the configuration: runs of equal hash do the same work."""
        return str(self.record["config_hash"])

    @property
    def status(self) -> str:
        """Status as of now: a "running" run whose process is gone on this host is "interrupted"."""
        return live_status(self.record)

    def acquire(self) -> None:
        """Become the one writer of this folder and set status "running" (a resumed run's final marks are withdrawn).

        Raises:
            StorageError: when a living process, or one of another host, holds it.
        """
        self._write(status="running", finished=None, files={}, **lock.take(self.path))

    def log(self, event: str, **fields: Any) -> None:
        """Append one event: `run.log("step", step=10, loss=2.3)`; numbers that are not finite become null."""
        record = {"event": event, "time": now(), **fields}
        append_jsonl(self.path / LOG, finite(record)[0])

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Logged events, all or of one kind; a torn last line is dropped."""
        if not (self.path / LOG).exists():
            return []
        return [event for event in read_jsonl(self.path / LOG) if kind is None or event.get("event") == kind]

    def result(self) -> dict[str, Any] | None:
        """The final numbers, checked against their recorded checksum; None while there are none."""
        self._check(RESULT)
        if not (self.path / RESULT).exists():
            return None
        value = read_json(self.path / RESULT)
        if not isinstance(value, dict):
            raise CorruptionError(f"'{self.path / RESULT}' is damaged: not a mapping")
        return value

    def finish(self, result: dict[str, Any] | None, status: str = "done") -> None:
        """Write `result.json`, then the final status with the checksums of what is final, and release the lock.

        Numbers that are not finite are stored as null and their places listed under "not_finite".
        """
        if status not in STATUS:
            raise ValueError(f"status must be one of {STATUS}, not '{status}'")
        if result is not None:
            plain, places = finite(result)
            write_json(self.path / RESULT, {**plain, "not_finite": places} if places else plain)
        files = {}
        for name in (LOG, RESULT):
            file = self.path / name
            if file.exists():
                files[name] = {"sha256": sha256_file(file), "bytes": file.stat().st_size}
        self._write(status=status, finished=now(), files=files)
        lock.release(self.path)

    def verify(self) -> None:
        """Check every checksum in the folder.

        Raises:
            CorruptionError: naming the first file that is not what was written.
        """
        self.record = read_record(self.path)
        for name in (LOG, RESULT):
            self._check(name)
        if not self.record.get("files"):  # not final: no checksums yet, but it must be readable
            self.events()
            self.result()
        for part in ("checkpoint", "weights"):
            if (self.path / part).is_dir():
                verify_directory(self.path / part)

    def _check(self, name: str) -> None:
        """Compare a final file with its recorded checksum."""
        entry, file = self.record.get("files", {}).get(name), self.path / name
        if entry is None:
            return
        if not file.is_file():
            raise CorruptionError(f"'{file}' is missing")
        if file.stat().st_size != entry["bytes"] or sha256_file(file) != entry["sha256"]:
            raise CorruptionError(f"'{file}' is damaged: its checksum is not the one in {RUN}")

    def _write(self, **changes: Any) -> None:
        self.record = {**self.record, **changes}
        self.record["digest"] = digest(self.record)
        write_json(self.path / RUN, self.record)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            if self.record["status"] == "running":
                self.finish(None, "done")
            return
        status = outcome(error)
        self.log("end", status=status, error=f"{type(error).__name__}: {error}")
        self.finish({**(self.result() or {}), "error": f"{type(error).__name__}: {error}"}, status)


def outcome(error: BaseException) -> str:
    """The status that an exception stands for; torch's out-of-memory error is known by name, without torch."""
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        return "interrupted"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "oom"
    text = str(error).lower()
    memory = "not enough memory" in text or "out of memory" in text or "can't allocate memory" in text
    return "oom" if memory and not isinstance(error, OrreryError) else "failed"


def read_record(path: str | Path) -> dict[str, Any]:
    """`run.json` of a folder, checked: format, required fields, config hash, digest.

    Raises:
        CorruptionError, StorageError: in one sentence naming the file.
    """
    file = Path(path) / RUN
    record = read_json(file)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise CorruptionError(f"'{file}' is damaged or of an unknown format; this version reads format {FORMAT}")
    for key, kind in _REQUIRED.items():
        if not isinstance(record.get(key), kind):
            raise CorruptionError(f"'{file}' is damaged: '{key}' is missing or not {kind.__name__}")
    if record["config_hash"] != config_hash(record["config"]):
        raise CorruptionError(f"'{file}' is damaged: its config does not have the hash {record['config_hash']}")
    if record.get("digest") != digest(record):
        raise CorruptionError(f"'{file}' is damaged: its content does not have the digest it carries")
    return record


def digest(record: dict[str, Any]) -> str:
    """Hash of a run's record without its own `digest` field."""
    return config_hash({key: value for key, value in record.items() if key != "digest"})


def finite(value: Any, place: str = "") -> tuple[Any, list[str]]:
    """A JSON-able copy in which NaN and infinities are None, and the dotted places where they stood."""
    if isinstance(value, dict):
        parts = {str(key): finite(item, f"{place}.{key}" if place else str(key)) for key, item in value.items()}
        return {key: item for key, (item, _) in parts.items()}, _joined(places for _, places in parts.values())
    if isinstance(value, (list, tuple)):
        items = [finite(item, f"{place}[{index}]") for index, item in enumerate(value)]
        return [item for item, _ in items], _joined(places for _, places in items)
    if isinstance(value, float) and not math.isfinite(value):
        return None, [place]
    return value, []


def _joined(lists: Iterable[list[str]]) -> list[str]:
    return [item for part in lists for item in part]


def live_status(record: dict[str, Any]) -> str:
    """Recorded status, except that a "running" run whose process is gone from this host is "interrupted"."""
    status = str(record["status"])
    return "interrupted" if status == "running" and not lock.alive(record, unknown=True) else status


def now() -> str:
    """UTC, ISO 8601, milliseconds."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def slug(text: str) -> str:
    """A name that any file system takes: letters, digits, dot, dash; at most 60 characters."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")[:60] or "run"
