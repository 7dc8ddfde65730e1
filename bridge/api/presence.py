"""Work for a client, as long as it is there."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Final

from fastapi import Request

from bridge.errors import BridgeError

LOOK_SECONDS: Final = 0.05
"""After which somebody looks whether the client is there: most short work is done by then."""


class present(contextlib.AbstractAsyncContextManager[None]):  # noqa: N801 - used as a function
    """Cancel what the context does once the client has hung up. The request's body must have been read.

    Raises:
        BridgeError: `body_timeout`: it has, and nobody will hear of it.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self._scope = asyncio.timeout(None)
        self._waiting: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        await self._scope.__aenter__()
        self._timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._waiting is not None:
            self._waiting.cancel()
        try:
            await self._scope.__aexit__(kind, exc, traceback)
        except TimeoutError:
            raise BridgeError("body_timeout", "the client is gone") from None

    def _look(self) -> None:
        self._waiting = asyncio.create_task(self._gone(), name="client-gone")

    async def _gone(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self._scope.reschedule(asyncio.get_running_loop().time())
