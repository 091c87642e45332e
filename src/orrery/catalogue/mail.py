"""Mail: messages whose headers cannot be injected, and two ways to send them.

`SmtpMailer` speaks SMTP (RFC 5321) with TLS from the first byte (`tls`), STARTTLS that is never skipped (`starttls`) or,
for a server on this machine, in the clear (`none`). `FileMailer` is a local mailbox: a folder of `.eml` files that any mail
program opens. Both take a message up to the last byte, call `ready`, and only then hand over that byte; a caller that
writes down what it is about to do in `ready` therefore knows, after a crash, which messages may have left.

Three kinds of failure, because they ask for three things: `TemporaryMailError` (try later: nothing was taken),
`PermanentMailError` (this address or this message is refused), `UncertainMailError` (the last byte was sent and no answer
came: sending again might deliver twice).
"""

from __future__ import annotations

import re
import smtplib
import socket
import ssl
import unicodedata
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from email import policy, utils
from email.headerregistry import Address
from email.message import EmailMessage
from pathlib import Path
from typing import Any, Protocol

from orrery.core.errors import ConfigError, OrreryError
from orrery.core.files import write_bytes

SECURITY = ("starttls", "tls", "none")
PORTS = {"starttls": 587, "tls": 465, "none": 25}
SENDER = "Orrery papers <papers@localhost>"
TIMEOUT = 30.0  # seconds for one exchange
LONGEST_ADDRESS = 254  # RFC 5321, 4.5.3.1.3
# Long header values must stay in one piece: folded at 78 columns, a link without spaces becomes an encoded word, and
# then no mail program finds the link in List-Unsubscribe. RFC 5322 allows 998.
POLICY = policy.SMTP.clone(max_line_length=990)
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LOCAL = re.compile(rf"{_ATOM}(\.{_ATOM})*")
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


class MailError(OrreryError):
    """A message could not be sent."""


class TemporaryMailError(MailError):
    """Nothing was taken; later it may work. `connection` says whether the server itself was out of reach."""

    connection = False


class NoServer(TemporaryMailError):
    """The server does not answer, or went away."""

    connection = True


class PermanentMailError(MailError):
    """The server refuses this address or this message for good; `address` says whether nobody lives at the address."""

    address = False


class SenderRefused(ConfigError):
    """The server refuses the sender: no message of this run can leave."""


class UncertainMailError(MailError):
    """The whole message was sent and no answer came."""


class Mailer(Protocol):
    """Anything that sends. `sender` is who signs the letters."""

    sender: Address

    def send(self, message: EmailMessage, ready: Callable[[], None] = ...) -> None:
        """Send; call `ready` when everything but the last byte is handed over."""

    def delivered(self, message_id: str) -> bool | None:
        """Whether a message of this id has left; None where nobody can know."""

    def close(self) -> None:
        """Let go of the connection."""


def _nothing() -> None:
    return None


# ---------------------------------------------------------------- addresses and header text


def address(text: str) -> str:
    """An address as it may stand in an envelope: checked, domain in lower case and in its ASCII form.

    Only `local@domain`, without display name, comment or quotes: an address typed into a form has none of these, and what
    cannot be written cannot be injected.

    Raises:
        ConfigError: with the reason.
    """
    shown = clean(text)[:80]
    if _has_control(text):
        raise ConfigError(f"'{shown}' is no mail address: it holds control characters or line breaks")
    text = text.strip()
    local, at, domain = text.rpartition("@")
    if not at or not local or not domain:
        raise ConfigError(f"'{shown}' is no mail address: write it like reader@example.org")
    if not _LOCAL.fullmatch(local) or len(local) > 64:
        raise ConfigError(f"'{shown}' is no mail address: the part before @ holds letters, digits and dots between them")
    try:
        ascii_domain = domain.encode("idna").decode("ascii").lower()
    except UnicodeError:
        ascii_domain = ""
    labels = ascii_domain.split(".")
    if (len(labels) < 2 and ascii_domain != "localhost") or not all(_LABEL.fullmatch(label) for label in labels):
        raise ConfigError(f"'{shown}' is no mail address: '{clean(domain)[:60]}' is no domain")
    if labels[-1].isdigit():
        raise ConfigError(f"'{shown}' is no mail address: a domain ends with letters")
    found = f"{local}@{ascii_domain}"
    if len(found) > LONGEST_ADDRESS:
        raise ConfigError(f"'{shown}...' is no mail address: it is longer than {LONGEST_ADDRESS} characters")
    return found


def mailbox_key(email: str) -> str:
    """The mailbox behind an address: without `+tag` and, where the provider ignores them, without dots; to find one
    person's many spellings, never to send to."""
    local, _, domain = email.casefold().rpartition("@")
    local = local.partition("+")[0] or local
    if domain in ("gmail.com", "googlemail.com"):
        local, domain = local.replace(".", ""), "gmail.com"
    return f"{local}@{domain}"


def _has_control(text: str) -> bool:
    return any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text)


def clean(text: str) -> str:
    """Text for a header or one line: every line break and control character becomes a space; runs of spaces, one."""
    kept = (" " if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in text)
    return " ".join("".join(kept).split())


def parse_sender(text: str) -> Address:
    """`Name <address>` or `address`; the name is kept as text, whatever it holds."""
    if _has_control(text):
        raise ConfigError("the sender holds control characters or line breaks; write it like 'Orrery <papers@example.org>'")
    found = re.fullmatch(r"\s*\"?(?P<name>[^<>]*?)\"?\s*<(?P<email>[^<>]*)>\s*", text)
    return person(found["name"], found["email"]) if found else person("", text)


def person(name: str, email: str) -> Address:
    """A display name (cleaned) with a checked address."""
    local, _, domain = address(email).rpartition("@")
    return Address(display_name=clean(name)[:120], username=local, domain=domain)


def letter(
    *,
    sender: Address,
    to: Address,
    subject: str,
    text: str,
    html: str,
    at: datetime,
    message_id: str,
    headers: Mapping[str, str] = {},
) -> EmailMessage:
    """A message with a plain-text and an HTML twin (`multipart/alternative`, plain text first).

    Header values are cleaned of line breaks and control characters here, whatever the caller did; the boundary comes from
    the message's id, so that the same letter has the same bytes.
    """
    import hashlib

    message = EmailMessage(policy=POLICY)
    message["From"] = sender
    message["To"] = to
    message["Subject"] = clean(subject)[:200] or "(no subject)"
    message["Date"] = utils.format_datetime(at)
    message["Message-ID"] = clean(message_id)
    for name, value in headers.items():
        message[name] = clean(value)
    message.set_content(text, cte="quoted-printable")
    message.add_alternative(html, subtype="html", cte="quoted-printable")
    message.set_boundary("orrery-" + hashlib.sha256(clean(message_id).encode()).hexdigest()[:32])
    return message


def envelope(message: EmailMessage) -> tuple[str, str]:
    """The one sender and the one receiver of a message, read from its headers and checked again."""
    both = []
    for field in ("From", "To"):
        people: tuple[Any, ...] = message[field].addresses if message[field] is not None else ()
        if len(people) != 1:
            raise ConfigError(f"a message has exactly one address in '{field}', not {len(people)}")
        both.append(address(people[0].addr_spec))
    return both[0], both[1]


# ---------------------------------------------------------------- a local mailbox


class FileMailer:
    """A folder of `.eml` files, one a message, named by its id; the same message twice is one file.

    The folder is made for its owner alone, since letters hold links that sign in.
    """

    def __init__(self, folder: str | Path, sender: str = SENDER) -> None:
        self.folder = Path(folder)
        self.sender = parse_sender(sender)

    def path(self, message_id: str) -> Path:
        """Where the message of this id lies."""
        return self.folder / (re.sub(r"[^A-Za-z0-9.-]+", "_", message_id.strip("<>"))[:150] + ".eml")

    def send(self, message: EmailMessage, ready: Callable[[], None] = _nothing) -> None:
        """Write the message whole or not at all."""
        envelope(message)
        data = message.as_bytes()
        with suppress(OSError):  # writing says what is wrong, in words
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        ready()
        write_bytes(self.path(str(message["Message-ID"])), data)

    def delivered(self, message_id: str) -> bool | None:
        """Whether its file is there."""
        return self.path(message_id).exists()

    def close(self) -> None:
        """Nothing is open."""


# ---------------------------------------------------------------- SMTP


class SmtpMailer:
    """Sends through one SMTP server; the connection is opened at the first message and kept for the next ones.

    Args:
        host, port: the server; port 0 takes the usual one of `security` (587, 465, 25).
        user, password: for authentication, which is refused in the clear except to this machine.
        security: `starttls`, `tls` or `none`.
        sender: `Name <address>`, who signs the letters; the server must let this address send.
        cafile: certificates to trust instead of the system's.
    """

    def __init__(
        self,
        host: str,
        port: int = 0,
        user: str = "",
        password: str = "",
        security: str = "starttls",
        *,
        sender: str = SENDER,
        timeout: float = TIMEOUT,
        cafile: str | None = None,
    ) -> None:
        if security not in SECURITY:
            raise ConfigError(f"unknown security '{security}'; it is one of {', '.join(SECURITY)}")
        if not host or _has_control(host) or " " in host:
            raise ConfigError(f"'{clean(host)}' is no host name")
        if not 0 <= port <= 65535:
            raise ConfigError(f"port {port} is not between 1 and 65535")
        if user and security == "none" and host not in ("localhost", "127.0.0.1", "::1"):
            raise ConfigError(f"a password is not sent to '{host}' in the clear; say --security starttls or tls")
        self.host, self.port, self.user, self.security, self.timeout = host, port or PORTS[security], user, security, timeout
        self.sender = parse_sender(sender)
        self._password, self._cafile = password, cafile
        self._server: smtplib.SMTP | None = None

    def __repr__(self) -> str:
        return f"SmtpMailer({self.host!r}, {self.port}, {self.user!r}, security={self.security!r})"  # never the password

    @property
    def place(self) -> str:
        """`host:port`, for sentences."""
        return f"{self.host}:{self.port}"

    def send(self, message: EmailMessage, ready: Callable[[], None] = _nothing) -> None:
        """One transaction: MAIL, RCPT, DATA; a connection that the server has closed meanwhile is opened anew, once."""
        sender, receiver = envelope(message)
        data = re.sub(rb"(?m)^\.", b"..", _wire(message))  # RFC 5321, 4.5.2: a line that begins with a dot gets another
        server = self._ready_server()
        try:
            self._expect(server.mail(sender, [f"size={len(data)}"] if server.has_extn("size") else []), "the sender", server)
            self._expect(server.rcpt(receiver), f"the address '{receiver}'", server)
            code, words = server.docmd("DATA")
            if code != 354:
                self._expect((code, words), "the message", server)
            server.send(data)
        except (smtplib.SMTPServerDisconnected, OSError) as error:
            self.close()
            raise NoServer(f"the mail server {self.place} went away in the middle of a message ({_why(error)})") from error
        try:
            ready()
        except BaseException:
            self._drop()  # without the last line the server keeps nothing
            raise
        try:
            server.send(b".\r\n")
            answer = server.getreply()
        except (smtplib.SMTPServerDisconnected, OSError) as error:
            self.close()
            raise UncertainMailError(f"the mail server {self.place} took a message and went away before it answered ({_why(error)})") from error
        self._expect(answer, "the message", server)

    def delivered(self, message_id: str) -> bool | None:
        """Nobody can ask an SMTP server that."""
        return None

    def close(self) -> None:
        """Say goodbye, where somebody still listens."""
        server, self._server = self._server, None
        if server is not None:
            with suppress(smtplib.SMTPException, OSError):
                server.quit()

    def _drop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()

    def _expect(self, answer: tuple[int, bytes], what: str, server: smtplib.SMTP) -> None:
        """Raise for an answer that is not a yes; the transaction is taken back so that the next message starts clean."""
        code, words = answer
        if 200 <= code < 300:
            return
        said = f"{code} {clean(words.decode('utf-8', 'replace'))[:160]}"
        if code == -1 or code == 421:
            self._drop()
            raise NoServer(f"the mail server {self.place} closed the connection ({said})")
        with suppress(smtplib.SMTPException, OSError):
            server.rset()
        if code < 500:
            raise TemporaryMailError(f"the mail server {self.place} refuses {what} for now: {said}")
        if what == "the sender":
            raise SenderRefused(f"the mail server {self.place} does not let this sender send: {said}")
        error = PermanentMailError(f"the mail server {self.place} refuses {what}: {said}")
        error.address = what.startswith("the address") and code in (550, 551, 553) and " 5.7." not in said  # 5.7: its policy
        raise error

    def _ready_server(self) -> smtplib.SMTP:
        if self._server is not None:
            try:
                if self._server.noop()[0] == 250:
                    return self._server
            except (smtplib.SMTPException, OSError):
                pass
            self._drop()
        self._server = self._open()
        return self._server

    def _open(self) -> smtplib.SMTP:
        context = ssl.create_default_context(cafile=self._cafile)
        name = _local_name()
        server: smtplib.SMTP
        try:
            if self.security == "tls":
                server = smtplib.SMTP_SSL(self.host, self.port, local_hostname=name, timeout=self.timeout, context=context)
            else:
                server = smtplib.SMTP(self.host, self.port, local_hostname=name, timeout=self.timeout)
        except ssl.SSLCertVerificationError as error:
            raise ConfigError(f"the certificate of {self.place} is not trusted: {error.verify_message}") from error
        except (smtplib.SMTPException, OSError) as error:
            raise NoServer(f"no mail server answers at {self.place} ({_why(error)})") from error
        if server.sock is not None:  # the last byte is a packet of its own; waiting to fill it up costs 40 ms a letter
            server.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            server.ehlo_or_helo_if_needed()
            if self.security == "starttls":
                server.starttls(context=context)
                server.ehlo()
            if self.user:
                server.login(self.user, self._password)
        except smtplib.SMTPNotSupportedError as error:
            server.close()
            raise ConfigError(f"the mail server {self.place} offers no {_missing(error)}; choose another --security or leave --user out") from error
        except smtplib.SMTPAuthenticationError as error:
            server.close()
            if error.smtp_code < 500:
                raise TemporaryMailError(f"the mail server {self.place} could not check the password just now") from error
            raise ConfigError(f"the mail server {self.place} refuses the user '{self.user}' with this password") from error
        except ssl.SSLCertVerificationError as error:
            server.close()
            raise ConfigError(f"the certificate of {self.place} is not trusted: {error.verify_message}") from error
        except (smtplib.SMTPException, OSError) as error:
            server.close()
            raise NoServer(f"the mail server {self.place} did not let us in ({_why(error)})") from error
        return server


def _wire(message: EmailMessage) -> bytes:
    data = message.as_bytes()
    return data if data.endswith(b"\r\n") else data + b"\r\n"


def _local_name() -> str:
    """What EHLO says. `socket.getfqdn`, smtplib's default, can wait seconds for a name server."""
    name = socket.gethostname().split(".")[0]
    return name if _LABEL.fullmatch(name) else "localhost"


def _missing(error: Exception) -> str:
    return "encryption by STARTTLS" if "STARTTLS" in str(error) else "way to log in"


def _why(error: BaseException) -> str:
    if isinstance(error, TimeoutError) or "timed out" in str(error):  # smtplib says so in words
        return "no answer in time"
    if isinstance(error, smtplib.SMTPResponseException):
        detail: Any = error.smtp_error
        detail = detail.decode("utf-8", "replace") if isinstance(detail, bytes) else detail
        return f"{error.smtp_code} {clean(str(detail))[:120]}"
    return clean(getattr(error, "strerror", None) or str(error) or type(error).__name__)[:160]
