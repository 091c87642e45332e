"""The split: decided by content alone, disjoint, never empty, and cut at boundaries where a document has to be cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orrery.core.errors import DataError
from orrery.data import MemoryCorpus, split
from orrery.data.dataset import assigned
from orrery.data.text import Tally


def sides(corpus: MemoryCorpus) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"train": [], "validation": []}
    for side, document in assigned(corpus, corpus.facts(quiet=True)):
        found[side].append("".join(document.pieces(Tally())))
    return found


words = st.text(alphabet="abcü \n", min_size=3, max_size=60)


@given(st.lists(words, min_size=1, max_size=40))
def test_every_document_is_on_one_side_and_copies_on_the_same(texts: list[str]):
    corpus = MemoryCorpus(texts)
    found = sides(corpus)
    assert found["train"] and found["validation"]
    if corpus.facts().split.cut < 0:
        assert sorted(found["train"] + found["validation"]) == sorted(texts)
        assert not set(found["train"]) & set(found["validation"])
        held = sum(len(text.encode()) for text in found["validation"])
        total = sum(len(text.encode()) for text in texts)
        assert 0.01 * total <= held <= 0.5 * total


@given(st.lists(words, min_size=2, max_size=20, unique=True), st.randoms(use_true_random=False))
def test_the_side_of_a_document_depends_on_content_and_not_on_order_or_names(texts: list[str], random):
    shuffled = random.sample(texts, len(texts))
    one, other = sides(MemoryCorpus(texts)), sides(MemoryCorpus({f"n{i}": text for i, text in enumerate(shuffled)}))
    assert set(one["validation"]) == set(other["validation"])
    assert set(one["train"]) == set(other["train"])


def test_five_percent_of_many_documents_are_held_out():
    texts = [f"document number {number}: {number * 7919}\n" for number in range(8000)]
    held = sides(MemoryCorpus(texts))["validation"]
    assert 0.043 * 8000 < len(held) < 0.057 * 8000  # 3 standard deviations


def test_adding_documents_moves_no_other_document():
    texts = [f"document number {number}\n" for number in range(3000)]
    small, large = sides(MemoryCorpus(texts[:2000])), sides(MemoryCorpus(texts))
    assert set(small["validation"]) <= set(large["validation"])
    assert set(small["train"]) <= set(large["train"])


def test_one_document_is_cut_at_a_paragraph_and_shares_nothing():
    text = "".join(f"Paragraph {number} says something.\nAnd more.\n\n" for number in range(400))
    corpus = MemoryCorpus([text])
    found = sides(corpus)
    (train,), (held,) = found["train"], found["validation"]
    assert train + held == text
    assert 0.95 <= len(train) / len(text) <= 0.975
    assert train.endswith("\n\n") and held.startswith("Paragraph")
    facts = corpus.facts()
    assert facts.split.boundary == "paragraph"
    assert (
        facts.split.describe()
        == f"one document, cut at a paragraph boundary behind byte {len(train)}; the tail is validation"
    )


@pytest.mark.parametrize(
    ("unit", "boundary"), [("a line of text\n", "line"), ("no end of line ", "character"), ("漢字", "character")]
)
def test_texts_without_paragraphs_are_cut_at_the_next_best_place(unit: str, boundary: str):
    text = unit * 500
    corpus = MemoryCorpus([text])
    found = sides(corpus)
    assert "".join(found["train"] + found["validation"]) == text
    assert corpus.facts().split.boundary == boundary
    assert boundary != "line" or found["train"][0].endswith("\n")


def test_a_book_with_its_licence_is_cut_as_a_book_alone_would_be():
    book = "A paragraph of the book.\n\n" * 4000
    found = sides(MemoryCorpus({"book.txt": book, "LICENCE": "Do as you like.\n"}))
    assert "Do as you like.\n" in found["train"]
    assert found["train"][0] + found["validation"][0] == book
    assert len(found["validation"]) == 1


def test_copies_of_the_only_document_are_cut_alike_and_the_tail_held_out_once():
    book = "A paragraph of the book.\n\n" * 400
    found = sides(MemoryCorpus([book, book, book]))
    assert len(found["train"]) == 3 and len(set(found["train"])) == 1
    assert found["train"][0] + found["validation"][0] == book
    assert len(found["validation"]) == 1


def test_a_document_larger_than_the_rest_is_never_held_out():
    for number in range(60):  # whatever its hash, also below 5 %
        texts = [f"giant {number} " * 500, *(f"small {number} {other} " * 5 for other in range(30))]
        assert texts[0] in sides(MemoryCorpus(texts))["train"]


def test_a_text_too_short_to_cut_is_refused():
    with pytest.raises(DataError, match="one text of 1 bytes, too short"):
        MemoryCorpus(["x"]).facts()


@given(st.text(alphabet="ab \n漢", min_size=1, max_size=400), st.integers(0, 400), st.integers(0, 400))
@example("a\n\nb", 1, 4)
def test_cuts_fall_between_characters_and_not_before_the_asked_place(text: str, low: int, span: int):
    data = text.encode()
    low = min(low, len(data))
    offset, boundary = split.cut_within(data, low, low + span)
    assert low <= offset <= len(data)
    assert (data[:offset].decode() + data[offset:].decode()) == text
    if boundary == "paragraph":
        assert data[:offset].rstrip(b" \t\r\n").count(b"\n") + 2 <= data[:offset].count(b"\n")
    if boundary == "line":
        assert data[offset - 1 : offset] == b"\n"


@given(st.text(alphabet="ab\n漢", min_size=1, max_size=600), st.integers(8, 100), st.integers(1, 50))
def test_parts_joined_are_the_text_and_none_is_much_too_long(text: str, part: int, step: int):
    pieces = [text[start : start + step] for start in range(0, len(text), step)]
    found = list(split.parts(pieces, len(text.encode()), part))
    assert "".join(found) == text
    assert all(found)
    assert all(len(one.encode()) <= 2.5 * part + 8 for one in found)


def test_head_and_tail_of_pieces_meet_at_the_byte():
    text = "abc漢def\nghi"
    pieces = [text[:2], text[2:5], text[5:]]
    for offset in (0, 1, 3, 6, 9, len(text.encode())):
        left, right = "".join(split.head(pieces, offset)), "".join(split.tail(pieces, offset))
        assert left + right == text
        assert len(left.encode()) == offset


def test_the_hash_range_is_used_evenly():
    us = np.array([_u(f"text {number}") for number in range(4000)]) / 2**64
    counts = np.histogram(us, bins=10, range=(0, 1))[0]
    assert ((counts - 400) ** 2 / 400).sum() < 21.7  # chi-square, 9 degrees of freedom, p = 0.01


def _u(text: str) -> int:
    running = split.Hash()
    running.update(text)
    return running.u
