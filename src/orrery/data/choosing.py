"""Rows with a text and several choices, of which one is right: what each choice reads, and which it is.

The choices stand in columns of their own, or in one column as a list (JSON). A row becomes one document for each of them,
[class] text [separator] choice [separator], or [class] text [separator] question choice [separator] where the task has a `pair`
(or with the marks of the tokenizer's file); empty cells are no choices, so rows may have different numbers of them.

A label is the text of a choice, the name of its column, a letter (A is the first), or a number that counts from 0; the first of
these that fits holds.

T tokens of a row.
"""

from __future__ import annotations

import string
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orrery.core.errors import DataError
from orrery.data.examples import TaskSpec
from orrery.data.records import Row
from orrery.data.tokenizers import Frame


def read_choices(row: Row, spec: TaskSpec) -> list[str]:
    """The choices of a row, two or more.

    Raises:
        DataError: fewer, or a cell that is no text.
    """
    cells: list[Any] = [row.values.get(column) for column in spec.choices]
    if len(spec.choices) == 1:
        if not isinstance(cells[0], list):
            raise DataError(f"{row.where}: '{spec.choices[0]}' is no list of choices; name one column for each with --choices a,b,c")
        cells = cells[0]
    if wrong := next((cell for cell in cells if isinstance(cell, list | dict)), None):
        raise DataError(f"{row.where}: a choice is a text, not {wrong!r}")
    found = ["" if cell is None or cell != cell else str(cell).strip() for cell in cells]  # JSON's null and NaN
    while found and not found[-1]:
        found.pop()
    if len(found) < 2 or not all(found):
        raise DataError(f"{row.where} has {sum(map(bool, found))} choices, with gaps or fewer than two; fill them in, or leave the row out")
    return found


def read_choice(row: Row, spec: TaskSpec, choices: list[str]) -> int:
    """The number of the right one, from 0.

    Raises:
        DataError: the label is missing, or says none of the choices.
    """
    value = row.values.get(spec.label)
    name = "" if value is None else str(value).strip()
    if not name:
        raise DataError(f"{row.where}: '{spec.label}' is empty; say which choice is right, or leave the row out")
    if choices.count(name) == 1:
        return choices.index(name)
    if name in choices:
        raise DataError(f"{row.where}: '{name}' stands {choices.count(name)} times among its choices; say by a letter from A on which is right")
    if len(spec.choices) > 1 and name in spec.choices[: len(choices)]:
        return spec.choices.index(name)
    if len(name) == 1 and name.upper() in string.ascii_uppercase:
        number = string.ascii_uppercase.index(name.upper())
    else:
        number = int(name) if name.isascii() and name.isdecimal() else -1
    if not 0 <= number < len(choices):
        raise DataError(
            f"{row.where}: '{name}' is none of its {len(choices)} choices; a label is a choice's text, its column, a letter from A on, or a "
            "number from 0 on"
        )
    return number


def read_sides(row: Row, spec: TaskSpec) -> tuple[str, list[str]]:
    """What all choices of a row stand behind, and each with the question that it answers."""
    cells: list[str] = []
    for column in filter(None, (spec.text, spec.pair)):
        value = row.values.get(column)
        if value is None or isinstance(value, dict):
            raise DataError(f"{row.where} has no text in '{column}'; every row needs it")
        cells.append(" ".join(map(str, value)) if isinstance(value, list) else str(value))
    return cells[0], [" ".join([*cells[1:], choice]) for choice in read_choices(row, spec)]


def join_documents(documents: list[list[NDArray[np.int64]]], frame: Frame) -> tuple[NDArray[np.int64], ...]:
    """Ids, types and numbers of the documents (T,) of one row, from the two texts of each."""
    ids, types, numbers = [], [], []
    for number, (first, second) in enumerate(documents):
        own = [np.concatenate([frame.front, first, frame.between]), np.concatenate([second, [frame.end]])]
        ids += own
        types += [np.full(len(part), side) for side, part in enumerate(own)]
        numbers.append(np.full(sum(map(len, own)), number))
    return tuple(np.concatenate(parts).astype(np.int64) for parts in (ids, types, numbers))
