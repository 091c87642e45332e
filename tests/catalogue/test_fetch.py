"""Asking arXiv and Hugging Face, against a server of our own that answers in their shapes and in every wrong way."""

import json
import threading
import time
from contextlib import contextmanager
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from orrery.catalogue import fetch
from orrery.core.errors import ConfigError, StorageError

ATOM = """<?xml version="1.0" encoding="UTF-8"?>
<feed xmlns="http://www.w3.org/2005/Atom"><title>ArXiv Query</title>
<entry><id>http://arxiv.org/abs/2405.21060v1</id><published>2024-05-31T17:50:01Z</published>
<title>Transformers are SSMs</title><summary>Dual.</summary><author><name>Tri Dao</name></author></entry></feed>"""
DAILY = json.dumps([{"paper": {"id": "2405.21060", "title": "Transformers are SSMs", "upvotes": 60}}])


class Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append((time.monotonic(), self.path, self.headers["User-Agent"]))
        status, headers, body, drip = self.server.script.pop(0) if self.server.script else self.server.usual(self.path)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            for begin in range(0, len(body), 10) if drip else (0,):
                self.wfile.write(body[begin : begin + 10] if drip else body)
                self.wfile.flush()
                time.sleep(drip)
        except OSError:
            pass

    def log_message(self, *_):
        pass


def usual(path):
    body = (DAILY if path.startswith("/api/daily") else ATOM).encode()
    return 200, {"Content-Length": str(len(body))}, body, 0.0


@contextmanager
def serving(*script):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.asked, server.script, server.usual = [], list(script), usual
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self):
        self.now, self.slept = 1_000_000.0, []

    def sleep(self, seconds):
        self.slept.append(round(seconds, 3))
        self.now += seconds

    def time(self):
        return self.now


def fetcher(server, folder, clock, make=fetch.arxiv_service, path="/api/query", **options):
    service = make(f"http://127.0.0.1:{server.server_port}{path}")
    return fetch.Fetcher(service, folder, sleep=clock.sleep, now=clock.time, **options)


def test_arxiv_is_asked_slowly_and_never_twice(tmp_path):
    clock = Clock()
    with serving() as server:
        asker = fetcher(server, tmp_path, clock)
        found = asker.papers(["arXiv:2405.21060v2", "https://arxiv.org/pdf/2312.00752", "cs/0112017"])
        assert [b"Transformers are SSMs" in answer.body for answer in found] == [True]
        question = parse_qs(urlsplit(server.asked[0][1]).query)
        assert question["id_list"] == ["2405.21060,2312.00752,cs/0112017"] and server.asked[0][2].startswith("orrery-lm/")
        assert asker.papers(["2405.21060", "2312.00752", "cs/0112017"])[0].cached and len(server.asked) == 1
        asker.search("cat:cs.CL AND ti:mamba", 5)
        assert clock.slept == [3.0], "one request in three seconds"
        clock.now += 1.0
        other = fetcher(server, tmp_path, clock)  # as another process, which shares the folder
        other.search("cat:cs.LG", 5)
        assert clock.slept == [3.0, 2.0]
        clock.now += 86_401
        assert not asker.papers(["2405.21060", "2312.00752", "cs/0112017"])[0].cached and len(server.asked) == 4
        assert len(fetcher(server, tmp_path, clock).papers([f"2401.{n:05d}" for n in range(250)])) == 3


def test_hugging_face_days_and_papers(tmp_path):
    clock = Clock()
    with serving() as server:
        asker = fetcher(server, tmp_path, clock, fetch.hugging_face_service, "/api")
        assert json.loads(asker.day(date(2024, 6, 3)).body)[0]["paper"]["upvotes"] == 60
        asker.paper("2405.21060v2")
        asker.day()
        assert [path for _, path, _ in server.asked] == ["/api/daily_papers?date=2024-06-03", "/api/papers/2405.21060", "/api/daily_papers"]
        assert clock.slept == [1.0, 1.0]


def test_a_busy_service_is_asked_again_later_and_later(tmp_path):
    clock = Clock()
    busy = (503, {}, b"", 0.0)
    with serving(busy, (429, {"Retry-After": "17"}, b"", 0.0), busy) as server:
        assert fetcher(server, tmp_path, clock).search("all:x").body == ATOM.encode()
        assert clock.slept == [6.0, 17.0, 24.0] and len(server.asked) == 4
    with serving(*[busy] * 9) as server:
        with pytest.raises(fetch.FetchError, match=r"did not answer 4 requests \(status 503\)"):
            fetcher(server, tmp_path, clock).search("all:y")
        assert len(server.asked) == 4
    with serving((429, {"Retry-After": "4000"}, b"", 0.0)) as server:
        with pytest.raises(fetch.FetchError, match="wait 4000 s"):
            fetcher(server, tmp_path, clock).search("all:z")
        assert len(server.asked) == 1


def test_an_old_copy_is_better_than_none(tmp_path):
    clock = Clock()
    with serving() as server:
        asker = fetcher(server, tmp_path, clock)
        asker.search("all:x")
        clock.now += 100_000
        server.script += [(500, {}, b"", 0.0)] * 4
        found = asker.search("all:x")
        assert found.stale and found.body == ATOM.encode()
        for file in tmp_path.glob("*.body"):
            file.write_bytes(b"flipped")
        assert not asker.search("all:x").cached, "a damaged copy is no copy"


@pytest.mark.parametrize("place", ["http://127.0.0.2:1/x", "https://example.org/", "file:///etc/passwd", "http://localhost:{port}/x"])
def test_a_redirect_leads_nowhere_else(tmp_path, place):
    with serving() as server:
        server.script.append((302, {"Location": place.format(port=server.server_port)}, b"", 0.0))
        with pytest.raises(fetch.FetchError, match="redirects to another place"):
            fetcher(server, tmp_path, Clock()).search("all:x")
        assert len(server.asked) == 1


def test_a_redirect_within_the_host_is_followed_and_a_circle_is_not(tmp_path):
    with serving((301, {"Location": "/api/elsewhere"}, b"", 0.0)) as server:
        assert fetcher(server, tmp_path, Clock()).search("all:x").body == ATOM.encode()
        server.script += [(302, {"Location": "/api/elsewhere"}, b"", 0.0)] * 9
        with pytest.raises(fetch.FetchError):
            fetcher(server, tmp_path, Clock()).search("all:y")


def test_answers_that_are_too_long_too_slow_or_cut(tmp_path):
    with serving((200, {}, b"x" * 5000, 0.0)) as server, pytest.raises(fetch.FetchError, match="sent more than"):
        fetcher(server, tmp_path, Clock(), max_bytes=1000).search("all:x")
    with serving((200, {}, b"x" * 400, 0.02)) as server, pytest.raises(fetch.FetchError, match="not whole after"):
        fetcher(server, tmp_path, Clock(), seconds=0.1, tries=1).search("all:x")
    with serving((200, {"Content-Length": "400"}, b"x" * 100, 0.0)) as server, pytest.raises(fetch.FetchError, match=r"broke off|IncompleteRead"):
        fetcher(server, tmp_path, Clock(), tries=1).search("all:x")
    with serving((404, {}, b"", 0.0)) as server, pytest.raises(fetch.FetchError, match="status 404"):
        fetcher(server, tmp_path, Clock()).search("all:x")
    with pytest.raises(fetch.FetchError, match="no connection"):
        fetcher(server, tmp_path, Clock(), tries=1).search("all:x")
    assert not list(tmp_path.glob("*.body"))


def test_bad_questions_are_not_asked(tmp_path):
    with serving() as server:
        asker = fetcher(server, tmp_path, Clock())
        for wrong in (lambda: asker.papers(["../../etc"]), lambda: asker.search(" "), lambda: asker.search("all:x", 9999), lambda: asker.paper("x")):
            with pytest.raises(ConfigError):
                wrong()
        assert not server.asked
    for base in ("http://example.org", "ftp://example.org", "https://user@example.org", "https://example.org/?x=1", "x"):
        with pytest.raises(ConfigError):
            fetch.arxiv_service(base)


def test_one_connection_at_a_time(tmp_path, monkeypatch):
    """Another asker that holds the turn is waited for, not overtaken."""
    monkeypatch.setattr(fetch, "LONGEST_PAUSE", 0.05)
    with serving() as server:
        asker = fetcher(server, tmp_path, Clock())
        with fetch.exclusive(tmp_path / f".127.0.0.1_{server.server_port}.last", 0, "") as _, pytest.raises(StorageError, match="under way"):
            asker.search("all:x")
        assert not server.asked
