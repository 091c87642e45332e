"""What the tests of the pages share: hostile papers, forms as a browser fills them in, mails of a local mailbox."""

from __future__ import annotations

import re
import socket
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

BASE = "http://127.0.0.1:8765"
HOSTILE = "</p><script>window.stolen = 1</script><img src=x onerror='window.stolen = 2'> {{ 1234*7 }} javascript:alert(1) \"quoted\" & 'so on'"
OUTSIDE = (
    {
        "title": "A Measured Paper on <b>Orbits</b> & Attention",
        "arxiv": "2601.00001",
        "abstract": HOSTILE,
        "authors": ["Ada <i>Lovelace</i>", "Émilie du Châtelet", *[f"Author {n}" for n in range(9)]],
        "date": "2026-01-02",
        "year": 2026,
        "upvotes": 12,
        "url": "https://example.org/\"onmouseover='x",
    },
    {"title": "Mamba of the Long Night", "arxiv": "2601.00002", "abstract": "State space models at night. " * 60, "year": 2026},
)


def seal(client: Any, path: str = "/about") -> str:
    """The token that forms of a visit carry, taken from a page as a browser does."""
    return client.get(path, follow_redirects=True).text.split('name="csrf" value="')[1].split('"')[0]


def raw(server: Any, data: bytes, wait: float = 10.0) -> bytes:
    """Bytes as they are, and whatever comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", server.settings.port), timeout=wait) as connection:
        connection.sendall(data)
        found = b""
        while piece := connection.recv(65536):
            found += piece
    return found


def letters(folder: Path) -> list[Any]:
    files = sorted(folder.glob("*.eml"), key=lambda file: file.stat().st_mtime_ns)
    return [message_from_bytes(file.read_bytes(), policy=policy.default) for file in files]


def link_of(letter: Any) -> str:
    """The path and question of the first link of a mail that carries a token."""
    text = letter.get_body(("plain",)).get_content()
    return str(re.search(r"https?://[^/\s]+(/\S*\?token=\S+)", text)[1])  # type: ignore[index]
