"""Imports as a user makes them: both listings, the same thing twice, several formats at once, files that are broken."""

import json

import pytest

from orrery.catalogue import imports, shipped
from orrery.catalogue.store import Store

AT = "2026-01-02T03:04:05Z"
WORDS = (
    "Of this paper a page tells the following in more than one sentence, as abstracts do. It is made up for a test. "
)


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "papers") as opened:
        yield opened


def pages(folder):
    """Two copied pages with the titles of the reading list, the one that it names twice included; abstracts are made up."""
    titles = [fields["title"] for fields in shipped.papers()]
    twice = next(title for title in titles if title.startswith("Training-free"))
    first, second = titles[:44], [*titles[44:120], twice, *titles[120:]]
    spaced = "new\n\nSubscribe\n\nDaily Papers\n\nbyAK and the research community\n\nSep 8\n\n"
    spaced += "".join(f"{title}\n\n{WORDS * 4}({number})\n\n" for number, title in enumerate(first))
    tight = "Get trending papers in your email inbox once a day!\nSubscribe"
    tight += "".join(f"{title}\n{WORDS * 4}({number})\n" for number, title in enumerate(second))
    files = [folder / "listing-1.txt", folder / "listing-2.txt"]
    for file, text in zip(files, (spaced, tight), strict=True):
        file.write_text(text, encoding="utf-8")
    return files, twice


def test_both_listings_are_162_papers_and_the_duplicate_is_named(store, tmp_path):
    files, twice = pages(tmp_path)
    report = imports.import_files(store, files, at=AT)
    assert (report.records, report.papers, store.count()) == (163, 162, 162)
    assert len(report.merged) == 162 and not report.added and not report.refused
    (duplicate,) = report.duplicates
    assert duplicate.title == twice and duplicate.file.endswith("listing-2.txt")
    assert duplicate.why == "the title is that of listing-1.txt:55"
    assert report.summary() == "163 entries, 162 distinct papers: 0 added, 162 merged, 0 unchanged, 1 named twice"
    assert all(paper.abstract and paper.sentence for paper in store.all())


def test_importing_twice_changes_nothing(store, tmp_path):
    files, _ = pages(tmp_path)
    imports.import_files(store, files, at=AT)
    journal, papers = (store.folder / "journal.jsonl").read_bytes(), [paper.to_dict() for paper in store.all()]
    again = imports.import_files(store, files, at="2027-01-01T00:00:00Z")
    assert (len(again.unchanged), len(again.merged), len(again.added), len(again.duplicates)) == (162, 0, 0, 1)
    assert (store.folder / "journal.jsonl").read_bytes() == journal
    assert [paper.to_dict() for paper in store.all()] == papers


def test_several_files_of_several_formats(store, tmp_path):
    (tmp_path / "a.txt").write_text(
        "@misc{x, title={A New Paper}, eprint={2001.00001}, year=2020}\n@misc{y, title={Broken\n"
    )
    (tmp_path / "b.bib").write_text(
        json.dumps([{"paper": {"id": "2001.00001", "title": "A New Paper!", "summary": "Words.", "upvotes": 4}}])
    )
    (tmp_path / "c").write_text("nothing that is known\n")
    report = imports.import_files(
        store, [tmp_path / "a.txt", tmp_path / "b.bib", tmp_path / "c", tmp_path / "none"], at=AT
    )
    assert [entry.slug for entry in report.added] == ["a-new-paper"] and report.duplicates[
        0
    ].why == "the arXiv id is that of a.txt:1"
    assert [str(refusal).removeprefix(f"{tmp_path}/").split(":")[:2] for refusal in report.refused[:1]] == [
        ["a.txt", "2"]
    ]
    assert ["its format is not known" in report.refused[1].why, "cannot read" in report.refused[2].why] == [True, True]
    assert not report.failed
    paper = store.paper("2001.00001")
    assert (paper.abstract, paper.upvotes, paper.curated, paper.source, paper.added) == ("Words.", 4, True, "a.txt", AT)
    row = (
        store.connection()
        .execute("SELECT source, added, merged, unchanged, refused FROM imports ORDER BY seq")
        .fetchall()
    )
    assert [tuple(each) for each in row] == [("a.txt", 1, 0, 0, 1), ("b.bib", 0, 1, 0, 0)]
    json.dumps(report.to_dict())


def test_nothing_that_can_be_read(store, tmp_path):
    report = imports.import_text(store, '[{"title": ""}, 3]', "x.json")
    assert report.failed and len(report.refused) == 2 and store.count() == 162


def test_fields_that_cannot_be_stored_are_refused_by_line(store):
    text = "title,arxiv,year\nGood,2001.00001,2020\nBad Id,20-01,2020\nBad Year,,20\n"
    report = imports.import_text(store, text, "x.csv", at=AT)
    assert [entry.title for entry in report.added] == ["Good"]
    assert [(refusal.line, refusal.why.split(":")[0]) for refusal in report.refused] == [
        (3, "'Bad Id'"),
        (4, "'Bad Year'"),
    ]


def test_imports_larger_than_a_batch(store, monkeypatch):
    monkeypatch.setattr(imports, "BATCH", 7)
    items = [{"title": f"Paper number {number}", "type": "article"} for number in range(20)]
    report = imports.import_text(store, json.dumps([*items, items[3]]), "x.json", at=AT)
    assert len(report.added) == 20 and len(report.duplicates) == 1 and store.verify() == []
    assert [line.event.kind for line in store.journal.lines()][2:] == ["import"] * 3
