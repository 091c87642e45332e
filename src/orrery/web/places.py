"""What the site consists of: the modules that add routes, and what each puts into the navigation.

A room joins with one row: its module has `add(app, site)`, as `pages.py` has, and gives its pages their content by
`Ask.render`, which draws masthead, navigation and foot; its links stand in the navigation behind those of the rows
before it. The bench's pages (models, runs, a playground) join here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A module with routes. `links`: names and paths of its navigation; `exported`: the static site has these pages too."""

    module: str
    links: tuple[tuple[str, str], ...] = ()
    exported: bool = False


PLACES: tuple[Place, ...] = (
    Place("orrery.web.feeds"),  # `/paper/{slug}.bib` before `/paper/{slug}`
    Place(
        "orrery.web.pages",
        (("Today", "/"), ("Trending", "/trending"), ("Topics", "/topics"), ("Archive", "/archive")),
        exported=True,
    ),
    Place("orrery.web.forms"),
    Place("orrery.web.api"),
)


def navigation(static: bool) -> tuple[tuple[str, str], ...]:
    """Names and paths of the navigation, of a server or of the static site."""
    return tuple(link for place in PLACES if place.exported or not static for link in place.links)
