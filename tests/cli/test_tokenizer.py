"""`orrery tokenizer` as typed."""

import json

import pytest

from cli.test_commands import run


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for number in range(40):
        (folder / f"{number}.txt").write_text(f"The runner number {number} ran past the running runners. " * 30)
    return folder


def test_train_then_report(texts, tmp_path):
    out = tmp_path / "mine"
    made = json.loads(run("tokenizer", "train", "wordpiece:120", str(texts), "--out", str(out), "--json").stdout)
    assert 64 < made["vocabulary"] <= 120  # so small a text has no more pieces
    arguments = ("tokenizer", "report", "bytes", str(out), "--text", f"en={texts}")
    rows = json.loads(run(*arguments, "--json").stdout)
    assert [row["tokenizer"] for row in rows] == ["bytes", "wordpiece:120"]
    assert rows[0]["bytes_per_token"] == 1 < rows[1]["bytes_per_token"]
    assert "tokens/word" in run(*arguments).stdout
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    refused = run("tokenizer", "train", "bytes", str(texts), "--out", str(tmp_path / "full"), code=2)
    assert "holds no tokenizer" in refused.stderr and (tmp_path / "full" / "letter.txt").read_text() == "mine"


def test_one_table_holds_several_languages(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("text,language\n" + "".join(f"the runner {n} ran,en\nkosucu {n} kostu,tr\n" for n in range(60)))
    rows = json.loads(run("tokenizer", "report", "bytes", "bpe:290", "--text", f"{table}:text", "--by", "language", "--json").stdout)
    assert [(row["text"], row["tokenizer"]) for row in rows] == [("en", "bytes"), ("en", "bpe:290"), ("tr", "bytes"), ("tr", "bpe:290")]
    assert rows[0]["words"] / rows[0]["bytes"] > rows[2]["words"] / rows[2]["bytes"], "each is measured on its own rows"
    assert "TABLE:COLUMN" in run("tokenizer", "report", "bytes", "--text", "t.csv", "--by", "language", code=2).stderr
    assert "no column 'tongue'" in run("tokenizer", "report", "bytes", "--text", f"{table}:text", "--by", "tongue", code=2).stderr
    alone = json.loads(run("tokenizer", "report", "bytes", "--text", f"all={table}:text", "--json").stdout)
    assert [row["text"] for row in alone] == ["all"] and 0 < alone[0]["words"] < 60, "the held-out rows, without their languages"
