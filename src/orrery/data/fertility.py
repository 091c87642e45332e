"""What a tokenizer makes of a text: how long, how broken, how much of it unknown; per language, and several side by side.

bytes per token: text bytes (UTF-8) over tokens; more is shorter. fertility: tokens per word, a word being what white space
separates; 1 is a dictionary (2012.15613, section 4). continued: share of words that take more than one token. unknown: share
of tokens that stand for what the tokenizer cannot say. used: share of its ids that the text needs.

Texts are the held-out sides of corpora (:mod:`orrery.data.split`), so a tokenizer trained on a corpus is not measured
on what it has seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from orrery.core.errors import DataError
from orrery.data.corpora import Corpus, MemoryCorpus, open_corpus
from orrery.data.dataset import assigned
from orrery.data.records import read_table
from orrery.data.text import Tally
from orrery.data.tokenizers import Tokenizer

LIMIT = 4 << 20  # characters of a text that are measured


@dataclass(frozen=True)
class Fertility:
    """A tokenizer on a text. Shares lie between 0 and 1."""

    tokenizer: str
    text: str
    vocabulary: int
    bytes: int
    words: int
    tokens: int
    bytes_per_token: float
    fertility: float
    continued: float
    unknown: float
    used: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def measure(tokenizer: Tokenizer, texts: Iterable[str], label: str = "") -> Fertility:
    """Encode texts and count.

    Raises:
        DataError: when there is not one word in them.
    """
    size = tokens = unknown = 0
    words: Counter[str] = Counter()
    seen = np.zeros(tokenizer.vocab_size, dtype=bool)
    for text in texts:
        ids = tokenizer.encode(text)
        size, tokens = size + len(text.encode("utf-8", "replace")), tokens + len(ids)
        seen[ids] = True
        if tokenizer.unknown_id is not None:
            unknown += int((ids == tokenizer.unknown_id).sum())
        words.update(text.split())
    total = words.total()
    if not total or not tokens:
        raise DataError(f"the text '{label}' holds no word to measure tokenizers on")
    distinct = list(words)
    lengths = [len(ids) for ids in tokenizer.encode_batch([f" {word}" for word in distinct])]
    alone = [len(ids) for ids in tokenizer.encode_batch(distinct)]
    # A word begins with its space where the vocabulary has such pieces; elsewhere the space is a token of its own.
    continued = sum(words[word] for word, n, m in zip(distinct, lengths, alone, strict=True) if min(n, m) > 1)
    return Fertility(
        tokenizer.name,
        label,
        tokenizer.vocab_size,
        size,
        total,
        tokens,
        size / tokens,
        tokens / total,
        continued / total,
        unknown / tokens,
        float(seen.mean()),
    )


def held_out(corpus: str | Corpus, limit: int = LIMIT) -> Iterator[str]:
    """The held-out documents of a corpus, up to `limit` characters in all."""
    source = open_corpus(corpus)
    left = limit
    for side, document in assigned(source, source.facts(quiet=True)):
        if side == "validation" and left > 0:
            text = "".join(document.pieces(Tally()))[:left]
            left -= len(text)
            yield text


def texts_by(source: str, by: str) -> dict[str, Corpus]:
    """The texts of a table's column, one corpus for every value of another column, such as a language.

    Args:
        source: TABLE:COLUMN, a table as :func:`orrery.data.records.read_table` takes it.

    Raises:
        DataError: a table or column that is not there, or a value with fewer than two texts: one is held out.
    """
    file, colon, column = source.rpartition(":")
    if not colon or not file:
        raise DataError(f"'{source}' names no column; with --by a text is TABLE:COLUMN, such as reviews.csv:text")
    table = read_table(file)
    groups: dict[str, list[str]] = {}
    for value, text in zip(table.column(by), table.column(column), strict=True):
        groups.setdefault(str(value), []).append(" ".join(map(str, text)) if isinstance(text, list) else str(text))
    for value, texts in groups.items():
        if len(texts) < 2:
            raise DataError(f"'{table.name}' has one text only where '{by}' is '{value}'; a report needs two or more")
    return {value: MemoryCorpus(texts, name=f"{table.name}, {by} {value}") for value, texts in sorted(groups.items())}


def compare_tokenizers(tokenizers: Iterable[Tokenizer], texts: dict[str, Iterable[str]]) -> list[Fertility]:
    """Every tokenizer on every text, in the order of texts, then tokenizers."""
    held = {label: list(parts) for label, parts in texts.items()}
    listed = list(tokenizers)
    return [measure(tokenizer, parts, label) for label, parts in held.items() for tokenizer in listed]
