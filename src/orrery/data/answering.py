"""Questions about texts, whose answers stand in them: read from tables, cut into windows, and put together again.

A row has a text (`context`), a question and its answers. An answer cell is a string ("" means that the text does not say), a list of
strings or of {"text", "answer_start"}, or {"text": [...], "answer_start": [...]}; a column `answer_start` or `start` may stand beside
a string. Without a place, the first that reads so is taken. Places are characters.

Frame of an example: [class] question [separator] window [separator], the window with type 1, or with the marks of the tokenizer's file; a whole
encoder-decoder without such marks reads question [end] window [end], as transformers gives it to T5. A text that does not fit is cut into
windows that share `stride` tokens; nothing is lost. The answer's first and last token are the targets, an example's first token where a
window does not hold it. Every token knows the characters of the words that it stands in; an answer that ends inside a word is learnt with
the whole word.

T tokens of a window.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from orrery.core.errors import DataError
from orrery.data.examples import Examples, TaskSpec
from orrery.data.marks import house_frame
from orrery.data.records import Row, Table
from orrery.data.tokenizers import Frame, Tokenizer

WINDOW = 384  # tokens, where neither the user nor the model's positions say
PLACES = ("answer_start", "start")
_OWN = ((0x2E80, 0xA4CF), (0xAC00, 0xD7AF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))  # characters that are words of their own


class Answer(NamedTuple):
    """text: as the table says. start: its first character, or None where it is not said."""

    text: str
    start: int | None


def read_answers(row: Row, column: str) -> list[Answer]:
    """The reference answers of a row; none where the text does not say.

    Raises:
        DataError: a cell that is no answer.
    """
    value = row.values.get(column)
    if value is None:
        raise DataError(f"{row.where} has no '{column}'; a question without an answer has an empty one")
    if isinstance(value, dict):
        texts, starts = value.get("text", []), value.get("answer_start", [])
        texts, starts = ([each] if isinstance(each, str | int) else list(each) for each in (texts, starts))
        given: list[Any] = [{"text": t, "answer_start": s} for t, s in zip(texts, starts or [None] * len(texts), strict=False)]
    elif isinstance(value, list):
        given = value
    else:
        place = next((row.values[name] for name in PLACES if row.values.get(name) not in (None, "")), None)
        given = [{"text": str(value), "answer_start": place}]
    found = []
    for each in given:
        text, start = (each.get("text"), each.get("answer_start")) if isinstance(each, dict) else (each, None)
        if not isinstance(text, str):
            raise DataError(f"{row.where}: '{column}' holds {type(text).__name__}, not the text of an answer")
        try:
            start = None if start in (None, "") else int(start)
        except (TypeError, ValueError):
            raise DataError(f"{row.where}: the place of an answer is a number of characters, not '{start}'") from None
        if text.strip():
            found.append(Answer(text, start if start is None or start >= 0 else None))
    return found


def find_answer(row: Row, context: str, answer: Answer) -> tuple[int, int]:
    """[first, last) characters of an answer.

    Raises:
        DataError: it does not stand there, or nowhere.
    """
    if answer.start is not None:
        if context[answer.start : answer.start + len(answer.text)] == answer.text:
            return answer.start, answer.start + len(answer.text)
        there = context[answer.start : answer.start + len(answer.text)]
        raise DataError(f"{row.where}: at character {answer.start} the text reads '{there[:40]}', not the answer '{answer.text[:40]}'")
    start = context.find(answer.text.strip())
    if start < 0:
        raise DataError(f"{row.where}: the answer '{answer.text[:40]}' does not stand in its text; copy it from there, or leave it empty")
    return start, start + len(answer.text.strip())


def words_of(text: str) -> list[tuple[int, int]]:
    """[first, last) characters of every word, punctuation mark, and character of a script without spaces."""
    found: list[tuple[int, int]] = []
    begin = -1
    for place, char in enumerate(text):
        alone = unicodedata.category(char)[0] in "PS" or any(low <= ord(char) <= high for low, high in _OWN)
        if alone or char.isspace():
            if begin >= 0:
                found.append((begin, place))
            begin = -1
            if alone:
                found.append((place, place + 1))
        elif begin < 0:
            begin = place
    return found if begin < 0 else [*found, (begin, len(text))]


def encode_answers(
    table: Table, spec: TaskSpec, tokenizer: Tokenizer, *, labelled: bool = True, limit: int = 0, truncate: bool = False,
    frame: Frame | None = None,
) -> Examples:  # fmt: skip
    """Windows of a table's questions. `owners` says which row each belongs to, `places` the characters (T,2) of its tokens (-1: none).

    Args:
        frame: the marks of a question and its window; None: the tokenizer's.

    Raises:
        DataError: with the row that is wrong.
    """
    frame = frame or house_frame(tokenizer)
    limit = limit or WINDOW
    examples = Examples(spec, [], [], types=[], targets=[] if labelled else None, places=[], owners=[])
    texts: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
    for number, row in enumerate(table.rows):
        context, question = (_text(row, column) for column in (spec.text, spec.pair))
        if context not in texts:
            texts[context] = _tokens(context, tokenizer)
        asked = tokenizer.encode(question).astype(np.int64)
        if len(asked) > limit // 2:
            if not truncate:
                raise DataError(
                    f"{row.where}: the question has {len(asked)} tokens, more than half of the {limit} that are read; shorten it, or cut "
                    "such rows with --truncate"
                )
            asked, examples.cut = asked[: limit // 2], examples.cut + 1
        wanted = None
        if labelled:
            answers = read_answers(row, spec.label)
            examples.answers.append([answer.text for answer in answers])
            wanted = find_answer(row, context, answers[0]) if answers else None
        front = np.concatenate([frame.front, asked, frame.between]).astype(np.int64)
        ids, places = texts[context]
        room = limit - len(front) - 1
        stride = min(spec.stride or limit // 3, room // 2)
        for first in _windows(len(ids), room, stride):
            part, own = ids[first : first + room], places[first : first + room]
            outside = np.full((len(front), 2), -1)
            held = np.concatenate([outside, own, outside[:1]])
            examples.rows.append(row)
            examples.ids.append(np.concatenate([front, part, [frame.end]]).astype(np.int64))
            examples.types.append(np.repeat([0, 1], [len(front), len(part) + 1]))  # type: ignore[union-attr]
            examples.places.append(held)  # type: ignore[union-attr]
            examples.owners.append(number)  # type: ignore[union-attr]
            if examples.targets is not None:
                examples.targets.append(_target(held, wanted))
    return examples


def _tokens(text: str, tokenizer: Tokenizer) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids (T,) of a text and the characters (T,2) of the words that each stands in, -1 between words."""
    ids, found = tokenizer.encode_places(text)
    words = np.array(words_of(text), dtype=np.int64).reshape(-1, 2)
    if not len(words):
        return ids.astype(np.int64), np.full((len(ids), 2), -1)
    first = np.searchsorted(words[:, 1], found[:, 0], "right")  # the first word that ends behind the token's start
    last = np.searchsorted(words[:, 0], found[:, 1], "left") - 1  # the last that begins before its end
    places = np.stack([words[first.clip(max=len(words) - 1), 0], words[last.clip(0), 1]], 1)
    places[first > last] = -1
    return ids.astype(np.int64), places


def _windows(length: int, room: int, stride: int) -> list[int]:
    """Where windows begin."""
    found = [0]
    while found[-1] + room < length:
        found.append(found[-1] + room - stride)
    return found


def _target(places: NDArray[np.int64], wanted: tuple[int, int] | None) -> NDArray[np.int64]:
    """The first and last token of an answer [first, last), or the class mark where the window does not hold all of it."""
    if wanted is None:
        return np.zeros(2, dtype=np.int64)
    held = np.flatnonzero((places[:, 0] < wanted[1]) & (places[:, 1] > wanted[0]) & (places[:, 0] >= 0))
    whole = len(held) and places[held[0], 0] <= wanted[0] and places[held[-1], 1] >= wanted[1]
    return np.array([held[0], held[-1]] if whole else [0, 0], dtype=np.int64)


def join_windows(found: Sequence[tuple[float, float, int, int]], owners: Sequence[int], empty: bool) -> list[tuple[int, int, float]]:
    """For each row the best answer of its windows: characters [first, last) and log-probability; (0, 0) for none.

    Args:
        found: of every window: log-probability of its best answer, of no answer, and the answer's characters.
        empty: whether there may be no answer: then it is given where every window finds it likelier than the best answer.
    """
    best: dict[int, tuple[float, float, int, int]] = {}
    for (score, none, first, last), owner in zip(found, owners, strict=True):
        there = best.get(owner)
        none = none if there is None else min(none, there[1])
        best[owner] = (score, none, first, last) if there is None or score > there[0] else (there[0], none, *there[2:])
    answers = []
    for owner in sorted(best):
        score, none, first, last = best[owner]
        answers.append((0, 0, none) if empty and none >= score else (first, last, score))
    return answers


def _text(row: Row, column: str) -> str:
    value = row.values.get(column)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{row.where}: '{column}' is {'empty' if isinstance(value, str) or value is None else 'no text'}; a question needs it")
    return value
