"""Fine-tuning: a table of examples and a model become a model that answers, with figures, a baseline and a card.

Epochs go over the examples in seeded batches of like lengths; after each the validation table is judged, and the weights
that did best are kept. Training ends when `patience` epochs have brought nothing. Everything that decides the next step is
in the folder after every epoch, so the same command continues a killed run, and an uninterrupted run gives the same weights.

    OUT/run.json, log.jsonl, result.json   as of any run (`orrery runs`)
    OUT/weights/, task.json, words/        what `orrery predict` and `orrery evaluate` take
    OUT/MODEL_CARD.md                      what it is, for people

Learning rate, unless it is given: `5e-5 (768 / width)^1.5` from a pre-trained model, `1e-3 * 128 / width` from drawn weights,
at most 1e-3 and 2e-3: the usual 5e-5 of a 768-wide BERT, and what was found best of 4e-4 to 4e-3 for a pre-trained encoder 96 wide.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from orrery.core.config import Config, config_hash, require
from orrery.core.errors import DataError
from orrery.core.files import write_json, write_text
from orrery.core.memory import keep_large_blocks
from orrery.core.progress import counted
from orrery.data.answering import WINDOW
from orrery.data.examples import Examples, TaskSpec
from orrery.data.labelled import class_weights, collate, epoch_batches, imbalance, learn_names, read_label, split_table
from orrery.data.records import Table
from orrery.evaluate.predictions import paired_interval
from orrery.evaluate.spans import broken
from orrery.evaluate.tasks import LOWER, Judged, judge
from orrery.methods import starting
from orrery.methods.baselines import Linear, baseline, fit_linear
from orrery.methods.distil import distil_start
from orrery.methods.epochs import Epochs
from orrery.methods.fitted import TASK, Fitted, position_limit
from orrery.methods.lessons import check_task, task_teacher
from orrery.methods.model_card import write_card
from orrery.methods.words import fit_words
from orrery.models.encoder import Encoder
from orrery.models.storage import describe, read_weights, save
from orrery.objectives import create_objective
from orrery.runs.folder import Run
from orrery.train.engine import Pair
from orrery.train.system import interruptible, peak_memory, pick_device, threads

MOST_EPOCHS, LEAST_EPOCHS, WANTED_STEPS = 30, 3, 1500
UNBALANCED = 4.0  # classes so many times more frequent than others are worth a word
LONGEST = 8192  # tokens of an example, for models that set no limit
BEST = "best"


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(Config):
    """How a task is learnt.

    epochs: at most; 0: as many as make 1,500 steps, 3 to 30. batch: examples of a step; 0: 32, fewer of a small table.
    lr: peak rate; 0: by the rule of this file. warmup: share of the steps. patience: epochs without gain before it ends; 0:
    never. held_out: share of the rows that is validated on when
    no table is given for that. balance: classes weigh alike, however frequent. truncate, repair: cut what is too long, read
    tag sequences that break their scheme as the CoNLL scorer does; both are counted, and refused by default. distil: settings of
    the objective `distilled-labels`, where a `teacher`, a folder of this kind, is among them.
    """

    task: TaskSpec = field(default_factory=TaskSpec)
    epochs: int = 0
    batch: int = 0
    lr: float = 0.0
    warmup: float = 0.1
    decay: float = 0.01
    patience: int = 4
    held_out: float = 0.1
    balance: bool = False
    truncate: bool = False
    repair: bool = False
    seed: int = 0
    threads: int = 0
    distil: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(not self.distil or bool(self.distil.get("teacher")), "distil needs a teacher: the folder of a fine-tuned model")
        require(self.epochs >= 0 and self.patience >= 0, "epochs and patience must be 0 or more")
        require(self.batch >= 0, f"batch must be 1 or more (or 0 for the rule), not {self.batch}")
        require(self.lr >= 0, f"lr must be above 0 (or 0 for the rule), not {self.lr}")
        require(0 <= self.warmup < 1, f"warmup must lie in [0, 1), not {self.warmup}")
        require(0 < self.held_out < 1, f"held_out must lie between 0 and 1, not {self.held_out}")


def finetune(
    source: str | Path | nn.Module,
    train: Table,
    out: str | Path,
    config: FinetuneConfig | None = None,
    *,
    validation: Table | None = None,
    test: Table | None = None,
    tokenizer: Any = None,
    size: str | None = None,
    settings: dict[str, Any] | None = None,
    compare_baseline: bool = True,
    quiet: bool = False,
    command: list[str] | None = None,
) -> dict[str, Any]:
    """Fine-tune, or continue, or return what is finished.

    Args:
        source, tokenizer, size, settings: see :func:`orrery.methods.starting.start`.
        train, validation, test: tables; without validation a share of the training table is held out.
        out: folder of the run.
        compare_baseline: fit the baseline of :mod:`orrery.methods.baselines` too.

    Returns:
        The result as written to `result.json`.

    Raises:
        OrreryError: in one sentence.
    """
    config = config or FinetuneConfig()
    keep_large_blocks()
    with threads(config.threads):
        job = Job(source, train, Path(out), config, validation, test, tokenizer, size, settings, quiet)
        run, finished = job.open(command)
        if finished is not None:
            return finished
        with run, interruptible() as interrupt:
            best = job.fit(run, lambda: interrupt.requested)
            if best is None:
                return job.stop(run)
            return job.finish(run, best, compare_baseline)


def rate_by_width(model: nn.Module, pretrained: bool) -> float:
    """The learning rate where none is given; see the top of the file."""
    width = int(getattr(model.config, "width", 768))
    return min(1e-3, 5e-5 * (768 / width) ** 1.5) if pretrained else min(2e-3, 1e-3 * 128 / width)


def batch_by_rows(rows: int) -> int:
    """Examples of a step where none are given: 32, in a small table fewer, so that its epoch has forty steps, but 8 at least."""
    return min(32, max(8, rows // 40))


def check_tags(spec: TaskSpec, tables: dict[str, Table], repair: bool) -> str:
    """Refuse tag sequences that break their scheme, or with `repair` say how many there are; "" for none.

    Args:
        tables: by side, "train" among them.

    Raises:
        DataError: naming the first.
    """
    if spec.kind != "tagging":
        return ""
    scheme = starting.scheme(spec, tables["train"])
    count, first = 0, ""
    for table in tables.values():
        for row in table.rows:
            place = broken(read_label(row, spec), scheme)
            if place is not None:
                count, first = count + 1, first or f"{row.where}, word {place + 1}"
    if count and not repair:
        raise DataError(
            f"{first}: the tag breaks the scheme {scheme} ({counted(count, 'such row')}); mend them, or read them as the CoNLL "
            "scorer does with --repair (in a comparison --set repair=true)"
        )
    return f"{counted(count, 'row')} with tags that break the scheme {scheme}, read as the CoNLL scorer reads them" if count else ""


class Job(Epochs):
    """One fine-tuning, from tables to result."""

    def __init__(
        self, source: Any, train: Table, out: Path, config: FinetuneConfig, validation: Table | None, test: Table | None,
        tokenizer: Any, size: str | None, settings: dict[str, Any] | None, quiet: bool,
    ) -> None:  # fmt: skip
        self.out, self.config, self.quiet = out, config, quiet
        self.teacher: tuple[Fitted, str] | None = None
        self.linear: Linear | None = None
        if config.distil:
            self.teacher = task_teacher(config.distil["teacher"], out)
        spec = learn_names(train, config.task)
        self.notes: list[str] = []
        if validation is None:
            train, validation = split_table(train, config.held_out, config.seed, spec)
        self.config = config = config.replace(batch=config.batch or batch_by_rows(len(train)))
        self.tables = {"train": train, "validation": validation} | ({"test": test} if test is not None else {})
        if note := check_tags(spec, self.tables, config.repair):
            self.notes.append(note)
        self.source = self._start(source, spec, train, tokenizer, size, settings)
        has_own = self.source.tokenizer.frame is not None
        spec = spec.replace(own=has_own if self.teacher is None else self.teacher[0].spec.own)  # both read the same ids
        self.device = pick_device("auto")
        self.model = self.source.model.to(self.device)
        self.fitted = Fitted(self.model, self.source.tokenizer, spec, encoding=train.tally.encoding)
        self.examples = self._encode(spec)
        self.weights = self._weights()
        self.steps_per_epoch = -(-len(self.examples["train"]) // config.batch)
        wanted = -(-WANTED_STEPS // self.steps_per_epoch)
        self.epochs = config.epochs or min(MOST_EPOCHS, max(LEAST_EPOCHS, wanted))
        self.lr = config.lr or rate_by_width(self.model, self.source.pretrained)
        self.pair = Pair(self.model, self._objective())
        self.name = f"finetune {self.source.name}"
        self.history: list[dict[str, Any]] = []
        self.seconds = 0.0

    def _start(
        self, source: Any, spec: TaskSpec, train: Table, tokenizer: Any, size: str | None, settings: dict[str, Any] | None
    ) -> starting.Source:
        """The model; one with a teacher reads what the teacher reads, and a `distilbert` begins with the teacher's layers."""
        if self.teacher is not None:
            master = self.teacher[0]
            check_task(master, spec)
            if source == "distilbert" and isinstance(master.model, Encoder) and tokenizer is None:
                return starting.Source("distilbert", distil_start(master.model), master.tokenizer, True)
            if not isinstance(source, nn.Module) and not starting.is_folder(source):
                tokenizer = tokenizer or master.tokenizer
        found = starting.start(
            source, spec, train, tokenizer=tokenizer, size=size, seed=self.config.seed, settings=settings, quiet=self.quiet
        )
        if self.teacher is not None and found.tokenizer.hash != self.teacher[0].tokenizer.hash:
            raise DataError(f"'{found.name}' has another tokenizer than its teacher; a student must read the same ids")
        return found

    def _encode(self, spec: TaskSpec) -> dict[str, Examples]:
        """All tables' examples. The length becomes what the model reads; that of the longest where it knows no more: its learned
        positions are drawn, or a longer text comes in windows."""
        limit = spec.length or position_limit(self.model) or LONGEST
        if spec.kind == "question-answering" and not spec.length:
            limit = min(limit, WINDOW)  # longer texts come in windows
        draft = Fitted(self.model, self.source.tokenizer, spec.replace(length=limit))
        examples = {side: draft.encode(table, truncate=self.config.truncate) for side, table in self.tables.items()}
        longest = max(int(e.lengths.max()) for e in examples.values())
        answer = (
            max((len(t) for e in examples.values() for t in e.targets or ()), default=0)
            if spec.kind == "text-to-text"
            else 0
        )
        drawn = position_limit(self.model) and not self.source.pretrained
        if not spec.length and (drawn or spec.kind == "question-answering"):
            limit = min(limit, longest)
        self.fitted.spec = spec.replace(length=limit, answer=spec.answer or answer)
        for e in examples.values():
            e.spec = self.fitted.spec
        if cut := sum(e.cut for e in examples.values()):
            self.notes.append(f"{cut} {'row was' if cut == 1 else 'rows were'} cut to {draft.spec.length} tokens")
        for table in self.tables.values():
            self.notes += table.tally.notes()
        if spec.kind == "regression":
            values = np.array(examples["train"].targets, dtype=float)
            self.fitted.shift, self.fitted.scale = float(values.mean()), float(values.std()) or 1.0
            if spec.apart:  # a cosine
                self.fitted.shift, self.fitted.scale = float(values.min()), float(np.ptp(values)) or 1.0
            if self.teacher is not None:  # whose outputs are in units of its own
                self.fitted.shift, self.fitted.scale = self.teacher[0].shift, self.teacher[0].scale
        return examples

    def _weights(self) -> list[float]:
        spec, targets = self.fitted.spec, self.examples["train"].targets
        if spec.kind not in ("classification", "ordinal") or targets is None:
            return []
        ratio = imbalance(targets, len(spec.names))
        if ratio >= UNBALANCED and not self.config.balance:
            self.notes.append(
                f"the largest class is {ratio:.0f} times the smallest; --balance lets classes weigh alike"
            )
        return class_weights(targets, len(spec.names)) if self.config.balance else []

    def _objective(self) -> Any:
        if self.fitted.spec.kind == "text-to-text":
            return create_objective("text-to-text")
        if self.teacher is not None:
            terms = {key: value for key, value in self.config.distil.items() if key != "teacher"}
            objective: Any = create_objective("distilled-labels", task={"weights": tuple(self.weights)}, **terms)
            objective.teach(self.teacher[0].model)
            return objective
        return create_objective("labelled", weights=tuple(self.weights))

    def batch(self, index: np.ndarray) -> dict[str, Any]:
        """A training batch; numbers are standardised."""
        batch = collate(self.examples["train"], index)
        if self.fitted.spec.kind == "regression":
            batch["targets"] = (batch["targets"] - self.fitted.shift) / self.fitted.scale
        return batch

    def identity(self) -> dict[str, Any]:
        """What makes this job this job: resuming needs all of it to be equal."""
        data = {
            side: config_hash([[ids.tolist() for ids in e.ids], _plain(e.targets)]) for side, e in self.examples.items()
        }
        return {
            "finetune": self.config.to_dict(),
            "source": self.source.name,
            "model": describe(self.model),
            "tokenizer": self.source.tokenizer.hash,
            "data": data,
            "epochs": self.epochs,
            "lr": self.lr,
            **({} if self.teacher is None else {"teacher_hash": self.teacher[1]}),
        }

    def facts(self) -> dict[str, Any]:
        """Rows and encoding of each table, and what a reader should know of them."""
        tables = self.tables.items()
        encodings = {side: table.tally.encoding for side, table in tables}
        return {"rows": {side: len(table) for side, table in tables}, "encodings": encodings, "notes": self.notes}

    def batches(self, epoch: int) -> list[Any]:
        """Numbers of examples, batch by batch."""
        return list(epoch_batches(self.examples["train"].lengths, self.config.batch, self.config.seed, epoch))

    def validate(self, run: Run, epoch: int) -> None:
        """Judge the validation table; the best weights so far are kept."""
        figures = self.judged(epoch)
        run.log("validation", epoch=epoch + 1, **figures)
        better = self.gained()
        if better:
            save(self.model, self.out / BEST)
        if not self.quiet:
            shown = ", ".join(f"{name} {value:.4f}" for name, value in list(figures.items())[:3])
            print(f"epoch {epoch + 1}: {shown}{'  (best so far)' if better else ''}")

    def judged(self, epoch: int) -> dict[str, float]:
        """Figures of the validation table, added to the history."""
        judged = self.fitted.judge(self.examples["validation"])
        figures = {name: figure(judged.items) for name, figure in judged.figures.items()}
        self.history.append({"epoch": epoch + 1, "value": judged.value, "figures": figures})
        return figures

    def finish(self, run: Run, best: dict[str, Any], compare_baseline: bool) -> dict[str, Any]:
        """Judge the best weights, fit the baseline, and write model, result and card."""
        result = self.conclude(run.record, best, compare_baseline)
        run.finish(result)
        return result

    def conclude(self, record: dict[str, Any], best: dict[str, Any], compare_baseline: bool) -> dict[str, Any]:
        """The same without the run's own result."""
        read_weights(self.model, self.out / BEST / "model.safetensors")
        mixed = self._add_words() if self.fitted.spec.words else {}
        judged = {side: self.fitted.judge(self.examples[side], self.quiet) for side in self.tables if side != "train"}
        sides = {side: _figures(item) for side, item in judged.items()}
        result: dict[str, Any] = {
            "status": "done",
            "task": self.fitted.spec.to_dict(),
            "source": self.source.name,
            "pretrained": self.source.pretrained,
            **({} if self.teacher is None else {"teacher": self._teacher_figures()}),
            **mixed,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "rows": {side: len(table) for side, table in self.tables.items()},
            "epochs": len(self.history),
            "best_epoch": best["epoch"],
            "lr": self.lr,
            "seconds": round(self.seconds, 3),
            "peak_memory_bytes": peak_memory(self.device),
            "history": self.history,
            "figures": sides,
            "main": next(iter(judged.values())).main,
            "notes": [*self.notes, *(note for item in judged.values() for note in item.notes)],
        }
        if compare_baseline:
            result["baseline"] = self._baseline(judged)
        self._write(result)
        shutil.rmtree(self.out / BEST, ignore_errors=True)
        write_text(self.out / "MODEL_CARD.md", write_card(result, record, self.fitted, judged, self.tables))
        return result

    def _add_words(self) -> dict[str, Any]:
        """Let a bag of words answer beside the network from here on; what the network alone reaches on the last table."""
        alone = {side: self.fitted.outputs(self.examples[side], self.quiet) for side in self.tables if side != "train"}
        spec, side = self.fitted.spec, list(alone)[-1]
        self.linear = fit_linear(spec, self.tables["train"], self.tables["validation"])
        words = self.fitted.words = fit_words(self.linear, alone["validation"], self.tables["validation"])
        figures = _figures(judge(spec, self.examples[side].answers, alone[side]))
        return {"words": {"share": words.share, "features": len(self.linear.bag.names), "table": side, "network": figures}}

    def _teacher_figures(self) -> dict[str, Any]:
        """What the student learnt from: its folder, weights, size, and its figures on the last table."""
        assert self.teacher is not None
        master, found = self.teacher
        side = list(self.tables)[-1]
        size = sum(p.numel() for p in master.model.parameters())
        examples = master.encode(self.tables[side], truncate=self.config.truncate)
        figures = _figures(master.judge(examples, self.quiet))
        return {"folder": str(self.config.distil["teacher"]), "weights": found, "parameters": size, "table": side, "figures": figures}

    def _baseline(self, judged: dict[str, Judged]) -> dict[str, Any]:
        """The baseline on the last table, and the paired difference on its items."""
        side = list(judged)[-1]
        own = judged[side]
        spec, tables = self.fitted.spec, (self.tables["train"], self.tables["validation"], self.tables[side])
        name, given = baseline(spec, *tables, self.linear)
        other = judge(self.fitted.spec, self.examples[side].answers, given)
        figure = own.figures[own.main]
        difference = paired_interval(figure, own.items, other.items)
        return {
            "name": name,
            "table": side,
            "figures": _figures(other),
            "difference": {
                "figure": own.main,
                "value": difference.estimate,
                "low": difference.low,
                "high": difference.high,
            },
            "beaten": bool(difference.high < 0 if own.main in LOWER else difference.low > 0),
        }

    def _write(self, result: dict[str, Any]) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            self.source.tokenizer.save(scratch)
            files = {f"tokenizer/{file.name}": file.read_bytes() for file in sorted(Path(scratch).iterdir())}
        save(self.model, self.out / "weights", files)
        if self.fitted.words is not None:
            self.fitted.words.save(self.out)
        write_json(self.out / TASK, self.fitted.record())


def _figures(judged: Judged) -> dict[str, Any]:
    found: dict[str, Any] = {name: value.to_dict() for name, value in judged.measured().items()}
    return found


def _plain(targets: list[Any] | None) -> list[Any]:
    return [t.tolist() if isinstance(t, np.ndarray) else t for t in targets or []]

