"""Corpora: what is read, in which order, what is left out, refused and counted, and that memory stays small."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orrery.core.errors import DataError
from orrery.data import MemoryCorpus, corpora, open_corpus, text
from orrery.data.text import Tally, stream_pieces


def contents(spec, **options) -> dict[str, str]:
    return {document.name: document.text for document in open_corpus(spec, **options).documents()}


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "my notes ü"
    for name in ("zeta.txt", "alpha beta.txt", "sub/ä.md", "sub/deeper/x.txt", "Big.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"this is {name}\n", encoding="utf-8")
    return folder


def test_folder_is_read_in_the_order_of_its_paths_whatever_their_characters(notes: Path):
    assert list(contents(notes)) == ["Big.txt", "alpha beta.txt", "sub/deeper/x.txt", "sub/ä.md", "zeta.txt"]
    assert contents(notes)["sub/ä.md"] == "this is sub/ä.md\n"


def test_hidden_and_binary_files_are_left_out_and_the_latter_counted(notes: Path):
    before = open_corpus(notes).facts()
    (notes / ".git").mkdir()
    (notes / ".git" / "config").write_text("secret")
    (notes / ".hidden").write_text("secret")
    (notes / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8)
    (notes / "empty.txt").touch()
    after = open_corpus(notes).facts()
    assert (after.binary, after.empty) == (1, 1)
    assert (after.hash, after.documents, after.bytes) == (before.hash, before.documents, before.bytes)


def test_patterns_and_files_whose_names_look_like_patterns(notes: Path):
    assert len(contents(f"{notes}/**/*.txt")) == 4
    odd = notes / "odd[1]*.txt" if os.name != "nt" else notes / "odd[1].txt"
    odd.write_text("found", encoding="utf-8")
    assert list(contents(odd).values()) == ["found"]
    with pytest.raises(DataError, match="no file to read"):
        open_corpus(f"{notes}/*.rst")


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])
def test_compressed_files_are_the_same_corpus(tmp_path: Path, suffix: str, pack):
    data = "line of text, ünïcode\n".encode() * 1000
    (tmp_path / "a.txt").write_bytes(data)
    (tmp_path / f"b.txt{suffix}").write_bytes(pack(data))
    plain, packed = open_corpus(tmp_path / "a.txt"), open_corpus(tmp_path / f"b.txt{suffix}")
    assert plain.facts().hash == packed.facts().hash
    whole = (tmp_path / f"b.txt{suffix}").read_bytes()
    (tmp_path / f"c.txt{suffix}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cannot read '.*c\.txt"):
        open_corpus(tmp_path / f"c.txt{suffix}").facts()


def test_json_lines_give_one_document_per_line(tmp_path: Path):
    file = tmp_path / "web.jsonl"
    rows = [
        {"text": "one\ntwo", "meta": {"body": "a"}},
        {"text": "drei ü", "meta": {"body": "b"}},
        {"text": None, "meta": {"body": "c"}},
    ]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    assert contents(file) == {"web.jsonl:1": "one\ntwo", "web.jsonl:2": "drei ü"}
    assert list(contents(f"{file}:meta.body").values()) == ["a", "b", "c"]
    assert open_corpus(file).facts().empty == 1
    packed = tmp_path / "web.jsonl.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    assert open_corpus(f"{packed}:meta.body").facts().hash == open_corpus(f"{file}:meta.body").facts().hash


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"title": "x"}', r"line 2 has no field 'text' \(it holds: title\)"),
        ("[1, 2]", r"line 2 has no field 'text' \(it holds: a list\)"),
        ('{"text": 3}', "line 2: the field 'text' is a int, not text"),
        ("{broken", "line 2 is not JSON"),
    ],
)
def test_bad_json_lines_are_named(tmp_path: Path, line: str, message: str):
    file = tmp_path / "bad.jsonl"
    file.write_text('{"text": "fine"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=message):
        open_corpus(file).facts()


def test_latin_1_is_replaced_and_counted_or_refused(tmp_path: Path):
    file = tmp_path / "latin.txt"
    file.write_bytes(
        "Größe und Maß \ufffd sind gewählt worden, naïve Leser.\n".encode("utf-8")
        .replace("ö".encode(), b"\xf6")
        .replace("ß".encode(), b"\xdf")
    )
    facts = open_corpus(file).facts()
    assert (facts.replaced, facts.replaced_in) == (3, "latin.txt")
    assert contents(file)["latin.txt"] == "Gr\ufffd\ufffde und Ma\ufffd \ufffd sind gewählt worden, naïve Leser.\n"
    assert facts.bytes == len(contents(file)["latin.txt"].encode())
    with pytest.raises(DataError, match=r"'latin\.txt' is not UTF-8 text: byte 0xf6 at position 2"):
        open_corpus(file, strict=True).facts()


def test_strict_refuses_what_an_earlier_call_has_remembered_as_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(corpora, "_SETTLED", -60.0)
    file = tmp_path / "latin.txt"
    file.write_bytes(b"caf\xe9 and plain text\n")
    assert open_corpus(file).facts().replaced == 1
    with pytest.raises(DataError, match="byte 0xe9 at position 3"):
        open_corpus(file, strict=True).facts()


def test_lone_surrogates_of_json_are_replaced_and_counted(tmp_path: Path):
    file = tmp_path / "s.jsonl"
    file.write_text('{"text": "a\\ud800b \\ud83d\\ude00"}\n', encoding="utf-8")
    assert contents(file) == {"s.jsonl:1": "a\ufffdb \U0001f600"}
    assert open_corpus(file).facts().replaced == 1


def test_byte_order_marks_are_no_text(tmp_path: Path):
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert contents(tmp_path / "bom.txt") == {"bom.txt": "hello"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x7fELF" + bytes(100), "NUL bytes"),
        ("wide".encode("utf-16"), "UTF-16"),
        (bytes([1, 2, 3, 4, 5]) * 20, "control characters"),
        ("Привет, как дела сегодня".encode("koi8-r"), "not UTF-8"),
        (b"", r"holds no text \(0 binary and 1 empty"),
        (b"\xef\xbb\xbf", "holds no text"),
    ],
)
def test_a_single_file_that_is_no_text_is_refused(tmp_path: Path, data: bytes, message: str):
    (tmp_path / "thing.txt").write_bytes(data)
    with pytest.raises(DataError, match=message):
        open_corpus(tmp_path / "thing.txt").facts()


def test_folders_without_text_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match="no file to read"):
        open_corpus(tmp_path)
    for number in range(2):
        (tmp_path / f"{number}.bin").write_bytes(bytes(50))
    with pytest.raises(DataError, match="2 binary"):
        open_corpus(tmp_path).facts()


def test_unknown_names_are_refused_with_near_ones(tmp_path: Path):
    with pytest.raises(DataError, match="Did you mean 'stdlib'"):
        open_corpus("stdlb")
    with pytest.raises(DataError, match="no corpus named"):
        open_corpus(" ")
    corpus = open_corpus(_write(tmp_path / "gone.txt", "text"))
    (tmp_path / "gone.txt").unlink()
    with pytest.raises(DataError, match="cannot read"):
        corpus.facts()


def test_facts_are_remembered_for_unchanged_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(corpora, "_SETTLED", -60.0)
    file = _write(tmp_path / "a.txt", "first version, and more\n")
    facts, status = open_corpus(file).facts(), file.stat()
    with monkeypatch.context() as patch:
        patch.setattr(corpora.Corpus, "_scan", lambda *_: pytest.fail("read again"))
        assert open_corpus(file).facts() == facts
    _write(file, "other version, and more\n")  # same size, and the old times put back
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert open_corpus(file).facts().hash != facts.hash


def test_facts_of_young_files_are_not_remembered(tmp_path: Path):
    assert open_corpus(_write(tmp_path / "a.txt", "written just now\n")).fingerprint() is None


def test_a_flipped_byte_in_remembered_facts_is_never_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(corpora, "_SETTLED", -60.0)
    file = _write(tmp_path / "a.txt", "some text\n\nmore of it\n")
    facts = open_corpus(file).facts()
    memory = corpora._memory_of(open_corpus(file).fingerprint() or "")
    sound = memory.read_bytes()
    for position in range(len(sound)):
        memory.write_bytes(sound[:position] + bytes([sound[position] ^ 1]) + sound[position + 1 :])
        assert corpora._recall(memory.stem) is None
    assert open_corpus(file).facts() == facts


@given(st.binary(max_size=200) | st.text(max_size=80).map(lambda s: s.encode()), st.integers(8, 40))
def test_pieces_joined_are_the_text_however_they_are_cut(data: bytes, size: int):
    original, text.PIECE = text.PIECE, size
    try:
        tally = Tally()
        pieces = list(stream_pieces(io.BytesIO(data), "x", tally, keep_mark=True))
    finally:
        text.PIECE = original
    whole = data.decode("utf-8", "replace")
    assert "".join(pieces) == whole
    assert tally.replaced == whole.count("\ufffd") - data.count("\ufffd".encode())
    assert all(len(piece.encode()) <= 3 * size for piece in pieces)


def test_memory_stays_small_while_a_large_file_is_read(tmp_path: Path):
    file = tmp_path / "large.txt"
    with open(file, "wb") as out:
        for block in range(240):
            out.write(f"{block:05d} lorem ipsum dolor sit amet\n".encode() * 4000)
    size = file.stat().st_size
    assert size > 30e6
    tracemalloc.start()
    facts = open_corpus(file).facts()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert facts.bytes == size
    assert peak < 12e6


def test_memory_corpus_and_open_corpora_pass_through():
    corpus = MemoryCorpus({"a": "text", "b": "", "c": "more"})
    assert open_corpus(corpus) is corpus
    assert [document.name for document in corpus.documents()] == ["a", "c"]
    assert corpus.facts().empty == 1


def _write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def test_a_column_of_a_table_is_a_corpus(tmp_path):
    file = tmp_path / "reviews.csv"
    file.write_text('stars,review\n1,"one\n""two"""\n2,\n3,drei ü\n', encoding="utf-8")
    assert contents(f"{file}:review") == {"reviews.csv, line 2": 'one\n"two"', "reviews.csv, line 5": "drei ü"}
    facts = open_corpus(f"{file}:review").facts(quiet=True)
    assert (facts.name, facts.documents, facts.empty) == ("reviews.csv:review", 2, 1)
    with pytest.raises(DataError, match=r"reviews.csv, line 2: no column 'reveiw'\. Did you mean 'review'"):
        contents(f"{file}:reveiw")
    with pytest.raises(DataError, match="no corpus, file or folder"):
        open_corpus(f"{tmp_path}/none.csv:review")
    gaps = _write(tmp_path / "gaps.json", '[{"text": "one"}, {"text": "two"}, {"text": NaN}, {"text": null}]')
    assert list(contents(f"{gaps}:text").values()) == ["one", "two"] and open_corpus(f"{gaps}:text").facts(quiet=True).empty == 2
    sentences = tmp_path / "s.conllu"
    sentences.write_text("1\tAla\n2\tma\n\n1\tkota\n", encoding="utf-8")
    assert list(contents(f"{sentences}:2").values()) == ["Ala ma", "kota"]
