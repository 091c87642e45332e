"""The protocol: what is held equal, how a budget becomes steps, and which runs that makes.

Held equal: parameters without embedding and head (within 2 %), tokens and their order under each seed, batch, length,
tokenizer, optimizer, schedule shape, validation sample. Not held equal, because that would be unfair: the learning rate,
which comes from a sweep of each architecture by one rule (:mod:`orrery.compare.learning_rates`).

Curves are the loss on each training batch before the step that learns from it, over bins of steps: within the first pass
over the corpus that is text the model has never seen, the same text for all, and it costs nothing. The final number is
bits per byte on a fixed validation sample of whole documents.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from orrery.compare.analyse import COMPARISON, NOISE, RunData
from orrery.compare.candidates import Candidate
from orrery.compare.result import ArchitectureRow, Protocol, RunRow
from orrery.core.config import config_hash, require
from orrery.data import Dataset
from orrery.evaluate.statistics import least_seeds
from orrery.models.ladder import LADDER
from orrery.runs.folder import slug
from orrery.train import DataSpec, ModelSpec, OptimSpec, SystemSpec, TrainConfig, ValidationSpec
from orrery.train.budget import Budget, parse_budget

FORMAT = 1  # of the runs: raised when equal settings would no longer give equal runs
POINTS = 32  # of a learning curve
STREAM = "training stream, before each update"  # the text that learning curves are made of
OTHER_DRAW = 1_000_003  # added to a seed for the initial weights of the baseline against itself
EARLY = 20.0  # training tokens per parameter below which a run ranks data efficiency (2203.15556: about 20 is optimal)
MARGIN_REASON = "below 0.02 bits per byte (about 1 %) a choice should be made by cost"


@dataclass(frozen=True)
class Settings:
    """What the user asked for; everything that identifies a comparison."""

    corpus: str = "stdlib"
    tokenizer: str = "bytes"
    size: str | None = "nano"
    budget: str = "600ktok"
    seeds: tuple[int, ...] = (1, 2, 3)
    baseline: str = ""
    length: int = 256
    batch: int = 4
    margin: float = 0.02
    sample: int = 262_144  # bytes of validation text
    noise: bool | None = None  # baseline against itself; None: when there are seeds enough for a verdict
    rates: dict[str, float] = field(default_factory=dict)  # label -> learning rate given by the user
    overrides: dict[str, Any] = field(default_factory=dict)  # of every model: width, depth, other settings (tests)

    def __post_init__(self) -> None:
        for name in ("length", "batch", "sample"):
            value = getattr(self, name)
            require(type(value) is int and value >= 1, f"{name} is a whole number of 1 or more, not {value!r}")
        counts = isinstance(self.margin, int | float) and self.margin >= 0
        require(counts, f"margin is a number of bits per byte, 0 or more, not {self.margin!r}")
        require(isinstance(self.tokenizer, str), f"tokenizer is the name or the path of one, not {self.tokenizer!r}")
        require(self.noise is None or type(self.noise) is bool, f"noise is true or false, not {self.noise!r}")

    def identity(self, candidates: Sequence[Candidate]) -> str:
        """Hash that names the comparison's folder: the same command finds its own."""
        specs = [[candidate.label, candidate.spec] for candidate in candidates]
        return config_hash([FORMAT, specs, {**self.__dict__, "seeds": list(self.seeds)}])

    def with_noise(self, primary: int) -> bool:
        """Whether the baseline is run against itself."""
        return len(self.seeds) >= least_seeds(primary) if self.noise is None else self.noise


def make_protocol(settings: Settings, candidates: Sequence[Candidate], baseline: str, data: Dataset) -> Protocol:
    """The record of the protocol, before budgets are turned into steps."""
    primary = len(candidates) - 1
    budget = parse_budget(settings.budget)
    target = LADDER[settings.size].parameters if settings.size else None
    info = data.info
    return Protocol(
        corpus=settings.corpus,
        corpus_hash=data.hash,
        train_bytes=info["train"]["bytes"],
        tokenizer=info["tokenizer"]["name"],
        vocabulary=data.tokenizer.vocab_size,
        size=settings.size or "own",
        target_parameters=target,
        length=settings.length,
        batch=settings.batch,
        budget=settings.budget,
        budget_kind=budget.kind,
        seeds=list(settings.seeds),
        baseline=baseline,
        optimizer=OptimSpec(lr=1.0).to_dict() | {"lr": "per architecture"},
        margin=settings.margin,
        margin_reason=MARGIN_REASON if settings.margin == Settings.margin else "given",
        family=f"every other architecture against {baseline}",
        family_size=primary,
        needed_seeds=least_seeds(max(1, primary)),
        equal=_equal(settings, budget, target),
    )


def _equal(settings: Settings, budget: Budget, target: int | None) -> list[str]:
    shared = "the same number of tokens" if budget.kind in ("tokens", "steps") else f"the same budget of {budget.text}"
    sizes = [f"parameters without embedding and head: {target:,} within 2 %"] if target else []
    return [
        *sizes,
        f"{shared}, in the same order under each seed",
        f"batches of {settings.batch} x {settings.length} tokens; AdamW, warm-up and cosine decay over the run's own length",
        "learning rate per architecture, from a sweep by one rule",
        f"validation on the same whole documents ({settings.sample // 1024} kB at most), windows of {settings.length} tokens "
        "that start without memory",
    ]


def caveat(tokens: int, parameters: int, seen: float) -> str:
    """What such a run can tell."""
    ratio = tokens / max(1, parameters)
    if ratio < EARLY:
        said = f"early in training ({ratio:.1f} tokens per parameter): ranks data efficiency, not final quality"
    else:
        said = f"one size, one corpus, one budget ({ratio:.0f} tokens per parameter)"
    if seen > 1:
        said += f"; the corpus was read {seen:.1f} times, so the curves show text that was seen before"
    return said


def steps_of(settings: Settings, row: ArchitectureRow, budget: Budget) -> int:
    """Optimizer steps of one architecture's runs; a time budget needs its training speed, a FLOP budget its formula.

    Raises:
        BudgetError: when it does not pay for a step.
        LookupError: for a time budget when the training speed is not known.
    """
    tokens = settings.batch * settings.length
    flops = row.costs.train_flops.value if row.costs.train_flops else None
    speed = row.costs.train_speed.value if row.costs.train_speed else None
    if budget.kind == "time" and not speed:
        raise LookupError(row.label)
    return budget.steps(tokens, flops * tokens if flops else None, tokens / speed if speed else None)


def train_config(settings: Settings, candidate: Candidate, rate: float, steps: int, seed: int, threads: int) -> TrainConfig:
    """The configuration of one run."""
    overrides = dict(settings.overrides)
    width, depth = overrides.pop("width", None), overrides.pop("depth", None)
    return TrainConfig(
        model=ModelSpec(name=candidate.name or candidate.label, size=settings.size, width=width, depth=depth, settings=overrides),
        data=DataSpec(corpus=settings.corpus, tokenizer=settings.tokenizer, length=settings.length, batch=settings.batch),
        optim=OptimSpec(lr=rate),
        validation=ValidationSpec(every=0, bytes=settings.sample),
        system=SystemSpec(threads=threads),
        budget=f"{steps}steps",
        seed=seed,
    )


def run_folder(config: TrainConfig, data_hash: str, model: Any, init: int) -> str:
    """Name of a run's folder: label, seed, and a hash of all that decides the outcome (not threads, not checkpoints)."""
    plain = config.to_dict()
    system = {key: value for key, value in plain["system"].items() if key != "threads"}
    work = {**{key: plain[key] for key in plain if key not in ("system", "checkpoint")}, "system": system}
    key = config_hash([FORMAT, work, data_hash, model, init])
    return f"{slug(config.model.name)}-s{config.seed}{'' if init == config.seed else '-again'}-{key}"


def bytes_per_token(data: Dataset) -> float:
    """Bytes of text that a training token stands for on average."""
    train = data.info["train"]
    return float(train["bytes"]) / max(1, int(train["tokens"]))


class Binner:
    """Turns a run's log of steps into `POINTS` points of its curve, live and afterwards alike.

    A point is the mean loss over a bin of steps, each taken before its update, in bits per byte; x is the middle of the
    tokens it averages over.
    """

    def __init__(self, planned: int, per_token: float) -> None:
        self.width = max(1, math.ceil(planned / POINTS))
        self.planned, self.per_token = planned, per_token
        self.tokens = self.begin = self.nats = 0.0
        self.bin = 0

    def add(self, event: dict[str, Any]) -> tuple[float, float] | None:
        """One "step" event {"step", "tokens", "loss"}, loss the mean since the one before; a point when a bin is full."""
        loss, tokens = event.get("loss"), float(event["tokens"])
        if not isinstance(loss, (int, float)) or tokens <= self.tokens:
            return None  # a loss that is not finite, or a step told twice by a resumed run
        self.nats += (tokens - self.tokens) * loss
        self.tokens = tokens
        step = int(event["step"])
        if step // self.width == self.bin and step < self.planned:
            return None
        self.bin = step // self.width
        count = self.tokens - self.begin
        point = (self.begin + count / 2, self.nats / count / math.log(2) / self.per_token)
        self.begin, self.nats = self.tokens, 0.0
        return point


def run_data(
    row: RunRow, events: Sequence[dict[str, Any]], result: dict[str, Any] | None, planned: int, per_token: float
) -> RunData:
    """A run's row filled in from its log and its result.

    Args:
        events: "step" events of its log.
        planned: steps of the whole run.
        per_token: bytes of text per token.
    """
    bins = Binner(planned, per_token)
    data = RunData(row, [point for event in events if (point := bins.add(event)) is not None])
    if result is None:
        return data
    row.steps, row.tokens = int(result.get("steps") or 0), int(result.get("tokens") or 0)
    row.seconds = result.get("seconds")
    validation = result.get("validation") or {}
    if row.status == "done" and isinstance(result.get("bits_per_byte"), (int, float)):
        row.bits_per_byte = float(result["bits_per_byte"])
        data.nats = [float(each["nats"]) for each in validation.get("per_document", [])]
        data.sizes = [int(each["bytes"]) for each in validation.get("per_document", [])]
    elif row.status == "done":
        row.status, row.error = "failed", "the run ended without a validation result"
    return data


def planned_runs(settings: Settings, labels: Sequence[str], baseline: str) -> list[RunRow]:
    """Every run, seed by seed, so that whatever is finished is balanced; the noise floor's runs come last."""
    runs = [RunRow(label, seed) for seed in settings.seeds for label in labels]
    if settings.with_noise(len(labels) - 1):
        runs += [RunRow(baseline, seed, role=NOISE) for seed in settings.seeds]
    return runs


def initial_seed(row: RunRow) -> int:
    """Seed of a run's initial weights."""
    return row.seed if row.role == COMPARISON else row.seed + OTHER_DRAW


def command_line(settings: Settings, competitors: Sequence[Candidate]) -> str:
    """The command that repeats a comparison; modules, which no command can name, stand as their labels."""
    words = ["orrery", "compare", *(c.spec if c.portable else f"<{c.label}>" for c in competitors)]
    plain = asdict(Settings())
    for key in ("corpus", "tokenizer", "size", "budget", "length", "batch"):
        value = getattr(settings, key)
        if value != plain[key] or key == "budget":
            words += [f"--{key}", str(value)]
    listed = settings.seeds == tuple(range(1, len(settings.seeds) + 1))
    words += ["--seeds", str(len(settings.seeds)) if listed else ",".join(map(str, settings.seeds))]
    if settings.baseline:
        words += ["--baseline", settings.baseline]
    return shlex.join(words)
