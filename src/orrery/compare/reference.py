"""Reference results that ship with the package: longer runs of this same protocol, in the schema of any comparison.

They lie as JSON in `compare/reference/`, one file each, with the command and the machine that made them inside.
"""

from __future__ import annotations

from pathlib import Path

from orrery.compare.result import ComparisonResult, load
from orrery.core.errors import ConfigError, suggest

FOLDER = Path(__file__).with_name("reference")


def names() -> list[str]:
    """Names of the shipped reference results."""
    return sorted(file.stem for file in FOLDER.glob("*.json"))


def reference(name: str) -> ComparisonResult:
    """One shipped result.

    Raises:
        ConfigError: when there is none of that name.
    """
    if name not in names():
        raise ConfigError(f"no reference result '{name}'.{suggest(name, names())} There are: {', '.join(names()) or 'none'}")
    result = load(FOLDER / f"{name}.json")
    result.kind = "reference"
    return result


def nearest(size: str, corpus: str) -> ComparisonResult | None:
    """The reference result to show beside a comparison: of that size and corpus, else of that corpus, else any, else None."""
    found = [reference(name) for name in names()]
    ranked = sorted(found, key=lambda item: (item.protocol.corpus != corpus, item.protocol.size != size))
    return ranked[0] if ranked else None
