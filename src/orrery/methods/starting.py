"""What fine-tuning starts from: a folder (ours or transformers'), or an architecture by name, drawn anew; with the task's head.

A folder brings its tokenizer. A name gets one trained on the texts of the training table, unless one is named.

Embeddings that are drawn as large as 1 (T5's, for an optimizer whose steps follow the size of what they move) are drawn as
:data:`REACHABLE` in place of that where a head is to learn from a table: AdamW moves every number by about its rate, so that in some thousand
steps words would stay the random vectors that they began as. (`embedding.std` and its like say otherwise.)

An encoder-decoder answers about whole texts and in passages of them with both stacks, as its papers and transformers have it; to
tag words, and to compare texts that are read apart, its encoder is taken alone. The setting `frame` says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from orrery.core import registry
from orrery.core.errors import ConfigError, DataError
from orrery.data.corpora import MemoryCorpus
from orrery.data.dataset import build_tokenizer
from orrery.data.examples import NAMED, TaskSpec
from orrery.data.marks import frame_ids
from orrery.data.records import Table
from orrery.data.tokenizer_files import load_tokenizer, open_tokenizer_file
from orrery.data.tokenizers import LIBRARY_FILE, Tokenizer
from orrery.evaluate.spans import scheme_of
from orrery.models.build import create_model, find_architecture, is_pair
from orrery.models.convert import as_encoder, with_head
from orrery.models.decoder import DecoderLM
from orrery.models.encoder import Encoder
from orrery.models.encoder_decoder import EncoderDecoder, PairFrame
from orrery.models.folders import open_folder
from orrery.models.patterns import parse_pattern

DEFAULT_TOKENIZER = "wordpiece:8192,lower"
DEFAULT_WRITER_TOKENIZER = "bpe:4096"  # answers must come back as they were written
WHOLE = ("classification", "multi-label", "regression", "ordinal", "multiple-choice", "span")  # heads that a whole encoder-decoder has by default
DROPPED = ("classification", "multi-label", "regression", "ordinal", "multiple-choice", "tagging")  # heads with dropout before their last layer
REACHABLE = 0.05  # standard deviation of an embedding that is learnt in fine-tuning
READING = ("encoder", "encoder-decoder")  # frames that may be asked for


@dataclass(frozen=True)
class Source:
    """Where a model comes from. name: an architecture or a folder. pretrained: whether its weights know anything."""

    name: str
    model: nn.Module
    tokenizer: Tokenizer
    pretrained: bool


def start(
    source: str | Path | nn.Module,
    spec: TaskSpec,
    train: Table,
    *,
    tokenizer: str | Tokenizer | None = None,
    size: str | None = None,
    seed: int = 0,
    settings: dict[str, Any] | None = None,
    quiet: bool = False,
) -> Source:
    """A model with the head that a task needs.

    Args:
        source: a model, a folder of one, or the name of an architecture.
        tokenizer: a spec or a tokenizer; None: the folder's own, or one trained on the table's texts.
        size: of a named architecture; default tiny.
        settings: of the model or its head ("head.crf": True), as `create_model` takes them.

    Raises:
        ConfigError: a model that cannot learn such a task.
        DataError, StorageError: a tokenizer that is missing or does not match the model.
    """
    given = dict(settings or {})
    if isinstance(source, nn.Module) or is_folder(source):
        name = type(source).__name__ if isinstance(source, nn.Module) else str(source)
        model, own = (source, None) if isinstance(source, nn.Module) else open_model(Path(source))
        if isinstance(tokenizer, str):
            tokenizer = build_tokenizer(tokenizer, texts_of(train, spec), quiet)
        tokenizer = tokenizer or own or _beside(model)
        if own is not None and tokenizer.hash != own.hash and tokenizer.vocab_size <= int(getattr(model, "vocab_size", 0)):
            raise DataError(f"the model in '{name}' was trained with the tokenizer {own.name}, not with this {tokenizer.name}; leave it out")
        if tokenizer.vocab_size > int(getattr(model, "vocab_size", 0)):
            raise DataError(
                f"the tokenizer makes {tokenizer.vocab_size} ids, but the model in '{name}' knows "
                f"{getattr(model, 'vocab_size', 0)}; use the tokenizer it was trained with"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # the head is drawn; what ran before in this process must not decide how
            return Source(name, _fit_head(model, spec, train, given), tokenizer, True)
    name = str(source)
    if name == "lamate":
        return _translator(spec, tokenizer, seed, given)
    if tokenizer is None or isinstance(tokenizer, str):
        default = DEFAULT_WRITER_TOKENIZER if spec.kind == "text-to-text" else reads(name) or DEFAULT_TOKENIZER
        tokenizer = build_tokenizer(tokenizer or default, texts_of(train, spec), quiet)
    if reads(name) not in ("", tokenizer.name):
        raise ConfigError(f"'{name}' reads {reads(name)}, not the ids of '{tokenizer.name}'; leave the tokenizer out")
    return Source(name, _draw(name, spec, train, tokenizer, size, seed, given), tokenizer, False)


def reads(name: str) -> str:
    """The tokenizer that a whole model is made for (its class says so); empty for all others."""
    plain = name.split("(")[0].strip()
    if plain not in registry.names(kind="model"):
        return ""
    return str(getattr(registry.load(plain, "model"), "tokenizer", ""))


def head_settings(spec: TaskSpec, train: Table) -> dict[str, Any]:
    """The head of a task, as `create_model` and `with_head` take it."""
    if spec.kind == "question-answering":
        return {"labels": 2}
    found: dict[str, Any] = {"labels": len(spec.names) if spec.kind in NAMED else 1}
    if spec.kind in NAMED:
        found["names"] = spec.names
    if spec.apart and spec.kind == "regression":
        found["join"] = "cosine"
    return found


def scheme(spec: TaskSpec, train: Table) -> str:
    """The scheme of a tagging task's tags."""
    rows = train.column(spec.label)
    return scheme_of([row.split() if isinstance(row, str) else row for row in rows])


def _draw(
    name: str, spec: TaskSpec, train: Table, tokenizer: Tokenizer, size: str | None, seed: int, given: dict[str, Any]
) -> nn.Module:
    common: dict[str, Any] = {"vocab_size": tokenizer.vocab_size, "seed": seed}
    pair = is_pair(name)
    frame, given = _frame(spec, given, pair)
    if not {"width", "depth"} & given.keys():
        common["size"] = size
    if spec.kind == "text-to-text":
        if not pair:
            raise ConfigError(f"'{name}' is no encoder-decoder, which text-to-text needs; take t5 or bart")
        end = frame_ids(tokenizer)[1]
        return create_model(name, **common, **{"start": tokenizer.doc_id, "stop": end, **given})
    head = {key if key == "labels" else f"head.{key}": value for key, value in head_settings(spec, train).items()}
    if pair and frame == "encoder-decoder":  # texts of a pair are told apart by the mark between them
        ends = {"start": tokenizer.doc_id, "stop": frame_ids(tokenizer)[1]}
        return create_model(name, head=spec.head, **common, **{**ends, **head, **_reachable(name), **given})
    if spec.sided and "types" not in given:
        given = {**given, "embedding.types": 2}
    small = {"embedding.std": REACHABLE} if _reachable(name) else {}
    return create_model(name, frame="encoder", head=spec.head, **common, **{**head, **small, **given})


def _reachable(name: str) -> dict[str, float]:
    """The scales of embeddings that an architecture draws too large to be learnt in fine-tuning, with what they are drawn at instead."""
    lead = parse_pattern(name)[0][0].name
    if not {"architecture", "mixer"} & set(registry.lookup(lead.partition("/")[0]).kinds):
        return {}
    scales = ("encoder.embedding.std", "decoder.embed_std", "embedding.std", "embed_std")
    return {key: REACHABLE for key in scales if float(find_architecture(lead).frame.get(key, 0.0)) >= 1}


def _translator(spec: TaskSpec, tokenizer: str | Tokenizer | None, seed: int, given: dict[str, Any]) -> Source:
    """`lamate` about the language model in the folder `lm`, with whose tokenizer it reads and writes; half as wide, unless told."""
    folder = given.pop("lm", None)
    if spec.kind != "text-to-text":
        raise ConfigError("lamate writes texts (--task text-to-text); for other tasks fine-tune its language model's folder itself")
    if not isinstance(folder, str) or not is_folder(folder):
        raise ConfigError("lamate begins with a trained language model: --set model.lm=FOLDER, such as `orrery train transformer` writes")
    language, own = open_model(Path(folder))
    if not isinstance(language, DecoderLM) or own is None:
        raise ConfigError(f"'{folder}' holds no decoder language model with its tokenizer, which lamate begins with")
    if tokenizer is not None:
        raise ConfigError("lamate reads and writes with its language model's tokenizer; leave the tokenizer out")
    ends = {"start": own.doc_id, "stop": frame_ids(own)[1]}
    sizes = {"width": max(32, language.config.width // 32 * 16), "group": min(2, language.config.depth), "vocab_size": own.vocab_size}
    model: Any = create_model("lamate", seed=seed, **{**ends, **sizes, "lm": language.config.to_dict(), **given})
    model.take(language)
    return Source(name="lamate", model=model, tokenizer=own, pretrained=True)


def _fit_head(model: nn.Module, spec: TaskSpec, train: Table, given: dict[str, Any]) -> nn.Module:
    """The same body with the head that the task needs."""
    frame, given = _frame(spec, given, isinstance(model, PairFrame))
    if spec.kind == "text-to-text":
        if not isinstance(model, EncoderDecoder):
            if isinstance(model, PairFrame):
                raise ConfigError(f"this {model.config.architecture} lost what it writes with to a head; text-to-text needs one without")
            raise ConfigError(f"{type(model).__name__} is no encoder-decoder, which text-to-text needs; take t5 or bart")
        return model
    asked = {key.removeprefix("head."): value for key, value in given.items()}
    settings = {**head_settings(spec, train), **_dropout(model, spec), **asked}
    if isinstance(model, DecoderLM):
        return as_encoder(model, spec.head, **settings)
    if isinstance(model, PairFrame) and frame == "encoder":
        model = model.encoder
    if not isinstance(model, Encoder | PairFrame) and not hasattr(model, "with_head"):
        raise ConfigError(f"{type(model).__name__} cannot be given a head for {spec.kind}")
    return with_head(cast(Encoder, model), spec.head, **settings)


def _dropout(model: nn.Module, spec: TaskSpec) -> dict[str, float]:
    """That of the head which an encoder had, else of its layers, as transformers' BERT and its descendants have it."""
    if not isinstance(model, Encoder) or spec.head not in DROPPED:
        return {}
    head: Any = model.head
    had = 0.0 if head is None or head.level == "vocabulary" else float(head.config.dropout)
    share = had or model.config.blocks[0].dropout
    return {"dropout": share} if share else {}


def _frame(spec: TaskSpec, given: dict[str, Any], pair: bool) -> tuple[str, dict[str, Any]]:
    """The frame that an encoder-decoder (`pair`) reads in, by its task or as asked for, and the other settings.

    Raises:
        ConfigError: for a frame that there is not, or that the model or the task cannot have.
    """
    frame = given.get("frame", "encoder-decoder" if spec.head in WHOLE else "encoder")
    if frame not in READING:
        raise ConfigError(f"a task is read in the frame {' or '.join(READING)}, not '{frame}'")
    if not pair and given.get("frame") == "encoder-decoder":
        raise ConfigError("frame=encoder-decoder needs a model with both stacks; take t5 or bart, or leave frame out")
    if spec.kind == "text-to-text" and given.get("frame") == "encoder":
        raise ConfigError("text-to-text writes with both stacks; leave frame=encoder out")
    return frame, {key: value for key, value in given.items() if key != "frame"}


def texts_of(table: Table, spec: TaskSpec) -> MemoryCorpus:
    """What a tokenizer is trained on: the texts of a table, its answers among them."""
    columns = [spec.text, *([spec.pair] if spec.pair else []), *spec.choices, *([spec.label] if spec.kind == "text-to-text" else [])]
    texts = []
    for row in table.rows:
        for column in columns:
            value = row.values.get(column)
            texts.append(" ".join(map(str, value)) if isinstance(value, list) else str(value or ""))
    texts = list(dict.fromkeys(texts)) if spec.kind == "question-answering" else texts  # a text comes with each of its questions
    return MemoryCorpus([text for text in texts if text.strip()], name=f"texts of {table.name}")


def is_folder(source: str | Path | nn.Module) -> bool:
    """Whether a source is a folder that exists."""
    return isinstance(source, str | Path) and Path(source).expanduser().is_dir()


def open_model(folder: Path) -> tuple[nn.Module, Tokenizer | None]:
    """A model and its tokenizer from a folder of ours, of a run, or of transformers."""
    model, path = open_folder(folder)
    spec = tokenizer_spec(path)
    return model, None if spec is None else open_tokenizer_file(spec)


def tokenizer_spec(folder: Path) -> Path | None:
    """Where the tokenizer of a folder with weights lies: ours in `tokenizer/`, or the library's file; None where there is none."""
    found = (folder / "tokenizer", folder / LIBRARY_FILE)
    return next((path for path in found if path.exists()), None)


def _beside(model: nn.Module) -> Tokenizer:
    folder = getattr(model, "folder", None)
    if folder is None or not (Path(folder) / "tokenizer").is_dir():
        raise DataError("the model has no tokenizer beside it; name one with --tokenizer")
    return load_tokenizer(Path(folder) / "tokenizer")
