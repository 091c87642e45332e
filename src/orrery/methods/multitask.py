"""Several tables and heads over one body: each batch is of one task, and all of them teach the body.

Which task a batch is of: in every epoch task i, with n_i batches of its own, comes ``p_i ~ n_i^(1/temperature)`` of the time, in a
seeded order: temperature 1 is every example once, more lets small tables come oftener. Losses are weighed as the objective
`multi-task` does: by hand, or by learnt uncertainty (1705.07115).

The epoch that is kept is the best by the mean over tasks of the main figure on validation rows (of a root mean square error: one less
its ratio to the rows' spread).

    OUT/run.json, log.jsonl, result.json   one run; result.json has every task's figures, baseline and steps
    OUT/tasks/NAME/                        for `orrery predict` and `orrery evaluate`: the body with this task's head, its card
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from orrery.core.config import Config, require
from orrery.core.errors import ConfigError, DataError, suggest
from orrery.core.files import read_json
from orrery.core.memory import keep_large_blocks
from orrery.core.seeds import numpy_generator
from orrery.data.corpora import MemoryCorpus
from orrery.data.dataset import build_tokenizer
from orrery.data.encodings import split_source
from orrery.data.examples import TaskSpec
from orrery.data.labelled import epoch_batches, guess_kind
from orrery.data.records import Table, read_table
from orrery.evaluate.tasks import LOWER
from orrery.methods import starting
from orrery.methods.epochs import Epochs
from orrery.methods.finetune import BEST, LEAST_EPOCHS, MOST_EPOCHS, WANTED_STEPS, FinetuneConfig, Job
from orrery.models.branches import Branches
from orrery.models.build import is_pair
from orrery.models.storage import save
from orrery.objectives import create_objective
from orrery.objectives.multi_task import WEIGHTINGS
from orrery.runs.folder import Run
from orrery.train.engine import Pair
from orrery.train.system import interruptible, peak_memory, threads

SIDES = ("train", "validation", "test")


@dataclass(frozen=True)
class Part:
    """A task: its tables (validation and test may be None), and what its loss counts."""

    name: str
    spec: TaskSpec
    train: Table
    validation: Table | None = None
    test: Table | None = None
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class MultitaskConfig(Config):
    """finetune: of all tasks alike (its own task means nothing). weighting, temperature: see the top of the file."""

    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    weighting: str = "fixed"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        require(self.weighting in WEIGHTINGS, f"weighting must be one of {', '.join(WEIGHTINGS)}, not '{self.weighting}'")
        require(self.temperature >= 1, f"temperature must be 1 (every example once) or more, not {self.temperature}")
        require(not self.finetune.distil, "several tasks have no teacher together; distil them one by one")


def multitask(
    source: str | Path | nn.Module, parts: Sequence[Part], out: str | Path, config: MultitaskConfig | None = None, *,
    tokenizer: Any = None, size: str | None = None, settings: dict[str, Any] | None = None, compare_baseline: bool = True,
    quiet: bool = False, command: list[str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Fine-tune one body on several tasks, or continue, or return what is finished.

    Args:
        source, tokenizer, size, settings: as :func:`orrery.methods.finetune.finetune`; a drawn body's tokenizer is trained on all tables.
        parts: two tasks or more, by different names.

    Returns:
        The result as written to `result.json`: "tasks" by name, each as fine-tuning alone gives it.

    Raises:
        OrreryError: in one sentence.
    """
    config = config or MultitaskConfig()
    keep_large_blocks()
    with threads(config.finetune.threads):
        job = _Tasks(source, list(parts), Path(out), config, tokenizer, size, settings, quiet)
        run, finished = job.open(command)
        if finished is not None:
            return finished
        with run, interruptible() as interrupt:
            best = job.fit(run, lambda: interrupt.requested)
            if best is None:
                return job.stop(run)
            return job.finish(run, best, compare_baseline)


class _Tasks(Epochs):
    """A job of several tasks, each a :class:`Job` that takes no steps of its own."""

    def __init__(
        self, source: Any, parts: list[Part], out: Path, config: MultitaskConfig, tokenizer: Any, size: str | None,
        settings: dict[str, Any] | None, quiet: bool,
    ) -> None:  # fmt: skip
        names = [part.name for part in parts]
        require(len(parts) > 1 and len(set(names)) == len(names), "several tasks need two or more, each with a name of its own")
        for name in names:
            require(bool(name) and all(c.isalnum() or c in "-_" for c in name), f"a task's name is letters, digits, - and _, not '{name}'")
        writes = [part.spec.kind == "text-to-text" for part in parts]
        require(all(writes) or not any(writes), "text-to-text tasks go together with others of their kind only")
        self.out, self.settings, self.config, self.quiet = out, config, config.finetune, quiet
        if not isinstance(source, nn.Module) and not starting.is_folder(source) and not starting.reads(str(source)):
            tokenizer = _tokenizer(tokenizer, parts, quiet)
        if not any(writes) and not all(part.spec.head in starting.WHOLE for part in parts):
            settings = {"frame": "encoder", **(settings or {})}  # one body serves all
        drawn = not isinstance(source, nn.Module) and not starting.is_folder(source)
        whole = drawn and is_pair(str(source)) and (settings or {}).get("frame") != "encoder"
        if any(part.spec.pair or part.spec.choices for part in parts) and drawn and not whole:
            settings = {"embedding.types": 2, **(settings or {})}
        self.jobs: dict[str, Job] = {}
        for part in parts:
            own = self.config.replace(task=part.spec.to_dict())
            first = next(iter(self.jobs.values()), None)
            begin = (source, tokenizer, settings) if first is None else (first.model, first.source.tokenizer, _head_only(settings))
            tables = (part.validation, part.test)
            self.jobs[part.name] = Job(begin[0], part.train, out / "tasks" / part.name, own, *tables, begin[1], size, begin[2], True)
        lead = next(iter(self.jobs.values()))
        self.name = f"finetune {lead.source.name} on {', '.join(names)}"
        self.model = Branches({name: job.model for name, job in self.jobs.items()}).to(lead.device)
        self.lr = lead.lr
        self.own_steps = {name: job.steps_per_epoch for name, job in self.jobs.items()}
        self.steps_per_epoch = sum(self.own_steps.values())
        self.shares = shares(list(self.own_steps.values()), config.temperature)
        wanted = -(-WANTED_STEPS // self.steps_per_epoch)
        self.epochs = self.config.epochs or min(MOST_EPOCHS, max(LEAST_EPOCHS, wanted))
        spec = {
            part.name: {
                "objective": "text-to-text" if writes[0] else "labelled",
                "settings": {} if writes[0] else {"weights": list(self.jobs[part.name].weights)},
                "weight": float(part.weight),
                "squared": part.spec.kind == "regression",
            }
            for part in parts
        }
        self.pair = Pair(self.model, create_objective("multi-task", parts=spec, weighting=config.weighting))
        self.history, self.seconds = [], 0.0

    def identity(self) -> dict[str, Any]:
        found = {name: job.identity() for name, job in self.jobs.items()}
        weights = {name: part["weight"] for name, part in self._objective().config.parts.items()}
        return {"multitask": self.settings.to_dict(), "tasks": found, "weights": weights, "epochs": self.epochs, "lr": self.lr}

    def facts(self) -> dict[str, Any]:
        return {name: job.facts() for name, job in self.jobs.items()}

    def _objective(self) -> Any:
        return self.pair.objective

    def batches(self, epoch: int) -> list[Any]:
        """(task, numbers of examples), every task as often as its share says, each going on in its own order."""
        turns = np.repeat(np.arange(len(self.shares)), self.shares)
        turns = turns[numpy_generator(self.config.seed, "tasks", epoch).permutation(len(turns))]
        names, held = list(self.jobs), {}
        place = {name: epoch * share for name, share in zip(names, self.shares, strict=True)}
        found = []
        for turn in turns:
            name = names[turn]
            own, number = divmod(place[name], self.own_steps[name])
            if (name, own) not in held:
                lengths = self.jobs[name].examples["train"].lengths
                held[name, own] = epoch_batches(lengths, self.jobs[name].config.batch, self.config.seed, own)
            found.append((name, held[name, own][number]))
            place[name] += 1
        return found

    def batch(self, what: Any) -> dict[str, Any]:
        name, index = what
        return {"part": name, **self.jobs[name].batch(index)}

    def validate(self, run: Run, epoch: int) -> None:
        values = {}
        for name, job in self.jobs.items():
            figures = job.judged(epoch)
            main, value = next(iter(figures.items()))
            values[name] = comparable(main, value, job)
            run.log("validation", epoch=epoch + 1, task=name, **figures)
        mean = float(np.mean(list(values.values())))
        self.history.append({"epoch": epoch + 1, "value": mean, "figures": values})
        better = self.gained()
        if better:
            for job in self.jobs.values():
                save(job.model, job.out / BEST)
        if not self.quiet:
            shown = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
            print(f"epoch {epoch + 1}: {shown}; mean {mean:.4f}{'  (best so far)' if better else ''}")

    def finish(self, run: Run, best: dict[str, Any], compare_baseline: bool) -> dict[str, Any]:
        """Judge every task with the best epoch's weights, and write a folder for each."""
        logs = getattr(self._objective(), "logs", {})
        learnt = {name: float(value.detach().exp()) ** -1 for name, value in logs.items()}
        tasks = {}
        for (name, job), share in zip(self.jobs.items(), self.shares, strict=True):
            job.epochs, job.seconds = self.epochs, self.seconds
            if not job.history:  # judged before this process went on
                job.history = [{"epoch": item["epoch"], "value": item["figures"][name], "figures": {}} for item in self.history]
            card = {**run.record, "command": run.record["command"]}
            tasks[name] = job.conclude(card, best, compare_baseline) | {"steps": share * len(self.history)}
        result: dict[str, Any] = {
            "status": "done",
            "source": next(iter(self.jobs.values())).source.name,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "epochs": len(self.history),
            "best_epoch": best["epoch"],
            "history": self.history,
            "lr": self.lr,
            "weighting": self.settings.weighting,
            "learnt_weights": learnt,
            "seconds": round(self.seconds, 3),
            "peak_memory_bytes": peak_memory(next(iter(self.jobs.values())).device),
            "tasks": tasks,
        }
        run.finish(result)
        return result


def shares(steps: Sequence[int], temperature: float) -> list[int]:
    """How many of an epoch's steps each task has, in the sum those that it has by itself: ``~ n_i^(1/temperature)``, at least one."""
    wanted = np.array(steps, dtype=float) ** (1 / temperature)
    wanted *= sum(steps) / wanted.sum()
    found = np.maximum(1, np.floor(wanted)).astype(int)
    order = np.argsort(found - wanted, kind="stable")
    for index in range(sum(steps) - int(found.sum())):
        found[order[index % len(order)]] += 1
    return [int(each) for each in found]


def comparable(figure: str, value: float, job: Job) -> float:
    """A main figure on the scale of shares: higher is better, 1 is perfect."""
    if figure not in LOWER:
        return value
    answers = job.examples["validation"].answers
    names = {name: number for number, name in enumerate(job.fitted.spec.names)}
    spread = float(np.std([names.get(each, 0) if names else each for each in answers]))
    return 1 - value / (spread or 1.0)


def read_tasks(file: str | Path, strict: bool = False, header: bool = True, encoding: str = "") -> tuple[list[Part], dict[str, Any]]:
    """Tasks from a JSON file, and what else it says ("weighting", "temperature").

    {"weighting": "uncertainty", "tasks": {"stars": {"train": "reviews.csv", "text": "review", "label": "stars", "weight": 2}, ...}};
    paths are relative to the file. Keys of a task: train, validation, test, encoding (of these), weight, task (the kind), and those of
    `TaskSpec`. encoding: of the tables of tasks that say none.

    Raises:
        DataError: it is no such file. ConfigError: a key that is none.
    """
    path = Path(file).expanduser()
    content = read_json(path)
    tasks = content.get("tasks") if isinstance(content, dict) else None
    if not isinstance(tasks, dict) or not all(isinstance(task, dict) and "train" in task for task in tasks.values()):
        raise DataError(f'\'{path}\' names no tasks; it must read {{"tasks": {{"NAME": {{"train": "FILE.csv", "label": "COLUMN"}}, ...}}}}')
    rest = {key: value for key, value in content.items() if key != "tasks"}
    known = ("tasks", "weighting", "temperature", *(each.name for each in fields(FinetuneConfig) if each.name != "task"))
    for key in rest:
        if key.partition(".")[0] not in known:
            raise ConfigError(f"'{path}': there is no '{key}'.{suggest(key, known)} Beside \"tasks\" it may say {', '.join(known[1:])}")
    parts = []
    for name, task in tasks.items():
        given = dict(task)
        for side in SIDES:
            if not isinstance(given.get(side) or "", str):
                raise DataError(f"'{path}': the {side} table of '{name}' is a file, not {given[side]!r}")
        how: dict[str, Any] = {"strict": strict, "header": header, "encoding": str(given.pop("encoding", encoding))}
        tables = {side: read_table(_beside(path, given.pop(side)), **how) for side in SIDES if given.get(side)}
        weight, kind = given.pop("weight", 1.0), given.pop("task", None)
        if not isinstance(weight, int | float) or isinstance(weight, bool) or weight < 0:
            raise ConfigError(f"the weight of '{name}' must be a number from 0 on, not {weight!r}")
        label = str(given.get("label", "label"))
        tables["train"].check(label)
        spec = TaskSpec.from_dict({"kind": kind or guess_kind(tables["train"], label), **given}, where=f"{path.name}: {name}")
        parts.append(Part(name, spec, tables["train"], tables.get("validation"), tables.get("test"), float(weight)))
    return parts, rest


def _beside(file: Path, table: str) -> str:
    """A table's place, relative to the file that names it; sources that are no plain path (behind an encoding) stay as they are."""
    encoding, own = split_source(table)
    place = str(file.parent / own) if (file.parent / own).is_file() else own
    return f"{encoding}:{place}" if encoding else place


def _tokenizer(spec: Any, parts: Sequence[Part], quiet: bool) -> Any:
    """A tokenizer of all tables' texts."""
    if spec is not None and not isinstance(spec, str):
        return spec
    default = starting.DEFAULT_WRITER_TOKENIZER if parts[0].spec.kind == "text-to-text" else starting.DEFAULT_TOKENIZER
    texts = [text for part in parts for text in starting.texts_of(part.train, part.spec).texts.values()]
    return build_tokenizer(spec or default, MemoryCorpus(texts, name="texts of all tasks"), quiet)


def _head_only(settings: dict[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (settings or {}).items() if key.startswith("head.") or key == "frame"}

