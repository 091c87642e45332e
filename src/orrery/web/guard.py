"""What stands before every request: the host it names, where it comes from, how much it may send, take and wait.

A plain ASGI wrapper. Refusals are sentences, as a page or as JSON. Every answer leaves with a policy that allows this
server's own style, script and pictures and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from orrery.web.errors import DEFECT, Refusal
from orrery.web.settings import Limits, Settings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Answer = Callable[[Any, Receive, Send, Refusal], Awaitable[None]]

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),  # with none, browsers would send `Origin: null` with our own forms
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
)
METHODS = {
    "GET",
    "HEAD",
    "POST",
    "DELETE",
    "PUT",
    "PATCH",
    "OPTIONS",
    "TRACE",
}  # known; routes answer 405 to those they lack
READING = {"GET", "HEAD", "OPTIONS", "TRACE"}
LONGEST_TARGET = 8 * 1024
_log = logging.getLogger("orrery.web")


class Guard:
    """Wraps an application.

    Args:
        app: the application.
        settings: hosts and limits.
        answer: writes a refusal as an answer.
    """

    def __init__(self, app: Any, settings: Settings, answer: Answer) -> None:
        self.app, self.limits, self.answer = app, settings.limits, answer
        self.hosts = settings.allowed_hosts()
        self.secure = settings.secure
        self.places = asyncio.Semaphore(settings.limits.at_once)
        self.waiting = 0

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """One request, or the application's start and end."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # a web socket: there is none here
            await send({"type": "websocket.close", "code": 1008})
            return
        outgoing = _Outgoing(send, self.secure)
        try:
            self._look(scope)
            outgoing.body = body = _Body(receive, self.limits, _length(scope, self.limits))
            await self._in_turn(scope, body, outgoing)
            if body.refusal is not None:
                raise body.refusal
        except Refusal as refusal:
            outgoing.refusing = True
            if not outgoing.started:
                await self.answer(scope, receive, outgoing, refusal)
        except Exception:  # noqa: BLE001  a defect of any kind is logged, and answered with a sentence
            _log.exception("%s %s", scope["method"], scope["path"])
            if not outgoing.started:
                await self.answer(scope, receive, outgoing, Refusal(500, DEFECT))

    async def _in_turn(self, scope: Any, body: _Body, outgoing: _Outgoing) -> None:
        """Wait for a place, then answer in time."""
        if self.places.locked():
            if self.waiting >= self.limits.queue:
                raise Refusal(503, "More readers are waiting than this server can hold; try again in a moment.", 2)
            self.waiting += 1
            try:
                await asyncio.wait_for(self.places.acquire(), self.limits.queue_seconds)
            except asyncio.TimeoutError:
                raise Refusal(503, "The server is busy with other readers; try again in a moment.", 2) from None
            finally:
                self.waiting -= 1
        else:
            await self.places.acquire()
        try:
            await asyncio.wait_for(self.app(scope, body, outgoing), self.limits.answer_seconds)
        except asyncio.TimeoutError:
            raise Refusal(
                503,
                f"The answer took longer than {self.limits.answer_seconds:.0f} seconds; ask for less or try again.",
                5,
            ) from None
        finally:
            self.places.release()

    def _look(self, scope: Any) -> None:
        """Hosts, origins and the form of the request itself."""
        if scope["method"] not in METHODS:
            raise Refusal(405, "This method is not used here.")
        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > LONGEST_TARGET:
            raise Refusal(414, f"The address is longer than {LONGEST_TARGET:,} characters; shorten the question.")
        headers = scope["headers"]
        hosts = [value for name, value in headers if name == b"host"]
        if len(hosts) != 1 or _name(hosts[0]) not in self.hosts:
            raise Refusal(
                421, "This server does not go by that name; if it should, start it with --url or --allow-host."
            )
        if sum(len(name) + len(value) for name, value in headers) > self.limits.header_bytes:
            raise Refusal(431, "The request's head is too long.")
        if any(ord(char) < 32 or ord(char) == 127 for char in scope["path"]):
            raise Refusal(404, "No page has such an address.")
        if scope["method"] not in READING:
            self._origin(headers, hosts[0])

    def _origin(self, headers: list[tuple[bytes, bytes]], host: bytes) -> None:
        """A change must come from a page of ours, or from no page at all."""
        given = dict(headers)
        origin = given.get(b"origin")
        if origin is not None:
            parts = urlsplit(origin.decode("latin-1"))
            if parts.scheme not in ("http", "https") or parts.netloc.lower() != host.decode("latin-1").lower():
                raise Refusal(403, "Changes are accepted from pages of this server only.")
        elif given.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin"):
            raise Refusal(403, "Changes are accepted from pages of this server only.")


def _name(host: bytes) -> str:
    """The host's name without its port; empty when it is malformed."""
    try:
        parts = urlsplit("//" + host.decode("ascii"))
        if parts.username is not None or parts.path or parts.query or parts.fragment:
            return ""
        parts.port  # noqa: B018  raises when it is no number
        return (parts.hostname or "").rstrip(".")
    except ValueError:
        return ""


def _length(scope: Any, limits: Limits) -> int | None:
    lengths = {value for name, value in scope["headers"] if name == b"content-length"}
    if not lengths:
        return None
    text = lengths.pop()
    if lengths or not text.isdigit():
        raise Refusal(400, "The request contradicts itself about its length.")
    if int(text) > limits.body:
        raise _too_large(limits)
    return int(text)


def _too_large(limits: Limits) -> Refusal:
    return Refusal(
        413,
        f"At most {limits.body // 1024} KiB can be sent at once; larger listings are read by `orrery papers import FILE`.",
    )


class _Body:
    """`receive` that counts bytes, chunked ones too, and seconds."""

    def __init__(self, receive: Receive, limits: Limits, length: int | None) -> None:
        self.receive, self.limits, self.length = receive, limits, length
        self.count, self.whole, self.until = 0, False, 0.0
        self.refusal: Refusal | None = None  # kept, since the framework answers a failed read with words of its own

    async def __call__(self) -> Message:
        """The next piece of the body; after its end, the wait for the reader to leave."""
        if self.whole:
            return await self.receive()
        if not self.until:
            self.until = time.monotonic() + self.limits.body_seconds
        try:
            message = await asyncio.wait_for(self.receive(), max(0.0, self.until - time.monotonic()))
        except asyncio.TimeoutError:
            sentence = f"The request did not arrive within {self.limits.body_seconds:.0f} seconds; send it again."
            self.refusal = Refusal(408, sentence)
            raise self.refusal from None
        if message["type"] == "http.request":
            self.count += len(message.get("body", b""))
            self.whole = not message.get("more_body", False)
            if self.count > self.limits.body:
                self.refusal = _too_large(self.limits)
                raise self.refusal
        return message


class _Outgoing:
    """`send` that adds the headers of every answer."""

    def __init__(self, send: Send, secure: bool) -> None:
        self.send, self.secure, self.started = send, secure, False
        self.body: _Body | None = None
        self.refusing = False

    async def __call__(self, message: Message) -> None:
        """One message of the answer; what the framework says of a refused body is dropped for what the guard says."""
        if not self.started and self.body is not None and self.body.refusal is not None and not self.refusing:
            return
        if message["type"] == "http.response.start":
            self.started = True
            headers = list(message.get("headers", ()))
            present = {name.lower() for name, _ in headers}
            headers += [pair for pair in HEADERS if pair[0] not in present]
            if b"cache-control" not in present:
                headers.append((b"cache-control", b"private, no-cache"))
            if self.secure:
                headers.append((b"strict-transport-security", b"max-age=31536000"))
            message = {**message, "headers": headers}
        await self.send(message)
