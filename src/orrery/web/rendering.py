"""Templates, links, and pages kept until the store changes.

A page is rendered once for all who see the same of it: the seal of its forms and the reader's colours are written into
the finished bytes. Links are made by one function, so that the same templates serve a server and a folder on a disk.
"""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
import posixpath
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from importlib import resources
from typing import Any

from orrery.web.places import navigation

ASSETS = {
    "style.css": "text/css; charset=utf-8",
    "script.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
OPTIONAL = (  # what a page may say of itself; everything else must be given
    "notice", "description", "eyebrow", "lead", "series", "first", "nothing", "pages", "papers", "wrong", "action", "onward", "key",
    "asked", "suggestion", "fresh", "picks", "search_index", "trending", "topics", "curator", "moderator", "reader", "account",
)  # fmt: skip
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


@functools.cache
def file(folder: str, name: str) -> str:
    """A text file of this room."""
    return resources.files("orrery.web").joinpath(folder, name).read_text(encoding="utf-8")


@functools.cache
def asset_version(name: str) -> str:
    """Changes when the file does, so that browsers may keep it for ever."""
    return hashlib.sha256(file("static", name).encode()).hexdigest()[:10]


def day_words(value: str | dt.date) -> str:
    """`2026-11-22` as `22 November 2026`; what is no day stays as it is."""
    try:
        day = dt.date.fromisoformat(str(value)[:10])
    except ValueError:
        return str(value)
    return f"{day.day} {MONTHS[day.month - 1]} {day.year}"


def weekday_words(value: str | dt.date) -> str:
    """`2026-11-22` as `Sunday 22`."""
    day = dt.date.fromisoformat(str(value)[:10])
    return f"{DAYS[day.weekday()]} {day.day}"


class Renderer:
    """The templates, bound to a server (`static=False`) or to a folder of files."""

    def __init__(self, link: Callable[[str], str] | None = None, *, static: bool = False) -> None:
        import jinja2

        self.static = static
        self.csrf_mark = f"csrf-{secrets.token_hex(16)}"  # cannot be guessed, so no title or abstract can hold it
        self.theme_mark = "auto" if static else f"theme-{secrets.token_hex(16)}"
        self._marks = (self.csrf_mark.encode(), self.theme_mark.encode())
        self.environment = jinja2.Environment(
            loader=jinja2.FunctionLoader(lambda name: file("templates", name)),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self.environment.globals.update(dict.fromkeys(OPTIONAL))
        self.environment.filters.update(day=day_words, weekday=weekday_words, number=lambda value: f"{value:,}")
        self.environment.globals.update(
            link=link or (lambda path: path),
            asset=self._asset,
            static=static,
            csrf_mark=self.csrf_mark,
            theme_mark=self.theme_mark,
            navigation=navigation(static),
        )

    def _asset(self, name: str) -> str:
        if self.static:
            link: Callable[[str], str] = self.environment.globals["link"]  # type: ignore[assignment]
            return link(f"/static/{name}")
        return f"/static/{name}?v={asset_version(name)}"

    def render(self, template: str, **context: Any) -> bytes:
        """A page with marks where each reader's own goes."""
        text = self.environment.get_template(template).render(context)
        return text.encode("utf-8", "replace")

    def finish(self, page: bytes, seal: str, theme: str) -> bytes:
        """The page of one reader."""
        return page.replace(self._marks[0], seal.encode()).replace(self._marks[1], theme.encode())


def relative(target: str, here: str) -> str:
    """A link between two files of an exported site, from the folder that holds `here`."""
    path, hash_, fragment = target.partition("#")
    return posixpath.relpath(path, posixpath.dirname(here) or ".") + hash_ + fragment


class PageCache:
    """Finished pages by key, each with the state of the store that it shows. Bounded in number and bytes."""

    def __init__(self, most: int = 2000, most_bytes: int = 64 << 20, stays: float = 60.0) -> None:
        self.most, self.most_bytes, self.stays = most, most_bytes, stays
        self._pages: OrderedDict[Any, tuple[Any, float, bytes]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: Any, state: Any) -> bytes | None:
        """The page, if it shows this state of the store and is young (trending moves with time)."""
        with self._lock:
            found = self._pages.get(key)
            if found is None or found[0] != state or found[1] < time.monotonic():
                return None
            self._pages.move_to_end(key)
            return found[2]

    def put(self, key: Any, state: Any, page: bytes) -> None:
        """Keep a page; the longest unread go."""
        with self._lock:
            old = self._pages.pop(key, None)
            self._bytes += len(page) - (len(old[2]) if old else 0)
            self._pages[key] = (state, time.monotonic() + self.stays, page)
            while len(self._pages) > self.most or self._bytes > self.most_bytes:
                _, (_, _, gone) = self._pages.popitem(last=False)
                self._bytes -= len(gone)
