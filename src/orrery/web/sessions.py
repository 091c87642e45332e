"""Who reads: signed cookies, the token that every form carries, and what `Authorization: Bearer` stands for.

Four cookies, all HttpOnly and SameSite=Lax: `visit` (a random number; forms carry a seal of it, so a page elsewhere cannot
fill them in), `reader` (who signed in), `theme` (the colours chosen), `seen` (when the reader's last visit ended, for NEW).
All but `theme` are sealed with the store's secret.

When somebody looked is kept by their own browser and nowhere else: the journal is for ever, and nobody's hours of reading
belong into it. Only a reader who is known (this machine's user, or signed in) gets the cookie.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Any

from orrery.catalogue import community, record, tokens
from orrery.catalogue.community import Reader
from orrery.core.errors import UnknownNameError
from orrery.web.errors import Refusal
from orrery.web.settings import Settings

if TYPE_CHECKING:
    from orrery.catalogue.store import Store

VISIT, SESSION, THEME, SEEN = "orrery_visit", "orrery_reader", "orrery_theme", "orrery_seen"
STAYS = timedelta(days=30)  # signed in
KEY_STAYS = timedelta(days=365)  # a key of the API
PAUSE = timedelta(minutes=30)  # without a page: the next one begins another visit, to which what came meanwhile is NEW
STEP = timedelta(minutes=1)  # a visit's end is moved on at most so often
THEMES = ("light", "dark")
_LONGEST = 4096


@dataclass
class Visit:
    """One request's reader, the seal of its forms, and the cookies that its answer sets."""

    reader: Reader | None
    number: str
    seal: str
    theme: str
    key: bool = False  # came with a key of the API, not with cookies
    fresh: bool = False  # the visit cookie must be set
    seen: str | None = None  # the second (UTC) at which the reader's last visit ended
    looked: str = ""  # what the `seen` cookie must be set to by a page that shows papers


class Sessions:
    """Reads and writes the cookies of one server."""

    def __init__(self, store: Store, settings: Settings, now: Callable[[], datetime] | None = None) -> None:
        self.store, self.settings, self.now = store, settings, now or _now
        self.secret = tokens.secret(store.folder)
        self.prefix = "__Host-" if settings.secure else ""

    def visit(self, headers: dict[str, str]) -> Visit:
        """What the headers of a request (lower-case names) say of its reader."""
        jar = _jar(headers.get("cookie", ""))
        number = self._read("visit", jar.get(self.prefix + VISIT, ""), timedelta(days=400))
        fresh = not isinstance(number, str)
        if fresh:
            number = tokens.nonce()
        theme = jar.get(self.prefix + THEME, "")
        reader, key = self._reader(jar, headers.get("authorization", ""))
        theme = theme if theme in THEMES else "auto"
        seen, looked = self._seen(jar, reader) if reader is not None and not key else (None, "")
        return Visit(reader, number, self.seal(number, reader), theme, key, fresh, seen, looked)

    def _seen(self, jar: dict[str, str], reader: Reader) -> tuple[str | None, str]:
        """When the last visit of a reader on this browser ended, and the cookie's next value ("": as it is).

        The cookie holds the reader, the end of the last visit, and the last page of this one, as Unix seconds.
        """
        now = int(self.now().timestamp())
        held = self._read("seen", jar.get(self.prefix + SEEN, ""), timedelta(days=400))
        good = isinstance(held, list) and len(held) == 3 and held[0] == reader.id and held[2] <= now
        before, last = (held[1], held[2]) if good else (None, None)
        if last is not None and now - last > PAUSE.total_seconds():
            before, last = last, None
        moved = last is None or now - last >= STEP.total_seconds()
        value = tokens.sign(self.secret, "seen", [reader.id, before, now], _now()) if moved else ""
        return (None if before is None else record.second(datetime.fromtimestamp(before, timezone.utc))), value

    def seal(self, number: str, reader: Reader | None) -> str:
        """What the forms of a visit carry. Signing in or out ends it."""
        text = f"form|{number}|{reader.id if reader else 0}"
        return hmac.new(self.secret, text.encode(), hashlib.sha256).hexdigest()[:40]

    def check(self, visit: Visit, given: str) -> None:
        """Refuse a form that this visit was not given."""
        if not hmac.compare_digest(visit.seal.encode(), given.encode("utf-8", "replace")):
            raise Refusal(403, "This form is not from here or too old; go back, load the page again and repeat it.")

    def _reader(self, jar: dict[str, str], authorization: str) -> tuple[Reader | None, bool]:
        access = self.settings.access
        scheme, _, given = authorization.partition(" ")
        if scheme.lower() == "bearer" and given.strip():
            if access == "token":
                right = hmac.compare_digest(given.strip().encode("utf-8", "replace"), self.settings.token.encode())
                return (self.person(community.OWNER), True) if right else (None, False)
            number = self._read("api", given.strip(), KEY_STAYS)
            return (self.person(number), True) if isinstance(number, int) else (None, False)
        if access == "owner":
            return self.person(community.OWNER), False
        session = self._read("session", jar.get(self.prefix + SESSION, ""), STAYS)
        if not isinstance(session, list) or len(session) != 2 or session[1] != self._stamp():
            return None, False
        return self.person(session[0]), False

    def _stamp(self) -> str:
        """Sessions end when the token of the server changes."""
        return hashlib.sha256(f"{self.settings.access}|{self.settings.token}".encode()).hexdigest()[:12]

    def person(self, number: Any) -> Reader | None:
        """The reader with a number; None when there is none."""
        if not isinstance(number, int):
            return None
        try:
            return community.reader(self.store, number)
        except UnknownNameError:
            return None

    def key(self, reader: Reader) -> str:
        """A key of the API for a reader."""
        return tokens.sign(self.secret, "api", reader.id, _now())

    def cookies(self, visit: Visit) -> list[str]:
        """`Set-Cookie` values that an answer to this visit needs."""
        if not visit.fresh or visit.key:
            return []
        return [self.cookie(VISIT, tokens.sign(self.secret, "visit", visit.number, _now()), timedelta(days=365))]

    def looking(self, visit: Visit) -> list[str]:
        """`Set-Cookie` values of a page on which a reader saw papers: when that was."""
        return [self.cookie(SEEN, visit.looked, timedelta(days=365))] if visit.looked else []

    def signed_in(self, number: int) -> str:
        """`Set-Cookie` for a reader who signed in."""
        return self.cookie(SESSION, tokens.sign(self.secret, "session", [number, self._stamp()], _now()), STAYS)

    def cookie(self, name: str, value: str, stays: timedelta) -> str:
        """One `Set-Cookie` value; without a time to stay it removes the cookie."""
        parts = [
            f"{self.prefix}{name}={value}",
            "Path=/",
            f"Max-Age={int(stays.total_seconds())}",
            "HttpOnly",
            "SameSite=Lax",
        ]
        return "; ".join([*parts, "Secure"] if self.settings.secure else parts)

    def _read(self, purpose: str, value: str, age: timedelta) -> Any:
        if not value:
            return None
        try:
            return tokens.read(self.secret, purpose, value, _now(), age)
        except tokens.TokenError:
            return None


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _jar(header: str) -> dict[str, str]:
    if not header or len(header) > _LONGEST:
        return {}
    try:
        return {name: morsel.value for name, morsel in SimpleCookie(header).items()}
    except CookieError:
        return {}
