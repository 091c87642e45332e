"""`train`: a configuration and a folder to a trained model, resumed where it was left.

    result = train(TrainConfig(model=ModelSpec(name="mamba2", size="nano"), budget="2Mtok"), "runs/mamba2")

The same call, or the same command, continues an interrupted run from its newest whole checkpoint; on a CPU at equal
threads the weights are bit for bit those of a run that was never interrupted. A finished run is returned as it is.
"""

from __future__ import annotations

import copy
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from orrery.core import registry
from orrery.core.config import config_hash
from orrery.core.errors import BudgetError, ConfigError, NonFiniteError
from orrery.core.files import atomic_directory, write_text
from orrery.core.memory import keep_large_blocks
from orrery.core.progress import Progress, progress
from orrery.core.seeds import seed_everything
from orrery.data import Dataset, Loader, StreamLoader, Tokenizer, prepare, validation_windows
from orrery.data.marks import frame_ids
from orrery.evaluate.carried import carried_bits_per_byte
from orrery.evaluate.held_out import held_out_loss
from orrery.evaluate.language import bits_per_byte
from orrery.models.build import create_model, is_pair
from orrery.models.carry import check_streams
from orrery.models.storage import describe, save, stored_tensors, write_tensors
from orrery.objectives import create_objective
from orrery.optim.schedule import create_schedule, make_plan
from orrery.runs import Run
from orrery.train.budget import parse_budget, training_flops
from orrery.train.checkpoint import Checkpoints
from orrery.train.config import ModelSpec, ObjectiveSpec, TrainConfig
from orrery.train.engine import Engine, Pair, Step
from orrery.train.meters import WARMUP, Meters
from orrery.train.system import (
    Interrupt,
    autocast,
    compile_blocks,
    interruptible,
    peak_memory,
    pick_device,
    recompute_blocks,
    seat,
    threads,
)

Observer = Callable[[str, dict[str, Any]], None]
Parallel = Callable[[nn.Module], nn.Module]

LOG_LINES = 1000  # about as many lines of the learning curve as a run writes
_CALIBRATION = (WARMUP, 5, 2.0)  # steps not timed, steps timed at least, seconds timed at least
_VALIDATED = ("bits_per_byte", "nats", "bytes", "loss", "targets", "tokens", "parts")  # of a validation, in the log
_SAVE_SHARE, _SAVE_LEAST, _SAVE_MOST = 0.01, 15.0, 600.0  # chosen interval: cost at most 1 %, between 15 s and 10 min


def train(
    config: TrainConfig | dict[str, Any],
    out: str | Path,
    observer: Observer | None = None,
    model: nn.Module | None = None,
    *,
    data: Dataset | None = None,
    parallel: Parallel | None = None,
    quiet: bool = False,
    command: list[str] | None = None,
) -> dict[str, Any]:
    """Train, or continue, or return what is finished.

    Args:
        config: the run; a dict is read as :class:`TrainConfig`.
        out: the run's folder (see :mod:`orrery.runs.folder`); final weights lie under `weights/`.
        observer: called as observer(event, fields) for every line of the log: start, resume, step, validation,
            checkpoint, end.
        model: trained in place of the one that config.model describes (a wrapped module); must be built alike again
            to resume.
        data: prepared data in place of config.data's corpus.
        parallel: wraps the module of model and objective before the optimizer sees it (DDP, FSDP).
        quiet: no progress.
        command: recorded as the way to repeat the run; default: this process's command line.

    Returns:
        "status" ("done" or "interrupted"), "steps", "tokens", "loss", "bits_per_byte", "validation", "seconds",
        "tokens_per_second", "flops", "flops_per_second", "peak_memory_bytes", "parameters" (without embedding and
        head), "parameters_total", ...

    Raises:
        OrreryError: in one sentence: the folder holds another run, a damaged checkpoint, a budget too small, a loss
            that is not finite, a full disk.
    """
    if isinstance(config, dict):
        config = TrainConfig.from_dict(config)
    folder = Path(out)
    finished = _finished(folder, config)
    if finished is not None:
        return finished
    keep_large_blocks()
    with threads(config.system.threads):
        work = _Work(config, model, data, parallel, quiet)
        with _open(folder, config, work, command, quiet) as run, interruptible() as interrupt:
            return _Loop(run, work, observer, interrupt, quiet).go()


class _Work:
    """Everything a run is made of, built from its configuration; nothing here is written to disk."""

    def __init__(
        self, config: TrainConfig, model: nn.Module | None, data: Dataset | None, parallel: Parallel | None, quiet: bool
    ) -> None:
        self.config, self.given = config, model
        self.data = data or prepare(config.data.corpus, config.data.tokenizer, config.data.strict, quiet=quiet)
        self.device = pick_device(config.system.device)
        spec = config.model
        self.model: Any = model or create_model(
            spec.name,
            spec.size,
            vocab_size=self.data.tokenizer.vocab_size,
            width=spec.width,
            depth=spec.depth,
            seed=config.seed,
            **{**_ends(spec, self.data.tokenizer), **spec.settings},
        )
        vocabulary = getattr(self.model, "vocab_size", self.data.tokenizer.vocab_size)
        if vocabulary < self.data.tokenizer.vocab_size:
            raise ConfigError(
                f"the model knows {vocabulary} tokens, the tokenizer makes {self.data.tokenizer.vocab_size}"
            )
        rank, world = seat()
        if config.data.stream:
            check_streams(self.model)
            if world > 1:
                raise ConfigError("data.stream keeps its state in one process; use one, or data.stream=false")
        loader = StreamLoader if config.data.stream else Loader
        self.loader = loader(self.data.train, config.data.batch, config.data.length, config.seed, rank, world)
        self.model.to(self.device)
        objective = create_objective(config.objective.name, **config.objective.settings)
        self.predicts = _predicts(config.objective)
        self.pair: Pair = Pair(self.model, objective, self.data.tokenizer).to(self.device)
        self.fingerprint = config_hash([config, _shapes(self.pair), self.data.hash])
        self.parallel = parallel
        flops = getattr(self.model, "flops", None)
        self.flops_per_step = (
            None if flops is None else float(training_flops(flops(config.data.length)) * config.data.batch)
        )

    def optimizer(self, pair: nn.Module) -> torch.optim.Optimizer:
        """A fresh optimizer over a module."""
        spec = self.config.optim
        cls = registry.load(spec.name, "optimizer")
        built: torch.optim.Optimizer = cls(pair, spec.lr, cls.Config.from_dict(spec.settings, where="optim.settings"))
        return built

    def engine(self, pair: nn.Module, steps: int) -> Engine:
        """What takes the steps of a run of `steps`."""
        spec = self.config.optim
        shape = create_schedule(spec.schedule, make_plan(steps, spec.warmup, spec.decay, spec.floor))
        system = self.config.system
        return Engine(
            pair,
            self.optimizer(pair),
            lambda step: spec.lr * shape(step),
            spec.clip,
            system.accumulate,
            lambda: autocast(self.device, system.dtype),
            self.config.data.stream,
            self.config.data.span,
        )

    def steps(self, quiet: bool) -> dict[str, Any]:
        """The number of steps that the budget buys; for a budget of time by measuring, on a copy that is thrown away."""
        budget = parse_budget(self.config.budget)
        seconds = self.calibrate(quiet) if budget.kind == "time" else None
        if budget.kind == "flops" and self.flops_per_step is None:
            raise BudgetError(
                f"the budget '{budget.text}' needs a model that knows its operations; give tokens or time"
            )
        steps = budget.steps(self.config.tokens_per_step, self.flops_per_step, seconds)
        return {"steps": steps, "seconds_per_step": seconds}

    def calibrate(self, quiet: bool) -> float:
        """Median seconds of a step on this machine now."""
        untimed, least, enough = _CALIBRATION
        pair = copy.deepcopy(self.pair)
        if self.config.system.recompute:
            recompute_blocks(pair.model)
        compile_blocks(pair.model, self.config.system.compile)
        engine = self.engine(self.parallel(pair) if self.parallel else pair, 1_000_000)
        times: list[float] = []
        with progress(None, "measuring a step", "steps", quiet=quiet) as bar:
            for number in range(1000):
                start = time.perf_counter()
                engine.step(number, self.loader.batch(number))
                if number >= untimed:
                    times.append(time.perf_counter() - start)
                bar.update(1)
                if len(times) >= least and sum(times) >= enough:
                    break
        return sorted(times)[len(times) // 2]

    def facts(self, plan: dict[str, Any]) -> dict[str, Any]:
        """What the record says beside the configuration."""
        return {
            **plan,
            "tokens_per_step": self.config.tokens_per_step,
            "model": _description(self.model),
            "parameters": _count(self.model, embedding=False),
            "parameters_total": _count(self.model, embedding=True),
            "flops_per_step": self.flops_per_step,
            "data": self.data.info,
            "data_hash": self.data.hash,
            "device": str(self.device),
            "fingerprint": self.fingerprint,
        }


class _Loop:
    """The run itself."""

    def __init__(self, run: Run, work: _Work, observer: Observer | None, interrupt: Interrupt, quiet: bool) -> None:
        self.run, self.work, self.observer, self.interrupt, self.quiet = run, work, observer, interrupt, quiet
        self.config = work.config
        self.steps = int(run.record["facts"]["steps"])
        if self.config.system.recompute:
            recompute_blocks(work.model)
        self.compiled = compile_blocks(work.model, self.config.system.compile)
        self.engine = work.engine(work.parallel(work.pair) if work.parallel else work.pair, self.steps)
        self.checkpoints = Checkpoints(run.path, work.fingerprint, self.config.checkpoint.keep)
        self.meters = Meters()
        self.start = 0
        self.every = max(1, self.steps // LOG_LINES)
        self.last_save = 0.0
        self.save_cost = 0.0
        self.windows: Any = None
        self.validation: dict[str, Any] | None = None

    def go(self) -> dict[str, Any]:
        """Train to the end or to an interruption; the result, also written to the folder."""
        self._begin()
        done = self.start
        with progress(self.steps * self.config.tokens_per_step, self.run.record["name"], "tok", self.quiet) as bar:
            bar.start_at(self.start * self.config.tokens_per_step)
            for number in range(self.start, self.steps):
                self._step(number, bar)
                done = number + 1
                self._validate_now_and_then(done)
                if self.interrupt.requested:
                    break
                self._save_now_and_then(done)
        if done < self.steps:
            return self._stop(done)
        return self._end()

    def _begin(self) -> None:
        seed_everything(self.config.seed)
        restored = self.checkpoints.restore(self.work.pair, self.engine.optimizer)
        if restored is not None:
            self.start, record = restored
            self.engine.resume(self.checkpoints.carried, self.work.model, self.config.data.batch)
            self.meters = Meters.resumed(record["meters"])
            replayed = _forget_after(self.run, self.start)
            self._tell("resume", step=self.start, replayed=replayed)
        else:
            _forget_after(self.run, 0)
            self._tell("start", steps=self.steps, compile=self.compiled, threads=torch.get_num_threads())
        self.work.pair.train()
        self.last_save = time.perf_counter()

    def _step(self, number: int, bar: Progress) -> None:
        begin = time.perf_counter()
        try:
            step = self.engine.step(number, self.work.loader.batch(number))
        except NonFiniteError as error:
            raise self._broken(number, error) from error
        self.meters.add(step.loss, step.tokens, time.perf_counter() - begin)
        bar.update(self.config.tokens_per_step, loss=f"{step.loss:.3f}")
        if (number + 1) % self.every == 0 or number + 1 == self.steps:
            self._log(number + 1, step)

    def _log(self, done: int, step: Step) -> None:
        speed = self.meters.tokens_per_second
        self._tell(
            "step",
            step=done,
            tokens=self.meters.tokens,
            loss=self.meters.mean_loss(),
            norm=step.norm,
            lr=step.rate,
            seconds=round(self.meters.seconds, 6),
            tokens_per_second=None if speed is None else round(speed, 1),
        )

    def _broken(self, number: int, error: NonFiniteError) -> NonFiniteError:
        good = self.checkpoints.latest
        kept = (
            f"the checkpoint of step {good} is kept in '{self.run.path}'"
            if good is not None
            else "no checkpoint had been saved yet"
        )
        self._tell("not_finite", step=number, batch=number, message=str(error), last_checkpoint=good)
        return NonFiniteError(f"{error}; {kept}; try a smaller optim.lr")

    def _validate_now_and_then(self, done: int) -> None:
        every = self.config.validation.every
        if every > 0 and done % every == 0 and done < self.steps:
            self._validate(done)

    def _validate(self, done: int) -> dict[str, Any]:
        begin = time.perf_counter()
        dtype = torch.bfloat16 if self.config.system.dtype == "bfloat16" else torch.float32
        result = self._bits(dtype) if self.work.predicts else self._pretext(dtype)
        numbers = {key: result[key] for key in _VALIDATED if key in result}
        took = round(time.perf_counter() - begin, 3)
        self._tell("validation", step=done, trained_tokens=self.meters.tokens, **numbers, seconds=took)
        return result

    def _bits(self, dtype: torch.dtype) -> dict[str, Any]:
        """Bits per byte of a model that predicts the next token."""
        spec = self.config.validation
        if self.windows is None:
            limit = spec.bytes or None
            self.windows = validation_windows(self.work.data.validation, self.config.data.length, spec.batch, limit)
        if self.config.data.stream:  # as it is trained: documents are read with the state carried through them
            held = (self.windows.tokens, self.windows.documents, self.config.data.length, spec.batch)
            return carried_bits_per_byte(self.work.model, *held, dtype=dtype)
        return bits_per_byte(self.work.model, self.windows, dtype=dtype)

    def _pretext(self, dtype: torch.dtype) -> dict[str, Any]:
        """The pretext task's own loss, of a model that does not predict the next token."""
        spec, file = self.config.validation, self.work.data.validation
        tokens = min(len(file), spec.bytes or len(file))
        found = held_out_loss(self.work.pair, file, self.config.data.length, spec.batch, tokens, dtype)
        return {**found, "unit": getattr(self.work.pair.objective, "unit", "nats per target")}

    def _save_now_and_then(self, done: int) -> None:
        if done == self.steps:
            return
        every = self.config.checkpoint.every
        waited = time.perf_counter() - self.last_save
        wait = min(_SAVE_MOST, max(_SAVE_LEAST, self.save_cost / _SAVE_SHARE))
        if done % every == 0 if every else waited >= wait:
            self._save(done)

    def _save(self, done: int) -> None:
        begin = time.perf_counter()
        record = {"meters": self.meters.kept()}
        self.checkpoints.save(done, self.work.pair, self.engine.optimizer, record, self.engine.carried())
        self.last_save = time.perf_counter()
        self.save_cost = self.last_save - begin
        self._tell("checkpoint", step=done, seconds=round(self.save_cost, 3))

    def _stop(self, done: int) -> dict[str, Any]:
        """Save where we are and end as interrupted."""
        if self.checkpoints.latest != done:
            self._save(done)
        self._tell("end", status="interrupted", step=done)
        result = self._result("interrupted", done)
        self.run.finish(result, "interrupted")
        return result

    def _end(self) -> dict[str, Any]:
        self.work.pair.settle()
        if self.config.validation.every >= 0:
            self.validation = self._validate(self.steps)
        _save_weights(self.work.model, self.work.data.tokenizer, self.run.path / "weights")
        self._tell("end", status="done", step=self.steps)
        result = self._result("done", self.steps)
        self.run.finish(result, "done")
        self.checkpoints.remove()
        return result

    def _result(self, status: str, done: int) -> dict[str, Any]:
        speed, work = self.meters.tokens_per_second, self.work
        flops = None if work.flops_per_step is None else work.flops_per_step * done
        per_token = None if work.flops_per_step is None else work.flops_per_step / self.config.tokens_per_step
        steps = self.run.events("step")
        return {
            "status": status,
            "steps": done,
            "planned_steps": self.steps,
            "tokens": self.meters.tokens,
            "loss": steps[-1]["loss"] if steps else None,
            "bits_per_byte": None if self.validation is None else self.validation.get("bits_per_byte"),
            "validation": self.validation,
            "seconds": self.meters.seconds,
            "warmup_seconds": self.meters.warmup_seconds,
            "tokens_per_second": speed,
            "flops": flops,
            "flops_per_second": None if speed is None or per_token is None else per_token * speed,
            "peak_memory_bytes": peak_memory(work.device),
            "parameters": _count(work.model, embedding=False),
            "parameters_total": _count(work.model, embedding=True),
            "compile": self.compiled,
            "threads": torch.get_num_threads(),
        }

    def _tell(self, event: str, **fields: Any) -> None:
        """One line of the log, and the observer."""
        self.run.log(event, **fields)
        if self.observer is not None:
            self.observer(event, fields)


def _finished(folder: Path, config: TrainConfig) -> dict[str, Any] | None:
    """The result of a run that is done already; None when there is work to do.

    Raises:
        ConfigError: when the folder holds a run of another configuration.
    """
    if not (folder / "run.json").exists():
        return None
    run = Run.open(folder)
    wanted = json.loads(json.dumps(config.to_dict()))
    if run.config_hash != config_hash(wanted):
        changes = _differences(run.config, wanted)
        raise ConfigError(
            f"'{folder}' holds a run of another configuration ({changes}); choose another folder, or repeat its command"
        )
    return run.result() if run.record["status"] == "done" else None


def _open(folder: Path, config: TrainConfig, work: _Work, command: list[str] | None, quiet: bool) -> Run:
    """The run's folder, new or to be continued, held by this process."""
    if not (folder / "run.json").exists():
        plan = work.steps(quiet)
        work.engine(work.pair, plan["steps"])  # impossible settings are refused before a folder is made
        name = config.model.name if work.given is None else type(work.given).__name__
        return Run.create(folder, config.to_dict(), name, config.seed, command, work.facts(plan))
    run = Run.open(folder)
    if run.record["facts"].get("fingerprint") != work.fingerprint:
        raise ConfigError(
            f"'{folder}' was begun with another model or other data (its corpus has changed); choose another folder"
        )
    run.acquire()
    return run


def _differences(there: dict[str, Any], here: dict[str, Any], path: str = "") -> str:
    """`optim.lr 0.001 there, 0.003 here`, the first three."""
    found = []
    for key in sorted(there.keys() | here.keys()):
        a, b, place = there.get(key), here.get(key), f"{path}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            deeper = _differences(a, b, f"{place}.")
            found.extend([deeper] if deeper else [])
        elif a != b:
            found.append(f"{place} {a!r} there, {b!r} here")
    return "; ".join(found[:3])


def _forget_after(run: Run, step: int) -> int:
    """Drop log lines of steps that will be taken again; how many there were."""
    events = run.events()
    kept = [
        e
        for e in events
        if e.get("event") in ("start", "resume") or (e.get("step", 0) <= step and e.get("event") != "end")
    ]
    if step == 0:
        kept = []
    if len(kept) < len(events):
        write_text(run.path / "log.jsonl", "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in kept))
    return len(events) - len(kept)


def _save_weights(model: nn.Module, tokenizer: Tokenizer, path: Path) -> None:
    """As `orrery.save`, with the tokenizer beside it; of a module that no config can rebuild, tensors and tokenizer."""
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.save(scratch)
        files = {f"tokenizer/{file.name}": file.read_bytes() for file in sorted(Path(scratch).iterdir())}
    if _description(model)["kind"] != "given":
        save(model, path, files)
        return
    with atomic_directory(path) as folder:
        write_tensors(stored_tensors(model), folder / "model.safetensors")
        (folder / "tokenizer").mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)


def _ends(spec: ModelSpec, tokenizer: Tokenizer) -> dict[str, Any]:
    """Of an encoder-decoder, the ids that its targets begin and end with: marks of the tokenizer, which no text produces."""
    frame = spec.settings.get("frame", "encoder-decoder" if is_pair(spec.name) else "")
    return {"start": tokenizer.doc_id, "stop": frame_ids(tokenizer)[1]} if frame == "encoder-decoder" else {}


def _description(model: nn.Module) -> dict[str, Any]:
    try:
        return describe(model)
    except ConfigError:
        return {"kind": "given", "name": type(model).__name__}


def _shapes(pair: nn.Module) -> list[list[Any]]:
    return [[name, list(tensor.shape), str(tensor.dtype)] for name, tensor in sorted(stored_tensors(pair).items())]


def _predicts(spec: ObjectiveSpec) -> bool:
    """Whether what is learnt is the next token and nothing else, by one objective or several together; then bits per byte tell."""
    parts = [part.get("objective", name) for name, part in spec.settings.get("parts", {}).items()]
    return all("causal" in registry.lookup(name, "objective").tags for name in parts or [spec.name])


def _count(model: Any, embedding: bool) -> int:
    if hasattr(model, "num_parameters"):
        return int(model.num_parameters(embedding=embedding))
    return sum(p.numel() for p in model.parameters())
