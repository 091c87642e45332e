"""What is written is read back as the same papers, whatever stands in their titles; feeds and citations keep their formats."""

import csv
import io
import json
from xml.etree import ElementTree

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as some

from orrery.catalogue import bibtex, formats, keys, latex, status, writers
from orrery.catalogue.reading import Found
from orrery.catalogue.record import Paper, clean, plain
from orrery.catalogue.store import Store
from orrery.core.errors import ConfigError, DataError

NASTY = [
    "{Braces} } everywhere {", r"back\slash \textbf{x} \\", "100% of $x^2$ & #1_a~b^c", "<b>not a tag</b> &amp; &lt;", '"quotes" \'\' `` --- -- -',
    "=SUM(A1)", "+1", "-1", "@import", "'=quoted", "a, b; c\\; d", "日本語 العربية עברית 🤖", "É\u0301 ﬁ ß ẞ İı", "x and y AND others",
    "\x00\x07ctrl\u202e\ud800",
    "@article{x, title = {y}}", "A, B", "line\nbreak\ttab", "]]>", "<!-- c -->", "a" * 500,
]  # fmt: skip
TEXT = some.one_of(some.sampled_from(NASTY), some.text(min_size=1, max_size=60))
IDS = some.one_of(some.none(), some.integers(0, 99999).map(lambda n: f"2001.{n:05}"))
DOIS = some.one_of(
    some.none(), some.sampled_from(["10.1000/a_b", "10.1002/(sici)1097(199)9:1<1::aid-x>3.0.co;2-#", "10.1000/x--y&z%"])
)


@some.composite
def papers(draw):
    """A paper as a store may hold it."""
    fields = {
        "title": draw(TEXT),
        "arxiv": draw(IDS),
        "doi": draw(DOIS),
        "url": draw(some.sampled_from([None, "https://example.org/a?b=c&d=%20#e", "https://example.org/ä{b}_~"])),
        "abstract": draw(some.one_of(some.just(""), TEXT)),
        "authors": draw(some.lists(TEXT, max_size=3)),
        "date": draw(some.sampled_from([None, "2024-05-31", "1999-12-01"])),
        "year": draw(some.sampled_from([None, 2021])),
    }
    if fields["date"]:
        fields["year"] = None
    try:
        found = clean(fields)
    except DataError:  # nothing is left of the title
        found = clean({**fields, "title": "A title"})
    return Paper(
        slug="x", **{name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    )


def read_back(text, kind):
    found = list(formats.records(text))
    assert all(isinstance(each, Found) for each in found), found
    return [clean(each.fields) for each in found]


COMPARED = ("title", "arxiv", "doi", "abstract", "year", "date")


@pytest.mark.parametrize("kind", ["bibtex", "csl", "csv", "json", "atom"])
@settings(max_examples=60)
@given(some.lists(papers(), min_size=1, max_size=3))
@example([Paper(slug="x", title=clean({"title": text})["title"], authors=(plain(text)[:200].strip() or "x",)) for text in NASTY])
def test_export_then_import_gives_the_same_papers(kind, given_papers):
    text = writers.write(given_papers, kind)
    found = read_back(text, kind)
    assert len(found) == len(given_papers)
    for paper, fields in zip(given_papers, found, strict=True):
        for name in COMPARED:
            assert fields.get(name, "" if name == "abstract" else None) == getattr(paper, name), name
        assert tuple(fields.get("authors", ())) == paper.authors
        if paper.url:
            assert fields.get("url") == paper.url


@settings(max_examples=150)
@given(TEXT)
def test_latex_there_and_back(text):
    text = plain(text)
    assert latex.to_text(latex.from_text(text)) == text


@given(some.text(max_size=200))
def test_readers_never_break(text):
    for kind in formats.READERS:
        list(formats.records(text, kind))


@given(some.text(alphabet='@{}",=#\\\n ab', max_size=80))
def test_bibtex_parser_never_breaks(text):
    list(bibtex.records("@a{k, title = {x}}" + text))


@given(some.text(max_size=60))
def test_keys_of_any_title(text):
    assert keys.SLUG.fullmatch(keys.slug(text))
    assert keys.title_key(keys.title_key(text)) == keys.title_key(text)


# ---------------------------------------------------------------- single formats


ONE = Paper(
    slug="emo-x", title="A Title: of {Things}", arxiv="2001.00001", year=2024, date="2024-05-31", abstract="What it says.", sentence="Ours.",
    authors=("Ada Lovelace", "The Team, Inc."), kind="objective", topics=("optimization",), added="2026-01-02T03:04:05Z",
)  # fmt: skip


def test_bibtex_looks_as_people_write_it():
    text = writers.write([ONE], "bibtex")
    assert text.startswith("@misc{emo-x,\n  title = {{A Title: of {\\textbraceleft}Things{\\textbraceright}}},\n")
    assert "author = {Ada Lovelace and {The Team, Inc.}}" in text and "archivePrefix = {arXiv}" in text


def test_citation_is_yaml_with_what_the_format_demands():
    yaml = pytest.importorskip("yaml")
    one = yaml.safe_load(writers.write([ONE], "citation"))
    assert (
        one["cff-version"] == "1.2.0"
        and one["title"] == ONE.title
        and one["authors"] == [{"name": name} for name in ONE.authors]
    )
    assert (
        one["preferred-citation"]["year"] == 2024
        and one["preferred-citation"]["identifiers"][0]["value"] == "arXiv:2001.00001"
    )
    nasty = [Paper(slug="x", title=clean({"title": text})["title"]) for text in NASTY]
    many = yaml.safe_load(writers.write(nasty, "citation"))
    assert [reference["title"] for reference in many["references"]] == [paper.title for paper in nasty]
    assert all(reference["authors"] for reference in many["references"])


def test_csv_cells_are_no_formulas():
    text = writers.write([Paper(slug="x", title=clean({"title": title})["title"]) for title in NASTY], "csv")
    rows = list(csv.reader(io.StringIO(text, newline="")))[1:]
    assert len(rows) == len(NASTY)
    assert not [cell for row in rows for cell in row if cell[:1] in ("=", "+", "-", "@", "\t", "\r")]


def test_unknown_formats_and_feeds(tmp_path):
    with pytest.raises(ConfigError, match=r"no format 'bibtx'.* Did you mean 'bibtex'"):
        writers.write([ONE], "bibtx")
    with Store.open(tmp_path) as store, pytest.raises(ConfigError, match="no feed 'news'"):
        writers.feed(store, "news")


ATOM = "{http://www.w3.org/2005/Atom}"


def test_feeds_of_a_store(tmp_path):
    with Store.open(tmp_path) as store:
        store.record(
            "import",
            {"source": "x", "papers": [clean({"title": "Newest <of> All", "arxiv": "2001.00001"})]},
            at="2099-01-01T00:00:00Z",
        )
        status.set_verdict(store, "emo", "weaker", at="2026-02-01T00:00:00Z")
        status.set_verdict(store, "emo", "no difference", at="2026-03-01T00:00:00Z")
        feeds = {
            name: ElementTree.fromstring(writers.feed(store, name, "https://example.org")) for name in writers.FEEDS
        }
        assert writers.feed(store, "new") == writers.feed(store, "new")
    entries = {name: feed.findall(f"{ATOM}entry") for name, feed in feeds.items()}
    assert {name: len(found) for name, found in entries.items()} == {"papers": 163, "new": 50, "verdicts": 2}
    first = entries["new"][0]
    assert (
        first.findtext(f"{ATOM}title") == "Newest <of> All"
        and feeds["new"].findtext(f"{ATOM}updated") == "2099-01-01T00:00:00Z"
    )
    assert [link.get("href") for link in first.findall(f"{ATOM}link")] == [
        "https://example.org/paper/newest-of-all",
        "https://arxiv.org/abs/2001.00001",
    ]
    assert (
        entries["verdicts"][0].findtext(f"{ATOM}summary")
        == "Its claim, re-tested here: no difference (before: weaker)."
    )
    for name, found in entries.items():
        identities = [entry.findtext(f"{ATOM}id") for entry in found]
        assert len(set(identities)) == len(found) and all(identities), name
        assert all(entry.findtext(f"{ATOM}updated") for entry in found)
        assert feeds[name].findtext(f"{ATOM}id") and feeds[name].find(f"{ATOM}author") is not None


def test_the_whole_catalogue_there_and_back(tmp_path):
    with Store.open(tmp_path / "a") as store:
        written = {kind: writers.write(store.all(), kind) for kind in ("bibtex", "csl", "csv", "json", "atom")}
        slugs = [paper.slug for paper in store.all()]
        from orrery.catalogue.imports import import_text

        for kind, text in written.items():
            report = import_text(store, text, f"papers.{kind}")
            assert not report.refused and not report.added and not report.duplicates, kind
            assert len(report.unchanged) == 162, (kind, [entry.title for entry in report.merged][:3])
        assert [paper.slug for paper in store.all()] == slugs
    assert len(json.loads(written["json"])["papers"]) == 162
