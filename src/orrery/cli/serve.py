"""`orrery serve`: the papers as pages, on this machine or for a team; or as a folder of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

import typer

from orrery.cli import output
from orrery.cli.community import MAILBOX, PASSWORD_FILE, SECURITY, SENDER, SMTP, USER, mailer_of


def serve(
    host: str = typer.Option(
        "127.0.0.1", help="Address to listen on; the default can be reached from this machine only."
    ),
    port: int = typer.Option(8765, help="Port; 0 takes a free one."),
    store: Optional[Path] = typer.Option(None, help="The papers' folder; by default the user's own."),  # noqa: UP045  typer reads it at run time
    token: str = typer.Option(
        "", help="Readers need this token. Made and printed where others can reach the server and nothing is said."
    ),
    sign_in: bool = typer.Option(False, "--sign-in", help="Readers sign in by a mailed link, also to read."),
    public: bool = typer.Option(
        False, "--public", help="Everybody reads; who votes or submits signs in by a mailed link."
    ),
    url: str = typer.Option(
        "", help="The address that readers use, such as https://papers.example.org; links in mails begin with it."
    ),
    allow_host: list[str] = typer.Option(
        [], "--allow-host", help="A further host name to answer to (may be repeated)."
    ),
    mailbox: Optional[Path] = MAILBOX,  # noqa: UP045
    smtp: str = SMTP,
    security: str = SECURITY,
    user: str = USER,
    password_file: Optional[Path] = PASSWORD_FILE,  # noqa: UP045
    sender: str = SENDER,
    export: Optional[Path] = typer.Option(None, help="Write the pages into this folder and stop."),  # noqa: UP045
    open_browser: bool = typer.Option(True, "--open/--no-open", help="Open the page in a browser."),
) -> None:
    """The reading list as pages: today, search, topics, trending; every paper with its working model.

    Example:  orrery serve     orrery serve --public --url https://papers.example.org --smtp mail.example.org:587
    """
    from orrery.catalogue.store import Store

    with Store.open(store) as opened:
        for note in opened.notes:
            output.remark(note)
        if export is not None:
            write(opened, export)
            return
        need_web()
        from orrery.web.server import serve as run
        from orrery.web.settings import Settings

        access, token = _access(host, token, sign_in, public)
        if not smtp and mailbox is None:
            mailbox = opened.folder / "mailbox"
        mailer = mailer_of(smtp, security, user, password_file, None, mailbox, sender)
        settings = Settings(host=host, port=port, access=access, token=token, url=url, hosts=tuple(allow_host), mailer=mailer)
        if mailbox is not None and (sign_in or public):
            output.remark(f"mails are written into '{mailbox}' as files; --smtp HOST:PORT sends them")
        run(opened, settings, ready=lambda known: _ready(known, open_browser))


def write(store: Any, folder: Path) -> None:
    """Export the pages of an open store into a folder, and say where they are."""
    from orrery.web.export import export

    written = export(store, folder)
    print(f"{len(written):,} files in '{folder}': open '{folder / 'index.html'}'")


def need_web() -> None:
    """Say in a sentence what is missing when the extra is.

    Raises:
        ConfigError: with the command that installs it.
    """
    from importlib.util import find_spec

    from orrery.core.errors import ConfigError

    missing = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"the pages need {' and '.join(missing)}: pip install 'orrery-lm[web]' (or --export DIR, which needs neither)"
        )


def _access(host: str, token: str, sign_in: bool, public: bool) -> tuple[str, str]:
    import secrets

    from orrery.core.errors import ConfigError
    from orrery.web.settings import is_loopback

    if sum([bool(token), sign_in, public]) > 1:
        raise ConfigError("--token, --sign-in and --public exclude one another")
    if sign_in or public:
        return "readers" if sign_in else "public", ""
    if token or not is_loopback(host):
        return "token", token or secrets.token_urlsafe(18)
    return "owner", ""


def _ready(settings: Any, open_browser: bool) -> None:
    from orrery.web.settings import is_loopback

    address = f"{settings.base}/"
    if settings.access == "token":
        address += f"sign-in?token={settings.token}"
    print(f"Orrery papers: {address}   (Ctrl-C ends it)", flush=True)
    if open_browser and is_loopback(settings.host):
        import webbrowser

        webbrowser.open(address)
