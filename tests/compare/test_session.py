"""A whole comparison with a trainer that only pretends: outcomes, resumption, budgets, verdicts, events."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from orrery.compare import capability, load, rates
from orrery.compare.candidates import candidates
from orrery.compare.conduct import Parts, Session
from orrery.compare.events import Observer
from orrery.compare.protocol import Settings
from orrery.compare.recommend import Limits
from orrery.compare.result import ComparisonResult
from orrery.compare.session import compare
from orrery.core.errors import BudgetError, ConfigError, DataError, UnknownNameError
from orrery.core.seeds import numpy_generator
from orrery.runs import Run

NAMES = ("transformer", "gpt2", "transformer(canon=abcd)")
LEVEL = {"transformer": 2.8, "gpt2": 2.6, "transformer(canon=abcd)": 2.8}
SPEED = {"transformer": 1000.0, "gpt2": 500.0, "transformer(canon=abcd)": 2000.0}


class Pretender:
    """In place of the pool: writes the run folders that training would, with numbers whose truth is known."""

    def __init__(self) -> None:
        self.done: list[dict] = []
        self.fail: dict[tuple[str, int], str] = {}
        self.interrupt_after = 10**9
        self.noise = 0.004
        self.speed = dict(SPEED)

    def __call__(self, count: int = 1, threads: int = 1, fresh: bool = False) -> Pretender:
        return self

    def run(self, tasks, tell):
        messages = []
        for number, task in enumerate(tasks):
            if len(self.done) >= self.interrupt_after:
                raise KeyboardInterrupt
            tell(number, {"event": "begin"})
            message = getattr(self, task.job["kind"])(task.job, lambda event, n=number: tell(n, event))
            self.done.append(task.job)
            messages.append(message)
            tell(number, {"event": "finished", "message": message})
        return messages

    def count(self, kind: str) -> int:
        return sum(job["kind"] == kind for job in self.done)

    def costs(self, job, tell):
        name = job["name"]
        series = {"axis": "t", "unit": "ms/token", "how": "measured", "points": [{"x": 128.0, "y": 1.0}], "note": ""}
        speed = {"value": self.speed[name], "unit": "tokens/s", "how": "measured", "note": ""}
        flops = {"value": 1e6 if name == "gpt2" else 2e6, "unit": "FLOP/token", "how": "analytic", "note": ""}
        fields = {"parameters": 10, "parameters_total": 20, "train_speed": speed, "decode": series, "train_flops": flops}
        return {"type": "done", "result": fields}

    def capability(self, job, tell):
        right = 0.999 if "canon" in job["name"] else 0.13
        tell({"event": "test", "step": 50, "accuracy": right})
        curve = [[0, 0.01], [50, right]]
        found = {"accuracy": right, "curve": curve, "steps": 50, "parameters": 9, "seconds": 1.0, "rate": job["rate"]}
        run = Run.create(job["out"], {"kind": "capability", "name": job["name"]})
        run.finish({**found, "solved": 50 if right > 0.99 else None})
        return {"type": "done", "result": run.result()}

    def text(self, job, tell):
        config = job["config"]
        name, seed, steps = config["model"]["name"], config["seed"], int(config["budget"].removesuffix("steps"))
        if (name, seed) in self.fail:
            status = self.fail[name, seed]
            return {"type": "error", "status": status, "error": "pretended"}
        shared = numpy_generator(seed, "data").normal(0, 0.05)
        rate = 0.05 * math.log2(config["optim"]["lr"] / 4e-3) ** 2
        value = LEVEL[name] + shared + rate + numpy_generator(job["init"], name, seed).normal(0, self.noise)
        tell({"event": "start", "steps": steps})
        run = Run.create(job["out"], config, name, seed)
        for step in range(1, steps + 1):
            event = {"step": step, "tokens": step * 32, "loss": (value + 1 / step) * math.log(2)}
            run.log("step", **event)
            tell({"event": "step", **event, "tokens_per_second": 9.0})
        sizes = np.arange(100, 140)
        documents = [{"document": i, "nats": float(b * value * math.log(2)), "bytes": int(b)} for i, b in enumerate(sizes)]
        result = {"steps": steps, "tokens": steps * 32, "seconds": 1.0, "bits_per_byte": value}
        run.finish({**result, "validation": {"per_document": documents}})
        return {"type": "done", "result": run.result()}


class Recorder(Observer):
    """Remembers the names of events."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.plans: list = []
        self.points: list = []

    def plan(self, plan):
        self.names.append("plan")
        self.plans.append(plan)

    def phase(self, name, detail):
        self.names.append(name)

    def point(self, run, tokens, bits_per_byte):
        self.points.append((run.architecture, run.seed, tokens, bits_per_byte))

    def run_ended(self, run):
        self.names.append(f"ended {run.architecture} {run.seed} {run.status}")

    def result(self, result):
        self.names.append("result")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(40):
        (folder / f"{number}.txt").write_text("".join(f"{number} to the {i} is {number**i % 97}\n" for i in range(40)))
    return str(folder)


@pytest.fixture(autouse=True)
def one_recorded_rate(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of its own: which rates are recorded decides what the pretender answers."""
    file = tmp_path_factory.mktemp("rates") / "table.json"
    entry = {"lr": 1e-3, "tried": {}, "width": 96, "date": "2026-11-22"}
    file.write_text(json.dumps({"format": 1, "protocol": {}, "architectures": {"transformer": {"nano": entry}}}))
    monkeypatch.setattr(rates, "recorded", functools.partial(rates.recorded, path=file))


@pytest.fixture
def pretender() -> Pretender:
    return Pretender()


def session(corpus, root: Path, pretender, names=NAMES, observer=None, parts=None, **changes) -> Session:
    fields = {"budget": "1280tok", "seeds": (1, 2, 3), "length": 16, "batch": 2, "sample": 4000, "size": None, **changes}
    fields["overrides"] = {"width": 16, "depth": 1}
    made = parts or Parts(root=root, capabilities=capability.SETTINGS[:1], jobs=1)
    found = Session(Settings(corpus=corpus, **fields), candidates(names), made, observer or Recorder())
    found.pool = pretender
    return found


def test_the_whole_pipeline(corpus, tmp_path, pretender):
    seen = Recorder()
    work = session(corpus, tmp_path, pretender, observer=seen, seeds=tuple(range(1, 9)))
    result = work.run(Limits())
    assert result.status == "complete" and load(work.out) == result
    assert {row.label: row.status for row in result.architectures} == dict.fromkeys(NAMES, "done")
    assert result.protocol.steps == dict.fromkeys(NAMES, 40) and result.protocol.tokens["gpt2"] == 1280
    assert len(result.runs) == 32 and sum(run.role == "noise floor" for run in result.runs) == 8
    verdicts = {(c.first, c.second): c.verdict for c in result.contrasts}
    assert verdicts["gpt2", "transformer"] == "better"
    assert verdicts["transformer(canon=abcd)", "transformer"] == "no difference shown"
    assert result.noise_floor is not None and result.noise_floor.verdict == "no difference shown"
    assert result.recommendation.choice == "gpt2" and "orrery compare transformer gpt2" in result.recommendation.next_command
    row = result.row("gpt2")
    assert len(row.curve.x) == 20 and len(row.curve.values) == 8 and row.curve.mean[0] > row.curve.mean[-1]
    assert row.quality.mean == pytest.approx(2.6 + 0.05, abs=0.06) and row.learning_rate.source == "untuned default"
    (task,) = result.capabilities
    assert [r.architecture for r in task.rows] == list(NAMES) and task.rows[2].steps_to_solve == 50
    assert task.chance == 0.125 and task.rows[0].mean == 0.13
    assert [floor.label for floor in result.floors] == ["bigram", "Kneser-Ney 5-gram"]
    assert all(1 < floor.bits_per_byte < 9 for floor in result.floors)
    contrast = result.contrasts[0]
    assert contrast.documents == 40 and contrast.documents_low <= contrast.mean <= contrast.documents_high


def test_events_come_in_order_and_live_points_are_the_final_curve(corpus, tmp_path, pretender):
    seen = Recorder()
    result = session(corpus, tmp_path, pretender, observer=seen).run(Limits())
    names = [name for name in seen.names if not name.startswith("ended")]
    assert names == ["plan", "costs", "capabilities", "floors", "calibration", "training", "plan", "statistics", "result"]
    assert seen.plans[0].seconds > 0 and "roughly" in seen.plans[0].sentences[0]
    assert seen.plans[1].runs == 9 and seen.plans[1].seconds == pytest.approx(1280 * 3 * (1 / 1000 + 1 / 500 + 1 / 2000))
    curve = result.row("gpt2").curve
    live = {(tokens, value) for label, seed, tokens, value in seen.points if label == "gpt2" and seed == 2}
    assert live == {(round(x), y) for x, y in zip(curve.x, curve.values["2"], strict=True)}
    ended = [name for name in seen.names if name.startswith("ended")]
    assert ended[:3] == [f"ended {name} 1 done" for name in NAMES]  # seed by seed


def test_failures_are_outcomes_and_the_rest_goes_on(corpus, tmp_path, pretender):
    pretender.fail = {("gpt2", 2): "oom", ("transformer(canon=abcd)", 1): "failed"}
    result = session(corpus, tmp_path, pretender).run(Limits())
    assert result.status == "complete" and result.row("gpt2").status == "oom"
    runs = {(run.architecture, run.seed): run for run in result.runs}
    assert runs["gpt2", 2].status == "oom" and runs["gpt2", 2].error == "pretended"
    assert sum(run.status == "done" for run in result.runs) == 7
    assert result.contrasts[0].seeds == [1, 3] and result.row("gpt2").quality.seeds.keys() == {"1", "3"}
    assert any("the rest goes on" in note for note in result.notes)
    pretender.fail = {}
    before = pretender.count("text")
    again = session(corpus, tmp_path, pretender).run(Limits())
    assert pretender.count("text") - before == 2 and all(run.status == "done" for run in again.runs)
    assert sum(run.resumed for run in again.runs) == 7


def test_an_interrupted_comparison_is_kept_and_goes_on(corpus, tmp_path, pretender):
    pretender.interrupt_after = 3 + 3 + 4  # costs, capabilities, four runs
    work = session(corpus, tmp_path, pretender)
    result = work.run(Limits())
    assert result.status == "partial" and load(work.out).status == "partial"
    assert sum(run.status == "done" for run in result.runs) == 4 and any("interrupted" in note for note in result.notes)
    assert result.recommendation.choice is not None
    pretender.interrupt_after = 10**9
    again = session(corpus, tmp_path, pretender).run(Limits())
    assert again.status == "complete" and len(pretender.done) == 3 + 3 + 9
    whole = session(corpus, tmp_path / "other", Pretender()).run(Limits())
    assert [c.deltas for c in again.contrasts] == [c.deltas for c in whole.contrasts]
    assert [row.curve for row in again.architectures] == [row.curve for row in whole.architectures]


def test_a_time_budget_becomes_steps_once(corpus, tmp_path, pretender):
    result = session(corpus, tmp_path, pretender, budget="0.5s").run(Limits())
    assert result.protocol.steps == {"transformer": 15, "gpt2": 7, "transformer(canon=abcd)": 31}
    assert result.protocol.calibration["tokens_per_second"]["gpt2"] == 500.0
    pretender.speed = dict.fromkeys(NAMES, 1.0)  # a busy machine later: neither measured again nor counted again
    before = len(pretender.done)
    again = session(corpus, tmp_path, pretender, budget="0.5s").run(Limits())
    assert len(pretender.done) == before and again.protocol.steps == result.protocol.steps


def test_a_flop_budget_counts_each_architecture_s_own(corpus, tmp_path, pretender):
    result = session(corpus, tmp_path, pretender, budget="1e9flop").run(Limits())
    assert result.protocol.steps == {"transformer": 15, "gpt2": 31, "transformer(canon=abcd)": 15}


def test_a_budget_too_small_is_told_before_anything_begins(corpus, tmp_path, pretender):
    with pytest.raises(BudgetError, match="too small for one step"):
        session(corpus, tmp_path, pretender, budget="31tok").run(Limits())
    assert pretender.done == []


def test_an_architecture_without_a_speed_fails_alone_under_a_time_budget(corpus, tmp_path, pretender, monkeypatch):
    plain = pretender.costs

    def costs(job, tell):
        return {"type": "error", "status": "oom", "error": "no room"} if job["name"] == "gpt2" else plain(job, tell)

    monkeypatch.setattr(pretender, "costs", costs)
    result = session(corpus, tmp_path, pretender, budget="0.5s").run(Limits())
    assert result.row("gpt2").status == "failed" and "oom: no room" in result.row("gpt2").error
    assert result.recommendation.choice != "gpt2" and {r.status for r in result.runs if r.architecture == "gpt2"} == {"failed"}


def test_other_settings_are_other_comparisons_and_share_equal_runs(corpus, tmp_path, pretender):
    first = session(corpus, tmp_path, pretender)
    first.run(Limits())
    before = pretender.count("text")
    more = session(corpus, tmp_path, pretender, seeds=(1, 2, 3, 4))
    result = more.run(Limits())
    assert more.out != first.out and pretender.count("text") - before == 3
    assert sum(run.resumed for run in result.runs) == 9


def test_tuning_takes_the_best_rate_inside_its_grid(corpus, tmp_path, pretender):
    parts = Parts(root=tmp_path, capabilities=(), tune=True, jobs=1, floors=False)
    result = session(corpus, tmp_path, pretender, names=["gpt2"], parts=parts).run(Limits())
    found = result.row("gpt2").learning_rate
    assert found.value == 4e-3 and found.source == "tuned now" and "0.008: " in found.note
    assert pretender.count("text") == 4 + 3  # 1, 2, 4 and then 8 thousandths, on a seed that is no comparison's
    given = session(corpus, tmp_path, pretender, names=["gpt2"], parts=parts, rates={"gpt2": 1e-3}).run(Limits())
    assert given.row("gpt2").learning_rate.source == "given"


def test_damaged_run_folders_and_results_are_set_aside_by_name(corpus, tmp_path, pretender):
    work = session(corpus, tmp_path, pretender)
    result = work.run(Limits())
    folders = [tmp_path / run.folder for run in result.runs]
    (folders[0] / "result.json").write_text('{"bits_per_byte": 0.1}')
    (folders[1] / "run.json").write_text("{")
    (work.out / "comparison.json").write_text("{")
    before = pretender.count("text")
    again = session(corpus, tmp_path, pretender).run(Limits())
    assert pretender.count("text") - before == 2 and len(list(tmp_path.glob("damaged-*"))) == 2
    assert [run.bits_per_byte for run in again.runs] == [run.bits_per_byte for run in result.runs]
    assert sum("set aside" in note for note in again.notes) == 2 and any("made anew" in note for note in again.notes)


def test_limits_reach_the_recommendation(corpus, tmp_path, pretender):
    result = session(corpus, tmp_path, pretender).run(Limits(max_ms_per_token=0.5))
    assert result.recommendation.choice is None and len(result.recommendation.excluded) == 3


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"architectures": ["transfomer"]}, UnknownNameError, "Did you mean"),
        ({"architectures": ["gpt2"], "size": "nanno"}, ConfigError, "Did you mean 'nano'"),
        ({"architectures": ["gpt2"], "budget": "2 parsecs"}, BudgetError, "unknown unit|not a budget"),
        ({"architectures": ["gpt2"], "seeds": 0}, ConfigError, "at least one seed"),
        ({"architectures": ["gpt2"], "seeds": [1, 1]}, ConfigError, "only once"),
        ({"architectures": ["gpt2"], "baseline": "gtp2"}, ConfigError, "Did you mean 'gpt2'"),
        ({"architectures": ["gpt2"], "bach": 3}, ConfigError, "Did you mean 'batch'"),
        ({"architectures": ["gpt2"], "corpus": "no-such-corpus"}, DataError, "no corpus"),
    ],
)
def test_mistakes_are_told_before_anything_begins(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        compare(**changes, root=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_small_comparison_for_real(corpus, tmp_path):
    """Two architectures, two seeds, four steps, in real processes."""
    seen = Recorder()
    parts = Parts(costs=False, capabilities=(), floors=False, jobs=2)
    settings = {"length": 16, "batch": 2, "sample": 2000, "overrides": {"width": 16, "depth": 1}}
    asked = {"budget": "128tok", "seeds": 2, "size": None, "root": tmp_path, "parts": parts, "observer": seen}
    result = compare(["transformer", "gpt2"], corpus, **asked, **settings)
    assert isinstance(result, ComparisonResult) and result.status == "complete", result.notes
    assert all(run.bits_per_byte and run.steps == 4 and run.tokens == 128 for run in result.runs)
    assert len(result.contrasts) == 1 and len(result.contrasts[0].deltas) == 2 and result.contrasts[0].documents > 0
    assert len(seen.points) == 16 and result.recommendation.choice in ("transformer", "gpt2")
    record = json.loads((tmp_path / result.runs[0].folder / "run.json").read_text())
    assert record["command"][:3] == ["orrery", "compare", "transformer"]
    again = compare(["transformer", "gpt2"], corpus, **asked, **settings)
    assert [run.bits_per_byte for run in again.runs] == [run.bits_per_byte for run in result.runs]
    assert all(run.resumed for run in again.runs)


def test_the_room_is_callable():
    import orrery.compare

    with pytest.raises(ConfigError, match="nothing to compare"):
        orrery.compare([])
    assert rates.table()["format"] == 1


def test_sweeps_are_recorded_with_their_protocol(corpus, tmp_path, pretender, monkeypatch):
    from orrery.compare import tune

    monkeypatch.setattr(tune, "Pool", pretender)
    table, said = tmp_path / "rates.json", []
    where = {"root": tmp_path, "record": True, "table": table, "say": said.append}
    found = tune.tune("gpt2", "nano", "40960tok", corpus, **where)
    assert found.best == 4e-3 and found.width and len(said) == 4 and "gpt2 at 0.008" in said[-1]
    task = tune.tune_task("transformer(canon=abcd)", capability.SETTINGS[0], **where)
    assert sorted(task.tried) == [2.5e-3, 5e-3, 1e-2, 2e-2] and task.best == 5e-3  # all alike: the first, once inside
    stored = json.loads(table.read_text())
    assert stored["architectures"]["gpt2"]["nano"]["lr"] == 4e-3 and set(stored["protocol"]) == {"nano", "mqar"}
    assert stored["protocol"]["nano"]["corpus_hash"] and stored["protocol"]["nano"]["machine"]
    assert stored["architectures"]["transformer(canon=abcd)"]["mqar"]["tried"]["0.01"] == pytest.approx(0.001)
