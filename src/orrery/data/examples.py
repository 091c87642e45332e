"""What is learnt from a table, and its rows once they are token ids.

Kinds and their labels (a kind is also the name of the head that learns it, but for :data:`HEADS`):

    classification  one of several labels          multi-label   any of several, "a;b" or a JSON list
    regression      a number                       ordinal       one of several in order (numbers, or as `names` says)
    tagging         a tag for every word           text-to-text  another text
    question-answering  a passage of the text that answers the question in `pair`
    multiple-choice     which of a row's `choices` is right

:mod:`orrery.data.labelled` reads tables so; :mod:`orrery.data.answering` those of questions, :mod:`orrery.data.choosing` those of choices.

N examples, T tokens of one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orrery.core.config import Config, require
from orrery.core.errors import suggest
from orrery.data.records import Row

KINDS = ("classification", "multi-label", "regression", "ordinal", "tagging", "text-to-text", "question-answering", "multiple-choice")
HEADS = {"question-answering": "span"}  # heads with another name than their kind
NAMED = ("classification", "multi-label", "ordinal", "tagging")  # kinds with a set of labels


@dataclass(frozen=True, kw_only=True)
class TaskSpec(Config):
    """What is learnt from a table.

    kind: see the top of the file. text, pair, label: columns; pair may be empty. names: of the labels, in order (learnt from
    the training table where empty). separator: between the labels of a multi-label cell. length: tokens of an example,
    marks included. answer: tokens of a text-to-text answer, its end included. stride: tokens that windows of a long text share
    (question-answering; 0: a third of the length). empty: whether a text may have no answer (learnt from the training table).
    apart: both texts of a pair are read by themselves and compared by their vectors (a bi-encoder, head "pairs").
    words: a bag of words answers beside the network (:mod:`orrery.methods.words`). choices: columns of the choices, or one of lists.
    own: marks stand as the tokenizer's file has them, not as :mod:`orrery.data.labelled` says (learnt from the tokenizer).
    """

    kind: str = "classification"
    text: str = "text"
    pair: str = ""
    label: str = "label"
    names: tuple[str, ...] = ()
    separator: str = ";"
    length: int = 0
    answer: int = 0
    stride: int = 0
    empty: bool = False
    apart: bool = False
    words: bool = False
    choices: tuple[str, ...] = ()
    own: bool = False

    def __post_init__(self) -> None:
        require(self.kind in KINDS, f"no task '{self.kind}'.{suggest(self.kind, KINDS)} There are {', '.join(KINDS)}")
        require(
            not (self.pair and self.kind in ("tagging", "text-to-text")), f"a {self.kind} task takes no pair of texts"
        )
        require(self.kind != "question-answering" or bool(self.pair), "question-answering needs the column of the questions: --pair")
        chooses = self.kind == "multiple-choice"
        require(not chooses or bool(self.choices), "multiple-choice needs the columns of the choices: --choices a,b,c, or one column of lists")
        require(chooses or not self.choices, f"a {self.kind} task has no choices; leave --choices out, or take --task multiple-choice")
        both = self.kind in ("classification", "regression") and bool(self.pair)
        require(not self.apart or both, "texts are read apart in classification and regression of pairs: --pair, --apart")
        counted = self.kind in ("classification", "multi-label", "regression", "ordinal")
        require(not self.words or counted, f"a bag of words answers beside classes, grades and numbers, not beside {self.kind}; leave --words out")
        require(self.stride >= 0, f"stride must be 0 (a third of the length) or more, not {self.stride}")

    @property
    def sided(self) -> bool:
        """Whether two texts stand in one document."""
        return bool(self.pair or self.choices) and not self.apart

    @property
    def head(self) -> str:
        """The name of the head that learns it."""
        return "pairs" if self.apart else HEADS.get(self.kind, self.kind)


@dataclass
class Examples:
    """Encoded examples, in the order of their table.

    ids, types: (T,) each. targets: by kind an int, (C,) 0 or 1, a float, (T,) tags, or the answer's ids; None without labels.
    answers: what the table says, for scoring. places: of tagging, the first token of every word; of questions, characters (T,2) of
    every token. owners: of questions, whose windows examples are, the number of the row. documents: of choices, the number of every
    token's (T,). cut: how many were truncated.
    """

    spec: TaskSpec
    rows: list[Row]
    ids: list[NDArray[np.int64]]
    types: list[NDArray[np.int64]] | None = None
    targets: list[Any] | None = None
    answers: list[Any] = field(default_factory=list)
    places: list[NDArray[np.int64]] | None = None
    owners: list[int] | None = None
    documents: list[NDArray[np.int64]] | None = None
    cut: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of every example, (N,)."""
        return np.array([len(one) for one in self.ids])
