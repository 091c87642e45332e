"""How the pages are served: where, to whom, and within which limits."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from orrery.core.errors import ConfigError

ACCESS = ("owner", "token", "readers", "public")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request and one reader may take. Sizes in bytes, times in seconds."""

    body: int = 128 * 1024
    body_seconds: float = 10.0
    header_bytes: int = 32 * 1024
    header_seconds: float = 10.0
    answer_seconds: float = 20.0
    at_once: int = 16  # requests being answered
    queue: int = 512  # requests that wait for that
    queue_seconds: float = 8.0
    connections: int = 2000
    threads: int = 4  # of Python's, for what reads the store
    changes: tuple[int, float] = (60, 60.0)  # votes, picks and the like of one reader: so many in so many seconds
    submissions: tuple[int, float] = (10, 3600.0)
    mails: tuple[int, float] = (5, 3600.0)  # that one visitor may cause to be sent
    tokens: tuple[int, float] = (10, 300.0)  # guesses


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What `orrery serve` was told.

    Args:
        access: "owner": this machine only, its user is reader 1; "token": who knows the token is reader 1;
            "readers": everybody signs in by a mailed link; "public": reading is open, changes need the sign-in.
        url: the address that readers type, for links in mails; its host is allowed.
        hosts: further host names that this server answers to.
        token: for access "token".
        mailer: sends the mails (`orrery.catalogue.mail`); None: sign-in and subscriptions say that mail is not set up.
        moderated: submissions wait for a moderator. None: when others than the owner can submit.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    access: str = "owner"
    url: str = ""
    hosts: tuple[str, ...] = ()
    token: str = ""
    mailer: Any = None
    moderated: bool | None = None
    runs: Path = Path("runs")
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.access not in ACCESS:
            raise ConfigError(f"access '{self.access}' is none of {', '.join(ACCESS)}")
        if self.access == "token" and len(self.token) < 12:
            raise ConfigError("a token has at least 12 characters; leave it out and one is made for you")
        if self.access == "owner" and not is_loopback(self.host):
            raise ConfigError(f"'{self.host}' can be reached by others: give a token or let readers sign in")
        if self.url and (urlsplit(self.url).scheme not in ("http", "https") or not urlsplit(self.url).hostname):
            raise ConfigError(f"'{self.url}' is no address such as https://papers.example.org")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"{self.port} is no port; choose one from 1 to 65535, or 0 for a free one")

    @property
    def base(self) -> str:
        """The address without a slash at its end."""
        if self.url:
            return self.url.rstrip("/")
        host = "127.0.0.1" if self.host in ("", "0.0.0.0", "::") else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def secure(self) -> bool:
        """Readers come by https."""
        return self.url.startswith("https:")

    @property
    def team(self) -> bool:
        """Readers are told apart by their sign-in."""
        return self.access in ("readers", "public")

    @property
    def waits(self) -> bool:
        """Submissions wait for a moderator."""
        return self.team if self.moderated is None else self.moderated

    def allowed_hosts(self) -> frozenset[str]:
        """Host names (no port, lower case) that a request may carry: a page elsewhere that points its name here is refused."""
        found = {"127.0.0.1", "localhost", "::1", *(host.lower() for host in self.hosts)}
        if self.host not in ("", "0.0.0.0", "::"):
            found.add(self.host.lower())
        if self.url:
            found.add((urlsplit(self.url).hostname or "").lower())
        return frozenset(found)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
