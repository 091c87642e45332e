"""What is changed: votes, picks, submissions, moderation, subscriptions, signing in and out, colours.

Every form is answered by a redirect to a page (or, filled in wrongly, by itself with a sentence), so that loading a page
again never repeats a change. The script asks for JSON in place of the redirect.
"""

from __future__ import annotations

import hmac
from datetime import timedelta
from typing import Any

from starlette.responses import JSONResponse, Response

from orrery.catalogue import community, subscriptions
from orrery.core.errors import ConfigError, DataError, OrreryError
from orrery.web.errors import Refusal
from orrery.web.sessions import SESSION, THEME, THEMES
from orrery.web.site import Ask, Site, local_path, see, wants_json

_BLANK = {
    "text": "",
    "title": "",
    "authors": "",
    "year": "",
    "url": "",
    "abstract": "",
    "email": "",
    "frequency": "daily",
    "topics": [],
}


def add(app: Any, site: Site) -> None:
    """Put the routes of this file into the application."""
    for path, show, change in (
        ("/submit", submit_page, submit),
        ("/subscribe", subscribe_page, subscribe),
        ("/subscribe/confirm", confirm_page, confirm),
        ("/unsubscribe", unsubscribe_page, None),
        ("/sign-in", sign_in_page, sign_in),
        ("/moderation", moderation_page, None),
    ):
        app.add_route(path, site.page(show, keep=False), methods=["GET"], include_in_schema=False)
        if change:
            app.add_route(path, site.form(change), methods=["POST"], include_in_schema=False)
    # One click in a mail program sends no form of ours: the signed link is what allows it (RFC 8058).
    app.add_route("/unsubscribe", site.form(unsubscribe, sealed=False), methods=["POST"], include_in_schema=False)
    for path, show in AFTER:
        app.add_route(path, site.page(show), methods=["GET"], include_in_schema=False)
    for path, change in (
        ("/paper/{slug}/vote", vote),
        ("/paper/{slug}/pick", pick),
        ("/moderation/{number:int}", moderate),
        ("/sign-out", sign_out),
        ("/theme", theme),
    ):
        app.add_route(path, site.form(change), methods=["POST"], include_in_schema=False)


# ---------------------------------------------------------------- papers


def vote(ask: Ask) -> Response:
    """Give a vote or take it back."""
    reader = ask.who()
    ask.turn("change", ask.settings.limits.changes)
    slug, back = ask.request.path_params["slug"], local_path(str(ask.form.get("back", "/")))
    if ask.form.get("do") == "unvote":
        votes, voted = community.unvote(ask.store, slug, reader.id), False
    else:
        votes, voted = community.vote(ask.store, slug, reader.id), True
    if wants_json(ask.request):
        return JSONResponse({"slug": slug, "votes": votes, "voted": voted})
    return see(back if back == f"/paper/{slug}" else f"{back.partition('#')[0]}#{slug}")


def pick(ask: Ask) -> Response:
    """A curator's pick, on or off."""
    reader = ask.who()
    ask.turn("change", ask.settings.limits.changes)
    slug = ask.request.path_params["slug"]
    slug = ask.store.paper(slug).slug
    community.pick(ask.store, slug, reader.id, remove=reader.id in community.picks(ask.store, [slug]).get(slug, {}))
    return see(f"/paper/{slug}")


def submit_page(ask: Ask, wrong: str = "") -> bytes:
    """The form; with what was typed and a sentence, when that was wrong."""
    kept = {**_BLANK, **{name: str(value) for name, value in ask.form.items() if name in _BLANK and name != "topics"}}
    return ask.render(
        "submit.html", wrong=wrong, kept=kept, moderated=ask.settings.waits, here="/submit", address="/submit"
    )


def submit(ask: Ask) -> Response | bytes:
    """A paper is put forward."""
    reader = ask.who()
    ask.turn("submission", ask.settings.limits.submissions)
    text = str(ask.form.get("text", "")).strip()
    try:
        found = community.submit(ask.store, text or _fields(ask), reader.id)
    except (ConfigError, DataError) as error:
        return submit_page(ask, _sentence(error))
    if found.paper:
        return see(f"/paper/{found.paper}")
    return see("/submit/thanks")


def _fields(ask: Ask) -> dict[str, Any]:
    given = {name: str(ask.form.get(name, "")).strip() for name in ("title", "url", "year", "abstract")}
    if not given["title"]:
        raise DataError("there is nothing yet; give an arXiv id, BibTeX, or a title")
    given["authors"] = [name.strip() for name in str(ask.form.get("authors", "")).split(",") if name.strip()]  # type: ignore[assignment]
    return {name: value for name, value in given.items() if value}


def thanks(ask: Ask) -> bytes:
    """After a submission that waits."""
    words = "A moderator will look at it. Once it is accepted it stands among the day’s papers."
    return ask.render("message.html", heading="Thank you", words=words, onward=("To today’s papers", "/"))


def moderation_page(ask: Ask) -> bytes:
    """Submissions that wait."""
    if not ask.who().curates:
        raise Refusal(403, "This page is for curators.")
    shown = []
    for one in community.submissions(ask.store, "waiting"):
        fields = one.fields
        facts = [
            fields.get("arxiv") and f"arXiv {fields['arxiv']}",
            fields.get("year"),
            ", ".join(fields.get("authors", ())[:6]),
        ]
        title = fields.get("title") or f"arXiv {fields.get('arxiv', 'unknown')}"
        words = " · ".join(str(fact) for fact in [*facts, f"submitted {one.at[:10]} by reader {one.reader}"] if fact)
        shown.append({"id": one.id, "title": title, "facts": words, "abstract": fields.get("abstract", "")})
    lead = f"{len(shown)} submission{'' if len(shown) == 1 else 's'} to decide." if shown else "Nothing waits."
    return ask.render("moderation.html", submissions=shown, lead=lead)


def moderate(ask: Ask) -> Response:
    """A submission is accepted or refused."""
    number = ask.request.path_params["number"]
    if ask.form.get("do") not in ("accept", "refuse"):
        raise Refusal(400, "Accept it or refuse it.")
    community.moderate(ask.store, number, ask.form["do"] == "accept", str(ask.form.get("note", ""))[:500], ask.who().id)
    return see("/moderation")


# ---------------------------------------------------------------- mail


def subscribe_page(ask: Ask, wrong: str = "") -> bytes:
    """The form; with what was typed and a sentence, when that was wrong."""
    kept = {**_BLANK, **{name: value for name, value in ask.form.items() if name in _BLANK}}
    return ask.render(
        "subscribe.html", wrong=wrong, kept=kept, topics=ask.views.topics(), here="/subscribe", address="/subscribe"
    )


def subscribe(ask: Ask) -> Response | bytes:
    """A wish to subscribe; the mail that follows asks for its confirmation."""
    mailer = _mailer(ask)
    client = ask.request.client.host if ask.request.client else ""
    ask.turn("mail", ask.settings.limits.mails, client)
    form = ask.form
    wish = (str(form.get("email", "")), str(form.get("frequency", "")), form["topics"])
    try:
        with ask.site.mail:
            subscriptions.subscribe(ask.store, *wish, ask.settings.base, mailer, at=ask.at)
    except ConfigError as error:
        return subscribe_page(ask, _sentence(error))
    return see("/subscribe/sent")


def sent(ask: Ask) -> bytes:
    """After a wish to subscribe."""
    words = "A mail is on its way. The link in it makes the subscription; without it nothing will come."
    return ask.render("message.html", heading="Look into your mail", words=words, onward=("To today’s papers", "/"))


def confirm_page(ask: Ask) -> bytes:
    """The link of the mail leads here; a button, not the visit, confirms (programs that look through mail follow links)."""
    return ask.render(
        "message.html",
        heading="Subscribe?",
        words="One more click, so that nobody subscribes somebody else.",
        action="/subscribe/confirm",
        button="Yes, subscribe",
        token=ask.text("token", 3000),
        address="/",
    )


def confirm(ask: Ask) -> Response:
    """The subscription begins."""
    subscriptions.confirm(ask.store, str(ask.form.get("token", ""))[:3000], at=ask.at)
    return see("/subscribe/done")


def subscribed(ask: Ask) -> bytes:
    """After a confirmation."""
    words = "The next digest comes to you. Every mail ends with a link that ends the subscription."
    return ask.render("message.html", heading="Subscribed", words=words, onward=("To today’s papers", "/"))


def unsubscribe_page(ask: Ask) -> bytes:
    """The link of a digest leads here."""
    return ask.render(
        "message.html",
        heading="Unsubscribe?",
        words="No more digests will come to this address.",
        action="/unsubscribe",
        button="Yes, unsubscribe",
        token=ask.text("token", 3000),
        address="/",
    )


def unsubscribe(ask: Ask) -> Response:
    """The subscription ends: by the page's button, or by a mail program's one click with the token in the address."""
    token = str(ask.form.get("token", "")) or ask.text("token", 3000)
    subscriptions.unsubscribe(ask.store, token[:3000], at=ask.at)
    return see("/unsubscribe/done")


def unsubscribed(ask: Ask) -> bytes:
    """After the end."""
    return ask.render(
        "message.html", heading="Unsubscribed", words="No more digests will come.", onward=("To today’s papers", "/")
    )


def _mailer(ask: Ask) -> Any:
    if ask.settings.mailer is None:
        raise Refusal(
            503, "This server was started without a way to send mail: see `orrery serve --help`, --smtp and --mailbox."
        )
    return ask.settings.mailer


# ---------------------------------------------------------------- readers


def sign_in_page(ask: Ask) -> bytes | Response:
    """The door. The link of a mail leads here with its token: a button uses it."""
    if ask.settings.access == "owner":
        return see("/")
    if token := ask.text("token", 3000):
        if ask.settings.access == "token":
            return _by_token(ask, token, "/")
        words = "The link is good for one use, on this browser."
        return ask.render(
            "message.html",
            heading="Sign in?",
            words=words,
            action="/sign-in",
            button="Sign in",
            token=token,
            address="/",
        )
    back = local_path(ask.text("back", 1000) or "/")
    return ask.render(
        "sign-in.html", back=back, by_token=ask.settings.access == "token", here="/sign-in", address="/sign-in"
    )


def sign_in(ask: Ask) -> Response | bytes:
    """By the server's token, by a mailed link, or the wish for such a link."""
    back = local_path(str(ask.form.get("back", "/")))
    token = str(ask.form.get("token", ""))[:3000]
    client = ask.request.client.host if ask.request.client else ""
    if ask.settings.access == "token":
        return _by_token(ask, token, back)
    if ask.settings.access == "owner":
        return see("/")
    if token:
        ask.turn("token", ask.settings.limits.tokens, client)
        return _enter(ask, community.sign_in(ask.store, token, at=ask.at).id, back)
    ask.turn("mail", ask.settings.limits.mails, client)
    try:
        with ask.site.mail:
            community.request_sign_in(
                ask.store, str(ask.form.get("email", "")), ask.settings.base, _mailer(ask), at=ask.at
            )
    except ConfigError as error:
        return ask.render(
            "sign-in.html", back=back, by_token=False, wrong=_sentence(error), here="/sign-in", address="/sign-in"
        )
    return see("/sign-in/sent")


def _by_token(ask: Ask, token: str, back: str) -> Response:
    client = ask.request.client.host if ask.request.client else ""
    ask.turn("token", ask.settings.limits.tokens, client)
    if not hmac.compare_digest(token.strip().encode("utf-8", "replace"), ask.settings.token.encode()):
        raise Refusal(403, "This is not the token of this server; it stands in the terminal that runs it.")
    return _enter(ask, community.OWNER, back)


def _enter(ask: Ask, number: int, back: str) -> Response:
    response = see(back)
    response.headers.append("set-cookie", ask.site.sessions.signed_in(number))
    return response


def link_sent(ask: Ask) -> bytes:
    """After a wish to sign in."""
    words = "If the address can receive mail, a link is on its way. It is good for half an hour."
    return ask.render("message.html", heading="Look into your mail", words=words, onward=("To today’s papers", "/"))


def sign_out(ask: Ask) -> Response:
    """End the session on this browser."""
    response = see("/")
    response.headers.append("set-cookie", ask.site.sessions.cookie(SESSION, "", timedelta()))
    return response


def theme(ask: Ask) -> Response:
    """Remember the colours."""
    chosen = ask.form.get("theme")
    if chosen not in THEMES:
        raise Refusal(400, "Colours are light or dark.")
    back = local_path(str(ask.form.get("back", "/")))
    response = JSONResponse({"theme": chosen}) if wants_json(ask.request) else see(back)
    response.headers.append("set-cookie", ask.site.sessions.cookie(THEME, chosen, timedelta(days=365)))
    return response


AFTER = (
    ("/submit/thanks", thanks), ("/subscribe/sent", sent), ("/subscribe/done", subscribed), ("/unsubscribe/done", unsubscribed),
    ("/sign-in/sent", link_sent),
)  # fmt: skip


def _sentence(error: OrreryError) -> str:
    text = str(error)
    return (text[:1].upper() + text[1:]).rstrip(".") + "."
