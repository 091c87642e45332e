"""The HTML page: well formed, self-contained, complete, safe for any name, and said in words where numbers lack."""

from __future__ import annotations

import html
import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest

from compare.report_samples import CAVEAT, HOSTILE, SAMPLES, sample
from orrery.compare import result as schema
from orrery.compare.report import build_table, render_page, render_text, to_csv, to_markdown, write_report
from orrery.compare.report.facts import numbers_of
from orrery.compare.report.page import embed
from orrery.compare.report.series import learning
from orrery.core.errors import StorageError

VOID = {"meta", "link", "input", "br"}
LOADS = {"src", "srcset", "poster", "data", "background", "action", "formaction", "ping", "manifest"}  # attributes that fetch


class Page(HTMLParser):
    """Elements, their texts, and every sign of a tree that does not close."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.problems: list[str] = []
        self.feed(text)
        self.close()
        self.problems += [f"<{name}> is never closed" for name in self.open]

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open[-1] != tag:
            self.problems.append(f"</{tag}> closes {self.open[-1:]}")
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data):
        if self.open and self.open[-1] in self.raw:
            self.raw[self.open[-1]].append(data)
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def pages() -> dict[str, tuple[schema.ComparisonResult, str, Page]]:
    out = {}
    for name, make in SAMPLES.items():
        result = make()
        text = render_page(result, sample(seed=9, tokens=20_000_000) if name == "quick" else None)
        out[name] = (result, text, Page(text))
    return out


@pytest.mark.parametrize("name", SAMPLES)
def test_well_formed(pages, name):
    _, text, page = pages[name]
    assert not page.problems
    assert text.startswith("<!doctype html>") and len(page.all("h1")) == 1 and len(page.all("main")) == 1
    identities = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identities) == len(set(identities))
    svgs = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert svgs
    for svg in svgs:
        ElementTree.fromstring(svg)  # each is XML of its own, without a namespace or an entity


@pytest.mark.parametrize("name", SAMPLES)
def test_asks_nobody_for_anything(pages, name):
    _, _, page = pages[name]
    for tag, attributes in page.elements:
        for key, value in attributes.items():
            assert key not in LOADS and not key.startswith("on") and key != "style", (tag, key)
            if key in ("href", "xlink:href"):
                own = str(value).startswith("#") or (tag == "link" and str(value).startswith("data:"))
                assert own or (tag == "a" and str(value).startswith("https://arxiv.org/abs/")), (tag, value)
    assert not {"iframe", "img", "image", "object", "embed", "base", "use", "foreignobject"} & {tag for tag, _ in page.elements}
    for css in page.raw["style"]:
        assert "url(" not in css and "@import" not in css and "http" not in css
    script = page.raw["script"][-1]
    for word in ("http:", "https:", "fetch(", "XMLHttp", "import(", "WebSocket", "sendBeacon", "innerHTML", "insertAdjacent", "eval(", "Function("):
        assert word not in script
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy


@pytest.mark.parametrize("name", SAMPLES)
def test_holds_every_architecture_and_number(pages, name):
    result, _, page = pages[name]
    table = build_table(result)
    for row in table.rows:
        assert " ".join(row.label.split()) in page.text
        for column in table.columns:
            if not column.minor:
                assert column.cells[row.label].text.split()[0] in page.text, (row.label, column.key)
        for value in row.quality.seeds.values():
            assert f"{value:.4f}" in page.text
    for one in result.contrasts:
        assert one.verdict in page.text
        for delta in one.deltas:
            assert f"{abs(delta):.4f}" in page.text
    for run in result.runs:
        assert run.folder in page.text
    assert result.command.replace("  ", " ") in page.text
    assert "significan" not in page.text.lower()


def test_sections_in_order_sentence_first(pages):
    result, text, page = pages["quick"]
    order = ["<h1>", 'id="table"', 'id="pictures"', 'id="recommendation"', 'id="meaning"', 'id="protocol"', 'id="statistics"',
             'id="environment"', 'id="repeat"', "Every run and its folder"]  # fmt: skip
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    shown = " ".join(html.unescape(re.sub(r"<[^>]+>", "", text[text.index("<h1>") : text.index("</h1>")])).split())
    assert shown == result.recommendation.sentence
    assert CAVEAT in page.text and "What such a run can tell" in page.text and "It cannot tell" in page.text
    assert "3 seeds can show a direction, 8 are needed" in page.text
    assert "a run saw 2 tokens per parameter" in page.text
    assert "AMD EPYC 7R13" in page.text and "158.2 GFLOP/s" in page.text and result.protocol.corpus_hash in page.text


def test_tables_are_made_for_screen_readers(pages):
    _, text, page = pages["twelve"]
    assert page.all("table")
    for attributes in page.all("th"):
        assert attributes.get("scope") in ("col", "row")
    assert len(page.all("caption")) == len(page.all("table"))
    for attributes in page.all("svg"):
        assert attributes.get("aria-hidden") == "true" or (attributes["role"] == "img" and len(attributes["aria-label"]) > 20)
    regions = [a for a in page.all("div") if a.get("class") == "scroll"]
    assert regions and all(a["tabindex"] == "0" and a["role"] == "region" and a["aria-label"] for a in regions)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:]))
    assert page.all("html")[0]["lang"] == "en" and ":focus-visible" in text and "@media print" in text
    assert "prefers-color-scheme: dark" in text and "prefers-reduced-motion" in text
    named = [a for a in page.all("svg") if "chart" in str(a.get("class"))]
    assert all("role" in a for a in named) and any("lstm 2." in a["aria-label"] for a in named)


def test_hostile_names_stay_text(pages):
    result, text, page = pages["hostile"]
    kinds = [attributes.get("type") for attributes in page.all("script")]
    assert kinds == ["application/json", None]
    assert not any(tag in ("img", "b", "bold") for tag, _ in page.elements)
    for name in HOSTILE:
        assert " ".join(name.split()) in page.text
    assert "49" not in re.findall(r"\{\{[^}]*\}\}|(?<=\]f\[/bold\] )\d+", page.text)  # no template runs in a name
    data = json.loads(page.raw["script"][0])
    assert data["names"] == [row.label for row in result.architectures]
    assert "<" not in page.raw["script"][0]
    assert f"{HOSTILE[2]}" not in text


def test_control_characters_do_not_break_the_page():
    odd = "nul\x00 escape\x1b[31m bell\x07 sep\u2028 pair\ud800 end"
    result = sample((odd, "lstm"))
    text = render_page(result)
    page = Page(text)
    assert not page.problems and "\x00" not in "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    json.loads(page.raw["script"][0])
    text.encode("utf-8")
    for shown in (render_text(result), to_csv(result), to_markdown(result)):
        assert shown.encode("utf-8") and not set("\x00\x07\x1b") & set(shown)
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(svg)


def test_embedded_json_cannot_end_its_block():
    shown = embed({"a": "</script><!-- & \u2028"})
    assert not set("<>&\u2028") & set(shown)
    assert json.loads(shown) == {"a": "</script><!-- & \u2028"}
    with pytest.raises(ValueError, match="JSON"):
        embed(float("nan"))


def test_failures_are_said_and_drawn_around(pages):
    _, text, page = pages["failures"]
    assert "gated-deltanet, every run: out of memory" in page.text and "2 of 3" in page.text
    assert "no result" in page.text
    learning_picture = re.search(r'<svg class="chart wide"[^>]*data-chart="learning".*?</svg>', text, re.DOTALL)[0]
    assert "mamba2" in learning_picture and "gated-deltanet" not in learning_picture
    for name in ("single", "nothing yet", "one seed", "no tasks"):
        _, other, _ = pages[name]
        assert "nan" not in re.sub(r"<script.*", "", other, flags=re.DOTALL).replace("nano", "").lower().split()
    assert "one seed, so no interval and no verdict" in pages["one seed"][2].text
    assert "There is nothing" not in pages["single"][2].text and 'id="pictures"' not in pages["nothing yet"][1]


def test_curves_for_the_pointer_match_the_result(pages):
    result, _, page = pages["quick"]
    data = json.loads(page.raw["script"][0])
    rows = {row["s"]: row["points"] for row in data["panels"]["learning"]["rows"]}
    for index, row in enumerate(result.architectures):
        assert [point[3] for point in rows[index]] == [f"{value:.3f}" for value in row.curve.mean]
        assert [point[2] for point in rows[index]] == [f"{x:,.0f}" for x in row.curve.x]
        assert all(0 <= point[0] <= 1 for point in rows[index])
    axes = {axis["key"]: axis for axis in data["axes"]}
    assert {"quality", "train", "decode", "state", "memory", "flops", "parameters", "task:mqar"} <= set(axes)
    speeds = [row.costs.train_speed.value for row in result.architectures]
    places = [axes["train"]["places"][str(i)] for i in range(len(speeds))]
    assert sorted(range(5), key=speeds.__getitem__) == sorted(range(5), key=places.__getitem__)
    assert axes["train"]["better"] == "high" and axes["quality"]["better"] == "low"


def test_numbers_of_a_picture_as_a_table():
    panel = learning(sample())
    table = numbers_of(panel, [])
    assert len(table.heads) <= 9 and len(table.rows) == 5
    assert table.rows[0][-1] == f"{panel.lines[0].points[-1][1]:.3f}"
    uneven = numbers_of(learning(sample(budget_kind="time")), [])
    assert uneven.heads[0] == "architecture" and len(uneven.heads) == 3


def test_write_report(tmp_path):
    result = sample(("lstm", "mamba2"), tasks=False)
    paths = write_report(result, tmp_path / "new" / "folder")
    assert set(paths) == {
        "comparison.json", "report.html", "table.txt", "table.csv", "table.md",
        *(f"pictures/{name}.{kind}" for name in ("learning", "quality-cost", "length") for kind in ("png", "svg")),
    }  # fmt: skip
    assert all(path.is_file() and path.stat().st_size > 100 for path in paths.values())
    again = schema.load(tmp_path / "new" / "folder")
    assert again == result
    assert render_page(again) == paths["report.html"].read_text(encoding="utf-8")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot make the report's folder"):
        write_report(result, tmp_path / "file")
