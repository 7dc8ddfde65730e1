"""Server-sent events (WHATWG HTML, 9.2): what happens meanwhile, over one HTTP answer.

One event is on its way at a time: a client that reads slowly slows the source of its events, and
`bridge.transports.http_protocol` resets one that reads nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Final

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from bridge.errors import BridgeError

KEEP_ALIVE_SECONDS: Final = 15.0
"""Silence after which a comment is sent: proxies give a connection up that says nothing for 30 to 60 s."""
_KEEP_ALIVE: Final = b": \n\n"
_LINE_ENDS: Final = str.maketrans({"\r": " ", "\n": " ", "\0": " "})


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `data` is any text; `event` (None: `message`) and `id` are single lines."""

    data: str
    event: str | None = None
    id: str | None = None

    def encode(self) -> bytes:
        """As it is sent."""
        head = "" if self.event is None else f"event: {self.event.translate(_LINE_ENDS)}\n"
        head += "" if self.id is None else f"id: {self.id.translate(_LINE_ENDS)}\n"
        data = self.data.replace("\r\n", "\n").replace("\r", "\n")
        return f"{head}data: {data.replace(chr(10), chr(10) + 'data: ')}\n\n".encode("utf-8", "replace")


OPEN: Final = Event("")
"""Begins the answer and is not sent: for a source whose first event may take its time."""


class EventStream(Response):
    """The events that `events` yields. By the first of them, the request's body must have been read.

    The answer begins with the first of them: an error raised before it is answered as any other. One that is raised
    later becomes the last event, which `failed` makes. The generator is closed when it has ended, when the client has
    hung up, and when the server stops.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[Event],
        failed: Callable[[BridgeError], Event],
        *,
        keep_alive_seconds: float = KEEP_ALIVE_SECONDS,
    ) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]  # it has none
        self._events = events
        self._failed = failed
        self._keep_alive_seconds = keep_alive_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Send them."""
        async with contextlib.aclosing(self._events):
            event = await anext(self._events, None)
            gone = asyncio.create_task(_gone(receive), name="client-gone")  # only now: it may have read the body
            try:
                await self._send(event, gone, send)
            finally:
                gone.cancel()

    async def _send(self, event: Event | None, gone: asyncio.Task[None], send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        while event is not None:
            if event is not OPEN:
                await _send_body(send, event.encode())
            try:
                event = await self._next(gone, send)
            except BridgeError as exc:
                await _send_body(send, self._failed(exc).encode())
                break
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _next(self, gone: asyncio.Task[None], send: Send) -> Event | None:
        """The next event; None: there is none, or nobody who wants it. Comments are sent meanwhile."""
        coming = asyncio.ensure_future(anext(self._events, None))
        try:
            while True:
                done, _ = await asyncio.wait(
                    {coming, gone}, timeout=self._keep_alive_seconds, return_when=asyncio.FIRST_COMPLETED
                )
                if gone in done:
                    return None
                if coming in done:
                    return coming.result()
                await _send_body(send, _KEEP_ALIVE)
        finally:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)


async def _send_body(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
