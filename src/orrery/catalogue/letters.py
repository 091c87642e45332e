"""How mails look: HTML that mail programs keep, and a plain-text twin that reads as well.

HTML for mail is tables and inline styles; a `<style>` block only adds what some programs understand (dark mode, narrow
screens). No picture, no script, nothing that asks a server: opening a letter tells nobody. Everything passes jinja2's
autoescape. The plain text is wrapped at 72 columns, with links on lines of their own so that they are never broken.
"""

from __future__ import annotations

import functools
import hashlib
import textwrap
from collections.abc import Sequence
from datetime import datetime
from email.headerregistry import Address
from email.message import EmailMessage
from importlib import resources
from typing import Any

from orrery.catalogue import mail

WIDTH = 72
COLOURS = {  # of the pages: light, dark
    "paper": ("#fcfbf8", "#11151c"),
    "raise": ("#ffffff", "#1a202a"),
    "ink": ("#23262e", "#e9e7e1"),
    "quiet": ("#5c626d", "#a3a9b4"),
    "hair": ("#e6e2d9", "#2b3340"),
    "brass": ("#8d641f", "#d8a94f"),
    "wash": ("#f4f1ea", "#222a36"),
}
BOOK = "'Iowan Old Style','Palatino Linotype',Palatino,'URW Palladio L',P052,Georgia,'Times New Roman',serif"
PLAIN = "-apple-system,BlinkMacSystemFont,'Segoe UI',Roboto,Helvetica,Arial,sans-serif"
CODE = "ui-monospace,SFMono-Regular,Menlo,Consolas,'Liberation Mono',monospace"


def html(template: str, **facts: Any) -> str:
    """An HTML letter of `templates/`."""
    colours = {name: light for name, (light, _) in COLOURS.items()}
    dark = {name: value for name, (_, value) in COLOURS.items()}
    return _environment().get_template(template).render(c=colours, d=dark, book=BOOK, plain=PLAIN, code=CODE, **facts)


@functools.cache
def _environment() -> Any:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_file),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@functools.cache
def _file(name: str) -> str:
    return resources.files("orrery.catalogue").joinpath("templates", name).read_text(encoding="utf-8")


def paragraph(text: str, indent: str = "", first: str | None = None) -> str:
    """Text wrapped at the letter's width; a word longer than a line (an address) stays whole.

    Args:
        first: what the first line begins with instead of the indent.
    """
    begin = indent if first is None else first
    lines = textwrap.wrap(
        mail.clean(text), WIDTH, initial_indent=begin, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(lines)


def message_id(kind: str, unique: str, sender: Address) -> str:
    """An id that only depends on what is sent: a program that gets the same letter twice can tell."""
    return f"<{kind}.{hashlib.sha256(unique.encode()).hexdigest()[:24]}@{sender.domain}>"


def confirmation(
    *,
    sender: Address,
    to: Address,
    frequency: str,
    topics: Sequence[str],
    link: str,
    token: str,
    base_url: str,
    at: datetime,
    days: int,
) -> EmailMessage:
    """The first half of a double opt-in: a link, and what happens when nobody presses it (nothing)."""
    about = f"about {', '.join(topics)}" if topics else "about all topics"
    asked = f"Somebody, hopefully you, asked for {frequency} digests of Orrery papers {about} at this address."
    return _note(
        sender=sender,
        to=to,
        subject="Confirm your subscription to Orrery papers",
        heading="One click to confirm",
        words=asked,
        button="Confirm the subscription",
        link=link,
        command=f"orrery papers confirm {token}",
        ending=f"The link works for {days} days. If it was not you, do nothing: without the click no digest is sent, and this address is not used.",
        base_url=base_url,
        at=at,
    )


def sign_in(*, sender: Address, to: Address, link: str, base_url: str, at: datetime, minutes: int) -> EmailMessage:
    """The link that signs a reader in."""
    return _note(
        sender=sender,
        to=to,
        subject="Your link to sign in to Orrery papers",
        heading="Sign in",
        words="This link signs you in on the browser that opens it.",
        button="Sign in",
        link=link,
        command="",
        ending=f"It works once, within {minutes} minutes. If you did not ask for it, do nothing.",
        base_url=base_url,
        at=at,
    )


def _note(
    *,
    sender: Address,
    to: Address,
    subject: str,
    heading: str,
    words: str,
    button: str,
    link: str,
    command: str,
    ending: str,
    base_url: str,
    at: datetime,
) -> EmailMessage:
    facts = {"heading": heading, "words": words, "button": button, "link": link, "command": command, "ending": ending}
    page = html("note.html", subject=subject, preview=words, base_url=base_url, **facts)
    local = ["or, on the machine that holds the papers:", f"  {command}"] if command else []
    text = "\n\n".join([heading.upper(), paragraph(words), link, *local, paragraph(ending), "-- \nOrrery papers\n" + base_url]) + "\n"
    return mail.letter(
        sender=sender,
        to=to,
        subject=subject,
        text=text,
        html=page,
        at=at,
        message_id=message_id("note", link, sender),
        headers={"Auto-Submitted": "auto-generated"},
    )
