"""What all routes of one server share, and how their answers are made."""

from __future__ import annotations

import datetime as dt
import json
import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from orrery.catalogue import community, mail, subscriptions, tokens
from orrery.core.errors import ConfigError, CorruptionError, DataError, OrreryError, StorageError, UnknownNameError
from orrery.web.errors import TITLES, Refusal
from orrery.web.limits import Rates
from orrery.web.rendering import PageCache, Renderer
from orrery.web.sessions import Sessions, Visit
from orrery.web.settings import Settings
from orrery.web.views import Views

if TYPE_CHECKING:
    from orrery.catalogue.store import Store

_STATE_SECONDS = 1.0  # somebody else's change is seen this late at most; one's own at once
_FIELDS = 200  # of one form
OPEN_PATHS = ("/static/", "/sign-in", "/subscribe/confirm", "/unsubscribe", "/theme", "/favicon.ico", "/robots.txt")
Page = Callable[["Ask"], Any]
_log = logging.getLogger("orrery.web")


class Ask:
    """One request, as routes see it: its reader, its parameters, its views."""

    def __init__(self, site: Site, request: Request, visit: Visit, form: dict[str, Any] | None = None) -> None:
        self.site, self.request, self.visit, self.form = site, request, visit, form or {}
        self.store, self.settings = site.store, site.settings
        self.at = site.now()
        self.views = Views(site.store, visit.reader.id if visit.reader else None, self.at, str(site.settings.runs), visit.seen)

    @property
    def path(self) -> str:
        """With the question, as links back need it."""
        return self.request.url.path + (f"?{self.request.url.query}" if self.request.url.query else "")

    def text(self, name: str, most: int = 400) -> str:
        """A parameter of the address, trimmed and cut."""
        return self.request.query_params.get(name, "").replace("\0", "").strip()[:most]

    def number(self, name: str, least: int, most: int, default: int) -> int:
        """A whole parameter of the address, kept within its range; what is none is the default."""
        given = self.request.query_params.get(name, "")
        return min(most, max(least, int(given))) if given.isascii() and given.isdigit() and len(given) < 9 else default

    def render(self, template: str, **context: Any) -> bytes:
        """A page with what every page needs."""
        reader = self.visit.reader
        common = {
            "here": self.request.url.path,
            "address": self.path,
            "account": "team" if self.settings.team else "",
            "reader": reader if self.settings.team else None,
            "curator": bool(reader and reader.curates),
            "moderator": bool(reader and reader.curates),
            "counts": self.views.counts(),
        }
        return self.site.renderer.render(template, **{**common, **context})

    def who(self) -> Any:
        """The reader, for a change.

        Raises:
            Refusal: 401, when nobody has signed in.
        """
        if self.visit.reader is None:
            raise Refusal(401, "Sign in first; then it works.")
        return self.visit.reader

    def turn(self, what: str, limit: tuple[int, float], key: Any = None) -> None:
        """Take a turn of a limit, or refuse with the time to wait."""
        client = self.request.client.host if self.request.client else ""
        reader = self.visit.reader
        wait = self.site.rates.wait((what, key or (reader.id if reader else client)), *limit)
        if wait:
            raise Refusal(429, f"That is more than {limit[0]} in {_span(limit[1])}; go on in {_span(wait)}.", wait)


class Site:
    """One server: store, settings, sessions, templates, kept pages, limits."""

    def __init__(self, store: Store, settings: Settings, clock: Callable[[], dt.datetime] | None = None) -> None:
        self.store, self.settings = store, settings
        self.now = clock or (lambda: dt.datetime.now(dt.timezone.utc))
        self.sessions = Sessions(store, settings, self.now)
        self.renderer = Renderer()
        self.cache = PageCache()
        self.rates = Rates()
        self.mail = threading.Lock()  # a mailer keeps one connection
        self._state: tuple[float, Any] = (-1e9, None)
        self._own: dict[int, int] = {}  # how often each reader changed something here

    def state(self, reader: int) -> Any:
        """Changes at once with what this reader does, and soon with what anybody else does."""
        now = time.monotonic()
        if now - self._state[0] > _STATE_SECONDS:
            try:
                row = self.store.connection().execute("SELECT value FROM meta WHERE key = 'journal_seq'").fetchone()
                self._state = (now, row[0] if row else None)
            except sqlite3.Error:
                self._state = (now, object())  # damaged: nothing is kept, and the page's own question mends it
        return self._state[1], self._own.get(reader, 0)

    def touch(self, visit: Visit) -> None:
        """This reader changed something just now."""
        reader = visit.reader.id if visit.reader else 0
        self._own[reader] = self._own.get(reader, 0) + 1

    # ------------------------------------------------------------ routes

    def page(
        self, handler: Page, kind: str = "text/html; charset=utf-8", keep: bool = True
    ) -> Callable[[Request], Any]:
        """A route that reads. The handler returns bytes (a page, kept until the store changes) or a Response."""

        async def endpoint(request: Request) -> Response:
            visit = self.visit(request)
            reader = visit.reader.id if visit.reader else 0
            key, state = (reader, visit.seen, request.url.path, request.url.query), self.state(reader)
            body = self.cache.get(key, state) if keep else None
            if body is None:
                found = await run_in_threadpool(handler, Ask(self, request, visit))
                if isinstance(found, Response):
                    return self.sealed(visit, found)
                body = found
                if keep:
                    self.cache.put(key, state, body)
            found = self.sealed(visit, Response(self.renderer.finish(body, visit.seal, visit.theme), media_type=kind))
            for cookie in self.sessions.looking(visit) if keep and kind.startswith("text/html") else ():
                found.headers.append("set-cookie", cookie)
            return found

        return endpoint

    def form(self, handler: Page, sealed: bool = True) -> Callable[[Request], Any]:
        """A route that changes: reads a form, checks its seal, and answers with a Response or a page (422: it was filled in wrongly)."""

        async def endpoint(request: Request) -> Response:
            visit = self.visit(request)
            form = await read_form(request)
            if sealed and not visit.key:
                self.sessions.check(visit, str(form.get("csrf", "")))
            try:
                found = await run_in_threadpool(handler, Ask(self, request, visit, form))
            except Refusal as refusal:
                if refusal.status != 401 or wants_json(request):
                    raise
                found = RedirectResponse(f"/sign-in?back={quote(local_path(str(form.get('back', '/'))), safe='')}", 303)
            finally:
                self.touch(visit)
            if isinstance(found, bytes):
                page = self.renderer.finish(found, visit.seal, visit.theme)
                found = Response(page, 422, media_type="text/html; charset=utf-8")
            return self.sealed(visit, found)

        return endpoint

    def visit(self, request: Request) -> Visit:
        """The reader of a request; with access by token or sign-in only, nobody else gets further than the door.

        Raises:
            Refusal: 401.
        """
        visit = self.sessions.visit(_headers(request))
        shut = self.settings.access in ("token", "readers") and visit.reader is None
        if shut and not request.url.path.startswith(OPEN_PATHS):
            raise Refusal(401, "This list is for its readers: sign in, or send the token.")
        return visit

    def sealed(self, visit: Visit, response: Response) -> Response:
        """The answer with the cookies that this visit needs."""
        for cookie in self.sessions.cookies(visit):
            response.headers.append("set-cookie", cookie)
        return response

    # ------------------------------------------------------------ refusals

    async def answer(self, scope: Any, receive: Any, send: Any, refusal: Refusal) -> None:
        """Write a refusal: JSON for programs, a page for people, the door for who must sign in."""
        request = Request(scope)
        status, headers = refusal.status, refusal.headers()
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if wants_json(request) or scope["path"].startswith("/api/"):
            body = json.dumps({"error": refusal.sentence}, ensure_ascii=False).encode()
            response = Response(body, status, headers, "application/json")
        elif status == 401 and request.method == "GET":
            response = RedirectResponse(f"/sign-in?back={quote(local_path(request.url.path), safe='')}", 303)
        else:
            try:
                visit = self.sessions.visit(_headers(request))
                ask = Ask(self, request, visit)
                onward = ("To today’s papers", "/")
                shown = {
                    "heading": TITLES.get(status, "This did not work"),
                    "words": refusal.sentence,
                    "onward": onward,
                    "address": "/",
                }
                page = await run_in_threadpool(lambda: ask.render("message.html", **shown))
                response = Response(
                    self.renderer.finish(page, visit.seal, visit.theme), status, headers, "text/html; charset=utf-8"
                )
            except (OrreryError, sqlite3.Error):  # the store itself is in trouble
                response = Response(refusal.sentence + "\n", status, headers, "text/plain; charset=utf-8")
        if refusal.status in (408, 413, 503):
            response.headers["connection"] = "close"
        await response(scope, receive, send)


def _headers(request: Request) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in request.scope["headers"]}


def refusal_of(error: OrreryError) -> Refusal:
    """The status that an error of the house has here."""
    if isinstance(error, Refusal):
        return error
    sentence = str(error)
    sentence = (sentence[:1].upper() + sentence[1:]).rstrip(".") + "."
    if isinstance(error, UnknownNameError):
        return Refusal(404, sentence)
    if isinstance(error, community.NotAllowed):
        return Refusal(403, sentence)
    if isinstance(error, subscriptions.TooMany):
        return Refusal(429, sentence, 3600)
    if isinstance(error, tokens.TokenError):
        return Refusal(400, sentence)
    if isinstance(error, ConfigError | DataError):
        return Refusal(422, sentence)
    if isinstance(error, mail.MailError):
        return Refusal(503, sentence, 600)
    if isinstance(error, StorageError | CorruptionError):
        _log.error("%s", error)
        return Refusal(
            503, "The store cannot be used at the moment; whoever runs this server finds the reason in its log.", 30
        )
    _log.error("%s", error)
    return Refusal(500, sentence)


async def read_form(request: Request) -> dict[str, Any]:
    """Fields of a form; the one that may be there several times (`topics`) is a list.

    Raises:
        Refusal: 415 or 400.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = await request.body()
    if body and kind != "application/x-www-form-urlencoded":
        raise Refusal(415, "Send the form as application/x-www-form-urlencoded.")
    try:
        pairs = parse_qsl(
            body.decode("utf-8"), keep_blank_values=True, max_num_fields=_FIELDS, encoding="utf-8", errors="strict"
        )
    except ValueError:
        raise Refusal(400, "The form is not readable: it is no UTF-8, or has too many fields.") from None
    form: dict[str, Any] = {name: value.replace("\0", "") for name, value in pairs}
    form["topics"] = [value for name, value in pairs if name == "topics"]
    return form


def wants_json(request: Request) -> bool:
    """Whether a program asks."""
    return request.headers.get("accept", "").split(",")[0].strip() == "application/json"


def local_path(path: str) -> str:
    """A path on this server, or `/`: where a form leads back to is not for others to choose."""
    good = (
        path.startswith("/")
        and not path.startswith(("//", "/\\"))
        and "\\" not in path
        and path.isprintable()
        and len(path) < 2000
    )
    return path if good else "/"


def see(path: str) -> Response:
    """After a change: look at this."""
    return RedirectResponse(local_path(path), 303)


def _span(seconds: float) -> str:
    for name, size in (("hour", 3600), ("minute", 60)):
        if seconds >= size:
            number = round(seconds / size)
            return f"{number} {name}{'s' if number > 1 else ''}"
    number = max(1, round(seconds))
    return f"{number} second{'s' if number > 1 else ''}"
