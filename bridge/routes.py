"""Which HTTP routes there are, and how all of them refuse."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match

import bridge
from bridge.api import (
    admin,
    backends,
    health,
    jobs,
    metrics,
    models,
    openai,
    sessions,
    transcriptions,
    tus,
    uploads,
    web,
)
from bridge.api.bodies import Bodies
from bridge.api.door import Door
from bridge.api.hearing import Hearing
from bridge.api.job_requests import Submissions
from bridge.api.openai_errors import openai_body, openai_error, speaks_openai
from bridge.api.plain_route import PlainRoute
from bridge.api.refusals import document
from bridge.audio.media import MediaDecoder
from bridge.errors import BridgeError
from bridge.jobs.service import JobService
from bridge.observe.http import App, Message, Receive, Send
from bridge.observe.metrics import Metrics
from bridge.session.archive import Archive
from bridge.session.batch import Batch
from bridge.session.keeper import Keeper
from bridge.uploads.blobs import BlobStore
from bridge.uploads.desk import UploadDesk


@dataclass(frozen=True, slots=True)
class Parts:
    """What the routes stand on; `bridge.app` makes it."""

    keeper: Keeper
    metrics: Metrics
    door: Door
    archive: Archive
    media: MediaDecoder
    bodies: Bodies
    batch: Batch
    blobs: BlobStore
    jobs: JobService
    uploads: UploadDesk
    gather: Callable[[], Awaitable[bytes]] | None = None
    """The metrics of all processes of this server, where there are several."""


def make_http(parts: Parts) -> App:
    """The application behind every path that is no socket's."""
    # The framework's own spans hold query strings, where a key may stand, and the texts of exceptions.
    app = FastAPI(
        title="STT Bridge",
        version=bridge.__version__,
        docs_url="/docs",
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    hearing = Hearing(parts.bodies, parts.batch)
    names = models.Models(parts.keeper.manager.engines)
    routers = (
        # First what is asked for most: the framework tries one after the other, and each costs what a query does.
        transcriptions.router(hearing, names, parts.door),
        openai.router(hearing, names, parts.door),
        health.router(parts.keeper),
        metrics.router(parts.metrics, parts.keeper, parts.door, parts.gather),
        admin.router(parts.keeper.manager.models, parts.door),
        sessions.router(parts.archive, parts.door),
        models.router(names, parts.door),
        backends.router(parts.keeper.manager, parts.door),
        uploads.router(parts.door, parts.bodies, parts.uploads),
        tus.router(parts.door, parts.bodies, parts.uploads),
        jobs.router(
            parts.door,
            parts.jobs.desk,
            Submissions(
                parts.jobs.desk,
                parts.blobs,
                parts.uploads,
                parts.bodies,
                parts.media,
                names,
                parts.jobs.webhooks.check,
            ),
        ),
        web.router(),
    )
    for router in routers:
        app.include_router(router)
    app.add_exception_handler(BridgeError, answer)
    app.add_exception_handler(HTTPException, answer_http)
    app.add_exception_handler(RequestValidationError, answer_invalid)
    app.add_exception_handler(Exception, answer_fault)
    app.add_exception_handler(405, _method_not_allowed([route for router in routers for route in router.routes]))
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    return Shortcut(app, [route for router in routers[:2] for route in router.routes if isinstance(route, PlainRoute)])


def make_operations(keeper: Keeper, metrics_: Metrics, door: Door) -> FastAPI:
    """What a process that serves nobody answers: whether it is well, and its figures."""
    app = FastAPI(title="STT Bridge worker", version=bridge.__version__, openapi_url=None)
    app.include_router(health.router(keeper))
    app.include_router(metrics.router(metrics_, keeper, door))
    app.add_exception_handler(BridgeError, answer)
    app.add_exception_handler(HTTPException, answer_http)
    app.add_exception_handler(Exception, answer_fault)
    return app


class _Answer:
    """A `send` that knows whether the answer has begun."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False

    async def __call__(self, message: Message) -> None:
        self.begun = True
        await self._send(message)


class Shortcut:
    """Around the framework: a POST to one of these routes goes straight to its endpoint.

    Nine layers stand between, none of which has anything to do for a route that takes the request as it is. They cost
    as much as reading 100 KB.
    """

    def __init__(self, app: FastAPI, routes: Iterable[PlainRoute]) -> None:
        self._app = app
        self._routes = {route.path: route for route in routes if route.methods == {"POST"}}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        route = self._routes.get(scope["path"])
        if route is None or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        scope["app"], scope["route"] = self._app, route
        request = Request(scope, receive, send)
        given = _Answer(send)
        try:
            response: Response = await route.endpoint(request)
            await response(scope, receive, given)
        except Exception as exc:
            if not given.begun:
                refused = isinstance(exc, BridgeError)
                await (await (answer if refused else answer_fault)(request, exc))(scope, receive, send)
                if refused:
                    return
            raise


class LastWord:
    """An application whose requests hear why they are given up when the server stops: a body that is still coming."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        given = _Answer(send)
        try:
            await self._app(scope, receive, given)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or not task.cancelling():
                raise  # nobody gave it up: a bug, for the log
            if not given.begun:  # else the connection is closed in the middle of the answer, which says it, too
                await (await answer(Request(scope), BridgeError("shutting_down")))(scope, receive, send)


def _document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, made when it is first asked for."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        app.openapi_schema = document(schema)
    return app.openapi_schema


async def answer(request: Request, exc: Exception) -> JSONResponse:
    """A `BridgeError` as HTTP says it."""
    if not isinstance(exc, BridgeError):
        raise exc
    headers = {} if exc.retry_after is None else {"retry-after": str(math.ceil(exc.retry_after))}
    if exc.row.status == 401:
        headers["www-authenticate"] = "Bearer"  # RFC 9110, 15.5.2
    if speaks_openai(request.url.path):
        status, body = openai_error(exc)
        return JSONResponse(body, status, headers)
    return JSONResponse({"error": {"code": exc.code, "message": str(exc)}}, exc.row.status, headers)


async def answer_http(request: Request, exc: Exception) -> JSONResponse:
    """The framework's own refusals, in the same shape."""
    if not isinstance(exc, HTTPException):
        raise exc
    if speaks_openai(request.url.path):
        return JSONResponse(openai_body(exc.status_code, str(exc.detail), None), exc.status_code, exc.headers)
    code = "not_found" if exc.status_code == 404 else "bad_message"
    return JSONResponse({"error": {"code": code, "message": str(exc.detail)}}, exc.status_code, exc.headers)


async def answer_fault(request: Request, _: Exception) -> JSONResponse:
    """A bug, which the framework then hands to the server, for its log."""
    return await answer(request, BridgeError("internal"))


async def answer_invalid(_: Request, exc: Exception) -> JSONResponse:
    """A parameter that is not what it should be; what was given is not repeated: it may be a secret."""
    if not isinstance(exc, RequestValidationError):
        raise exc
    error = exc.errors()[0]
    where = ".".join(str(part) for part in error["loc"][1:])
    return await answer(_, BridgeError("bad_request", f"`{where}`: {error['msg']}"))


def _method_not_allowed(routes: Sequence[BaseRoute]) -> Callable[[Request, Exception], Awaitable[JSONResponse]]:
    """Says which methods the path is good for: the framework names the first route's only."""

    async def answer_405(request: Request, exc: Exception) -> JSONResponse:
        shown = [route for route in routes if getattr(route, "include_in_schema", False)]
        exact = [route for route in shown if getattr(route, "path", "") == request.url.path]
        matching = exact or [route for route in shown if route.matches(request.scope)[0] is not Match.NONE]
        methods = sorted({method for route in matching for method in getattr(route, "methods", None) or ()})
        if methods and isinstance(exc, HTTPException):
            exc.headers = {"allow": ", ".join(methods)}
        return await answer_http(request, exc)

    return answer_405
