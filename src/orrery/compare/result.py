"""The result of a comparison: one JSON document that the table, the pictures, the HTML page and a later comparison read.

`result.save(dir)` writes `comparison.json` (this schema, `"format": 1`); `load(dir_or_file)` reads it back. Reference
results that ship with the package have the same schema with `kind = "reference"`. Nothing here trains or draws.

    ComparisonResult
      format 1 · kind "comparison" | "reference" · title · created (ISO 8601, UTC) · status "complete" | "partial"
      command            exact command line that repeats it
      protocol           Protocol: what was held equal, budget, seeds, margin, family of primary contrasts, its caveat
      environment        dict of core.environment (versions, processor, cores, threads, git) plus matmul rate if measured
      architectures []   ArchitectureRow: identity, size, learning rate, quality, learning curve, costs; order as asked
      runs []            RunRow: one per architecture and seed, failed ones included (status, error, folder)
      floors []          Floor: lines for orientation (bigram, Kneser-Ney), no neural training
      capabilities []    CapabilityTask: recall, state tracking, with chance and optimum and a row per architecture
      contrasts []       Contrast: paired differences against the baseline (primary) and between the two best (secondary)
      noise_floor        NoiseFloor or null: the baseline against itself with other seeds of initialisation
      recommendation     Recommendation or null: one sentence, its reason, its doubt, who was excluded by which limit
      notes []           plain sentences that a reader must see (what was skipped, what failed, what is estimated)

Conventions
  - Quality is validation bits per byte: total nats over all targets / ln 2 / bytes of text covered; lower is better.
  - Every number outside a plain count travels as `Quantity(value, unit, how, note)`; `how` is one of `HOW`: measured,
    counted (by an instrument, such as a FLOP counter), analytic (a formula of the model), estimated (labelled so).
    `value` is null when it could not be had, and `note` says why. NaN and infinity never appear in the file.
  - A series over a length is a list of `Point(x, y)`; its axis and unit stand in the `Series` that holds it.
  - Seeds are JSON keys, hence strings ("1", "2", ...); `Curve.values["1"]` is aligned with `Curve.x`.
  - An architecture is referred to by `label`, unique within a result.
  - A delta is `first - second` of the same seed: negative bits per byte speaks for `first`.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from orrery.core.errors import CorruptionError
from orrery.core.files import read_json, write_json

FORMAT = 1
FILE = "comparison.json"
HOW = ("measured", "counted", "analytic", "estimated")
RUN_STATUS = ("done", "failed", "oom", "interrupted", "running", "pending")
VERDICTS = ("better", "worse", "no difference shown", "too few seeds to say", "inconclusive")

T = TypeVar("T")


@dataclass
class Quantity:
    """A number with its unit and how it was obtained."""

    value: float | None
    unit: str
    how: str = "measured"
    note: str = ""


@dataclass
class Point:
    """One point of a series: `x` in the series' `axis` (tokens of context), `y` in its unit; null where it failed."""

    x: float
    y: float | None


@dataclass
class Series:
    """A cost over length: prefill, latency, state."""

    axis: str  # "context length in tokens"
    unit: str  # "tokens/s", "ms/token", "bytes", ...
    how: str = "measured"
    points: list[Point] = field(default_factory=list)
    note: str = ""


@dataclass
class Curve:
    """A learning curve: validation bits per byte (or task accuracy) over training tokens (or steps), one line per seed."""

    x: list[float] = field(default_factory=list)
    x_unit: str = "training tokens"
    y_unit: str = "bits per byte"
    split: str = "validation"
    values: dict[str, list[float | None]] = field(default_factory=dict)  # seed -> aligned with x
    mean: list[float | None] = field(default_factory=list)
    low: list[float | None] = field(default_factory=list)  # smallest seed: a band of what was seen, not an interval
    high: list[float | None] = field(default_factory=list)  # largest seed


@dataclass
class LearningRate:
    """The peak learning rate and where it comes from."""

    value: float
    source: str  # "recorded sweep", "tuned now", "width rule", "nearest recorded architecture", "given"
    note: str = ""  # date and protocol of the sweep, or the rule


@dataclass
class Quality:
    """Final validation bits per byte."""

    seeds: dict[str, float] = field(default_factory=dict)  # seed -> bits per byte, finished runs only
    mean: float | None = None
    deviation: float | None = None  # sample standard deviation over seeds
    low: float | None = None  # t-interval of the mean over seeds, 95 %
    high: float | None = None
    unit: str = "bits per byte"


@dataclass
class Costs:
    """What an architecture costs here, timed alone: medians after warm-up."""

    parameters: int = 0  # without embedding and head: the matched size
    parameters_total: int = 0
    train_speed: Quantity | None = None  # tokens/s of whole optimizer steps at the protocol's batch and length
    prefill: Series | None = None  # tokens/s over context length
    decode: Series | None = None  # ms per token at batch 1 after a context of x tokens
    state: Series | None = None  # bytes of state per sequence after x tokens
    train_memory: Quantity | None = None  # peak bytes above the idle process during a training step, fresh process
    train_flops: Quantity | None = None  # FLOPs per training token, forward and backward, analytic
    train_flops_counted: Quantity | None = None  # the same by torch's FlopCounterMode (operators it knows)
    matmul_fraction: Quantity | None = None  # achieved FLOP/s over the machine's measured float32 matmul rate
    train_energy: Quantity | None = None  # joules per million training tokens
    decode_energy: Quantity | None = None  # joules per thousand decoded tokens
    warm_up: Quantity | None = None  # seconds before the first timed step: compilation and caches, never mixed in
    backend: str = ""  # backend of ops that was in use
    error: str = ""  # why costs are missing


@dataclass
class ArchitectureRow:
    """One architecture of the comparison."""

    label: str  # shown in tables and used as the key everywhere; unique
    spec: str  # what the user named: "mamba2*3 + attention", "./my_mixer.py", "module MyNet"
    config: dict[str, Any] = field(default_factory=dict)  # resolved model config
    config_hash: str = ""
    summary: str = ""
    paper: str = ""
    parameters: int = 0  # without embedding and head
    size_error: float | None = None  # (parameters - target) / target; null when the size could not be matched
    matched: bool = True  # False: a wrapped module of its own size, or a published size
    learning_rate: LearningRate | None = None
    quality: Quality = field(default_factory=Quality)
    curve: Curve = field(default_factory=Curve)
    costs: Costs = field(default_factory=Costs)
    status: str = "pending"  # worst status of its runs; "done" when all finished
    error: str = ""


@dataclass
class RunRow:
    """One training run."""

    architecture: str
    seed: int
    status: str = "pending"
    bits_per_byte: float | None = None
    steps: int = 0
    tokens: int = 0
    seconds: float | None = None  # wall time of training; not comparable between architectures when jobs > 1
    folder: str = ""  # run folder, relative to the runs store
    config_hash: str = ""
    resumed: bool = False  # finished runs found in the store count as resumed
    role: str = "comparison"  # "comparison" | "noise floor"
    error: str = ""


@dataclass
class Floor:
    """A line for orientation: a counting model on the same tokens and the same validation sample."""

    label: str
    bits_per_byte: float | None
    detail: str = ""
    curve: Curve | None = None  # bits per byte over the number of training tokens counted


@dataclass
class CapabilityRow:
    """One architecture on one capability task."""

    architecture: str
    seeds: dict[str, float] = field(default_factory=dict)  # seed -> final accuracy
    mean: float | None = None
    curve: Curve = field(default_factory=Curve)  # x: training steps; y: accuracy
    steps_to_solve: float | None = None  # median first evaluated step with accuracy >= `CapabilityTask.solved_at`
    parameters: int = 0
    learning_rate: float | None = None
    seconds: float | None = None
    status: str = "pending"
    error: str = ""


@dataclass
class CapabilityTask:
    """A synthetic task trained from scratch on this machine."""

    name: str  # registered task name: "mqar", "state-tracking"
    title: str  # "associative recall: 8 key-value pairs, length 48"
    question: str  # what it asks of a model, one sentence
    setting: dict[str, Any] = field(default_factory=dict)
    metric: str = "accuracy"
    chance: float = 0.0
    optimum: float = 1.0
    solved_at: float = 0.99
    steps: int = 0
    seeds: list[int] = field(default_factory=list)
    rows: list[CapabilityRow] = field(default_factory=list)
    note: str = ""


@dataclass
class Contrast:
    """A paired comparison of two architectures: `deltas[i]` is `first - second` under seed `seeds[i]`."""

    first: str
    second: str
    metric: str = "bits per byte"
    lower_is_better: bool = True
    primary: bool = True
    seeds: list[int] = field(default_factory=list)
    deltas: list[float] = field(default_factory=list)
    mean: float | None = None
    low: float | None = None  # interval of the mean, method in `interval`
    high: float | None = None
    interval: str = ""  # "paired t, 95 %"
    p: float | None = None  # exact two-sided sign-flip
    p_adjusted: float | None = None  # Holm over the family of primary contrasts
    p_method: str = ""
    documents_low: float | None = None  # interval over validation documents, seeds held fixed: evaluation noise alone
    documents_high: float | None = None
    documents: int = 0
    margin: float = 0.0
    needed_seeds: int = 0  # least number of seeds with which a verdict is possible in this family
    verdict: str = "too few seeds to say"
    sentence: str = ""


@dataclass
class NoiseFloor:
    """The baseline against itself: same tokens, other initialisation. What a difference of nothing looks like here."""

    architecture: str
    deltas: list[float] = field(default_factory=list)
    mean: float | None = None
    deviation: float | None = None
    largest: float | None = None  # largest absolute difference seen
    verdict: str = ""  # what the decision rule said of it; anything but "no difference" is a false alarm
    sentence: str = ""


@dataclass
class Exclusion:
    """An architecture that a chooser's limit rules out."""

    architecture: str
    limit: str  # "max_state", "max_params", "max_ms_per_token", "failed"
    why: str


@dataclass
class Recommendation:
    """What to take, why, and what speaks against believing it."""

    sentence: str  # choice, reason and doubt in one sentence
    choice: str | None = None  # label, or null when nothing can be recommended
    reason: str = ""
    doubt: str = ""
    limits: dict[str, Any] = field(default_factory=dict)
    excluded: list[Exclusion] = field(default_factory=list)
    tied: list[str] = field(default_factory=list)  # not shown to be worse than the choice
    next_command: str = ""  # a longer run that would settle more


@dataclass
class Protocol:
    """What was held equal and how the verdicts were reached."""

    corpus: str = "stdlib"
    corpus_hash: str = ""
    train_bytes: int | None = None
    validation_bytes: int | None = None  # bytes of the fixed validation sample
    validation_documents: int | None = None
    tokenizer: str = "bytes"
    vocabulary: int = 256
    size: str = "nano"
    target_parameters: int | None = None
    length: int = 256  # tokens per row
    batch: int = 16  # rows per step
    steps: dict[str, int] = field(default_factory=dict)  # label -> optimizer steps per run
    tokens: dict[str, int] = field(default_factory=dict)  # label -> training tokens per run
    budget: str = ""  # as asked: "2min", "2Mtok", "1e13flop"
    budget_kind: str = "tokens"  # tokens | time | flops
    equal: list[str] = field(default_factory=list)  # sentences: what every architecture shares
    calibration: dict[str, Any] = field(default_factory=dict)  # label -> tokens/s used to turn time into steps, with date
    seeds: list[int] = field(default_factory=list)
    baseline: str = ""
    optimizer: dict[str, Any] = field(default_factory=dict)
    jobs: dict[str, Any] = field(default_factory=dict)  # processes, threads each, and what was measured to choose them
    alpha: float = 0.05
    margin: float = 0.02
    margin_reason: str = ""
    family: str = ""  # what the primary contrasts are, stated before the runs
    family_size: int = 0
    needed_seeds: int = 0
    caveat: str = ""  # "early in training: ranks data efficiency, not final quality"
    hash: str = ""  # hash of everything above that changes a result


@dataclass
class ComparisonResult:
    """The whole of a comparison; see the module's docstring."""

    title: str = ""
    kind: str = "comparison"
    created: str = ""
    status: str = "partial"
    command: str = ""
    seconds: float | None = None  # wall time spent by this invocation
    protocol: Protocol = field(default_factory=Protocol)
    environment: dict[str, Any] = field(default_factory=dict)
    architectures: list[ArchitectureRow] = field(default_factory=list)
    runs: list[RunRow] = field(default_factory=list)
    floors: list[Floor] = field(default_factory=list)
    capabilities: list[CapabilityTask] = field(default_factory=list)
    contrasts: list[Contrast] = field(default_factory=list)
    noise_floor: NoiseFloor | None = None
    recommendation: Recommendation | None = None
    notes: list[str] = field(default_factory=list)
    folder: str = ""  # where it was saved or loaded from; not written
    format: int = FORMAT

    def row(self, label: str) -> ArchitectureRow:
        """The row of an architecture by label (KeyError when absent)."""
        for row in self.architectures:
            if row.label == label:
                return row
        raise KeyError(label)

    def ranked(self) -> list[ArchitectureRow]:
        """Rows with a quality, best mean first, then the rest in the order asked."""
        scored = [row for row in self.architectures if row.quality.mean is not None]
        rest = [row for row in self.architectures if row.quality.mean is None]
        return sorted(scored, key=lambda row: typing.cast(float, row.quality.mean)) + rest

    def to_dict(self) -> dict[str, Any]:
        """JSON-able document; numbers that are not finite become null."""
        document = to_plain(self)
        document.pop("folder")
        return typing.cast("dict[str, Any]", document)

    @classmethod
    def from_dict(cls, document: dict[str, Any], where: str = FILE) -> ComparisonResult:
        """Rebuild from JSON.

        Raises:
            CorruptionError: when it is no comparison, of another format, or a field has the wrong shape.
        """
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            found = document.get("format") if isinstance(document, dict) else None
            raise CorruptionError(f"'{where}' is not a comparison of format {FORMAT} (found {found!r})")
        return from_plain(cls, document, where)

    def save(self, folder: str | Path) -> Path:
        """Write `comparison.json` into `folder` (made if needed), atomically; returns the file's path."""
        path = write_json(Path(folder) / FILE, self.to_dict())
        self.folder = str(folder)
        return path


def load(path: str | Path) -> ComparisonResult:
    """Read a comparison from its folder or its JSON file."""
    file = Path(path)
    if file.is_dir():
        file = file / FILE
    result = ComparisonResult.from_dict(read_json(file), str(file))
    result.folder = str(file.parent)
    return result


def to_plain(value: Any) -> Any:
    """Dataclasses, dicts and lists as JSON values; a float that is not finite becomes None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def from_plain(cls: type[T], data: Any, where: str) -> T:
    """A dataclass from its plain form. Unknown keys are refused: a newer writer states a newer `format`.

    Raises:
        CorruptionError: naming the place.
    """
    if not isinstance(data, dict):
        raise CorruptionError(f"'{where}' should be a mapping, found {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    names = {item.name for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(data) - names):
        raise CorruptionError(f"'{where}' has unknown fields: {', '.join(unknown)}")
    values = {name: _restore(hints[name], item, f"{where}: {name}") for name, item in data.items()}
    try:
        return cls(**values)
    except TypeError as error:
        raise CorruptionError(f"'{where}' is incomplete: {error}") from error


def _restore(kind: Any, value: Any, where: str) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        options = [each for each in inner if each is not type(None)]
        return _restore(options[0], value, where)
    if origin is list:
        if not isinstance(value, list):
            raise CorruptionError(f"'{where}' should be a list, found {type(value).__name__}")
        return [_restore(inner[0], item, f"{where}[{index}]") for index, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise CorruptionError(f"'{where}' should be a mapping, found {type(value).__name__}")
        return {key: _restore(inner[1], item, f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(kind):
        return from_plain(typing.cast(type, kind), value, where)
    return _scalar(kind, value, where)


def _scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is Any:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise CorruptionError(f"'{where}' should be {getattr(kind, '__name__', kind)}, found {value!r}")
