"""What is NEW to a reader, who alone knows when he looked; verdicts that appear; rooms that join."""

from __future__ import annotations

import datetime as dt
import re
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from orrery.catalogue import community, status
from orrery.catalogue.store import Store
from orrery.web import places
from orrery.web.app import create_app
from orrery.web.settings import Settings
from web.support import BASE, seal


class Clock:
    """A time that the test sets."""

    def __init__(self) -> None:
        self.at = dt.datetime.now(dt.timezone.utc).replace(microsecond=0)

    def __call__(self) -> dt.datetime:
        return self.at

    def pass_(self, **span: float) -> None:
        self.at += dt.timedelta(**span)


@pytest.fixture
def reading_at(store: Store) -> Iterator[Any]:
    """A client of one's own and its clock; the shipped and two imported papers are a week old."""
    clock = Clock()
    clock.pass_(days=7)
    with TestClient(create_app(store, Settings(), clock), base_url=BASE, follow_redirects=False) as client:
        yield client, clock


def bring(store: Store, title: str, at: dt.datetime, **more: str) -> str:
    (put,) = store.record("import", {"source": "later", "papers": [{"title": title, "year": 2026, **more}]}, at=at)
    return str(put.slug)


def new_on(client: Any, path: str) -> set[str]:
    """Slugs of the cards that are marked NEW."""
    cards = re.findall(r'<article class="card" id="([^"]+)".*?</article>', client.get(path).text, re.S)
    whole = re.findall(r'<article class="card" id="[^"]+".*?</article>', client.get(path).text, re.S)
    return {slug for slug, text in zip(cards, whole, strict=True) if '<li class="new">NEW</li>' in text}


def test_new_is_what_came_since_the_last_visit(reading_at: Any, store: Store) -> None:
    client, clock = reading_at
    first = bring(store, "Came Before the First Visit", clock.at - dt.timedelta(hours=50))
    second = bring(store, "Came Yesterday", clock.at - dt.timedelta(days=1))
    assert new_on(client, "/search?q=came") == {second}, "nothing is known of this reader: two days"
    clock.pass_(minutes=20)
    client.get("/about")  # the same visit
    clock.pass_(hours=5)
    third = bring(store, "Came After the First Visit", clock.at - dt.timedelta(hours=4))
    assert new_on(client, "/search?q=came") == {third}
    clock.pass_(minutes=10)
    assert new_on(client, "/search?q=came") == {third}, "marks stay while the visit lasts"
    page = client.get("/new").text
    assert "1 paper since you last looked, on" in page and third in page and second not in page
    bring(store, "Came With It, of Another Day", clock.at - dt.timedelta(hours=3), date="2026-01-05")
    client.app.app.state.site._state = (-1e9, None)
    assert "2 new papers since you last looked" in client.get("/").text
    clock.pass_(days=30)
    assert new_on(client, "/search?q=came") == set() and "Nothing new since you last looked" in client.get("/new").text
    assert first and store.count() > 0


def test_the_mark_is_the_readers_own_and_sealed(reading_at: Any, store: Store) -> None:
    client, clock = reading_at
    cookie = client.get("/").headers.get_list("set-cookie")[-1]
    assert cookie.startswith("orrery_seen=") and "HttpOnly" in cookie and "SameSite=Lax" in cookie
    assert not client.get("/").headers.get_list("set-cookie"), "within a minute nothing is set again"
    for path in ("/feeds/new.atom", "/paper/emo.bib", "/api/v1/stats", "/static/style.css", "/subscribe"):
        clock.pass_(minutes=2)
        assert not any("orrery_seen" in one for one in client.get(path).headers.get_list("set-cookie")), path
    before = (store.folder / "journal.jsonl").stat().st_size
    clock.pass_(hours=9)
    paper = bring(store, "Came Late", clock.at)
    grown = (store.folder / "journal.jsonl").stat().st_size
    assert new_on(client, "/search?q=came") == {paper}
    assert before < grown == (store.folder / "journal.jsonl").stat().st_size, "when somebody looked is not written down"
    client.cookies.clear()
    client.cookies.set("orrery_seen", "forged.0123456789abcdef")
    clock.pass_(days=3)
    assert new_on(client, "/search?q=came") == set(), "a forged mark is none: two days"


def test_readers_who_did_not_sign_in_get_no_mark(open_app: Any) -> None:
    client = open_app(access="public", url="")
    assert not any("orrery_seen" in one for one in client.get("/").headers.get_list("set-cookie"))
    client.cookies.set("orrery_reader", client.app.app.state.site.sessions.signed_in(1).partition("=")[2].partition(";")[0])
    assert any("orrery_seen" in one for one in client.get("/").headers.get_list("set-cookie"))


# ---------------------------------------------------------------- verdicts, and rooms that join


def soon(client: Any) -> None:
    """A second later, when the server looks at the store again."""
    client.app.app.state.site._state = (-1e9, None)


def test_a_verdict_is_seen_everywhere(client: Any, store: Store) -> None:
    for path in ("/paper/emo", "/search?q=earth+mover"):
        assert "claim: " not in client.get(path).text
    assert client.get("/api/v1/papers/emo").json()["status"]["verdict"] is None
    status.set_verdict(store, "emo", "weaker")
    soon(client)
    for path in ("/paper/emo", "/search?q=earth+mover"):
        assert '<li class="chip verdict">claim: weaker</li>' in client.get(path).text, path
    assert "<dt>Verdict</dt><dd>weaker</dd>" in client.get("/paper/emo").text
    assert client.get("/api/v1/search?q=earth mover").json()["papers"][0]["status"]["verdict"] == "weaker"
    assert "EMO" in client.get("/feeds/verdicts.atom").text and ": weaker</title>" in client.get("/feeds/verdicts.atom").text
    status.set_verdict(store, "emo", "no difference")
    soon(client)
    assert "claim: no difference" in client.get("/paper/emo").text and "(before: weaker)" in client.get("/feeds/verdicts.atom").text


def test_a_room_joins_with_one_row(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    room = types.ModuleType("a_room_that_joins")
    room.add = lambda app, site: app.add_route("/models", site.page(lambda ask: ask.render("message.html", heading="Models", words="All of them.")))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, room.__name__, room)
    monkeypatch.setattr(places, "PLACES", (*places.PLACES, places.Place(room.__name__, (("Models", "/models"),))))
    with TestClient(create_app(store, Settings()), base_url=BASE) as client:
        assert '<a href="/models">Models</a>' in client.get("/").text and "All of them." in client.get("/models").text
        assert '<a href="/models" aria-current="page">' in client.get("/models").text
    assert ("Models", "/models") not in places.navigation(static=True)


# ---------------------------------------------------------------- picks


def test_a_pick_stands_on_the_front_page_with_its_curators(client: Any, store: Store) -> None:
    assert "Pick by" not in client.get("/paper/emo").text and "<h2>Picks</h2>" not in client.get("/").text
    community.set_name(store, community.OWNER, "Ada")
    client.post("/paper/emo/pick", data={"csrf": seal(client, "/paper/emo")})
    page, home = client.get("/paper/emo").text, client.get("/").text
    assert "Pick by Ada" in page and 'aria-pressed="true">Picked</button>' in page, "a paper that ships can be picked as well"
    assert "by Ada and the community" in home and "<h2>Picks</h2>" in home
    client.post("/paper/emo/pick", data={"csrf": seal(client, "/paper/emo")})
    assert "Pick by" not in client.get("/paper/emo").text and "<h2>Picks</h2>" not in client.get("/").text
