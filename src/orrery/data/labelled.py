"""Tables of examples as what a model is fine-tuned on: label sets, token ids, batches.

Kinds of tasks and their labels: :mod:`orrery.data.examples`; questions are read by :mod:`orrery.data.answering`.

Frame of an example: [class] text [separator], of a pair [class] text [separator] pair [separator], the second with type 1;
of a source and its answer: text [end]. A tokenizer without such marks has the document's id in their place, but a whole
encoder-decoder then reads text [end]. Where the task says so (`own`), marks stand as the tokenizer's file has them: RoBERTa's and BART's have
two between texts, and an answer begins with one, too. A tag stands at the first token of its word.

What a row may not be: without its text or label, of another length than its tags, longer than the model's positions
(unless `truncate`, which is counted). Empty text is an example like any other: the marks alone.

N examples, T tokens of one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from orrery.core.errors import DataError
from orrery.core.seeds import numpy_generator
from orrery.data.answering import encode_answers, read_answers
from orrery.data.choosing import join_documents, read_choice, read_choices, read_sides
from orrery.data.examples import NAMED, Examples, TaskSpec
from orrery.data.marks import house_frame
from orrery.data.records import Row, Table
from orrery.data.text import Tally
from orrery.data.tokenizers import Frame, Tokenizer

IGNORE = -100
LONGEST_LABEL = 1000  # characters
SORTED_BATCHES = 16  # batches whose examples are sorted by length together


def guess_kind(table: Table, label: str) -> str:
    """The kind that a column of labels looks like: lists are tags, numbers with a fraction regression, all else classes."""
    values = table.column(label)[:1000]
    if all(isinstance(value, list) for value in values):
        return "tagging"
    numbers = [_number(value) for value in values]
    if all(number is not None for number in numbers) and any(
        number != int(number) for number in numbers if number is not None
    ):
        return "regression"
    return "classification"


def learn_names(table: Table, spec: TaskSpec) -> TaskSpec:
    """The spec with the names of the labels, from the training table.

    Raises:
        DataError: a column is missing, a label is empty or none of its row's choices, or there is only one.
    """
    for column in filter(None, (spec.text, spec.pair, spec.label, *spec.choices)):
        table.check(column)
    if spec.kind == "question-answering":
        silent = sum(not read_answers(row, spec.label) for row in table.rows)
        if silent == len(table):
            raise DataError(f"no question of '{table.name}' has an answer in '{spec.label}'; there is nothing to learn")
        return spec.replace(empty=silent > 0)
    for row in table.rows if spec.kind == "multiple-choice" else ():
        read_choice(row, spec, read_choices(row, spec))
    if spec.kind == "regression" and len(set(first := _numbers(table.rows, spec))) == 1:
        raise DataError(f"column '{spec.label}' of '{table.name}' holds only the number {first[0]:g}; there is nothing to learn")
    if spec.kind not in NAMED:
        return spec
    found: Counter[str] = Counter()
    for row in table.rows:
        found.update(read_label(row, spec))
    if spec.names:
        unknown = sorted(set(found) - set(spec.names))
        if unknown:
            raise DataError(f"'{table.name}' has the label '{unknown[0]}', which is none of {', '.join(spec.names)}")
        return spec
    numeric = all(_number(name) is not None for name in found)
    if spec.kind in ("classification", "ordinal") and (gaps := _gaps(found)):
        row = next(row for row in table.rows if read_label(row, spec)[0] in gaps)
        raise DataError(
            f"{row.where}: '{spec.label}' is '{read_label(row, spec)[0]}', as missing values are written; leave such rows out, or "
            "name every label with --names if this is one"
        )
    if spec.kind == "ordinal" and not numeric:
        raise DataError(f"the grades of '{spec.label}' are not numbers; say their order, as in --names poor,fair,good")
    names = sorted(found, key=lambda name: (_number(name) if numeric else 0, name))
    if len(names) < (1 if spec.kind in ("multi-label", "tagging") else 2):
        only = f"only the label '{names[0]}'" if names else "no label at all"
        raise DataError(f"column '{spec.label}' of '{table.name}' holds {only}; there is nothing to learn")
    return spec.replace(names=tuple(names))


def _gaps(labels: Counter[str]) -> set[str]:
    """Labels that stand for a missing value: "nan" always, others where all the rest are numbers."""
    often = {label for label in labels if label.casefold() in ("nan", "<na>")}
    seldom = {label for label in labels if label.casefold() in ("na", "n/a", "none", "null", "inf", "-inf")}
    rest = set(labels) - often - seldom
    return often | seldom if rest and all(_number(label) is not None for label in rest) else often


def read_label(row: Row, spec: TaskSpec) -> list[str]:
    """The label of a row as names: one, several, or one for each word.

    Raises:
        DataError: it is missing or empty.
    """
    value = _cell(row, spec.label)
    if spec.kind == "tagging" and not isinstance(value, str | list):
        raise DataError(f"{row.where}: '{spec.label}' is {value!r}; tags are a list, or a text with spaces between them")
    if spec.kind == "tagging":
        return value.split() if isinstance(value, str) else [str(tag) for tag in value]
    if spec.kind == "multi-label":
        parts = value.split(spec.separator) if isinstance(value, str) else value if isinstance(value, list) else [value]
        return [str(part).strip() for part in parts if str(part).strip()]
    if isinstance(value, list | dict):
        raise DataError(
            f"{row.where}: '{spec.label}' is a {type(value).__name__}, but a {spec.kind} label is one value"
        )
    name = str(value).strip()
    if not name:
        raise DataError(f"{row.where}: '{spec.label}' is empty; give the row a label or leave it out")
    if len(name) > LONGEST_LABEL:
        raise DataError(f"{row.where}: '{spec.label}' has {len(name):,} characters; a label has at most {LONGEST_LABEL:,}, or is it a text?")
    return [name]


def encode(
    table: Table,
    spec: TaskSpec,
    tokenizer: Tokenizer,
    *,
    labelled: bool = True,
    limit: int = 0,
    truncate: bool = False,
    end: int | None = None,
    bare: bool = False,
) -> Examples:
    """Token ids of a table's examples, and their targets.

    Args:
        end: the id that ends a source and an answer; None: the separator.
        bare: no mark stands before a text.
        labelled: whether the label column must be there.
        limit: most tokens of an example (the model's positions); 0: none.
        truncate: cut longer examples, from the end of their longer text, and count them; else they are refused.

    Raises:
        DataError: with the row that is wrong.
    """
    for column in filter(None, (spec.text, spec.pair, spec.label if labelled else "", *spec.choices)):
        table.check(column)
    frame = tokenizer.frame if spec.own else None
    if spec.kind == "tagging":
        return _encode_words(table, spec, tokenizer, labelled, limit, truncate, frame or house_frame(tokenizer))
    frame = frame or house_frame(tokenizer, end, bare or spec.kind == "text-to-text")
    if spec.kind == "question-answering":
        return encode_answers(table, spec, tokenizer, labelled=labelled, limit=limit, truncate=truncate, frame=frame)
    if spec.choices:
        return _encode_choices(table, spec, tokenizer, labelled, limit, truncate, frame)
    examples = _encode_texts(table, spec, tokenizer, limit, truncate, frame)
    if labelled:
        _add_targets(examples, tokenizer, frame.front, frame.end if end is None else end)
    return examples


def epoch_batches(lengths: NDArray[np.int64], size: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """Every example once, in batches of like lengths, in an order that only depends on seed and epoch."""
    rng = numpy_generator(seed, "epoch", epoch)
    order = rng.permutation(len(lengths))
    window = size * SORTED_BATCHES
    batches = []
    for start in range(0, len(order), window):
        part = order[start : start + window]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[i : i + size] for i in range(0, len(part), size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def sorted_batches(lengths: NDArray[np.int64], tokens: int = 8192, most: int = 256) -> list[NDArray[np.int64]]:
    """Every example once, shortest first, in batches of at most so many padded tokens."""
    batches: list[NDArray[np.int64]] = []
    order = np.argsort(lengths, kind="stable")
    start = 0
    for stop in range(1, len(order) + 1):
        full = stop == len(order) or stop - start >= most or (stop + 1 - start) * int(lengths[order[stop]]) > tokens
        if full:
            batches.append(order[start:stop])
            start = stop
    return batches


def collate(examples: Examples, index: Sequence[int] | NDArray[np.int64]) -> dict[str, Any]:
    """A batch as tensors: tokens, segments (B,T), and where there are, types (B,T), targets, for text-to-text answer (B,U)."""
    import torch

    chosen = [int(i) for i in index]
    batch: dict[str, Any] = {}
    tokens, segments = _padded([examples.ids[i] for i in chosen])
    batch["tokens"], batch["segments"] = tokens, segments
    if examples.documents is not None:
        batch["segments"] = torch.where(segments < 0, segments, _padded([examples.documents[i] for i in chosen])[0])
    if examples.types is not None and examples.spec.apart:
        batch["segments"] = torch.where(segments < 0, segments, _padded([examples.types[i] for i in chosen])[0])
    elif examples.types is not None:
        batch["types"] = _padded([examples.types[i] for i in chosen])[0]
    if examples.targets is None:
        return batch
    targets = [examples.targets[i] for i in chosen]
    kind = examples.spec.kind
    if kind == "text-to-text":
        batch["answer"], batch["answer_segments"] = _padded(targets)
    elif kind == "tagging":
        batch["targets"] = _padded(targets, IGNORE)[0]
    else:
        batch["targets"] = torch.tensor(
            np.array(targets), dtype=torch.float32 if kind in ("regression", "multi-label") else torch.int64
        )
    return batch


def _padded(rows: Sequence[NDArray[np.int64]], fill: int = 0) -> tuple[Any, Any]:
    """Rows (B,T) and their segments, padding last."""
    import torch

    length = max(len(row) for row in rows)
    values = torch.full((len(rows), length), fill, dtype=torch.int64)
    segments = torch.full((len(rows), length), -1, dtype=torch.int64)
    for number, row in enumerate(rows):
        values[number, : len(row)] = torch.from_numpy(row)
        segments[number, : len(row)] = 0
    return values, segments


def _cell(row: Row, column: str) -> Any:
    value = row.values.get(column)
    if value is None or value != value:  # JSON's null and NaN
        raise DataError(f"{row.where} has no '{column}'; every row needs it")
    return value


def _text(row: Row, column: str) -> str:
    value = _cell(row, column)
    if isinstance(value, list):  # words of a CoNLL file
        return " ".join(map(str, value))
    if isinstance(value, dict):
        raise DataError(f"{row.where}: '{column}' is an object, not a text")
    return str(value)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _encode_texts(
    table: Table, spec: TaskSpec, tokenizer: Tokenizer, limit: int, truncate: bool, frame: Frame
) -> Examples:
    columns = [spec.text, spec.pair] if spec.pair else [spec.text]
    parts = [
        [ids.astype(np.int64) for ids in tokenizer.encode_batch([_text(row, c) for row in table.rows])] for c in columns
    ]
    ids: list[NDArray[np.int64]] = []
    types: list[NDArray[np.int64]] = []
    cut = 0
    for row, texts in zip(table.rows, zip(*parts, strict=True), strict=True):
        if spec.apart:
            cut += _encode_apart(row, texts, frame, limit, truncate, ids, types)
            continue
        marks = [frame.front, *([frame.between] if spec.pair else []), (frame.end,)]
        around = sum(map(len, marks))
        size = sum(map(len, texts)) + around
        if limit and size > limit:
            _refuse_long(row, size, limit, truncate)
            texts, cut = _shortened(texts, limit - around), cut + 1
        pieces, kinds = [np.array(frame.front, dtype=np.int64)], [np.zeros(len(frame.front), np.int64)]
        for number, text in enumerate(texts):
            pieces += [text, np.array(marks[number + 1])]
            kinds.append(np.full(len(text) + len(marks[number + 1]), number))
        ids.append(np.concatenate(pieces))
        types.append(np.concatenate(kinds))
    return Examples(spec, table.rows, ids, types if spec.pair else None, cut=cut)


def _encode_choices(
    table: Table, spec: TaskSpec, tokenizer: Tokenizer, labelled: bool, limit: int, truncate: bool, frame: Frame
) -> Examples:
    """One example for each row: a document for each choice, no longer than `limit`."""
    around = len(frame.front) + len(frame.between) + 1
    examples = Examples(spec, table.rows, [], types=[], targets=[] if labelled else None, documents=[])
    for row in table.rows:
        text, choices = read_sides(row, spec)
        first, *rest = (ids.astype(np.int64) for ids in tokenizer.encode_batch([text, *choices]))
        pairs = [(first, second) for second in rest]
        longest = max(map(len, rest)) + len(first) + around
        if limit and longest > limit:
            _refuse_long(row, longest, limit, truncate)
            pairs, examples.cut = [_fitting(pair, limit - around) for pair in pairs], examples.cut + 1
        ids, types, numbers = join_documents([list(pair) for pair in pairs], frame)
        examples.ids.append(ids)
        cast(list, examples.types).append(types)
        cast(list, examples.documents).append(numbers)
        if examples.targets is not None:
            examples.targets.append(read_choice(row, spec, read_choices(row, spec)))
    examples.answers = list(examples.targets or [])
    return examples


def _fitting(texts: Any, room: int) -> Any:
    return texts if sum(map(len, texts)) <= room else _shortened(texts, room)


def _encode_apart(
    row: Row, texts: Sequence[NDArray[np.int64]], frame: Frame, limit: int, truncate: bool,
    ids: list[NDArray[np.int64]], types: list[NDArray[np.int64]],
) -> int:  # fmt: skip
    """Two documents one behind the other, their numbers in place of types; how many rows were cut."""
    longest, around = max(map(len, texts)), len(frame.front) + 1
    cut = bool(limit) and longest + around > limit
    if cut:
        _refuse_long(row, longest + around, limit, truncate)
    documents = [
        np.concatenate([frame.front, text[: limit - around] if cut else text, [frame.end]]).astype(np.int64) for text in texts
    ]
    ids.append(np.concatenate(documents))
    types.append(np.repeat([0, 1], [len(document) for document in documents]))
    return int(cut)


def _refuse_long(row: Row, size: int, limit: int, truncate: bool) -> None:
    if not truncate:
        raise DataError(
            f"{row.where} has {size} tokens, but the model reads {limit}; shorten it, or cut such rows with --truncate"
        )


def _shortened(texts: Sequence[NDArray[np.int64]], room: int) -> tuple[NDArray[np.int64], ...]:
    """Two texts share the room; what the shorter one leaves goes to the longer."""
    if len(texts) == 1:
        return (texts[0][:room],)
    first, second = texts
    half = room // 2
    if min(len(first), len(second)) > half:
        return first[: room - half], second[:half]
    return (first, second[: room - len(first)]) if len(first) <= half else (first[: room - len(second)], second)


def _encode_words(
    table: Table, spec: TaskSpec, tokenizer: Tokenizer, labelled: bool, limit: int, truncate: bool, frame: Frame
) -> Examples:
    rank = {name: number for number, name in enumerate(spec.names)}
    examples = Examples(spec, table.rows, [], targets=[] if labelled else None, places=[])
    for row in table.rows:
        value = _cell(row, spec.text)
        if not isinstance(value, str | list):
            raise DataError(f"{row.where}: '{spec.text}' is {value!r}; words are a list, or a text with spaces between them")
        words = value.split() if isinstance(value, str) else [str(word) for word in value]
        tags = read_label(row, spec) if labelled else None
        if tags is not None and len(tags) != len(words):
            raise DataError(f"{row.where} has {len(words)} words, but {len(tags)} tags")
        spaced = [f" {word}" if number else word for number, word in enumerate(words)]
        pieces = tokenizer.encode_batch(spaced) if words else []
        pieces = [
            p if len(p) else np.array([frame.end if tokenizer.unknown_id is None else tokenizer.unknown_id]) for p in pieces
        ]
        ends = len(frame.front) + np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
        places = ends - np.array([len(piece) for piece in pieces], dtype=np.int64)
        ids = np.concatenate([frame.front, *pieces, [frame.end]]).astype(np.int64)
        if limit and len(ids) > limit:
            _refuse_long(row, len(ids), limit, truncate)
            ids = np.concatenate([ids[: limit - 1], ids[-1:]])
            places = places[places < limit - 1]
            examples.cut += 1
        examples.ids.append(ids)
        examples.places.append(places)  # type: ignore[union-attr]
        if tags is not None and examples.targets is not None:
            target = np.full(len(ids), IGNORE, dtype=np.int64)
            target[places] = [rank.get(tag, IGNORE) for tag in tags[: len(places)]]
            examples.targets.append(target)
            examples.answers.append(tags)
    return examples


def _add_targets(examples: Examples, tokenizer: Tokenizer, front: tuple[int, ...], end: int) -> None:
    """Targets and answers of every kind but tagging. A label that training never saw is IGNORE: it cannot be right."""
    spec, rows = examples.spec, examples.rows
    if spec.kind == "text-to-text":
        answers = [_text(row, spec.label) for row in rows]
        examples.targets = [np.concatenate([front, ids, [end]]).astype(np.int64) for ids in tokenizer.encode_batch(answers)]
        examples.answers = list(answers)
        return
    rank = {name: number for number, name in enumerate(spec.names)}
    if spec.kind == "regression":
        numbers = _numbers(rows, spec)
        examples.targets = examples.answers = numbers
        return
    names = [read_label(row, spec) for row in rows]
    if spec.kind == "multi-label":
        examples.targets = [np.isin(np.array(spec.names), row).astype(np.int64) for row in names]
        examples.answers = names
    else:
        examples.targets = [rank.get(row[0], IGNORE) for row in names]
        examples.answers = [row[0] for row in names]


def _numbers(rows: Sequence[Row], spec: TaskSpec) -> list[float]:
    """The label of every row of a regression.

    Raises:
        DataError: one is missing or no number.
    """
    found = []
    for row in rows:
        value = _cell(row, spec.label)
        number = _number(value)
        if number is None:
            comma = isinstance(value, str) and value.count(",") == 1 and _number(value.replace(",", ".")) is not None
            raise DataError(f"{row.where}: '{spec.label}' is '{value}', not a number{'; write the decimal point as one' if comma else ''}")
        found.append(number)
    return found


def class_weights(targets: Sequence[int], classes: int) -> list[float]:
    """N / (C n_c): every class weighs the same in all; a class without example weighs 1."""
    counts = np.bincount(np.array([t for t in targets if t >= 0]), minlength=classes)
    return [float(counts.sum() / (classes * count)) if count else 1.0 for count in counts]


def imbalance(targets: Sequence[int], classes: int) -> float:
    """How many times more frequent the largest class is than the smallest that occurs."""
    counts = np.bincount(np.array([t for t in targets if t >= 0]), minlength=classes)
    held = counts[counts > 0]
    return float(held.max() / held.min()) if len(held) else 1.0


def split_table(table: Table, share: float, seed: int, spec: TaskSpec) -> tuple[Table, Table]:
    """A seeded split (kept, held out), by label where there is one, so that both sides have what is rare.

    Raises:
        DataError: too few rows for two sides.
    """
    if len(table) < 4:
        raise DataError(
            f"'{table.name}' has {len(table)} rows; training needs more, or a table of its own for validation"
        )
    rng = numpy_generator(seed, "split")
    groups: dict[Any, list[int]] = {}
    texts: dict[Any, int] = {}  # questions about one text stay on one side
    for number, row in enumerate(table.rows):
        if spec.kind == "question-answering":
            texts.setdefault(row.values.get(spec.text), len(texts))
            continue
        key = read_label(row, spec)[0] if spec.kind in ("classification", "ordinal") else ""
        groups.setdefault(key, []).append(number)
    if texts:
        groups[""] = list(range(len(texts)))
    held: set[int] = set()
    for _, members in sorted(groups.items(), key=lambda item: str(item[0])):
        count = int(np.floor(share * len(members) + rng.random()))
        held.update(np.array(members)[rng.permutation(len(members))[:count]].tolist())
    if not held:
        held = {int(rng.integers(len(texts) or len(table)))}
    if texts:
        if len(texts) < 2:
            raise DataError(f"all questions of '{table.name}' are about one text; give a table of its own for validation")
        held = {number for number, row in enumerate(table.rows) if texts[row.values.get(spec.text)] in held}
    kept = [row for number, row in enumerate(table.rows) if number not in held]
    out = [row for number, row in enumerate(table.rows) if number in held]
    other = Table(f"{table.name} (held out)", table.columns, out, Tally(encoding=table.tally.encoding))
    return Table(f"{table.name} (kept)", table.columns, kept, table.tally), other
