"""The store: one way to change it, nothing lost by crashes, two writers, or damage to the index; damage to the journal named."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from orrery.catalogue import journal, shipped, store
from orrery.catalogue.events import Event
from orrery.catalogue.store import Store
from orrery.core.errors import CorruptionError, DataError, StorageError, UnknownNameError

AT = "2026-01-02T03:04:05Z"


@pytest.fixture(autouse=True)
def few_shipped(monkeypatch, tmp_path_factory):
    """Three shipped papers, so that making a store costs little."""
    file = tmp_path_factory.getbasetemp() / "three.jsonl"
    if not file.exists():
        file.write_bytes(b"".join(shipped.FILE.read_bytes().splitlines(keepends=True)[:3]))
    monkeypatch.setattr(shipped, "FILE", file)
    for cached in (shipped._content, shipped.checksum, shipped.papers):
        cached.cache_clear()
    yield
    for cached in (shipped._content, shipped.checksum, shipped.papers):
        cached.cache_clear()


def add(opened, *titles, at=AT, **fields):
    return opened.record("import", {"source": "test", "papers": [{"title": title, **fields} for title in titles]}, at=at)


def slugs(opened):
    return [paper.slug for paper in opened.all()]


def content(folder):
    """Everything in the tables, as a rebuilt index must have it again."""
    with Store.open(folder) as opened:
        names = [row[0] for row in opened.connection().execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
        tables = [name for name in names if not name.startswith("papers_fts")]
        return {name: [tuple(row) for row in opened.connection().execute(f"SELECT * FROM {name} ORDER BY 1, 2")] for name in tables}


def test_new_store_holds_the_shipped_papers_and_its_owner(tmp_path):
    with Store.open(tmp_path) as opened:
        assert opened.count() == 3 and slugs(opened)[0] == "emo"
        owner = opened.connection().execute("SELECT id, role FROM readers").fetchall()
        assert [tuple(row) for row in owner] == [(1, "owner")]
        assert opened.verify() == [] and opened.notes == []
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert kinds == ["create", "shipped"]


def test_record_is_answered_written_down_and_seen_by_other_stores(tmp_path):
    with Store.open(tmp_path) as one, Store.open(tmp_path) as two:
        assert two.count() == 3
        (put,) = add(one, "A Paper of Its Own", abstract="Its abstract.")
        assert (put.slug, put.outcome) == ("a-paper-of-its-own", "added")
        paper = two.paper("a-paper-of-its-own")
        assert (paper.abstract, paper.added, paper.source, paper.shipped) == ("Its abstract.", AT, "test", False)
        assert [p.slug for p in two.papers(["emo", "nothing", "a-paper-of-its-own"])] == ["emo", "a-paper-of-its-own"]


def test_nothing_is_written_when_nothing_changes_or_the_event_is_refused(tmp_path):
    with Store.open(tmp_path) as opened:
        add(opened, "Once")
        before = (tmp_path / "journal.jsonl").read_bytes()
        assert [put.outcome for put in add(opened, "Once")] == ["unchanged"]
        with pytest.raises(DataError, match="without a title"):
            opened.record("import", {"source": "test", "papers": [{"title": "Half of it"}, {"abstract": "no title"}]})
        with pytest.raises(CorruptionError, match="unknown kind 'dance'"):
            opened.record("dance", {})
        with pytest.raises(DataError, match="cannot be written down"):
            opened.record("import", {"source": "test", "papers": [{"title": "lone surrogate \ud800"}]})
        assert (tmp_path / "journal.jsonl").read_bytes() == before
        assert opened.count() == 4


def test_papers_are_found_by_slug_id_doi_and_address(tmp_path):
    with Store.open(tmp_path) as opened:
        add(opened, "One", arxiv="2001.00001")
        add(opened, "Two", doi="10.1000/a.b(c)")
        for key in ("one", "2001.00001", "2001.00001v3", "arXiv:2001.00001", "https://arxiv.org/abs/2001.00001v2", "10.48550/arXiv.2001.00001"):
            assert opened.paper(key).slug == "one", key
        for key in ("two", "10.1000/A.B(c)", "https://doi.org/10.1000/a.b(c)"):
            assert opened.paper(key).slug == "two", key
        with pytest.raises(UnknownNameError, match="Did you mean 'emo'"):
            opened.paper("emmo")
        for nonsense in ("", "' OR 1=1 --", "\0", "x" * 10_000):
            with pytest.raises(UnknownNameError):
                opened.paper(nonsense)


WRITER = """
import sys
from orrery.catalogue.store import Store
with Store.open(sys.argv[1]) as store:
    for number in range(25):
        store.record("import", {"source": sys.argv[2], "papers": [{"title": f"{sys.argv[2]} number {number}"}]})
"""


def python(code, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(Path(store.__file__).parents[2])}
    few = f"import pathlib; from orrery.catalogue import shipped; shipped.FILE = pathlib.Path({str(shipped.FILE)!r})\n"
    return subprocess.Popen([sys.executable, "-c", few + code, *arguments], env=environment, stderr=subprocess.PIPE, text=True)


def test_two_writing_processes_lose_nothing(tmp_path):
    writers = [python(WRITER, str(tmp_path), name) for name in ("first", "second")]
    for writer in writers:
        _, problems = writer.communicate(timeout=60)
        assert writer.returncode == 0, problems
    with Store.open(tmp_path) as opened:
        found = set(slugs(opened))
        assert {f"{name}-number-{number}" for name in ("first", "second") for number in range(25)} <= found
        seqs = [line.event.seq for line in opened.journal.lines()]
        assert seqs == list(range(1, len(seqs) + 1))
        assert opened.verify() == []
    kept = content(tmp_path)
    (tmp_path / "papers.sqlite").unlink()
    for side in tmp_path.glob("papers.sqlite-*"):
        side.unlink()
    assert content(tmp_path) == kept


def test_threads_share_a_store(tmp_path):
    with Store.open(tmp_path) as opened:
        threads = [threading.Thread(target=lambda n=n: [add(opened, f"thread {n} paper {k}") and opened.count() for k in range(5)]) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert opened.count() == 3 + 20


KILLED = """
import os, signal, sys
from orrery.catalogue.journal import Journal
from orrery.catalogue.store import Store
append = Journal.append
def die(journal, event, after):
    if sys.argv[2] == "after":
        append(journal, event, after)
    os.kill(os.getpid(), signal.SIGKILL)
with Store.open(sys.argv[1]) as store:
    Journal.append = die
    store.record("import", {"source": "x", "papers": [{"title": "Killed in the Middle"}]})
"""


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
@pytest.mark.parametrize(("moment", "kept"), [("before", False), ("after", True)])
def test_killed_around_the_journal(tmp_path, moment, kept):
    """Killed before the journal has the event: it never was. Killed between journal and commit: it is applied on opening."""
    Store.open(tmp_path).close()
    child = python(KILLED, str(tmp_path), moment)
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL
    with Store.open(tmp_path) as opened:
        assert ("killed-in-the-middle" in slugs(opened)) is kept
        assert opened.verify() == []
        add(opened, "Life Goes On")
        assert opened.verify() == []


def test_torn_last_line_is_cut_off_and_said(tmp_path):
    with Store.open(tmp_path) as opened:
        add(opened, "Whole")
    file = tmp_path / "journal.jsonl"
    with open(file, "ab") as torn:
        torn.write(file.read_bytes().splitlines(keepends=True)[-1][:-40])
    with Store.open(tmp_path) as opened:
        assert any("unfinished last line" in note for note in opened.notes)
        assert add(opened, "After It")[0].outcome == "added"
        assert opened.verify() == []


def flip(file, offset):
    data = bytearray(file.read_bytes())
    data[offset] ^= 0x55
    file.write_bytes(data)


def test_damaged_index_is_recognised_kept_aside_and_made_anew(tmp_path):
    with Store.open(tmp_path) as opened:
        add(opened, *[f"Paper {number}" for number in range(40)], abstract="words " * 50)
    kept = content(tmp_path)
    index = tmp_path / "papers.sqlite"
    page = 4096
    with sqlite3.connect(index) as direct:
        root = direct.execute("SELECT rootpage FROM sqlite_master WHERE name = 'papers'").fetchone()[0]
        direct.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    direct.close()
    flip(index, (root - 1) * page + 1)  # the head of a table's page
    with Store.open(tmp_path) as opened:
        assert len(opened.notes) == 1 and "papers.damaged-" in opened.notes[0]
        assert opened.verify() == []
    assert content(tmp_path) == kept
    assert len(list(tmp_path.glob("papers.damaged-*.sqlite"))) == 1
    with Store.open(tmp_path) as opened:
        assert opened.notes == []


def test_flipped_letter_of_a_paper_is_found_when_it_is_read(tmp_path):
    """SQLite's own check does not see it: the page is in order, only the text is another."""
    with Store.open(tmp_path) as opened:
        add(opened, "A Title That Will Be Changed", abstract="The abstract is unmistakable.")
    with sqlite3.connect(tmp_path / "papers.sqlite") as direct:
        direct.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    direct.close()
    data = (tmp_path / "papers.sqlite").read_bytes()
    flip(tmp_path / "papers.sqlite", data.index(b"The abstract is unmistakable."))
    with Store.open(tmp_path) as opened:
        assert opened.paper("a-title-that-will-be-changed").abstract == "The abstract is unmistakable."
        assert "another digest" in opened.notes[0]


@pytest.mark.parametrize("damage", [b"", b"not a database at all " * 400])
def test_emptied_or_replaced_index_is_made_anew(tmp_path, damage):
    with Store.open(tmp_path) as opened:
        add(opened, "Kept")
    for side in tmp_path.glob("papers.sqlite-*"):
        side.unlink()
    (tmp_path / "papers.sqlite").write_bytes(damage)
    with Store.open(tmp_path) as opened:
        assert "kept" in slugs(opened) and opened.notes


def test_open_store_sees_an_index_that_another_process_made_anew(tmp_path):
    with Store.open(tmp_path) as one, Store.open(tmp_path) as two:
        add(one, "Before")
        two.rebuild("a test")
        add(two, "After")
        assert {"before", "after"} <= set(slugs(one))
        add(one, "And On")
        assert "and-on" in slugs(two) and one.verify() == []


def lines_of(folder):
    return (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)


def tamper(lines):
    changed = [*lines]
    changed[3] = changed[3].replace(b"Paper 1", b"Paper 9")
    return changed


def test_changed_journal_line_is_named_and_mended_around(tmp_path):
    with Store.open(tmp_path) as opened:
        for number in range(3):
            add(opened, f"Paper {number}")
    (tmp_path / "journal.jsonl").write_bytes(b"".join(tamper(lines_of(tmp_path))))
    with Store.open(tmp_path) as opened:  # the index is whole and says so; the damage is found when it matters
        assert any("line 4" in problem and "changed or damaged" in problem for problem in opened.verify())
        with pytest.raises(CorruptionError, match="line 4 of"):
            opened.rebuild("a test")
        assert "paper-1" in slugs(opened)
        problems = opened.mend()
        assert problems[0].startswith("line 4 was changed")
        assert opened.verify() == []
        assert {"paper-0", "paper-2"} <= set(slugs(opened)) and "paper-1" not in slugs(opened)
    assert len(list(tmp_path.glob("journal.damaged-*.jsonl"))) == 1


@pytest.mark.parametrize("change", ["removed", "doubled", "moved", "forged"])
def test_chain_names_the_line(tmp_path, change):
    with Store.open(tmp_path) as opened:
        for number in range(3):
            add(opened, f"Paper {number}")
    lines = lines_of(tmp_path)
    forged = journal.encode(Event(4, AT, "import", {"source": "x", "papers": []}), "0" * 32)
    changed = {
        "removed": lines[:3] + lines[4:],
        "doubled": lines[:4] + lines[3:],
        "moved": lines[:3] + [lines[4], lines[3]],
        "forged": lines[:3] + [forged] + lines[4:],
    }[change]
    (tmp_path / "journal.jsonl").write_bytes(b"".join(changed))
    with pytest.raises(CorruptionError, match=r"line [45] of .* does not follow"):
        journal.Journal(tmp_path).verify()


def test_cut_journal_is_refused_with_advice(tmp_path):
    with Store.open(tmp_path) as opened:
        add(opened, "One")
        add(opened, "Two")
    (tmp_path / "journal.jsonl").write_bytes(b"".join(lines_of(tmp_path)[:-1]))
    with pytest.raises(CorruptionError, match="holds less than the index has seen"):
        Store.open(tmp_path)
    for file in tmp_path.glob("papers.sqlite*"):
        file.unlink()
    with Store.open(tmp_path) as opened:
        assert "one" in slugs(opened) and "two" not in slugs(opened)


def test_store_of_a_newer_version_is_refused(tmp_path):
    position = journal.Position()
    journal.Journal(tmp_path).append(Event(1, AT, "create", {"format": 99}), position)
    with pytest.raises(CorruptionError, match=r"format 99.*update orrery"):
        Store.open(tmp_path)


def test_updated_shipped_papers_reach_an_old_store(tmp_path, monkeypatch):
    with Store.open(tmp_path) as opened:
        add(opened, "A Paper That Will Be Shipped", abstract="Came by import.", arxiv="2401.00001")
    file = tmp_path / "four.jsonl"
    new = {"slug": "short-name", "title": "A Paper that will be shipped", "arxiv": "2401.00001", "sentence": "Ours.", "kind": "data"}
    file.write_bytes(shipped.FILE.read_bytes() + json.dumps(new).encode())
    monkeypatch.setattr(shipped, "FILE", file)
    for cached in (shipped._content, shipped.checksum, shipped.papers):
        cached.cache_clear()
    with Store.open(tmp_path) as opened:
        paper = opened.paper("a-paper-that-will-be-shipped")
        assert (paper.slug, paper.sentence, paper.abstract, paper.shipped) == ("short-name", "Ours.", "Came by import.", True)
        assert opened.count() == 4
    before = content(tmp_path)
    (tmp_path / "papers.sqlite").unlink()
    rebuilt = content(tmp_path)
    assert {row[1] for row in rebuilt["papers"]} == {row[1] for row in before["papers"]}


def test_full_disk_changes_nothing(tmp_path, monkeypatch):
    with Store.open(tmp_path) as opened:
        before, real = lines_of(tmp_path), os.write
        monkeypatch.setattr(journal.os, "write", _Full(real))
        with pytest.raises(StorageError, match="No space left on device; nothing was changed"):
            add(opened, "Too Much")
        monkeypatch.setattr(journal.os, "write", real)
        assert lines_of(tmp_path) == before
        add(opened, "Now It Fits")
        assert opened.verify() == []


class _Full:
    """A disk that takes twenty bytes and no more."""

    def __init__(self, real):
        self.real = real

    def __call__(self, handle, data):
        self.real(handle, bytes(data)[:20])
        raise OSError(28, "No space left on device")


def test_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot make the papers' folder"):
        Store.open(tmp_path / "file" / "papers")


def test_closed_store_refuses(tmp_path):
    opened = Store.open(tmp_path)
    opened.close()
    with pytest.raises(StorageError, match="is closed"):
        opened.count()
    with pytest.raises(StorageError, match="is closed"):
        add(opened, "Late")


def test_reading_connection_cannot_write(tmp_path):
    with Store.open(tmp_path) as opened, pytest.raises(sqlite3.OperationalError, match="readonly"):
        opened.connection().execute("DELETE FROM papers")


def test_default_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("ORRERY_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("ORRERY_PAPERS", raising=False)
    assert store.default_folder() == tmp_path / "data" / "papers"
    monkeypatch.setenv("ORRERY_PAPERS", str(tmp_path / "own"))
    assert store.default_folder() == tmp_path / "own"
