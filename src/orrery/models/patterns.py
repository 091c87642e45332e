"""Patterns of architectures: `"mamba2*3 + attention"` between layers, `"mamba2 | attention"` side by side in one layer.

    pattern := layer ("+" layer)*          tiled over the depth
    layer   := branch ("|" branch)* ["*" n]
    branch  := name ["(" key=value ("," key=value)* ")"]

A name may carry settings of its own: `"attention(window=64) + mamba2(state=64)*2"`. Their values may be lists, and what is written
with parentheses: `"attention(rope=yarn(factor=4, original=4096))"`.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Any

from orrery.core.config import parse_overrides
from orrery.core.errors import ConfigError

LONGEST = 512  # layers that a pattern may spell out

_BRANCH = re.compile(r"\s*(?P<name>[\w./-]+?)\s*(?:\((?P<settings>.*)\))?\s*$", re.DOTALL)
_REPEAT = re.compile(r"^(?P<body>.*?)\s*\*\s*(?P<count>\d+)\s*$", re.DOTALL)


@dataclass(frozen=True)
class Branch:
    """One name of a pattern with the settings written behind it."""

    name: str
    settings: tuple[tuple[str, Any], ...] = ()


Layer = tuple[Branch, ...]


def parse_pattern(text: str) -> list[Layer]:
    """The layers that a pattern spells out, before tiling.

    Raises:
        ConfigError: naming the part that cannot be read.
    """
    layers: list[Layer] = []
    for term in _split(text, "+"):
        repeat = _REPEAT.match(term)
        body, count = (repeat["body"], int(repeat["count"])) if repeat else (term, 1)
        if not 1 <= count <= LONGEST or len(layers) + count > LONGEST:
            raise ConfigError(f"pattern '{text}' spells out {len(layers) + count} layers; between 1 and {LONGEST} are possible")
        layers.extend([tuple(_branch(part, text) for part in _split(body, "|"))] * count)
    return layers


def _branch(text: str, pattern: str) -> Branch:
    match = _BRANCH.match(text)
    if match is None or not _closed(match["settings"] or ""):
        how = "write name, name(key=value) or name*3, joined by + or |"
        raise ConfigError(f"cannot read '{text.strip()}' in the pattern '{pattern}'; {how}")
    settings = [item for item in _split(match["settings"] or "", ",") if item.strip()]
    return Branch(match["name"], tuple(sorted(parse_overrides(settings).items())))


def _split(text: str, mark: str) -> list[str]:
    """Split at marks that stand outside parentheses and brackets."""
    parts, depth, start = [], 0, 0
    for index, letter in enumerate(text):
        depth += (letter in "([") - (letter in ")]")
        if letter == mark and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    return [*parts, text[start:]]


def _closed(text: str) -> bool:
    """Whether every parenthesis is closed behind where it is opened."""
    depths = list(itertools.accumulate((letter == "(") - (letter == ")") for letter in text))
    return min(depths, default=0) >= 0 and depths[-1:] in ([], [0])
