"""The configuration of a training run: everything that decides its outcome, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from orrery.core.config import Config, require
from orrery.train.budget import parse_budget

DTYPES = ("float32", "bfloat16")
COMPILERS = ("off", "inductor", "aot_eager")


@dataclass(frozen=True, kw_only=True)
class ModelSpec(Config):
    """What is trained; as in `create_model`. vocab_size is the tokenizer's."""

    name: str = "transformer"
    size: str | None = "micro"
    width: int | None = None
    depth: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DataSpec(Config):
    """What it reads: a corpus by name or path, a tokenizer, and the shape of a batch.

    tokenizer: "bytes", "chars", "bpe:8192", "unigram:8192", or a tokenizer's file.
    length: T, tokens that a row predicts. batch: rows of one optimizer step over all micro-batches and machines.
    stream: every row goes on where it ended a step before, and the model's state is carried along (truncated
    backpropagation through time); documents reset it as always. span: tokens that a gradient reaches back at most; the
    state's history is cut and a backward pass is made every so many tokens of a window; 0: the window.
    """

    corpus: str = "stdlib"
    tokenizer: str = "bytes"
    length: int = 256
    batch: int = 16
    strict: bool = False
    stream: bool = False
    span: int = 0

    def __post_init__(self) -> None:
        require(self.length >= 1, f"data.length must be 1 or more, not {self.length}")
        require(self.batch >= 1, f"data.batch must be 1 or more, not {self.batch}")
        require(0 <= self.span <= self.length, f"data.span must be 0 (the window) to {self.length}, not {self.span}")
        require(not self.span or self.stream, "data.span cuts a carried state's history and needs data.stream=true")


@dataclass(frozen=True, kw_only=True)
class ObjectiveSpec(Config):
    """A registered objective and its settings."""

    name: str = "next-token"
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class OptimSpec(Config):
    """A registered optimizer, a registered schedule, and clipping.

    lr: the peak rate. warmup, decay: below 1 a share of the steps, else steps. floor: the last rate over the peak.
    clip: greatest norm of the gradient over all parameters; 0 for no clipping.
    settings: the optimizer's own.
    """

    name: str = "adamw"
    lr: float = 1e-3
    schedule: str = "cosine"
    warmup: float = 0.05
    decay: float = 0.2
    floor: float = 0.1
    clip: float = 1.0
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.lr > 0, f"optim.lr must be above 0, not {self.lr}")
        require(self.clip >= 0, f"optim.clip must be 0 (none) or more, not {self.clip}")


@dataclass(frozen=True, kw_only=True)
class ValidationSpec(Config):
    """Bits per byte on text that is never trained on.

    every: steps between validations beside the final one; 0 for the final one only, -1 for none at all.
    bytes: size of the fixed sample of whole documents; 0 for the whole validation split. batch: windows at a time.
    """

    every: int = 0
    bytes: int = 256_000
    batch: int = 16

    def __post_init__(self) -> None:
        require(
            self.every >= -1,
            f"validation.every must be -1 (never), 0 (at the end) or a number of steps, not {self.every}",
        )
        require(self.bytes >= 0, f"validation.bytes must be 0 (everything) or more, not {self.bytes}")
        require(self.batch >= 1, f"validation.batch must be 1 or more, not {self.batch}")


@dataclass(frozen=True, kw_only=True)
class CheckpointSpec(Config):
    """Checkpoints to resume from. every: steps (0: chosen so that saving costs about 1 % of the time); keep: how many."""

    every: int = 0
    keep: int = 2

    def __post_init__(self) -> None:
        require(self.every >= 0, f"checkpoint.every must be 0 (chosen) or a number of steps, not {self.every}")
        require(self.keep >= 1, f"checkpoint.keep must be 1 or more, not {self.keep}")


@dataclass(frozen=True, kw_only=True)
class SystemSpec(Config):
    """How it is computed.

    device: "auto", "cpu", "cuda", "cuda:1", "mps". threads: of torch on the CPU, 0 for torch's own choice.
    dtype: "bfloat16" runs forward and backward under autocast; parameters and sums stay float32.
    accumulate: micro-batches per optimizer step. recompute: activation checkpointing, block by block.
    compile: "inductor" compiles each block where a compiler is found; "aot_eager" is for tests.
    """

    device: str = "auto"
    threads: int = 0
    dtype: str = "float32"
    accumulate: int = 1
    recompute: bool = False
    compile: str = "off"

    def __post_init__(self) -> None:
        require(self.dtype in DTYPES, f"system.dtype must be one of {', '.join(DTYPES)}, not '{self.dtype}'")
        require(
            self.compile in COMPILERS, f"system.compile must be one of {', '.join(COMPILERS)}, not '{self.compile}'"
        )
        require(self.accumulate >= 1, f"system.accumulate must be 1 or more, not {self.accumulate}")
        require(self.threads >= 0, f"system.threads must be 0 (torch's choice) or more, not {self.threads}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """A whole run. Equal configs on the same machine and thread count give equal weights, bit for bit on a CPU."""

    model: ModelSpec = field(default_factory=ModelSpec)
    data: DataSpec = field(default_factory=DataSpec)
    objective: ObjectiveSpec = field(default_factory=ObjectiveSpec)
    optim: OptimSpec = field(default_factory=OptimSpec)
    validation: ValidationSpec = field(default_factory=ValidationSpec)
    checkpoint: CheckpointSpec = field(default_factory=CheckpointSpec)
    system: SystemSpec = field(default_factory=SystemSpec)
    budget: str = "2Mtok"
    seed: int = 0

    def __post_init__(self) -> None:
        parse_budget(self.budget)
        rows, parts = self.data.batch, self.system.accumulate
        require(rows % parts == 0, f"data.batch {rows} does not divide into system.accumulate {parts} micro-batches")

    @property
    def tokens_per_step(self) -> int:
        """Targets of one optimizer step."""
        return self.data.batch * self.data.length
