"""Which of four sentences comes next: tables for `orrery finetune --choices`, and a text to pre-train on, cut from any corpus.

    python benchmarks/next_sentences.py CORPUS OUT [--rows 8000,800,2000] [--keep 4000] [--choices 4] [--apart 50] [--first A-Z] [--seed 7]

CORPUS is what `orrery train` takes: a file, a folder, FILE.jsonl:FIELD, TABLE.csv:COLUMN. OUT gets next.train.csv, next.val.csv and
next.test.csv with the columns `text`, `a`, `b`, ... and `label` (the letter of the right choice), and book.txt, the paragraphs before
those of the validation and test tables.

Paragraphs of more than 40 characters that are not all capitals are cut into sentences: behind a full stop, question or exclamation
mark (and a quotation mark) that a capital or a quotation mark follows (or one of the characters --first), behind a danda, and behind
those of Chinese. Sentences fall in order into three parts, 80, 7 and 13 %. A row is a sentence of 20 to 300 characters, the next one
of its paragraph (30 to 200), and others of the same part and those lengths, more than --apart sentences away, no two alike. --rows:
at most so many of each part; --keep: of the training rows so many, drawn. The tables depend on the corpus and these settings alone.
"""

from __future__ import annotations

import argparse
import csv
import random
import re
import string
import sys
from pathlib import Path
from typing import NamedTuple

from orrery.core.errors import DataError, OrreryError
from orrery.data.corpora import open_corpus
from orrery.data.text import Tally

SIDES, EDGES = ("train", "val", "test"), (0.8, 0.87, 1.0)  # and where the parts end
TEXT, CHOICE = (20, 300), (30, 200)  # characters
FIRST = '"“„«' + "".join(filter(str.isupper, map(chr, range(0x2000))))


class Sentence(NamedTuple):
    """paragraph: its number. text: in one line."""

    paragraph: int
    text: str


def paragraphs_of(text: str) -> list[str]:
    """The paragraphs of running text, each in one line."""
    found = (re.sub(r"\s+", " ", paragraph).strip() for paragraph in re.split(r"\n\s*\n", text))
    return [paragraph for paragraph in found if len(paragraph) > 40 and not paragraph.isupper()]


def ends(first: str) -> re.Pattern[str]:
    """What lies between sentences, whose first character is one of these (ranges as in A-Z).

    Raises:
        DataError: these are no such characters.
    """
    first = re.sub(r"([\\\]\[^&|~])", r"\\\1", first)
    try:
        return re.compile(rf"""(?<=[.?!]['"”’])\s+(?=[{first}])|(?<=[.?!])\s+(?=[{first}])|(?<=[।॥])\s+|(?<=[。！？])\s*""")
    except re.error as error:
        raise DataError(f"--first takes characters, or ranges of them as in A-Z: {error}") from error


def rows_of(part: list[Sentence], most: int, choices: int, apart: int, draws: random.Random) -> list[list[str]]:
    """At most so many rows in the order of the text: a sentence, the choices, the letter of the right one.

    Raises:
        DataError: the part is too short, or says the same again and again.
    """
    fits = [CHOICE[0] <= len(each.text) <= CHOICE[1] for each in part]
    good = [
        place for place in range(1, len(part) - 1)
        if part[place].paragraph == part[place + 1].paragraph and fits[place + 1] and TEXT[0] <= len(part[place].text) <= TEXT[1]
    ]  # fmt: skip
    pool = [place for place in range(len(part)) if fits[place]]
    if not good or len({part[place].text for place in pool}) < 2 * apart + choices:
        raise DataError(f"a part of the corpus has {len(good)} sentences with a next one, and too few others more than {apart} away from them")
    draws.shuffle(good)
    made = []
    for place in sorted(good[:most]):
        right, others = part[place + 1].text, list[str]()
        for _ in range(1000 * choices):
            if len(others) == choices - 1:
                break
            other = draws.choice(pool)
            if abs(other - place) > apart and part[other].text != right and part[other].text not in others:
                others.append(part[other].text)
        else:
            raise DataError("the corpus says the same again and again; there are no other choices")
        letter = draws.randrange(choices)
        made.append([part[place].text, *others[:letter], right, *others[letter:], string.ascii_lowercase[letter]])
    return made


def cut(given: argparse.Namespace) -> None:
    """Read the corpus and write the tables.

    Raises:
        DataError: a setting, or a corpus, that does not serve.
    """
    most = [int(count) for count in given.rows.split(",")]
    if len(most) != len(SIDES) or min(most) < 1 or given.keep < 0 or given.apart < 0:
        raise DataError("--rows are three numbers of rows (training, validation, test); --keep and --apart are 0 or more")
    if not 2 <= given.choices <= len(string.ascii_lowercase):
        raise DataError(f"--choices lies between 2 and {len(string.ascii_lowercase)}, not {given.choices}")
    tally, draws, between = Tally(), random.Random(given.seed), ends(given.first)
    documents = open_corpus(given.corpus).documents(tally)
    text = "\n\n".join("".join(document.pieces(tally)) for document in documents)
    paragraphs = paragraphs_of(text)
    sentences = [Sentence(number, each) for number, paragraph in enumerate(paragraphs) for each in between.split(paragraph) if each]
    edges = [0, *(int(share * len(sentences)) for share in EDGES)]
    parts = [sentences[first:last] for first, last in zip(edges, edges[1:], strict=False)]
    tables = [rows_of(part, count, given.choices, given.apart, draws) for part, count in zip(parts, most, strict=True)]
    if given.keep and given.keep < len(tables[0]):
        random.Random(0).shuffle(tables[0])  # the same rows of a table, whatever drew it
        del tables[0][given.keep :]
    given.out.mkdir(parents=True, exist_ok=True)
    for side, rows in zip(SIDES, tables, strict=True):
        path = given.out / f"next.{side}.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["text", *string.ascii_lowercase[: given.choices], "label"], *rows])
        print(f"{path}  {len(rows):,} rows")
    last = parts[0][-1].paragraph if parts[0] else 0
    (given.out / "book.txt").write_text("\n\n".join(paragraphs[:last]), encoding="utf-8")
    print(f"{given.out / 'book.txt'}  {last:,} paragraphs")
    for note in tally.notes():
        print(f"note: {note}", file=sys.stderr)


def main() -> int:
    """2 where the corpus or a setting does not serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", default="8000,800,2000", help="of training, validation and test, at most")
    parser.add_argument("--keep", type=int, default=4000, help="training rows that are kept of those; 0: all")
    parser.add_argument("--choices", type=int, default=4)
    parser.add_argument("--apart", type=int, default=50, help="sentences between a text and its wrong choices")
    parser.add_argument("--first", default=FIRST, metavar="CHARACTERS", help="what sentences begin with; else capitals and quotation marks")
    parser.add_argument("--seed", type=int, default=7)
    try:
        cut(parser.parse_args())
    except (OrreryError, ValueError, OSError) as error:
        print(f"next_sentences: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
