"""What can happen to the store, and which function applies it.

The table is literal: a kind of event, the module and the function that applies it. A handler is
`apply_x(connection, event) -> result`. It runs inside the write transaction, once when the event is recorded and again
whenever the index is rebuilt from the journal, so it must be deterministic: time and names come from the event, never
from the clock, a file that may change, or the order of a set. What it raises undoes everything, and nothing is written
down. A handler that finds nothing to do raises :class:`Unchanged` with its result.
"""

from __future__ import annotations

import importlib
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orrery.core.errors import CorruptionError, OrreryError

HANDLERS: dict[str, tuple[str, str]] = {
    "create": ("orrery.catalogue.shipped", "apply_create"),
    "shipped": ("orrery.catalogue.shipped", "apply_shipped"),
    "import": ("orrery.catalogue.merge", "apply_import"),
    "verdict": ("orrery.catalogue.status", "apply_verdict"),
    "submit": ("orrery.catalogue.community", "apply_submit"),
    "moderate": ("orrery.catalogue.community", "apply_moderate"),
    "pick": ("orrery.catalogue.community", "apply_pick"),
    "vote": ("orrery.catalogue.community", "apply_vote"),
    "unvote": ("orrery.catalogue.community", "apply_unvote"),
    "reader": ("orrery.catalogue.community", "apply_reader"),
    "sign_in": ("orrery.catalogue.community", "apply_sign_in"),
    "asked": ("orrery.catalogue.subscriptions", "apply_asked"),
    "subscribe": ("orrery.catalogue.subscriptions", "apply_subscribe"),
    "confirm": ("orrery.catalogue.subscriptions", "apply_confirm"),
    "unsubscribe": ("orrery.catalogue.subscriptions", "apply_unsubscribe"),
    "delivered": ("orrery.catalogue.subscriptions", "apply_delivered"),
}


@dataclass(frozen=True)
class Event:
    """Something that happened: number in the journal, ISO second of UTC, kind, and JSON-able facts."""

    seq: int
    at: str
    kind: str
    facts: dict[str, Any]


class Unchanged(Exception):
    """Raised by a handler for which there is nothing to do: no event is written down, `result` is returned."""

    def __init__(self, result: Any = None) -> None:
        super().__init__("nothing changed")
        self.result = result


Handler = Callable[[sqlite3.Connection, Event], Any]


def handler(kind: str) -> Handler:
    """The function that applies events of a kind; its module is imported when first needed."""
    if kind not in HANDLERS:
        raise CorruptionError(f"the journal holds an event of the unknown kind '{kind}'; it was written by a newer version of orrery")
    module, name = HANDLERS[kind]
    found: Handler = getattr(importlib.import_module(module), name)
    return found


def replay(connection: sqlite3.Connection, event: Event) -> None:
    """Apply an event of the journal. One that the data shipped since has made idle is passed over.

    Raises:
        CorruptionError: when an event that was once applied cannot be, naming it.
    """
    try:
        handler(event.kind)(connection, event)
    except Unchanged:
        pass
    except (OrreryError, sqlite3.IntegrityError, KeyError) as error:
        raise CorruptionError(f"event {event.seq} ({event.kind}) of the journal cannot be applied: {error}") from error
