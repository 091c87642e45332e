"""Hostile requests: names, origins, sizes, slowness, floods, forged cookies, paths, and markup in what was imported."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from orrery.catalogue import community
from orrery.catalogue.store import Store
from orrery.core.errors import ConfigError, OrreryError
from orrery.web.app import create_app
from orrery.web.guard import POLICY
from orrery.web.server import Background, listen
from orrery.web.settings import Limits, Settings, is_loopback
from web.support import BASE, letters, link_of, raw, seal

Make = Callable[..., TestClient]
READ = ("/", "/search?q=night", "/paper/emo", "/paper/2601.00001", "/about", "/topics", "/nothing-here", "/api/v1/stats", "/static/style.css")


@pytest.mark.parametrize("path", READ)
def test_every_answer_carries_the_headers(reading: TestClient, path: str) -> None:
    headers = reading.get(path).headers
    assert headers["content-security-policy"] == POLICY
    assert "unsafe" not in POLICY and "frame-ancestors 'none'" in POLICY and "default-src 'none'" in POLICY
    assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "same-origin" and "server" not in headers
    assert headers["cache-control"]


def test_imported_markup_is_text(reading: TestClient) -> None:
    for path in ("/paper/2601.00001", "/search?q=orbits", "/search?q=%3Cscript%3Ealert(1)%3C/script%3E", "/"):
        page = reading.get(path, follow_redirects=True).text
        assert "<script>" not in page and "<img" not in page and "<b>Orbits" not in page and "<i>Love" not in page
        assert "onmouseover='x" not in page and "8638" not in page
    assert "&lt;script&gt;window.stolen" in reading.get("/paper/2601.00001", follow_redirects=True).text


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "evil@127.0.0.1", "127.0.0.1:x", "", "127.0.0.1/../x", "[::1", "localhost.evil.example:8765"]
)
def test_unknown_hosts_are_refused(reading: TestClient, host: str) -> None:
    assert reading.get("/", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:9", "localhost:8765", "[::1]:8765", "LOCALHOST", "localhost."])
def test_own_names_are_answered(reading: TestClient, host: str) -> None:
    assert reading.get("/about", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "file://"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_changes_from_elsewhere_are_refused(client: TestClient, headers: dict[str, str]) -> None:
    form = {"csrf": seal(client), "do": "vote"}
    assert client.post("/paper/emo/vote", data=form, headers=headers).status_code == 403
    assert client.post("/api/v1/papers/emo/vote", headers={"x-orrery": "1", **headers}).status_code == 403
    assert client.post("/paper/emo/vote", data=form, headers={"origin": BASE}).status_code == 303


def test_forms_need_their_own_seal(client: TestClient, open_app: Make, store: Store) -> None:
    assert client.post("/paper/emo/vote", data={"do": "vote"}).status_code == 403
    assert client.post("/paper/emo/vote", data={"do": "vote", "csrf": "0" * 40}).status_code == 403
    other = open_app()
    assert client.post("/paper/emo/vote", data={"do": "vote", "csrf": seal(other)}).status_code == 403, "another visit's seal"
    good = seal(client)
    forged = client.cookies["orrery_visit"][:-2] + "xx"
    client.cookies.clear()
    client.cookies.set("orrery_visit", forged)
    assert client.post("/paper/emo/vote", data={"do": "vote", "csrf": good}).status_code == 403, "a forged visit"
    assert store.paper("emo").votes == 0
    for path in ("/submit", "/subscribe", "/subscribe/confirm", "/sign-in", "/sign-out", "/theme", "/moderation/1", "/paper/emo/pick"):
        assert client.post(path, data={"email": "a@example.org"}).status_code == 403, path


def test_the_api_needs_a_key_or_its_header(client: TestClient, store: Store) -> None:
    for method, path in (("POST", "/papers/emo/vote"), ("DELETE", "/papers/emo/vote")):
        assert client.request(method, f"/api/v1{path}").status_code == 403
    assert client.post("/api/v1/submissions", json={"text": "2405.21060"}).status_code == 403
    assert store.paper("emo").votes == 0
    assert client.post("/api/v1/papers/emo/vote", headers={"x-orrery": "1"}).json() == {"slug": "emo", "votes": 1, "voted": True}


def test_cookies_are_shut(client: TestClient, open_app: Make) -> None:
    cookie = client.get("/").headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Lax" in cookie and "Secure" not in cookie
    cookie = open_app(url="https://papers.example.org", access="public", base="https://papers.example.org").get("/").headers["set-cookie"]
    assert cookie.startswith("__Host-orrery_visit=") and "Secure" in cookie and "HttpOnly" in cookie


PLAIN = ["../../../../etc/passwd", "..%2f..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/%2e%2e/etc/passwd", "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
         "..%252f..%252fetc%252fpasswd", "....//....//etc/passwd", "..%c0%af..%c0%afetc/passwd", "..%5c..%5c..%5cwindows%5cwin.ini",
         "..\\..\\windows\\win.ini", "%00/etc/passwd", "style.css%00.png", "/etc/passwd", "..%u2215..%u2215etc/passwd", "..;/..;/etc/passwd",
         "%ef%bc%8e%ef%bc%8e/etc/passwd", "file:///etc/passwd", ".%2e/.%2e/papers.sqlite", "../journal.jsonl", "../secret.key"]  # fmt: skip


@pytest.mark.parametrize("path", PLAIN)
def test_no_path_leads_out(server: Background, path: str) -> None:
    for root in ("/static/", "/paper/", "/day/", "/topic/", "/export/", "/feeds/", "/"):
        answer = raw(server, f"GET {root}{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        status = int(answer.split(b" ", 2)[1])
        assert status in (400, 404), (root, status)
        assert b"root:" not in answer and b"[fonts]" not in answer and b"journal_seq" not in answer


def test_redirects_stay_here(client: TestClient) -> None:
    token = seal(client)
    for back in ("//evil.example", "https://evil.example/", "/\\evil.example", "\\\\evil", "javascript:alert(1)", "/a\r\nSet-Cookie: x=1", "/\x00"):
        answer = client.post("/theme", data={"csrf": token, "theme": "dark", "back": back})
        assert answer.status_code == 303 and answer.headers["location"] == "/", back
        answer = client.post("/paper/emo/vote", data={"csrf": token, "do": "vote", "back": back})
        assert answer.headers["location"] == "/#emo"
    answer = client.post("/theme", data={"csrf": token, "theme": "dark", "back": "/trending?page=2"})
    assert answer.headers["location"] == "/trending?page=2"


def test_bodies_have_a_limit(client: TestClient) -> None:
    big = b"csrf=" + b"x" * 200_000
    kind = {"content-type": "application/x-www-form-urlencoded"}
    answer = client.post("/submit", content=big, headers=kind)
    assert answer.status_code == 413 and "KiB" in answer.text
    pieces = (b"x" * 10_000 for _ in range(40))
    answer = client.post("/submit", content=pieces, headers={**kind, "accept": "application/json"})  # chunked: no length is told
    assert answer.status_code == 413 and answer.json()["error"].endswith(".")
    assert client.post("/api/v1/submissions", content=(b" " * 10_000 for _ in range(40)), headers={"x-orrery": "1"}).status_code == 413
    many = "&".join(f"a{n}=1" for n in range(500))
    assert client.post("/submit", content=many, headers=kind).status_code == 400
    assert client.post("/submit", content=b"\xff\xfe=1", headers=kind).status_code == 400
    assert client.post("/submit", content=b"{}", headers={"content-type": "application/json"}).status_code == 415
    assert client.get("/search?q=" + "x" * 9000).status_code == 414
    assert client.get("/", headers={"x-long": "x" * 40_000}).status_code == 431


def test_a_length_that_lies_is_refused(client: TestClient) -> None:
    kind = {"content-type": "application/x-www-form-urlencoded"}
    assert client.post("/submit", content=b"a=1", headers={**kind, "content-length": "-5"}).status_code == 400
    assert client.post("/submit", content=b"a=1", headers={**kind, "content-length": "99999999999"}).status_code == 413


@pytest.fixture(scope="module")
def impatient(shared: Store) -> Any:
    with Background(shared, Settings(port=0, limits=Limits(header_seconds=0.4, body_seconds=0.4))) as running:
        yield running


def test_slow_heads_are_cut_off(impatient: Background) -> None:
    with socket.create_connection(("127.0.0.1", impatient.settings.port), timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: 127")
        begin = time.monotonic()
        assert connection.recv(100) == b"", "the connection is closed"
        assert time.monotonic() - begin < 5
    with socket.create_connection(("127.0.0.1", impatient.settings.port), timeout=10) as connection:  # and the second head of a connection
        connection.sendall(b"GET /static/icon.svg HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /slow")
        found = b""
        while piece := connection.recv(65536):
            found += piece
        assert found.startswith(b"HTTP/1.1 200") and found.count(b"HTTP/1.1") == 1


def test_slow_bodies_are_cut_off(impatient: Background) -> None:
    head = b"POST /submit HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 50\r\n\r\ncsrf="
    assert raw(impatient, head).startswith(b"HTTP/1.1 408")


def test_a_full_queue_says_so(shared: Store) -> None:
    """Two places, one waits, the fourth is turned away; who waits too long is told."""
    limits = Limits(at_once=2, queue=1, queue_seconds=0.3, answer_seconds=5)
    app = create_app(shared, Settings(limits=limits))
    release = threading.Event()
    inner = app.app

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        while not release.is_set():
            await asyncio.sleep(0.01)
        await inner(scope, receive, send)

    app.app = slow

    async def ask(delay: float) -> tuple[int, dict[bytes, bytes], bytes]:
        await asyncio.sleep(delay)
        return await call(app, "GET", "/static/icon.svg")

    async def all_of_them() -> list[tuple[int, dict[bytes, bytes], bytes]]:
        tasks = [asyncio.create_task(ask(0.02 * n)) for n in range(4)]
        await asyncio.sleep(0.8)
        release.set()
        return await asyncio.gather(*tasks)

    answers = alone(all_of_them())
    assert [answer[0] for answer in answers] == [200, 200, 503, 503]
    assert all(b"retry-after" in headers for _, headers, _ in answers[2:])
    assert b"busy" in answers[2][2] and b"More readers are waiting" in answers[3][2]


def test_an_answer_has_a_time(shared: Store) -> None:
    app = create_app(shared, Settings(limits=Limits(answer_seconds=0.2)))

    async def never(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(60)

    app.app = never
    status, _, body = alone(call(app, "GET", "/"))
    assert status == 503 and b"took longer" in body


def alone(work: Any) -> Any:
    """Run a coroutine in a thread of its own: a browser's driver may have a loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


async def call(app: Any, method: str, path: str) -> tuple[int, dict[bytes, bytes], bytes]:
    """One request without a client between."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path, "raw_path": path.encode(),
             "query_string": b"", "headers": [(b"host", b"127.0.0.1"), (b"accept", b"application/json")], "client": ("127.0.0.1", 1),
             "server": ("127.0.0.1", 8765), "scheme": "http", "root_path": "", "state": {}}  # fmt: skip
    await app(scope, receive, send)
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(message.get("body", b"") for message in sent[1:])


def test_changes_and_submissions_have_a_pace(open_app: Make) -> None:
    client = open_app(limits=Limits(changes=(3, 60.0), submissions=(2, 3600.0), mails=(1, 3600.0)))
    token = seal(client)
    answers = [client.post("/paper/emo/vote", data={"csrf": token, "do": "vote"}) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [303, 303, 303, 429]
    assert int(answers[3].headers["retry-after"]) <= 62 and "more than 3 in 1 minute" in answers[3].text
    answers = [client.post("/submit", data={"csrf": token, "text": "not a paper"}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [422, 422, 429]
    form = {"csrf": token, "email": "reader@example.org", "frequency": "daily"}
    assert [client.post("/subscribe", data=form).status_code for _ in range(2)] == [303, 429]


def test_access_by_token(open_app: Make, store: Store) -> None:
    token = "a-token-of-some-length"
    client = open_app(access="token", token=token, host="0.0.0.0", hosts=("papers.local",), limits=Limits(tokens=(3, 300.0)))
    for path in ("/", "/paper/emo", "/search?q=x", "/feeds/new.atom", "/export/papers.json"):
        answer = client.get(path)
        assert answer.status_code == 303 and answer.headers["location"].startswith("/sign-in?back="), path
    assert client.get("/api/v1/stats").status_code == 401
    assert client.get("/api/v1/stats", headers={"authorization": "Bearer wrong"}).status_code == 401
    assert client.get("/api/v1/stats", headers={"authorization": f"Bearer {token}"}).status_code == 200
    assert client.get("/sign-in").status_code == 200 and client.get("/static/style.css").status_code == 200
    form = {"csrf": seal(client, "/sign-in"), "token": "wrong", "back": "/topics"}
    assert client.post("/sign-in", data=form).status_code == 403
    answer = client.post("/sign-in", data={**form, "token": token})
    assert answer.status_code == 303 and answer.headers["location"] == "/topics"
    assert client.get("/topics").status_code == 200
    fresh = open_app(access="token", token="another-token-of-length", host="0.0.0.0")
    fresh.cookies.set("orrery_reader", client.cookies["orrery_reader"])
    assert fresh.get("/").status_code == 303, "a session ends with the token that began it"
    other = open_app(access="token", token=token, host="0.0.0.0")
    assert other.get(f"/sign-in?token={token}").headers["location"] == "/" and other.get("/").status_code == 200
    guesses = [open_app(access="token", token=token, host="0.0.0.0", limits=Limits(tokens=(3, 300.0)))]
    assert [guesses[0].get(f"/sign-in?token=guess-{n}").status_code for n in range(5)] == [403, 403, 403, 429, 429]


def test_access_by_sign_in(open_app: Make, store: Store, tmp_path: Path) -> None:
    client = open_app(access="public", url="http://papers.example.org", base="http://papers.example.org")
    assert client.get("/paper/emo").status_code == 200
    answer = client.post("/paper/emo/vote", data={"csrf": seal(client), "do": "vote", "back": "/paper/emo"})
    assert answer.status_code == 303 and answer.headers["location"] == "/sign-in?back=%2Fpaper%2Femo"
    assert client.post("/api/v1/papers/emo/vote", headers={"x-orrery": "1"}).status_code == 401
    assert client.get("/moderation").status_code == 303
    answer = client.post("/sign-in", data={"csrf": seal(client), "email": "ada@example.org\r\nBcc: all@example.org"})
    assert answer.status_code == 422
    assert not list((tmp_path / "mail").glob("*.eml"))
    answer = client.post("/sign-in", data={"csrf": seal(client), "email": "ada@example.org"})
    assert answer.headers["location"] == "/sign-in/sent"
    link = link_of(letters(tmp_path / "mail")[0])
    token = link.partition("token=")[2]
    assert client.get(link).status_code == 200, "looking at the link does not use it"
    before = seal(client)
    answer = client.post("/sign-in", data={"csrf": before, "token": token})
    assert answer.status_code == 303 and "orrery_reader" in answer.headers["set-cookie"]
    assert client.post("/paper/emo/vote", data={"csrf": before, "do": "vote"}).status_code == 403, "the seal of before signing in"
    assert client.post("/paper/emo/vote", data={"csrf": seal(client), "do": "vote"}).status_code == 303
    assert store.paper("emo").votes == 1 and community.reader(store, "ada@example.org").role == "reader"
    assert client.get("/moderation").status_code == 403
    assert client.post("/paper/emo/pick", data={"csrf": seal(client)}).status_code == 403
    key = re.search(r'aria-label="Your key">([^<]+)<', client.get("/api").text)[1]  # type: ignore[index]
    program = open_app(access="public", url="http://papers.example.org", base="http://papers.example.org")
    assert program.delete("/api/v1/papers/emo/vote", headers={"authorization": f"Bearer {key}"}).json()["votes"] == 0
    assert program.post("/sign-in", data={"csrf": seal(program), "token": token}).status_code == 400, "a link works once"
    client.post("/sign-out", data={"csrf": seal(client)})
    assert client.get("/moderation").status_code == 303


def test_readers_only(open_app: Make) -> None:
    client = open_app(access="readers", url="http://papers.example.org", base="http://papers.example.org")
    assert client.get("/").status_code == 303 and client.get("/api/v1/today").status_code == 401


@pytest.mark.parametrize(
    "settings",
    [{"host": "0.0.0.0"}, {"host": "192.0.2.1"}, {"host": "::"}, {"host": "example.org"}, {"access": "token", "token": "short"},
     {"access": "all"}, {"url": "papers.example.org"}, {"url": "ftp://x"}, {"port": 70000}],
)  # fmt: skip
def test_unsafe_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Settings(**settings)


def test_loopback_is_known() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "example.org", "10.0.0.1", "")))


def test_answers_are_not_held_back() -> None:
    """asyncio turns off Nagle's algorithm only where the socket names its protocol."""
    bound, known = listen(Settings(port=0))
    with bound:
        assert bound.proto == socket.IPPROTO_TCP and known.port > 0


def test_a_port_in_use_is_a_sentence(server: Background) -> None:
    with pytest.raises(OrreryError, match="choose another"):
        listen(Settings(port=server.settings.port))


def test_a_defect_tells_nothing(shared: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from orrery.web import pages

    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(pages.topics, "topic", broken)
    with TestClient(create_app(shared, Settings()), base_url=BASE, raise_server_exceptions=False) as client:
        answer = client.get("/topic/attention")
    assert answer.status_code == 500 and "secret" not in answer.text and "defect of its own" in answer.text
    assert answer.headers["content-security-policy"] == POLICY


def test_methods_are_known(reading: TestClient) -> None:
    assert reading.put("/about").status_code == 405 and reading.request("FROB", "/").status_code == 405
    assert reading.post("/about", headers={"origin": BASE}).status_code == 405
    assert reading.head("/about").status_code == 200 and reading.head("/about").content == b""
