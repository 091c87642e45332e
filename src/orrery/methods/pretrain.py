"""Pre-training of encoders and encoder-decoders: which pretext task, which marks, which rate, unless one says otherwise.

    encoder           masked-lm; electra: replaced-tokens  marks: mask
    encoder-decoder   span-corruption; bart: denoising     marks: a hundred spans, or mask
    decoder           next-token                           none

Everything else is :func:`orrery.train.train`: budgets, exact resume, the run's folder. Continued pre-training on a domain is
the same with a folder in place of a name: its weights go on, with its own tokenizer, and the loss before and after is
reported on both corpora. With a teacher the student also learns from what that says (:mod:`orrery.methods.lessons`).

Learning rate, unless it is given: ``1e-3 sqrt(128 / width)`` from drawn weights, a fifth of that from a folder or a teacher's
layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from orrery.core.errors import ConfigError
from orrery.core.files import read_json, write_json
from orrery.core.registry import names
from orrery.data.dataset import Dataset, prepare
from orrery.data.tokenizers import Tokenizer
from orrery.methods.domains import domain_losses
from orrery.methods.lessons import student_of
from orrery.methods.starting import is_folder, open_model, tokenizer_spec
from orrery.models.build import create_model, find_architecture
from orrery.models.encoder import Encoder
from orrery.models.encoder_decoder import EncoderDecoder, PairReader
from orrery.models.folders import find_weights
from orrery.models.patterns import parse_pattern
from orrery.train import TrainConfig, train
from orrery.train.budget import parse_budget

SPANS = 100
CHUNK = 1 << 24  # tokens counted at once
STEPS = 2500  # wanted of a budget of tokens
READS = {"masked-lm", "replaced-tokens"}  # objectives that need the whole text: any architecture becomes an encoder for them
DOMAINS = "domains.json"
OBJECTIVES = {"encoder": "masked-lm", "encoder-decoder": "span-corruption", "decoder": "next-token"}
OWN = {"bart": "denoising", "electra": "replaced-tokens"}
MARKS = {"masked-lm": "mask", "replaced-tokens": "mask", "denoising": "mask", "span-corruption": f"spans-{SPANS}"}


def pretrain(
    source: str,
    out: str | Path,
    settings: dict[str, Any] | None = None,
    *,
    objective: str | None = None,
    teacher: str | Path | None = None,
    recipe: str = "",
    layers: Sequence[int] | None = None,
    also: str = "",
    quiet: bool = False,
    command: list[str] | None = None,
) -> dict[str, Any]:
    """Pre-train, or continue.

    Args:
        source: the name of an architecture, or a folder with a model and its tokenizer.
        out: the run's folder; `out/weights` is what fine-tuning starts from.
        settings: of :class:`TrainConfig`, dotted ("data.corpus", "budget", "optim.lr", "model.size", ...).
        objective: a registered one, or several (:func:`mixture`); None: by the list above.
        teacher, recipe, layers: folder of a frozen teacher, and what is learnt from it (:mod:`orrery.methods.lessons`).
        also: of a folder that goes on, another corpus on which to compare before and after; "": the one it came from, where
            its run says so.

    Returns:
        That of :func:`orrery.train.train`; of a masked language model "frequencies", of a folder that went on "domains", too.

    Raises:
        OrreryError: in one sentence.
    """
    given = dict(settings or {})
    model: nn.Module | None = None
    drawn = True
    if teacher is not None:
        if objective is not None:
            raise ConfigError(f"with a teacher the objective follows from it; leave --objective {objective} out")
        student = student_of(teacher, source, Path(out), given, recipe, layers)
        model, name, drawn = student.model, student.objective, not student.begun
        given = {key: value for key, value in given.items() if not key.startswith("objective.")}
        given |= {"objective.settings": student.settings, "data.tokenizer": str(student.tokenizer), "model.name": source}
        given |= {"model.settings": {"layers": list(layers)}} if layers is not None else {}
        if drawn is False:
            given["model.size"] = None
    elif recipe or layers is not None:
        raise ConfigError("a recipe and layers are for a student; name its --teacher")
    elif is_folder(source):
        model, tokenizer, where = _begun(source)
        name = objective or OWN.get(str(model.config.architecture)) or OBJECTIVES[_kind(model)]  # type: ignore[union-attr]
        for each in mixture(name):
            check_marks(tokenizer, each)
        given |= {"data.tokenizer": str(where), "model.name": str(source), "model.size": None}
        drawn = False
    else:
        lead = parse_pattern(source)[0][0].name
        name = objective or OWN.get(lead) or OBJECTIVES[find_architecture(lead).kind]
        given["model.name"] = source
        given["data.tokenizer"] = str(given.get("data.tokenizer", "wordpiece:8192,lower"))
        for each in mixture(name):
            given["data.tokenizer"] = marked_spec(given["data.tokenizer"], each)
    sized = sorted(key for key in given if key.startswith(("model.width", "model.depth", "model.settings.")) and given[key] is not None)
    if not drawn and sized:
        raise ConfigError(f"'{source}' begins with layers that are there already; leave {sized[0]} out")
    _settle(source, given, name, drawn and teacher is None)
    if "+" in name:
        parts = {each: {"weight": weight} for each, weight in mixture(name).items()}
        name, given = "multi-task", {**given, "objective.settings": {"parts": parts, **given.get("objective.settings", {})}}
    sizes = {key: given.get(f"model.{key}", default) for key, default in (("size", "micro"), ("width", None), ("depth", None))}
    probe: Any = model or create_model(source, vocab_size=257, **sizes)
    rate = (1e-3 if drawn else 0.2e-3) * math.sqrt(128 / int(probe.config.width))
    config = TrainConfig().replace(**{"optim.lr": rate, "optim.warmup": 0.06, "objective.name": name, **given})
    result = train(config, out, model=model, quiet=quiet, command=command)
    if is_folder(source) and teacher is None and result["status"] == "done" and name != "replaced-tokens":  # whose generator is gone
        result = {**result, "domains": _domains(source, Path(out), config, also, quiet)}
    if result["status"] == "done" and name == "masked-lm" and teacher is None:
        result = {**result, "frequencies": frequencies(prepare(config.data.corpus, config.data.tokenizer, config.data.strict, quiet=True))}
    return result


def _begun(source: str) -> tuple[nn.Module, Tokenizer, Path]:
    """A folder's model that can go on, its tokenizer, and where that lies."""
    model, tokenizer = open_model(Path(source))
    if isinstance(model, PairReader):
        raise ConfigError(f"'{source}' lost what it writes with when it was given a head; go on with what it was fine-tuned from")
    where = tokenizer_spec(find_weights(source))
    if tokenizer is None or where is None:
        raise ConfigError(f"'{source}' has no tokenizer beside its weights; continued pre-training needs it")
    return model, tokenizer, where


def frequencies(data: Dataset) -> float:
    """Nats per held-out token of a model that knows nothing but how frequent tokens are in training: what a masked one must fall below."""
    counts = [np.zeros(data.tokenizer.vocab_size) for _ in range(2)]
    for file, count in zip((data.train, data.validation), counts, strict=True):
        for start in range(0, len(file), CHUNK):
            count += np.bincount(file.read(start, min(len(file), start + CHUNK)), minlength=len(count))
        count[file.doc_id] = 0  # is never hidden
    known, held = counts
    return float(-(held * np.log((known + 0.1) / (known + 0.1).sum())).sum() / max(1.0, held.sum()))


def _settle(source: str, given: dict[str, Any], objective: str, fresh: bool) -> None:
    """Put into the settings what follows from the others: a model that reads both ways where its task asks for that, rows of a step."""
    if fresh and READS & set(mixture(objective)) and find_architecture(parse_pattern(source)[0][0].name).kind == "decoder":
        if "model.settings" in given:
            given["model.settings"] = {"frame": "encoder", **given["model.settings"]}
        else:
            given.setdefault("model.settings.frame", "encoder")
    length = int(given.get("data.length", TrainConfig().data.length))
    given.setdefault("data.batch", rows_by_budget(str(given.get("budget", "")), length))


def rows_by_budget(budget: str, length: int) -> int:
    """Rows of a step where none are given: as many as leave 2,500 steps to a budget of tokens, 4 to 32; of others 32.

    A masked language model learns little but how frequent tokens are in its first thousand steps, however large these are.
    """
    found = parse_budget(budget) if budget else None
    return 32 if found is None or found.kind != "tokens" else int(min(32, max(4, found.amount // (STEPS * length))))


def _domains(source: str, out: Path, config: TrainConfig, also: str, quiet: bool) -> list[dict[str, Any]]:
    """Before and after on the new corpus and the one before; kept in `domains.json`, so that it is measured once."""
    corpora = {"domain": config.data.corpus}
    if other := also or _origin(Path(source)):
        corpora["origin"] = other
    file = out / DOMAINS
    if file.is_file() and {row["role"]: row["corpus"] for row in read_json(file)} == corpora:
        return list(read_json(file))
    (before, tokenizer), (after, _) = open_model(Path(source)), open_model(out)
    assert tokenizer is not None
    found = domain_losses(
        before, after, tokenizer, corpora, config.objective.name, config.objective.settings, config.data.length,
        config.validation.bytes // 4, config.data.strict, quiet,
    )  # fmt: skip
    write_json(file, found)
    return found


def _origin(source: Path) -> str:
    """The corpus of the run that a folder holds or lies in; "" where none says so."""
    for folder in (source, source.parent):
        if (folder / "run.json").is_file():
            return str(read_json(folder / "run.json").get("config", {}).get("data", {}).get("corpus", ""))
    return ""


def mixture(objective: str) -> dict[str, float]:
    """Objectives and their weights: `span-corruption`, or `span-corruption+prefix-lm:0.5`, learnt together from every batch.

    Raises:
        ConfigError: a weight that is no number, an objective named twice, or two that need models of different kinds.
    """
    found: dict[str, float] = {}
    for part in objective.split("+"):
        name, _, weight = part.partition(":")
        try:
            value = float(weight or 1)
        except ValueError:
            raise ConfigError(f"'{part}' must read OBJECTIVE or OBJECTIVE:WEIGHT, with a number for its weight") from None
        if name in found:
            raise ConfigError(f"the objective '{name}' stands twice in '{objective}'")
        found[name] = value
    blind = [name for name in found if name in names(kind="objective", tags=("causal",))]
    if blind and READS & found.keys():
        raise ConfigError(f"{blind[0]} and {min(READS & found.keys())} do not go together: one sees what stands before a token, the other all")
    return found


def marked_spec(spec: str, objective: str) -> str:
    """A tokenizer's spec with the marks that an objective needs; WordPiece has a mask of its own."""
    mark = MARKS.get(objective)
    if (
        mark is None
        or mark in spec.split("+")[1:]
        or (mark == "mask" and spec.startswith("wordpiece"))
        or Path(spec).exists()
    ):
        return spec
    return f"{spec}+{mark}"


def check_marks(tokenizer: Tokenizer, objective: str) -> None:
    """Raise unless a tokenizer has what an objective needs: a model's vocabulary cannot grow."""
    mark = MARKS.get(objective)
    if mark is not None and (mark if mark == "mask" else "span-0") not in tokenizer.marks:
        raise ConfigError(
            f"the model's tokenizer '{tokenizer.name}' lacks the marks of {objective}; take another --objective"
        )


def _kind(model: nn.Module) -> str:
    return (
        "encoder"
        if isinstance(model, Encoder)
        else "encoder-decoder"
        if isinstance(model, EncoderDecoder)
        else "decoder"
    )
