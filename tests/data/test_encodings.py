"""Files in encodings other than UTF-8: Python's own decoding of the whole file says what must come out."""

from __future__ import annotations

import codecs
import gzip
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orrery.core.errors import ConfigError, DataError
from orrery.data import text
from orrery.data.corpora import open_corpus
from orrery.data.dataset import prepare
from orrery.data.encodings import bytewise, find_encoding, split_source, with_encoding
from orrery.data.records import read_table
from orrery.data.text import Tally, as_utf_8, stream_pieces

POLISH = "Zażółć gęślą jaźń, powiedział żółw.\n"


def read(data: bytes, encoding: str, tally: Tally) -> str:
    return "".join(stream_pieces(as_utf_8(io.BytesIO(data), "x", tally, encoding), "x", tally))


@pytest.mark.parametrize("encoding", ["cp1250", "latin-1", "latin2", "utf-16", "utf-16-le", "utf-32", "utf-8-sig", "shift_jis", "gb18030", "cp037"])
def test_a_table_reads_alike_in_every_encoding(tmp_path, encoding):
    body = {"latin-1": "Größe, naïve\n", "shift_jis": "日本語\n", "cp037": "naïve\n"}.get(encoding, POLISH)
    rows = f"text;label\n{body.strip()};a\nx;b\n"
    (tmp_path / "t.csv").write_bytes(rows.encode(encoding))
    for source, how in ((f"{encoding}:{tmp_path / 't.csv'}", ""), (tmp_path / "t.csv", encoding)):
        table = read_table(source, encoding=how)
        assert table.column("text") == [body.strip(), "x"] and table.tally.notes() == []
        assert table.tally.encoding == find_encoding(encoding)


@given(st.binary(max_size=120), st.sampled_from(["cp1252", "utf-16", "utf-16-be", "shift_jis", "gb18030", "ascii"]), st.integers(1, 9))
def test_pieces_are_what_python_reads_however_they_are_cut(data, encoding, size):
    original, text.PIECE = text.PIECE, size + 8
    tally = Tally()
    try:
        data = codecs.BOM_UTF16_LE + data if encoding == "utf-16" else data
        found = read(data, encoding, tally)
    finally:
        text.PIECE = original
    whole = data.decode(encoding, "replace").removeprefix("\ufeff")
    assert found == whole and tally.replaced == whole.count("\ufffd") - data.decode(encoding, "ignore").count("\ufffd")


def test_lines_in_two_encodings_are_counted_and_named(tmp_path):
    lines = [f"wiersz {n} żółw,{'ab'[n % 2]}\n".encode("cp1250" if n in (3, 7, 8) else "utf-8") for n in range(2, 12)]
    (tmp_path / "mixed.csv").write_bytes(b"text,label\n" + b"".join(lines))
    table = read_table(tmp_path / "mixed.csv")
    assert table.tally.replaced == 6 and table.tally.where.first == [3, 7, 8] and len(table) == 10
    assert "6 characters were not UTF-8 and were replaced, the first in 'mixed.csv', lines 3, 7 and 8; " in table.tally.notes()[0]
    assert "--encoding" in table.tally.notes()[0]
    other = read_table(tmp_path / "mixed.csv", encoding="cp1250")
    assert other.tally.replaced == 0 and other.column("text")[1] == "wiersz 3 żółw"
    assert other.tally.notes() == [
        "7 lines are UTF-8 but were read as cp1250, the first in 'mixed.csv', lines 2, 4, 5, 6 and 9 (7 lines in all); "
        "--encoding utf-8 reads them so"
    ]
    with pytest.raises(DataError, match=r"'mixed\.csv' is not UTF-8 text: byte 0xbf at position .*, line 3; convert it"):
        read_table(tmp_path / "mixed.csv", strict=True)


def test_what_an_encoding_lacks_is_counted_by_lines(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"text,label\na\x81b,x\nfine,y\n\x81\x81,x\n")
    table = read_table(tmp_path / "t.csv", encoding="cp1252")
    assert table.column("text") == ["a\ufffdb", "fine", "\ufffd\ufffd"]
    assert table.tally.notes() == ["3 characters were not cp1252 and were replaced, the first in 't.csv', lines 2 and 4"]
    with pytest.raises(DataError, match=r"'t\.csv' is not cp1252 text: line 2; convert it"):
        read_table(tmp_path / "t.csv", encoding="cp1252", strict=True)


def test_lines_cut_by_a_piece_are_counted_once(monkeypatch):
    monkeypatch.setattr(text, "PIECE", 24)
    tally = Tally()
    data = b"one\n" + b"\xe9" * 50 + b"\ntwo\n" + "żółw żółw\n".encode() * 2
    read(data, "utf-8", tally)
    assert (tally.replaced, tally.where.count, tally.where.first) == (50, 1, [2])
    tally = Tally()
    read(data, "cp1250", tally)
    assert (tally.replaced, tally.foreign.count, tally.foreign.first) == (0, 2, [4, 5])


def test_a_corpus_in_another_encoding_is_the_same_corpus(tmp_path):
    for name, encoding in (("a", "utf-8"), ("b", "cp1250"), ("c", "utf-16")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_bytes((POLISH * 50).encode(encoding))
        (tmp_path / name / "y.txt.gz").write_bytes(gzip.compress((POLISH[::-1] * 50).encode(encoding)))
        (tmp_path / name / "z.jsonl").write_bytes(('{"text": "' + POLISH.strip() + '"}\n').encode(encoding))
    plain = open_corpus(tmp_path / "a").facts()
    for name, encoding in (("b", "cp1250"), ("c", "utf-16")):
        facts = open_corpus(f"{encoding}:{tmp_path / name}").facts()
        assert (facts.hash, facts.documents, facts.encoding) == (plain.hash, 3, encoding) and facts.doubts == ()
    assert open_corpus(tmp_path / "b").facts().replaced and prepare(str(tmp_path / "b"), quiet=True).notes[0].endswith("--strict refuses such text")
    assert open_corpus(f"cp1250:{tmp_path / 'b' / 'x.txt'}").facts().hash == open_corpus(tmp_path / "a" / "x.txt").facts().hash
    assert [d.text for d in open_corpus(f"utf-16:{tmp_path / 'c' / 'z.jsonl'}:text").documents()] == [POLISH.strip()]
    with pytest.raises(DataError, match="looks like UTF-16; say so with --encoding utf-16"):
        open_corpus(tmp_path / "c" / "x.txt").facts()
    with pytest.raises(DataError, match="UTF-16 stream does not start with BOM; name utf-16-le or utf-16-be"):
        open_corpus(f"utf-16:{tmp_path / 'a' / 'x.txt'}").facts()
    with pytest.raises(DataError, match="'stdlib' knows its own encoding"):
        open_corpus("cp1250:stdlib")


def test_a_column_of_a_table_in_another_encoding(tmp_path):
    (tmp_path / "t.csv").write_bytes(f"text;label\n{POLISH.strip()};a\nx;b\n".encode("iso8859-2"))
    assert [d.text for d in open_corpus(f"latin2:{tmp_path / 't.csv'}:text").documents()] == [POLISH.strip(), "x"]


def test_names(tmp_path, monkeypatch):
    assert [find_encoding(name) for name in ("windows-1250", "Latin-1", "UTF8", " utf_16 ")] == ["cp1250", "iso8859-1", "utf-8", "utf-16"]
    with pytest.raises(ConfigError, match=r"there is no encoding 'cp1205'\. Did you mean 'cp12"):
        find_encoding("cp1205")
    for name in ("hex", "idna", "unicode_escape", "", "a\0b", "zlib", "ż"):
        with pytest.raises(ConfigError, match="there is no encoding"):
            find_encoding(name)
    assert split_source("cp1250:csv:notes.txt") == ("cp1250", "csv:notes.txt")
    assert split_source("reviews.csv:text") == ("", "reviews.csv:text") and split_source("cp1250:") == ("", "cp1250:")
    assert with_encoding("latin1:a.csv", "cp1250") == "latin1:a.csv" and with_encoding("a.csv", "") == "a.csv"
    assert with_encoding("a.csv", "windows-1250") == "cp1250:a.csv"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ascii:a.csv").write_text("text,label\na,b\n")
    assert len(read_table("ascii:a.csv")) == 1  # a file that exists is its own name
    assert bytewise("cp1250") and not bytewise("utf-16") and not bytewise("cp037") and not bytewise("gb18030")
