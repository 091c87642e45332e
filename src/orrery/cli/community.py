"""`orrery papers ...`, the people's part: votes, picks, submissions, subscriptions and digests by mail."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import typer

from orrery.cli import output, papers_data

if TYPE_CHECKING:
    from orrery.catalogue.community import Submission
    from orrery.catalogue.mail import Mailer

STORE = typer.Option(None, "--store", help="The folder of the papers (default: $ORRERY_PAPERS, else your data folder).")
JSON = typer.Option(False, "--json", help="For machines.")
AS = typer.Option("", "--as", help="The reader's mail address (default: the owner of this store).")
SMTP = typer.Option("", "--smtp", help="HOST or HOST:PORT of the mail server.")
SECURITY = typer.Option("starttls", help="starttls, tls or none (only for a server on this machine).")
USER = typer.Option("", help="The user at the mail server.")
PASSWORD_FILE = typer.Option(None, help="A file whose first line is the password (else the environment variable ORRERY_SMTP_PASSWORD).")
CAFILE = typer.Option(None, help="Certificates to trust instead of the system's.")
MAILBOX = typer.Option(None, "--mailbox", help="Write the mails into this folder as .eml files instead of sending them.")
SENDER = typer.Option("", "--from", help="Who signs the mails: 'Name <address>' (default: Orrery papers <USER>).")
BASE_URL = typer.Option("", "--base-url", help="The address at which readers reach your `orrery serve`, for the links in mails.")
PASSWORD_VARIABLE = "ORRERY_SMTP_PASSWORD"


def mailer_of(
    smtp: str, security: str, user: str, password_file: Path | None, cafile: Path | None, mailbox: Path | None, sender: str
) -> Mailer:
    """The mailer that the options describe.

    Raises:
        ConfigError: neither or both of --smtp and --mailbox, a port that is none, or a user without a password.
    """
    from orrery.catalogue import mail
    from orrery.core.errors import ConfigError

    if bool(smtp) == bool(mailbox):
        raise ConfigError("say where mails go: --smtp HOST:PORT, or --mailbox DIR for a local mailbox (one of the two)")
    sender = sender or (f"Orrery papers <{user}>" if "@" in user else mail.SENDER)
    if mailbox is not None:
        return mail.FileMailer(mailbox, sender)
    host, port = _host_and_port(smtp)
    password = _password(password_file) if user else ""
    ca = str(cafile) if cafile else None
    return mail.SmtpMailer(host, port, user, password, security, sender=sender, cafile=ca)


def _host_and_port(text: str) -> tuple[str, int]:
    from orrery.core.errors import ConfigError

    if text.startswith("["):  # [::1]:25
        host, _, rest = text[1:].partition("]")
        port = rest.lstrip(":")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    else:
        host, port = text, ""
    if port and not port.isdigit():
        raise ConfigError(f"'{port}' is no port; write --smtp mail.example.org:587")
    return host, int(port or 0)


def _password(file: Path | None) -> str:
    from orrery.core.errors import ConfigError, StorageError

    if file is None:
        found = os.environ.get(PASSWORD_VARIABLE, "")
    else:
        try:
            found = (file.read_text(encoding="utf-8").splitlines() or [""])[0]
        except (OSError, UnicodeDecodeError) as error:
            raise StorageError(f"cannot read the password file '{file}': {getattr(error, 'strerror', None) or error}") from error
    if not found:
        raise ConfigError(f"no password: set {PASSWORD_VARIABLE}, or give --password-file FILE; it is never an argument")
    return found


def _reader(store: Any, address: str) -> int:
    from orrery.catalogue import community

    return community.reader(store, address).id if address else community.OWNER


# ---------------------------------------------------------------- votes, picks, submissions


def vote(
    paper: str = typer.Argument(..., help="Its short name, arXiv id or DOI."),
    reader: str = AS,
    store: Optional[Path] = STORE,  # noqa: UP045
    as_json: bool = JSON,
) -> None:
    """Vote for a paper; one vote a reader.

    Example:  orrery papers vote 2310.04691
    """
    _vote(paper, reader, store, as_json, True)


def unvote(
    paper: str = typer.Argument(..., help="Its short name, arXiv id or DOI."),
    reader: str = AS,
    store: Optional[Path] = STORE,  # noqa: UP045
    as_json: bool = JSON,
) -> None:
    """Take a vote back.

    Example:  orrery papers unvote emo
    """
    _vote(paper, reader, store, as_json, False)


def _vote(key: str, reader: str, folder: Path | None, as_json: bool, up: bool) -> None:
    from orrery.catalogue import community
    from orrery.catalogue.store import Store

    with Store.open(folder) as store:
        number = (community.vote if up else community.unvote)(store, key, _reader(store, reader))
        paper = store.paper(key)
    if as_json:
        output.say_json({"slug": paper.slug, "title": paper.title, "votes": number})
    else:
        print(f"{number} vote{'s' if number != 1 else ''}: {paper.title}")


def pick(
    paper: str = typer.Argument(..., help="Its short name, arXiv id or DOI."),
    remove: bool = typer.Option(False, "--remove", help="Take the pick back."),
    reader: str = AS,
    store: Optional[Path] = STORE,  # noqa: UP045
    as_json: bool = JSON,
) -> None:
    """A curator's pick.

    Example:  orrery papers pick emo
    """
    from orrery.catalogue import community
    from orrery.catalogue.store import Store

    with Store.open(store) as opened:
        names = community.pick(opened, paper, _reader(opened, reader), remove=remove)
        found = opened.paper(paper)
    if as_json:
        output.say_json({"slug": found.slug, "title": found.title, "picked_by": names})
    else:
        print(f"{'picked by ' + ', '.join(names) if names else 'picked by nobody'}: {found.title}")


def submit(
    what: str = typer.Argument("", help="An arXiv id or address, a BibTeX entry, or '-' to read BibTeX from standard input."),
    title: str = typer.Option("", help="The title, where there is no arXiv id."),
    url: str = typer.Option("", help="Where it can be read."),
    doi: str = typer.Option("", help="Its DOI."),
    year: Optional[int] = typer.Option(None, help="Its year."),  # noqa: UP045
    author: list[str] = typer.Option([], help="An author (may be repeated)."),
    abstract: str = typer.Option("", help="Its abstract."),
    fetch: bool = typer.Option(False, "--fetch", help="Ask arXiv for title, authors and abstract."),
    base: str = typer.Option("", hidden=True),
    reader: str = AS,
    store: Optional[Path] = STORE,  # noqa: UP045
    as_json: bool = JSON,
) -> None:
    """Put a paper forward; a curator's is in the catalogue at once, another's waits for `orrery papers moderate`.

    Example:  orrery papers submit 2405.21060 --fetch     orrery papers submit --title "A paper" --url https://example.org/a.pdf
    """
    from orrery.catalogue import community
    from orrery.catalogue.store import Store
    from orrery.core.errors import ConfigError

    text = typer.get_text_stream("stdin").read(1 << 20) if what == "-" else what
    given = {"title": title, "url": url, "doi": doi, "year": year, "authors": author, "abstract": abstract}
    fields: dict[str, Any] = {name: value for name, value in given.items() if value}
    if bool(text.strip()) == bool(fields) and not (text.strip() and not text.lstrip().startswith("@")):
        raise ConfigError("say which paper: an arXiv id, BibTeX, or --title with --url or --doi")
    with Store.open(store) as opened:
        whole: Any = {**fields, "arxiv": text.strip()} if fields and text.strip() else fields or text
        if fetch:
            whole = papers_data.arxiv_record(text, base)
        _say_submission(community.submit(opened, whole, _reader(opened, reader)), as_json)


def _say_submission(found: Submission, as_json: bool) -> None:
    if as_json:
        output.say_json(found.to_dict())
        return
    name = found.fields.get("title") or f"arXiv {found.fields.get('arxiv')}"
    where = f" as {found.paper}" if found.paper else ""
    number = f"submission {found.id}, " if found.id else ""
    print(f"{number}{found.state}{where}: {name}" + (f" ({found.note})" if found.note else ""))
    if found.state == "waiting" and "title" not in found.fields:
        output.remark(f"its title is not known yet: orrery papers moderate {found.id} accept --fetch, or --title '...'")


def moderate(
    number: Optional[int] = typer.Argument(None, help="A submission; none lists those that wait."),  # noqa: UP045
    decision: str = typer.Argument("", help="accept or decline."),
    note: str = typer.Option("", help="A word to the reader."),
    title: str = typer.Option("", help="Its title, where the submission has none or a wrong one."),
    fetch: bool = typer.Option(False, "--fetch", help="Ask arXiv for title, authors and abstract."),
    state: str = typer.Option("waiting", help="Which to list: waiting, accepted, declined or all."),
    base: str = typer.Option("", hidden=True),
    reader: str = AS,
    store: Optional[Path] = STORE,  # noqa: UP045
    as_json: bool = JSON,
) -> None:
    """List submissions, or decide about one.

    Example:  orrery papers moderate     orrery papers moderate 3 accept     orrery papers moderate 4 decline --note "off topic"
    """
    from orrery.catalogue import community
    from orrery.catalogue.store import Store
    from orrery.core.errors import ConfigError

    with Store.open(store) as opened:
        if number is None:
            _list_submissions(community.submissions(opened, None if state == "all" else state), as_json)
            return
        if decision not in ("accept", "decline"):
            raise ConfigError(f"say what becomes of submission {number}: accept or decline")
        fields: dict[str, Any] = {"title": title} if title else {}
        if fetch:
            fields = papers_data.arxiv_record(str(community.submission(opened, number).fields.get("arxiv", "")), base) | fields
        found = community.moderate(opened, number, decision == "accept", note, _reader(opened, reader), fields=fields or None)
        _say_submission(found, as_json)


def _list_submissions(found: list[Submission], as_json: bool) -> None:
    if as_json:
        output.say_json([each.to_dict() for each in found])
    elif found:
        rows = [(s.id, s.at[:10], s.state, s.fields.get("title") or f"arXiv {s.fields.get('arxiv')}", s.paper or "") for s in found]
        output.say_table(("number", "when", "state", "paper", "became"), rows, right=(0,))
    else:
        print("no submissions")


def readers(
    who: str = typer.Argument("", help="A reader's mail address; none lists all."),
    role: str = typer.Option("", help="Make the reader curator, reader or blocked."),
    name: str = typer.Option("", help="The name under which the reader's picks are shown."),
    store: Optional[Path] = STORE,  # noqa: UP045
    as_json: bool = JSON,
) -> None:
    """Readers and their roles: owner, curator (picks, moderates), reader, blocked. `owner` names the owner.

    Example:  orrery papers readers     orrery papers readers ada@example.org --role curator --name Ada
    """
    from orrery.catalogue import community
    from orrery.catalogue.store import Store
    from orrery.core.errors import ConfigError

    with Store.open(store) as opened:
        if who:
            key: int | str = community.OWNER if who == "owner" else who
            found = community.reader(opened, key)
            if role:
                found = community.set_role(opened, found.id, role)
            if name:
                found = community.set_name(opened, found.id, name)
            listed = [found]
        elif role or name:
            raise ConfigError("say whose: orrery papers readers ADDRESS --role ...")
        else:
            listed = community.readers(opened)
    if as_json:
        output.say_json([each.to_dict() for each in listed])
        return
    rows = [(r.id, r.name, r.email or "", r.role, r.created[:10], (r.last_seen or "")[:10]) for r in listed]
    output.say_table(("number", "name", "address", "role", "since", "last seen"), rows, right=(0,))


# ---------------------------------------------------------------- subscriptions and digests


def subscribe(
    email: str = typer.Argument(..., help="The address that gets the digest."),
    daily: bool = typer.Option(False, "--daily", help="A digest a day (the default)."),
    weekly: bool = typer.Option(False, "--weekly", help="A digest a week."),
    topic: list[str] = typer.Option([], help="Only this topic (may be repeated; see `orrery papers topics`)."),
    smtp: str = SMTP,
    security: str = SECURITY,
    user: str = USER,
    password_file: Optional[Path] = PASSWORD_FILE,  # noqa: UP045
    cafile: Optional[Path] = CAFILE,  # noqa: UP045
    mailbox: Optional[Path] = MAILBOX,  # noqa: UP045
    sender: str = SENDER,
    base_url: str = BASE_URL,
    store: Optional[Path] = STORE,  # noqa: UP045
    as_json: bool = JSON,
) -> None:
    """Ask for digests by mail; they begin when the link in the first mail is confirmed.

    Without --smtp the mail is written into the store's own mailbox, a folder of .eml files.

    Example:  orrery papers subscribe me@example.org --weekly --topic recurrence --mailbox ~/mails
    """
    from orrery.catalogue import digest, subscriptions
    from orrery.catalogue.store import Store
    from orrery.core.errors import ConfigError

    if daily and weekly:
        raise ConfigError("a subscription is daily or weekly, not both")
    with Store.open(store) as opened:
        if not smtp and mailbox is None:
            mailbox = opened.folder / "mailbox"
        mailer = mailer_of(smtp, security, user, password_file, cafile, mailbox, sender)
        try:
            frequency = "weekly" if weekly else "daily"
            found = subscriptions.subscribe(opened, email, frequency, topic, base_url or digest.BASE_URL, mailer)
        finally:
            mailer.close()
    if as_json:
        output.say_json(found.to_dict())
        return
    print(f"a mail is on its way to {found.email}; its link confirms the {frequency} digest")
    if mailbox:
        output.remark(f"the mail lies in '{mailbox}'")


def confirm(
    token: str = typer.Argument(..., help="The token of the mail, or the whole link."),
    store: Optional[Path] = STORE,  # noqa: UP045
    as_json: bool = JSON,
) -> None:
    """Confirm a subscription by the token of its first mail.

    Example:  orrery papers confirm W1szLCJkYWlseSIs...
    """
    from orrery.catalogue import subscriptions
    from orrery.catalogue.store import Store

    with Store.open(store) as opened:
        found = subscriptions.confirm(opened, token)
    if as_json:
        output.say_json(found.to_dict())
    else:
        print(f"{found.email} gets a {found.frequency} digest of {', '.join(found.topics) or 'all topics'}")


def unsubscribe(
    who: str = typer.Argument(..., help="The token or link of a mail, or the address itself."),
    store: Optional[Path] = STORE,  # noqa: UP045
    as_json: bool = JSON,
) -> None:
    """End a subscription.

    Example:  orrery papers unsubscribe me@example.org
    """
    from orrery.catalogue import subscriptions
    from orrery.catalogue.store import Store

    with Store.open(store) as opened:
        by_address = "@" in who and "token=" not in who
        found = subscriptions.unsubscribe_address(opened, who) if by_address else subscriptions.unsubscribe(opened, who)
    if as_json:
        output.say_json(found.to_dict())
    else:
        print(f"{found.email} gets no more digests")


def list_subscriptions(
    state: str = typer.Option("", help="pending, active, ended or bounced."),
    store: Optional[Path] = STORE,  # noqa: UP045
    as_json: bool = JSON,
) -> None:
    """Who gets digests.

    Example:  orrery papers subscriptions --state active
    """
    from orrery.catalogue import subscriptions
    from orrery.catalogue.store import Store

    with Store.open(store) as opened:
        found = subscriptions.subscriptions(opened, state or None)
    if as_json:
        output.say_json([each.to_dict() for each in found])
        return
    rows = [(s.email, s.frequency, ", ".join(s.topics) or "all", s.state, s.created[:10]) for s in found]
    output.say_table(("address", "frequency", "topics", "state", "since"), rows)


def digest(
    daily: bool = typer.Option(False, "--daily", help="The daily subscriptions."),
    weekly: bool = typer.Option(False, "--weekly", help="The weekly subscriptions."),
    smtp: str = SMTP,
    security: str = SECURITY,
    user: str = USER,
    password_file: Optional[Path] = PASSWORD_FILE,  # noqa: UP045
    cafile: Optional[Path] = CAFILE,  # noqa: UP045
    mailbox: Optional[Path] = MAILBOX,  # noqa: UP045
    sender: str = SENDER,
    base_url: str = BASE_URL,
    dry_run: bool = typer.Option(False, "--dry-run", help="Only say what would be sent."),
    again: bool = typer.Option(False, "--again", help="Also send letters of which nobody knows whether they left."),
    store: Optional[Path] = STORE,  # noqa: UP045
    as_json: bool = JSON,
) -> None:
    """Send the digests that are due, each once; after a failure run it again and only the rest is sent.

    Exit code 1 when some letters are left for the next run; 3 when only such are left of which nobody knows whether
    they left, so that another run would change nothing without --again.

    Example:  orrery papers digest --daily --smtp mail.example.org:587 --user papers@example.org --base-url https://papers.example.org
    """
    from orrery.catalogue import delivery, mail
    from orrery.catalogue import digest as digests
    from orrery.catalogue.store import Store
    from orrery.core.errors import ConfigError

    if daily == weekly:
        raise ConfigError("say which digests: --daily or --weekly")
    if dry_run and not smtp and not mailbox:
        mailer: Mailer = mail.FileMailer(Path("nowhere"), sender or mail.SENDER)
    else:
        mailer = mailer_of(smtp, security, user, password_file, cafile, mailbox, sender)
    with Store.open(store) as opened:
        report = delivery.send_due(
            opened,
            mailer,
            base_url=base_url or digests.BASE_URL,
            frequency="daily" if daily else "weekly",
            again=again,
            dry_run=dry_run,
            quiet=as_json,
        )
    if as_json:
        output.say_json(report.to_dict())
    else:
        for line in report.sentences():
            print(line)
    if not report.complete:
        raise typer.Exit(1 if report.later else 3)
