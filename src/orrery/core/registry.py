"""One namespace for everything that has a name, read without importing what it names.

A file that offers something ends with register lines at column 0 whose arguments are literals:

    register("mamba2", mixer="Mamba2", architecture="ARCHITECTURE", summary="...", paper="2405.21060", year=2024,
             tags=("causal", "recurrent"))

The index is built by reading those lines as text (`ast.literal_eval`; nothing is executed), so that
`orrery.list_models()` answers without importing torch. `mixer="Mamba2"` says: the attribute `Mamba2` of that file is
the mixer called `mamba2`; a name may be several kinds at once (its mixer and its architecture). Names of the same kind
may not collide. Installed packages join through entry points (`orrery.mixers`, `orrery.models`, `orrery.objectives`,
`orrery.methods`), whose value names a module that holds register lines; files a user names join by :func:`add_file`.
"""

from __future__ import annotations

import ast
import fnmatch
import functools
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from orrery.core.errors import ConfigError, UnknownNameError, suggest

KINDS = ("mixer", "architecture", "model", "channel", "objective", "optimizer", "schedule", "task", "corpus", "tokenizer", "method")
MODEL_KINDS = ("mixer", "architecture", "model")
ENTRY_POINTS = ("orrery.mixers", "orrery.models", "orrery.objectives", "orrery.methods")
_FACTS = ("summary", "paper", "year", "tags", "presets", "exchange")
_LISTS = ("tags", "presets", "exchange")


@dataclass(frozen=True)
class Entry:
    """What the index knows of a name before anything is imported."""

    name: str
    kinds: dict[str, str]  # kind -> attribute of the module
    module: str
    room: str
    file: str
    summary: str = ""
    paper: str = ""  # arXiv id, or a short citation where there is none
    year: int | None = None
    tags: tuple[str, ...] = ()
    presets: tuple[str, ...] = field(default=())  # published sizes that this file builds
    exchange: tuple[str, ...] = field(default=())  # Hugging Face model types that it reads and writes

    def to_dict(self) -> dict[str, Any]:
        """JSON-able facts."""
        return {
            "name": self.name,
            "kinds": sorted(self.kinds),
            "room": self.room,
            "summary": self.summary,
            "paper": self.paper,
            "year": self.year,
            "tags": list(self.tags),
            "presets": list(self.presets),
            "exchange": list(self.exchange),
        }


def register(name: str, **facts: Any) -> None:
    """The marker of a register line. Does nothing when the file is imported: the index was read from the text."""


def names(pattern: str = "*", kind: str | None = None, tags: tuple[str, ...] = ()) -> list[str]:
    """Sorted names that match a wildcard, are of a kind (None: anything that builds a model), and carry all tags.

    Presets (`mamba2-130m`) are names of models too.
    """
    kinds = (kind,) if kind else MODEL_KINDS
    found = set()
    for entry in _index().values():
        if any(k in entry.kinds for k in kinds) and set(tags) <= set(entry.tags):
            found.add(entry.name)
            if kind in (None, "architecture"):
                found.update(entry.presets)
    return sorted(name for name in found if fnmatch.fnmatchcase(name, pattern))


def lookup(name: str, kind: str | None = None) -> Entry:
    """The entry of a name or preset.

    Raises:
        UnknownNameError: with near matches, or saying which kind the name is instead.
    """
    index = _index()
    entry = index.get(name) or _presets().get(name)
    if entry is None:
        pool = names(kind=kind)
        what = kind or "model"
        raise UnknownNameError(f"unknown {what} '{name}'.{suggest(name, pool)} `orrery list` shows every name.")
    if kind is not None and kind not in entry.kinds:
        pool = names(kind=kind)
        raise UnknownNameError(f"'{name}' is a {' and '.join(entry.kinds)}, not a {kind}.{suggest(name, pool)}")
    return entry


def load(name: str, kind: str) -> Any:
    """Import the file of `name` and return its attribute for `kind`."""
    entry = lookup(name, kind)
    return getattr(importlib.import_module(entry.module), entry.kinds[kind])


def entries(kind: str | None = None) -> list[Entry]:
    """All entries, by name."""
    return sorted((e for e in _index().values() if kind is None or kind in e.kinds), key=lambda e: e.name)


def add_file(path: str | Path) -> list[Entry]:
    """Register the names of a file that the user points at (`orrery compare ./my_mixer.py`); it is imported when used.

    Raises:
        ConfigError: when the file is missing, not Python, or holds no register line.
    """
    file = Path(path).resolve()
    if not file.is_file():
        raise ConfigError(f"no file '{path}'")
    module = f"orrery_user_{file.stem}"
    found = list(_read(file, module, "user"))
    if not found:
        raise ConfigError(f"'{path}' holds no register line; see `orrery new mixer NAME` for a file that works")
    spec = importlib.util.spec_from_file_location(module, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"'{path}' is not a Python file")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[module] = loaded
    spec.loader.exec_module(loaded)
    index = _index()
    for entry in found:
        if entry.name in index and index[entry.name].file != str(file):
            raise ConfigError(f"'{path}' registers '{entry.name}', which {index[entry.name].module} already has; choose another name")
        index[entry.name] = entry
    _presets.cache_clear()
    return found


def refresh() -> None:
    """Forget the index, so that packages installed since are seen (used by tests and notebooks)."""
    _index.cache_clear()
    _presets.cache_clear()


@functools.cache
def _index() -> dict[str, Entry]:
    index: dict[str, Entry] = {}
    root = Path(__file__).resolve().parents[1]
    for file in sorted(root.glob("*/**/*.py")):
        relative = file.relative_to(root)
        module = ".".join(["orrery", *relative.with_suffix("").parts])
        for entry in _read(file, module, relative.parts[0]):
            _add(index, entry)
    for group in ENTRY_POINTS:
        for point in metadata.entry_points(group=group):
            for entry in _read_module(point.value.partition(":")[0]):
                _add(index, entry)
    return index


@functools.cache
def _presets() -> dict[str, Entry]:
    presets: dict[str, Entry] = {}
    for entry in _index().values():
        for preset in entry.presets:
            if preset in presets or preset in _index():
                other = presets.get(preset) or _index()[preset]
                raise ConfigError(f"'{preset}' is registered twice: by {entry.module} and {other.module}")
            presets[preset] = entry
    return presets


def _add(index: dict[str, Entry], entry: Entry) -> None:
    if entry.name in index:
        raise ConfigError(f"'{entry.name}' is registered twice: by {index[entry.name].module} and {entry.module}; rename one")
    index[entry.name] = entry


def _read_module(name: str) -> Iterator[Entry]:
    """Entries of an installed package's module, or of every file of a package, found without importing the leaf."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.origin:
        return
    for folder in spec.submodule_search_locations or ():
        for file in sorted(Path(folder).glob("*.py")):
            yield from _read(file, name if file.stem == "__init__" else f"{name}.{file.stem}", "plug-in")
    if not spec.submodule_search_locations:
        yield from _read(Path(spec.origin), name, "plug-in")


def _read(file: Path, module: str, room: str) -> Iterator[Entry]:
    """Register lines of one file: the text from the first `register(` at column 0 on is parsed, the rest is not."""
    text = file.read_text(encoding="utf-8")
    start = 0 if text.startswith("register(") else text.find("\nregister(")
    if start < 0:
        return
    try:
        tree = ast.parse(text[start:])
    except SyntaxError as error:
        raise ConfigError(f"'{file}' cannot be read: {error.msg} (near its register line)") from error
    for node in tree.body:
        call = node.value if isinstance(node, ast.Expr) else None
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "register":
            yield _entry(call, file, module, room)


def _entry(call: ast.Call, file: Path, module: str, room: str) -> Entry:
    try:
        (name,) = (ast.literal_eval(argument) for argument in call.args)
        facts = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg}
    except (ValueError, TypeError) as error:
        raise ConfigError(f"'{file}': the register line must hold literals only ({error})") from error
    kinds = {key: facts[key] for key in facts if key in KINDS}
    unknown = [key for key in facts if key not in KINDS and key not in _FACTS]
    if unknown or not kinds:
        what = f"has unknown facts {unknown}" if unknown else "names no kind"
        raise ConfigError(f"'{file}': register('{name}') {what}")
    rest: dict[str, Any] = {key: tuple(facts[key]) if key in _LISTS else facts[key] for key in facts if key in _FACTS}
    return Entry(name=name, kinds=kinds, module=module, room=room, file=str(file), **rest)
