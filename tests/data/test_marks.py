"""Marks: roles of ids that text never produces; WordPiece; what a tokenizer makes of a text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orrery.core.errors import CorruptionError, DataError
from orrery.data.examples import TaskSpec
from orrery.data.fertility import compare_tokenizers, held_out, measure
from orrery.data.labelled import encode
from orrery.data.marks import MarkedTokenizer, frame_ids, spans, with_marks
from orrery.data.records import Row, Table
from orrery.data.tokenizer_files import load_tokenizer, open_tokenizer_file
from orrery.data.tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer, LibraryTokenizer
from orrery.data.wordpiece import MARKS, WordPieceTokenizer

TEXT = [
    "The quick brown fox jumps over the lazy dog. Running runners run; the dogs ran.",
    "Zażółć gęślą jaźń 漢字",
] * 20


@pytest.fixture(scope="module")
def wordpiece():
    return WordPieceTokenizer.build("120", TEXT)


def test_ids_of_text_stay_and_marks_stand_behind_them():
    base = ByteTokenizer()
    marked = with_marks(base, ("mask", "pad", *spans(2)))
    assert marked.marks == {"mask": 257, "pad": 258, "span-0": 259, "span-1": 260}
    assert marked.vocab_size == 261 and marked.doc_id == base.doc_id
    np.testing.assert_array_equal(marked.encode("né"), base.encode("né"))
    assert with_marks(marked, ("pad", "mask")) is marked
    more = with_marks(marked, ("span-2",))
    assert more.marks["mask"] == 257 and more.marks["span-2"] == 261 and more.base is base
    assert marked.hash not in (base.hash, more.hash)


@settings(max_examples=30, deadline=None)
@given(st.text())
def test_text_never_produces_a_mark(text):
    marked = with_marks(ByteTokenizer(), ("mask", "span-0"))
    assert marked.decode(marked.encode(text)) == text.encode("utf-8", "replace").decode()
    assert not set(marked.encode(text).tolist()) & set(marked.marks.values())


@pytest.mark.parametrize(
    "base", [ByteTokenizer(), CharTokenizer("abc"), BPETokenizer.build("300", TEXT)], ids=lambda t: t.name
)
def test_marks_are_saved_with_the_tokenizer(base, tmp_path):
    marked = with_marks(base, ("mask", "separator"))
    marked.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert isinstance(again, MarkedTokenizer)
    assert (again.hash, again.marks, again.name) == (marked.hash, marked.marks, marked.name)
    file = tmp_path / "orrery-tokenizer.json"
    file.write_text(file.read_text().replace('"separator"', '"pad"'))
    with pytest.raises(CorruptionError, match="damaged"):
        load_tokenizer(tmp_path)


def test_a_role_that_does_not_exist_or_is_taken_is_refused(wordpiece):
    with pytest.raises(DataError, match="'cls' is no role"):
        with_marks(ByteTokenizer(), ("cls",))
    with pytest.raises(DataError, match="has the mark 'mask' already"):
        MarkedTokenizer(wordpiece, ("mask",))


def test_wordpiece_has_bert_s_marks_and_cuts_words(wordpiece, tmp_path):
    assert wordpiece.marks == {"pad": 0, "unknown": 1, "class": 2, "separator": 3, "mask": 4}
    assert wordpiece.doc_id == 2 and frame_ids(wordpiece) == (2, 3) and wordpiece.unknown_id == 1
    assert frame_ids(ByteTokenizer()) == (256, 256)
    assert not wordpiece.lossless
    ids = wordpiece.encode("the [MASK] fox")
    assert not set(ids.tolist()) & {0, 2, 3, 4}, "a text that spells a mark is text"
    assert wordpiece.decode(wordpiece.encode("the quick dogs")) == "the quick dogs"
    assert wordpiece.encode("Ω").tolist() == [1]
    wordpiece.save(tmp_path)
    assert load_tokenizer(tmp_path).hash == wordpiece.hash
    lower = WordPieceTokenizer.build("120,lower", TEXT)
    np.testing.assert_array_equal(lower.encode("THE Fox"), lower.encode("the fox"))
    for wrong in ("12", "x", "100,upper", "-3"):
        with pytest.raises(DataError, match="wordpiece:"):
            WordPieceTokenizer.build(wrong, TEXT)


def test_wordpiece_equals_the_library_s_own_bert(wordpiece, tmp_path):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "vocab.txt").write_text("\n".join(sorted(vocabulary(wordpiece), key=vocabulary(wordpiece).get)))
    theirs = transformers.BertTokenizer(str(tmp_path / "vocab.txt"), do_lower_case=False)
    for text in TEXT[:2]:
        assert wordpiece.encode(text).tolist() == theirs.encode(text, add_special_tokens=False)
    assert [theirs.pad_token, theirs.unk_token, theirs.cls_token, theirs.sep_token, theirs.mask_token] == list(MARKS)


def test_lower_case_takes_accents_as_bert_does_and_leaves_vowels():
    from tokenizers import normalizers

    own = WordPieceTokenizer.build("120,lower", TEXT)._inner.normalizer
    bert = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    for text in ("Äpfel, É\u0301té NAÏVE façade", "Łódź Ąęść", "İstanbul ÇAĞ", "ёлка Й", "שָׁלוֹם", "مُحَمَّد", "漢字 a\x00b"):
        assert own.normalize_str(text) == bert.normalize_str(text)
    for text in ("विकणे हिंदी चं", "กินข้าว", "が", "한국어"):
        assert own.normalize_str(text) == text != bert.normalize_str(text)


def vocabulary(tokenizer):
    return tokenizer._inner.get_vocab(with_added_tokens=True)


def test_figures_of_a_text_counted_by_hand():
    found = measure(ByteTokenizer(), ["ab cd", "ab"], "by hand")
    assert (found.bytes, found.words, found.tokens) == (7, 3, 7)
    assert found.bytes_per_token == 1 and found.fertility == pytest.approx(7 / 3)
    assert found.continued == 1 and found.unknown == 0 and found.used == pytest.approx(5 / 257)
    chars = CharTokenizer("ab ")
    assert measure(chars, ["ab cd"]).unknown == pytest.approx(2 / 5)
    with pytest.raises(DataError, match="no word"):
        measure(ByteTokenizer(), ["  "])


def test_several_tokenizers_on_several_texts(wordpiece, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(30):
            (tmp_path / name / f"{number}.txt").write_text(f"{name} text number {number} " * 20)
    texts = {name: held_out(str(tmp_path / name)) for name in ("a", "b")}
    rows = compare_tokenizers([ByteTokenizer(), wordpiece], texts)
    assert [(row.text, row.tokenizer) for row in rows] == [
        ("a", "bytes"), ("a", "wordpiece:120"), ("b", "bytes"), ("b", "wordpiece:120"),
    ]  # fmt: skip
    assert rows[0].bytes == rows[1].bytes > 0
    assert rows[1].bytes_per_token > rows[0].bytes_per_token == 1


PAIR = [("ab ca", "c"), ("bab", "a b <s> c"), ("", "a")]
FRAMED = {
    "classification": {"pair": "other"},
    "question-answering": {"pair": "other"},
    "multiple-choice": {"choices": ("other", "next")},
    "text-to-text": {"label": "other"},
    "tagging": {},
}


@pytest.mark.parametrize("kind", FRAMED)
def test_texts_stand_between_the_marks_of_the_file(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    vocab = {piece: rank for rank, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *"abcsĠ<>", "Ġa", "ab"])}
    theirs = transformers.BartTokenizerFast(vocab=vocab, merges=[("Ġ", "a"), ("a", "b")])
    theirs.save_pretrained(tmp_path)
    ours = open_tokenizer_file(tmp_path / "tokenizer.json")
    rows = [Row("r", {"text": a, "other": b, "next": "b", "label": "x"}) for a, b in PAIR if a or kind != "question-answering"]
    table = Table("t", ("text", "other", "next", "label"), rows)
    spec = TaskSpec(kind=kind, own=True, **FRAMED[kind])
    found = encode(table, spec, with_marks(ours, spans(2)), labelled=kind == "text-to-text", end=2)
    for number, row in enumerate(rows):
        first, second = row.values["text"], row.values["other"]
        if kind == "question-answering":
            first, second = second, first
        wanted = theirs(first) if kind in ("tagging", "text-to-text") else theirs(first, second, split_special_tokens=True)
        wanted = wanted["input_ids"]
        if kind == "multiple-choice":
            wanted = wanted + theirs(first, "b")["input_ids"]
        assert found.ids[number].tolist() == wanted
        if kind == "text-to-text":
            assert found.targets[number].tolist() == theirs(text_target=second, split_special_tokens=True)["input_ids"]
        if kind == "classification":
            short = encode(table, spec.replace(length=6), ours, labelled=False, limit=6, truncate=True).ids[number].tolist()
            assert short[0] == 0 and short[-1] == 2 and len(short) <= 6 and [2, 2] in [short[n : n + 2] for n in range(5)]


def test_which_files_say_what_stands_around_texts(wordpiece):
    from tokenizers import processors

    inner = wordpiece._inner
    assert wordpiece.frame is None and ByteTokenizer().frame is None
    ids = {mark: inner.token_to_id(mark) for mark in ("[CLS]", "[SEP]")}
    single, pair = "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"
    framed = {}
    for name, (one, two) in {"bert": (single, pair), "t5": ("$A [SEP]", "$A [SEP] $B [SEP]"), "llama": ("[CLS] $A", "[CLS] $A [CLS] $B")}.items():
        inner.post_processor = processors.TemplateProcessing(single=one, pair=two, special_tokens=list(ids.items()))
        framed[name] = LibraryTokenizer(inner.to_str(), name).frame
    inner.post_processor = None
    assert framed == {"bert": ((ids["[CLS]"],), (ids["[SEP]"],), ids["[SEP]"]), "t5": None, "llama": None}
