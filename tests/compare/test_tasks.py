"""Comparisons over a task: pairing, statistics, resuming, failure as an outcome, the report."""

from __future__ import annotations

import random
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from orrery.compare import task_result, task_worker
from orrery.compare.task_report import markdown, picture, table, write_task_report
from orrery.compare.task_result import over_items
from orrery.compare.tasks import TaskSettings, compare_tasks
from orrery.core.errors import BudgetError, ConfigError, CorruptionError, UnknownNameError
from orrery.core.files import read_json
from orrery.data.labelled import TaskSpec
from orrery.data.records import Row, Table
from orrery.evaluate.predictions import FIGURES, paired_interval
from orrery.evaluate.statistics import TOO_FEW, t_interval
from orrery.evaluate.tasks import Judged

WORDS = ["red", "blue", "cat", "dog", "runs", "sits"]
SPEC = TaskSpec(kind="classification")
QUICK = TaskSettings(
    budget="2epochs", tokenizer="wordpiece:64", model={"width": 32, "depth": 1}, finetune={"batch": 16}, rates={"": 1e-2, "bert": 4e-3},
    isolate=False, seconds=0.0,
)  # fmt: skip


def rows(count=90, seed=0):
    rng = random.Random(seed)
    found = []
    for number in range(count):
        words = [rng.choice(WORDS) for _ in range(rng.randint(2, 4))]
        found.append(
            Row(f"t, line {number + 1}", {"text": " ".join(words), "label": "with" if "cat" in words else "without"})
        )
    return Table("t", ("text", "label"), found)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two architectures, two seeds."""
    out = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Judged.measured, "__defaults__", (50,))  # each run's own intervals are not looked at here
        return out, compare_tasks(["bert", "gru"], rows(), SPEC, out, 2, QUICK, command="orrery compare bert gru")


def test_all_runs_read_the_same_and_are_paired(sweep):
    out, result = sweep
    assert result.status == "complete" and [(r.architecture, r.seed) for r in result.runs] == [
        ("bert", 1), ("gru", 1), ("bert", 2), ("gru", 2)
    ]  # fmt: skip
    records = [read_json(out / run.folder / "run.json") for run in result.runs]
    assert (
        len({str(r["config"]["data"]) for r in records}) == 1 and len({r["config"]["tokenizer"] for r in records}) == 1
    )
    assert {r["config"]["lr"] for r in records} == {1e-2, 4e-3}
    assert {read_json(out / run.folder / "result.json")["epochs"] for run in result.runs} == {2}, "none stops early"
    assert (
        result.protocol.rows == {"train": 65, "validation": 7, "test": 18} or sum(result.protocol.rows.values()) == 90
    )
    (one,) = result.contrasts
    value = {(r.architecture, r.seed): r.value for r in result.runs}
    assert one.deltas == pytest.approx([value["gru", s] - value["bert", s] for s in (1, 2)])
    expected = t_interval(one.deltas)
    assert (one.low, one.high) == pytest.approx((expected.low, expected.high))
    assert one.verdict == TOO_FEW and one.needed_seeds == 6 and "a verdict needs 6 seeds" in one.sentence
    for row in result.architectures:
        own = [r.value for r in result.runs if r.architecture == row.label]
        assert row.quality.mean == pytest.approx(np.mean(own)) and row.seconds > 0 and row.rate > 0
        assert row.beyond_floor.second == "logistic regression on a bag of words"
        assert row.beyond_floor.mean == pytest.approx(np.mean(own) - result.floor.value)


def test_the_same_command_reads_what_is_there_and_takes_more_seeds(sweep, monkeypatch):
    out, result = sweep
    before = {run.folder: (out / run.folder / "run.json").read_bytes() for run in result.runs}

    def refuse(job):
        raise KeyboardInterrupt if job["config"]["seed"] == 4 else RuntimeError("out of memory, as it were")

    monkeypatch.setattr(task_worker, "perform", refuse)
    again = compare_tasks(["bert", "gru"], rows(), SPEC, out, 2, QUICK)
    assert [r.value for r in again.runs] == [r.value for r in result.runs] and again.contrasts == result.contrasts
    more = compare_tasks(["bert", "gru"], rows(), SPEC, out, [1, 2, 3, 4, 5], QUICK)
    assert more.status == "partial"
    assert [r.status for r in more.runs] == ["done"] * 4 + ["oom"] * 2 + ["interrupted"] + ["pending"] * 3, (
        "what failed is an outcome"
    )
    assert len(more.contrasts[0].deltas) == 2 and "out of memory" in markdown(more)
    assert before == {run.folder: (out / run.folder / "run.json").read_bytes() for run in result.runs}
    with pytest.raises(ConfigError, match="another comparison"):
        compare_tasks(["bert"], rows(seed=5), SPEC, out, 2, QUICK)


def test_the_report_says_it(sweep, tmp_path):
    _, result = sweep
    result.save(tmp_path)
    assert task_result.load(tmp_path) == result
    write_task_report(result, tmp_path)
    heads, cells = table(result)
    assert len(cells) == 3 and all(len(row) == len(heads) for row in cells)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert (
        "too few seeds to say" in text
        and "figure.svg" in text
        and "held out" in text
        and "orrery compare bert gru" in text
    )
    root = ET.fromstring((tmp_path / "figure.svg").read_text(encoding="utf-8"))
    said = " ".join(root.itertext())
    assert "bert" in said and "gru \N{MINUS SIGN} bert" in said
    assert len([e for e in root.iter() if e.get("class", "").startswith("mark")]) == 3
    (tmp_path / "result.json").write_text('{"format": 9}')
    with pytest.raises(CorruptionError, match="no comparison over a task"):
        task_result.load(tmp_path)


def test_a_result_without_a_finished_run_is_still_drawn(sweep):
    _, result = sweep
    empty = task_result.TaskComparison(
        protocol=result.protocol, architectures=[task_result.TaskRow("x", "x", status="failed")]
    )
    assert "failed" in picture(empty) and "failed" in markdown(empty)


def test_intervals_over_rows_are_paired():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 2, 200)
    systems = [
        {"true": true, "predicted": np.where(rng.random(200) < share, true, 1 - true)} for share in (0.9, 0.6, 0.9, 0.6)
    ]
    figure = FIGURES["classification"]["accuracy"]
    one = over_items(figure, systems[:1], systems[1:2], draws=2000)
    known = paired_interval(figure, systems[0], systems[1])
    assert one == pytest.approx((known.estimate, known.low, known.high))
    both = over_items(figure, systems[::2], systems[1::2], draws=500)
    assert both[2] - both[1] < one[2] - one[1], "two seeds' mean is steadier"


def test_what_is_refused(tmp_path):
    def ask(names=("bert",), seeds=1, **more):
        settings = TaskSettings(**{**QUICK.__dict__, **more})
        return compare_tasks(list(names), rows(), SPEC, tmp_path / "out", seeds, settings)

    with pytest.raises(BudgetError, match="epochs, tokens or steps"):
        ask(budget="2min")
    with pytest.raises(BudgetError, match="less than one epoch"):
        ask(budget="3tok")
    with pytest.raises(UnknownNameError, match="bert"):
        ask(["bertt"])
    with pytest.raises(ConfigError, match="named twice"):
        ask(["bert", "bert"])
    with pytest.raises(ConfigError, match="does not take part"):
        ask(baseline="gru")
    with pytest.raises(ConfigError, match="at least one seed"):
        ask(seeds=0)
