"""The live view: pictures on a terminal, at most a line per event elsewhere, and nothing that a name could break."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from compare.report_samples import HOSTILE, SAMPLES, sample
from orrery.compare import result as schema
from orrery.compare.events import Plan
from orrery.compare.report import LiveView
from orrery.compare.report.live import bar


def play(view: LiveView, result: schema.ComparisonResult, runs: int | None = None) -> None:
    """The events of a comparison in their order, up to so many finished runs."""
    labels = [row.label for row in result.architectures]
    for sentences in (["about 9 min"], ["about 9 min", "measured: about 7 min"]):
        view.plan(Plan(labels, result.protocol.seeds, len(result.runs), 0, sentences=sentences, seconds=500.0))
    view.phase("costs", "each architecture alone")
    for row in result.architectures:
        view.costs(row)
    view.phase("capabilities", "small tasks")
    for task in result.capabilities:
        for one in task.rows:
            for step, accuracy in zip(one.curve.x, one.curve.mean):
                view.capability_point(task, one.architecture, 1, int(step), accuracy)
            view.capability(task, one)
    view.phase("floors", "counting models")
    for floor in result.floors:
        view.floor(floor)
    view.phase("training", "600k tokens per run")
    for run in result.runs if runs is None else result.runs[:runs]:
        view.run_started(run)
        row = result.row(run.architecture)
        for x, y in zip(row.curve.x, row.curve.values.get(str(run.seed), [])):
            if y is not None:
                view.progress(run, int(x / 4096), 146, 15_300.0)
                view.point(run, int(x), y)
        view.run_ended(run)
    view.note("a note")


@pytest.mark.parametrize("name", ["quick", "failures", "hostile"])
def test_plain_lines_without_a_terminal(name):
    result, stream = SAMPLES[name](), io.StringIO()
    with LiveView(stream=stream) as view:
        play(view, result)
    text = stream.getvalue()
    assert "\x1b" not in text and not any(0x2800 <= ord(char) < 0x2900 for char in text)
    lines = text.splitlines()
    assert lines.count("about 9 min") == 1 and lines[-1] == "a note"
    assert lines.index("training: 600k tokens per run") > lines.index("costs: each architecture alone")
    for run in result.runs:
        (line,) = [line for line in lines if line.startswith(f"{run.architecture} seed {run.seed}: ")]
        if run.status == "done":
            assert f"{run.bits_per_byte:.3f} bits per byte after" in line
        else:
            assert run.error in line and line.endswith("the rest goes on")
    for row in result.architectures:
        assert any(line.startswith(f"costs of {row.label}: ") for line in lines)
    assert any("(estimated)" in line for line in lines)
    assert len(lines) < 3 * (len(result.runs) + len(result.architectures)) + 20


def test_a_terminal_gets_pictures_and_keeps_what_ends(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "30")
    monkeypatch.setenv("TERM", "xterm-256color")
    result, stream = sample(), io.StringIO()
    with LiveView(sample(seed=9, tokens=20_000_000), stream=stream, terminal=True) as view:
        play(view, result, runs=7)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert "\x1b[?25h" in stream.getvalue()  # the cursor is given back
    assert any(0x2800 < ord(char) < 0x2900 for char in text)
    assert "early in training" in text and "tokens/s" in text and "gated-deltanet" in text
    assert text.count("measured: about 7 min") == 1
    for line in text.splitlines():
        assert len(line.rstrip()) <= 100


@pytest.mark.parametrize(("width", "height"), [(40, 12), (80, 24), (160, 50)])
def test_picture_fits_its_terminal(width, height):
    view = LiveView(sample(seed=9), terminal=False, stream=io.StringIO())
    for name in ("quick", "hostile", "failures"):
        play(view, SAMPLES[name](), runs=2)
        for phase in ("costs", "capabilities", "training"):
            view.phase(phase, "")
            view.running[("lstm", 1, "comparison")] = (40, 146, 15_000.0)
            lines = view.picture(width, height)
            assert lines and len(lines) <= height
            console = Console(file=io.StringIO(), width=width)
            assert all(len(str(line)) <= width for line in lines), (phase, [str(line) for line in lines if len(str(line)) > width])
            for line in lines:
                console.print(line, markup=False)


def test_noise_floor_runs_are_not_drawn_as_curves():
    view = LiveView(terminal=False, stream=io.StringIO())
    run = schema.RunRow("lstm", 7, role="noise floor")
    view.point(run, 1000, 5.0)
    assert not view.curves
    view.point(schema.RunRow("lstm", 7), 1000, 5.0)
    assert view.curves == {("lstm", 7): [(1000.0, 5.0)]}


def test_reference_counts_as_background_only():
    view = LiveView(sample(seed=9), terminal=False, stream=io.StringIO())
    cells = [cell for row in view.chart(80, 16) for cell in row if cell.index is not None]
    assert cells and all(cell.faint for cell in cells)
    view.point(schema.RunRow("lstm", 1), 10_000, 4.0)
    view.point(schema.RunRow("lstm", 1), 20_000, 3.9)
    assert any(not cell.faint for row in view.chart(80, 16) for cell in row if cell.index is not None)


def test_time_left_comes_from_what_is_done():
    view = LiveView(terminal=False, stream=io.StringIO())
    assert view._seconds_left() is None
    view.plan(Plan(["lstm"], [1, 2], 2, 0, seconds=100.0))
    view.phase("training", "")
    assert 95 < view._seconds_left() <= 100
    view._training_since -= 30.0
    view.run_ended(schema.RunRow("lstm", 1, "done", 2.0))
    assert view._seconds_left() == pytest.approx(30.0, abs=2)
    view.run_ended(schema.RunRow("lstm", 2, "done", 2.0, resumed=True))
    assert view._seconds_left() == pytest.approx(30.0, abs=2)  # what was found finished took no time


def test_bars():
    assert bar(0.0, 0.1, 10) == " ┊        " and bar(1.0, 0.5, 10) == "━━━━━┿━━━━"
    assert all(len(bar(value / 7, 0.02)) == 24 for value in range(9))


def test_a_name_cannot_send_commands_to_the_terminal():
    stream = io.StringIO()
    with LiveView(stream=stream) as view:
        view.note(f"{HOSTILE[0]}\x1b[2J\x07")
    assert stream.getvalue() == f"{HOSTILE[0]}\ufffd[2J\ufffd\n"
