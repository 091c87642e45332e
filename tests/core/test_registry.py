"""The registry: read as text, complete, clear about mistakes."""

import subprocess
import sys

import pytest

from orrery.core import registry
from orrery.core.errors import ConfigError, UnknownNameError


def test_listing_imports_neither_torch_nor_any_room():
    code = "import sys, orrery; orrery.list_models(); print(sorted(m for m in sys.modules if m in ('torch', 'numba') or 'mixers' in m))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_wildcards_kinds_tags_and_presets():
    assert {"transformer", "gpt2", "lstm", "mamba2"} <= set(registry.names())
    assert registry.names("gpt2-*") == ["gpt2-1.5b", "gpt2-124m", "gpt2-355m", "gpt2-774m"]
    assert "transformer" not in registry.names(tags=("recurrent",)) and "lstm" in registry.names(tags=("recurrent",))
    assert registry.lookup("gpt2-124m").name == "gpt2"
    assert "next-token" in registry.names(kind="objective") and "next-token" not in registry.names()


def test_every_entry_loads_and_says_what_it_is():
    for entry in registry.entries():
        assert entry.summary, entry.name
        for kind in entry.kinds:
            assert registry.load(entry.name, kind) is not None


@pytest.mark.parametrize(("name", "kind", "near"), [("transfomer", None, "'transformer'"), ("next-tokn", "objective", "'next-token'")])
def test_unknown_names_come_with_near_matches(name, kind, near):
    with pytest.raises(UnknownNameError, match=near):
        registry.lookup(name, kind)
    with pytest.raises(UnknownNameError, match=r"is a architecture|is a mixer"):
        registry.lookup("transformer", "objective")


@pytest.fixture
def fresh():
    registry.refresh()
    yield
    registry.refresh()


def test_user_files(tmp_path, fresh):
    file = tmp_path / "mine.py"
    file.write_text('def register(*a, **k): pass\nTHING = 3\n\nregister("mine", mixer="THING", summary="x")\n')
    (entry,) = registry.add_file(file)
    assert entry.room == "user" and registry.load("mine", "mixer") == 3 and "mine" in registry.names()
    other = tmp_path / "other.py"
    other.write_text('def register(*a, **k): pass\n\nregister("gpt2", mixer="X")\n')
    with pytest.raises(ConfigError, match="already has"):
        registry.add_file(other)
    other.write_text("x = 1\n")
    with pytest.raises(ConfigError, match="no register line"):
        registry.add_file(other)
    with pytest.raises(ConfigError, match="no file"):
        registry.add_file(tmp_path / "absent.py")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('register("a", mixer=open("x"))', "literals only"),
        ('register("a", colour="red")', "unknown facts"),
        ('register("a", summary="x")', "names no kind"),
        ('register("a", mixer="X"', "cannot be read"),
    ],
)
def test_register_lines_are_data(tmp_path, fresh, line, words):
    file = tmp_path / "bad.py"
    file.write_text(f"\n{line}\n")
    with pytest.raises(ConfigError, match=words):
        registry.add_file(file)
