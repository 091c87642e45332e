"""Pre-training of encoders and encoder-decoders: which pretext task, which marks, which rate, unless one says otherwise.

    encoder           masked-lm; electra: replaced-tokens  marks: mask
    encoder-decoder   span-corruption; bart: denoising     marks: a hundred spans, or mask
    decoder           next-token                           none

Everything else is :func:`orrery.train.train`: budgets, exact resume, the run's folder. Continued pre-training on a domain is
the same with a folder in place of a name: its weights go on, with its own tokenizer.

Learning rate, unless it is given: ``1e-3 sqrt(128 / width)`` from drawn weights, a fifth of that from a folder.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import nn

from orrery.core.errors import ConfigError
from orrery.data.tokenizers import Tokenizer
from orrery.methods.starting import is_folder, open_model
from orrery.models.build import create_model, find_architecture
from orrery.models.encoder import Encoder
from orrery.models.encoder_decoder import EncoderDecoder
from orrery.models.patterns import parse_pattern
from orrery.train import TrainConfig, train

SPANS = 100
OBJECTIVES = {"encoder": "masked-lm", "encoder-decoder": "span-corruption", "decoder": "next-token"}
OWN = {"bart": "denoising", "electra": "replaced-tokens"}
MARKS = {"masked-lm": "mask", "replaced-tokens": "mask", "denoising": "mask", "span-corruption": f"spans-{SPANS}"}


def pretrain(
    source: str,
    out: str | Path,
    settings: dict[str, Any] | None = None,
    *,
    objective: str | None = None,
    quiet: bool = False,
    command: list[str] | None = None,
) -> dict[str, Any]:
    """Pre-train, or continue.

    Args:
        source: the name of an architecture, or a folder with a model and its tokenizer.
        out: the run's folder; `out/weights` is what fine-tuning starts from.
        settings: of :class:`TrainConfig`, dotted ("data.corpus", "budget", "optim.lr", "model.size", ...).
        objective: a registered one; None: by the list above.

    Raises:
        OrreryError: in one sentence.
    """
    given = dict(settings or {})
    model: nn.Module | None = None
    if is_folder(source):
        model, tokenizer = open_model(Path(source))
        if tokenizer is None or getattr(model, "folder", None) is None:
            raise ConfigError(
                f"'{source}' has no tokenizer of ours beside its weights; continued pre-training needs it"
            )
        kind, width = _kind(model), int(model.config.width)  # type: ignore[union-attr, arg-type]
        name = objective or OWN.get(str(model.config.architecture)) or OBJECTIVES[kind]  # type: ignore[union-attr]
        check_marks(tokenizer, name)
        given |= {"data.tokenizer": str(Path(model.folder) / "tokenizer"), "model.name": str(source)}  # type: ignore[arg-type]
        rate = 0.2e-3 * math.sqrt(128 / width)
    else:
        lead = parse_pattern(source)[0][0].name
        kind = find_architecture(lead).kind
        name = objective or OWN.get(lead) or OBJECTIVES[kind]
        given["model.name"] = source
        given["data.tokenizer"] = marked_spec(str(given.get("data.tokenizer", "wordpiece:8192,lower")), name)
        probe = create_model(source, str(given.get("model.size", "micro")), vocab_size=257)
        rate = 1e-3 * math.sqrt(128 / int(probe.config.width))  # type: ignore[union-attr, arg-type]
    config = TrainConfig().replace(**{"optim.lr": rate, "optim.warmup": 0.06, "objective.name": name, **given})
    return train(config, out, model=model, quiet=quiet, command=command)


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
