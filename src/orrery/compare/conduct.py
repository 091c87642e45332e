"""One comparison under way: costs, capabilities, calibration, floors, text runs seed by seed, statistics.

Everything finished is kept at once: runs in their folders, the comparison in `comparison.json`, rewritten after every
step. The same call with the same settings finds all of it and does only what is missing.
"""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from orrery.compare import analyse, capability, machine, protocol, rates
from orrery.compare import costs as measuring
from orrery.compare import floors as counting
from orrery.compare.analyse import COMPARISON, RunData
from orrery.compare.candidates import Candidate, describe
from orrery.compare.events import Observer, Plan
from orrery.compare.pool import Pool, Task
from orrery.compare.protocol import Settings, command_line
from orrery.compare.recommend import Limits, recommend
from orrery.compare.result import (
    ArchitectureRow,
    CapabilityRow,
    CapabilityTask,
    ComparisonResult,
    Contrast,
    Costs,
    LearningRate,
    Quantity,
    RunRow,
    from_plain,
    load,
)
from orrery.core.environment import environment
from orrery.core.errors import ConfigError, OrreryError, suggest
from orrery.core.progress import counted, duration
from orrery.data import Dataset, prepare, validation_windows
from orrery.runs import Run
from orrery.train.budget import parse_budget

BASELINE = "transformer"
TASK_SEEDS = (1,)


@dataclass(frozen=True)
class Parts:
    """What is done beside training, and where everything lies."""

    root: Path = Path("runs")
    out: Path | None = None
    costs: bool = True
    capabilities: tuple[capability.Setting, ...] = capability.SETTINGS
    task_seeds: tuple[int, ...] = TASK_SEEDS
    floors: bool = True
    tune: bool = False
    jobs: int | None = None
    command: str = ""
    plan: measuring.CostPlan | None = None


class Session:
    """One comparison under way."""

    def __init__(self, settings: Settings, competitors: list[Candidate], parts: Parts, observer: Observer) -> None:
        self.settings, self.candidates, self.parts, self.observer = settings, competitors, parts, observer
        self.labels = [candidate.label for candidate in competitors]
        self.baseline = _baseline(settings.baseline, self.labels)
        identity = settings.identity(competitors)
        self.out = parts.out or parts.root / f"comparison-{identity}"
        self.pool: Callable[..., Pool] = Pool  # tests put a trainer of their own here
        self.begin = time.perf_counter()
        self.result = ComparisonResult(
            title=", ".join(self.labels),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            command=parts.command or command_line(settings, competitors),
            environment=environment(),
        )
        self.data: Dataset
        self.runs: list[RunData] = []
        self.jobs: dict[str, Any] = {"processes": 1, "threads": machine.cores(), "why": "", "measured": {}}
        self.identity = identity

    def run(self, limits: Limits) -> ComparisonResult:
        """Do everything that is missing; Ctrl-C ends it with what there is."""
        self._prepare()
        try:
            if self.parts.costs or parse_budget(self.settings.budget).kind == "time":
                self._costs()
            if self.parts.capabilities:
                self._capabilities()
            self._rates()
            self._steps()
            if self.parts.floors:
                self._floors()
            self._train()
        except KeyboardInterrupt:
            self._note("interrupted: what had finished is kept, and the same command goes on from there")
        self.observer.phase("statistics", "paired over seeds")
        self._conclude(limits)
        self._save()
        return self.result

    # ------------------------------------------------------------------------------------------------ before

    def _prepare(self) -> None:
        settings, result = self.settings, self.result
        self.data = prepare(settings.corpus, settings.tokenizer)
        self.windows = validation_windows(self.data.validation, settings.length, 16, settings.sample)
        vocabulary = self.data.tokenizer.vocab_size
        result.architectures = [describe(c, settings.size, vocabulary, settings.length, settings.overrides) for c in self.candidates]
        result.protocol = protocol.make_protocol(settings, self.candidates, self.baseline, self.data)
        result.protocol.validation_bytes = self.windows.bytes
        result.protocol.validation_documents = len(self.windows.documents)
        result.protocol.hash = self.identity
        for candidate, row in zip(self.candidates, result.architectures, strict=True):
            for note in candidate.notes:
                self._note(note)
            if settings.size and not row.matched:
                self._note(f"{row.label} has {row.parameters:,} parameters, not the {settings.size} size: it is not a match of size")
        self._recall()
        self._announce()

    def _recall(self) -> None:
        """Take over what an earlier call of the same comparison has measured."""
        try:
            before = load(self.out)
        except OrreryError as error:
            if (self.out / "comparison.json").exists():
                self._note(f"the earlier result could not be read and is made anew: {error}")
            return
        if before.protocol.hash != self.identity or before.protocol.corpus_hash != self.data.hash:
            return
        if before.environment.get("cpu") == self.result.environment.get("cpu"):
            known = {row.label: row.costs for row in before.architectures}
            for row in self.result.architectures:
                if row.label in known and known[row.label].train_speed is not None:
                    row.costs = known[row.label]
            self.result.protocol.jobs = before.protocol.jobs
        self.result.floors = before.floors
        self.result.protocol.steps, self.result.protocol.calibration = before.protocol.steps, before.protocol.calibration

    def _announce(self) -> None:
        """Say what is about to happen and what it will cost, roughly, before anything long begins."""
        steps = dict(self.result.protocol.steps)
        budget = parse_budget(self.settings.budget)
        if budget.kind != "time":
            steps = {row.label: protocol.steps_of(self.settings, row, budget) for row in self.result.architectures}
        count = len(protocol.planned_runs(self.settings, self.labels, self.baseline))
        tokens = self.settings.batch * self.settings.length
        if budget.kind == "time":
            seconds = budget.amount * count
        else:
            seconds = machine.guess_seconds(self.result.architectures, steps, tokens, len(self.settings.seeds))
            seconds *= count / max(1, len(self.labels) * len(self.settings.seeds))
        new = sum(row.costs.train_speed is None for row in self.result.architectures)
        extra = machine.COST_SECONDS * new * self.parts.costs
        tasks = len(self.parts.capabilities) * len(self.labels) * len(self.parts.task_seeds)
        extra += machine.TASK_SECONDS * tasks / machine.cores()
        total = seconds + extra
        sentences = [
            f"{counted(len(self.labels), 'architecture')}, {counted(len(self.settings.seeds), 'seed')}, "
            f"{counted(count, 'run')} of {self.settings.budget} each on {self.settings.corpus}; "
            f"roughly {duration(total)} in all (a guess until speeds are measured)",
            f"results and checkpoints go to {self.parts.root}; Ctrl-C keeps them, the same command goes on",
        ]
        plan = Plan(self.labels, list(self.settings.seeds), count, 0, {k: v * tokens for k, v in steps.items()}, steps, total, sentences)
        self.observer.plan(plan)

    # ------------------------------------------------------------------------------------------------ costs

    def _costs(self) -> None:
        todo = [i for i, row in enumerate(self.result.architectures) if row.costs.train_speed is None]
        if not todo:
            for row in self.result.architectures:
                self.observer.costs(row)
            return
        self.observer.phase("costs", "each architecture alone, in a fresh process, warm-up apart")
        if busy := measuring.busy(machine.cores()):
            self._note(busy)
        plan = self.parts.plan or measuring.CostPlan()
        plan = plan.replace(batch=self.settings.batch, length=self.settings.length)
        tasks = [self._task(self.candidates[i], {"kind": "costs", "plan": plan.to_dict()}) for i in todo]

        def tell(number: int, event: dict[str, Any]) -> None:
            if event["event"] == "finished":
                self._take_costs(self.result.architectures[todo[number]], tasks[number], event["message"])

        self.pool(1, machine.cores(), fresh=True).run(tasks, tell)
        if busy := measuring.busy(machine.cores() + 1):
            self._note(busy)

    def _take_costs(self, row: ArchitectureRow, task: Task, message: dict[str, Any]) -> None:
        if message["type"] == "done":
            flops = row.costs.train_flops
            row.costs = from_plain(Costs, message["result"], f"costs of {row.label}")
            row.costs.train_flops = row.costs.train_flops or flops
        else:
            row.costs.error = f"{message['status']}: {message['error']}"
        if task.build is not None and row.costs.train_memory is not None:
            row.costs.train_memory = Quantity(None, "bytes", "measured", "modules run in this process, whose peak says nothing")
        if row.costs.error:
            self._note(f"costs of {row.label}: {row.costs.error}")
        self.observer.costs(row)
        self._save()

    # ------------------------------------------------------------------------------------------------ capabilities

    def _capabilities(self) -> None:
        settings = self.parts.capabilities
        self.observer.phase("capabilities", "small tasks trained here from scratch, with chance and optimum")
        tables = [capability.table(setting, list(self.parts.task_seeds)) for setting in settings]
        self.result.capabilities = tables
        tasks: list[Task] = []
        places: list[tuple[capability.Setting, CapabilityTask, str, int]] = []
        outcomes: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
        for setting, table in zip(settings, tables, strict=True):
            for candidate in self.candidates:
                rate = capability.rate(candidate.name, setting)
                for seed in self.parts.task_seeds:
                    job = {"kind": "capability", "setting": setting.to_dict(), "rate": rate, "seed": seed}
                    folder = self.parts.root / capability.folder(candidate.label, setting, rate, seed)
                    place = (setting, table, candidate.label, seed)
                    if (known := capability.finished(folder)) is not None:
                        self._collect(place, {"type": "done", "result": known}, outcomes)
                    else:
                        tasks.append(self._task(candidate, {**job, "out": str(folder)}))
                        places.append(place)

        def tell(number: int, event: dict[str, Any]) -> None:
            _, table, label, seed = places[number]
            if event["event"] == "test":
                self.observer.capability_point(table, label, seed, event["step"], event["accuracy"])
            if event["event"] == "finished":
                self._collect(places[number], event["message"], outcomes)

        if tasks:
            count = 1 if machine.on_gpu() else min(machine.cores(), len(tasks))
            self.pool(count, max(1, machine.cores() // count)).run(tasks, tell)
        for table in tables:
            table.rows.sort(key=lambda row: self.labels.index(row.architecture))

    def _collect(
        self,
        place: tuple[capability.Setting, CapabilityTask, str, int],
        message: dict[str, Any],
        outcomes: dict[tuple[str, str], dict[int, dict[str, Any]]],
    ) -> None:
        """One seed of one architecture on one task; its row is made when all seeds are there."""
        setting, table, label, seed = place
        so_far = outcomes.setdefault((table.name, label), {})
        so_far[seed] = message
        if len(so_far) == len(self.parts.task_seeds):
            self._take_capability(setting, table, label, so_far)

    def _take_capability(self, setting: capability.Setting, table: CapabilityTask, label: str, messages: dict[int, dict[str, Any]]) -> None:
        done = {seed: message["result"] for seed, message in messages.items() if message["type"] == "done"}
        row: CapabilityRow = capability.row(label, done, setting)
        failed = [message for message in messages.values() if message["type"] != "done"]
        if failed:
            row.status, row.error = failed[0]["status"], failed[0]["error"]
            self._note(f"{table.name}: {label}: {row.status}: {row.error}")
        table.rows.append(row)
        self.observer.capability(table, row)
        self._save()

    # ------------------------------------------------------------------------------------------------ plan of the runs

    def _rates(self) -> None:
        for candidate, row in zip(self.candidates, self.result.architectures, strict=True):
            given = self.settings.rates.get(candidate.label)
            if given is not None:
                row.learning_rate = LearningRate(float(given), "given")
            elif self.parts.tune:
                row.learning_rate = self._tuned(candidate)
            else:
                row.learning_rate = rates.recorded(candidate.name, self.settings.size, row.config.get("width"))
                if row.learning_rate.source == "untuned default":
                    self._note(f"{candidate.label}: its learning rate {row.learning_rate.value:g} is an untuned default")

    def _tuned(self, candidate: Candidate) -> LearningRate:
        from orrery.compare.tune import sweep

        self.observer.phase("calibration", f"learning rate of {candidate.label}")
        found = sweep(candidate, self.settings, self.data, self.parts.root, self.pool, self.observer.note, self._steps_of)
        if found.best is None:
            self._note(f"{candidate.label}: no run of its sweep finished; the recorded learning rate is taken")
            return rates.recorded(candidate.name, self.settings.size)
        tried = ", ".join(f"{rate:g}: {value:.3f}" if value is not None else f"{rate:g}: failed" for rate, value in sorted(found.tried.items()))
        return LearningRate(found.best, "tuned now", f"bits per byte by rate: {tried}")

    def _steps_of(self, label: str) -> int:
        return protocol.steps_of(self.settings, self.result.row(label), parse_budget(self.settings.budget))

    def _steps(self) -> None:
        """Turn the budget into steps, once: an earlier call's numbers stand."""
        record, tokens = self.result.protocol, self.settings.batch * self.settings.length
        if set(record.steps) != set(self.labels):
            record.steps = {}
            for row in self.result.architectures:
                try:
                    record.steps[row.label] = self._steps_of(row.label)
                except LookupError:  # a time budget for what could not be measured
                    self._fail(row, f"its speed is not known ({row.costs.error or 'not measured'}), so a time budget cannot be kept")
            if record.budget_kind == "time":
                speeds = {row.label: row.costs.train_speed.value for row in self.result.architectures if row.costs.train_speed}
                record.calibration = {"tokens_per_second": speeds, "date": self.result.created, "how": "median step, alone, all cores"}
        record.tokens = {label: steps * tokens for label, steps in record.steps.items()}
        most = max(record.tokens.values(), default=0)
        seen = most / max(1, int(self.data.info["train"]["tokens"]))
        smallest = min((row.parameters for row in self.result.architectures), default=1)
        record.caveat = protocol.caveat(most, record.target_parameters or smallest, seen)

    def _fail(self, row: ArchitectureRow, why: str) -> None:
        row.status, row.error = "failed", why
        self._note(f"{row.label}: {why}")

    def _floors(self) -> None:
        record = self.result.protocol
        if not self.result.floors and record.tokens:
            self.observer.phase("floors", "counting models on the same tokens, for orientation")
            batch, length, seed = self.settings.batch, self.settings.length, self.settings.seeds[0]
            self.result.floors = counting.floors(self.data, self.windows, max(record.tokens.values()), batch, length, seed)
            self._save()
        for floor in self.result.floors:
            self.observer.floor(floor)

    # ------------------------------------------------------------------------------------------------ runs

    def _task(self, candidate: Candidate, job: dict[str, Any]) -> Task:
        """A job with what says which model it is about."""
        model = {
            "name": candidate.name,
            "size": self.settings.size,
            "vocab_size": self.data.tokenizer.vocab_size,
            "settings": self.settings.overrides,
            "files": [candidate.file] if candidate.file else [],
            "command": shlex.split(self.result.command),
        }
        return Task({**model, **job}, candidate.module)

    def _train(self) -> None:
        by_label = dict(zip(self.labels, self.candidates, strict=True))
        tasks: list[Task] = []
        self.runs, waiting = [], []
        for row in protocol.planned_runs(self.settings, self.labels, self.baseline):
            data = RunData(row)
            self.runs.append(data)
            if row.architecture not in self.result.protocol.steps:
                row.status, row.error = "failed", self.result.row(row.architecture).error
                continue
            task = self._run_task(by_label[row.architecture], row)
            finished = self._finished(task, data)
            if finished is not None:
                self.runs[-1] = finished
                self.observer.run_ended(finished.row)
            else:
                tasks.append(task)
                waiting.append(len(self.runs) - 1)
        if tasks:
            self._do(tasks, waiting)

    def _do(self, tasks: list[Task], waiting: list[int]) -> None:
        record, tokens = self.result.protocol, self.settings.batch * self.settings.length
        self._choose_jobs(len(tasks))
        for task in tasks:
            self._settle_threads(task)
        seconds = machine.expect_seconds(
            [self.runs[i].row.architecture for i in waiting], record.steps, tokens, self.result.architectures, self.jobs
        )
        about = f", about {duration(seconds)}" if seconds else ""
        sentence = f"{len(tasks)} runs to do, {len(self.runs) - len(tasks)} found{about}"
        self.observer.phase("training", sentence)
        plan = Plan(self.labels, list(self.settings.seeds), len(tasks), len(self.runs) - len(tasks), record.tokens, record.steps, seconds)
        self.observer.plan(plan)
        bins: dict[int, protocol.Binner] = {}
        per_token = protocol.bytes_per_token(self.data)

        def tell(number: int, event: dict[str, Any]) -> None:
            row = self.runs[waiting[number]].row
            steps = record.steps[row.architecture]
            kind = event["event"]
            if kind == "begin":
                row.status = "running"
                self.observer.run_started(row)
            elif kind in ("start", "resume"):
                row.resumed = kind == "resume"
                bins[number] = protocol.Binner(steps, per_token)
            elif kind == "step" and number in bins:
                self.observer.progress(row, event["step"], steps, event.get("tokens_per_second"))
                if (point := bins[number].add(event)) is not None:
                    self.observer.point(row, round(point[0]), point[1])
            elif kind == "finished":
                self._take_run(waiting[number], tasks[number], event["message"])

        self.pool(self.jobs["processes"], self.jobs["threads"]).run(tasks, tell)

    def _choose_jobs(self, runs: int) -> None:
        candidate = self.candidates[self.labels.index(self.baseline)]
        if self.result.protocol.jobs and self.parts.jobs is None:
            self.jobs = self.result.protocol.jobs
            return
        self.observer.phase("calibration", "one run with all cores, or several with fewer each")
        job = self._task(candidate, {"kind": "speed", "batch": self.settings.batch, "length": self.settings.length}).job
        self.jobs = machine.choose(runs, self.parts.jobs, job, candidate)
        self.result.protocol.jobs = self.jobs

    def _run_task(self, candidate: Candidate, row: RunRow) -> Task:
        architecture = self.result.row(row.architecture)
        assert architecture.learning_rate is not None
        steps = self.result.protocol.steps[row.architecture]
        config = protocol.train_config(self.settings, candidate, architecture.learning_rate.value, steps, row.seed, 0)
        init = protocol.initial_seed(row)
        row.folder = protocol.run_folder(config, self.data.hash, architecture.config, init)
        row.config_hash = row.folder.rpartition("-")[2]
        job = {"kind": "text", "config": config.to_dict(), "out": str(self.parts.root / row.folder), "init": init}
        return self._task(candidate, job)

    def _settle_threads(self, task: Task) -> None:
        """A run keeps the thread count that it was begun with, so that resuming it is exact."""
        threads = self.jobs["threads"]
        folder = Path(task.job["out"])
        if (folder / "run.json").exists():
            try:
                threads = Run.open(folder).config["system"]["threads"]
            except (OrreryError, KeyError, TypeError) as error:
                aside = folder.with_name(f"damaged-{folder.name}-{int(time.time())}")
                folder.rename(aside)
                self._note(f"a damaged run folder was set aside as '{aside.name}' and its run begun anew: {error}")
        task.job["config"]["system"]["threads"] = threads

    def _finished(self, task: Task, data: RunData) -> RunData | None:
        """A run that an earlier comparison (or another machine) has finished; None when there is work to do."""
        folder = Path(task.job["out"])
        if not (folder / "run.json").exists():
            return None
        try:
            run = Run.open(folder)
            if run.status != "done":
                return None
            run.verify()
            data.row.status, data.row.resumed = "done", True
            steps = self.result.protocol.steps[data.row.architecture]
            return protocol.run_data(data.row, run.events("step"), run.result(), steps, protocol.bytes_per_token(self.data))
        except OrreryError as error:
            aside = folder.with_name(f"damaged-{folder.name}-{int(time.time())}")
            folder.rename(aside)
            self._note(f"a damaged run folder was set aside as '{aside.name}' and its run is repeated: {error}")
            return None

    def _take_run(self, place: int, task: Task, message: dict[str, Any]) -> None:
        row, folder = self.runs[place].row, Path(task.job["out"])
        row.status = "done" if message["type"] == "done" else message["status"]
        row.error = message.get("error", "")
        result = message.get("result")
        events: list[dict[str, Any]] = []
        if (folder / "run.json").exists():
            run = Run.open(folder)
            events = run.events("step")
            result = result if result is not None else run.result()
        steps = self.result.protocol.steps[row.architecture]
        self.runs[place] = protocol.run_data(row, events, result, steps, protocol.bytes_per_token(self.data))
        if row.status not in ("done", "interrupted"):
            self._note(f"{row.architecture}, seed {row.seed}: {row.status}: {row.error}; the rest goes on")
        self.observer.run_ended(row)
        self._fill()
        self._save()

    # ------------------------------------------------------------------------------------------------ after

    def _fill(self) -> None:
        """Rows from runs."""
        self.result.runs = [run.row for run in self.runs]
        for row in self.result.architectures:
            own = [run.row for run in self.runs if run.row.architecture == row.label and run.row.role == COMPARISON]
            row.quality, row.curve = analyse.quality(self.runs, row.label), analyse.curve(self.runs, row.label)
            row.curve.split = protocol.STREAM
            states = {run.status for run in own}
            order = ("oom", "failed", "interrupted", "running", "pending", "done")
            row.status = next((state for state in order if state in states), row.status)
            row.error = next((run.error for run in own if run.error), row.error)

    def _conclude(self, limits: Limits) -> None:
        result = self.result
        self._fill()
        result.contrasts = analyse.contrasts(self.runs, self.labels, result.protocol)
        result.noise_floor = analyse.noise_floor(self.runs, result.protocol)
        ended = [run.row.status in ("done", "failed", "oom") for run in self.runs]
        result.status = "complete" if ended and all(ended) else "partial"
        longer = replace(self.settings, budget="20Mtok", seeds=tuple(range(1, max(6, result.protocol.needed_seeds) + 1)))
        result.recommendation = recommend(result, self._against, limits, command_line(longer, self.candidates))
        self.observer.result(result)

    def _against(self, first: str, second: str) -> Contrast:
        family = len(self.labels) - 1 if self.baseline in (first, second) else math.comb(len(self.labels), 2)
        return analyse.contrast(self.runs, first, second, self.result.protocol, max(1, family))

    def _note(self, text: str) -> None:
        if text not in self.result.notes:
            self.result.notes.append(text)
            self.observer.note(text)

    def _save(self) -> None:
        self.result.seconds = time.perf_counter() - self.begin
        self.result.save(self.out)


def _baseline(asked: str, labels: list[str]) -> str:
    if asked:
        if asked not in labels:
            raise ConfigError(f"the baseline '{asked}' does not take part.{suggest(asked, labels)} Taking part: {', '.join(labels)}")
        return asked
    return BASELINE if BASELINE in labels else labels[0]
