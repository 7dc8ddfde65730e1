"""Which HTTP routes there are, and how all of them refuse."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

import bridge
from bridge.api import admin, health, metrics, sessions
from bridge.api.door import Door
from bridge.errors import BridgeError
from bridge.observe.metrics import Metrics
from bridge.security.auth import Gatekeeper
from bridge.session.archive import Archive
from bridge.session.keeper import Keeper


@dataclass(frozen=True, slots=True)
class Parts:
    """What the routes stand on; `bridge.app` makes it."""

    keeper: Keeper
    metrics: Metrics
    gatekeeper: Gatekeeper
    door: Door
    archive: Archive


def make_http(parts: Parts) -> FastAPI:
    """The application behind every path that is no socket's."""
    app = FastAPI(title="STT Bridge", version=bridge.__version__, docs_url="/docs", redoc_url=None)
    app.include_router(health.router(parts.keeper))
    app.include_router(metrics.router(parts.metrics, parts.keeper, parts.gatekeeper))
    app.include_router(admin.router(parts.keeper.manager.models, parts.gatekeeper))
    app.include_router(sessions.router(parts.archive, parts.gatekeeper))
    app.add_exception_handler(BridgeError, answer)
    app.add_exception_handler(HTTPException, answer_http)
    return app


async def answer(_: Request, exc: Exception) -> JSONResponse:
    """A `BridgeError` as HTTP says it."""
    if not isinstance(exc, BridgeError):
        raise exc
    headers = {} if exc.retry_after is None else {"retry-after": str(math.ceil(exc.retry_after))}
    return JSONResponse({"error": {"code": exc.code, "message": str(exc)}}, exc.row.status, headers)


async def answer_http(_: Request, exc: Exception) -> JSONResponse:
    """The framework's own refusals, in the same shape."""
    if not isinstance(exc, HTTPException):
        raise exc
    code = "not_found" if exc.status_code == 404 else "bad_message"
    return JSONResponse({"error": {"code": code, "message": str(exc.detail)}}, exc.status_code, exc.headers)
