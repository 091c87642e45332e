"""Asking arXiv and Hugging Face about papers: only when told to, slowly, and never twice for the same answer.

The rules of both services are kept: arXiv's API (info.arxiv.org/help/api/tou.html) asks for one request in three seconds
over one connection, counted here across all processes of this user; the Hugging Face API gets one in a second. Every
request says who asks. Answers are kept on disk (arXiv changes once a day, a day's papers gather votes by the hour) and an
old copy is better than none when the service is away. 429 and 5xx are asked again after a pause that doubles, or as long
as `Retry-After` says. Limits on bytes and seconds hold for an answer that never ends, and a redirect leads nowhere but to
the same host.

What comes back is raw text for the readers of imports (`arXiv Atom`, `Hugging Face papers JSON`), which trust none of it.
"""

from __future__ import annotations

import email.utils
import hashlib
import http.client
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

from orrery.catalogue import keys
from orrery.catalogue.lock import exclusive, note
from orrery.core.errors import ConfigError, OrreryError
from orrery.core.files import cache_dir, read_json, write_bytes, write_json
from orrery.core.version import VERSION

ARXIV = "https://export.arxiv.org/api/query"
HUGGING_FACE = "https://huggingface.co/api"
AGENT = f"orrery-lm/{VERSION} (reading list of a language model bench; one polite reader)"
MAX_BYTES = 16 << 20
SECONDS = 60.0  # for a whole answer
TRIES = 4
LONGEST_PAUSE = 120.0
PER_REQUEST = 100  # ids in one question to arXiv
REDIRECTS = 3
FORGET = 30 * 86400.0  # seconds after which a stored answer is removed


class FetchError(OrreryError):
    """A service did not answer, or answered with something else than was asked for."""


@dataclass(frozen=True)
class Service:
    """How one host wants to be asked."""

    name: str
    base: str
    interval: float  # seconds between two requests
    keep: float  # seconds for which an answer is good


@dataclass(frozen=True)
class Answer:
    """What came back: the text, where from, and whether it is a stored copy (`stale`: one past its time)."""

    body: bytes
    url: str
    fetched: float
    cached: bool = False
    stale: bool = False


def arxiv_service(base: str = ARXIV) -> Service:
    """arXiv: one request in three seconds; answers are good for a day."""
    return Service("arXiv", _base(base), 3.0, 86400.0)


def hugging_face_service(base: str = HUGGING_FACE) -> Service:
    """Hugging Face papers: one request in a second; answers are good for an hour."""
    return Service("Hugging Face", _base(base), 1.0, 3600.0)


def arxiv_id(text: str) -> str:
    """The bare arXiv id of an id, an `arXiv:` reference or an address.

    Raises:
        ConfigError: when there is none.
    """
    found = keys.arxiv_id(text)
    if found is None:
        raise ConfigError(f"'{text.strip()[:60]}' is no arXiv id; one looks like 2405.21060 or cs/0112017")
    return found


class Fetcher:
    """Asks one service.

    Args:
        service: how it wants to be asked.
        folder: where answers and the time of the last request are kept; the cache folder when None.
        refresh: ask even where a stored answer is still good.
        tries, seconds, max_bytes: limits for one answer.
        sleep, now: the clock, for tests.
    """

    def __init__(
        self,
        service: Service,
        folder: str | Path | None = None,
        *,
        refresh: bool = False,
        tries: int = TRIES,
        seconds: float = SECONDS,
        max_bytes: int = MAX_BYTES,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.service, self.refresh = service, refresh
        self.folder = Path(folder) if folder is not None else cache_dir() / "papers"
        self.tries, self.seconds, self.max_bytes = tries, seconds, max_bytes
        self._sleep, self._now = sleep, now
        self._opener = urllib.request.build_opener(_SameHost)
        self.requests = 0

    def papers(self, ids: Sequence[str]) -> list[Answer]:
        """arXiv's entries (Atom) for these ids, a hundred in one question."""
        clean = [arxiv_id(each) for each in ids]
        parts = [clean[begin : begin + PER_REQUEST] for begin in range(0, len(clean), PER_REQUEST)]
        return [self.get("", {"id_list": ",".join(part), "max_results": str(len(part))}) for part in parts]

    def search(self, query: str, limit: int = 50) -> Answer:
        """arXiv's newest entries (Atom) for a query in its own language, such as `cat:cs.CL AND ti:mamba`."""
        if not query.strip():
            raise ConfigError("an empty query asks arXiv for everything; say for instance 'cat:cs.CL AND ti:mamba'")
        if not 1 <= limit <= 2000:
            raise ConfigError(f"arXiv answers 1 to 2000 entries at once, not {limit}")
        question = {"search_query": query, "sortBy": "submittedDate", "sortOrder": "descending", "max_results": str(limit)}
        return self.get("", question)

    def day(self, day: date | None = None) -> Answer:
        """The daily papers (JSON) of one day; of the newest when None."""
        return self.get("/daily_papers", {"date": day.isoformat()} if day else {})

    def paper(self, identifier: str) -> Answer:
        """One paper (JSON) by its arXiv id."""
        return self.get("/papers/" + urllib.parse.quote(arxiv_id(identifier), safe=""), {})

    def get(self, path: str, question: dict[str, str]) -> Answer:
        """One answer: from the folder while it is good, else from the service, else an old copy.

        Raises:
            FetchError: when there is neither; with the reason.
        """
        url = self.service.base + path + ("?" + urllib.parse.urlencode(question) if question else "")
        stored = self._stored(url)
        if stored is not None and not stored.stale and not self.refresh:
            return stored
        try:
            body = self._ask(url)
        except FetchError:
            if stored is None:
                raise
            return stored
        return self._keep(url, body)

    # ------------------------------------------------------------ the stored answers

    def _files(self, url: str) -> tuple[Path, Path]:
        name = hashlib.sha256(url.encode()).hexdigest()[:40]
        return self.folder / f"{name}.body", self.folder / f"{name}.json"

    def _stored(self, url: str) -> Answer | None:
        body_file, facts_file = self._files(url)
        try:
            facts, body = read_json(facts_file), body_file.read_bytes()
            good = facts["url"] == url and facts["sha256"] == hashlib.sha256(body).hexdigest()
            fetched = float(facts["fetched"])
        except (OrreryError, OSError, KeyError, TypeError, ValueError):
            return None  # none, or damaged: asking again mends it
        age = self._now() - fetched
        return Answer(body, url, fetched, cached=True, stale=not 0 <= age < self.service.keep) if good else None

    def _keep(self, url: str, body: bytes) -> Answer:
        body_file, facts_file = self._files(url)
        fetched = self._now()
        with suppress(OrreryError, OSError):  # a full disk: the answer is here all the same
            for old in self.folder.glob("*.*"):
                if old.suffix in (".body", ".json") and fetched - old.stat().st_mtime > FORGET:
                    old.unlink(missing_ok=True)
            write_bytes(body_file, body)
            write_json(facts_file, {"url": url, "fetched": fetched, "sha256": hashlib.sha256(body).hexdigest()})
        return Answer(body, url, fetched)

    # ------------------------------------------------------------ asking

    def _ask(self, url: str) -> bytes:
        """All tries. The lock is held over pause and request: one connection at a time, whichever process asks."""
        host = re.sub(r"[^a-z0-9.-]+", "_", urllib.parse.urlsplit(url).netloc.lower())
        busy = f"other requests to {self.service.name} are under way since minutes; try again later"
        with exclusive(self.folder / f".{host}.last", LONGEST_PAUSE * 2, busy) as turn:
            pause, why = 0.0, ""
            for attempt in range(self.tries):
                self._wait(turn, pause)
                self.requests += 1
                try:
                    return self._once(url)
                except _Later as later:
                    why = str(later)
                    pause = later.pause if later.pause is not None else self.service.interval * 2 ** (attempt + 1)
                    if pause > LONGEST_PAUSE:
                        raise FetchError(f"{self.service.name} asks to wait {pause:.0f} s ({why}); try again then") from None
                finally:
                    note(turn, repr(self._now()))
        raise FetchError(f"{self.service.name} did not answer {self.tries} requests ({why}); try again later")

    def _wait(self, turn: Any, pause: float) -> None:
        turn.seek(0)
        try:
            last = float(turn.read(40))
        except ValueError:
            last = 0.0
        since = self._now() - last
        rest = self.service.interval - since if 0 <= since else self.service.interval  # a clock that was set back
        if (rest := max(rest, pause)) > 0:
            self._sleep(rest)
        note(turn, repr(self._now()))  # before the request too: it counts even if we are killed in it

    def _once(self, url: str) -> bytes:
        request = urllib.request.Request(url, headers={"User-Agent": AGENT, "Accept-Encoding": "identity"})
        until = time.monotonic() + self.seconds
        try:
            with self._opener.open(request, timeout=min(20.0, self.seconds)) as reply:
                return self._read(reply, until)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 429 or error.code >= 500:
                    raise _Later(f"status {error.code}", _retry_after(error.headers.get("Retry-After"), self._now())) from error
                if 300 <= error.code < 400:
                    raise FetchError(f"{self.service.name} redirects to another place, which is not followed") from error
                raise FetchError(f"{self.service.name} answers status {error.code} to {url}") from error
        except TimeoutError as error:
            raise _Later("no answer in time", None) from error
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            raise _Later(f"no connection: {getattr(error, 'reason', error)}", None) from error

    def _read(self, reply: Any, until: float) -> bytes:
        """At most `max_bytes` before `until`, however slowly the bytes drip."""
        kept = bytearray()
        while piece := reply.read1(1 << 16):
            kept += piece
            if len(kept) > self.max_bytes:
                raise FetchError(f"{self.service.name} sent more than {self.max_bytes / 1e6:.0f} MB for one question")
            if time.monotonic() > until:
                raise _Later(f"its answer was not whole after {self.seconds:.0f} s", None)
        told = reply.headers.get("Content-Length", "")
        if told.isdigit() and int(told) != len(kept):
            raise _Later(f"its answer broke off after {len(kept)} of {told} bytes", None)
        return bytes(kept)


class _Later(Exception):
    """A failure that another try may mend; never leaves this module."""

    def __init__(self, why: str, pause: float | None) -> None:
        super().__init__(why)
        self.pause = pause


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Follows a redirect within its host (and never from https to http); any other becomes the error that it is."""

    max_redirections = REDIRECTS

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> Any:
        """The next request, or None, which makes urllib raise the redirect as an error."""
        here, there = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if there.netloc.lower() != here.netloc.lower() or there.scheme not in (here.scheme, "https"):
            return None
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _base(base: str) -> str:
    parts = urllib.parse.urlsplit(base)
    local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    if parts.scheme != "https" and not (parts.scheme == "http" and local):
        raise ConfigError(f"'{base[:80]}' is no https address")
    if not parts.hostname or parts.query or parts.fragment or parts.username:
        raise ConfigError(f"'{base[:80]}' is no base address: a host and a path, nothing else")
    return base.rstrip("/")


def _retry_after(text: str | None, now: float) -> float | None:
    """Seconds of a Retry-After header: a number, or a date."""
    if not text:
        return None
    if text.strip().isdigit():
        return float(text)
    try:
        then: datetime = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    if then.tzinfo is None:
        then = then.replace(tzinfo=timezone.utc)
    return max(0.0, then.timestamp() - now)

