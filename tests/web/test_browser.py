"""A real browser: the three journeys, keys, colours, phones, no script, accessibility (axe) of every page in both schemes."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orrery.catalogue import delivery, imports, subscriptions
from orrery.catalogue.mail import FileMailer
from orrery.catalogue.store import Store
from orrery.web.export import export
from orrery.web.server import Background
from web.support import letters, link_of

PAGES = ("/", "/search?q=mamba", "/paper/2601.00001", "/paper/emo", "/trending", "/new", "/topics", "/topic/recurrence", "/archive", "/about",
         "/submit", "/subscribe", "/subscribe/sent", "/unsubscribe?token=x", "/moderation", "/api", "/no/such/page")  # fmt: skip
LISTING = """Get trending papers in your email inbox once a day!

Subscribe

Tides of Attention: A Listing Paper of Today

An abstract that came with a saved listing, long enough to be read as one. It says what was done and what came of it. Nothing else is in it.
"""


@contextmanager
def tab(browser: Any, watch: bool = True, **options: Any) -> Iterator[Any]:
    """A page in a context of its own; it fails on any error of the console and any request to elsewhere."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    context.set_default_timeout(10_000)
    page = context.new_page()
    troubles: list[str] = []
    page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda request: None if re.match(r"(http://127\.0\.0\.1:|file:|data:)", request.url) else troubles.append(request.url))
    yield page
    context.close()
    assert not (watch and [trouble for trouble in troubles if "404" not in trouble]), troubles


def test_search_paper_vote(browser: Any, server: Background) -> None:
    with tab(browser) as page:
        page.goto(server.url)
        page.keyboard.press("/")
        page.keyboard.type("earth mover distance")
        page.keyboard.press("Enter")
        first = page.locator("article.card").first
        assert first.locator("mark").first.inner_text() == "Earth"
        first.locator("h2 a").click()
        assert page.url.endswith("/paper/emo") and "EMO" in page.locator("h1").inner_text()
        button = page.locator(".vote button")
        assert button.get_attribute("aria-pressed") == "false"
        button.click()
        page.wait_for_selector('.vote button[aria-pressed="true"]')
        assert page.url.endswith("/paper/emo") and button.locator("[data-votes]").inner_text() == "1"
        assert server.store.paper("emo").votes == 1  # type: ignore[attr-defined]
        page.goto(server.url + "/trending")
        assert page.locator("article.card#emo .vote button").get_attribute("aria-pressed") == "true"
        page.locator("article.card#emo .vote button").click()
        page.wait_for_selector('#emo .vote button[aria-pressed="false"]')
        assert server.store.paper("emo").votes == 0  # type: ignore[attr-defined]


def test_subscribe_confirm_digest_unsubscribe(browser: Any, server: Background) -> None:
    store, box = server.store, server.folder / "mail"  # type: ignore[attr-defined]
    with tab(browser) as page:
        page.goto(server.url)
        page.get_by_role("link", name="Subscribe").first.click()
        page.get_by_label("Mail address").fill("reader@example.org")
        page.get_by_label("Every day").check()
        page.get_by_role("button", name="Subscribe").click()
        assert "Look into your mail" in page.locator("h1").inner_text()
        page.goto(server.url + link_of(letters(box)[-1]))
        page.get_by_role("button", name="Yes, subscribe").click()
        assert page.locator("h1").inner_text() == "Subscribed"
        found = subscriptions.by_address(store, "reader@example.org")
        assert found.state == "active"
        store.record("import", {"source": "news", "papers": [{"title": "News for the Digest", "arxiv": "2602.00009", "year": 2026, "upvotes": 999}]})
        delivery.send_due(store, FileMailer(box), dt.datetime.now(dt.timezone.utc) + dt.timedelta(minutes=2), server.url)
        letter = letters(box)[-1]
        assert "News for the Digest" in letter.get_body(("plain",)).get_content()
        assert "List-Unsubscribe" in letter
        text = letter.get_body(("plain",)).get_content()
        page.goto(server.url + re.search(r"(/unsubscribe\?token=\S+)", text)[1])  # type: ignore[index]
        page.get_by_role("button", name="Yes, unsubscribe").click()
        assert page.locator("h1").inner_text() == "Unsubscribed"
        assert subscriptions.by_address(store, "reader@example.org").state == "ended"


def test_import_and_see_new(browser: Any, server: Background, tmp_path: Path) -> None:
    (tmp_path / "listing.txt").write_text(LISTING)
    with tab(browser) as page:
        page.goto(server.url)
        assert "Tides of Attention" not in page.content()
        report = imports.import_files(server.store, [tmp_path / "listing.txt"])  # type: ignore[attr-defined]
        assert len(report.added) == 1
        page.wait_for_timeout(1100)  # a second is what pages may be late
        page.goto(server.url)
        card = page.locator("article.card", has_text="Tides of Attention")
        assert card.locator(".new").inner_text() == "NEW" and card.locator("details").count() == 1
        card.locator("summary").click()
        assert card.locator(".abstract-text").is_visible()
        page.keyboard.press("Escape")
        page.goto(server.url + "/search?q=tides")
        assert page.locator("article.card").first.locator(".new").count() == 1


def test_keys_move_and_focus_is_seen(browser: Any, server: Background) -> None:
    with tab(browser) as page:
        page.goto(server.url + "/trending")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        page.keyboard.press("j")
        page.keyboard.press("j")
        page.keyboard.press("k")
        place = page.evaluate("[...document.querySelectorAll('[data-card]')].findIndex(c => c.classList.contains('now'))")
        assert place == 0 and page.evaluate("document.activeElement.closest('[data-card]') !== null")
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
        page.keyboard.press("/")
        page.keyboard.type("jk/")
        assert page.locator("#find").input_value() == "jk/"


def test_colours(browser: Any, server: Background) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    with tab(browser, color_scheme="light") as page:
        page.goto(server.url + "/about")
        light = page.evaluate(ground)
        page.get_by_role("button", name="Use the dark colours").click()
        dark = page.evaluate(ground)
        assert light == "rgb(252, 251, 248)" and dark == "rgb(17, 21, 28)"
        page.wait_for_load_state("networkidle")
        page.goto(server.url + "/topics")
        assert page.evaluate(ground) == dark and page.locator("html").get_attribute("data-theme") == "dark"
    with tab(browser, color_scheme="dark") as page:
        page.goto(server.url + "/about")
        assert page.evaluate(ground) == dark and page.get_by_role("button", name="Use the light colours").is_visible()


def test_without_a_script(browser: Any, server: Background) -> None:
    with tab(browser, java_script_enabled=False) as page:
        page.goto(server.url + "/search?q=mamba")
        assert page.locator("article.card").count() >= 2 and not page.locator(".copy").first.is_visible()
        card = page.locator("article.card").nth(1)
        name = card.get_attribute("id")
        card.locator(".vote button").click()
        assert page.url.endswith(f"/search?q=mamba#{name}")
        assert page.locator(f"#{name} .vote button").get_attribute("aria-pressed") == "true"
        page.locator(f"#{name} .vote button").click()
        page.get_by_role("button", name="Use the dark colours").click()
        assert page.locator("html").get_attribute("data-theme") == "dark" and "/search?q=mamba" in page.url
        page.locator("details summary").first.click()
        assert page.locator(".abstract-text").first.is_visible()


@pytest.mark.parametrize("width", [320, 390, 820])
def test_nothing_is_wider_than_the_screen(browser: Any, server: Background, width: int) -> None:
    with tab(browser, viewport={"width": width, "height": 844}) as page:
        for path in ("/", "/search?q=mamba", "/paper/2601.00001", "/topic/recurrence", "/topics", "/archive", "/api", "/subscribe", "/moderation"):
            page.goto(server.url + path)
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, (path, wide)


def test_print_shows_papers_only(browser: Any, server: Background) -> None:
    with tab(browser) as page:
        page.goto(server.url + "/search?q=mamba")
        page.emulate_media(media="print")
        assert not page.locator("nav").first.is_visible() and not page.locator(".vote").first.is_visible()
        assert page.locator("article.card h2").first.is_visible()


@pytest.fixture(scope="module")
def axe() -> Callable[[Any], list[str]]:
    """What axe finds serious or critical on a page, in words."""
    package = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    runner = package.Axe()

    def run(page: Any) -> list[str]:
        found = runner.run(page, options={"resultTypes": ["violations"]}).response["violations"]
        return [f"{one['id']}: {one['nodes'][0]['html'][:160]}" for one in found if one["impact"] in ("serious", "critical", "moderate")]

    return run


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible(browser: Any, server: Background, axe: Callable[[Any], list[str]], scheme: str) -> None:
    """No finding of weight on any page: contrast, names, roles, landmarks, headings."""
    with tab(browser, color_scheme=scheme, watch=False, bypass_csp=True) as page:
        found = {}
        for path in PAGES:
            page.goto(server.url + path)
            if serious := axe(page):
                found[path] = serious
        assert not found, found


def test_axe_bites(browser: Any, axe: Callable[[Any], list[str]]) -> None:
    with tab(browser, watch=False) as page:
        page.set_content("<html><body><p style='color:#ccc;background:#fff'>faint</p><img src=''><input></body></html>")
        assert len(axe(page)) >= 3


def test_an_exported_site_from_the_disk(browser: Any, server: Background, tmp_path: Path) -> None:
    store: Store = server.store  # type: ignore[attr-defined]
    export(store, tmp_path / "site", quiet=True)
    with tab(browser) as page:
        page.goto((tmp_path / "site" / "index.html").as_uri())
        assert page.locator("article.card").count() > 0 and page.locator("form[method=post]").count() == 0
        page.locator("#find").fill("earth mover")
        page.keyboard.press("Enter")
        page.get_by_text("with these words").wait_for()
        visible = page.locator("[data-listing] li:visible")
        assert "EMO" in visible.first.inner_text() and visible.count() < 20
        page.locator("#q").fill("MÀMBA")
        assert visible.count() >= 2 and "amba" in visible.first.inner_text()
        visible.first.locator("a").click()
        assert "/paper/" in page.url and page.locator("h1").is_visible()
        page.get_by_role("button", name="Use the dark colours").click()
        page.goto((tmp_path / "site" / "topics.html").as_uri())
        assert page.locator("html").get_attribute("data-theme") == "dark"
        page.locator(".topics a").first.click()
        page.locator(".brand").click()
        assert page.url.endswith("/index.html")
    with tab(browser, java_script_enabled=False) as page:
        page.goto((tmp_path / "site" / "search.html").as_uri())
        assert page.locator("[data-listing] li").count() == store.count() and not page.locator("[data-static-search]").is_visible()
