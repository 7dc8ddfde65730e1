"""Work for a client, as long as it is there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from fastapi import Request

from bridge.errors import BridgeError

LOOK_SECONDS: Final = 0.05
"""After which somebody looks whether the client is there: most short work is done by then."""


@contextlib.asynccontextmanager
async def present(request: Request) -> AsyncIterator[None]:
    """Cancel what the context does once the client has hung up. The request's body must have been read.

    Raises:
        BridgeError: `body_timeout`: it has, and nobody will hear of it.
    """
    try:
        async with asyncio.timeout(None) as scope:
            waiting: asyncio.Task[None] | None = None

            def look() -> None:
                nonlocal waiting
                waiting = asyncio.create_task(_gone(request, scope), name="client-gone")

            timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, look)
            try:
                yield
            finally:
                timer.cancel()
                if waiting is not None:
                    waiting.cancel()
    except TimeoutError:
        if not scope.expired():
            raise
        raise BridgeError("body_timeout", "the client is gone") from None


async def _gone(request: Request, scope: asyncio.Timeout) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    scope.reschedule(asyncio.get_running_loop().time())
