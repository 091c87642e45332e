"""A small HTTP/1.1 server for :class:`orrery.ngram.service.Service`: nothing but the interpreter's own library.

    POST /     a request, answered in JSON; errors are {"error": sentence} with a status
    GET  /     the names of the indexes

A count takes the engine microseconds, so what a general server does around it would be nearly all of the time. This one
reads a request with a declared length and writes an answer; it knows no other feature of HTTP, and refuses what it does
not know: chunked bodies, two lengths, heads above 16 KiB. Queries of microseconds are answered in the loop, others in
threads, of which there are few. Slow senders and slow readers lose their connection.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from orrery.core.errors import ConfigError
from orrery.ngram.service import Refused, Service, encode

_HEAD = 16 << 10  # bytes of a head
_SENDING = 10.0  # seconds that a request may take to arrive, and an answer to be read
_IDLE = 75.0  # seconds that a connection is kept without a request
_LINGER = 0.5  # seconds that a refused connection may go on sending
_LOOK = 2.0  # seconds between looks at whether an index was built anew
_REASONS = {
    200: "OK", 400: "Bad Request", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed", 411: "Length Required",
    413: "Content Too Large", 429: "Too Many Requests", 431: "Request Header Fields Too Large", 500: "Internal Server Error",
    501: "Not Implemented", 503: "Service Unavailable",
}  # fmt: skip
_log = logging.getLogger("orrery.ngram")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A bound socket.

    Raises:
        ConfigError: the address is in use, or not this machine's.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"{port} is no port; choose one from 1 to 65535, or 0 for a free one")
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    if sys.platform != "win32":
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host.strip("[]"), port))
        bound.listen(1024)
    except (OSError, UnicodeError) as error:
        bound.close()
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot listen on {host}:{port}: {why}; choose another with --host and --port") from error
    return bound


class Connection(asyncio.Protocol):
    """One connection: requests one after the other."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.buffer = bytearray()
        self.deadline = time.monotonic() + _SENDING
        self.busy = self.blocked = self.told = self.refused = False
        self.peer = ""
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        """Somebody is there; one too many is told so."""
        self.transport = transport
        peer = transport.get_extra_info("peername")
        self.peer = str(peer[0]) if peer else ""
        if len(self.server.connections) >= self.server.service.limits.connections:
            self.refused = True
            self._send(503, {"error": "too many connections are open; try again in a moment"}, close=True)
            return
        self.server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The end."""
        self.server.connections.discard(self)

    def pause_writing(self) -> None:
        """The reader does not keep up: nothing more is answered until it does."""
        self.blocked = True
        self.deadline = time.monotonic() + _SENDING

    def resume_writing(self) -> None:
        """It does again."""
        self.blocked = False
        self._advance()

    def data_received(self, data: bytes) -> None:
        """A part of a request, or several of them."""
        if self.refused or self.transport.is_closing():
            return
        if not self.buffer and not self.busy:
            self.deadline = time.monotonic() + _SENDING
        self.buffer += data
        if len(self.buffer) > 2 * (_HEAD + self.server.service.limits.body_bytes):
            self.transport.pause_reading()  # requests sent ahead of their answers wait where they are
        self._advance()

    def _advance(self) -> None:
        """Answer the requests that have arrived whole."""
        while self.buffer and not (self.busy or self.blocked or self.transport.is_closing()):
            end = self.buffer.find(b"\r\n\r\n", 0, _HEAD)
            if end < 0:
                if len(self.buffer) >= _HEAD:
                    self._send(431, {"error": f"the head of a request may have {_HEAD} bytes"}, close=True)
                return
            try:
                method, path, headers, keep = _head(bytes(self.buffer[:end]))
                length = _length(method, headers, self.server.service.limits.body_bytes)
                self.server.check_host(headers)
            except Refused as refused:
                self._send(refused.status, {"error": str(refused)}, close=True)
                return
            if len(self.buffer) < end + 4 + length:
                if headers.get(b"expect", b"").lower() == b"100-continue" and not self.told:
                    self.told = True
                    self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                return
            body = bytes(self.buffer[end + 4 : end + 4 + length])
            del self.buffer[: end + 4 + length]
            self.told = False
            self.transport.resume_reading()
            self._answer(method, path, body, keep)

    def _answer(self, method: bytes, path: bytes, body: bytes, keep: bool) -> None:
        service = self.server.service
        try:
            if method in (b"GET", b"HEAD"):
                if path != b"/":
                    raise Refused(404, "there is nothing; requests are sent to / by POST")
                self._send(200, service.names(), close=not keep, bare=method == b"HEAD")
                return
            if method != b"POST":
                raise Refused(405, "this service answers POST, and GET / with the names of its indexes")
            request = service.parse(body)
            if service.quick(request):
                self._send(200, service.respond(request), close=not keep)
                return
            self.server.admit(self.peer)
        except Refused as refused:
            self._send(refused.status, {"error": str(refused)}, close=not keep)
        except Exception:  # noqa: BLE001 - a defect of ours must not take the service down
            self._failed(keep)
        else:
            self.busy = True
            task = self.server.loop.create_task(self._work(request, keep))
            self.server.tasks.add(task)
            task.add_done_callback(self.server.tasks.discard)

    async def _work(self, request: dict[str, Any], keep: bool) -> None:
        """Answer in a thread, or say that it takes too long; the thread goes on and keeps its place until it is done."""
        limits = self.server.service.limits
        future = self.server.pool.submit(self.server.service.respond, request)
        future.add_done_callback(lambda _: self.server.loop.call_soon_threadsafe(self.server.release, self.peer))
        try:
            data = await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(future)), limits.seconds)
            self._send(200, data, close=not keep)
        except asyncio.TimeoutError:
            future.cancel()
            sentence = f"the answer takes longer than {limits.seconds:g} seconds; ask for less, or later"
            self._send(503, {"error": sentence}, close=True)
        except Refused as refused:
            self._send(refused.status, {"error": str(refused)}, close=not keep)
        except asyncio.CancelledError:
            raise
        except Exception:  # noqa: BLE001
            self._failed(keep)
        finally:
            self.busy = False
        self._advance()

    def _failed(self, keep: bool) -> None:
        _log.exception("a request could not be answered")
        self._send(500, {"error": "the service failed at this request; its log says why"}, close=not keep)

    def _send(self, status: int, value: Any, close: bool = False, bare: bool = False) -> None:
        if self.transport.is_closing():
            return
        data = value if type(value) is bytes else encode(value)
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
            f"Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"
            f"{'Retry-After: 1' + chr(13) + chr(10) if status in (429, 503) else ''}{'Connection: close' + chr(13) + chr(10) if close else ''}\r\n"
        ).encode()
        self.transport.write(head if bare else head + data)
        self.deadline = time.monotonic() + (_SENDING if self.blocked else _IDLE)
        if self.refused:  # closed at once, what the other side is still sending would reset the line before the answer is read
            self.transport.write_eof()
            self.server.loop.call_later(_LINGER, self.transport.close)
        elif close:
            self.transport.close()

    def late(self, now: float) -> bool:
        """Whether this connection has had its time; a request that is being worked at has time of its own."""
        return now > self.deadline and not self.busy


def _head(data: bytes) -> tuple[bytes, bytes, dict[bytes, bytes], bool]:
    """Method, path, headers by lower-case name, and whether the connection is kept.

    Raises:
        Refused: it is no head of HTTP/1.
    """
    lines = data.split(b"\r\n")
    parts = lines[0].split(b" ")
    if len(parts) != 3 or parts[2] not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise Refused(400, "the request line is not that of HTTP/1.1")
    headers: dict[bytes, bytes] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        key = name.lower()
        if not colon or not name or name != name.strip() or b"\0" in line or b"\n" in line or b"\r" in line:
            raise Refused(400, "a header line is malformed")
        if key in headers and key in (b"content-length", b"host", b"transfer-encoding"):
            raise Refused(400, f"the header {key.decode('latin-1')} is given twice")
        headers[key] = value.strip()
    connection = headers.get(b"connection", b"").lower()
    keep = connection != b"close" if parts[2] == b"HTTP/1.1" else connection == b"keep-alive"
    return parts[0], parts[1].partition(b"?")[0], headers, keep


def _length(method: bytes, headers: dict[bytes, bytes], most: int) -> int:
    """Bytes of the body.

    Raises:
        Refused: it is too large, or its size is not said.
    """
    if b"transfer-encoding" in headers:
        raise Refused(501, "bodies in chunks are not read; send a Content-Length")
    given = headers.get(b"content-length")
    if given is None:
        if method == b"POST":
            raise Refused(411, "a request by POST needs a Content-Length")
        return 0
    if not given.isdigit() or len(given) > 18:
        raise Refused(400, "the Content-Length is no number")
    if int(given) > most:
        raise Refused(413, f"the request has {int(given):,} bytes; at most {most:,} are read")
    return int(given)


class Server:
    """The loop around a service.

    Args:
        hosts: host names to answer to. A service on a loopback address otherwise answers to those of this machine only, so
            that no web page can reach it under a name of its own; on another address, to all.
    """

    def __init__(self, service: Service, host: str = "127.0.0.1", port: int = 8766, hosts: tuple[str, ...] = ()) -> None:
        self.service = service
        self.socket = listen(host, port)
        self.host, self.port = host, int(self.socket.getsockname()[1])
        self.hosts = {name.lower() for name in hosts}
        if is_loopback(host):
            self.hosts |= {"localhost", "127.0.0.1", "::1", host.lower().strip("[]")}
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.pool = ThreadPoolExecutor(service.limits.threads, thread_name_prefix="orrery-ngram-http")
        self._waiting: Counter[str] = Counter()
        self._stop: asyncio.Event | None = None
        self.loop: asyncio.AbstractEventLoop

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def check_host(self, headers: dict[bytes, bytes]) -> None:
        """Refuse a name that is not ours.

        Raises:
            Refused: it is not.
        """
        if not self.hosts:
            return
        given = headers.get(b"host", b"").decode("latin-1").lower()
        name = given[1:].partition("]")[0] if given.startswith("[") else given.partition(":")[0]
        if name not in self.hosts:
            raise Refused(403, f"this service does not answer to the name '{name[:80]}'; --allow-host adds one")

    def admit(self, peer: str) -> None:
        """Take a place in the queue.

        Raises:
            Refused: there is none.
        """
        limits = self.service.limits
        if self._waiting[peer] >= limits.per_sender:
            raise Refused(429, f"{limits.per_sender} requests of yours are being answered; wait for one of them")
        if self._waiting.total() >= limits.waiting:
            raise Refused(503, "the service is busy; try again in a moment")
        self._waiting[peer] += 1

    def release(self, peer: str) -> None:
        """Give it back."""
        self._waiting[peer] -= 1
        if self._waiting[peer] <= 0:
            del self._waiting[peer]

    def run(self, ready: Callable[[Server], None] | None = None, signals: bool = True) -> None:
        """Serve until :meth:`stop`, an interrupt or a termination signal."""
        try:
            asyncio.run(self._main(ready, signals))
        finally:
            self.socket.close()
            self.pool.shutdown(wait=False, cancel_futures=True)

    def stop(self) -> None:
        """End, from any thread."""
        if self._stop is not None:
            with suppress(RuntimeError):  # it has ended
                self.loop.call_soon_threadsafe(self._stop.set)

    async def _main(self, ready: Callable[[Server], None] | None, signals: bool) -> None:
        self.loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        if signals and sys.platform != "win32":
            for number in (signal.SIGINT, signal.SIGTERM):
                self.loop.add_signal_handler(number, self._stop.set)
        server = await self.loop.create_server(lambda: Connection(self), sock=self.socket)
        if ready is not None:
            ready(self)
        next_look = time.monotonic() + _LOOK
        async with server:
            while not self._stop.is_set():
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), 0.5)
                now = time.monotonic()
                for connection in [each for each in self.connections if each.late(now)]:
                    connection.transport.abort()
                if now > next_look:
                    await self.loop.run_in_executor(None, self.service.refresh)
                    next_look = time.monotonic() + _LOOK
            for connection in list(self.connections):
                connection.transport.close()


class Background:
    """A server in a thread: for tests, measurements and notebooks.

    Example:
        with Background(Service({"a": index})) as server: Remote(server.url + "/a")
    """

    def __init__(self, service: Service, host: str = "127.0.0.1", port: int = 0) -> None:
        self.server = Server(service, host, port)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self.server.run, args=(lambda _: self._ready.set(), False), daemon=True)

    @property
    def url(self) -> str:
        """Where it answers."""
        return self.server.url

    def __enter__(self) -> Background:
        self._thread.start()
        if not self._ready.wait(10):
            raise ConfigError("the service did not start within 10 seconds")
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stop()
        self._thread.join(10)
