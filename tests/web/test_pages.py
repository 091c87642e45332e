"""Pages as text: valid HTML, rules of our own, links that lead somewhere, weight, forms without a script, kept pages."""

from __future__ import annotations

import datetime as dt
import re
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest
from starlette.testclient import TestClient

from orrery.catalogue import community, subscriptions
from orrery.catalogue.store import Store
from orrery.compare.report import page as report
from orrery.web import app, emblem
from orrery.web.limits import Rates
from orrery.web.rendering import ASSETS, PageCache, day_words, file, relative
from web.support import letters, link_of, seal

PAGES = ("/", "/search", "/search?q=mamba", "/search?q=zzzzqqq", "/search?kind=survey&status=survey&year=2023", "/paper/emo", "/paper/2601.00001",
         "/trending", "/new", "/topics", "/topic/recurrence", "/archive", "/day/2026-01-02", "/day/2001-01-01", "/about", "/submit", "/subscribe",
         "/subscribe/sent", "/subscribe/confirm?token=x", "/unsubscribe?token=x", "/moderation", "/api", "/no/such/page")  # fmt: skip


def get(client: TestClient, path: str) -> str:
    answer = client.get(path, follow_redirects=True)
    assert answer.status_code == (404 if path == "/no/such/page" else 200), (path, answer.status_code)
    return answer.text


@pytest.mark.parametrize("path", PAGES)
def test_html_is_valid(reading: TestClient, path: str) -> None:
    html5lib = pytest.importorskip("html5lib", reason="html5lib is not installed")
    text = get(reading, path)
    tree = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(text)  # raises on the first error
    every = list(tree.iter())
    ids = [element.get("id") for element in every if element.get("id")]
    assert len(ids) == len(set(ids)), "an id stands twice"
    for element in every:
        tag, facts = element.tag, element.attrib
        assert not [name for name in facts if name.startswith("on") or name == "style"], f"{tag} carries a script or a style"
        assert tag not in ("style", "iframe", "object", "embed", "base"), tag
        for name in ("aria-labelledby", "aria-describedby", "for"):
            assert set(facts.get(name, "").split()) <= set(ids), f"{name}={facts.get(name)} names nothing"
        if tag == "script":
            assert facts.get("src", "").startswith("/static/") and not (element.text or "").strip()
        if tag == "form" and facts.get("method") == "post":
            assert element.findall(".//input[@name='csrf']"), f"{facts['action']} has no seal"
        if tag in ("input", "select", "textarea") and facts.get("type") != "hidden":
            labelled = facts.get("aria-label") or any(other.get("for") == facts.get("id", "-") for other in tree.iter("label"))
            assert labelled or any(element in label.iter() for label in tree.iter("label")), f"{facts} has no label"
    levels = [int(element.tag[1]) for element in every if re.fullmatch(r"h[1-6]", str(element.tag))]
    assert levels.count(1) == 1
    main = next(tree.iter("main"))
    inside = [int(element.tag[1]) for element in main.iter() if re.fullmatch(r"h[1-6]", str(element.tag))]
    assert inside[0] == 1 or path == "/paper/emo", inside
    assert all(b - a <= 1 for a, b in zip(inside, inside[1:], strict=False)), f"a heading is left out: {inside}"
    for landmark in ("header", "nav", "main", "footer"):
        assert list(tree.iter(landmark)), landmark
    assert tree.find(".").get("lang") == "en" and "@" not in get(reading, path).split("<main")[0]


@pytest.mark.parametrize("path", PAGES)
def test_pages_are_light_and_ask_nobody_else(reading: TestClient, path: str) -> None:
    text = get(reading, path)
    assets = sum(len(file("static", name).encode()) for name in ASSETS)
    assert len(text.encode()) + assets < 150_000
    loaded = re.findall(r"<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=\"([^\"]+)", text)
    loaded += re.findall(r"<link\b[^>]*\bhref=\"([^\"]+)", text)
    assert loaded and all(address.startswith("/") and not address.startswith("//") for address in loaded)
    style = file("static", "style.css")
    assert "url(" not in style and "@import" not in style and "//" not in style


def test_links_lead_somewhere(reading: TestClient) -> None:
    seen, todo = set(), ["/"]
    while todo and len(seen) < 70:
        path = todo.pop(0)
        seen.add(path)
        answer = reading.get(path, follow_redirects=True)
        assert answer.status_code == 200, path
        if "html" in answer.headers["content-type"]:
            for link in re.findall(r"<a\b[^>]*\bhref=\"([^\"#]+)", answer.text):
                target = urljoin(path, link.replace("&amp;", "&"))
                if urlsplit(target).scheme:
                    assert target.startswith("https://"), target
                elif target not in seen and target not in todo:
                    todo.append(target)
    assert {"/about", "/topics", "/archive", "/trending", "/subscribe", "/submit", "/api"} <= seen


def test_a_card_tells_all(reading: TestClient) -> None:
    text = get(reading, "/search?q=earth+mover+distance")
    card = text.split('id="emo"')[1].split("</article>")[0]
    assert "<mark>Earth</mark>" in card and "data-vote" in card and "objective" in card and 'class="chip state' in card
    page = get(reading, "/paper/2601.00001")
    assert "Émilie du Châtelet" in page and "published 2 January 2026" in page and "https://arxiv.org/abs/2601.00001" in page
    assert "&lt;b&gt;Orbits&lt;/b&gt;" in page and "NEW" in page and "12, as imported" in page
    listed = get(reading, "/day/2026-01-02")
    assert "and 5 more" in listed and "<details" in listed
    text = get(reading, "/paper/mamba2" if "/paper/mamba2" in get(reading, "/search?q=mamba2") else "/search?q=mamba")
    assert "orrery train" in text


def test_names_of_a_paper_lead_to_it(reading: TestClient) -> None:
    answer = reading.get("/paper/2601.00001v3", follow_redirects=False)
    assert answer.status_code == 307 and answer.headers["location"].startswith("/paper/")
    assert reading.get("/paper/emoo").status_code == 404 and "emo" in reading.get("/paper/emoo").text


def test_search_pages_and_filters(reading: TestClient) -> None:
    first, second = get(reading, "/search?q=language"), get(reading, "/search?q=language&page=2")
    assert "Page 1 of" in first and 'rel="next"' in first and "Page 2 of" in second and 'rel="prev"' in second
    shown = [set(re.findall(r'data-card|<article class="card" id="([^"]+)"', text)) - {""} for text in (first, second)]
    assert len(shown[0]) == 20 and not shown[0] & shown[1]
    assert "survey" in get(reading, "/search?kind=survey") and "No paper answers" in get(reading, "/search?q=zzzzqqq")
    for odd in ("page=-1", "page=99999999999999999999", "page=x", "year=abcd", "kind=%00", "topic=nothing", "status=x&room=../..", "q=%22", "q=*",
                "q=a:b:(", "q=" + "NEAR(" * 40, "q=%F0%9F%AA%90", "q='--", "q=title:"):  # fmt: skip
        assert reading.get(f"/search?{odd}").status_code == 200, odd


def test_a_vote_without_a_script(client: TestClient, store: Store) -> None:
    assert 'aria-pressed="false"' in get(client, "/paper/emo")
    token = seal(client)
    answer = client.post("/paper/emo/vote", data={"csrf": token, "do": "vote", "back": "/search?q=earth"})
    assert answer.status_code == 303 and answer.headers["location"] == "/search?q=earth#emo"
    page = get(client, "/paper/emo")
    assert 'aria-pressed="true"' in page and "<span data-votes>1</span>" in page and store.paper("emo").votes == 1
    client.post("/paper/emo/vote", data={"csrf": token, "do": "vote"})
    assert store.paper("emo").votes == 1, "one vote a reader"
    answer = client.post("/paper/emo/vote", data={"csrf": token, "do": "unvote"}, headers={"accept": "application/json"})
    assert answer.json() == {"slug": "emo", "votes": 0, "voted": False}
    assert 'aria-pressed="false"' in get(client, "/paper/emo")
    assert client.post("/paper/no-such/vote", data={"csrf": token, "do": "vote"}).status_code == 404


def test_submitting(client: TestClient, store: Store) -> None:
    token = seal(client)
    answer = client.post("/submit", data={"csrf": token, "text": "", "title": "Kept <words>"})
    assert answer.status_code == 422 and "Kept &lt;words&gt;" in answer.text and 'role="alert"' in answer.text
    fields = {"title": "A Paper of Today", "authors": "A. One, B. Two", "year": "2026", "url": "https://example.org/today", "abstract": "Short."}
    answer = client.post("/submit", data={"csrf": token, **fields})
    assert answer.status_code == 303 and answer.headers["location"].startswith("/paper/"), answer.text
    assert store.paper(answer.headers["location"].removeprefix("/paper/")).authors == ("A. One", "B. Two")
    home = get(client, "/")
    assert "A Paper of Today" in home and '<li class="new">NEW</li>' in home
    assert client.post("/submit", data={"csrf": token, "text": "@article{x, title={Of BibTeX}, url={https://example.org/x}}"}).status_code == 303


def test_moderating(open_app: Callable[..., TestClient], store: Store) -> None:
    reader = store.record("sign_in", {"email": "b@example.org", "nonce": "n", "until": "2099-01-01T00:00:00Z"})["id"]
    waiting = community.submit(store, {"title": "Waits", "url": "https://example.org/w"}, reader)
    client = open_app()
    assert "Waits" in get(client, "/moderation")
    token = seal(client)
    assert client.post(f"/moderation/{waiting.id}", data={"csrf": token, "do": "perhaps"}).status_code == 400
    assert client.post(f"/moderation/{waiting.id}", data={"csrf": token, "do": "accept", "note": "good"}).status_code == 303
    assert community.submission(store, waiting.id).state == "accepted" and "Nothing waits" in get(client, "/moderation")
    assert client.post("/moderation/999", data={"csrf": token, "do": "accept"}).status_code == 404


def test_picks(client: TestClient, store: Store) -> None:
    slug = store.paper("2601.00002").slug
    for expected in (True, False):
        assert client.post(f"/paper/{slug}/pick", data={"csrf": seal(client)}).status_code == 303
        assert store.paper(slug).curated is expected
        assert ('class="pick"' in get(client, f"/paper/{slug}")) is expected


def test_subscribing(client: TestClient, store: Store, tmp_path: Path) -> None:
    token = seal(client)
    answer = client.post("/subscribe", data={"csrf": token, "email": "not an address", "frequency": "daily"})
    assert answer.status_code == 422 and 'value="not an address"' in answer.text
    form = {"csrf": token, "email": "reader@example.org", "frequency": "weekly", "topics": ["recurrence", "attention"]}
    assert client.post("/subscribe", data=form).headers["location"] == "/subscribe/sent"
    assert subscriptions.by_address(store, "reader@example.org").state == "pending"
    link = link_of(letters(tmp_path / "mail")[0])
    assert link.startswith("/subscribe/confirm?token=") and "Yes, subscribe" in get(client, link)
    assert subscriptions.by_address(store, "reader@example.org").state == "pending", "looking is not confirming"
    assert client.post("/subscribe/confirm", data={"csrf": token, "token": link.partition("=")[2]}).status_code == 303
    found = subscriptions.by_address(store, "reader@example.org")
    assert (found.state, found.frequency, set(found.topics)) == ("active", "weekly", {"recurrence", "attention"})
    leave = subscriptions.unsubscribe_token(store, found, dt.datetime.now(dt.timezone.utc))
    one_click = {"List-Unsubscribe": "One-Click"}  # as a mail program's server sends it: no cookie, no seal, the token in the address
    client.cookies.clear()
    assert client.post(f"/unsubscribe?token={leave}", data=one_click).status_code == 303
    assert subscriptions.by_address(store, "reader@example.org").state == "ended"
    assert client.post("/unsubscribe?token=forged", data=one_click).status_code == 400
    assert client.post("/subscribe/confirm", data={"csrf": seal(client), "token": "forged.x"}).status_code == 400


def test_without_mail_it_is_said(open_app: Callable[..., TestClient]) -> None:
    client = open_app(mailer=None)
    answer = client.post("/subscribe", data={"csrf": seal(client), "email": "reader@example.org", "frequency": "daily"})
    assert answer.status_code == 503 and "--smtp" in answer.text


def test_colours_are_remembered(client: TestClient) -> None:
    assert 'data-theme="auto"' in get(client, "/about")
    client.post("/theme", data={"csrf": seal(client), "theme": "dark", "back": "/about"})
    assert 'data-theme="dark"' in get(client, "/about") and 'data-theme="dark"' in get(client, "/no/such/page")
    assert client.post("/theme", data={"csrf": seal(client), "theme": "\"><script>"}).status_code == 400


def test_kept_pages_are_each_readers_own(open_app: Callable[..., TestClient], store: Store) -> None:
    one, other = open_app(), open_app()
    assert seal(one) == seal(one) and seal(one) != seal(other)
    before = get(one, "/trending")
    store.record("vote", {"paper": "emo", "reader": 1})  # as another process would
    assert get(one, "/trending") == before, "kept for a second"
    one.app.app.state.site._state = (-1e9, None)  # type: ignore[attr-defined]  # a second later
    after = get(one, "/trending")
    assert before != after and after.index('id="emo"') < 6000


def test_files_and_feeds(reading: TestClient) -> None:
    assert "@" in reading.get("/paper/emo.bib").text and "attachment" in reading.get("/paper/emo.bib").headers["content-disposition"]
    assert "cff-version" in reading.get("/paper/emo.cff").text
    assert reading.get("/paper/emo.csl.json").json() and reading.get("/paper/emo.json").json()
    assert reading.get("/export/papers.csv").text.count("\n") > 160 and len(reading.get("/export/papers.bib").text) > 10_000
    for name in ("papers", "new", "verdicts"):
        answer = reading.get(f"/feeds/{name}.atom")
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("application/atom+xml") and "<feed" in answer.text
    assert "{searchTerms}" in reading.get("/opensearch.xml").text and "Disallow" in reading.get("/robots.txt").text
    assert reading.get("/paper/no-such.bib").status_code == 404


def test_assets_are_kept_by_their_content(reading: TestClient) -> None:
    page = get(reading, "/about")
    address = re.search(r'href="(/static/style.css\?v=\w+)"', page)[1]  # type: ignore[index]
    answer = reading.get(address)
    assert "immutable" in answer.headers["cache-control"] and answer.headers["content-type"].startswith("text/css")
    assert reading.get("/static/style.css", headers={"if-none-match": answer.headers["etag"]}).status_code == 304
    assert "immutable" not in reading.get("/static/style.css?v=old").headers["cache-control"]


# ---------------------------------------------------------------- small parts


def test_planets_stand_where_they_stood() -> None:
    at_epoch = emblem.longitudes(dt.date(2000, 1, 1))
    assert abs(at_epoch["Earth"] - 100.46) < 0.01 and abs(at_epoch["Saturn"] - 49.95) < 0.01
    march, september = emblem.longitudes(dt.date(2026, 3, 20)), emblem.longitudes(dt.date(2026, 9, 23))
    assert abs(march["Earth"] - 180) < 3 and min(september["Earth"], 360 - september["Earth"]) < 3, "equinoxes, but for the ellipse"
    year = (dt.date(2012, 6, 6) - dt.date(2004, 6, 8)).days  # two transits of Venus: it stood before the Sun, at Earth's longitude
    for date in (dt.date(2012, 6, 6), dt.date(2012, 6, 6) - dt.timedelta(days=year)):
        found = emblem.longitudes(date)
        assert abs((found["Venus"] - found["Earth"] + 180) % 360 - 180) < 3
    drawn = emblem.draw(dt.date(2026, 11, 22))
    assert drawn.count("<circle") == 17 and "style=" not in drawn and drawn != emblem.draw(dt.date(2026, 11, 23))


def test_colours_are_those_of_the_report() -> None:
    style = file("static", "style.css")
    for name in ("paper", "ink", "quiet", "hair", "brass", "wash", "focus"):
        assert f"--{name}: {report.LIGHT[name]}" in style and f"--{name}: {report.DARK[name]}" in style


def test_turns_come_back() -> None:
    now = [0.0]
    rates = Rates(lambda: now[0])
    assert [rates.wait("a", 2, 10) for _ in range(3)] == [0, 0, 10] and rates.wait("b", 2, 10) == 0
    now[0] = 4.0
    assert rates.wait("a", 2, 10) == 6
    now[0] = 10.5
    assert [rates.wait("a", 2, 10) for _ in range(3)] == [0, 0, 10]
    for number in range(20_000):
        rates.wait(number, 1, 10)
    assert len(rates._seen) == 10_000


def test_what_is_counted_ahead_ends_before_the_server(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store's owner closes it next, and a connection that is closed while it is read from ends the process."""
    begun, done = threading.Event(), []

    def slow(_: Store) -> None:
        begun.set()
        threading.Event().wait(0.3)
        done.append(True)

    monkeypatch.setattr(app, "_warm", slow)
    with TestClient(app.create_app(store)):
        assert begun.wait(5)
    assert done


def test_pages_are_kept_within_bounds() -> None:
    cache = PageCache(most=3, most_bytes=100, stays=60)
    for number in range(5):
        cache.put(number, "s", b"x" * 30)
    assert [cache.get(number, "s") is not None for number in range(5)] == [False, False, True, True, True]
    assert cache.get(4, "other state") is None
    cache.put(4, "s", b"x" * 90)
    assert cache.get(3, "s") is None and cache.get(4, "s") is not None


@pytest.mark.parametrize(
    ("target", "here", "expected"),
    [("index.html", "index.html", "index.html"), ("paper/a.html", "index.html", "paper/a.html"), ("index.html", "paper/a.html", "../index.html"),
     ("static/style.css", "day/x.html", "../static/style.css"), ("paper/a.html#a", "paper/b.html", "a.html#a")],
)  # fmt: skip
def test_relative_links(target: str, here: str, expected: str) -> None:
    assert relative(target, here) == expected


def test_days_in_words() -> None:
    assert day_words("2026-11-02") == "2 November 2026" and day_words("soon") == "soon"
