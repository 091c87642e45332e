"""Students and their teachers: which objective, which weights of its terms, which layers a student begins with.

    orrery pretrain distilbert --teacher runs/bert ...      layers of the teacher, then the triple loss (1910.01108)
    orrery pretrain bert --size nano --teacher runs/bert    drawn weights
    orrery pretrain transformer --teacher runs/lm           a causal student of a causal teacher
    orrery finetune lstm --teacher runs/stars ...           a task's answers

A student reads what its teacher reads: one tokenizer, the teacher's. Recipes are the weights that papers print; each can be set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import nn

from orrery.core.errors import ConfigError, DataError, suggest
from orrery.core.files import read_json
from orrery.data.examples import TaskSpec
from orrery.methods.distil import distil_start
from orrery.methods.fitted import Fitted, load_fitted
from orrery.methods.starting import is_folder, open_model, tokenizer_spec
from orrery.models.build import create_model
from orrery.models.decoder import DecoderLM
from orrery.models.encoder import Encoder
from orrery.models.folders import find_weights, weights_hash

RECIPES: dict[str, dict[str, Any]] = {
    "hinton": {"hard": 0.5, "soft": 0.5, "temperature": 2.0},
    "distilbert": {"hard": 2.0, "soft": 5.0, "cosine": 1.0, "temperature": 2.0, "everywhere": True},
    "distilcamembert": {"hard": 0.2, "soft": 0.5, "cosine": 0.3, "temperature": 2.0},
    "tinybert": {"hard": 0.0, "soft": 0.0, "hidden": 1.0, "attention": 1.0, "relations": ["scores"], "layers": "uniform"},
    "patient": {"hard": 0.5, "soft": 0.5, "temperature": 10.0, "hidden": 10.0, "layers": "skip", "normalise": True},
    "minilm": {"hard": 0.0, "soft": 0.0, "attention": 1.0},
    "minilm-1": {"hard": 0.0, "soft": 0.0, "attention": 2.0, "relations": ["probabilities", "v"], "layers": "top"},
}
"""Settings of :mod:`orrery.objectives.distillation`. distilbert: of the authors' training script; distilcamembert: of 2205.11111;
patient: from the ranges that 1908.09355 searches; minilm-1: the sum of both terms of 2002.10957, whence 2 times their mean."""


@dataclass(frozen=True)
class Student:
    """model: to be trained. objective, settings: of the objective. tokenizer: where it lies. begun: whether its weights know anything."""

    model: nn.Module
    objective: str
    settings: dict[str, Any]
    tokenizer: Path
    begun: bool


def recipe_settings(name: str) -> dict[str, Any]:
    """The weights of a recipe.

    Raises:
        ConfigError: for an unknown one, with near matches.
    """
    if name not in RECIPES:
        raise ConfigError(f"no recipe '{name}'.{suggest(name, RECIPES)} There are {', '.join(RECIPES)}")
    return dict(RECIPES[name])


def student_of(
    teacher: str | Path, source: str, out: Path, given: dict[str, Any], recipe: str = "", layers: Sequence[int] | None = None
) -> Student:
    """A student for pre-training.

    Args:
        teacher: folder of an encoder with a masked-LM head, or of a decoder language model.
        source: an architecture, or a folder of the student so far.
        out: the run's folder; one that was begun says which weights its teacher had.
        given: settings of the run ("model.size", "seed", "objective.settings", ...).
        recipe: "": distilbert for an encoder, hinton for a decoder.
        layers: of the teacher, with which the student begins; None: every second one for `distilbert`, none for others.

    Raises:
        ConfigError, DataError: teacher and student do not fit.
    """
    folder = Path(teacher).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"there is no teacher in '{teacher}'; put its folder back where it was, or name another")
    master, tokenizer = open_model(folder)
    head = getattr(master, "config", None) and getattr(cast(Any, master).config, "head", None)
    if not isinstance(master, DecoderLM) and not (isinstance(master, Encoder) and head and head["name"] == "masked-lm"):
        raise ConfigError(
            f"the teacher in '{teacher}' is a {type(master).__name__} that predicts no tokens; students are pre-trained by an encoder "
            "with a masked-LM head or by a decoder language model"
        )
    where = tokenizer_spec(find_weights(folder))
    if tokenizer is None or where is None:
        raise DataError(f"the teacher in '{teacher}' has no tokenizer beside its weights; a student needs it")
    model, begun = _model(master, source, tokenizer.hash, given, layers)
    causal = isinstance(master, DecoderLM)
    if causal != isinstance(model, DecoderLM):
        raise ConfigError(f"the teacher in '{teacher}' {'predicts the next token' if causal else 'fills gaps'}, '{source}' does not")
    terms = recipe_settings(recipe or ("hinton" if causal else "distilbert"))
    settings = {**terms, **given.get("objective.settings", {}), "teacher": str(folder.resolve()), "teacher_hash": _hash(folder, out)}
    settings |= {key.removeprefix("objective.settings."): v for key, v in given.items() if key.startswith("objective.settings.")}
    return Student(model, "distilled-next-token" if causal else "distilled-masked-lm", settings, where, begun)


def _model(
    master: nn.Module, source: str, tokenizer: str, given: dict[str, Any], layers: Sequence[int] | None
) -> tuple[nn.Module, bool]:
    """The student, and whether its weights know anything."""
    if is_folder(source):
        if layers is not None:
            raise ConfigError(f"'{source}' has layers of its own; --layers is for a student that begins with its teacher's")
        model, reads = open_model(Path(source))
        if reads is None or reads.hash != tokenizer:
            raise DataError(f"'{source}' has another tokenizer than its teacher; a student must read the same ids")
        return model, True
    if source == "distilbert" or layers is not None:
        if not isinstance(master, Encoder):
            raise ConfigError("only an encoder's layers can be a student's; name an architecture, and leave --layers out")
        kind = master.config.architecture
        if source not in (kind, "distilbert") or (source == "distilbert" and kind.partition("-")[0] not in ("bert", "distilbert")):
            raise ConfigError(f"a student that begins with layers of a {kind} is one itself; write `orrery pretrain {kind} --layers ...`")
        return distil_start(master, layers), True
    sizes = {key: given.get(f"model.{key}") for key in ("width", "depth") if given.get(f"model.{key}")}
    size = None if len(sizes) == 2 else given.get("model.size")
    own = {key.removeprefix("model.settings."): value for key, value in given.items() if key.startswith("model.settings.")}
    settings = {**given.get("model.settings", {}), **own, **sizes}
    vocabulary = int(cast(Any, master).vocab_size)
    return create_model(source, size, vocab_size=vocabulary, seed=int(given.get("seed", 0)), **settings), False


def _hash(folder: Path, out: Path) -> str:
    """The hash of the teacher's weights: what a begun run says, which the objective then insists on; else what there is."""
    if (out / "run.json").is_file():
        stored = read_json(out / "run.json").get("config", {})
        then = stored.get("objective", {}).get("settings", {}).get("teacher_hash")
        if then:
            return str(then)
    return weights_hash(folder)


def task_teacher(folder: str | Path, out: Path) -> tuple[Fitted, str]:
    """The teacher of a task, as fine-tuning wrote it, and the hash of its weights.

    Raises:
        ConfigError: it has moved, or has changed since the run in `out` began.
    """
    if not Path(folder).expanduser().is_dir():
        raise ConfigError(f"there is no teacher in '{folder}'; put its folder back where it was, or name another")
    fitted, found = load_fitted(Path(folder).expanduser()), weights_hash(folder)
    if (out / "run.json").is_file():
        then = read_json(out / "run.json").get("config", {}).get("teacher_hash", found)
        if then != found:
            raise ConfigError(
                f"the teacher in '{folder}' has changed: its weights are {found}, this run began with {then}; put those back, or begin "
                "another run"
            )
    return fitted, found


def check_task(teacher: Fitted, spec: TaskSpec) -> None:
    """Raise unless a teacher's task is the student's.

    Raises:
        ConfigError: another kind of task. DataError: other labels.
    """
    if spec.kind == "text-to-text":
        raise ConfigError("text-to-text has no teacher here: sequences are not distilled, leave --teacher out")
    if teacher.spec.kind != spec.kind or bool(teacher.spec.pair) != bool(spec.pair):
        raise ConfigError(f"the teacher was fine-tuned for {_task(teacher.spec)}, the student for {_task(spec)}; both must be the same task")
    if teacher.spec.names != spec.names:
        ours, theirs = ", ".join(spec.names[:8]), ", ".join(teacher.spec.names[:8])
        raise DataError(f"the teacher's labels are {theirs}, the table's are {ours}; both must be the same, in one order (--names)")


def _task(spec: TaskSpec) -> str:
    return f"{spec.kind} of pairs" if spec.pair else spec.kind
