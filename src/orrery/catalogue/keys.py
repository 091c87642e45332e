"""What makes two records the same paper: arXiv ids, DOIs and titles in one spelling each."""

from __future__ import annotations

import hashlib
import re
import unicodedata

from orrery.catalogue.latex import to_text

ARXIV = re.compile(r"(?:\d{2}(?:0[1-9]|1[0-2])\.\d{4,5}|[a-z]+(?:-[a-z]+)?(?:\.[a-z]{2})?/\d{2}(?:0[1-9]|1[0-2])\d{3})", re.IGNORECASE)
_ARXIV_INPUT = re.compile(
    rf"^(?:https?://)?(?:(?:www\.|export\.)?arxiv\.org/(?:abs|pdf|html)/|(?:www\.)?huggingface\.co/papers/|arxiv:\s*)?"
    rf"(?P<id>{ARXIV.pattern})(?:v\d+)?(?:\.pdf)?(?:\s*\[[\w.-]+\])?/?$",
    re.IGNORECASE,
)
_DOI_INPUT = re.compile(r"^(?:https?://(?:dx\.)?doi\.org/|doi:\s*)?(?P<doi>10\.\d{4,9}/\S+)$", re.IGNORECASE)
_ARXIV_DOI = re.compile(rf"^10\.48550/arxiv\.(?P<id>{ARXIV.pattern})(?:v\d+)?$", re.IGNORECASE)
SLUG = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
LONGEST_SLUG = 60  # characters; whole words


def arxiv_id(text: str) -> str | None:
    """The bare arXiv id of an id, `arXiv:` reference or address, without version; None when it is none.

    Both forms of ids are known: `2310.04691` (since April 2007) and `cs/0301012` (before).
    """
    found = _ARXIV_INPUT.match(text.strip())
    return found["id"].lower() if found else None


def doi(text: str) -> str | None:
    """The bare DOI in lower case (DOIs do not distinguish case); None when it is none."""
    found = _DOI_INPUT.match(text.strip())
    return found["doi"].lower().rstrip(".,;") if found else None


def arxiv_of_doi(text: str) -> str | None:
    """The arXiv id that a DOI of arXiv (10.48550/arXiv.ID) stands for."""
    found = _ARXIV_DOI.match(text)
    return found["id"].lower() if found else None


def title_key(title: str) -> str:
    """A title as letters and digits only: LaTeX, accents, case, spaces and punctuation do not distinguish papers."""
    if title.isascii() and not re.search(r"[\\${}]", title):
        return re.sub(r"[^a-z0-9]", "", title.lower())
    plain = unicodedata.normalize("NFKD", to_text(title)).casefold()
    return "".join(letter for letter in plain if letter.isalnum())


def slug(title: str) -> str:
    """A short name for addresses: words in lower-case ASCII; a title of another script becomes `paper-` and a checksum."""
    plain = unicodedata.normalize("NFKD", to_text(title)).encode("ascii", "ignore").decode().lower()
    plain = re.sub(r"[^a-z0-9]+", "-", plain.replace("'", "")).strip("-")
    if len(plain) > LONGEST_SLUG:
        plain = plain[: LONGEST_SLUG + 1].rpartition("-")[0] or plain[:LONGEST_SLUG]
    if len(plain) >= 3:
        return plain
    return "paper-" + hashlib.blake2b(title.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
