"""Signed tokens for links in mails: what a link may do, for whom, and for how long.

A token is `BODY.SEAL`: BODY is base64url of compact JSON `[payload, seconds]`, SEAL is base64url of
HMAC-SHA256(secret, "orrery" | purpose | BODY) with each part preceded by its length, so that a token for one purpose is
no token for another. The seal is compared in constant time and before anything in the body is believed. A token is not
encrypted: its payload may be read by whoever holds it, so it names a subscription by number, never a secret.

The secret is 32 random bytes in the store's folder (`secret.key`, mode 600), made once; of two processes that make it at
the same moment one wins and both use it. Removing the file ends every link that was mailed.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
import stat
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from orrery.core.errors import CorruptionError, OrreryError, StorageError

FILE = "secret.key"
SECRET_BYTES = 32
LONGEST = 2048  # characters; more is not ours
SKEW = timedelta(minutes=5)  # a token from this far in the future is a clock that differs, from farther a forgery
SHORT = 16  # random bytes of a nonce


class TokenError(OrreryError):
    """A link that is damaged, of another purpose, or forged."""


class ExpiredToken(TokenError):
    """A link that was good once."""


def secret(folder: str | Path) -> bytes:
    """The store's secret, made at the first call.

    Raises:
        CorruptionError: when the file has another length than was written.
        StorageError: when it cannot be written, read, or kept from other users.
    """
    path = Path(folder) / FILE
    try:
        if not path.exists():
            _make(path)
        if os.name != "nt" and stat.S_IMODE(path.stat().st_mode) & 0o077:
            os.chmod(path, 0o600)  # restored from a back-up with another mask
        found = path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot use the secret '{path}': {error.strerror or error}") from error
    if len(found) != SECRET_BYTES:
        raise CorruptionError(f"'{path}' is damaged: {len(found)} bytes instead of {SECRET_BYTES}; remove it to end all old links")
    return found


def _make(path: Path) -> None:
    """Write beside the target and link into place: the file is never seen half-written, nor with a wider mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(SECRET_BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return  # another process was first
        except OSError:  # a disk without links
            if not path.exists():
                os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sign(key: bytes, purpose: str, payload: Any, at: datetime) -> str:
    """A token for `purpose` that carries `payload` (JSON) and the moment `at` (an aware datetime)."""
    text = json.dumps([payload, int(at.timestamp())], separators=(",", ":"), ensure_ascii=True, sort_keys=True)
    body = _encode(text.encode())
    return f"{body}.{_seal(key, purpose, body)}"


def read(key: bytes, purpose: str, token: str, at: datetime, max_age: timedelta) -> Any:
    """The payload of a token that this store signed for `purpose` at most `max_age` ago.

    Raises:
        TokenError: damaged, forged, or of another purpose.
        ExpiredToken: signed longer ago.
    """
    return read_dated(key, purpose, token, at, max_age)[0]


def read_dated(key: bytes, purpose: str, token: str, at: datetime, max_age: timedelta) -> tuple[Any, int]:
    """:func:`read`, with the second (Unix time) at which the token was signed."""
    token = token.strip()
    body, _, seal = token.partition(".")
    genuine = len(token) <= LONGEST and hmac.compare_digest(_seal(key, purpose, body).encode(), seal.encode("utf-8", "replace"))
    if not genuine:
        raise TokenError("this link is not one of ours, or was cut on its way; copy the whole of it, or ask for a new one")
    try:
        payload, issued = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except ValueError as error:  # sealed by us, so only a defect or another version gets here
        raise TokenError("this link is of another version; ask for a new one") from error
    now = at.timestamp()
    if issued > now + SKEW.total_seconds():
        raise TokenError("this link was made in the future; check the clock of the machine that serves it")
    if now - issued > max_age.total_seconds():
        raise ExpiredToken(f"this link has expired (it was good for {_words(max_age)}); ask for a new one")
    return payload, int(issued)


def nonce() -> str:
    """Random text for a token that works once."""
    return _encode(secrets.token_bytes(SHORT))


def _seal(key: bytes, purpose: str, body: str) -> str:
    parts = [part.encode("utf-8", "replace") for part in ("orrery", purpose, body)]
    return _encode(hmac.new(key, b"".join(len(part).to_bytes(4, "big") + part for part in parts), hashlib.sha256).digest())


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _words(age: timedelta) -> str:
    for name, seconds in (("day", 86400), ("hour", 3600), ("minute", 60)):
        number = round(age.total_seconds() / seconds)
        if number >= 1:
            return f"{number} {name}{'s' if number > 1 else ''}"
    return "a moment"
