"""Compiled loops are compiled anew when anything that they are made of changes, and only then."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest

from orrery.core.kernels import file_hash, renamed

HELPERS = "from {room} import inlined\nfrom {name}.deep import RATE, deep\n\n@inlined\ndef shallow(x):\n    return deep(x) + RATE\n"
DEEP = "from {room} import inlined\n\nRATE = {rate}\n\n@inlined\ndef deep(x):\n    return x {sign} 1  {tail}\n"
KERNELS = """from {room} import {mark} as mark
from {name}.helpers import shallow

@mark
def change(first, last, out):
    for i in range(first, last):
        out[i] = shallow(out[i])
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """write(room, mark, rate, sign, tail) -> the package's kernel, imported anew."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(name, room, mark, rate=10, sign="*", tail=""):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        files = {"__init__": "", "helpers": HELPERS, "deep": DEEP, "kernels": KERNELS}
        for file, text in files.items():
            text = text.format(room=room, mark=mark, name=name, rate=rate, sign=sign, tail=tail)
            if not (folder / f"{file}.py").exists() or (folder / f"{file}.py").read_text() != text:
                (folder / f"{file}.py").write_text(text)
        for module in [m for m in sys.modules if m.partition(".")[0] == name]:
            del sys.modules[module]
        importlib.invalidate_caches()
        file_hash.cache_clear()
        return importlib.import_module(f"{name}.kernels").change

    yield write
    file_hash.cache_clear()


def test_a_name_changes_with_helpers_of_other_files_and_their_constants(package):
    first = package("named", "orrery.ngram.compiled", "inlined")
    names = {renamed(first).__qualname__}
    for changed in ({"sign": "+"}, {"rate": 11}, {"tail": "# said otherwise"}):
        again = package("named", "orrery.ngram.compiled", "inlined", **changed)
        assert renamed(again).__qualname__.startswith("change_")
        names.add(renamed(again).__qualname__)
    assert len(names) == 4
    assert renamed(package("named", "orrery.ngram.compiled", "inlined")).__qualname__ in names
    assert renamed(first, "parallel").__qualname__ not in names
    array = np.zeros(3)
    first(0, 3, array)
    renamed(first)(0, 3, array)
    assert array.tolist() == [20.0] * 3  # (0 * 1 + 10) * 1 + 10: the renamed one is the same function


def test_a_name_changes_with_the_module_that_a_helper_stands_in(package):
    """What is kept on the disk imports the modules of its parts: after a move it could not be loaded."""
    kernel = package("named", "orrery.ngram.compiled", "inlined")
    before = renamed(kernel).__qualname__
    sys.modules["named.deep"].deep.__module__ = "named.elsewhere"
    assert renamed(kernel).__qualname__ != before


def test_a_function_of_one_file_keeps_its_name():
    assert renamed(_alone) is _alone


def _alone(x):
    return abs(x)


@pytest.mark.parametrize(("room", "mark"), [("orrery.ngram.compiled", "kernel"), ("orrery.ops.compiled", "compiled")])
def test_a_kernel_that_is_kept_on_the_disk_follows_a_helper_of_another_file(package, room, mark):
    pytest.importorskip("numba")
    name = f"kept_{mark}"

    def run(**changes):
        change = package(name, room, mark, **changes)
        out = np.full(2, 5.0)
        change(0, 2, out)
        stats = (change.fast if mark == "kernel" else change.compiled).stats
        return out.tolist(), sum(stats.cache_hits.values()), sum(stats.cache_misses.values())

    assert run() == ([15.0] * 2, 0, 1)
    assert run() == ([15.0] * 2, 1, 0)  # nothing has changed: read from the disk
    assert run(sign="+") == ([16.0] * 2, 0, 1)  # two files away
    assert run(sign="+", rate=20) == ([26.0] * 2, 0, 1)
    assert run() == ([15.0] * 2, 1, 0)


@pytest.mark.parametrize(("room", "mark"), [("orrery.ngram.compiled", "bare"), ("orrery.ops.compiled", "compiled")])
def test_what_was_imported_before_its_file_changed_is_not_kept_for_the_changed_file(tmp_path, monkeypatch, room, mark):
    """A session imports a kernel, the file is edited, the session compiles what it has; the next one compiles the edited file."""
    pytest.importorskip("numba")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(more):  # numba itself compares the instructions, not the constants, nor functions of the same file
        text = f"from {room} import {mark} as mark\n\n@mark\ndef change(first, last, out):\n    for i in range(first, last):\n"
        (tmp_path / f"edited_{mark}.py").write_text(f"{text}        out[i] = out[i] + {more}\n")

    def session():
        sys.modules.pop(f"edited_{mark}", None)
        importlib.invalidate_caches()
        return importlib.import_module(f"edited_{mark}").change

    def result(change):
        out = np.full(2, 5.0)
        change(0, 2, out)
        return out.tolist()

    write(2)
    before = session()
    write(7)
    assert result(before) == [7.0] * 2  # what was imported
    assert result(session()) == [12.0] * 2
