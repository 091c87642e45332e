"""The process that serves: one socket, one loop, slow senders cut off, an address printed when it answers."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from orrery.catalogue import search
from orrery.core.errors import ConfigError
from orrery.web.app import create_app
from orrery.web.settings import Settings

if TYPE_CHECKING:
    from orrery.catalogue.store import Store


class TimedProtocol(H11Protocol):
    """HTTP whose head must arrive within `header_seconds`: a sender of one byte a minute holds no connection."""

    header_seconds = 10.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A connection begins, and with it the time for its first head."""
        super().connection_made(transport)
        self._arm()

    def data_received(self, data: bytes) -> None:
        """Bytes came; the timer ends when they complete a head and begins with the first byte of the next."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._disarm()
        elif self._timer is None:
            self._arm()

    def on_response_complete(self) -> None:
        """The beginning of a next head may have come with the last one."""
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0] and self._timer is None:
            self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end."""
        self._disarm()
        super().connection_lost(exc)

    def _arm(self) -> None:
        self._timer = self.loop.call_later(self.header_seconds, self._give_up)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.close()


def listen(settings: Settings) -> tuple[socket.socket, Settings]:
    """A bound socket, and the settings with the port that it has.

    Raises:
        ConfigError: the address is in use, not this machine's, or not allowed.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # The protocol is named: only then does asyncio turn off Nagle's algorithm, which costs 40 ms an answer on kept connections.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((settings.host.strip("[]"), settings.port))
    except (OSError, UnicodeError) as error:
        bound.close()
        why = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"cannot listen on {settings.host}:{settings.port}: {why}; choose another with --host and --port"
        ) from error
    bound.listen(1024)
    return bound, replace(settings, port=bound.getsockname()[1])


def serve(store: Store, settings: Settings, ready: Callable[[Settings], None] | None = None) -> None:
    """Serve until interrupted.

    Args:
        ready: called once the server answers, with the settings as they are (the port is known then).
    """
    bound, settings = listen(settings)
    search.prepare(store)  # now rather than under the first readers: a stale index of 100,000 papers takes many seconds
    server = uvicorn.Server(_config(store, settings))
    if ready is not None:
        threading.Thread(target=_tell, args=(server, settings, ready), daemon=True).start()
    try:
        server.run(sockets=[bound])
    finally:
        bound.close()


def _tell(server: uvicorn.Server, settings: Settings, ready: Callable[[Settings], None]) -> None:
    waiting = threading.Event()
    while not server.started and not server.should_exit:
        waiting.wait(0.02)
    if server.started:
        ready(settings)


def _config(store: Store, settings: Settings) -> uvicorn.Config:
    limits = settings.limits
    protocol = type("Protocol", (TimedProtocol,), {"header_seconds": limits.header_seconds})
    logging.getLogger("orrery.web").addHandler(logging.StreamHandler())
    return uvicorn.Config(
        create_app(store, settings),
        http=protocol,
        ws="none",
        loop="asyncio",
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=True,
        proxy_headers=False,  # an address that a stranger can write is no address
        timeout_keep_alive=15,
        timeout_graceful_shutdown=5,
        limit_concurrency=limits.connections,
        h11_max_incomplete_event_size=limits.header_bytes,
    )


class Background:
    """A server in a thread: for tests and for measuring.

    Example:
        with Background(store, Settings(port=0)) as server: urlopen(server.url)
    """

    def __init__(self, store: Store, settings: Settings) -> None:
        self.bound, self.settings = listen(settings)
        self.server = uvicorn.Server(_config(store, self.settings))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.bound]}, daemon=True)

    @property
    def url(self) -> str:
        """Where it answers."""
        return self.settings.base

    def __enter__(self) -> Background:
        self.thread.start()
        waiting = threading.Event()
        for _ in range(500):
            if self.server.started:
                return self
            waiting.wait(0.02)
        raise ConfigError("the server did not start within 10 seconds")

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join(15)
        self.bound.close()
