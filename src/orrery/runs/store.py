"""The results store: a folder of run folders, an index over them, and import from other machines.

    store = RunStore("runs")
    run = store.create({"model": "lstm", "lr": 3e-3}, name="lstm", seed=1)
    run.log("step", step=1, loss=5.5); run.finish({"bits_per_byte": 2.6})
    store.list(status="done"); store.find(run.config_hash); store.show("lstm-3fa9c2d01b7e")
    store.import_folders("/media/stick/runs"); store.rebuild()
"""

from __future__ import annotations

import fnmatch
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orrery.core.config import config_hash
from orrery.core.errors import CorruptionError, OrreryError, StorageError, UnknownNameError, suggest
from orrery.core.files import sha256_file
from orrery.runs.folder import LOG, RESULT, RUN, Run, live_status, slug
from orrery.runs.index import Index, Problem
from orrery.runs.lock import LOCK

IMPORT_DEPTH = 4  # folders deep that `import_folders` looks


@dataclass(frozen=True)
class RunRecord:
    """A run as listings show it."""

    folder: str
    path: Path
    id: str
    name: str
    config_hash: str
    status: str  # running | done | failed | oom | interrupted; a dead process's run counts as interrupted
    created: str
    finished: str | None
    seed: int | None
    config: dict[str, Any]
    facts: dict[str, Any]
    result: dict[str, Any]  # the plain numbers of result.json

    def to_dict(self) -> dict[str, Any]:
        """JSON-able facts."""
        return {**self.__dict__, "path": str(self.path)}


Records = list[RunRecord]  # `RunStore.list` hides the built-in name inside the class
Problems = list[Problem]


@dataclass
class ImportReport:
    """What `import_folders` did: nothing is overwritten, and the source is left as it was."""

    imported: list[tuple[str, str]] = field(default_factory=list)  # (source, folder in the store)
    duplicates: list[tuple[str, str]] = field(default_factory=list)  # (source, folder that already holds the same run)
    beside: list[tuple[str, str, str]] = field(default_factory=list)  # (source, new folder, folder with the same id)
    refused: list[tuple[str, str]] = field(default_factory=list)  # (source, why)

    def sentences(self) -> list[str]:
        """One line per folder, for people."""
        lines = [f"imported '{source}' as '{name}'" for source, name in self.imported]
        lines += [f"already here: '{source}' is '{name}'" for source, name in self.duplicates]
        lines += [f"imported '{s}' as '{n}' beside '{o}': same run, other content" for s, n, o in self.beside]
        return lines + [f"refused '{source}': {why}" for source, why in self.refused]


class RunStore:
    """Run folders under `root`. Safe with several processes: folders are made exclusively, the index is disposable."""

    def __init__(self, root: str | Path = "runs") -> None:
        self.root = Path(root)
        self._index = Index(self.root)

    @property
    def notes(self) -> list[str]:
        """What the index had to do about itself (rebuilt, bypassed)."""
        return self._index.notes

    def create(
        self,
        config: dict[str, Any],
        name: str = "run",
        seed: int | None = None,
        command: list[str] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> Run:
        """A new run folder `NAME-CONFIGHASH[-k]`, with status "running" and held by this process; see `Run.create`."""
        self._ready()
        folder = self._claim(f"{slug(name)}-{config_hash(config)}")
        return Run.create(folder, config, name, seed, command, extra)

    def list(
        self,
        status: str | None = None,
        name: str = "*",
        config_hash: str | None = None,
        where: dict[str, Any] | None = None,
        limit: int | None = None,
    ) -> Records:
        """Runs, newest first; damaged folders are left out and named by :meth:`problems`.

        Args:
            status: "running", "done", "failed", "oom" or "interrupted".
            name: wildcard over the run's name.
            config_hash: exact.
            where: dotted keys of the config and the values they must have.
            limit: at most so many.
        """
        conditions, values = [], []
        if config_hash is not None:
            conditions.append("config_hash = ?")
            values.append(config_hash)
        if status is not None:  # a recorded "running" may be a dead process
            conditions.append("status IN (?, 'running')" if status == "interrupted" else "status = ?")
            values.append(status)
        found = []
        for document in self._index.rows(" AND ".join(conditions), tuple(values)):
            record = self._record(document)
            wanted = status in (None, record.status) and fnmatch.fnmatchcase(record.name, name)
            if wanted and _matches(record.config, where):
                found.append(record)
        return found if limit is None else found[:limit]

    def find(self, config_hash: str, status: str | None = None) -> Records:
        """Runs that did the same work, newest first."""
        return self.list(config_hash=config_hash, status=status)

    def show(self, name: str) -> Run:
        """The run of a folder name, an id, or an unambiguous beginning of either.

        Raises:
            UnknownNameError: when none or several match.
            CorruptionError: when the folder is damaged.
        """
        for problem in self.problems():
            if problem.folder == name:
                raise CorruptionError(problem.why)
        records = self.list()
        exact = [r for r in records if name in (r.folder, r.id)]
        near = exact or [r for r in records if name and (r.folder.startswith(name) or r.id.startswith(name))]
        if len(near) == 1:
            return Run.open(near[0].path)
        if near:
            several = ", ".join(record.folder for record in near[:5])
            raise UnknownNameError(f"'{name}' begins several runs: {several}; name one fully")
        hint = suggest(name, [record.folder for record in records])
        raise UnknownNameError(f"no run '{name}' in '{self.root}'.{hint} `orrery runs list` shows them.")

    def problems(self) -> Problems:
        """Folders that hold a damaged run: named, skipped, never deleted."""
        return self._index.problems()

    def rebuild(self) -> int:
        """Make the index anew from the folders; the number of folders read."""
        return self._index.rebuild()

    def verify(self, name: str) -> Run:
        """Check every checksum of a run's folder; the run, or a CorruptionError naming the file."""
        run = self.show(name)
        run.verify()
        return run

    def import_folders(self, path: str | Path) -> ImportReport:
        """Copy run folders found at or under `path` into this store, each verified before and after the copy.

        A run that is already here (same id, same content) is named and not copied; one with the same id and other
        content is kept beside it under a new folder name; a damaged one, or one that holds links, is refused.
        """
        source = Path(path)
        if not source.is_dir():
            raise StorageError(f"no folder '{path}' to import runs from")
        self._ready()
        report = ImportReport()
        folders = list(_run_folders(source, self.root))
        if not folders:
            raise StorageError(f"'{path}' holds no run folder (a folder with a {RUN}), {IMPORT_DEPTH} levels deep")
        for folder in folders:
            try:
                self._import(folder, report)
            except OrreryError as error:
                report.refused.append((str(folder), str(error)))
        return report

    def _import(self, folder: Path, report: ImportReport) -> None:
        _only_plain_files(folder)
        run = Run.open(folder)
        run.verify()
        content = _content(folder)
        same = [record for record in self.list() if record.id == run.id]
        for record in same:
            if _content(record.path) == content:
                report.duplicates.append((str(folder), record.folder))
                return
        temporary = self.root / f".import-{secrets.token_hex(6)}.tmp"
        try:
            shutil.copytree(folder, temporary, ignore=shutil.ignore_patterns(LOCK))
            Run.open(temporary).verify()
            if _content(temporary) != content:
                raise CorruptionError(f"the copy of '{folder}' differs from it; try again")
            target = self._claim(slug(folder.name))
            os.rmdir(target)
            os.rename(temporary, target)
        except OSError as error:
            raise StorageError(f"cannot copy '{folder}' into '{self.root}': {error.strerror or error}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        if same:
            report.beside.append((str(folder), target.name, same[0].folder))
        else:
            report.imported.append((str(folder), target.name))

    def _ready(self) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot make the runs folder '{self.root}': {error.strerror or error}") from error

    def _claim(self, base: str) -> Path:
        """An empty folder of our own: `mkdir` is the one operation that two processes cannot both succeed in."""
        for count in range(1, 100_000):
            folder = self.root / (base if count == 1 else f"{base}-{count}")
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                continue
            except OSError as error:
                raise StorageError(f"cannot write in '{self.root}': {error.strerror or error}") from error
        raise StorageError(f"'{self.root}' holds too many runs called '{base}'")

    def _record(self, document: dict[str, Any]) -> RunRecord:
        keys = ("folder", "id", "name", "config_hash", "created", "finished", "seed", "config", "facts", "result")
        return RunRecord(
            path=self.root / document["folder"], status=live_status(document), **{key: document[key] for key in keys}
        )


def _matches(config: dict[str, Any], where: dict[str, Any] | None) -> bool:
    for dotted, value in (where or {}).items():
        here: Any = config
        for part in dotted.split("."):
            here = here.get(part) if isinstance(here, dict) else None
        if here != value:
            return False
    return True


def _run_folders(path: Path, store: Path, depth: int = 0) -> Iterator[Path]:
    """Folders with a run.json at or under `path`, links not followed, the store itself left out."""
    if (path / RUN).is_file():
        yield path
        return
    if depth >= IMPORT_DEPTH or path.resolve() == store.resolve():
        return
    for item in sorted(path.iterdir()):
        if item.is_dir() and not item.is_symlink() and not item.name.startswith("."):
            yield from _run_folders(item, store, depth + 1)


def _only_plain_files(folder: Path) -> None:
    for item in sorted(folder.rglob("*")):
        mode = item.lstat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise CorruptionError(f"'{item}' is a link or a special file, which a run folder never holds")


def _content(folder: Path) -> dict[str, str]:
    """Checksums of what identifies a run's content."""
    names = (RUN, LOG, RESULT)
    files = [folder / name for name in names] + [folder / part / "manifest.json" for part in ("checkpoint", "weights")]
    return {file.relative_to(folder).as_posix(): sha256_file(file) for file in files if file.is_file()}
