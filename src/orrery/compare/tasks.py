"""`orrery compare ... --task FILE`: architectures x seeds fine-tuned on one table, at matched size, on the same splits.

    result = compare_tasks(["bert", "modernbert", "lstm"], read_table("reviews.csv"), TaskSpec(...), "runs/reviews", seeds=6)

Held equal: the three tables (what is not given is held out once, for all runs), the tokenizer (trained once on the training
texts), the size, the number of epochs (none stops early; the best epoch by the validation table is kept, the test table
chooses nothing), batches and their order under each seed. Not equal: a folder of a model takes part with its own tokenizer,
size and history, and a note says so. The learning rate of each is swept by the rule of :mod:`orrery.compare.rates`, around
fine-tuning's rule by width, with whole runs of a seed (0) that is none of the comparison's, judged on the validation table;
unless rates are given, or `tune` is off and the rule by width holds.

    OUT/result.json, report.html, report.md, figure.svg     what it came to
    OUT/tables/, tokenizer/                    what all runs read
    OUT/rates/NAME-lrRATE/                     the runs of the sweeps
    OUT/runs/NAME-sSEED/                       one fine-tuning each: a model to use, with its card
    OUT/sweep.json                             what makes this sweep this sweep

The same command goes on after an interruption, and tries again what failed; more seeds or architectures may be asked of the
same folder, whose finished runs count.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from orrery.compare import rates
from orrery.compare.task_result import (
    FILE,
    Answers,
    TaskComparison,
    TaskProtocol,
    TaskRow,
    TaskRun,
    TaskSweep,
    Words,
    fill,
    load,
)
from orrery.compare.task_worker import ATTEMPT, PREDICTION_SECONDS, PREDICTIONS, SIDES, attempt
from orrery.core import registry
from orrery.core.config import config_hash
from orrery.core.environment import environment
from orrery.core.errors import BudgetError, ConfigError, CorruptionError, OrreryError
from orrery.core.files import read_json, write_bytes, write_json
from orrery.core.progress import counted
from orrery.data.dataset import build_tokenizer
from orrery.data.examples import TaskSpec
from orrery.data.labelled import encode, learn_names, read_label, split_table
from orrery.data.records import Table
from orrery.data.tokenizer_files import load_tokenizer
from orrery.data.tokenizers import Tokenizer
from orrery.evaluate.statistics import least_seeds
from orrery.evaluate.tasks import LOWER, Judged, judge
from orrery.methods import starting
from orrery.methods.baselines import baseline as fit_baseline
from orrery.methods.baselines import simplest
from orrery.methods.finetune import (
    LEAST_EPOCHS,
    MOST_EPOCHS,
    WANTED_STEPS,
    FinetuneConfig,
    batch_by_rows,
    check_tags,
    rate_by_width,
)
from orrery.models.ladder import LADDER
from orrery.runs.folder import finite, now, slug
from orrery.train.budget import parse_budget

_EPOCHS = re.compile(r"\s*(\d+)\s*(?:epochs?|ep)\s*", re.IGNORECASE)
SWEEP_SEED = 0
SHARE, SPREAD = 0.01, 0.02  # margins: of a figure that is a share; of the labels' own standard deviation

Observer = Callable[[str], None]


@dataclass(frozen=True)
class TaskSettings:
    """How the runs of a comparison over a task are made.

    budget: of each run: "5epochs", "200ktok" or "500steps"; empty: fine-tuning's rule. size: rung of the ladder. rates: learning
    rates by label, "" for all; else they are swept (`tune`), or the rule. held_out, test_share: of the table, where no table is
    given. margin: smallest difference of the main figure that matters; None: 0.01 of a share, 2 % of the labels' standard deviation of an error.
    isolate: every run in a process of its own (peak memory is known only so). seconds: of timing predictions.
    """

    size: str | None = "micro"
    budget: str = ""
    tokenizer: str = ""
    baseline: str = ""
    margin: float | None = None
    rates: dict[str, float] = field(default_factory=dict)
    tune: bool = True
    held_out: float = 0.1
    test_share: float = 0.2
    finetune: dict[str, Any] = field(default_factory=dict)  # batch, truncate, balance, repair, decay, warmup, threads
    model: dict[str, Any] = field(default_factory=dict)  # settings of every model that is drawn
    isolate: bool = True
    seconds: float = PREDICTION_SECONDS


@dataclass
class _Contender:
    label: str
    source: str
    files: list[str]
    folder: bool
    row: TaskRow
    rule: float  # its learning rate by width


def compare_tasks(
    architectures: Iterable[str],
    train: Table,
    spec: TaskSpec,
    out: str | Path,
    seeds: int | Sequence[int] = 3,
    settings: TaskSettings | None = None,
    *,
    validation: Table | None = None,
    test: Table | None = None,
    command: str = "",
    tell: Observer | None = None,
) -> TaskComparison:
    """Compare architectures over one task; see the top of the file.

    Args:
        architectures: names, patterns, files of yours that register one, folders of models.
        seeds: how many, or which.
        tell: is told each step in a sentence.

    Returns:
        The result, also saved; with status "partial" after Ctrl-C or a failed run.

    Raises:
        OrreryError: before anything long has begun.
    """
    numbers = list(range(1, seeds + 1)) if isinstance(seeds, int) else [int(seed) for seed in seeds]
    if not numbers or len(set(numbers)) < len(numbers):
        raise ConfigError("give at least one seed, and each only once")
    sweep = _Sweep(
        train, spec, Path(out), settings or TaskSettings(), validation, test, tell or (lambda sentence: None)
    )
    sweep.enter(list(architectures), numbers, command)
    return sweep.run()


class _Sweep:
    """The runs of one folder."""

    def __init__(
        self,
        train: Table,
        spec: TaskSpec,
        out: Path,
        settings: TaskSettings,
        validation: Table | None,
        test: Table | None,
        tell: Observer,
    ) -> None:
        self.out, self.settings, self.tell = out, settings, tell
        given = validation is not None, test is not None
        self.spec = spec = learn_names(train, spec)
        if test is None:
            train, test = split_table(train, settings.test_share, 0, spec)
        if validation is None:
            train, validation = split_table(train, settings.held_out, 0, spec)
        self.tables = dict(zip(SIDES, (train, validation, test), strict=True))
        check_tags(spec, self.tables, bool(settings.finetune.get("repair")))
        self.kept = [side for side, known in zip(SIDES[1:], given, strict=True) if not known]
        self.tokenizer = self._tokenizer()
        self.tokens = int(
            encode(
                train, self.spec, self.tokenizer, labelled=False, truncate=True, limit=self.spec.length
            ).lengths.sum()
        )
        draft = FinetuneConfig.from_dict({"task": self.spec.to_dict(), **settings.finetune})
        draft = draft.replace(batch=draft.batch or batch_by_rows(len(train)))
        self.steps = -(-len(train) // draft.batch)
        self.config = draft.replace(epochs=self._epochs(), patience=0)
        self._answers: dict[tuple[str, int], Judged] = {}
        self._true: list[Any] = []
        self._bare: Judged | None = None
        self.contenders: list[_Contender] = []
        self.rates: dict[str, float] = {}  # by label, settled
        self.result = TaskComparison()

    def _tokenizer(self) -> Tokenizer:
        """The one of all runs: what the folder holds, or a new one."""
        default = starting.DEFAULT_WRITER_TOKENIZER if self.spec.kind == "text-to-text" else starting.DEFAULT_TOKENIZER
        wanted, folder = self.settings.tokenizer or default, self.out / "tokenizer"
        if folder.is_dir():
            return load_tokenizer(folder)
        tokenizer = build_tokenizer(wanted, starting.texts_of(self.tables["train"], self.spec), quiet=True)
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(folder)
        return tokenizer

    def _epochs(self) -> int:
        """The budget in whole epochs.

        Raises:
            BudgetError: less than one, or a budget of another kind.
        """
        text = self.settings.budget
        if not text:
            return min(MOST_EPOCHS, max(LEAST_EPOCHS, -(-WANTED_STEPS // self.steps)))
        if found := _EPOCHS.fullmatch(text):
            count = int(found[1])
        else:
            budget = parse_budget(text)
            each = {"tokens": self.tokens, "steps": self.steps}.get(budget.kind)
            if each is None:
                raise BudgetError(
                    f"'{text}': a comparison over a task takes epochs, tokens or steps, such as 5epochs or 200ktok"
                )
            count = int(budget.amount // each)
        if count < 1:
            raise BudgetError(
                f"the budget '{text}' is less than one epoch ({counted(self.tokens, 'token')}, {counted(self.steps, 'step')})"
            )
        return count

    def enter(self, names: Sequence[str], seeds: list[int], command: str) -> None:
        """Resolve who takes part, state the protocol, and open the folder.

        Raises:
            ConfigError: nobody, twice the same, a baseline that does not take part, or a folder of another sweep.
        """
        for name in names:
            for contender in self._contenders(name, seeds[0]):
                if contender.label in [other.label for other in self.contenders]:
                    raise ConfigError(f"'{contender.label}' is named twice; name every architecture once")
                self.contenders.append(contender)
        if not self.contenders:
            raise ConfigError("nothing to compare: name at least one architecture")
        labels = [contender.label for contender in self.contenders]
        chosen = self.settings.baseline or labels[0]
        if chosen not in labels:
            raise ConfigError(f"the baseline '{chosen}' does not take part; take one of {', '.join(labels)}")
        self._open()
        result = self.result
        result.created, result.command, result.environment = now(), command, environment()
        result.architectures = [contender.row for contender in self.contenders]
        result.protocol = self._protocol(chosen, seeds)
        result.runs = [TaskRun(label, seed, folder=f"runs/{slug(label)}-s{seed}") for seed in seeds for label in labels]
        result.notes = self._notes()

    def _contenders(self, name: str, seed: int) -> list[_Contender]:
        """One architecture, or those that a file registers; each is built once, so that what cannot be is told now."""
        files = [name] if name.endswith(".py") else []
        sources = [name]
        if files:
            sources = [entry.name for entry in registry.add_file(name) if set(entry.kinds) & set(registry.MODEL_KINDS)]
        found = []
        for source in sources:
            folder = starting.is_folder(source)
            try:
                begun = starting.start(
                    source, self.spec, self.tables["train"], tokenizer=None if folder else self.tokenizer,
                    size=None if folder else self._size(), seed=seed, settings={} if folder else dict(self.settings.model), quiet=True,
                )  # fmt: skip
            except OrreryError as error:
                raise type(error)(f"'{source}' cannot take part: {error}") from error
            model: Any = begun.model
            label = Path(source).expanduser().resolve().name if folder else source
            row = TaskRow(label, source, begun.pretrained, sum(p.numel() for p in model.parameters()))
            row.matched = int(model.num_parameters())
            found.append(_Contender(label, source, files, folder, row, rate_by_width(model, begun.pretrained)))
        return found

    def _size(self) -> str | None:
        return None if {"width", "depth"} & self.settings.model.keys() else self.settings.size

    def _open(self) -> None:
        """Write what all runs read, or check that the folder holds the same."""
        rows = {side: [row.values for row in table.rows] for side, table in self.tables.items()}
        identity = {
            "task": self.spec.to_dict(), "tables": config_hash(rows), "tokenizer": self.tokenizer.hash, "size": self._size(),
            "finetune": self.config.to_dict(), "model": self.settings.model, "rates": self.settings.rates,
            "wanted": self.settings.tokenizer, **({"tune": True} if self.settings.tune and "" not in self.settings.rates else {}),
        }  # fmt: skip
        file = self.out / "sweep.json"
        if file.is_file() and read_json(file) != {"format": 1, "hash": config_hash(identity)}:
            raise ConfigError(
                f"'{self.out}' holds another comparison (other data, task or settings); choose another folder"
            )
        for side, table in self.tables.items():
            path = self.out / "tables" / f"{side}.jsonl"
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(path, _lines(table))
        write_json(file, {"format": 1, "hash": config_hash(identity)})

    def _protocol(self, chosen: str, seeds: list[int]) -> TaskProtocol:
        figure = self._floor()[0].main
        primary = len(self.contenders) - 1
        margin, reason = self._margin(figure)
        size, batch = self._size(), self.config.batch
        target = LADDER[size].parameters if size else None
        equal = [
            f"parameters without embedding and head: {target:,} within 2 %" if target else "width and depth as given",
            "the same tables for all runs; the test table chooses nothing, the validation table the best epoch",
            f"one tokenizer ({self.tokenizer.name}, {self.tokenizer.vocab_size:,} ids), trained on the training texts",
            f"{self.config.epochs} epochs of {self.steps} steps of {batch} examples, none stopped early; the same order under each seed",
            f"AdamW, warm-up and cosine decay; the learning rate {self._how_rates()}",
        ]
        return TaskProtocol(
            table=self.tables["train"].name.split(" (kept)")[0],
            task=self.spec.to_dict(),
            rows={side: len(table) for side, table in self.tables.items()},
            tokenizer=self.tokenizer.name,
            vocabulary=self.tokenizer.vocab_size,
            size=size or "own",
            target_parameters=target,
            budget=self.settings.budget or "by rule",
            epochs=self.config.epochs,
            steps=self.config.epochs * self.steps,
            batch=batch,
            seeds=seeds,
            baseline=chosen,
            figure=figure,
            lower_is_better=figure in LOWER,
            margin=margin,
            margin_reason=reason,
            family=f"every other architecture against {chosen}",
            family_size=primary,
            needed_seeds=least_seeds(max(1, primary)),
            equal=equal,
        )

    def _how_rates(self) -> str:
        if "" in self.settings.rates or all(one.label in self.settings.rates for one in self.contenders):
            return "as given"
        if not self.settings.tune:
            return "by width, not swept" if not self.settings.rates else "as given, else by width, not swept"
        which = "each architecture's own" if not self.settings.rates else "as given, else each architecture's own"
        return f"{which}: powers of two around a rule by width, judged on the validation table under seed {SWEEP_SEED}"

    def _margin(self, figure: str) -> tuple[float, str]:
        if self.settings.margin is not None:
            return self.settings.margin, "given"
        if figure not in LOWER:
            return SHARE, f"{figure.replace('_', ' ')} that differs by less than {SHARE:g} should be chosen by cost"
        numbers = (
            np.array([float(read_label(row, self.spec)[0]) for row in self.tables["train"].rows])
            if self.spec.kind == "regression"
            else None
        )
        spread = float(numbers.std()) if numbers is not None else 1.0
        return (
            SPREAD * spread,
            f"{SPREAD:.0%} of the labels' standard deviation" if numbers is not None else f"{SPREAD:g} of a grade",
        )

    def _notes(self) -> list[str]:
        notes = []
        if self.kept:
            source = self.tables["train"].name.split(" (")[0]
            notes.append(
                f"no {' and no '.join(self.kept)} table was given: held out of {source}, the same rows for all"
            )
        notes += [note for table in self.tables.values() for note in table.tally.notes()]
        for one in self.contenders:
            if one.folder:
                notes.append(
                    f"{one.label} comes with its own weights, tokenizer and size ({one.row.matched:,}): not matched with the others"
                )
        n, needed = len(self.result.protocol.seeds), self.result.protocol.needed_seeds
        if n < needed and len(self.contenders) > 1:
            notes.append(f"{n} seeds can show no difference to be real; a verdict needs {needed}")
        if not self.settings.rates and not self.settings.tune:
            notes.append(
                "learning rates follow one rule of the width; none was swept, and an architecture may deserve another (--set lr.NAME=1e-3)"
            )
        return notes

    def run(self) -> TaskComparison:
        """The sweeps; all runs, seed by seed, so that whatever is finished is balanced; then the analysis."""
        result, begin = self.result, time.perf_counter()
        by_label = {one.label: one for one in self.contenders}
        swept = all(self._tune(one) for one in self.contenders)
        stopped = not swept
        for number, run in enumerate(result.runs, 1):
            if not stopped:
                self.tell(f"{run.architecture}, seed {run.seed} ({number} of {len(result.runs)})")
                stopped = self._one(run, by_label[run.architecture])
            elif (self.out / run.folder / PREDICTIONS).is_file():
                self._read(run)
        judged: dict[str, Answers] = {}
        for run in result.runs:
            if run.status == "done":
                judged.setdefault(run.architecture, {})[run.seed] = self._answers[run.architecture, run.seed]
        fill(result, judged, self._floor()[0])
        result.seconds = round(self._earlier() + time.perf_counter() - begin, 3)
        result.status = "complete" if swept and all(run.status == "done" for run in result.runs) else "partial"
        result.save(self.out)
        return result

    def _earlier(self) -> float:
        """Seconds of the calls before this one, whose runs are found again; of one that was killed nothing is known."""
        try:
            return load(self.out).seconds if (self.out / FILE).is_file() else 0.0
        except CorruptionError:
            return 0.0  # the file is written anew from the runs, which are checked

    def _one(self, run: TaskRun, contender: _Contender) -> bool:
        """One fine-tuning, unless it is finished; whether the sweep was interrupted in it."""
        folder = self.out / run.folder
        if not (folder / PREDICTIONS).is_file():
            ended = self._perform(self._job(contender, folder, run.seed, self.rates.get(contender.label, 0.0)), folder)
            if ended["status"] != "done":
                run.status, run.error = ended["status"], ended.get("error", "")
                self.tell(f"{run.architecture}, seed {run.seed}: {run.status}{': ' if run.error else ''}{run.error}")
                return run.status == "interrupted"
        self._read(run)
        return False

    def _job(self, contender: _Contender, folder: Path, seed: int, rate: float) -> dict[str, Any]:
        """A fine-tuning, as its process takes it; rate 0: by the rule."""
        return {
            "source": contender.source,
            "tables": str(self.out / "tables"),
            "out": str(folder),
            "config": self.config.replace(seed=seed, lr=rate).to_dict(),
            "size": None if contender.folder else self._size(),
            "settings": {} if contender.folder else self.settings.model,
            "tokenizer": None if contender.folder else str(self.out / "tokenizer"),
            "files": contender.files,
            "seconds": self.settings.seconds,
        }

    def _perform(self, job: dict[str, Any], folder: Path) -> dict[str, Any]:
        """How a job ended; the rest is in its folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ATTEMPT).unlink(missing_ok=True)
        return _apart(job, folder) if self.settings.isolate else attempt(job)

    def _tune(self, contender: _Contender) -> bool:
        """Settle the learning rate of one; whether it was not interrupted. What is finished is found again."""
        label, given = contender.label, self.settings.rates
        if label in given or "" in given or not self.settings.tune:
            self.rates[label] = given.get(label, given.get("", 0.0))
            return True
        sweep = TaskSweep(label)
        self.result.sweeps.append(sweep)
        errors: dict[float, float | None] = {}  # of the validation table: less is better
        start = contender.rule
        while todo := rates.next_rates(errors, start):
            for rate in todo:
                value, ended = self._sweep_value(contender, rate)
                if ended == "interrupted":
                    return False
                sweep.tried[f"{rate:g}"] = value
                errors[rate] = None if value is None else value if self.result.protocol.lower_is_better else -value
        finished = {rate: error for rate, error in errors.items() if error is not None}
        if finished:
            sweep.chosen = self.rates[label] = min(finished, key=lambda rate: finished[rate])
        else:
            self.result.notes.append(f"no run of the sweep of {label} finished; its rate is the rule's")
        return True

    def _sweep_value(self, contender: _Contender, rate: float) -> tuple[float | None, str]:
        """The main figure of one rate on the validation table, None where its run failed; and how it ended."""
        folder = self.out / "rates" / f"{slug(contender.label)}-lr{rate:g}"
        finished = folder / "result.json"
        if not (finished.is_file() and read_json(finished).get("status") == "done"):
            self.tell(f"{contender.label}, learning rate {rate:g}")
            ended = self._perform({**self._job(contender, folder, SWEEP_SEED, rate), "sweep": True}, folder)
            if ended["status"] != "done":
                why = "" if ended["status"] == "interrupted" else ended.get("error", "")  # Ctrl-C needs no reason
                self.tell(f"{contender.label}, learning rate {rate:g}: {ended['status']}: {why}".rstrip(": "))
                return None, str(ended["status"])
        record = read_json(finished)
        value = float(record["figures"]["validation"][record["main"]]["value"])
        return (value if np.isfinite(value) else None), "done"

    def _read(self, run: TaskRun) -> None:
        """A finished run's numbers, from its folder."""
        folder = self.out / run.folder
        record, stored = read_json(folder / "result.json"), read_json(folder / PREDICTIONS)
        judged = judge(self.spec, self._truth(), _arrays(stored["given"]))
        figures = finite({name: figure(judged.items) for name, figure in judged.figures.items()})[0]
        self._answers[run.architecture, run.seed] = judged
        run.status, run.value, run.figures = "done", figures[judged.main], figures
        run.best_epoch, run.learning_rate, run.seconds = record["best_epoch"], record["lr"], record["seconds"]
        run.rate = stored["examples"] / stored["seconds"] if stored["seconds"] else None
        run.memory = record["peak_memory_bytes"] if self.settings.isolate else None
        run.history = [finite(epoch["figures"][judged.main])[0] or 0.0 for epoch in record["history"]]

    def _truth(self) -> list[Any]:
        """What the test table says."""
        if not self._true:
            table = self.tables["test"]
            self._true = encode(table, self.spec, self.tokenizer, truncate=True, limit=self.spec.length).answers
        return self._true

    def _floor(self) -> tuple[Judged, Words]:
        """The bag of words on the test table; fitted once, kept in the folder."""
        if self._bare is not None and self.result.floor is not None:
            return self._bare, self.result.floor
        file = self.out / "floor.json"
        if not file.is_file():
            begin = time.perf_counter()
            name, given = fit_baseline(self.spec, self.tables["train"], self.tables["validation"], self.tables["test"])
            plain = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in given.items()}
            write_json(file, {"name": name, "given": plain, "seconds": round(time.perf_counter() - begin, 3)})
        stored = read_json(file)
        judged = judge(self.spec, self._truth(), _arrays(stored["given"]))
        measured = judged.measured(500)[judged.main]
        self._bare = judged
        self.result.floor = Words(stored["name"], measured.value, measured.low, measured.high, stored["seconds"])
        name, given = simplest(self.spec, self.tables["train"], self.tables["test"])
        plainest = judge(self.spec, self._truth(), given)
        measured = plainest.measured(500)[plainest.main]
        self.result.trivial = Words(name, measured.value, measured.low, measured.high)
        return judged, self.result.floor


def _apart(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A job in a process of its own; Ctrl-C reaches it too, and it is waited for, since it saves what it has."""
    file = folder / "job.json"
    write_json(file, job)
    process = subprocess.Popen([sys.executable, "-m", "orrery.compare.task_worker", str(file)])
    asked = False
    while process.poll() is None:
        try:
            process.wait()
        except KeyboardInterrupt:
            asked = True
    if (folder / ATTEMPT).is_file():
        found = read_json(folder / ATTEMPT)
        return {**found, "status": "interrupted"} if asked and found["status"] != "done" else dict(found)
    if asked:
        return {"status": "interrupted", "error": ""}
    code = process.returncode
    why = (
        f"its process was ended by signal {-code}, as systems do when memory runs out"
        if code < 0
        else f"its process ended with code {code}"
    )
    return {"status": "oom" if code == -9 else "failed", "error": why}


def _arrays(given: dict[str, Any]) -> dict[str, Any]:
    return {
        name: np.asarray(value) if name in ("probabilities", "predicted") else value for name, value in given.items()
    }


def _lines(table: Table) -> bytes:
    import json

    return "".join(json.dumps(row.values, ensure_ascii=False) + "\n" for row in table.rows).encode()
