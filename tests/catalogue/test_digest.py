"""Subscriptions and digests: double opt-in, one click to leave, each letter once whatever dies in the middle."""

import email
import email.policy
import json
import os
import re
import signal
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser

import pytest

from catalogue import people, smtp
from catalogue.people import NOW, URL, Outbox
from orrery.catalogue import delivery, digest, mail, status, subscriptions, tokens, topics
from orrery.catalogue.lock import exclusive
from orrery.core.errors import ConfigError, StorageError, UnknownNameError

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.fixture
def store(tmp_path, monkeypatch):
    yield from people.open_store(tmp_path, monkeypatch)


def joined(store, address="ada@example.org", frequency="daily", about=(), at=NOW):
    box = Outbox()
    subscriptions.subscribe(store, address, frequency, about, URL, box, at=at)
    return subscriptions.confirm(store, box.token(), at=at)


def add(store, *titles, at=NOW, **fields):
    store.record("import", {"source": "test", "papers": [{"title": title, **fields} for title in titles]}, at=at)


def send(store, mailer, at=NOW + HOUR, **options):
    return delivery.send_due(store, mailer, at, URL, **options)


def parts(letter):
    return [letter.get_body((kind,)).get_content() for kind in ("plain", "html")]


# ---------------------------------------------------------------- subscriptions


def test_nothing_is_sent_before_the_link_is_pressed(store):
    box = Outbox()
    wish = subscriptions.subscribe(store, "Ada@Example.org", "weekly", ["recurrence", "attention", "recurrence"], URL, box, at=NOW)
    assert (wish.state, wish.email, wish.topics) == ("pending", "Ada@example.org", ("attention", "recurrence"))
    (letter,) = box.letters
    text, html = parts(letter)
    assert f"{URL}/subscribe/confirm?token=" in text and f"{URL}/subscribe/confirm?token=" in html and "weekly" in text
    assert not send(store, Outbox()).sent
    link = re.search(r"https://\S+token=\S+", text)[0]
    assert subscriptions.confirm(store, link, at=NOW + HOUR).state == "active"
    assert subscriptions.confirm(store, link, at=NOW + 2 * HOUR).confirmed == "2026-11-22T08:00:00Z", "pressed twice is once"
    with pytest.raises(tokens.ExpiredToken, match="7 days"):
        subscriptions.confirm(store, link, at=NOW + 8 * DAY)


def test_a_stranger_changes_nothing(store):
    before = joined(store, about=["recurrence"])
    box = Outbox()
    subscriptions.subscribe(store, "ada@example.org", "weekly", [], URL, box, at=NOW + DAY)
    assert subscriptions.subscriptions(store) == [before], "only the mailbox's owner can press the link"
    changed = subscriptions.confirm(store, box.token(), at=NOW + DAY)
    assert (changed.id, changed.frequency, changed.topics, changed.confirmed) == (before.id, "weekly", (), before.confirmed)


def test_one_click_leaves_for_good(store):
    box = Outbox()
    subscriptions.subscribe(store, "ada@example.org", "daily", [], URL, box, at=NOW)
    first = box.token()
    subscription = subscriptions.confirm(store, first, at=NOW)
    token = subscriptions.unsubscribe_token(store, subscription, NOW)
    for _ in range(2):
        assert subscriptions.unsubscribe(store, f"{URL}/unsubscribe?token={token}", at=NOW + 300 * DAY).state == "ended"
    with pytest.raises(tokens.TokenError, match="was ended after"):
        subscriptions.confirm(store, first, at=NOW + HOUR)
    with pytest.raises(tokens.TokenError):
        subscriptions.unsubscribe(store, first, at=NOW)
    assert joined(store, at=NOW + 301 * DAY).state == "active", "who comes back is welcome"
    assert subscriptions.unsubscribe_address(store, "ADA@example.org").state == "ended"
    with pytest.raises(UnknownNameError):
        subscriptions.unsubscribe_address(store, "bob@example.org")


@pytest.mark.parametrize(
    ("address", "frequency", "about", "words"),
    [
        ("ada", "daily", [], "no mail address"),
        ("ada@example.org\r\nBcc: b@example.org", "daily", [], "line breaks"),
        ("ada@example.org", "hourly", [], "daily or weekly"),
        ("ada@example.org", "daily", ["recurence"], "'recurrence'"),
    ],
)
def test_bad_wishes(store, address, frequency, about, words):
    box = Outbox()
    with pytest.raises(ConfigError, match=words):
        subscriptions.subscribe(store, address, frequency, about, URL, box)
    assert not box.letters and not subscriptions.subscriptions(store)


def test_strangers_mailboxes_are_not_filled(store, monkeypatch):
    box = Outbox()

    def ask(addresses):
        for address in addresses:
            subscriptions.subscribe(store, address, "daily", [], URL, box, at=NOW)

    with pytest.raises(subscriptions.TooMany):
        ask(f"ada+{n}@example.org" for n in range(9))
    assert len(box.letters) == subscriptions.MAILS_PER_HOUR
    monkeypatch.setattr(subscriptions, "MAILS_PER_DAY", 5)
    with pytest.raises(subscriptions.TooMany, match="today"):
        ask(f"reader{n}@example.org" for n in range(9))
    assert len(box.letters) == 5
    subscriptions.subscribe(store, "late@example.org", "daily", [], URL, box, at=NOW + DAY)


# ---------------------------------------------------------------- what a digest tells


def test_periods():
    assert digest.period("daily", datetime(2026, 11, 22, 23, 59, tzinfo=timezone(timedelta(hours=-5)))) == "2026-11-23"
    assert digest.period("weekly", datetime(2027, 1, 1, tzinfo=timezone.utc)) == "2026-W53"


class Checker(HTMLParser):
    """Tags that are closed, and every address a mail program would ask for by itself."""

    def __init__(self):
        super().__init__()
        self.open, self.asks, self.text = [], [], []

    def handle_starttag(self, tag, attributes):
        self.asks += [value for name, value in attributes if name in ("src", "srcset", "background", "poster") or tag in ("script", "link", "img")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_a_digest_tells_what_is_new_of_ones_topics(store):
    ada = joined(store, about=["recurrence"])
    authors = ["Ä. B", *(f"C{n}" for n in range(6))]
    add(store, 'Gated Recurrence <script>alert(1)</script> & "more"', abstract="word " * 200, authors=authors, upvotes=7)
    add(store, "Old Attention Alone", at=NOW - 2 * DAY)
    for verdict in ("weaker", "reproduced at this scale"):
        status.set_verdict(store, "lunar-recurrence", verdict, at="2026-11-22T07:10:00Z")
    status.set_verdict(store, "solar-convolutions", "weaker", at="2026-11-22T07:10:00Z")
    found = digest.compose(store, ada, NOW + HOUR, URL)
    assert found == digest.compose(store, ada, NOW + HOUR, URL), "the same letter every time"
    assert [store.paper(slug).title[:16] for slug in found.new] == ["Gated Recurrence", "Lunar Recurrence"]
    assert found.changed == ("lunar-recurrence",)
    message = digest.letter(store, found, mail.parse_sender(mail.SENDER))
    text, html = parts(message)
    checker = Checker()
    checker.feed(html)
    assert checker.open == [] and checker.asks == [] and "<script" not in html and "javascript" not in html
    shown = " ".join(" ".join(checker.text).split())
    told = ("Sunday, 22 November 2026", "2 new papers and 1 changed verdict in your topic", "Ä. B, C0, C1, C2 and 3 others", "7 votes")
    for words in (*told, "Unsubscribe"):
        assert words in shown
    for words in ("2 new papers", "Gated Recurrence <script>", "not run -> reproduced at this scale", f"{URL}/paper/lunar-recurrence", "7 votes"):
        assert words in text
    assert "Solar" not in text and "Old Attention" not in text
    assert max(len(line) for line in text.splitlines() if "http" not in line and "unsubscribe" not in line) <= 72
    assert message["Subject"].startswith("Papers, 22 November: Gated Recurrence") and message["Subject"].endswith(", and 1 more")
    unsubscribe = re.fullmatch(r"<(https://\S+)>", message["List-Unsubscribe"])[1]
    assert message["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click" and unsubscribe in text and unsubscribe.partition("=")[2] in html
    assert subscriptions.unsubscribe(store, unsubscribe, at=NOW + DAY).state == "ended"


def test_nothing_is_told_twice_and_nothing_is_lost(store):
    joined(store)
    first, second, third = Outbox(), Outbox(), Outbox()
    assert send(store, first).sent == ["ada@example.org"]
    add(store, "Comets", at=NOW + HOUR)  # in the very second that the first digest ended with
    add(store, "Meteors", at=NOW + 2 * HOUR)
    assert send(store, second, NOW + 3 * HOUR).already == ["ada@example.org"] and not second.letters
    report = send(store, third, NOW + 3 * DAY)  # two days were left out
    assert report.sent and report.complete
    text = parts(third.letters[0])[0].partition("TRENDING")[0]
    assert "Comets" in text and "Meteors" in text and "Planetary" not in text
    assert send(store, third, NOW + 4 * DAY).nothing_new == ["ada@example.org"] and len(third.letters) == 1


def test_days_and_weeks_apart_and_the_moment_is_whole(store):
    joined(store, "day@example.org"), joined(store, "week@example.org", "weekly")
    box = Outbox()
    assert send(store, box, frequency="weekly").sent == ["week@example.org"]
    assert send(store, box, frequency="daily", dry_run=True).sent == ["day@example.org"] and len(box.letters) == 1
    assert "Week 47 of 2026" in parts(box.letters[0])[0]
    add(store, "Just Now", at=datetime.now(timezone.utc))
    delivery.send_due(store, box, None, URL, frequency="daily")
    assert "Just Now" in parts(box.letters[1])[0]


def test_topics_in_the_letter_are_the_lists(store):
    assert set(joined(store, about=list(topics.titles())).topics) == set(topics.titles())


# ---------------------------------------------------------------- sending


def crowd(store, count=6):
    return [joined(store, f"r{n}@example.org").email for n in range(count)]


@pytest.mark.parametrize(("dies", "lost"), [("mail", 0), ("data", 1), ("answer", 1)])
def test_a_server_that_dies_in_the_middle(store, dies, lost):
    """After three letters it is gone. Then it comes back; nobody gets a letter twice, and the one nobody knows of is named."""
    everybody = crowd(store)
    keeper = smtp.Keeper(dies_after=3, dies=dies)
    with smtp.serving(keeper) as server:
        mailer = mail.SmtpMailer("127.0.0.1", server.port, security="none", timeout=5)
        report = send(store, mailer)
    taken = 3 if dies != "answer" else len(keeper.letters)
    assert len(keeper.letters) == taken and not report.complete
    assert len(report.sent) + len(report.unknown) + len(report.later) == 6
    with smtp.serving(well := smtp.Keeper()) as server:
        mailer = mail.SmtpMailer("127.0.0.1", server.port, security="none")
        report = send(store, mailer, NOW + 2 * HOUR)
        again = send(store, mailer, NOW + 3 * HOUR)
    reached = keeper.receivers + well.receivers
    assert len(reached) == len(set(reached)), "nobody got it twice"
    assert not again.sent and (set(everybody) - set(reached)) <= {who for who, _ in again.unknown}
    assert (len(again.unknown) > 0) == bool(lost)
    if lost:
        with smtp.serving(well) as server:
            final = send(store, mail.SmtpMailer("127.0.0.1", server.port, security="none"), NOW + 4 * HOUR, again=True)
        assert final.complete and set(everybody) == set(keeper.receivers + well.receivers)
    ids = [email.message_from_bytes(content)["Message-ID"] for _, _, content in well.letters]
    assert len(ids) == len(set(ids))


def test_no_server_at_all_and_refusals(store):
    crowd(store, 4)
    with smtp.serving(smtp.Keeper()) as gone:
        pass
    report = send(store, mail.SmtpMailer("127.0.0.1", gone.port, security="none", timeout=2))
    assert len(report.later) == 4 and "no mail server answers" in report.later[3][1]
    keeper = smtp.Keeper(refuse={"r1@example.org": "550 5.1.1 no such user"}, later={"r2@example.org"})
    with smtp.serving(keeper) as server:
        report = send(store, mail.SmtpMailer("127.0.0.1", server.port, security="none"), NOW + 2 * HOUR)
        assert (len(report.sent), len(report.refused), len(report.later)) == (2, 1, 1)
        keeper.later.clear()
        report = send(store, mail.SmtpMailer("127.0.0.1", server.port, security="none"), NOW + 3 * HOUR)
    assert report.sent == ["r2@example.org"] and len(report.already) == 3
    add(store, "Comets", at=NOW + 10 * HOUR)
    with smtp.serving(smtp.Keeper()) as server, pytest.raises(mail.SenderRefused):
        send(store, mail.SmtpMailer("127.0.0.1", server.port, security="none", sender="nobody@example.org"), NOW + DAY)


def test_an_address_that_is_refused_three_times_gets_no_more(store):
    joined(store)
    with smtp.serving(smtp.Keeper(refuse={"ada@example.org": "550 5.1.1 no such user"})) as server:
        for day in range(5):
            add(store, f"Paper of day {day}", at=NOW + day * DAY)
            send(store, mail.SmtpMailer("127.0.0.1", server.port, security="none"), NOW + day * DAY + HOUR)
    (found,) = subscriptions.subscriptions(store)
    assert found.state == "bounced" and found.ended is not None
    assert store.connection().execute("SELECT COUNT(*) FROM deliveries").fetchone()[0] == 3


SENDING = """
import sys
from datetime import datetime, timezone
from orrery.catalogue import delivery, mail, shipped
from orrery.catalogue.store import Store
from pathlib import Path
shipped.FILE = Path(sys.argv[3])
mailer = mail.SmtpMailer("127.0.0.1", int(sys.argv[2]), security="none") if sys.argv[2].isdigit() else mail.FileMailer(sys.argv[2])
at = datetime(2026, 11, 22, 8, tzinfo=timezone.utc)
with Store.open(sys.argv[1]) as store:
    print(delivery.send_due(store, mailer, at, "https://papers.example.org").to_dict())
"""


def start(store, tmp_path, where):
    command = [sys.executable, "-c", SENDING, str(store.folder), str(where), str(tmp_path / "none.jsonl")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_a_sender_that_is_killed(store, tmp_path):
    """Killed while the server holds a whole letter and has not answered, the instant of which nobody knows; then again later."""
    everybody = crowd(store, 5)
    keeper = smtp.Keeper(slow=0.05)
    with smtp.serving(keeper) as server:
        sender = start(store, tmp_path, server.port)
        smtp.wait_for(lambda: len(keeper.letters) >= 2 or sender.poll() is not None, 60)
        assert sender.poll() is None, sender.stderr.read()
        keeper.slow, keeper.holding = 30.0, False
        smtp.wait_for(lambda: keeper.holding)
        with pytest.raises(StorageError, match="another process is sending"):
            send(store, Outbox())
        sender.send_signal(signal.SIGKILL)
        sender.wait()
        sender.stdout.close(), sender.stderr.close()
        keeper.slow = 0.0
        before = list(keeper.receivers)
        report = send(store, mail.SmtpMailer("127.0.0.1", server.port, security="none"), NOW + 2 * HOUR)
    assert len(report.unknown) == 1 and len(report.sent) == 5 - 1 - len(set(before))
    counts = {who: keeper.receivers.count(who) for who in everybody}
    assert max(counts.values()) == 1 and [who for who, n in counts.items() if n == 0] == [who for who, _ in report.unknown]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_mailbox_is_asked_what_it_has(store, tmp_path, monkeypatch, moment):
    """Ended before the file was written, or between that and writing it down: everybody has one letter afterwards."""
    everybody = crowd(store, 3)
    box = mail.FileMailer(tmp_path / "box")

    def die(message, ready):
        if moment == "after":
            mail.FileMailer.send(box, message)
        ready()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(box, "send", die)
        with pytest.raises(KeyboardInterrupt):
            send(store, box)
    report = send(store, box, NOW + 2 * HOUR)
    assert len(report.sent) == (3 if moment == "before" else 2) and report.complete
    assert sorted(email.message_from_bytes(file.read_bytes())["To"] for file in box.folder.iterdir()) == everybody


def test_two_senders_at_once(store, tmp_path):
    joined(store)
    with exclusive(store.folder / delivery.LOCK, 0.0, ""), pytest.raises(StorageError, match="another process is sending"):
        send(store, Outbox())
    assert send(store, Outbox()).sent


def test_a_report_for_machines(store):
    crowd(store, 2)
    found = json.loads(json.dumps(send(store, Outbox()).to_dict()))
    assert found["complete"] and found["sent"] == ["r0@example.org", "r1@example.org"]


@pytest.mark.parametrize(("later", "unknown", "code"), [((), (), 0), ((("a@b.org", "away"),), (("c@d.org", "?"),), 1), ((), (("c@d.org", "?"),), 3)])
def test_exit_codes_tell_a_scheduler_whether_another_run_helps(store, tmp_path, monkeypatch, later, unknown, code):
    import typer

    from orrery.cli import community as commands

    report = delivery.Report("2026-11-22T07:00:00Z", later=list(later), unknown=list(unknown))
    monkeypatch.setattr(delivery, "send_due", lambda *_, **__: report)
    options = dict.fromkeys(("smtp", "user", "sender", "base_url"), "") | dict.fromkeys(("weekly", "dry_run", "again"), False)
    options |= {"security": "starttls", "password_file": None, "cafile": None, "mailbox": tmp_path / "box", "store": store.folder, "as_json": True}
    try:
        commands.digest(daily=True, **options)
        found = 0
    except typer.Exit as end:
        found = end.exit_code
    assert found == code
