"""The exported folder: every link leads to a file of it, nothing needs a server; and `orrery serve` as a person runs it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from orrery.catalogue.store import Store
from orrery.core.errors import ConfigError
from orrery.web.export import export, file_of


@pytest.fixture(scope="module")
def site(shared: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "pages"
    export(shared, folder, quiet=True)
    return folder


def test_every_link_is_a_file(site: Path) -> None:
    files = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    pages = [name for name in files if name.endswith(".html")]
    assert len(pages) > 162 and {"index.html", "search.html", "about.html", "trending.html", "paper/emo.html", "static/index.js"} <= files
    for name in pages:
        text = (site / name).read_text(encoding="utf-8")
        for address in re.findall(r"\b(?:href|src|action)=\"([^\"]+)\"", text):
            if address.startswith(("https://", "#")):
                continue
            assert not address.startswith("/") and "?" not in address, (name, address)
            target = (site / name).parent / unquote(address.partition("#")[0])
            assert target.resolve().relative_to(site.resolve()).as_posix() in files, (name, address)
        assert "csrf" not in text and 'method="post"' not in text
        assert "window.stolen = 1</script>" not in text


def test_long_lists_are_paged_and_light(shared: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orrery.web.export.PER_PAGE", 5)
    export(shared, tmp_path / "pages", quiet=True)
    first, second = tmp_path / "pages" / "topic" / "recurrence.html", tmp_path / "pages" / "topic" / "recurrence-2.html"
    assert 'rel="next" href="recurrence-2.html"' in first.read_text() and 'rel="prev" href="recurrence.html"' in second.read_text()
    slugs = [set(re.findall(r'<article class="card" id="([^"]+)"', page.read_text())) for page in (first, second)]
    assert len(slugs[0]) == 5 and slugs[1] and not slugs[0] & slugs[1]


def test_no_exported_page_is_heavy(site: Path) -> None:
    assets = sum((site / "static" / name).stat().st_size for name in ("style.css", "script.js", "icon.svg"))
    heavy = {page.name: size for page in site.rglob("*.html") if (size := page.stat().st_size + assets) > 150_000}
    assert not heavy, heavy


def test_exporting_again_and_elsewhere(shared: Store, site: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in site.rglob("*"))
    export(shared, site, quiet=True)
    assert sorted(path.name for path in site.rglob("*")) == before
    (tmp_path / "mine.txt").write_text("not yours")
    for bad in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(ConfigError):
            export(shared, bad, quiet=True)
    assert (tmp_path / "mine.txt").read_text() == "not yours"
    assert file_of("/") == "index.html" and file_of("/paper/a-b") == "paper/a-b.html"


def test_serve_as_a_person_runs_it(template: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "orrery", "serve", "--port", "0", "--no-open", "--store", str(tmp_path / "papers")]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        line = running.stdout.readline()  # type: ignore[union-attr]
        address = re.search(r"http://127\.0\.0\.1:\d+/", line)
        assert address, line + running.stderr.read()  # type: ignore[union-attr]
        with urllib.request.urlopen(address[0], timeout=20) as answer:
            assert b"162 papers" in answer.read()
    finally:
        running.send_signal(signal.SIGINT)
        for _ in range(100):
            if running.poll() is not None:
                break
            time.sleep(0.1)
        running.kill()
        running.wait()
        running.stdout.close(), running.stderr.close()  # type: ignore[union-attr]
    assert running.returncode in (0, 130, -signal.SIGINT)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"host": "0.0.0.0", "public": True, "sign_in": True}, "exclude"),
        ({"token": "short"}, "12 characters"),
        ({"smtp": "mail.example.org:x"}, "mail.example.org"),
        ({"url": "nowhere"}, "no address"),
        ({"port": 99999}, "no port"),
    ],
)
def test_wrong_options_are_sentences(options: dict[str, Any], words: str, template: Path) -> None:
    from orrery.cli.serve import serve

    names = ("token", "url", "smtp", "user", "sender")
    plain: dict[str, Any] = {"host": "127.0.0.1", "port": 0, "store": template, "security": "starttls", "allow_host": [], **dict.fromkeys(names, "")}
    plain |= dict.fromkeys(("sign_in", "public", "open_browser"), False) | dict.fromkeys(("mailbox", "password_file", "export"))
    with pytest.raises(ConfigError, match=words):
        serve(**{**plain, **options})


def test_a_missing_extra_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    from orrery.cli.serve import need_web

    need_web()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'orrery-lm\[web\]'"):
        need_web()


def test_a_token_is_made_where_others_can_reach_it() -> None:
    from orrery.cli.serve import _access

    assert _access("127.0.0.1", "", False, False) == ("owner", "")
    access, token = _access("0.0.0.0", "", False, False)
    assert access == "token" and len(token) >= 20 and token != _access("0.0.0.0", "", False, False)[1]
    assert _access("0.0.0.0", "", False, True) == ("public", "") and _access("127.0.0.1", "", True, False) == ("readers", "")


def test_nothing_heavy_is_imported() -> None:
    heavy = ("torch", "numba", "transformers", "scipy")
    code = f"import sys, orrery.web.app, orrery.web.export, orrery.web.server; print(*[m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stdout.split(), done.stderr
