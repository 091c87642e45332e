"""Readers and what they do to the list: votes, submissions, picks; signing in by a mailed link.

On one machine reader 1, the owner, is whoever holds the store. Served to others, a reader is a confirmed mailbox: a signed
link, good for half an hour and for one use. Roles: `owner`, `curator` (picks, moderates, submits without waiting),
`reader`, `blocked` (reads only).

Against stuffing: a vote is one per reader and paper; a reader changes a hundred votes a day; a mailbox is one reader
however its address is spelt (`a+b@x` is `a@x`); a domain brings at most fifty new readers a day; twenty submissions of one
reader may wait. Limits are judged before an event is written and never when it is replayed.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from orrery.catalogue import keys, letters, mail, merge, record, tokens
from orrery.catalogue.events import Event, Unchanged
from orrery.catalogue.subscriptions import TooMany, limit_mails, link
from orrery.core.errors import ConfigError, DataError, OrreryError, UnknownNameError

if TYPE_CHECKING:
    from orrery.catalogue.mail import Mailer
    from orrery.catalogue.record import Paper
    from orrery.catalogue.store import Store

OWNER = 1  # the one user of a local machine
ROLES = ("owner", "curator", "reader", "blocked")
SIGN_IN, SIGN_IN_PATH = "sign-in", "/sign-in"
SIGN_IN_AGE = timedelta(minutes=30)
VOTES_PER_DAY = 100  # changes of one reader
READERS_PER_DAY = 50  # new ones of one domain
WAITING = 20  # submissions of one reader
STATES = ("waiting", "accepted", "declined")
_SUBMITTED = ("title", "arxiv", "doi", "url", "year", "date", "abstract", "authors")  # what strangers may say of a paper


class NotAllowed(OrreryError):
    """This reader may not do that."""


@dataclass(frozen=True)
class Reader:
    """Who votes, picks or submits; the local owner has no address."""

    id: int
    email: str | None
    name: str
    role: str
    created: str
    last_seen: str | None = None

    @property
    def curates(self) -> bool:
        """Whether picks and moderation are theirs."""
        return self.role in ("owner", "curator")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able facts."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class Submission:
    """A paper that somebody put forward. `paper` is the slug of what it became, or already was."""

    id: int
    at: str
    reader: int | None
    fields: dict[str, Any]
    state: str
    note: str = ""
    paper: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able facts."""
        return dict(self.__dict__)


# ---------------------------------------------------------------- readers


def reader(store: Store, key: int | str = OWNER) -> Reader:
    """A reader by number or address.

    Raises:
        UnknownNameError: there is none.
    """
    column = "id" if isinstance(key, int) else "email"
    row = store.connection().execute(f"SELECT * FROM readers WHERE {column} = ? COLLATE NOCASE", (key,)).fetchone()
    if row is None:
        raise UnknownNameError(f"no reader '{mail.clean(str(key))[:80]}' in this store")
    return Reader(**dict(row))


def readers(store: Store) -> list[Reader]:
    """All of them, in the order in which they came."""
    return [Reader(**dict(row)) for row in store.connection().execute("SELECT * FROM readers ORDER BY id")]


def set_role(store: Store, key: int | str, role: str, by: int = OWNER) -> Reader:
    """Make somebody curator, reader or blocked; only the owner may.

    Raises:
        NotAllowed: `by` is not the owner, or the owner would lose the role.
    """
    if role not in ROLES[1:]:
        raise ConfigError(f"'{mail.clean(role)[:40]}' is no role to give; roles are {', '.join(ROLES[1:])}")
    if reader(store, by).role != "owner":
        raise NotAllowed("only the owner of the store gives roles")
    found = reader(store, key)
    if found.id == OWNER:
        raise NotAllowed("the owner of the store stays its owner")
    return Reader(**store.record("reader", {"reader": found.id, "role": role}))


def set_name(store: Store, key: int, name: str) -> Reader:
    """The name under which picks are shown (`by ... and the community`)."""
    shown = mail.clean(name)[:80]
    if not shown:
        raise ConfigError("a name has at least one letter")
    return Reader(**store.record("reader", {"reader": reader(store, key).id, "name": shown}))


def request_sign_in(store: Store, email: str, base_url: str, mailer: Mailer, *, at: datetime | None = None) -> None:
    """Mail a link that signs its reader in, once, within half an hour. An unknown mailbox becomes a reader by using it,
    so the answer is the same for everybody and tells nobody who is a reader here.

    Raises:
        ConfigError: no address. TooMany: asked too often. MailError: it could not be sent.
    """
    at = at or datetime.now(timezone.utc)
    found = mail.address(email)
    limit_mails(store, "sign-in", found, at)
    token = tokens.sign(tokens.secret(store.folder), SIGN_IN, [found, tokens.nonce()], at)
    address = link(base_url, SIGN_IN_PATH, token)
    minutes = int(SIGN_IN_AGE.total_seconds()) // 60
    mailer.send(
        letters.sign_in(sender=mailer.sender, to=mail.person("", found), link=address, base_url=base_url, at=at, minutes=minutes)
    )


def sign_in(store: Store, token: str, *, at: datetime | None = None) -> Reader:
    """The reader of a mailed link; the link is used up.

    Raises:
        TokenError: not ours, expired, or used before.
        TooMany: too many new readers of this domain today.
        NotAllowed: the mailbox has an account under another spelling.
    """
    at = at or datetime.now(timezone.utc)
    email, nonce = tokens.read(tokens.secret(store.folder), SIGN_IN, token, at, SIGN_IN_AGE)
    connection = store.connection()
    if _by_email(connection, email) is None:
        domain, day = email.rpartition("@")[2], record.second(at)[:10]
        ask = "SELECT COUNT(*) FROM readers WHERE email LIKE '%@' || ? AND created >= ?"
        if connection.execute(ask, (domain, day)).fetchone()[0] >= READERS_PER_DAY:
            raise TooMany(f"too many new readers of '{domain}' today; try again tomorrow")
    until = record.second(at + SIGN_IN_AGE + tokens.SKEW)
    return Reader(**store.record("sign_in", {"email": email, "nonce": nonce, "until": until}, at))


# ---------------------------------------------------------------- votes and picks


def vote(store: Store, key: str, reader: int = OWNER) -> int:
    """One reader's vote for a paper; the paper's votes afterwards. Voting twice is one vote.

    Raises:
        UnknownNameError: no such paper, with near names. TooMany: a hundred changes today. NotAllowed: blocked.
    """
    return _change_vote(store, "vote", key, reader)


def unvote(store: Store, key: str, reader: int = OWNER) -> int:
    """Take the vote back; the paper's votes afterwards."""
    return _change_vote(store, "unvote", key, reader)


def voted(store: Store, reader: int, slugs: list[str] | None = None) -> set[str]:
    """Slugs that this reader voted for (among `slugs`, when given)."""
    ask = "SELECT p.slug FROM votes v JOIN papers p ON p.id = v.paper WHERE v.reader = ?"
    found = {str(row["slug"]) for row in store.connection().execute(ask, (reader,))}
    return found if slugs is None else found & set(slugs)


def _change_vote(store: Store, kind: str, key: str, number: int) -> int:
    who = _active(store, number)
    slug = store.paper(key).slug
    if who.id != OWNER:
        day, _, changes = _meta(store.connection(), f"votes:{who.id}").partition(" ")
        if day == record.second()[:10] and int(changes or 0) >= VOTES_PER_DAY:
            raise TooMany(f"{VOTES_PER_DAY} votes a day are enough; more tomorrow")
    return int(store.record(kind, {"paper": slug, "reader": who.id}))


def pick(store: Store, key: str, reader: int = OWNER, *, remove: bool = False) -> list[str]:
    """A curator's pick (or its end); names of all who picked the paper, afterwards.

    Raises:
        NotAllowed: the reader is no curator.
    """
    who = _curator(store, reader)
    return list(store.record("pick", {"paper": store.paper(key).slug, "reader": who.id, "on": not remove}))


def picked_by(store: Store, slug: str) -> list[str]:
    """Names of the curators who picked a paper, first pick first."""
    return _pickers(store.connection(), store.paper(slug).slug)


def picks(store: Store, slugs: Sequence[str]) -> dict[str, dict[int, str]]:
    """Of some papers those that were picked: the curators, number and name, first pick first."""
    marks = ", ".join("?" * len(slugs))
    ask = (
        "SELECT p.slug, r.id, r.name FROM picks k JOIN papers p ON p.id = k.paper JOIN readers r ON r.id = k.by"
        f" WHERE p.slug IN ({marks}) ORDER BY k.at, k.by"
    )
    found: dict[str, dict[int, str]] = {}
    for slug, number, name in store.connection().execute(ask, list(slugs)):
        found.setdefault(slug, {})[number] = name
    return found


def latest_picks(store: Store, limit: int = 5) -> list[Paper]:
    """The papers that were picked last, newest pick first."""
    ask = "SELECT p.slug FROM picks k JOIN papers p ON p.id = k.paper GROUP BY p.id ORDER BY MAX(k.at) DESC, p.id DESC LIMIT ?"
    return store.papers([row["slug"] for row in store.connection().execute(ask, (limit,))])


# ---------------------------------------------------------------- submissions


def submit(store: Store, what: str | Mapping[str, Any], reader: int = OWNER) -> Submission:
    """Put a paper forward: an arXiv id or address, one BibTeX entry, or fields (title, arxiv, doi, url, year, authors ...).

    Curators' submissions are accepted at once where a title is known; others wait for a moderator. A paper that is in the
    store already is answered with itself (state `accepted`, its slug) and nothing is written.

    Raises:
        DataError: nothing of that kind can be read from it. TooMany: twenty of this reader's wait. NotAllowed: blocked.
    """
    who = _active(store, reader)
    fields = _fields(what)
    if (known := _known(store, fields)) is not None:
        return Submission(0, record.second(), who.id, fields, "accepted", "it is in the catalogue", known)
    waiting = [each for each in submissions(store, "waiting") if each.reader == who.id]
    for each in waiting:
        if each.fields == fields:
            return each
    if len(waiting) >= WAITING and not who.curates:
        raise TooMany(f"{WAITING} of your submissions wait for a moderator; the next one when some are decided")
    found = _submission(store.record("submit", {"reader": who.id, "fields": fields}))
    if who.curates and "title" in fields:
        return moderate(store, found.id, True, "", who.id)
    return found


def moderate(
    store: Store, number: int, accept: bool, note: str = "", reader: int = OWNER, *, fields: Mapping[str, Any] | None = None
) -> Submission:
    """Decide about a submission. `fields` complete or correct it (a bare arXiv id needs its title from somewhere).

    Raises:
        NotAllowed: the reader is no curator. ConfigError: decided already, or accepted without a title.
    """
    who = _curator(store, reader)
    found = submission(store, number)
    if found.state != "waiting":
        raise ConfigError(f"submission {number} was {found.state} already")
    merged = {**found.fields, **_checked(fields or {}, found.fields)} if fields else found.fields
    if accept and "title" not in merged:
        raise ConfigError(f"submission {number} names only {_reference(merged)}; give its title, or fetch it from arXiv")
    facts = {"submission": number, "accept": accept, "note": mail.clean(note)[:500], "by": who.id, "fields": merged}
    return _submission(store.record("moderate", facts))


def submissions(store: Store, state: str | None = None) -> list[Submission]:
    """Submissions, oldest first.

    Raises:
        ConfigError: an unknown state.
    """
    if state is not None and state not in STATES:
        raise ConfigError(f"'{mail.clean(state)[:40]}' is no state of a submission; states are {', '.join(STATES)}")
    ask = f"{_SUBMISSIONS} WHERE ? IS NULL OR s.state = ? ORDER BY s.id"
    return [_submission(dict(row)) for row in store.connection().execute(ask, (state, state))]


def submission(store: Store, number: int) -> Submission:
    """One of them.

    Raises:
        UnknownNameError: there is none of that number.
    """
    row = store.connection().execute(f"{_SUBMISSIONS} WHERE s.id = ?", (number,)).fetchone()
    if row is None:
        raise UnknownNameError(f"no submission {number}; `orrery papers moderate` lists those that wait")
    return _submission(dict(row))


def _fields(what: str | Mapping[str, Any]) -> dict[str, Any]:
    """What was put forward, as clean fields; a bare arXiv id has no title yet."""
    if not isinstance(what, str):
        return _checked(what, {})
    text = what.strip()
    if identifier := keys.arxiv_id(text):
        return {"arxiv": identifier}
    if text.startswith("@"):
        from orrery.catalogue import bibtex

        found = bibtex.read(text)
        if len(found) != 1:
            raise DataError(f"one submission is one BibTeX entry, not {len(found)}; `orrery papers import` takes whole files")
        return _checked(found[0], {})
    raise DataError(f"'{mail.clean(text)[:60]}' is neither an arXiv id nor BibTeX; give a title and an address as fields")


def _checked(fields: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in fields.items() if name in _SUBMITTED and value not in (None, "", [], ())}
    title = given.get("title") or known.get("title")
    if not title and given.get("arxiv"):
        return {"arxiv": record.clean({**given, "title": "-"})["arxiv"]}
    found = record.clean({**given, "title": title})
    if not known and not {"arxiv", "doi", "url"} & set(found):
        raise DataError("it names no place to read it; give an arXiv id, a DOI or an address")
    return found


def _known(store: Store, fields: Mapping[str, Any]) -> str | None:
    for name in ("arxiv", "doi"):
        if fields.get(name):
            try:
                return store.paper(fields[name]).slug
            except UnknownNameError:
                pass
    if "title" not in fields:
        return None
    ask = "SELECT slug FROM papers WHERE title_key = ? AND (arxiv IS NULL OR ? IS NULL OR arxiv = ?)"
    row = store.connection().execute(ask, (keys.title_key(fields["title"]), fields.get("arxiv"), fields.get("arxiv"))).fetchone()
    return str(row["slug"]) if row is not None else None


def _reference(fields: Mapping[str, Any]) -> str:
    return f"arXiv {fields['arxiv']}" if fields.get("arxiv") else "an address"


# ---------------------------------------------------------------- handlers: what the events do


def apply_reader(connection: sqlite3.Connection, event: Event) -> dict[str, Any]:
    """A reader's role or name."""
    facts = event.facts
    found = _reader(connection, facts["reader"])
    for column in ("role", "name"):
        if column in facts:
            connection.execute(f"UPDATE readers SET {column} = ? WHERE id = ?", (facts[column], found["id"]))
    return _same(found, _reader(connection, found["id"]))


def apply_sign_in(connection: sqlite3.Connection, event: Event) -> dict[str, Any]:
    """Use a link up and let its reader in, a new one where the mailbox is new."""
    facts = event.facts
    key = f"used:{facts['nonce']}"
    if _meta(connection, key):
        raise tokens.TokenError("this link was used before; ask for a new one")
    connection.execute("DELETE FROM meta WHERE key LIKE 'used:%' AND value < ?", (event.at,))
    connection.execute("INSERT INTO meta VALUES (?, ?)", (key, facts["until"]))
    row = _by_email(connection, facts["email"])
    if row is None:
        ask = "INSERT INTO readers (email, name, role, created, last_seen) VALUES (?, ?, 'reader', ?, ?)"
        name = facts["email"].partition("@")[0][:80]
        return _reader(connection, connection.execute(ask, (facts["email"], name, event.at, event.at)).lastrowid)
    if row["email"].casefold() != facts["email"].casefold():
        raise NotAllowed("this mailbox has an account under another spelling of its address; use that one")
    connection.execute("UPDATE readers SET last_seen = ? WHERE id = ?", (event.at, row["id"]))
    return _reader(connection, row["id"])


def apply_vote(connection: sqlite3.Connection, event: Event) -> int:
    """One vote per reader and paper."""
    paper, number = _paper_and_reader(connection, event)
    done = connection.execute("INSERT OR IGNORE INTO votes (paper, reader, at) VALUES (?, ?, ?)", (paper, number, event.at))
    return _count_votes(connection, event, paper, number, done.rowcount)


def apply_unvote(connection: sqlite3.Connection, event: Event) -> int:
    """The vote is gone."""
    paper, number = _paper_and_reader(connection, event)
    done = connection.execute("DELETE FROM votes WHERE paper = ? AND reader = ?", (paper, number))
    return _count_votes(connection, event, paper, number, done.rowcount)


def apply_pick(connection: sqlite3.Connection, event: Event) -> list[str]:
    """A pick appears or goes; a paper with a pick is curated, and so is one that was shipped."""
    paper, number = _paper_and_reader(connection, event)
    if event.facts["on"]:
        done = connection.execute("INSERT OR IGNORE INTO picks (paper, by, at) VALUES (?, ?, ?)", (paper, number, event.at))
    else:
        done = connection.execute("DELETE FROM picks WHERE paper = ? AND by = ?", (paper, number))
    slug = connection.execute("SELECT slug FROM papers WHERE id = ?", (paper,)).fetchone()["slug"]
    if done.rowcount == 0:
        raise Unchanged(_pickers(connection, slug))
    curated = "shipped OR EXISTS (SELECT 1 FROM picks WHERE paper = papers.id)"
    connection.execute(f"UPDATE papers SET curated = ({curated}) WHERE id = ?", (paper,))
    return _pickers(connection, slug)


def apply_submit(connection: sqlite3.Connection, event: Event) -> dict[str, Any]:
    """A submission waits."""
    payload = json.dumps(event.facts["fields"], ensure_ascii=False, sort_keys=True)
    ask = "INSERT INTO submissions (at, reader, payload, state) VALUES (?, ?, ?, 'waiting')"
    return _load(connection, connection.execute(ask, (event.at, event.facts["reader"], payload)).lastrowid)


def apply_moderate(connection: sqlite3.Connection, event: Event) -> dict[str, Any]:
    """A submission is decided; an accepted one becomes a paper, or part of the paper that it is."""
    facts = event.facts
    found = _load(connection, facts["submission"])
    if found["state"] != "waiting":
        raise ConfigError(f"submission {found['id']} was {found['state']} already")
    paper = None
    if facts["accept"]:
        paper = merge.put(connection, facts["fields"], at=event.at, source=f"submission {found['id']}").paper
    payload = json.dumps(facts["fields"], ensure_ascii=False, sort_keys=True)
    state = "accepted" if facts["accept"] else "declined"
    ask = "UPDATE submissions SET state = ?, note = ?, paper = ?, payload = ? WHERE id = ?"
    connection.execute(ask, (state, facts["note"], paper, payload, found["id"]))
    return _load(connection, found["id"])


# ---------------------------------------------------------------- rows

_SUBMISSIONS = (
    "SELECT s.id, s.at, s.reader, s.payload, s.state, s.note, p.slug AS paper FROM submissions s LEFT JOIN papers p ON p.id = s.paper"
)


def _load(connection: sqlite3.Connection, number: Any) -> dict[str, Any]:
    row = connection.execute(f"{_SUBMISSIONS} WHERE s.id = ?", (number,)).fetchone()
    if row is None:
        raise UnknownNameError(f"no submission {number}")
    return dict(row)


def _submission(row: dict[str, Any]) -> Submission:
    facts = dict(row)
    fields = json.loads(facts.pop("payload"))
    return Submission(**facts, fields=fields)


def _reader(connection: sqlite3.Connection, number: Any) -> dict[str, Any]:
    row = connection.execute("SELECT * FROM readers WHERE id = ?", (number,)).fetchone()
    if row is None:
        raise UnknownNameError(f"no reader {number}")
    return dict(row)


def _by_email(connection: sqlite3.Connection, email: str) -> sqlite3.Row | None:
    """The reader of a mailbox, whatever the spelling; an equal spelling first."""
    row: sqlite3.Row | None = connection.execute("SELECT * FROM readers WHERE email = ? COLLATE NOCASE", (email,)).fetchone()
    if row is not None:
        return row
    wanted = mail.mailbox_key(email)
    for other in connection.execute("SELECT * FROM readers WHERE email IS NOT NULL"):
        if mail.mailbox_key(other["email"]) == wanted:
            return other
    return None


def _paper_and_reader(connection: sqlite3.Connection, event: Event) -> tuple[int, int]:
    return merge.paper_id(connection, event.facts["paper"]), int(_reader(connection, event.facts["reader"])["id"])


def _count_votes(connection: sqlite3.Connection, event: Event, paper: int, number: int, changed: int) -> int:
    votes = int(connection.execute("SELECT COUNT(*) FROM votes WHERE paper = ?", (paper,)).fetchone()[0])
    if not changed:
        raise Unchanged(votes)
    connection.execute("UPDATE papers SET votes = ? WHERE id = ?", (votes, paper))
    key, today = f"votes:{number}", event.at[:10]
    day, _, before = _meta(connection, key).partition(" ")
    value = f"{today} {int(before) + 1 if day == today else 1}"
    connection.execute("INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (key, value))
    return votes


def _pickers(connection: sqlite3.Connection, slug: str) -> list[str]:
    ask = "SELECT r.name FROM picks k JOIN readers r ON r.id = k.by JOIN papers p ON p.id = k.paper WHERE p.slug = ? ORDER BY k.at, k.by"
    return [str(row["name"]) for row in connection.execute(ask, (slug,))]


def _meta(connection: sqlite3.Connection, key: str) -> str:
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return str(row["value"]) if row is not None else ""


def _same(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    if before == after:
        raise Unchanged(after)
    return after


def _active(store: Store, number: int) -> Reader:
    found = reader(store, number)
    if found.role == "blocked":
        raise NotAllowed("this reader may read, and nothing else")
    return found


def _curator(store: Store, number: int) -> Reader:
    found = reader(store, number)
    if not found.curates:
        raise NotAllowed("only curators pick and moderate")
    return found
