"""Sending digests: each reader gets a period's digest once, whoever dies in the middle.

Before anything is sent the delivery is written down as `claimed`; when the server holds everything but the last byte, as
`handed`; after its answer, as `sent`. A run that was killed therefore leaves one of three things behind: `claimed`, which
certainly did not leave and is sent by the next run; `sent`; or, for the instant between the last byte and the answer,
`handed`, of which nobody can know. A local mailbox is asked whether it has the letter. An SMTP server cannot be asked: such
a letter is named and not sent again unless that is wished (`again=True`; the Message-ID is the same, so most mail
programs then show it once).

One process sends at a time: a lock that the operating system takes back when its holder dies.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from orrery.catalogue import digest as digests
from orrery.catalogue import subscriptions
from orrery.catalogue.lock import exclusive
from orrery.catalogue.mail import PermanentMailError, TemporaryMailError, UncertainMailError
from orrery.catalogue.record import second
from orrery.core.errors import OrreryError
from orrery.core.progress import progress

if TYPE_CHECKING:
    from orrery.catalogue.mail import Mailer
    from orrery.catalogue.store import Store
    from orrery.catalogue.subscriptions import Subscription

LOCK = "sending.lock"


@dataclass
class Report:
    """What a run did. Lists hold addresses; the second of a pair is the reason."""

    at: str
    sent: list[str] = field(default_factory=list)
    nothing_new: list[str] = field(default_factory=list)
    already: list[str] = field(default_factory=list)  # sent before, or refused for good
    later: list[tuple[str, str]] = field(default_factory=list)  # the next run tries again
    refused: list[tuple[str, str]] = field(default_factory=list)
    unknown: list[tuple[str, str]] = field(default_factory=list)
    dry_run: bool = False

    @property
    def complete(self) -> bool:
        """Nothing is left for another run."""
        return not self.later and not self.unknown

    def to_dict(self) -> dict[str, Any]:
        """JSON-able facts."""
        facts = dict(self.__dict__)
        for name in ("later", "refused", "unknown"):
            facts[name] = [{"email": email, "why": why} for email, why in facts[name]]
        return {**facts, "complete": self.complete}

    def sentences(self) -> list[str]:
        """For people."""
        verb = "would be sent" if self.dry_run else "sent"
        lines = [f"{_digests(len(self.sent))} {verb}"]
        lines += [f"{_digests(len(self.already))} of this period had been dealt with before"] if self.already else []
        lines += [f"nothing new for {_people(len(self.nothing_new))}"] if self.nothing_new else []
        lines += [f"{email}: refused for good: {why}" for email, why in self.refused]
        lines += [f"{email}: not sent, the next run tries again: {why}" for email, why in self.later]
        lines += [f"{email}: may have left or not ({why}); not sent again without --again" for email, why in self.unknown]
        return lines


def send_due(
    store: Store,
    mailer: Mailer,
    at: datetime | None = None,
    base_url: str = digests.BASE_URL,
    *,
    frequency: str | None = None,
    again: bool = False,
    dry_run: bool = False,
    quiet: bool = True,
) -> Report:
    """Send to every active subscription (of one frequency, or all) the digest of the period that `at` falls into.

    Args:
        at: the end of what is told; now when None.
        again: also send what may have left already.
        dry_run: only say what would be sent.

    Raises:
        ConfigError: the server refuses the login, the sender or the certificate; nothing more is tried.
        StorageError: another process is sending from this store.
    """
    busy = f"another process is sending digests from '{store.folder}'; wait until it is done"
    with exclusive(store.folder / LOCK, 0.0, busy):
        at = at or _now(store)
        run = _Run(store, mailer, at, base_url, again, dry_run, Report(second(at), dry_run=dry_run))
        due = subscriptions.subscriptions(store, "active", frequency)
        try:
            with progress(len(due), "sending", "letters", quiet=quiet) as bar:
                for subscription in due:
                    run.one(subscription)
                    bar.update(1)
        finally:
            mailer.close()
        return run.report


@dataclass
class _Run:
    store: Store
    mailer: Mailer
    at: datetime
    base_url: str
    again: bool
    dry_run: bool
    report: Report
    gone: str = ""  # why the server is not asked any more

    def one(self, subscription: Subscription) -> None:
        """One subscription: decide whether anything is due, and send it."""
        email, period = subscription.email, digests.period(subscription.frequency, self.at)
        for left in subscriptions.handed(self.store, subscription.id):
            self._settle(subscription, left.period)
        before = subscriptions.delivery(self.store, subscription.id, period)
        state = before.state if before else ""
        if state in ("sent", "failed", "refused"):
            self.report.already.append(email)
            return
        if state in ("handed", "unknown"):
            if not self.again:
                self.report.unknown.append((email, "an earlier run ended between the last byte and the server's answer"))
                return
            self._record(subscription, period, "retry")  # what it told counts as not told
        at = datetime.fromisoformat(before.at.replace("Z", "+00:00")) if before else self.at
        composed = digests.compose(self.store, subscription, at, self.base_url)
        if composed.empty:
            self.report.nothing_new.append(email)
        elif self.dry_run:
            self.report.sent.append(email)
        elif self.gone:
            self.report.later.append((email, self.gone))
        else:
            self._send(composed, email)

    def _settle(self, subscription: Subscription, period: str) -> None:
        """A letter that may have left: ask the mailer, and write down what it knows."""
        left = self.mailer.delivered(digests.message_id(self.store, subscription, period, self.mailer.sender))
        self._record(subscription, period, "unknown" if left is None else "sent" if left else "retry")

    def _send(self, composed: digests.Digest, email: str) -> None:
        subscription, period = composed.subscription, composed.period
        message = digests.letter(self.store, composed, self.mailer.sender)
        facts = {"subscription": subscription.id, "period": period, "state": "claimed", "moment": composed.until}
        if not self.store.record("delivered", facts)["taken"]:
            self.report.already.append(email)
            return

        def handed() -> None:
            self._record(subscription, period, "handed")

        for attempt in (1, 2):
            try:
                self.mailer.send(message, handed)
            except TemporaryMailError as error:
                if error.connection and attempt == 1:
                    continue  # a server that closed an idle connection is not a server that is gone
                self._record(subscription, period, "retry")
                self.report.later.append((email, str(error)))
                self.gone = str(error) if error.connection else ""
            except PermanentMailError as error:
                self._record(subscription, period, "refused" if error.address else "failed")
                self.report.refused.append((email, str(error)))
            except UncertainMailError as error:
                self._record(subscription, period, "unknown")
                self.report.unknown.append((email, str(error)))
            except OrreryError:  # the login, the sender, the certificate, a full disk: no letter can leave
                self._record(subscription, period, "retry")
                raise
            else:
                self._record(subscription, period, "sent")
                self.report.sent.append(email)
            return

    def _record(self, subscription: Subscription, period: str, state: str) -> None:
        if self.dry_run:
            return
        self.store.record("delivered", {"subscription": subscription.id, "period": period, "state": state})


def _now(store: Store) -> datetime:
    """A moment whose second is over, when a paper came in that very second: it is told, and none after it is lost."""
    at = datetime.now(timezone.utc)
    ask = "SELECT EXISTS (SELECT 1 FROM papers WHERE added >= ?) OR EXISTS (SELECT 1 FROM verdicts WHERE at >= ?)"
    if store.connection().execute(ask, (second(at), second(at))).fetchone()[0]:
        time.sleep(1.0 - at.microsecond / 1e6 + 0.002)
        at = datetime.now(timezone.utc)
    return at


def _digests(number: int) -> str:
    return f"{number:,} digest{'s' if number != 1 else ''}"


def _people(number: int) -> str:
    return f"{number:,} subscriber{'s' if number != 1 else ''}"
