"""A model fitted to a task: what it takes to answer, and nothing else. Saved as one folder, loaded as one.

    weights/    the model, its tokenizer beside it
    task.json   the task: kind, columns, labels, length; how numbers were scaled; the encoding of the training table
    words/      a bag of words that answers beside the model, where the task asks for one

B batch, T time, N examples, C labels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from orrery.core.errors import ConfigError, CorruptionError, DataError, StorageError
from orrery.core.files import read_json
from orrery.core.progress import progress
from orrery.data.answering import join_windows
from orrery.data.choosing import read_choices
from orrery.data.encodings import UTF_8, find_encoding
from orrery.data.examples import Examples, TaskSpec
from orrery.data.labelled import collate, encode, sorted_batches
from orrery.data.records import Row, Table
from orrery.data.tokenizer_files import load_tokenizer
from orrery.data.tokenizers import Tokenizer
from orrery.evaluate.tasks import Judged, judge
from orrery.generate.pairs import target_steps
from orrery.generate.sampling import Sampling
from orrery.methods.words import Words
from orrery.models.encoder_decoder import PairReader
from orrery.models.storage import load

FORMAT = 1
TASK = "task.json"


@dataclass
class Fitted:
    """model: with the head of the task. shift, scale: a number is predicted as `shift + scale * output`. words: answers beside it.
    encoding: of the table that it learnt from, in which others are read unless something else is said."""

    model: nn.Module
    tokenizer: Tokenizer
    spec: TaskSpec
    shift: float = 0.0
    scale: float = 1.0
    words: Words | None = None
    encoding: str = UTF_8

    def record(self) -> dict[str, Any]:
        """What `task.json` says."""
        scaled = {"shift": self.shift, "scale": self.scale}
        return {"format": FORMAT, "task": self.spec.to_dict(), **scaled, "encoding": self.encoding}

    def encode(self, table: Table, labelled: bool = True, truncate: bool = False) -> Examples:
        """A table's examples as the model reads them."""
        limit = self.spec.length or position_limit(self.model)
        model: Any = self.model
        whole = isinstance(model, PairReader)
        end = model.config.stop if whole or self.spec.kind == "text-to-text" else None
        bare = whole and "class" not in self.tokenizer.marks  # T5's texts begin with their first word
        found = encode(table, self.spec, self.tokenizer, labelled=labelled, limit=limit, truncate=truncate, end=end, bare=bare)
        if found.types is not None and not self.spec.apart and not _types(model):
            found.types = None  # the separator alone tells the texts apart, as DistilBERT has it
        return found

    @torch.no_grad()
    def outputs(self, examples: Examples, quiet: bool = True) -> dict[str, Any]:
        """Predictions of every example in order, as :func:`orrery.evaluate.tasks.judge` takes them."""
        training = self.model.training
        self.model.eval()
        found: list[Any] = [None] * len(examples)
        bare = replace(examples, targets=None)
        with progress(len(examples), "predicting", "rows", quiet=quiet) as bar:
            for index in sorted_batches(examples.lengths):
                answers = self._answer(bare, index)
                for place, answer in zip(index, answers, strict=True):
                    found[int(place)] = answer
                bar.update(len(index))
        self.model.train(training)
        given = self._joined(found, examples)
        return given if self.words is None else self.words.mix(given, examples.rows)

    def judge(self, examples: Examples, quiet: bool = True) -> Judged:
        """The model's predictions judged by the table's answers."""
        return judge(self.spec, examples.answers, self.outputs(examples, quiet))

    def read(self, rows: Table | list[str], truncate: bool = False) -> Examples:
        """Examples to be answered, of a table (labels are not needed) or of texts."""
        if isinstance(rows, list):
            if self.spec.choices:
                columns = ", ".join(f"'{column}'" for column in (self.spec.text, *self.spec.choices))
                raise DataError(f"this model chooses between a row's choices; give a table with the columns {columns}")
            if self.spec.pair:
                does = "answers questions about a text" if self.spec.kind == "question-answering" else "compares two texts"
                raise DataError(f"this model {does}; give a table with the columns '{self.spec.text}' and '{self.spec.pair}'")
            rows = Table(
                "texts", (self.spec.text,), [Row(f"text {n}", {self.spec.text: text}) for n, text in enumerate(rows, 1)]
            )
        return self.encode(rows, labelled=False, truncate=truncate)

    def answers(self, examples: Examples, quiet: bool = True) -> list[dict[str, Any]]:
        """Answers for people: a dict for each row, by kind "label" and "probabilities", "labels", "value", "tags" or "text";
        to a question "answer" ("" for none), its "start" in the text and the "probability" of its two ends; of choices "choice", its
        "number" from 0 and the "probabilities" of all."""
        given = self.outputs(examples, quiet)
        return [self._say(given, number) for number in range(len(next(iter(given.values()))))]

    def predict(self, rows: Table | list[str], truncate: bool = False, quiet: bool = True) -> list[dict[str, Any]]:
        """The answers to a table's rows, or to texts."""
        return self.answers(self.read(rows, truncate), quiet)

    def _answer(self, examples: Examples, index: np.ndarray) -> list[Any]:
        """One batch's raw answers, in its order."""
        batch = collate(examples, index)
        kind = self.spec.kind
        device = next(self.model.parameters()).device
        batch = {name: value.to(device) for name, value in batch.items()}
        if kind == "text-to-text":
            return self._write(batch)
        more = {"types": batch["types"]} if "types" in batch else {}
        out = self.model(batch["tokens"], segments=batch["segments"], **more)
        scores, head = out.logits, self.head
        if kind == "tagging":
            where = torch.zeros_like(batch["tokens"], dtype=torch.bool)
            for row, number in enumerate(index):
                where[row, torch.from_numpy(examples.places[int(number)])] = True  # type: ignore[index]
            tags = head.predict(scores, batch["segments"], where).cpu()
            return [tags[row][where[row].cpu()].tolist() for row in range(len(index))]
        if kind == "question-answering":
            return self._passages(examples, index, scores, batch["segments"])
        if kind == "multiple-choice":
            counts = (batch["segments"].amax(1) + 1).tolist()
            shares = scores.double().softmax(-1).cpu().numpy()
            return [row[:count] for row, count in zip(shares, counts, strict=True)]
        if kind == "regression":
            return (self.shift + self.scale * scores.flatten().double()).cpu().tolist()
        if kind == "multi-label":
            return list(scores.double().sigmoid().cpu().numpy())
        best = head.predict(scores, batch["segments"]).cpu().tolist()
        probabilities = scores.double().softmax(-1).cpu().numpy()  # of log-probabilities (ordinal), themselves
        return list(zip(probabilities, best, strict=True))

    def _passages(self, examples: Examples, index: np.ndarray, scores: Tensor, segments: Tensor) -> list[Any]:
        """Of every window: log-probability of its best answer, of none, and the answer's characters [first, last)."""
        where = torch.zeros_like(segments, dtype=torch.bool)
        places = [examples.places[int(number)] for number in index]  # type: ignore[index]
        for row, own in enumerate(places):
            where[row, : len(own)] = torch.from_numpy(own[:, 0] >= 0)
        where[~where.any(1), 0] = True  # a text without a word
        best = self.head.predict(scores, segments, where).cpu()
        shares = scores.double().log_softmax(1).cpu()
        found = []
        for row, (first, last) in enumerate(best.tolist()):
            own, score = places[row], float(shares[row, first, 0] + shares[row, last, 1])
            found.append((score, float(shares[row, 0].sum()), max(0, int(own[first, 0])), max(0, int(own[last, 1]))))
        return found

    def _write(self, batch: dict[str, Any]) -> list[str]:
        model: Any = self.model
        limit = self.spec.answer or 2 * batch["tokens"].shape[1]
        steps = target_steps(model, batch["tokens"], batch["segments"], limit, Sampling(temperature=0.0), None)
        frame = self.tokenizer.frame if self.spec.own else None
        texts, marks = [], frame.front if frame is not None else ()
        for row in torch.stack(list(steps), 1).tolist():
            row = row[: row.index(model.config.stop)] if model.config.stop in row else row
            texts.append(self.tokenizer.decode([token for token in row if token not in marks]))
        return texts

    @property
    def head(self) -> Any:
        """The model's head."""
        head = getattr(self.model, "head", None)
        if head is None:
            raise ConfigError("the model has no head for a task")
        return head

    def _joined(self, found: list[Any], examples: Examples) -> dict[str, Any]:
        kind, names = self.spec.kind, self.spec.names
        if kind == "text-to-text":
            return {"texts": found}
        if kind == "question-answering":
            owners = examples.owners or []
            answers = join_windows(found, owners, self.spec.empty)
            rows = dict(zip(owners, examples.rows, strict=True))
            texts = [rows[n].values[self.spec.text][first:last] for n, (first, last, _) in enumerate(answers)]
            return {"texts": texts, "starts": [first for first, *_ in answers], "scores": [score for *_, score in answers]}
        if kind == "tagging":
            outside = "O" if "O" in names else names[0]
            given = (row.values[self.spec.text] for row in examples.rows)
            words = [len(value.split() if isinstance(value, str) else value) for value in given]
            named = [
                [names[tag] for tag in tags] for tags in found
            ]  # words that were cut off are outside of everything
            return {"tags": [tags + [outside] * (count - len(tags)) for tags, count in zip(named, words, strict=True)]}
        if kind == "multiple-choice":
            best = [int(np.argmax(shares)) for shares in found]
            texts = [read_choices(row, self.spec)[number] for row, number in zip(examples.rows, best, strict=True)]
            return {"predicted": np.array(best), "shares": found, "texts": texts}
        if kind == "regression":
            return {"predicted": np.array(found)}
        if kind == "multi-label":
            return {"probabilities": np.array(found)}
        return {"probabilities": np.array([p for p, _ in found]), "predicted": np.array([best for _, best in found])}

    def _say(self, given: dict[str, Any], number: int) -> dict[str, Any]:
        kind, names = self.spec.kind, self.spec.names
        if kind == "text-to-text":
            return {"text": given["texts"][number]}
        if kind == "question-answering":
            answer, score = given["texts"][number], float(np.exp(given["scores"][number]))
            return {"answer": answer, "start": given["starts"][number] if answer else None, "probability": score}
        if kind == "tagging":
            return {"tags": given["tags"][number]}
        if kind == "multiple-choice":
            shares = [float(share) for share in given["shares"][number]]
            return {"choice": given["texts"][number], "number": int(given["predicted"][number]), "probabilities": shares}
        if kind == "regression":
            return {"value": float(given["predicted"][number])}
        named = dict(zip(names, map(float, given["probabilities"][number]), strict=True))
        if kind == "multi-label":
            return {"labels": [name for name, share in named.items() if share > 0.5], "probabilities": named}
        return {"label": names[int(given["predicted"][number])], "probabilities": named}


def load_fitted(folder: str | Path) -> Fitted:
    """What fine-tuning wrote.

    Raises:
        StorageError: there is no fitted model in the folder.
        CorruptionError: a file is damaged.
    """
    path = Path(folder)
    if not (path / TASK).is_file():
        several = sorted(each.parent.name for each in path.glob(f"tasks/*/{TASK}"))
        if several:
            raise StorageError(f"'{path}' holds {len(several)} tasks; name one, such as {path / 'tasks' / several[0]}")
        raise StorageError(f"'{path}' holds no fine-tuned model ({TASK} is missing); `orrery finetune` makes one")
    stored = read_json(path / TASK)
    try:
        if stored["format"] != FORMAT:
            raise CorruptionError(
                f"'{path / TASK}' is of format {stored['format']}; this version reads format {FORMAT}"
            )
        spec, shift, scale = TaskSpec.from_dict(stored["task"]), float(stored["shift"]), float(stored["scale"])
        encoding = find_encoding(stored.get("encoding", UTF_8))
    except (AttributeError, KeyError, TypeError, ValueError, ConfigError) as error:
        raise CorruptionError(f"'{path / TASK}' is damaged: {error}") from error
    model = load(path / "weights")
    tokenizer = load_tokenizer(path / "weights" / "tokenizer")
    if tokenizer.vocab_size > int(getattr(model, "vocab_size", tokenizer.vocab_size)):
        raise CorruptionError(f"the tokenizer in '{path}' makes {tokenizer.vocab_size} ids, more than the model knows")
    return Fitted(model, tokenizer, spec, shift, scale, Words.load(path, spec) if spec.words else None, encoding)


def position_limit(model: nn.Module) -> int:
    """How many tokens a model reads at most, 0 where it does not say: the size of its table of learned positions."""
    parts = (model, getattr(model, "encoder", None))
    for part in parts:
        table = getattr(part, "position_embed", None)
        if isinstance(table, nn.Embedding):
            return table.num_embeddings
    return 0


def _types(model: nn.Module) -> int:
    """How many token types a model tells apart; models that are not ours say nothing and are handed them."""
    config = getattr(model, "config", None)
    embedding = getattr(getattr(config, "encoder", config), "embedding", None)
    return 1 if embedding is None else int(getattr(embedding, "types", 0)) > 1
