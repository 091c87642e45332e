"""What every test session shares: a private cache, no network, reproducible examples, and the time budget."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path

import hypothesis
import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).resolve().parent

hypothesis.settings.register_profile("orrery", deadline=None, derandomize=True, database=None, max_examples=30)
hypothesis.settings.load_profile("orrery")


def processor_seconds() -> float:
    """Processor time of this process and of the children it has waited for."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


class Meter:
    """Writes the processor time of every phase of a test into its report (which xdist carries to the controller)."""

    def __init__(self) -> None:
        self.last = 0.0

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self.last = processor_seconds()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        now = processor_seconds()
        report.processor, self.last = now - self.last, now  # type: ignore[attr-defined]
        return report


class Budget:
    """Adds up what every room's tests take; the session fails when a room or the whole takes more than allowed.

    A room's limit is processor time, so that another program on the machine does not decide; the limit of the whole is
    time on the clock.
    """

    def __init__(self, limits: dict[str, float], total: float, scale: float) -> None:
        self.limits, self.total, self.scale = limits, total, scale
        self.spent: dict[str, float] = defaultdict(float)
        self.slowest: dict[str, tuple[float, str]] = {}
        self.begin = time.perf_counter()
        self.failures: list[str] = []

    @staticmethod
    def room(nodeid: str) -> str:
        """`tests/ops/test_scan.py::test_x` belongs to ops, `tests/test_contract.py::test_x` to contract."""
        parts = nodeid.split("::")[0].split("/")
        parts = parts[parts.index("tests") + 1 :] if "tests" in parts else parts
        return parts[0] if len(parts) > 1 else parts[0].removeprefix("test_").removesuffix(".py")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        room = self.room(report.nodeid)
        seconds = getattr(report, "processor", report.duration)
        self.spent[room] += seconds
        if seconds > self.slowest.get(room, (0.0, ""))[0]:
            self.slowest[room] = (seconds, report.nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, None, None]:
        self.judge(time.perf_counter() - self.begin)
        if self.failures and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        return (yield)

    def judge(self, wall: float) -> None:
        """Fill `failures`."""
        for room, seconds in sorted(self.spent.items()):
            limit = self.limits.get(room)
            if limit is None:
                self.failures.append(f"tests/{room} has no limit in tests/budget.toml")
            elif seconds > limit * self.scale:
                slow, name = self.slowest[room]
                self.failures.append(f"{room} took {seconds:.1f} s of {limit * self.scale:.0f} s; slowest: {name} {slow:.1f} s")
        if wall > self.total * self.scale:
            self.failures.append(f"the whole run took {wall:.0f} s of {self.total * self.scale:.0f} s")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if len(self.spent) > 1:
            parts = [f"{room} {seconds:.0f}/{self.limits.get(room, 0):.0f}" for room, seconds in sorted(self.spent.items())]
            terminalreporter.write_line("processor seconds by room: " + ", ".join(parts))
        for line in self.failures:
            terminalreporter.write_line(f"OVER BUDGET: {line}", red=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--budget-scale", type=float, default=1.0, help="multiply the limits of tests/budget.toml (0: none)")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Meter(), "orrery-meter")
    if hasattr(config, "workerinput"):
        return  # an xdist worker: the controller has done all this, and its environment is inherited
    os.environ["ORRERY_CACHE"] = config.stash[CACHE] = tempfile.mkdtemp(prefix="orrery-tests-")
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", MPLBACKEND="Agg")
    scale = config.getoption("--budget-scale")
    if scale > 0:
        table = tomllib.loads((HERE / "budget.toml").read_text(encoding="utf-8"))
        config.pluginmanager.register(Budget(table["rooms"], table["total"], scale), "orrery-budget")


def pytest_unconfigure(config: pytest.Config) -> None:
    folder = config.stash.get(CACHE, None)
    if folder:
        shutil.rmtree(folder, ignore_errors=True)


CACHE = pytest.StashKey[str]()
