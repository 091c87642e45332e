"""Comparisons over a task: pairing, statistics, resuming, failure as an outcome, the report."""

from __future__ import annotations

import copy
import json
import random
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest

from orrery.cli import main
from orrery.compare import task_result, task_worker
from orrery.compare.task_page import lead, task_page, write_task_report
from orrery.compare.task_report import markdown, picture, table
from orrery.compare.task_result import over_items
from orrery.compare.tasks import TaskSettings, compare_tasks
from orrery.core.errors import BudgetError, ConfigError, CorruptionError, DataError, UnknownNameError
from orrery.core.files import read_json
from orrery.data.examples import TaskSpec
from orrery.data.records import Row, Table
from orrery.evaluate.predictions import FIGURES, paired_interval
from orrery.evaluate.statistics import TOO_FEW, t_interval
from orrery.evaluate.tasks import Judged
from orrery.methods.baselines import simplest

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
    assert again.seconds > result.seconds, "the time of the call before counts, too"
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
    assert [row[0] for row in cells[2:]] == ["logistic regression on a bag of words", "the commonest label, always"]
    assert all(len(row) == len(heads) for row in cells)
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
    same = Table("one.csv", ("text", "label"), [Row(f"line {n}", {"text": "a", "label": "yes"}) for n in range(20)])
    with pytest.raises(DataError, match=r"'label' of 'one\.csv' holds only the label 'yes'"):
        compare_tasks(["bert"], same, SPEC, tmp_path / "out", 1, TaskSettings())
    tagged = Table("t", ("text", "label"), [Row(f"line {n}", {"text": "a b", "label": ["O I-X", "B-X I-X"][n % 2]}) for n in range(20)])
    with pytest.raises(DataError, match="word 2: the tag breaks the scheme bio"):
        compare_tasks(["bert"], tagged, TaskSpec(kind="tagging"), tmp_path / "out", 1, TaskSettings())
    assert not (tmp_path / "out" / "runs").exists()
    chosen = Table("t", ("text", "a", "b", "label"), [Row(f"line {n}", {"text": "x", "a": "y", "b": "z", "label": "ABC"[n // 9]}) for n in range(20)])
    with pytest.raises(DataError, match="line 18: 'C' is none of its 2 choices"):
        compare_tasks(["bert"], chosen, TaskSpec(kind="multiple-choice", choices=("a", "b")), tmp_path / "new", 1, TaskSettings())
    assert not (tmp_path / "new").exists()


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """One architecture whose rate is swept; the run at the middle rate fails."""
    out, perform = tmp_path_factory.mktemp("swept"), task_worker.perform

    def some(job):
        if job["config"]["lr"] == pytest.approx(2e-3):
            raise RuntimeError("it diverged, as it were")
        return perform(job)

    settings = replace(QUICK, rates={}, budget="1epochs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Judged.measured, "__defaults__", (50,))
        patch.setattr(task_worker, "perform", some)
        return out, settings, compare_tasks(["gru"], rows(), SPEC, out, [3], settings)


def test_rates_are_swept_on_the_validation_table_until_the_best_is_inside(swept):
    out, _, result = swept
    (one,) = result.sweeps
    assert set(map(float, one.tried)) > {1e-3, 2e-3, 4e-3} and one.tried["0.002"] is None, "a failed rate is a record"
    finished = {float(rate): value for rate, value in one.tried.items() if value is not None}
    assert one.chosen == max(finished, key=lambda rate: finished[rate]) and min(map(float, one.tried)) < one.chosen < max(map(float, one.tried))
    for rate, value in finished.items():
        record = read_json(out / "rates" / f"gru-lr{rate:g}" / "result.json")
        assert list(record["figures"]) == ["validation"], "the test table is not shown to a sweep"
        assert record["figures"]["validation"]["accuracy"]["value"] == value
        assert read_json(out / "rates" / f"gru-lr{rate:g}" / "run.json")["config"]["finetune"]["seed"] == 0
    (run,) = result.runs
    assert run.learning_rate == one.chosen and len(run.history) == 1
    assert "taken" in markdown(result) and "each architecture's own" in markdown(result)


def test_a_sweep_that_was_interrupted_goes_on(swept, monkeypatch):
    out, settings, result = swept
    (out / "rates" / f"gru-lr{result.sweeps[0].chosen:g}" / "result.json").unlink()

    def stop(job):
        raise KeyboardInterrupt

    monkeypatch.setattr(task_worker, "perform", stop)
    again = compare_tasks(["gru"], rows(), SPEC, out, [3], settings)
    assert again.status == "partial" and [run.status for run in again.runs] == ["done"], "what was finished is shown"
    with pytest.raises(ConfigError, match="another comparison"):
        compare_tasks(["gru"], rows(), SPEC, out, [3], replace(settings, tune=False))


def test_the_page_says_it_and_survives_hostile_names(sweep, swept):
    _, result = sweep
    text = task_page(result)
    assert "default-src" in text and "What may be said" in text and "the commonest label, always" in text
    assert 'data-chart="learning"' in text and 'data-chart="differences"' in text and 'data-chart="qualities"' in text
    assert 'data-chart="rates"' in task_page(swept[2]) and "Learning rates that were tried" in task_page(swept[2])
    assert "No run has finished yet" in task_page(task_result.TaskComparison())
    bad = copy.deepcopy(result)
    for row in bad.architectures:
        row.label = row.source = f"<script>{row.label}</script>"
    for run in bad.runs:
        run.architecture, run.error = f"<script>{run.architecture}</script>", "</script><img src=x>"
    bad.floor.label = "<b>words</b>"
    page = task_page(bad)
    assert page.count("<script") == 2 and "<img src=x" not in page and "<b>words" not in page


def test_an_interval_that_leaves_the_picture_ends_in_an_arrow(sweep):
    wide = copy.deepcopy(sweep[1])
    wide.contrasts[0].deltas, wide.contrasts[0].mean = [0.01, 0.03], 0.02
    for low, high, ends in ((-0.02, 0.04, 0), (-0.02, 9.0, 1), (-9.0, 9.0, 2)):
        wide.contrasts[0].low, wide.contrasts[0].high = low, high
        page = task_page(wide)
        chart = page[page.index('data-chart="differences"') :]
        paths = re.findall(r'class="bar strong[^"]*" d="([^"]*)"', chart[: chart.index("</svg>")])
        assert sum(path.count("M") - 1 for path in paths) == ends, (low, high)
        assert (page.count("the interval goes on outside") > 0) == (ends > 0)
    wide.contrasts[0].sentence = "too few seeds to say: nothing"
    assert "Too few seeds to say: nothing." in lead(wide)[1]
    wide.contrasts[0].sentence = f"{wide.contrasts[0].first} is better"
    assert f"{wide.contrasts[0].first} is better." in lead(wide)[1], "a name keeps its letters"


def test_the_plainest_answer_by_kind():
    table = Table("t", ("text", "label"), [Row("", {"text": f"a{i}", "label": str(v)}) for i, v in enumerate([1, 1, 2, 5])])
    expected = {"classification": ("predicted", 0), "ordinal": ("predicted", 0), "regression": ("predicted", 2.25), "text-to-text": ("texts", "1")}
    for kind, (key, value) in expected.items():
        spec = TaskSpec(kind=kind, names=("1", "2", "5") if kind in ("classification", "ordinal") else ())
        assert list(simplest(spec, table, table)[1][key]) == [value] * 4
    words = Table("t", ("text", "label"), [Row("", {"text": ["a", "b"], "label": ["X", "O"]}), Row("", {"text": ["c"], "label": ["O"]})])
    assert simplest(TaskSpec(kind="tagging", names=("O", "X")), words, words)[1]["tags"] == [["O", "O"], ["O"]]
    several = Table("t", ("text", "label"), [Row("", {"text": "a", "label": v}) for v in ("x;y", "x", "x")])
    given = simplest(TaskSpec(kind="multi-label", names=("x", "y")), several, several)[1]["probabilities"]
    assert given == pytest.approx(np.tile([1.0, 1 / 3], (3, 1)))
    asked = [Row("r", {"text": "a b", "question": "q", "label": a}) for a in ("a", "b", "b")]
    spec = TaskSpec(kind="question-answering", pair="question")
    assert simplest(spec, Table("t", (), asked), Table("t", (), asked[:2])) == ("the commonest answer, always", {"texts": ["b", "b"]})
    silent = [Row("r", {**row.values, "label": ""}) for row in asked]
    assert simplest(spec, Table("t", (), silent), Table("t", (), asked)) == ("never an answer", {"texts": [""] * 3})
    held = [Row("r", {"text": "a", "c": ["x", "y", "z"][:n], "label": k}) for n, k in ((3, 2), (3, 2), (2, 0))]
    name, given = simplest(TaskSpec(kind="multiple-choice", choices=("c",)), Table("t", (), held), Table("t", (), held))
    assert name == "choice 3, always" and given["predicted"].tolist() == [2, 2, 1]


QUESTIONS = [{"context": f"{a} saw {b}", "question": q, "answer": a if q == "who" else b} for a in WORDS for b in WORDS for q in ("who", "whom")]
CHOICES = [{"text": a, "first": a + a, "second": b + b, "label": "A"} for a in WORDS for b in WORDS if a != b]


@pytest.mark.parametrize(
    ("rows", "columns", "floor"),
    [
        (QUESTIONS, [], ("the words nearest to the question's", "the commonest answer, always")),
        (CHOICES, ["--choices", "first,second"], (None, "choice 1, always")),
    ],
    ids=["question-answering", "multiple-choice"],
)
def test_questions_and_choices_are_compared(tmp_path, monkeypatch, capsys, rows, columns, floor):
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = ["tokenizer=wordpiece:64", "model.width=16", "model.depth=1", "batch=8", "isolate=false", "lr=0.01"]
    words = ["compare", "gru", "--task", source, *columns, "--seeds", 1, "--budget", "1epochs", "--out", tmp_path / "out", "--json"]
    monkeypatch.setattr("sys.argv", ["orrery", *map(str, words), *(word for each in settings for word in ("--set", each))])
    monkeypatch.setattr(Judged.measured, "__defaults__", (50,))
    with pytest.raises(SystemExit) as ended:
        main()
    found = json.loads(capsys.readouterr().out)
    assert not ended.value.code and found["status"] == "complete", found["runs"]
    assert found["runs"][0]["figures"].keys() >= ({"f1", "exact_match"} if floor[0] else {"accuracy", "nats"})
    assert found["trivial"]["label"] == floor[1] and floor[0] in (None, found["floor"]["label"])
