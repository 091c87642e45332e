"""The application: routes of all files, behind the guard."""

from __future__ import annotations

import contextlib
import datetime as dt
import importlib
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from orrery.core.errors import OrreryError
from orrery.core.version import VERSION
from orrery.web import api, places
from orrery.web.errors import DEFECT, Refusal
from orrery.web.guard import Guard
from orrery.web.rendering import ASSETS, asset_version, file
from orrery.web.settings import Settings
from orrery.web.site import Site, refusal_of
from orrery.web.views import Views

if TYPE_CHECKING:
    from orrery.catalogue.store import Store

_STATUS = {404: "There is no such page.", 405: "This address is not used in this way."}


def create_app(store: Store, settings: Settings | None = None, clock: Callable[[], dt.datetime] | None = None) -> Guard:
    """The pages of a store as an ASGI application.

    Args:
        store: open; it stays the caller's to close.
        settings: where and for whom; by default this machine's user.
        clock: what time it is (tests).
    """
    settings = settings or Settings()

    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        import anyio.to_thread

        anyio.to_thread.current_default_thread_limiter().total_tokens = settings.limits.threads
        warming = threading.Thread(target=_warm, args=(store,), daemon=True)
        warming.start()
        yield
        await anyio.to_thread.run_sync(warming.join)  # a connection that is closed while it is read from ends the process

    app = FastAPI(
        title="Orrery papers",
        version=VERSION,
        summary="A reading list of language models in which every paper knows its working model.",
        docs_url=None,  # the stock pages load scripts from elsewhere; /api is ours
        redoc_url=None,
        openapi_url=f"{api.PREFIX}/openapi.json",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    site = Site(store, settings, clock)
    app.state.site = site
    for place in places.PLACES:
        importlib.import_module(place.module).add(app, site)
    app.add_route("/static/{name}", asset, methods=["GET"], include_in_schema=False)
    app.add_route("/favicon.ico", icon, methods=["GET"], include_in_schema=False)
    _sentences(app, site)
    return Guard(app, settings, site.answer)


def _warm(store: Store) -> None:
    """Count once before the first reader asks; what goes wrong here goes wrong again where somebody sees it."""
    with contextlib.suppress(OrreryError, sqlite3.Error):
        views = Views(store, None, dt.datetime.now(dt.timezone.utc))
        views.counts()
        views.topics()
        views.years()


def _sentences(app: FastAPI, site: Site) -> None:
    """Every error becomes a refusal, and every refusal one answer."""

    async def house(request: Request, error: Exception) -> Response:
        return await _answered(
            site, request, refusal_of(error) if isinstance(error, OrreryError) else Refusal(500, str(error))
        )

    async def web(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        found = await _answered(site, request, Refusal(status, _STATUS.get(status, "This cannot be answered.")))
        if isinstance(error, HTTPException) and error.headers:
            found.headers.update(error.headers)
        return found

    async def invalid(request: Request, error: Exception) -> Response:
        return await _answered(
            site, request, Refusal(422, _first(error) if isinstance(error, RequestValidationError) else str(error))
        )

    async def defect(request: Request, error: Exception) -> Response:
        return await _answered(site, request, Refusal(500, DEFECT))

    app.add_exception_handler(Exception, defect)
    app.add_exception_handler(OrreryError, house)
    app.add_exception_handler(HTTPException, web)
    app.add_exception_handler(RequestValidationError, invalid)


async def _answered(site: Site, request: Request, refusal: Refusal) -> Response:
    """A refusal as a response object, so that the framework's own handlers can return it."""
    messages: list[Any] = []

    async def keep(message: Any) -> None:
        messages.append(message)

    await site.answer(request.scope, request.receive, keep, refusal)
    response = Response(b"".join(message.get("body", b"") for message in messages[1:]), messages[0]["status"])
    response.raw_headers = list(messages[0]["headers"])
    return response


def _first(error: RequestValidationError) -> str:
    """The first complaint about parameters, as a sentence."""
    one = error.errors()[0]
    where = (
        ".".join(str(part) for part in one["loc"] if part not in ("query", "path", "body", "header")) or "the request"
    )
    return f"{where}: {one['msg']}."


async def asset(request: Request) -> Response:
    """A file of ours, by its name in a list: no path is built from what was asked."""
    name = request.path_params["name"]
    if name not in ASSETS:
        raise Refusal(404, "There is no such file.")
    kept = "public, max-age=31536000, immutable" if request.query_params.get("v") == asset_version(name) else "no-cache"
    tag = f'"{asset_version(name)}"'
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers={"Cache-Control": kept, "ETag": tag})
    return Response(
        file("static", name).encode(), headers={"Cache-Control": kept, "ETag": tag, "Content-Type": ASSETS[name]}
    )


async def icon(_: Request) -> Response:
    """For browsers that ask before they have read the page."""
    return Response(
        file("static", "icon.svg").encode(),
        headers={"Content-Type": ASSETS["icon.svg"], "Cache-Control": "max-age=86400"},
    )
