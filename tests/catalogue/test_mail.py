"""Mail: addresses, headers that hold, a local mailbox, and SMTP with everything that goes wrong in it."""

import email
import email.policy
import os
import socket
import stat
from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalogue import smtp
from orrery.catalogue import mail
from orrery.core.errors import ConfigError, StorageError

NOW = datetime(2026, 11, 22, 7, tzinfo=timezone.utc)
SENDER = mail.person("Orrery papers", "papers@example.org")
TOKEN = "W1tbMyxdXQ." + "a-_9" * 40


def letter(to="reader@example.org", subject="Papers", name="", text="words\n", html="<p>words</p>", **headers):
    return mail.letter(
        sender=SENDER, to=mail.person(name, to), subject=subject, text=text, html=html, at=NOW, message_id="<one.1@example.org>",
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (" reader@example.org ", "reader@example.org"),
        ("first.last+papers@Example.ORG", "first.last+papers@example.org"),
        ("o'neil@sub.example.co.uk", "o'neil@sub.example.co.uk"),
        ("me@localhost", "me@localhost"),
        ("me@bücher.example", "me@xn--bcher-kva.example"),
    ],
)
def test_good_addresses(text, found):
    assert mail.address(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "", "@", "reader", "reader@", "@example.org", "a b@example.org", "a@b@c.org", "reader@example", "reader@.org", "reader@-a.org",
        ".a@example.org", "a..b@example.org", "a.@example.org", "a@exa_mple.org", "a@127.0.0.1", "a@[127.0.0.1]", "<a@example.org>",
        '"a b"@example.org', "Name <a@example.org>", "a@example.org, b@example.org", "a@example.org\r\nBcc: b@example.org", "a\n@example.org",
        "a@example.org\x00", "a@example.org\u2028", "a\u200b@example.org", "x" * 65 + "@example.org", "a@" + "b." * 130 + "org", "ä@example.org",
        "a@example.org;b@example.org", "a@exam ple.org", "a@" + "b" * 64 + ".org", "\ud800@example.org",
    ],
)  # fmt: skip
def test_bad_addresses_are_one_sentence(text):
    with pytest.raises(ConfigError, match="no mail address") as caught:
        mail.address(text)
    assert "\n" not in str(caught.value) and "\r" not in str(caught.value)


def test_spellings_of_one_mailbox():
    assert mail.mailbox_key("A.b+news@GoogleMail.com") == mail.mailbox_key("ab@gmail.com")
    assert mail.mailbox_key("a.b+x@example.org") == "a.b@example.org"


nasty = st.text(alphabet=st.sampled_from("ab:<>@\"\\,; =?\r\n\t\x00\x0b\x0c\x85\u2028\u2029\ud800é中🜨"), max_size=40)


@given(nasty, nasty, nasty)
def test_no_text_makes_a_header_or_a_receiver(subject, name, value):
    """Whatever stands in a title, a display name or a value: the same headers, one receiver, and the body stays the body."""
    message = letter(subject=f"{subject}\r\nBcc: thief@example.org", name=f"{name}\nBcc: thief@example.org", X_Note=f"{value}\r\n\r\n<script>")
    raw = message.as_bytes()
    parsed = email.message_from_bytes(raw, policy=email.policy.default)
    assert parsed.keys() == ["From", "To", "Subject", "Date", "Message-ID", "X-Note", "MIME-Version", "Content-Type"]
    assert [person.addr_spec for person in parsed["To"].addresses] == ["reader@example.org"]
    assert mail.envelope(parsed) == ("papers@example.org", "reader@example.org")
    assert parsed.get_body(("plain",)).get_content().replace("\r\n", "\n") == "words\n"
    assert b"\n" not in raw.replace(b"\r\n", b"") and b"\r" not in raw.replace(b"\r\n", b"")


def test_a_sender_with_line_breaks_is_refused():
    for text in ("Orrery\r\nBcc: a@b.org <papers@example.org>", "papers@example.org\n"):
        with pytest.raises(ConfigError, match="line breaks"):
            mail.parse_sender(text)
    with pytest.raises(ConfigError, match="no mail address"):
        mail.parse_sender("Orrery papers")
    assert str(mail.parse_sender("Papers, daily <papers@example.org>")).endswith("<papers@example.org>")


def test_a_letter_as_it_travels():
    link = f"<https://papers.example.org/unsubscribe?token={TOKEN}>"
    message = letter(subject="Élan " * 60, name="Ünal, the Reader", text="é" * 2000, List_Unsubscribe=link)
    raw = message.as_bytes()
    assert raw.isascii() and max(map(len, raw.split(b"\r\n"))) <= 998
    assert f"List-Unsubscribe: {link}\r\n".encode() in raw, "a link in a header is never folded or encoded"
    parsed = email.message_from_bytes(raw, policy=email.policy.default)
    assert parsed["To"].addresses[0].display_name == "Ünal, the Reader" and len(parsed["Subject"]) <= 200
    assert [part.get_content_type() for part in parsed.iter_parts()] == ["text/plain", "text/html"]
    assert parsed.get_content_type() == "multipart/alternative"
    assert raw == letter(subject="Élan " * 60, name="Ünal, the Reader", text="é" * 2000, List_Unsubscribe=link).as_bytes()


def test_a_local_mailbox(tmp_path):
    box = mail.FileMailer(tmp_path / "box")
    seen = []
    for _ in range(2):
        box.send(letter(), lambda: seen.append(box.delivered("<one.1@example.org>")))
    assert seen == [False, True] and box.delivered("<one.1@example.org>")
    assert os.name == "nt" or stat.S_IMODE(box.folder.stat().st_mode) == 0o700
    (file,) = (tmp_path / "box").iterdir()
    assert file.name == "one.1_example.org.eml" and email.message_from_bytes(file.read_bytes())["Subject"] == "Papers"
    assert box.path("<../../etc/passwd@x>").parent == box.folder


def test_a_mailbox_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        mail.FileMailer(tmp_path / "file" / "box").send(letter())


def test_smtp_in_the_clear_and_one_connection_for_many():
    keeper = smtp.Keeper()
    with smtp.serving(keeper) as server:
        mailer = mail.SmtpMailer("127.0.0.1", server.port, security="none")
        order = []
        for number in range(3):
            mailer.send(letter(to=f"r{number}@example.org", text=".hidden\n..\n.\nend\n"), lambda: order.append(len(keeper.letters)))
        mailer.close()
    assert keeper.receivers == ["r0@example.org", "r1@example.org", "r2@example.org"]
    assert order == [0, 1, 2], "`ready` comes before the letter is taken"
    body = email.message_from_bytes(keeper.letters[0][2], policy=email.policy.default).get_body(("plain",)).get_content()
    assert body.replace("\r\n", "\n") == ".hidden\n..\n.\nend\n"


def test_smtp_with_starttls_tls_and_a_password(tmp_path):
    pem, context = smtp.certificate(tmp_path)
    with smtp.serving(
        keeper := smtp.Keeper(), tls_context=context, require_starttls=True, authenticator=smtp.passwords, auth_required=True
    ) as server:
        mailer = mail.SmtpMailer("127.0.0.1", server.port, "papers", "moon", "starttls", cafile=pem)
        mailer.send(letter())
        mailer.close()
        assert keeper.receivers == ["reader@example.org"] and "moon" not in repr(mailer)
        with pytest.raises(ConfigError, match="refuses the user 'papers'"):
            mail.SmtpMailer("127.0.0.1", server.port, "papers", "sun", "starttls", cafile=pem).send(letter())
        with pytest.raises(ConfigError, match="is not trusted"):
            mail.SmtpMailer("127.0.0.1", server.port, "papers", "moon", "starttls").send(letter())
    with smtp.serving(keeper := smtp.Keeper(), ssl_context=context) as server:
        mailer = mail.SmtpMailer("127.0.0.1", server.port, security="tls", cafile=pem)
        mailer.send(letter())
        mailer.close()
        assert keeper.receivers == ["reader@example.org"]


def test_starttls_is_never_skipped_and_passwords_never_travel_in_the_clear():
    with smtp.serving(keeper := smtp.Keeper()) as server, pytest.raises(ConfigError, match="no encryption by STARTTLS"):
        mail.SmtpMailer("127.0.0.1", server.port, security="starttls").send(letter())
    assert not keeper.letters
    with pytest.raises(ConfigError, match="in the clear"):
        mail.SmtpMailer("mail.example.org", user="papers", password="moon", security="none")
    for wrong in ({"host": ""}, {"host": "a b"}, {"host": "a", "port": 70000}, {"host": "a", "security": "ssl"}):
        with pytest.raises(ConfigError):
            mail.SmtpMailer(**wrong)


def test_failures_say_what_may_be_done():
    keeper = smtp.Keeper(refuse={"gone@example.org": "550 5.1.1 no such user", "spam@example.org": "554 5.7.1 policy"}, later={"grey@example.org"})
    with smtp.serving(keeper) as server:
        mailer = mail.SmtpMailer("127.0.0.1", server.port, security="none")
        with pytest.raises(mail.PermanentMailError, match="no such user") as gone:
            mailer.send(letter(to="gone@example.org"))
        with pytest.raises(mail.PermanentMailError) as policy:
            mailer.send(letter(to="spam@example.org"))
        assert gone.value.address and not policy.value.address, "a server's policy is not the fault of an address"
        with pytest.raises(mail.TemporaryMailError, match="greylisted") as grey:
            mailer.send(letter(to="grey@example.org"))
        assert not grey.value.connection
        mailer.send(letter())  # the same connection, after three refusals
        message = letter()
        message.replace_header("From", "nobody@example.org")
        with pytest.raises(mail.SenderRefused):
            mailer.send(message)
        mailer.close()
    assert keeper.receivers == ["reader@example.org"]
    with pytest.raises(mail.TemporaryMailError, match="no mail server answers") as nobody:
        mail.SmtpMailer("127.0.0.1", server.port, security="none", timeout=2).send(letter())
    assert nobody.value.connection


def test_a_server_that_dies():
    for place, error in (("mail", mail.TemporaryMailError), ("data", mail.UncertainMailError), ("answer", mail.UncertainMailError)):
        with smtp.serving(smtp.Keeper(dies_after=0, dies=place)) as server:
            if place == "answer":
                server.handler.dies_after = 1
            ready = []
            mailer = mail.SmtpMailer("127.0.0.1", server.port, security="none")
            with pytest.raises(error):
                mailer.send(letter(), lambda seen=ready: seen.append(1))
            assert len(ready) == (place != "mail")
            mailer.close()


def test_a_server_that_says_nothing():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mailer = mail.SmtpMailer("127.0.0.1", silent.getsockname()[1], security="none", timeout=0.3)
        with pytest.raises(mail.TemporaryMailError, match="no answer in time"):
            mailer.send(letter())


def test_what_stops_before_the_last_byte_leaves_nothing():
    with smtp.serving(keeper := smtp.Keeper()) as server:
        mailer = mail.SmtpMailer("127.0.0.1", server.port, security="none")

        def stop():
            raise RuntimeError("the store is full")

        with pytest.raises(RuntimeError, match="store is full"):
            mailer.send(letter(to="half@example.org"), stop)
        mailer.send(letter())
        mailer.close()
    assert keeper.receivers == ["reader@example.org"]
