"""Routes on a real server, without the rest of the bridge."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from fastapi import APIRouter, FastAPI
from starlette.exceptions import HTTPException

from bridge.errors import BridgeError
from bridge.routes import answer, answer_http
from bridge.transports.http_protocol import Crowd
from bridge.transports.server import listen, make_server


@contextlib.asynccontextmanager
async def served(*routers: APIRouter, crowd: Crowd | None = None) -> AsyncIterator[str]:
    """Its address."""
    app = FastAPI()
    for router in routers:
        app.include_router(router)
    app.add_exception_handler(BridgeError, answer)
    app.add_exception_handler(HTTPException, answer_http)

    async def drain() -> None:
        return

    server = make_server(
        app,
        drain=drain,
        max_message_bytes=1_024,
        ping_seconds=30,
        ping_timeout_seconds=30,
        shutdown_seconds=1,
        crowd=crowd,
    )
    listener = listen("127.0.0.1", 0)
    running = asyncio.create_task(server.serve([listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.stop()
        await running
