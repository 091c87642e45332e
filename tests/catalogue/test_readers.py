"""Readers of every format: what a well-formed file means, and what becomes of a malformed one."""

import json
import textwrap

import pytest

from orrery.catalogue import bibtex, feeds, formats, latex, listing, papers_json
from orrery.catalogue.reading import Found, Refused, arxiv_in, without_tags
from orrery.core.errors import DataError


def found(records):
    return [each.fields for each in records if isinstance(each, Found)]


def refused(records):
    return [(each.line, each.why) for each in records if isinstance(each, Refused)]


def dedent(text):
    return textwrap.dedent(text).lstrip("\n")


# ---------------------------------------------------------------- BibTeX

BIB = dedent(r"""
    Words before the first entry are a comment, even with an address@example.org in them.
    @comment{ @article{hidden, title = {Not An Entry of Its Own?}} }
    @string{acl = "Proceedings of " # {the {ACL}}}
    @Article{vaswani2017,
      title = {{Attention} Is {All You Need}},
      author = {Vaswani, Ashish and Noam Shazeer and {The {ACME} Team and Friends} and others},
      journal = {arXiv preprint arXiv:1706.03762},
      year = 2017, month = jun, day = 12,
      abstract = {A "quoted" word, 5\% of {\"u}mlauts, $\alpha$ and na\"{\i}ve caf\'e.}
    }
    @inproceedings(strubell-2019,
      title = "Energy and Policy Considerations for {D}eep {L}earning in {NLP}",
      author = "Emma Strubell and Ganesh, Ananya and McCallum, Jr, Andrew",
      booktitle = acl # ", 2019", doi = {https://doi.org/10.18653/V1/P19-1355}, url = {https://aclanthology.org/P19-1355\_x},
      year = "2019",
    )
    @misc{eprint, title = {G{\"o}del, Erd\H{o}s, \L{}ukasiewicz \& \v{S}i\'{s}ka --- ``quoted''},
      eprint = {cs/0301012v2}, archivePrefix = {arXiv}, date = {2003-01-15}}
""")


def test_bibtex_understands_what_people_write():
    hidden, attention, energy, eprint = found(bibtex.records(BIB))
    assert hidden["title"] == "Not An Entry of Its Own?"  # BibTeX too reads entries inside a comment's braces
    assert attention["title"] == "Attention Is All You Need"
    assert attention["authors"] == ["Ashish Vaswani", "Noam Shazeer", "The ACME Team and Friends"]
    assert (attention["arxiv"], attention["date"], attention["year"]) == ("1706.03762", "2017-06-12", 2017)
    assert attention["abstract"] == 'A "quoted" word, 5% of ümlauts, α and naïve café.'
    assert energy["authors"] == ["Emma Strubell", "Ananya Ganesh", "Andrew McCallum Jr"]
    assert (energy["doi"], energy["year"]) == ("10.18653/v1/p19-1355", 2019)
    assert energy["url"] == "https://aclanthology.org/P19-1355_x"
    assert eprint["title"] == "Gödel, Erdős, Łukasiewicz & Šiśka \u2014 \u201cquoted\u201d"
    assert (eprint["arxiv"], eprint["date"]) == ("cs/0301012", "2003-01-15")


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ("@article{a,\n title = {An {unclosed brace},\n year = 2020\n}", "lacks a comma"),
        ('@article{a,\n title = "no end,\n year = 2020\n}', "quotation mark"),
        ("@article{a,\n title {no equals sign}\n}", "a field looks like"),
        ("@article{a,\n title = {one} year = 2020\n}", "lacks a comma"),
        ("@article{a,\n title = ,\n}", "without a value"),
        ("@article{a b c\n title = {x}\n}", "no key"),
        ("@article{a,\n year = 2020\n}", "no title"),
        ("@article{a,\n title = {cut of", "not closed"),
    ],
)
def test_malformed_bibtex_entry_is_named_and_the_others_kept(broken, why):
    text = f"@misc{{one, title = {{The First}}}}\n\n{broken}\n\n@misc{{two, title = {{The Second}}}}\n"
    records = list(bibtex.records(text))
    assert [fields["title"] for fields in found(records)] == ["The First", "The Second"]
    ((line, reason),) = refused(records)
    assert line == 3 and why in reason


def test_bibtex_of_one_entry():
    assert bibtex.read("@misc{a, title={T}}") == [{"title": "T"}]
    with pytest.raises(DataError, match="line 1 of the BibTeX"):
        bibtex.read("@misc{a, title={T}")
    with pytest.raises(DataError, match="no BibTeX entry"):
        bibtex.read("nothing here")


def test_ten_thousand_open_braces_end():
    text = "@misc{a, title = " + "{" * 10_000 + "\n" + "@misc{b, title = {Fine}}\n"
    records = list(bibtex.records(text))
    assert found(records) == [{"title": "Fine"}] and len(refused(records)) == 1


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (r"\'{E}cole d'\'et\'e", "École d'été"),
        (r"{\AA}ngstr{\"o}m \o{} \ss", "Ångström ø ß"),
        (r"$O(n^2)$ \textbf{bold} \emph{it}", "O(n^2) bold it"),
        (r"a~b\,c\\d", "a b,c d"),
        (r"plain - text", "plain - text"),
        (r"\c{c}\k{a}\v{s}\u{g}\={o}\.{z}\r{u}\d{t}", "çąšğōżůṭ"),
    ],
)
def test_latex_to_text(source, text):
    assert latex.to_text(source) == text


# ---------------------------------------------------------------- pages

LONG = "This abstract says at length what the paper is about and does so in several sentences. " * 4


def test_copied_page_with_and_without_blank_lines():
    head = "new\n\nDaily Papers\n\nbyAK and the research community\n\nSep 8\n\n"
    spaced = f"{head}A First Paper\n\n{LONG}\n\nUpvote\n\n12\n\nA Second Paper: On Things\n\n{LONG}\n"
    tight = (
        f"Get trending papers in your email inbox!\nSubscribeA First Paper\n{LONG}\nA Second Paper: On Things\n{LONG}"
    )
    for text in (spaced, tight):
        records = list(listing.text_records(text))
        assert [fields["title"] for fields in found(records)] == ["A First Paper", "A Second Paper: On Things"]
        assert all(fields["abstract"] == LONG.strip() for fields in found(records)) and not refused(records)


def test_copied_page_that_is_broken():
    records = list(
        listing.text_records(
            f"{LONG}\nA Title Without Its Abstract\nAnother Title That Has One\nShort. But two sentences.\nhm\n"
        )
    )
    assert refused(records)[0][0] == 1 and "without a title" in refused(records)[0][1]
    assert refused(records)[1][0] == 5 and "neither a title" in refused(records)[1][1]
    assert [fields["title"] for fields in found(records)] == [
        "A Title Without Its Abstract",
        "Another Title That Has One",
    ]
    assert found(records)[1]["abstract"] == "Short. But two sentences."


PAGE = """<!DOCTYPE html><html><head><title>Daily Papers</title></head><body>
<div class="SVELTE_HYDRATER" data-target="Other" data-props="{&quot;x&quot;:1}"></div>
<article class="card"><div><a href="/papers/2310.04691" class="block"><img></a></div>
 <div class="leading-none">1</div><div class="leading-none">31</div>
 <h3 class="x"><a href="/papers/2310.04691">A Paper &amp; Its <i>Title</i></a></h3>
 <p>Short.</p><p>The longer abstract &lt;of it&gt;.</p></article>
<article><p>No heading here.</p></article>
<article><h3>A Paper Without a Link</h3></article>
</body></html>"""


def test_saved_page_by_its_articles():
    records = list(listing.html_records(PAGE))
    first, second = found(records)
    assert first == {
        "title": "A Paper & Its Title",
        "arxiv": "2310.04691",
        "abstract": "The longer abstract <of it>.",
        "upvotes": 31,
        "curated": True,
    }
    assert second["title"] == "A Paper Without a Link"
    assert refused(records) == [(7, "an article without a heading")]


def test_saved_page_by_the_data_it_carries():
    import html

    item = {
        "paper": {
            "id": "2310.04691",
            "title": "From the Data",
            "upvotes": 7,
            "authors": [{"name": "A B"}],
            "publishedAt": "2023-10-07T05:00:00Z",
        }
    }
    props = html.escape(json.dumps({"dailyPapers": [item], "deep": {"er": [{"id": "2401.00001", "title": "Another"}]}}))
    page = PAGE.replace("{&quot;x&quot;:1}", props)
    records = found(listing.html_records(page))
    assert [fields["title"] for fields in records] == ["From the Data", "Another", "A Paper Without a Link"]
    assert records[0]["authors"] == ["A B"] and records[0]["date"] == "2023-10-07" and records[0]["upvotes"] == 7


# ---------------------------------------------------------------- JSON

DAILY = [
    {
        "paper": {
            "id": "2412.00001",
            "authors": [{"_id": "x", "name": "Ada Lovelace", "hidden": False}, {"name": None}],
            "publishedAt": "2024-12-01T18:59:00.000Z",
            "title": "A Paper\n of the Day",
            "summary": "What it\nsays.",
            "upvotes": 12,
        },
        "title": "A Paper of the Day",
        "numComments": 2,
    }
]


def test_hugging_face_papers():
    expected = {
        "title": "A Paper of the Day",
        "arxiv": "2412.00001",
        "abstract": "What it says.",
        "authors": ["Ada Lovelace"],
        "upvotes": 12,
        "date": "2024-12-01",
    }
    assert found(papers_json.records(json.dumps(DAILY))) == [{**expected, "curated": True}]
    assert found(papers_json.records(json.dumps(DAILY[0]["paper"], indent=1))) == [expected]


def test_csl_json():
    item = {
        "id": "x", "type": "article-journal", "title": "On <i>E. coli</i> &amp; Others", "DOI": "10.1000/XYZ", "URL": "https://example.org/a",
        "author": [{"family": "Gogh", "given": "Vincent", "non-dropping-particle": "van"}, {"literal": "The Group"}, "odd"],
        "issued": {"date-parts": [["2024", "5", 31]]}, "abstract": "<jats:p>Text.</jats:p>", "number": "arXiv:2405.12345",
    }  # fmt: skip
    (fields,) = found(papers_json.records(json.dumps([item])))
    assert fields["title"] == "On E. coli & Others" and fields["authors"] == ["Vincent van Gogh", "The Group"]
    assert (fields["doi"], fields["date"], fields["arxiv"], fields["abstract"]) == (
        "10.1000/xyz",
        "2024-05-31",
        "2405.12345",
        "Text.",
    )


def test_malformed_json_is_named_and_the_others_kept():
    text = '[\n{"title": "One", "type": "article"},\n{"title": "Two" "type": 3},\n{"title": "Three"},\n7,\n{"no": "title"}\n]'
    records = list(papers_json.records(text))
    assert [fields["title"] for fields in found(records)] == ["One", "Three"]
    lines = refused(records)
    assert [line for line, _ in lines] == [3, 5, 6] and "not valid JSON" in lines[0][1] and "no title" in lines[2][1]


def test_cut_json_keeps_what_was_whole():
    text = json.dumps([{"title": "One"}, {"title": "Two"}])[:-8]
    records = list(papers_json.records(text))
    assert [fields["title"] for fields in found(records)] == ["One"] and len(refused(records)) == 1


def test_deeply_nested_json_is_refused():
    records = list(papers_json.records("[" * 100_000))
    assert not found(records) and "nested too deeply" in refused(records)[0][1]


# ---------------------------------------------------------------- feeds

ATOM = """<?xml version="1.0" encoding="UTF-8"?>
<feed xmlns="http://www.w3.org/2005/Atom" xmlns:arxiv="http://arxiv.org/schemas/atom">
  <title>ArXiv Query</title>
  <entry>
    <id>http://arxiv.org/abs/2310.04691v3</id><updated>2024-01-01T00:00:00Z</updated><published>2023-10-07T05:00:00Z</published>
    <title>EMO: A
      Title Over Lines</title>
    <summary>  Where a &lt; b.  </summary>
    <author><name>Siyu Ren</name></author><author><name>Zhiyong Wu</name></author>
    <arxiv:doi>10.1000/ABC</arxiv:doi>
    <link href="http://arxiv.org/abs/2310.04691v3" rel="alternate" type="text/html"/>
    <link title="pdf" href="http://arxiv.org/pdf/2310.04691v3" rel="related" type="application/pdf"/>
  </entry>
  <entry><id>http://arxiv.org/api/errors#x</id><title>Error</title><summary>incorrect id format</summary></entry>
  <entry><id>x</id><title></title></entry>
</feed>"""

RSS = """<?xml version="1.0"?><rss version="2.0" xmlns:dc="http://purl.org/dc/elements/1.1/"><channel><title>cs.CL</title>
<item><title>A Title (arXiv:2401.00002v1 [cs.CL])</title><link>https://arxiv.org/abs/2401.00002</link>
<description>arXiv:2401.00002v1 Announce Type: new
Abstract: &lt;p&gt;The abstract.&lt;/p&gt;</description><dc:creator>Ada Lovelace, Alan Turing</dc:creator>
<pubDate>Mon, 01 Jan 2024 00:00:00 -0500</pubDate></item>
<item><title>A Post</title><link>https://example.org/post?a=1&amp;b=2</link><description>Words.</description></item></channel></rss>"""


def test_arxiv_atom():
    records = list(feeds.records(ATOM))
    assert found(records) == [
        {
            "title": "EMO: A Title Over Lines", "abstract": "Where a < b.", "authors": ["Siyu Ren", "Zhiyong Wu"], "arxiv": "2310.04691",
            "doi": "10.1000/abc", "date": "2023-10-07",
        }
    ]  # fmt: skip
    assert [line for line, _ in refused(records)] == [14, 15] and "incorrect id format" in refused(records)[0][1]


def test_rss():
    first, second = found(feeds.records(RSS))
    assert first == {
        "title": "A Title",
        "abstract": "The abstract.",
        "authors": ["Ada Lovelace", "Alan Turing"],
        "arxiv": "2401.00002",
        "date": "2024-01-01",
    }
    assert second == {"title": "A Post", "abstract": "Words.", "url": "https://example.org/post?a=1&b=2"}


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE feed [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>'
    '<feed xmlns="http://www.w3.org/2005/Atom"><entry><title>&b;</title></entry></feed>'
)
THEFT = '<?xml version="1.0"?><!DOCTYPE rss [<!ENTITY f SYSTEM "file:///etc/passwd">]><rss><channel><item><title>&f;</title></item></channel></rss>'


@pytest.mark.parametrize("text", [BOMB, THEFT])
def test_feeds_with_entities_of_their_own_are_refused(text):
    records = list(feeds.records(text))
    assert not found(records) and "refused" in refused(records)[0][1]


def test_cut_feed_keeps_what_was_whole():
    records = list(feeds.records(ATOM[: ATOM.index("<entry><id>x")]))
    assert len(found(records)) == 1 and "not well-formed XML" in refused(records)[-1][1]


# ---------------------------------------------------------------- which format

CSV = 'slug,title,authors,upvotes\nx,"A Title, with a comma",A B; C D,3\ny,Another,,many\nz,Too,Many,1,Cells\n'


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (BIB, "bibtex"), (PAGE, "html"), (json.dumps(DAILY), "json"), ("\ufeff \n[]", "json"), (ATOM, "feed"), (RSS, "feed"), (CSV, "csv"),
        (f"A Title of a Paper\n{LONG}", "listing"), (json.dumps({"title": "x", "id": "y"}), "json"),
        ("<?xml version='1.0'?><!-- a comment --><rdf:RDF xmlns:rdf='x'></rdf:RDF>", "feed"),
    ],
)  # fmt: skip
def test_format_is_found_by_content(text, kind):
    assert formats.detect(text) == kind


@pytest.mark.parametrize("text", ["", "hello", "one, two\n1, 2\n", "<svg></svg>", "{not json", "#!/bin/sh\nexit 0\n"])
def test_unknown_formats_are_refused(text):
    with pytest.raises(DataError, match="its format is not known"):
        formats.detect(text)


def test_csv():
    records = list(formats.records(CSV))
    assert found(records) == [{"slug": "x", "title": "A Title, with a comma", "authors": ["A B", " C D"], "upvotes": 3}]
    assert [line for line, _ in refused(records)] == [3, 4]


def test_text_in_other_encodings(tmp_path):
    for name, data in (("latin", "é".encode("latin-1")), ("utf16", "é".encode("utf-16")), ("bom", "\ufeffé".encode())):
        (tmp_path / name).write_bytes(data)
        assert formats.read_file(tmp_path / name) == "é"
    (tmp_path / "binary").write_bytes(b"\x7fELF\0\0")
    with pytest.raises(DataError, match="is not text"):
        formats.read_file(tmp_path / "binary")
    with pytest.raises(DataError, match="cannot read"):
        formats.read_file(tmp_path / "absent")


def test_small_tools():
    assert without_tags("a < b and <b>c</b> &amp; <script>x</script>d") == "a < b and c &  d"
    assert arxiv_in(None, "", "see arXiv: 2310.04691v2, p. 3") == "2310.04691"
    assert (
        arxiv_in("https://huggingface.co/papers/2310.04691") == "2310.04691" and arxiv_in("1234", "10.1000/x") is None
    )
