"""Errors that a user can act on: one sentence saying what was wrong, where, and what to do.

Everything derived from :class:`OrreryError` is printed by the command line as that sentence, with exit code 2
and without a traceback. Anything else is a defect of Orrery and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OrreryError(Exception):
    """Base of all errors that speak to the user."""


class ConfigError(OrreryError):
    """A setting is misspelt, of the wrong type, or impossible together with another."""


class UnknownNameError(OrreryError):
    """A name that no room has registered."""


class DataError(OrreryError):
    """A corpus, tokenizer or task cannot be used as asked."""


class CorruptionError(OrreryError):
    """A stored file is not what its checksum or its format says."""


class StorageError(OrreryError):
    """A file could not be written or read: disk full, no permission, vanished."""


class BudgetError(OrreryError):
    """A budget is malformed or too small for a single step."""


class NonFiniteError(OrreryError):
    """A loss or gradient became NaN or infinite; names the step and the batch."""


class StateError(OrreryError):
    """A recurrent state or cache of another architecture, batch size or layout."""


def suggest(name: str, known: Iterable[str], limit: int = 3) -> str:
    """`" Did you mean 'mamba2'?"`, or an empty string when nothing known is near."""
    near = difflib.get_close_matches(name, list(known), n=limit, cutoff=0.55)
    if not near:
        return ""
    return " Did you mean " + " or ".join(repr(match) for match in near) + "?"
