"""Subscriptions by mail: asked for, confirmed by the mailbox's owner, ended with one click.

Double opt-in: `subscribe` writes down a wish and mails a link; only `confirm` (the link) makes it a subscription, or
changes one, since anybody can type anybody's address into a form. The wish (how often, which topics) travels in the signed
link. `unsubscribe` takes the signed link of any digest, at any age up to a year, as often as somebody presses it.

States: `pending` (asked), `active`, `ended` (by the reader), `bounced` (the address was refused in three periods in a row).
Of one period a subscription's delivery is `claimed` (about to be sent), `handed` (all but the last byte is with the
server), `sent`, `retry` (not taken, may be tried again), `failed` (refused for good) or `unknown` (the last byte was
sent and no answer came). Only `retry` and `claimed` may be claimed again: see :mod:`orrery.catalogue.delivery`.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from orrery.catalogue import letters, mail, tokens, topics
from orrery.catalogue.events import Event, Unchanged
from orrery.catalogue.record import second
from orrery.core.errors import ConfigError, OrreryError, UnknownNameError, suggest

if TYPE_CHECKING:
    from orrery.catalogue.mail import Mailer
    from orrery.catalogue.store import Store

FREQUENCIES = ("daily", "weekly")
CONFIRM, UNSUBSCRIBE = "subscribe", "unsubscribe"  # purposes of tokens
CONFIRM_PATH, UNSUBSCRIBE_PATH = "/subscribe/confirm", "/unsubscribe"  # of the pages that take them, as ?token=...
CONFIRM_AGE = timedelta(days=7)
UNSUBSCRIBE_AGE = timedelta(days=365)
BOUNCES = 3  # periods in a row in which the address was refused
STATES = ("claimed", "handed", "sent", "retry", "failed", "refused", "unknown")
MAILS_PER_HOUR = 3  # of one kind to one address
MAILS_PER_DAY = 500  # of all kinds to addresses that have not confirmed


class TooMany(OrreryError):
    """A limit against abuse was reached; later it works again."""


@dataclass(frozen=True)
class Subscription:
    """Who gets a digest, how often, about what (no topics: everything)."""

    id: int
    email: str
    frequency: str
    topics: tuple[str, ...]
    state: str
    created: str
    confirmed: str | None = None
    ended: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able facts."""
        return {**self.__dict__, "topics": list(self.topics)}


@dataclass(frozen=True)
class Delivery:
    """What became of one subscription's digest of one period; `at` is the moment that its content ends with."""

    subscription: int
    period: str
    state: str
    at: str


# ---------------------------------------------------------------- what a reader does


def subscribe(
    store: Store,
    email: str,
    frequency: str,
    topics: Iterable[str],
    base_url: str,
    mailer: Mailer,
    *,
    at: datetime | None = None,
) -> Subscription:
    """Write down the wish and mail the link that confirms it.

    Raises:
        ConfigError: an address, frequency or topic that does not exist.
        TooMany: this address was written to too often in the last hour.
        MailError: the mail could not be sent; the wish stays, and may be repeated.
    """
    at = at or datetime.now(timezone.utc)
    found = mail.address(email)
    facts = {"email": found, "frequency": _frequency(frequency), "topics": _topics(topics)}
    limit_mails(store, "subscribe", found, at)
    subscription = of_row(store.record("subscribe", facts, at))
    payload = [subscription.id, facts["frequency"], facts["topics"]]
    token = tokens.sign(tokens.secret(store.folder), CONFIRM, payload, at)
    message = letters.confirmation(
        sender=mailer.sender,
        to=mail.person("", found),
        frequency=frequency,
        topics=[_titles()[slug] for slug in facts["topics"]],
        link=link(base_url, CONFIRM_PATH, token),
        token=token,
        base_url=base_url,
        at=at,
        days=CONFIRM_AGE.days,
    )
    mailer.send(message)
    return subscription


def confirm(store: Store, token: str, *, at: datetime | None = None) -> Subscription:
    """Make a wish a subscription; pressing the link twice is one subscription.

    Raises:
        TokenError: a link that is not ours, has expired, or is older than the end of the subscription.
    """
    at = at or datetime.now(timezone.utc)
    key = tokens.secret(store.folder)
    payload, issued = tokens.read_dated(key, CONFIRM, _token(token), at, CONFIRM_AGE)
    number, frequency, wanted = payload
    facts = {"subscription": number, "frequency": frequency, "topics": wanted, "issued": second(datetime.fromtimestamp(issued, timezone.utc))}
    return of_row(store.record("confirm", facts, at))


def unsubscribe(store: Store, token: str, *, at: datetime | None = None) -> Subscription:
    """End a subscription by the signed link of a mail; again and again is fine.

    Raises:
        TokenError: a link that is not ours or is older than a year.
    """
    at = at or datetime.now(timezone.utc)
    number = tokens.read(tokens.secret(store.folder), UNSUBSCRIBE, _token(token), at, UNSUBSCRIBE_AGE)
    return of_row(store.record("unsubscribe", {"subscription": number}, at))


def unsubscribe_address(store: Store, email: str) -> Subscription:
    """End the subscription of an address: for whoever holds the store, not for a page."""
    return of_row(store.record("unsubscribe", {"subscription": by_address(store, email).id}))


def unsubscribe_token(store: Store, subscription: Subscription, at: datetime) -> str:
    """The signed token of a digest's unsubscribe link."""
    return tokens.sign(tokens.secret(store.folder), UNSUBSCRIBE, subscription.id, at)


# ---------------------------------------------------------------- reading


def subscriptions(store: Store, state: str | None = None, frequency: str | None = None) -> list[Subscription]:
    """Subscriptions in the order in which they were asked for."""
    rows = store.connection().execute(
        "SELECT * FROM subscriptions WHERE (? IS NULL OR state = ?) AND (? IS NULL OR frequency = ?) ORDER BY id",
        (state, state, frequency, frequency),
    )
    return [of_row(row) for row in rows]


def by_address(store: Store, email: str) -> Subscription:
    """The subscription of an address.

    Raises:
        UnknownNameError: there is none.
    """
    found = mail.address(email)
    row = store.connection().execute("SELECT * FROM subscriptions WHERE email = ? COLLATE NOCASE", (found,)).fetchone()
    if row is None:
        raise UnknownNameError(f"no subscription of '{found}'")
    return of_row(row)


def delivery(store: Store, subscription: int, period: str) -> Delivery | None:
    """What is known of one digest."""
    row = store.connection().execute("SELECT * FROM deliveries WHERE subscription = ? AND period = ?", (subscription, period)).fetchone()
    return Delivery(**dict(row)) if row is not None else None


def handed(store: Store, subscription: int) -> list[Delivery]:
    """Digests of which a run that died has left nothing but the note that the last byte was about to be sent."""
    rows = store.connection().execute("SELECT * FROM deliveries WHERE subscription = ? AND state = 'handed'", (subscription,))
    return [Delivery(**dict(row)) for row in rows]


def last_sent(store: Store, subscription: int) -> str | None:
    """The moment with which the last digest that left ended."""
    ask = "SELECT MAX(at) FROM deliveries WHERE subscription = ? AND state IN ('sent', 'unknown', 'handed')"
    found: str | None = store.connection().execute(ask, (subscription,)).fetchone()[0]
    return found


def of_row(row: sqlite3.Row | dict[str, Any]) -> Subscription:
    """A subscription from its row; topics are stored as words."""
    facts = dict(row)
    return Subscription(**{**facts, "topics": tuple(facts["topics"].split())})


def link(base_url: str, path: str, token: str) -> str:
    """The address of a page that takes a token."""
    return f"{base_url.rstrip('/')}{path}?token={token}"


def limit_mails(store: Store, kind: str, email: str, at: datetime) -> None:
    """Count a mail to an address that may not be its sender's own, so that nobody fills a stranger's mailbox through us.

    The limits are judged here and not where the event is applied: a replay under lower limits must not fail.

    Raises:
        TooMany: three of a kind in an hour to one mailbox, or five hundred in a day to all.
    """
    mailbox = hashlib.blake2b(mail.mailbox_key(email).encode(), digest_size=12).hexdigest()
    facts = {"kind": kind, "mailbox": mailbox, "moment": second(at)}
    hour, today = _asked(store.connection(), facts)
    if len(hour) >= MAILS_PER_HOUR:
        raise TooMany("this address was written to several times in the last hour; look into the mailbox, or try again later")
    if today >= MAILS_PER_DAY:
        raise TooMany("too many mails were asked for today; try again tomorrow")
    store.record("asked", facts, at)


# ---------------------------------------------------------------- handlers: what the events do


def _asked(connection: sqlite3.Connection, facts: dict[str, Any]) -> tuple[list[str], int]:
    """Moments of the last hour in which this mailbox was written to, and how many mails of the sort left today."""
    now = _moment(facts["moment"])
    past = _meta(connection, f"asked:{facts['kind']}:{facts['mailbox']}").split()
    hour = [one for one in past if timedelta(0) <= now - _moment(one) < timedelta(hours=1)]
    return hour, int(_meta(connection, f"asked:day:{facts['moment'][:10]}") or 0)


def apply_asked(connection: sqlite3.Connection, event: Event) -> None:
    """Count a mail; yesterday's counts are forgotten."""
    facts = event.facts
    hour, today = _asked(connection, facts)
    day = f"asked:day:{facts['moment'][:10]}"
    connection.execute("DELETE FROM meta WHERE key LIKE 'asked:%' AND value < ? AND key NOT LIKE 'asked:day:%'", (facts["moment"][:10],))
    connection.execute("DELETE FROM meta WHERE key LIKE 'asked:day:%' AND key < ?", (day,))
    _set_meta(connection, f"asked:{facts['kind']}:{facts['mailbox']}", " ".join([facts["moment"], *hour]))  # newest first
    _set_meta(connection, day, str(today + 1))


def apply_subscribe(connection: sqlite3.Connection, event: Event) -> dict[str, Any]:
    """A wish of an unknown or former reader becomes `pending`; one of an active reader changes nothing yet."""
    facts = event.facts
    row = connection.execute("SELECT * FROM subscriptions WHERE email = ? COLLATE NOCASE", (facts["email"],)).fetchone()
    if row is not None and row["state"] == "active":
        raise Unchanged(dict(row))
    values = (facts["frequency"], " ".join(facts["topics"]))
    if row is not None:
        if (row["state"], row["frequency"], row["topics"]) == ("pending", *values):
            raise Unchanged(dict(row))
        connection.execute("UPDATE subscriptions SET frequency = ?, topics = ?, state = 'pending' WHERE id = ?", (*values, row["id"]))
        return _row(connection, row["id"])
    ask = "INSERT INTO subscriptions (email, frequency, topics, state, created) VALUES (?, ?, ?, 'pending', ?)"
    return _row(connection, connection.execute(ask, (facts["email"], *values, event.at)).lastrowid)


def apply_confirm(connection: sqlite3.Connection, event: Event) -> dict[str, Any]:
    """The wish in the link holds, unless the subscription was ended after the link was made."""
    facts = event.facts
    row = _row(connection, facts["subscription"])
    if row["ended"] and facts["issued"] <= row["ended"]:
        raise tokens.TokenError("this subscription was ended after the link was made; subscribe again")
    values = (facts["frequency"], " ".join(facts["topics"]))
    if (row["state"], row["frequency"], row["topics"]) == ("active", *values):
        raise Unchanged(row)
    confirmed = row["confirmed"] if row["state"] == "active" else event.at
    ask = "UPDATE subscriptions SET frequency = ?, topics = ?, state = 'active', confirmed = ?, ended = NULL WHERE id = ?"
    connection.execute(ask, (*values, confirmed, row["id"]))
    return _row(connection, row["id"])


def apply_unsubscribe(connection: sqlite3.Connection, event: Event) -> dict[str, Any]:
    """The subscription is over; what was pending too."""
    row = _row(connection, event.facts["subscription"])
    if row["state"] == "ended":
        raise Unchanged(row)
    connection.execute("UPDATE subscriptions SET state = 'ended', ended = ? WHERE id = ?", (event.at, row["id"]))
    return _row(connection, row["id"])


def apply_delivered(connection: sqlite3.Connection, event: Event) -> dict[str, Any]:
    """Move a delivery to its next state. A claim succeeds only where nothing was sent or may have been; see the module."""
    facts = event.facts
    number, period, state = facts["subscription"], facts["period"], facts["state"]
    row = connection.execute("SELECT * FROM deliveries WHERE subscription = ? AND period = ?", (number, period)).fetchone()
    if state == "claimed":
        if row is not None and row["state"] not in ("retry", "claimed"):
            raise Unchanged({**dict(row), "taken": False})
        connection.execute(
            "INSERT INTO deliveries (subscription, period, state, at) VALUES (?, ?, 'claimed', ?)"
            " ON CONFLICT (subscription, period) DO UPDATE SET state = 'claimed'",
            (number, period, facts["moment"]),
        )
    elif row is None or state not in STATES:
        raise ConfigError(f"no digest of {period} was claimed for subscription {number}")
    else:
        connection.execute("UPDATE deliveries SET state = ? WHERE subscription = ? AND period = ?", (state, number, period))
    if state == "refused":
        _bounce(connection, number, event.at)
    row = connection.execute("SELECT * FROM deliveries WHERE subscription = ? AND period = ?", (number, period)).fetchone()
    return {**dict(row), "taken": True}


def _bounce(connection: sqlite3.Connection, number: int, at: str) -> None:
    ask = "SELECT state FROM deliveries WHERE subscription = ? ORDER BY at DESC, period DESC LIMIT ?"
    last = [row["state"] for row in connection.execute(ask, (number, BOUNCES))]
    if last == ["refused"] * BOUNCES:
        connection.execute("UPDATE subscriptions SET state = 'bounced', ended = ? WHERE id = ?", (at, number))


def _row(connection: sqlite3.Connection, number: Any) -> dict[str, Any]:
    row = connection.execute("SELECT * FROM subscriptions WHERE id = ?", (number,)).fetchone()
    if row is None:
        raise UnknownNameError(f"no subscription {number}")
    return dict(row)


def _meta(connection: sqlite3.Connection, key: str) -> str:
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return str(row["value"]) if row is not None else ""


def _set_meta(connection: sqlite3.Connection, key: str, value: str) -> None:
    connection.execute("INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (key, value))


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def _frequency(text: str) -> str:
    if text not in FREQUENCIES:
        raise ConfigError(f"'{mail.clean(text)[:40]}' is no frequency; digests come daily or weekly")
    return text


def _topics(wanted: Iterable[str]) -> list[str]:
    """Known topics, each once, in the list's order."""
    known = _titles()
    asked = list(dict.fromkeys(wanted))
    for slug in asked:
        if slug not in known:
            raise ConfigError(f"unknown topic '{mail.clean(slug)[:60]}'.{suggest(slug, known)} See `orrery papers topics`")
    return [slug for slug in known if slug in asked]


def _titles() -> dict[str, str]:
    return topics.titles()


def _token(text: str) -> str:
    """A token, also out of the whole link that somebody copied."""
    text = text.strip()
    return text.rpartition("token=")[2].partition("&")[0] if "token=" in text else text
