"""A store without the shipped papers, and an outbox, for the tests of readers and mail."""

import re
from datetime import datetime, timezone

from orrery.catalogue import mail, shipped
from orrery.catalogue.store import Store

NOW = datetime(2026, 11, 22, 7, tzinfo=timezone.utc)
URL = "https://papers.example.org"
PAPERS = [
    {"title": "Planetary Attention", "arxiv": "2301.00001", "upvotes": 3},
    {"title": "Lunar Recurrence", "doi": "10.1000/moon"},
    {"title": "Solar Convolutions", "url": "https://example.org/sun"},
]


class Outbox:
    """Keeps letters."""

    def __init__(self):
        self.sender, self.letters = mail.parse_sender(mail.SENDER), []

    def send(self, message, ready=lambda: None):
        ready()
        self.letters.append(message)

    def delivered(self, message_id):
        return any(letter["Message-ID"] == message_id for letter in self.letters)

    def close(self):
        pass

    def token(self):
        return re.search(r"token=(\S+)", self.letters[-1].get_body(("plain",)).get_content())[1]


def open_store(tmp_path, monkeypatch):
    """For a fixture: `yield from open_store(...)`."""
    empty = tmp_path / "none.jsonl"
    empty.write_bytes(b"")
    monkeypatch.setattr(shipped, "FILE", empty)
    cached = (shipped._content, shipped.checksum, shipped.papers)
    for each in cached:
        each.cache_clear()
    with Store.open(tmp_path / "store") as opened:
        opened.record("import", {"source": "test", "papers": PAPERS}, at=NOW)
        yield opened
    for each in cached:
        each.cache_clear()
