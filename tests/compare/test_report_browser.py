"""The page in a real browser: no request, no error, no sideways scrolling; sorting, reading curves, axes, both papers."""

from __future__ import annotations

import os
import time

import pytest

from compare import browser as chromium
from compare.report_samples import HOSTILE, SAMPLES, sample
from orrery.compare.report import build_table, page, render_page

EXECUTABLE = chromium.find()
pytestmark = [
    pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium found on the path"),
    pytest.mark.skipif(os.name == "nt", reason="the debugging pipe is driven by POSIX file descriptors"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("pages")
    for name in ("quick", "twelve", "failures", "hostile", "nothing yet"):
        reference = sample(seed=9, tokens=20_000_000) if name == "quick" else None
        (place / f"{name}.html").write_text(render_page(SAMPLES[name](), reference), encoding="utf-8")
    return place


@pytest.fixture(scope="module")
def tab():
    with chromium.browser(str(EXECUTABLE)) as opened:
        yield opened


def address(folder, name: str, query: str = "") -> str:
    return (folder / f"{name}.html").as_uri() + query


def complaints(tab) -> list[str]:
    """Exceptions, blocked resources, console errors."""
    out = [str(event) for event in tab.heard("Runtime.exceptionThrown") + tab.heard("Log.entryAdded")]
    return out + [str(event) for event in tab.heard("Runtime.consoleAPICalled")]


@pytest.mark.parametrize("name", ["quick", "twelve", "failures", "hostile", "nothing yet"])
@pytest.mark.parametrize("width", [1280, 768, 390])
def test_loads_alone_and_fits(tab, folder, name, width):
    tab.open(address(folder, name), width, 900, dark=width == 768)
    asked = [event["request"]["url"] for event in tab.heard("Network.requestWillBeSent")]
    assert [url for url in asked if not url.startswith("data:")] == [address(folder, name)]
    assert not complaints(tab)
    assert tab.run("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    body = tab.run("getComputedStyle(document.body).backgroundColor")
    paper = (page.DARK if width == 768 else page.LIGHT)["paper"]
    assert body == f"rgb({int(paper[1:3], 16)}, {int(paper[3:5], 16)}, {int(paper[5:7], 16)})"
    if name != "nothing yet":
        shown = "[...document.querySelectorAll('#figure-learning .chart')].filter(s => s.getBoundingClientRect().width).map(s => s.classList[1])"
        assert tab.run(shown) == (["narrow"] if width < 640 else ["wide"])
        small = tab.run("Math.min(...[...document.querySelectorAll('.chart text')].map(t => t.getBoundingClientRect().height).filter(h => h))")
        assert small >= 9, "text in a picture is too small to read"


def test_no_name_becomes_markup(tab, folder):
    tab.open(address(folder, "hostile"))
    labels = tab.run("[...document.querySelectorAll('#main tbody th .who > span')].map(n => n.firstChild.textContent.trim())")
    assert sorted(labels) == sorted(["transformer", *(" ".join(name.split()) for name in HOSTILE)])
    assert tab.run("document.images.length + document.querySelectorAll('main script, main b, img').length") == 0
    tab.run("for (const list of document.querySelectorAll('[data-axes] select')) { list.selectedIndex = 2; list.dispatchEvent(new Event('change')) }")
    for chart in ("wide", "narrow"):
        names = tab.run(f"[...document.querySelectorAll('#figure-trade-off .{chart} .mark title')].map(t => t.textContent)")
        assert len(names) == 5 and any("<script>" in name for name in names)
    assert not complaints(tab)


def test_sorting_by_a_column(tab, folder):
    result = SAMPLES["failures"]()
    tab.open(address(folder, "failures"))
    rows = "[...document.querySelectorAll('#main tbody .who > span')].map(n => n.firstChild.textContent.trim())"
    columns = [column for column in build_table(result).columns if not column.minor]
    assert tab.run(rows) == [row.label for row in build_table(result).rows]
    cells = next(c for c in columns if c.key == "train").cells
    known = sorted((label for label in cells if cells[label].value is not None), key=lambda label: cells[label].value)
    unknown = [label for label in cells if cells[label].value is None]
    click = "[...document.querySelectorAll('#main thead button')].find(b => b.textContent == 'train').click()"
    tab.run(click)
    assert tab.run(rows) == known + unknown
    assert tab.run("document.querySelectorAll('#main [aria-sort]').length") == 1
    tab.run(click)
    assert tab.run(rows) == known[::-1] + unknown
    assert tab.run("document.querySelector('#main [aria-sort]').getAttribute('aria-sort')") == "descending"


def test_reading_a_curve_by_pointer_and_keys(tab, folder):
    result = sample()
    tab.open(address(folder, "quick"))
    tab.run("document.documentElement.style.scrollBehavior = 'auto'; document.querySelector('#figure-learning').scrollIntoView()")
    place = "document.querySelector('#figure-learning .wide').getBoundingClientRect()"
    box = tab.run(f"(r => [r.left, r.top, r.width, r.height])({place})")
    tab.point(box[0] + 0.35 * box[2], box[1] + 0.5 * box[3])
    tip = "document.querySelector('#figure-learning .tip')"
    assert tab.run(f"{tip}.hidden") is False
    assert tab.run(f"{tip}.querySelectorAll('span').length") == len(result.architectures)
    assert "training tokens" in tab.run(f"{tip}.textContent")
    inside = tab.run(f"(() => {{ const t = {tip}.getBoundingClientRect(); return t.left >= 0 && t.right <= innerWidth }})()")
    assert inside
    tab.point(5, 5)
    tab.run("document.querySelector('#figure-learning .wide').focus()")
    tab.key("End")
    texts = tab.run(f"[...{tip}.querySelectorAll('i')].map(n => n.textContent)")
    finals = {row.label: f"{row.curve.mean[-1]:.3f}" for row in result.architectures}
    assert dict(zip(texts[::2], texts[1::2])) == finals
    assert tab.run(f"{tip}.querySelector('b').textContent") == "600,000 training tokens"
    tab.key("Escape")
    assert tab.run(f"{tip}.hidden") is True


def test_choosing_axes_redraws_the_scatter(tab, folder):
    result = sample()
    tab.open(address(folder, "quick"))
    marks = "[...document.querySelectorAll('#figure-trade-off .wide .mark title')].map(t => t.textContent).sort()"
    static = tab.run(marks)
    assert len(static) == len(result.architectures)
    pick = "(key, n) => { const s = document.querySelectorAll('[data-axes] select')[n]; s.value = key; s.dispatchEvent(new Event('change')) }"
    tab.run(f"({pick})('train', 0)")
    assert tab.run(marks) == static  # the script draws the same picture that the page came with
    tab.run(f"({pick})('state', 0); ({pick})('decode', 1)")
    title = tab.run("document.querySelector('#figure-trade-off .wide .axis-title').textContent")
    assert title == "decoding speed at 4,096 tokens, tokens/s (more is better)"
    bold = "[...document.querySelectorAll('#figure-trade-off .wide .name:not(.quiet)')].map(t => t.textContent)"
    assert tab.run(bold) == ["lstm"]  # least state and fastest: it beats all others on both axes
    assert not complaints(tab)


def test_bringing_one_architecture_forward(tab, folder):
    tab.open(address(folder, "quick"))
    tab.run("document.querySelector('[data-chip=\"2\"]').click()")
    dims = tab.run("[...document.querySelectorAll('#figure-learning .wide .series')].map(g => getComputedStyle(g).opacity)")
    assert sorted(dims) == ["0.14"] * 4 + ["1"] and dims[2] == "1"
    assert tab.run("document.querySelector('[data-chip=\"2\"]').getAttribute('aria-pressed')") == "true"
    tab.run("document.querySelector('[data-chip=\"2\"]').click()")
    assert not tab.run("document.body.classList.contains('dim')")


def test_bands_and_seeds_are_toggled_without_the_script(tab, folder):
    tab.open(address(folder, "quick"), script=False)
    found = "[...document.querySelectorAll('#figure-learning .wide ' + kind)]"
    shown = f"(kind => {found}.filter(n => getComputedStyle(n).display != 'none').length)"
    tab.send("Emulation.setScriptExecutionDisabled", value=False)  # evaluation only: the page itself has loaded without it
    assert tab.run("document.querySelectorAll('#main button').length") == 0
    assert tab.run("document.querySelectorAll('#main tbody tr').length") == 5
    assert tab.run("[...document.querySelectorAll('.chips, [data-axes]')].every(n => n.hidden)")
    assert tab.run(f"{shown}('.band')") == 5 and tab.run(f"{shown}('.seed')") == 0
    tab.run("document.querySelector('.show-seeds').checked = true; document.querySelector('.show-bands').checked = false")
    assert tab.run(f"{shown}('.band')") == 0 and tab.run(f"{shown}('.seed')") == 15


def test_papers_can_be_chosen_and_printing_is_light(tab, folder):
    dark, light = (f"rgb({int(c[1:3], 16)}, {int(c[3:5], 16)}, {int(c[5:7], 16)})" for c in (page.DARK["ink"], page.LIGHT["ink"]))
    ink = "getComputedStyle(document.body).color"
    tab.open(address(folder, "quick", "?theme=dark"))
    assert tab.run(ink) == dark
    tab.send("Emulation.setEmulatedMedia", media="print", features=[])
    assert tab.run(ink) == light
    assert tab.run("getComputedStyle(document.querySelector('.chips')).display") == "none"
    tab.open(address(folder, "quick", "?theme=light"), dark=True)
    assert tab.run(ink) == light
    tab.run("document.querySelector('.theme').click()")  # light -> auto, which here is dark
    assert tab.run(ink) == dark


def test_everything_can_be_reached_by_keyboard(tab, folder):
    tab.open(address(folder, "quick"))
    seen = set()
    for _ in range(60):
        tab.key("Tab")
        seen.add(tab.run("document.activeElement.className?.baseVal ?? (document.activeElement.className || document.activeElement.tagName)"))
    assert {"skip", "plain theme", "scroll", "chart wide", "show-bands", "show-seeds", "SUMMARY", "SELECT"} <= seen
    assert tab.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_opens_quickly(tab, folder):
    begun = time.perf_counter()
    tab.open(address(folder, "twelve"))
    assert time.perf_counter() - begun < 10
    assert (folder / "twelve.html").stat().st_size < 1_000_000
