"""Tables of examples: every format read, and every way a file can be wrong said with its line."""

from __future__ import annotations

import csv
import gzip
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orrery.core.errors import DataError
from orrery.data import records
from orrery.data.examples import TaskSpec
from orrery.data.labelled import split_table
from orrery.data.records import open_rows, read_table
from orrery.data.text import Tally


def write(folder, name, text):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_csv_with_quotes_newlines_and_empty_lines(tmp_path):
    table = read_table(write(tmp_path, "a.csv", 'text,label\r\n"one, ""two""\nthree",pos\r\n\r\nfour,neg\r\n'))
    assert table.columns == ("text", "label")
    assert table.column("text") == ['one, "two"\nthree', "four"]
    assert table.column("label") == ["pos", "neg"]
    assert table.rows[1].where == "a.csv, line 5"


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            *(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0\ufeff")) for _ in range(2))
        ),
        min_size=1,
    )
)
def test_whatever_csv_writes_is_read_back(tmp_path_factory, cells):
    out = io.StringIO(newline="")
    csv.writer(out, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *cells])
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    path.write_bytes(gzip.compress(out.getvalue().encode()))
    path = path.rename(path.with_suffix(".csv.gz"))
    table = read_table(path)
    assert list(zip(table.column("a"), table.column("b"), strict=True)) == cells


def test_the_first_line_says_what_separates(tmp_path):
    semicolons = read_table(write(tmp_path, "a.csv", 'text;"label; of it"\n"a;b, c";x\n'))
    assert semicolons.columns == ("text", "label; of it") and semicolons.column("text") == ["a;b, c"]
    assert read_table(write(tmp_path, "b.csv", "text\tlabel\na;b\tx\n")).column("text") == ["a;b"]
    assert read_table(write(tmp_path, "c.csv", "text,a;b\n1;2,x\n")).columns == ("text", "a;b")
    assert read_table(write(tmp_path, "d.csv", "text\na;b\n")).column("text") == ["a;b"]
    assert read_table(write(tmp_path, "e.csv", "a;b\n"), header=False).column("2") == ["b"]


@pytest.mark.parametrize(
    ("text", "header", "columns"),
    [
        ("Well; that was it\nI liked it\nFine; so; so\n", False, 1),  # texts, one of which holds a semicolon
        ("Well; that was it\nNo; it was not\n", False, 2),  # nothing says that these are texts
        ("id;text, long;label\n1;a;b\n2;a, b;c\n", True, 3),  # a comma in the header of a table of semicolons
        ("1,5;2\n3;4\n5;6,5\n", False, 2),
        ("a;b,c;d\nx,y\nu;v,w\n", False, 2),
        ('text,label\n"a;b\nc",1\nd,2\n', True, 2),
        ("text;label\na;b;1\nc;d;2\n", True, 2),  # broken: told with its line, not read as one column
        ("text\na;b\nc\n", True, 1),
        ("\ntext\tlabel\na, b\tc\n", True, 2),
        ('"one; two, three"\n"four"\n', False, 1),
    ],
)
def test_a_separator_cuts_most_rows_alike(tmp_path, text, header, columns):
    assert len(open_rows(write(tmp_path, "a.csv", text), Tally(), header)[1]) == columns


def test_a_table_longer_than_its_sample_is_judged_by_whole_rows(tmp_path):
    rows = "".join(f'{n};"text {n}\n, more"\n' for n in range(400))
    assert read_table(write(tmp_path, "a.csv", "id;text\n" + rows)).column("id")[-1] == "399"


def test_texts_of_one_column_with_commas_are_told_how_to_be_read(tmp_path):
    path = write(tmp_path, "a.csv", "Well; that was it\nI liked it, mostly\n")
    with pytest.raises(DataError, match=r"line 2: 2 fields, but there is 1 column; .* read as text=FILE"):
        read_table(path, header=False)
    assert read_table(f"text={path}").column("text")[1] == "I liked it, mostly"


def test_a_field_without_end_is_not_read_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "LONGEST", 1000)
    with pytest.raises(DataError, match=r"more than 1,000 characters; is a quote before it never closed\?"):
        read_table(write(tmp_path, "a.csv", 'text,label\n"' + "word, " * 1000))


def test_without_a_header_columns_are_numbers(tmp_path):
    table = read_table(write(tmp_path, "a.csv", "A plane.,A jet.,4.5\nB,C,0\n"), header=False)
    assert table.columns == ("1", "2", "3") and table.column("3") == ["4.5", "0"] and len(table) == 2
    assert read_table(write(tmp_path, "b.csv", "x;y\n1;2\n"), separator=";").column("y") == ["2"]
    assert read_table(write(tmp_path, "c.tsv", 'x\ty\na "b\tc\n')).column("x") == ['a "b']


def test_json_lines(tmp_path):
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": 2, "more": [1]}]
    table = read_table(write(tmp_path, "a.jsonl", "\n\n".join(map(json.dumps, rows))), limit=5)
    assert table.columns == ("text", "label", "more") and table.column("label") == [1, 2]
    with pytest.raises(DataError, match="line 1 has no 'more'"):
        table.column("more")
    path = write(tmp_path, "a.txt", "\n".join(map(json.dumps, rows)))
    assert len(read_table(f"jsonl:{path}", limit=1)) == 1


def test_conll_and_conllu(tmp_path):
    table = read_table(write(tmp_path, "a.conll", "He PRP O\nruns VBZ B-V\n\n\nYes UH O\n"))
    assert table.column("1") == [["He", "runs"], ["Yes"]] and table.column("3") == [["O", "B-V"], ["O"]]
    rest = "\t_" * 8
    lines = f"# text = x\n1-2\tdu{rest}\n1\tde{rest}\n1.1\te{rest}\n2\tle{rest}\n"
    assert read_table(write(tmp_path, "a.conllu", lines)).column("2") == [["de", "le"]]


def test_parallel_lines_and_labels_before_text(tmp_path):
    a, b = write(tmp_path, "in", "x y\n\nz"), write(tmp_path, "out", "O B\n\nO\n")
    table = read_table(f"words={a},tags={b}")
    assert table.columns == ("words", "tags") and table.column("words") == ["x y", "", "z"]
    c = write(tmp_path, "all", "1 good film\n0  bad\n\n2\n")
    table = read_table(f"label-text:{c}")
    assert table.column("label") == ["1", "0", "2"] and table.column("text") == ["good film", "bad", ""]


def test_a_line_of_ten_megabytes(tmp_path):
    long = "word " * 2_000_000
    table = read_table(write(tmp_path, "a.csv", f"text,label\n{long},1\nb,2\n"))
    assert [len(text) for text in table.column("text")] == [len(long), 1]


def test_mixed_encodings_are_counted_or_refused(tmp_path):
    path = write(tmp_path, "a.csv", "text,label\nné,1\n".encode() + "né,2\n".encode("latin-1"))
    table = read_table(path)
    assert table.column("text") == ["né", "n\ufffd"] and table.tally.replaced == 1
    with pytest.raises(DataError, match="not UTF-8"):
        read_table(path, strict=True)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "text,label\na,b,c\n", "line 2: 3 fields, but there are 2 columns"),
        ("a.csv", 'text,label\n"a,b\n', "line 2"),
        ("a.csv", "text,text\na,b\n", "names the column 'text' twice"),
        ("a.csv", "", "is empty"),
        ("a.csv", "text,label\n", "holds no row"),
        ("a.jsonl", '{"a": 1}\n{"a"\n', "line 2: no JSON"),
        ("a.jsonl", "[1]\n", "must be an object"),
        ("a.conll", "a b\nc\n", "line 2: 1 columns, but the sentence began with 2"),
        ("a.parquet", "PAR1", "no table that is known by its name"),
        ("empty", "", "'.*empty' is empty"),
        ("a.csv", b"text,label\ra,b\r", "carriage returns alone"),
        ("a.jsonl", "[" * 100_000 + "\n", "line 1: brackets within brackets"),
        ("a.json", "[" * 100_000, "a.json: brackets within brackets"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path, name, text, words):
    with pytest.raises(DataError, match=words):
        read_table(write(tmp_path, name, text))


def test_missing_files_columns_and_halves(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_table(tmp_path / "none.csv")
    table = read_table(write(tmp_path, "a.csv", "text,label\na,b\n"))
    with pytest.raises(DataError, match=r"no column 'lable'\. Did you mean 'label'"):
        table.column("lable")
    a, b = write(tmp_path, "in", "x\ny\n"), write(tmp_path, "out", "x\n")
    with pytest.raises(DataError, match="'out' ends at line 1"):
        read_table(f"a={a},b={b}")


def test_utf_16_and_a_quote_left_open_are_said_in_words(tmp_path):
    with pytest.raises(DataError, match="UTF-16"):
        read_table(write(tmp_path, "a.csv", "text,label\na,b\n".encode("utf-16")))
    with pytest.raises(DataError, match="line 3: a quote that is opened is never closed"):
        read_table(write(tmp_path, "b.csv", 'text,label\n"open,pos\nmore,neg\n'))


def test_what_was_replaced_is_still_known_after_a_split(tmp_path):
    table = read_table(write(tmp_path, "a.csv", b"text,label\n" + b"caf\xe9,pos\nfine,neg\n" * 8))
    kept, _ = split_table(table, 0.25, 0, TaskSpec())
    assert kept.tally.replaced == 8
