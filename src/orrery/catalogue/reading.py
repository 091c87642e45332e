"""What readers of every format share: what they yield, and text taken out of markup."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from orrery.catalogue import keys


@dataclass(frozen=True)
class Found:
    """A record and the line that it begins on; its fields are those of :mod:`orrery.catalogue.record`, not yet clean."""

    line: int
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Refused:
    """Something at a line that is no record, and why."""

    line: int
    why: str


Records = Iterator[Found | Refused]


class Lines:
    """Line numbers of growing offsets into a text, counted once."""

    def __init__(self, text: str) -> None:
        self.text, self.offset, self.line = text, 0, 1

    def at(self, offset: int) -> int:
        """The line of an offset that is not before the one asked for last."""
        self.line += self.text.count("\n", self.offset, offset)
        self.offset = max(self.offset, offset)
        return self.line


def without_tags(text: str) -> str:
    """Text of a piece of HTML or JATS; plain text with a stray `<` comes back as it is."""
    if "<" not in text and "&" not in text:
        return text
    text = re.sub(r"(?is)<(script|style)\b.*?</\1\s*>", " ", text)
    text = re.sub(r"(?i)</?(?:p|br|div|li|jats:p|jats:title|title)\b[^<>]*>", " ", text)
    text = re.sub(r"</?[A-Za-z][\w:.-]*(?:\s[^<>]*)?/?>", "", text)
    return html.unescape(text)


def arxiv_in(*texts: object) -> str | None:
    """The first arXiv id that one of some texts names: an id alone, an address, or `arXiv:ID` within the text."""
    for text in texts:
        if not isinstance(text, str) or not text:
            continue
        if found := keys.arxiv_id(text):
            return found
        within = re.search(rf"(?:arxiv\.org/(?:abs|pdf|html)/|huggingface\.co/papers/|arxiv:\s*)({keys.ARXIV.pattern})", text, re.IGNORECASE)
        if within:
            return within[1].lower()
    return None
