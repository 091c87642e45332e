"""A local SMTP server for tests: keeps what it takes, and fails where it is told to."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import time
from contextlib import contextmanager

import pytest

aiosmtpd = pytest.importorskip("aiosmtpd.controller")
from aiosmtpd.smtp import AuthResult  # noqa: E402


class Keeper:
    """Takes letters. `dies_after`: letters after which the connection is cut at the next DATA (at the place `dies`)."""

    def __init__(self, dies_after=None, dies="data", refuse=(), later=(), slow=0.0):
        self.letters, self.holding = [], False
        self.dies_after, self.dies, self.refuse, self.later, self.slow = dies_after, dies, dict(refuse), set(later), slow

    @property
    def receivers(self):
        return [to for _, to, _ in self.letters]

    def _dead(self):
        return self.dies_after is not None and len(self.letters) >= self.dies_after

    def _cut(self, server):
        server.transport.abort()
        raise asyncio.CancelledError

    async def handle_MAIL(self, server, session, envelope, address, options):
        if self._dead() and self.dies == "mail":
            self._cut(server)
        if address.startswith("nobody@"):
            return "550 5.7.1 you may not send"
        envelope.mail_from = address
        return "250 OK"

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address in self.refuse:
            return self.refuse[address]
        if address in self.later:
            return "451 4.7.1 greylisted, try again"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        if self.slow:
            self.holding = True
            await asyncio.sleep(self.slow)
        if self._dead() and self.dies == "data":
            self._cut(server)
        self.letters.append((envelope.mail_from, envelope.rcpt_tos[0], envelope.content))
        if self._dead() and self.dies == "answer":
            self._cut(server)
        return "250 taken"


class Controller(aiosmtpd.Controller):
    """On any free port of this machine."""

    def __init__(self, keeper, **options):
        super().__init__(keeper, hostname="127.0.0.1", port=0, **options)

    def _trigger_server(self):  # asks for the port, which is known only now
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


@contextmanager
def serving(keeper, **options):
    controller = Controller(keeper, **options)
    controller.start()
    try:
        yield controller
    finally:
        controller.stop()


def passwords(server, session, envelope, mechanism, data):
    known = data.login == b"papers" and data.password == b"moon"
    return AuthResult(success=known, handled=False)


def certificate(folder):
    """A certificate for 127.0.0.1 that signs itself, and a context that shows it."""
    pem, key = folder / "cert.pem", folder / "key.pem"
    try:
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
             "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", pem],
            check=True, capture_output=True, timeout=30,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no openssl to make a certificate with")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key)
    return str(pem), context


def wait_for(condition, seconds=10.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.01)
