"""Sentences that a page and its exported copy both need."""

from __future__ import annotations

from orrery.catalogue import trending


def ranking() -> dict[str, str]:
    """How search and trending rank."""
    return {
        "search_words": "Two rankings are fused: words (SQLite FTS5, BM25, the title counting most) and meaning (a semantic embedding "
        "computed here, no service asked). Quotation marks keep words together, a star at the end of a word finds its beginnings, "
        "title: or authors: look in one field. Filters hold whatever the ranking.",
        "trending_words": f"Every vote given here counts one on the day it is given and half as much after each {trending.HALF_LIFE:g} days. "
        "Votes that came with an import have no times: they count by their logarithm, from the day of publication, and fade in the same "
        "way. Papers of equal score stand by votes, then by date.",
    }
