"""A digest: what is new, whose verdict changed and what is trending, for the topics that one reader chose.

Every digest belongs to a period: a day (`2026-11-22`) or an ISO week (`2026-W47`) of UTC. It tells what happened from the
end of the last digest that this reader got to the moment `at` (the first one: a day, or a week, before the confirmation),
so that nothing is told twice and nothing is lost when a day was left out. The same subscription, moment and store give
the same letter, byte for byte, with the same Message-ID. Where nothing is new there is no letter.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from email.headerregistry import Address
from email.message import EmailMessage
from typing import TYPE_CHECKING, Any

from orrery.catalogue import commands, letters, mail, subscriptions, tokens, topics
from orrery.catalogue.record import second

if TYPE_CHECKING:
    from orrery.catalogue.record import Paper
    from orrery.catalogue.status import Status
    from orrery.catalogue.store import Store
    from orrery.catalogue.subscriptions import Subscription

SPAN = {"daily": timedelta(days=1), "weekly": timedelta(days=7)}
SHOWN = {"daily": 10, "weekly": 15}  # new papers with all that is said of them; the rest is counted and linked
TRENDING = 5
AUTHORS = 4  # named before "and others"
WORDS = 260  # characters of an abstract, where there is no sentence of ours
BASE_URL = "http://127.0.0.1:8765"  # where `orrery serve` stands when nothing else is said


@dataclass(frozen=True)
class Digest:
    """One reader's letter of one period. `new` (those that are shown, of `count`), `changed` and `trending` are slugs."""

    subscription: Subscription
    period: str
    since: str
    until: str
    subject: str
    html: str
    text: str
    unsubscribe: str  # the link
    new: tuple[str, ...] = ()
    count: int = 0
    changed: tuple[str, ...] = ()
    trending: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """Nothing new: not worth a letter."""
        return not self.new and not self.changed


def period(frequency: str, at: datetime) -> str:
    """The name of the day or ISO week that `at` falls into, in UTC."""
    day = at.astimezone(timezone.utc).date()
    if frequency == "daily":
        return day.isoformat()
    year, week, _ = day.isocalendar()
    return f"{year}-W{week:02d}"


def compose(store: Store, subscription: Subscription, at: datetime, base_url: str = BASE_URL) -> Digest:
    """The digest that ends at `at`.

    Args:
        base_url: of the pages that the letter links to.
    """
    base_url = base_url.rstrip("/")
    since, until = _window(store, subscription, at)
    shown, count = _new(store, subscription, since, until)
    changed = _changed(store, subscription, since, until)
    trending = _trending(store, subscription, at, {paper.slug for paper in shown})
    token = subscriptions.unsubscribe_token(store, subscription, at)
    link = subscriptions.link(base_url, subscriptions.UNSUBSCRIBE_PATH, token)
    titles = [topics.titles().get(slug, slug) for slug in subscription.topics]
    facts: dict[str, Any] = {
        "frequency": "daily digest" if subscription.frequency == "daily" else "weekly digest",
        "date": _date(subscription.frequency, at),
        "summary": _summary(count, len(changed), titles),
        "new": _cards(store, shown, base_url),
        "new_note": f"{len(shown)} of {count:,}" if count > len(shown) else "",
        "more": f"{count - len(shown):,}" if count > len(shown) else "",
        "more_link": f"{base_url}/archive",
        "changed": [_verdict(paper, old, verdict, base_url) for paper, old, verdict in changed],
        "changed_note": "what came of a claim, at our scale",
        "trending": _cards(store, trending, base_url),
        "about": " and ".join([", ".join(titles[:-1]), titles[-1]] if len(titles) > 1 else titles) or "all topics",
        "email": subscription.email,
        "unsubscribe": link,
        "base_url": base_url,
    }
    subject = _subject(subscription.frequency, at, shown, count, changed)
    return Digest(
        subscription=subscription,
        period=period(subscription.frequency, at),
        since=since,
        until=until,
        subject=subject,
        html=letters.html("digest.html", subject=subject, preview=facts["summary"], **facts),
        text=_text(facts, token),
        unsubscribe=link,
        new=tuple(paper.slug for paper in shown),
        count=count,
        changed=tuple(paper.slug for paper, _, _ in changed),
        trending=tuple(paper.slug for paper in trending),
    )


def message_id(store: Store, subscription: Subscription, period: str, sender: Address) -> str:
    """The id of one subscription's letter of one period: the same however often it is made, and not to be guessed."""
    seal = hmac.new(tokens.secret(store.folder), f"digest {subscription.id} {period}".encode(), hashlib.sha256).hexdigest()[:16]
    return f"<digest.{period}.{subscription.id}.{seal}@{sender.domain}>"


def letter(store: Store, digest: Digest, sender: Address) -> EmailMessage:
    """The digest as a message. It can be left with one click in the mail program itself (RFC 2369, RFC 8058)."""
    return mail.letter(
        sender=sender,
        to=mail.person("", digest.subscription.email),
        subject=digest.subject,
        text=digest.text,
        html=digest.html,
        at=datetime.fromisoformat(digest.until.replace("Z", "+00:00")),
        message_id=message_id(store, digest.subscription, digest.period, sender),
        headers={
            "List-Id": f"Orrery papers <papers.{sender.domain}>",
            "List-Unsubscribe": f"<{digest.unsubscribe}>",
            "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
            "Auto-Submitted": "auto-generated",
            "Precedence": "bulk",
        },
    )


# ---------------------------------------------------------------- what it tells


def _window(store: Store, subscription: Subscription, at: datetime) -> tuple[str, str]:
    """From (included) and to (not included), as the store writes moments."""
    until = second(at)
    last = subscriptions.last_sent(store, subscription.id)
    begin = datetime.fromisoformat((subscription.confirmed or subscription.created).replace("Z", "+00:00"))
    return (last or second(begin - SPAN[subscription.frequency])), until


def _of_topics(subscription: Subscription) -> tuple[str, tuple[str, ...]]:
    """An SQL condition on `p.id`, and its values."""
    if not subscription.topics:
        return "1", ()
    marks = ", ".join("?" * len(subscription.topics))
    return f"p.id IN (SELECT paper FROM paper_topics WHERE topic IN ({marks}))", subscription.topics


def _new(store: Store, subscription: Subscription, since: str, until: str) -> tuple[list[Paper], int]:
    """Papers that entered the store: those to show (what curators, readers and upstream like comes first), and how many."""
    condition, values = _of_topics(subscription)
    ask = store.connection().execute
    those = f"FROM papers p WHERE p.added >= ? AND p.added < ? AND {condition}"
    count = int(ask(f"SELECT COUNT(*) {those}", (since, until, *values)).fetchone()[0])
    rows = ask(
        f"SELECT p.slug {those} ORDER BY EXISTS (SELECT 1 FROM picks WHERE paper = p.id) DESC, p.votes DESC, p.upvotes DESC,"
        " COALESCE(p.date, p.year) DESC, p.id LIMIT ?",
        (since, until, *values, SHOWN[subscription.frequency]),
    )
    return store.papers([row["slug"] for row in rows]), count


def _changed(store: Store, subscription: Subscription, since: str, until: str) -> list[tuple[Paper, str, str]]:
    """Papers whose verdict is another one than at the beginning: first old, last new."""
    condition, values = _of_topics(subscription)
    rows = store.connection().execute(
        f"SELECT p.slug, v.old, v.new FROM verdicts v JOIN papers p ON p.id = v.paper WHERE v.at >= ? AND v.at < ? AND {condition}"
        " ORDER BY v.at, v.id",
        (since, until, *values),
    )
    moves: dict[str, tuple[str, str]] = {}
    for row in rows:
        before = moves.get(row["slug"], (row["old"] or "", ""))[0]
        moves[row["slug"]] = (before, row["new"])
    kept = {slug: move for slug, move in moves.items() if move[0] != move[1]}
    return [(paper, *kept[paper.slug]) for paper in store.papers(list(kept))]


def _trending(store: Store, subscription: Subscription, at: datetime, told: set[str]) -> list[Paper]:
    from orrery.catalogue.trending import trending

    wanted = set(subscription.topics)
    ranked = (paper for paper, score in trending(store, at=at, limit=200) if score > 0)
    fitting = [paper for paper in ranked if paper.slug not in told and (not wanted or wanted & set(paper.topics))]
    return fitting[:TRENDING]


# ---------------------------------------------------------------- how it says so


def _cards(store: Store, papers: list[Paper], base_url: str) -> list[dict[str, Any]]:
    from orrery.catalogue import status

    return [_card(paper, state, base_url) for paper, state in zip(papers, status.of_all(papers, store), strict=True)]


def _card(paper: Paper, state: Status, base_url: str) -> dict[str, Any]:
    votes = paper.votes + paper.upvotes
    chips = list(dict.fromkeys(str(each) for each in (paper.kind, state.state, state.verdict, paper.year) if each))
    names = paper.authors[:AUTHORS]
    authors = ", ".join(names) + (f" and {len(paper.authors) - len(names)} others" if len(paper.authors) > len(names) + 1 else "")
    return {
        "title": paper.title,
        "link": f"{base_url}/paper/{paper.slug}",
        "authors": authors if len(paper.authors) != AUTHORS + 1 else ", ".join(paper.authors),
        "words": paper.sentence or _cut(paper.abstract),
        "chips": chips + ([_votes(votes)] if votes else []),
        "votes": _votes(votes) if votes else "",
        "command": commands.run(state.names[0]) if state.names else "",
    }


def _verdict(paper: Paper, old: str, new: str, base_url: str) -> dict[str, Any]:
    return {"title": paper.title, "link": f"{base_url}/paper/{paper.slug}", "old": old or "not run", "new": new}


def _votes(number: int) -> str:
    return f"{number:,} vote{'s' if number != 1 else ''}"


def _cut(text: str) -> str:
    """The beginning of an abstract: its first sentences, or to the last whole word."""
    text = mail.clean(text)
    sentences = re.match(rf".{{60,{WORDS}}}[.!?](?=\s)", text)
    if sentences and len(text) > WORDS:
        return sentences[0]
    return text if len(text) <= WORDS else text[:WORDS].rpartition(" ")[0].rstrip(",;:.") + " …"


def _date(frequency: str, at: datetime) -> str:
    day = at.astimezone(timezone.utc).date()
    if frequency == "daily":
        return f"{day:%A}, {day.day} {day:%B %Y}"
    return f"Week {day.isocalendar()[1]} of {day.isocalendar()[0]}"


def _summary(new: int, changed: int, titles: list[str]) -> str:
    parts = [f"{new:,} new paper{'s' if new != 1 else ''}"] if new else []
    parts += [f"{changed} changed verdict{'s' if changed != 1 else ''}"] if changed else []
    found = " and ".join(parts) or "Nothing new"
    return f"{found} in {'your topic' if len(titles) == 1 else f'your {len(titles)} topics'}" if titles else found


def _subject(frequency: str, at: datetime, new: list[Paper], count: int, changed: list[tuple[Paper, str, str]]) -> str:
    day = at.astimezone(timezone.utc).date()
    when = f"{day.day} {day:%B}" if frequency == "daily" else f"week {day.isocalendar()[1]}"
    if new:
        first, others = new[0].title, count - 1
    elif changed:
        first, others = f"{changed[0][0].title}: {changed[0][2]}", len(changed) - 1
    else:
        return f"Papers, {when}"
    first = first if len(first) <= 90 else first[:90].rpartition(" ")[0] + " …"
    return mail.clean(f"Papers, {when}: {first}" + (f", and {others:,} more" if others else ""))


def _text(facts: dict[str, Any], token: str) -> str:
    """The plain twin: the same papers, in the same order, with the same links."""
    parts = [f"ORRERY PAPERS: {facts['date']}", letters.paragraph(facts["summary"])]
    if facts["changed"]:
        parts.append(_rule("Verdicts"))
        for verdict in facts["changed"]:
            lines = [letters.paragraph(verdict["title"]), letters.paragraph(f"{verdict['old']} -> {verdict['new']}", "  ")]
            parts.append("\n".join([*lines, f"  {verdict['link']}"]))
    if facts["new"]:
        parts.append(_rule("New"))
        for card in facts["new"]:
            lines = [letters.paragraph(card["title"])]
            lines += [letters.paragraph(card["authors"], "  ")] if card["authors"] else []
            lines += [letters.paragraph(card["words"], "  ")] if card["words"] else []
            lines += [letters.paragraph("[" + "] [".join(card["chips"]) + "]", "  ")] if card["chips"] else []
            lines += [f"  $ {card['command']}"] if card["command"] else []
            parts.append("\n".join([*lines, f"  {card['link']}"]))
        if facts["more"]:
            parts.append(f"and {facts['more']} more:\n  {facts['more_link']}")
    if facts["trending"]:
        parts.append(_rule("Trending"))
        for number, card in enumerate(facts["trending"], 1):
            parts.append(letters.paragraph(card["title"], "   ", f"{number}. ") + f"\n   {card['link']}")
    why = letters.paragraph(f"You get this {facts['frequency']} because you asked for {facts['about']} at {facts['email']}.")
    parts.append(f"-- \n{why}\n\nUnsubscribe:\n{facts['unsubscribe']}\nor: orrery papers unsubscribe {token}")
    return "\n\n".join(parts) + "\n"


def _rule(text: str) -> str:
    return f"{text.upper()}\n{'-' * letters.WIDTH}"
