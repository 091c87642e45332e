"""The time budget of tests/conftest.py is enforced: an own pytest session with a tight limit fails and says why."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py")
BUSY = "import time\ndef test_a():\n    end = time.process_time() + 0.4\n    while time.process_time() < end:\n        pass\n"


def session(folder: Path, budget: str, *options: str) -> subprocess.CompletedProcess[str]:
    room = folder / "tests" / "ops"
    room.mkdir(parents=True)
    (room / "test_slow.py").write_text(BUSY)
    (folder / "tests" / "conftest.py").write_text(CONFTEST.read_text())
    (folder / "tests" / "budget.toml").write_text(budget)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), *options, "tests"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("budget", "options", "words"),
    [
        ("total = 60\n[rooms]\nops = 0.1\n", (), "OVER BUDGET: ops took"),
        ("total = 60\n[rooms]\nops = 0.1\n", ("-n", "2"), "OVER BUDGET: ops took"),
        ("total = 60\n[rooms]\nnn = 9\n", (), "tests/ops has no limit"),
        ("total = 0.1\n[rooms]\nops = 9\n", (), "the whole run took"),
    ],
)
def test_too_slow_fails(tmp_path: Path, budget: str, options: tuple[str, ...], words: str) -> None:
    done = session(tmp_path, budget, *options)
    assert done.returncode == 1
    assert words in done.stdout
    assert "1 passed" in done.stdout.splitlines()[-1]


def test_in_time_passes(tmp_path: Path) -> None:
    done = session(tmp_path, "total = 60\n[rooms]\nops = 9\n")
    assert done.returncode == 0, done.stdout
    assert "OVER BUDGET" not in done.stdout


def test_scale_allows_a_slow_machine(tmp_path: Path) -> None:
    assert session(tmp_path, "total = 60\n[rooms]\nops = 0.1\n", "--budget-scale", "100").returncode == 0
