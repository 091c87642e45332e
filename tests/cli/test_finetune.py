"""`orrery finetune`, `predict` and `evaluate` as typed: what is lost of a text is counted, and nobody's files are written over."""

from __future__ import annotations

import io
import json
import sys
from types import SimpleNamespace

import pytest

from orrery.cli import main


def typed(monkeypatch, capsys, *arguments, stdin=b""):
    monkeypatch.setattr(sys, "argv", ["orrery", *map(str, arguments)])
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stdin)))
    with pytest.raises(SystemExit) as ended:
        main()
    return (ended.value.code or 0, *capsys.readouterr())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of six words at most, and its table."""
    folder = tmp_path_factory.mktemp("fitted")
    rows = [f"the {'cat' if n % 2 else 'dog'} number {n} runs,{'ab'[n % 2]}" for n in range(40)]
    (folder / "t.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [
            "orrery", "finetune", "bert", "--train", str(folder / "t.csv"), "--tokenizer", "wordpiece:80", "--set", "epochs=1", "--set",
            "model.width=16", "--set", "model.depth=1", "--out", str(folder / "run"), "--json", "--no-baseline",
        ])  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code
    return folder


def test_standard_input_is_utf_8_and_what_is_not_is_counted(folder, monkeypatch, capsys):
    code, out, error = typed(monkeypatch, capsys, "predict", folder / "run", stdin=b"\xef\xbb\xbfthe dog\r\n\r\ncaf\xe9 cat")
    assert code == 0 and len([json.loads(line) for line in out.splitlines()]) == 3
    assert "note: 1 character was not UTF-8 and was replaced, the first in 'standard input', line 3" in error
    assert typed(monkeypatch, capsys, "predict", folder / "run")[:2] == (0, "")


def test_what_is_cut_is_counted(folder, monkeypatch, capsys):
    (folder / "long.csv").write_text("text,label\n" + "the cat runs " * 500 + ",a\nthe dog,b\n")
    for command in (("predict", folder / "run", "--input", folder / "long.csv"), ("evaluate", folder / "run", folder / "long.csv")):
        code, _, error = typed(monkeypatch, capsys, *command)
        assert code == 2 and "long.csv, line 2 has 1502 tokens" in error and "--truncate" in error
        code, out, error = typed(monkeypatch, capsys, *command, "--truncate")
        assert code == 0 and out and "note: 1 row cut to " in error
    found = json.loads(typed(monkeypatch, capsys, *command, "--truncate", "--json")[1])
    assert any(note.startswith("1 row cut to ") for note in found["notes"])


def test_one_row_has_no_interval_and_is_json(folder, monkeypatch, capsys):
    (folder / "one.csv").write_text("text,label\nthe dog,b\n")
    out = typed(monkeypatch, capsys, "evaluate", folder / "run", folder / "one.csv", "--json")[1]
    found = json.loads(out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert found["figures"]["accuracy"]["low"] is None


def test_another_tokenizer_than_the_model_s_is_refused(folder, monkeypatch, capsys):
    typed_in = ("finetune", folder / "run", "--train", folder / "t.csv", "--tokenizer", "wordpiece:64", "--out", folder / "other")
    code, _, error = typed(monkeypatch, capsys, *typed_in)
    assert code == 2 and "was trained with the tokenizer wordpiece:80, not with this wordpiece:64" in error


def test_a_folder_of_other_things_is_left_alone(folder, monkeypatch, capsys):
    (folder / "mine" / "best").mkdir(parents=True)
    (folder / "mine" / "best" / "letter.txt").write_text("mine")
    train = ("finetune", "bert", "--train", folder / "t.csv", "--tokenizer", "bytes", "--set", "model.width=16", "--set", "model.depth=1")
    code, _, error = typed(monkeypatch, capsys, *train, "--out", folder / "mine")
    assert code == 2 and "holds no run, but 'best', which a run would write over" in error
    assert [path.name for path in (folder / "mine").rglob("*")] == ["best", "letter.txt"]


def test_an_encoding_is_recorded_and_taken_again(tmp_path, monkeypatch, capsys):
    rows = [f"{'żółw' if n % 2 else 'łoś'} numer {n},{'ab'[n % 2]}" for n in range(40)]
    (tmp_path / "t.csv").write_bytes(("text,label\n" + "\n".join(rows) + "\n").encode("cp1250"))
    settings = ("--set", "epochs=1", "--set", "model.width=16", "--set", "model.depth=1", "--no-baseline", "--json")
    made = ("finetune", "bert", "--train", tmp_path / "t.csv", "--tokenizer", "bytes", *settings, "--out", tmp_path / "run")
    code, _, error = typed(monkeypatch, capsys, *made, "--encoding", "cp1205")
    assert code == 2 and "there is no encoding 'cp1205'. Did you mean 'cp12" in error and not (tmp_path / "run").exists()
    code, out, error = typed(monkeypatch, capsys, *made, "--encoding", "windows-1250")
    assert code == 0 and json.loads(out)["notes"] == []
    assert json.loads((tmp_path / "run" / "run.json").read_text())["facts"]["encodings"] == {"train": "cp1250", "validation": "cp1250"}
    assert "Read as cp1250 (train), cp1250 (validation)." in (tmp_path / "run" / "MODEL_CARD.md").read_text()
    again = typed(monkeypatch, capsys, "predict", tmp_path / "run", "--input", tmp_path / "t.csv")
    (tmp_path / "u.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    assert again[1] == typed(monkeypatch, capsys, "predict", tmp_path / "run", "--input", tmp_path / "u.csv", "--encoding", "utf-8")[1]
    assert "note" not in again[2] and again[1] == typed(monkeypatch, capsys, "predict", tmp_path / "run", stdin="\n".join(
        row.partition(",")[0] for row in rows).encode("cp1250"))[1]  # fmt: skip
    found = json.loads(typed(monkeypatch, capsys, "evaluate", tmp_path / "run", tmp_path / "u.csv", "--truncate", "--json")[1])
    assert found["notes"][-1].startswith("40 lines are UTF-8 but were read as cp1250, the first in 'u.csv', lines 2, 3, 4, 5 and 6")


def test_tags_that_break_their_scheme_are_counted_when_they_are_judged(tmp_path, monkeypatch, capsys):
    whole, torn = "the\tO\nred\tB-X\ncat\tI-X\n\n", "the\tO\nred\tI-X\ncat\tI-X\n\n"
    (tmp_path / "t.conll").write_text(whole * 12)
    (tmp_path / "torn.conll").write_text(whole + torn * 2)
    settings = ("--set", "epochs=1", "--set", "model.width=16", "--set", "model.depth=1", "--tokenizer", "bytes", "--no-baseline")
    where = ("--text", "1", "--label", "2", "--task", "tagging", "--out", tmp_path / "run", "--json")
    assert typed(monkeypatch, capsys, "finetune", "bert", "--train", tmp_path / "t.conll", *where, *settings)[0] == 0
    said = [typed(monkeypatch, capsys, "evaluate", tmp_path / "run", tmp_path / name, "--json")[1] for name in ("t.conll", "torn.conll")]
    assert [json.loads(out)["notes"] for out in said] == [[], ["2 rows with tags that break the scheme bio, read as the CoNLL scorer reads them"]]
