"""The corpus that every Python carries: its standard library.

`stdlib`        the source of every module as it stands, each topic of `pydoc` (language reference) and the plain text
                files that lie beside them (IDLE's news, grammars): 10.6 MB in 748 documents for Python 3.11.
`stdlib-code`   the sources alone.
`stdlib-prose`  no code: the docstrings of each module as one document, the topics, the text files. Comments are left
                out, since many are code that was switched off.

Left out: tests (`test`, `tests`, `idle_test`), installed packages, compiled files, what differs from one machine to the
next (`_sysconfigdata*`, `config-*`, `sitecustomize`), the source of `pydoc_data.topics` (its topics are documents of
their own) and the generated character tables of `encodings` (1.2 MB of near copies of one another). Order: modules by
path, then topics, then texts. Line ends are \\n everywhere, so two machines with one Python version hold one corpus.
The variants overlap: a model trained on one of them has seen validation text of the others.
"""

from __future__ import annotations

import ast
import os
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

from orrery.core.errors import DataError
from orrery.core.registry import register
from orrery.data.corpora import Corpus, stat_fingerprint
from orrery.data.text import Document, Tally, decode, memory_document

_NO_FOLDERS = {"test", "tests", "idle_test", "__pycache__", "site-packages", "dist-packages", "lib-dynload"}
_NO_MODULES = ("_sysconfigdata", "sitecustomize", "usercustomize", "__editable__", "_virtualenv")
_TOPICS = "pydoc_data/topics.py"
_Holder = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_TEXT_FILES = (".txt", ".rst", ".md")


class Stdlib(Corpus):
    """The standard library below `root` (a folder or a zip file; default: the running Python's)."""

    def __init__(self, part: str = "", strict: bool = False, root: str | Path | None = None) -> None:
        super().__init__(f"stdlib-{part}" if part else "stdlib", strict)
        self.part = part
        self.root = Path(root) if root else standard_library()

    def documents(self, tally: Tally | None = None) -> Iterator[Document]:
        """Modules, then topics, then texts, one document each.

        Raises:
            DataError: when this Python carries no source of its library.
        """
        tally = tally if tally is not None else self.tally()
        names = self._names()
        if not any(name.endswith(".py") for name in names):
            raise DataError(
                f"this Python has no source of its standard library in '{self.root}'; name a file or folder as corpus"
            )
        with _Reader(self.root) as reader:
            for name in names:
                if name.endswith(".py") and name != _TOPICS:
                    yield from self._module(name, _text(reader.read(name), name, tally))
            if self.part != "code":
                yield from self._prose(names, reader, tally)

    def _module(self, name: str, source: str) -> Iterator[Document]:
        if name.startswith("encodings/") and ("decoding_table" in source or "decoding_map" in source):
            return
        text = docstrings(source) if self.part == "prose" else source
        if text.strip():
            yield memory_document(name, text)

    def _prose(self, names: list[str], reader: _Reader, tally: Tally) -> Iterator[Document]:
        if _TOPICS in names:
            for topic, text in sorted(topics(_text(reader.read(_TOPICS), _TOPICS, tally)).items()):
                if text.strip():
                    yield memory_document(f"pydoc/{topic}", text)
        for name in names:
            if not name.endswith(".py"):
                text = _text(reader.read(name), name, tally)
                if text.strip():
                    yield memory_document(name, text)

    def _names(self) -> list[str]:
        """Paths below the root that belong to the corpus, with forward slashes, sorted."""
        if self.root.is_dir():
            found = []
            for here, folders, files in os.walk(self.root):
                folders[:] = [name for name in folders if name not in _NO_FOLDERS]
                found += [(Path(here) / name).relative_to(self.root).as_posix() for name in files]
        else:
            with _Reader(self.root) as reader:
                found = reader.names()
        return sorted(filter(_belongs, found))

    def fingerprint(self) -> str | None:
        """Python's version and the state of the library's files."""
        files = {name: self.root / name for name in self._names()} if self.root.is_dir() else {"": self.root}
        return stat_fingerprint(["stdlib", self.part, sys.version], files)


def standard_library() -> Path:
    """The folder, or zip file, that holds the running Python's standard library.

    Raises:
        DataError: when there is none, as in a frozen program.
    """
    place = getattr(os, "__file__", None)
    root = Path(place).parent if place else None
    if root is None or not root.exists():
        raise DataError(
            "this Python has no standard library on the disk (a frozen program); name a file or folder as corpus instead"
        )
    return root


def _belongs(name: str) -> bool:
    *folders, file = name.split("/")
    if any(folder in _NO_FOLDERS or "-" in folder or folder.startswith(".") for folder in folders):
        return False
    if file.endswith(".py"):
        return not file.startswith(_NO_MODULES)
    return file.endswith(_TEXT_FILES) and bool(folders)  # a licence at the top is there in some installations only


def _text(data: bytes, name: str, tally: Tally) -> str:
    """Decode; the few sources in another encoding say so in their first lines, as Python itself reads them."""
    declared = data[:200].replace(b"-", b"").lower()
    if b"coding: latin1" in declared or b"coding: iso88591" in declared:
        text = data.decode("latin-1")
    else:
        text = decode(data.removeprefix(b"\xef\xbb\xbf"), name, tally)
    return text.replace("\r\n", "\n")


def docstrings(source: str) -> str:
    """The docstrings of a module, its classes and functions in order, cleaned of indentation, a blank line between."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in old modules
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return ""
    found = [text for node in _holders(tree) if (text := (ast.get_docstring(node) or "").strip())]
    return "\n\n".join(found) + "\n" if found else ""


def _holders(node: ast.AST) -> Iterator[_Holder]:
    """What can have a docstring, in the order of the source. Only statements are walked: expressions hold none."""
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        yield node
    for name in ("body", "handlers", "orelse", "finalbody", "cases"):
        below = getattr(node, name, None)
        for child in below if isinstance(below, list) else ():
            yield from _holders(child)


def topics(source: str) -> dict[str, str]:
    """The `topics = {...}` literal of pydoc_data/topics.py, without running it."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "topics" for target in node.targets
        ):
            return {str(key): str(value) for key, value in ast.literal_eval(node.value).items()}
    return {}


class _Reader:
    """Files of a folder or of a zip file (a zipped library), by their path with forward slashes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.zip: zipfile.ZipFile | None = None

    def __enter__(self) -> _Reader:
        if not self.root.is_dir():
            try:
                self.zip = zipfile.ZipFile(self.root)
            except (OSError, zipfile.BadZipFile) as error:
                raise DataError(f"cannot read the standard library '{self.root}': {error}") from error
        return self

    def __exit__(self, *_: object) -> None:
        if self.zip is not None:
            self.zip.close()

    def names(self) -> list[str]:
        """Every member of the zip file."""
        return self.zip.namelist() if self.zip is not None else []

    def read(self, name: str) -> bytes:
        """One file's content."""
        try:
            return self.zip.read(name) if self.zip is not None else (self.root / name).read_bytes()
        except (OSError, zipfile.BadZipFile, KeyError) as error:
            raise DataError(f"cannot read '{self.root / name}': {error}") from error


def whole(strict: bool = False) -> Corpus:
    """The corpus `stdlib`: code and prose."""
    return Stdlib("", strict)


def code(strict: bool = False) -> Corpus:
    """The corpus `stdlib-code`: the sources alone."""
    return Stdlib("code", strict)


def prose(strict: bool = False) -> Corpus:
    """The corpus `stdlib-prose`: docstrings and reference."""
    return Stdlib("prose", strict)


register(
    "stdlib",
    corpus="whole",
    summary="the running Python's standard library: source, docstrings and language reference",
    tags=("code", "prose"),
)
register("stdlib-code", corpus="code", summary="the standard library's source files", tags=("code",))
register(
    "stdlib-prose",
    corpus="prose",
    summary="the standard library's docstrings, language reference and text files",
    tags=("prose",),
)
