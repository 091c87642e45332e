"""`orrery ngram` as typed."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from pathlib import Path

import pytest

from orrery.cli import main
from orrery.ngram import builder
from orrery.ngram.http import Background
from orrery.ngram.service import Service

TEXTS = {
    "a.txt": "import numpy as np\nimport os\nimport sys\n" * 4,
    "b.txt": "import numpy as xp\nfrom os import path\n",
    "c.txt": "Nothing here is code, but a sentence about birds and the sea.\n",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = tmp_path_factory.mktemp("ngram")
    for name, text in TEXTS.items():
        (root / "texts").mkdir(exist_ok=True)
        (root / "texts" / name).write_text(text)
    return root


@pytest.fixture
def orrery(home, monkeypatch, capsys):
    monkeypatch.setenv("ORRERY_CACHE", str(home / "cache"))
    monkeypatch.chdir(home)

    def call(*arguments, code=0):
        monkeypatch.setattr(sys, "argv", ["orrery", "ngram", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert (ended.value.code or 0) == code, said.err
        if code == 2:
            assert said.err.startswith("orrery: ") and said.err.count("\n") == 1, said.err
            return said.err
        return json.loads(said.out) if "--json" in arguments else said.out

    return call


@pytest.fixture
def built(orrery, home):
    if not (home / "cache" / "ngram" / "mine").exists():
        assert orrery("build", "texts", "--name", "mine", "--tokenizer", "bytes", "--quiet", "--json")["built"]
    return orrery


def test_build_says_what_it_does_and_does_nothing_twice(orrery, home):
    said = orrery("build", "texts", "--name", "first", "--tokenizer", "bytes", "--memory", "1G")
    assert "first: built in" in said and "bytes a token" in said and str(home / "cache" / "ngram" / "first") in said
    again = orrery("build", "texts", "--name", "first", "--tokenizer", "bytes", "--json")
    assert not again["built"] and again["tokens"] == sum(map(len, TEXTS.values())) + 3 and again["documents"] == 3
    assert orrery("build", "texts", "--name", "first", "--tokenizer", "bytes", "--force", "--quiet", "--json")["built"]
    (home / "texts" / "d.txt").write_text("more")
    assert orrery("build", "texts", "--name", "first", "--tokenizer", "bytes", "--quiet", "--json")["documents"] == 4
    (home / "texts" / "d.txt").unlink()
    assert [each["name"] for each in orrery("list", "--json") if each["name"] == "first"] == ["first"]
    assert "first" in orrery("list")


def test_questions_about_an_ngram(built):
    assert built("count", "mine", "import", "--json")[0]["count"] == 14
    assert built("count", "mine", "import").strip() == "14"
    assert "14" in built("count", "mine", "import", "numpy") and built("count", "mine", "--ids", "105 109").strip() == "14"
    assert built("count", "mine", "--cnf", "xp AND path", "--json") == {
        "query": "xp AND path", "matches": 1, "exact": True, "window": 100,
    }  # fmt: skip
    found = built("next", "mine", "zzz numpy as ", "--json")
    assert (found["effective_n"], found["of"], found["occurrences"], found["sparse"]) == (10, 13, 5, False)
    assert [(row["token"], row["count"], row["prob"]) for row in found["next"]] == [("n", 4, 0.8), ("x", 1, 0.2)]
    said = built("next", "mine", "zzz numpy as ")
    assert "effective n = 10 of 13 tokens" in said and "‹x›" in said
    assert "never occurs" in built("next", "mine", "zzz", "--exact")
    assert "sparse" in built("next", "mine", "numpy as x")
    found = built("prob", "mine", "numpy as n", "--json")
    assert (found["prob"], found["infgram"]["effective_n"]) == (0.8, 9)
    assert "0.8  (4 of 5)" in built("prob", "mine", "numpy as n")
    rows = built("prob", "mine", "np", "--each", "--json")
    assert [row["token"] for row in rows] == ["n", "p"] and rows[1]["effective_n"] == 1
    assert "undefined" in built("prob", "mine", "zzzz")


def test_questions_about_texts(built, home):
    found = built("docs", "mine", "xp", "--json")
    assert found["count"] == 1 and found["documents"][0]["name"] == "b.txt" and found["documents"][0]["places"] == [16]
    assert "b.txt  (1x, first at token 16" in built("docs", "mine", "xp", "--context", 5)
    (home / "answer.txt").write_text("They wrote a sentence about birds and the sea yesterday")
    found = built("attribute", "mine", "--file", "answer.txt", "--min-length", 12, "--json")
    assert found["spans"][0]["text"] == " a sentence about birds and the sea" and found["spans"][0]["times"] == 1
    assert found["spans"][0]["documents"][0]["name"] == "c.txt"
    assert "in c.txt" in built("attribute", "mine", "a sentence about birds")
    (home / "eval.jsonl").write_text('{"q": "import numpy as np and import os"}\n{"q": "1234567890 QQQQ"}\n')
    report = built("contamination", "mine", "eval.jsonl:q", "--json", "--share", 0.5)
    assert report["contaminated"] == [0] and report["total"] == 2
    assert "1 of 2 texts are contaminated" in built("contamination", "mine", "eval.jsonl:q", "--share", 0.5)
    fresh = built("novelty", "mine", "eval.jsonl:q", "--against", "texts", "--json")
    assert fresh["against"]["new"]["8"] == 0 < fresh["texts"]["new"]["8"]
    assert "new in texts" in built("novelty", "mine", "eval.jsonl:q", "--against", "texts")
    twice = built("duplicates", "mine", "--min-length", 20, "--json")
    assert twice["covered"] >= len(TEXTS["a.txt"]) - 40 and "import numpy as" in twice["top"][0]["text"]
    assert "occurs again" in built("duplicates", "mine", "--min-length", 20)


def test_one_index_less_another_and_several_as_one(built, home):
    (home / "part").mkdir(exist_ok=True)
    shutil.copy(home / "texts" / "b.txt", home / "part")
    built("build", "part", "--out", "part.idx", "--tokenizer", "bytes", "--quiet")
    left = built("diff", "mine", "part.idx", "numpy as ", "--json")
    assert (left["count"], left["removed"], left["left"]) == (5, 1, 4)
    assert left["next"] == [{"token": "n", "count": 4}] and "5 less 1 leaves 4" in built("diff", "mine", "part.idx", "numpy as ")
    assert built("count", "mine,part.idx", "import").strip() == "16"
    with Background(Service({"far": home / "part.idx"})) as running:
        assert built("count", f"mine,{running.url}/far", "import").strip() == "16"
        assert built("next", f"{running.url}/far", "numpy as ", "--json")["next"][0]["token"] == "x"
        assert built("docs", f"{running.url}/far", "xp", "--json")["documents"][0]["name"] == "b.txt"


def test_serve_answers_until_it_is_stopped(built, home, monkeypatch):
    from orrery.ngram import http, remote

    running, went = [], threading.Event()

    def run(self, ready, signals=True):
        running.append(self)
        original(self, lambda server: (ready(server), went.set()), signals=False)

    original = http.Server.run
    monkeypatch.setattr(http.Server, "run", run)
    monkeypatch.setattr(sys, "argv", ["orrery", "ngram", "serve", "mine", "again=mine", "--port", "0"])

    def started():
        with pytest.raises(SystemExit):
            main()

    thread = threading.Thread(target=started)
    thread.start()
    assert went.wait(20)
    for name in ("mine", "again"):
        far = remote.Remote(f"{running[0].url}/{name}")
        assert far.count(list(b"import")) == 14
        far.close()
    running[0].stop()
    thread.join(10)
    assert not thread.is_alive()


def test_mistakes_are_one_sentence_and_exit_code_two(built, home):
    assert "Did you mean 'mine'?" in built("count", "mien", "a", code=2)
    assert "no folder './nowhere'" in built("count", "./nowhere", "a", code=2)
    assert "no whole n-gram index" in built("count", "texts", "a", code=2)
    assert "--name NAME" in built("build", "texts", "--tokenizer", "bytes", code=2)
    assert "Did you mean 'stdlib" in built("build", "stdlbi", code=2)
    assert "holds no index" in built("build", "texts", "--out", "texts", code=2)
    assert "no amount of memory" in built("build", "texts", "--name", "x", "--tokenizer", "bytes", "--memory", "much", code=2)
    assert "cannot be the name" in built("build", "texts", "--name", "../x", code=2)
    assert "vocabulary of 257" in built("count", "mine", "--ids", "300", code=2)
    assert "whole numbers" in built("count", "mine", "--ids", "1 x", code=2)
    assert "nobody answers" in built("count", "http://127.0.0.1:9/mine", "a", code=2)
    assert "no token" in built("prob", "mine", "", code=2)
    assert "no token to look for" in built("docs", "mine", "", code=2)
    many = " AND ".join(["import"] * 10_000)
    assert "at most 4096" in built("count", "mine", "--cnf", many, code=2)
    assert "at least one clause" in built("count", "mine", "--cnf", "import OR  AND os", code=2)
    (home / "two").mkdir(exist_ok=True)
    shutil.copy(home / "texts" / "b.txt", home / "two")
    with builder.only_builder(home / "two.idx"):
        assert "another process is building" in built("build", "two", "--out", "two.idx", "--tokenizer", "bytes", "--quiet", code=2)
    built("build", "two", "--out", "two.idx", "--tokenizer", "chars:80", "--quiet")
    assert "different tokenizers" in built("diff", "mine", "two.idx", "a", code=2)
    assert "different tokenizers" in built("count", "mine,two.idx", "a", code=2)


@pytest.mark.skipif(sys.platform == "win32", reason="rights of POSIX")
def test_folders_that_may_not_be_read(built, home, monkeypatch):
    """Refused where the system refuses to look; the administrator is refused nothing, so the refusal is made here."""
    looked = Path.is_file

    def refused(path):
        if path.parent.name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return looked(path)

    (home / "locked").mkdir(exist_ok=True)
    (home / "cache" / "ngram" / "locked").mkdir(exist_ok=True)
    monkeypatch.setattr(Path, "is_file", refused)
    assert "cannot read 'locked': Permission denied" in built("count", "./locked", "a", code=2)
    assert "cannot read" in built("verify", "locked", code=2)
    assert "cannot read" in built("build", "texts", "--out", "locked", "--tokenizer", "bytes", code=2)
    monkeypatch.undo()
    (home / "cache" / "ngram" / "locked").rmdir()


def test_what_tokens_look_like(built, home):
    (home / "bytes.txt").write_text("naïve \\n naïve\n" * 30, encoding="utf-8")
    built("build", "bytes.txt", "--out", "my idx", "--tokenizer", "bytes", "--quiet")
    said = built("next", "my idx", "na")
    assert "‹\\xc3›" in said and "‹\\\\xc3›" not in said
    assert "orrery ngram next 'my idx'" in built("build", "bytes.txt", "--out", "my idx", "--tokenizer", "bytes", "--quiet")
    assert "nothing, which stands before every token" in built("next", "my idx", "")


def test_damage_is_found(built, home):
    assert "whole: " in built("verify", "mine") and built("verify", "mine", "--json")["whole"]
    for name, change in (("shard-00000.bin", "flip"), ("shard-00000.bin", "cut"), ("index.json", "flip"), ("names.bin", "flip")):
        shutil.rmtree(home / "bad", ignore_errors=True)
        shutil.copytree(home / "cache" / "ngram" / "mine", home / "bad")
        data = bytearray((home / "bad" / name).read_bytes())
        if change == "cut":
            data = data[:-8]
        else:
            data[len(data) // 3 if name != "shard-00000.bin" else 20] ^= 4
        (home / "bad" / name).write_bytes(bytes(data))
        assert "damaged" in built("verify", "./bad", code=2)
        if name == "shard-00000.bin":
            assert "damaged" in built("count", "./bad", "import numpy", code=2)


def test_help_has_examples(orrery):
    for command in (
        "build", "list", "verify", "count", "prob", "next", "diff", "docs", "attribute", "contamination", "novelty",
        "duplicates", "serve",
    ):  # fmt: skip
        assert "Example" in orrery(command, "--help")
