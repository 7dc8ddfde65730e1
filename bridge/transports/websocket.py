"""Moves messages between a WebSocket, a codec and a session. Knows flow control, knows no speech.

An ASGI application by itself rather than a FastAPI handler: it answers before the upgrade, and on the way of a frame
stands nothing but the codec and the session. Backpressure: this reads the next message only when the session has
room; the server protocol pauses the socket while a message waits, and TCP slows the client.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import parse_qsl

import msgspec

from bridge.errors import ERRORS, BridgeError
from bridge.observe.metrics import Metrics
from bridge.protocols.events import Audio, ClientEvent, Closed, Error, Flush, ServerEvent, Start, Stop
from bridge.security.auth import Gatekeeper
from bridge.session.hub import Outbox
from bridge.session.manager import SessionManager
from bridge.session.session import Session

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

ABORT_EXTENSION: Final = "stt_bridge.abort"
"""Key in `scope["extensions"]` of a callable that drops the connection at once; `transports.server` puts it there."""


class Codec(Protocol):
    """What a wire protocol has to offer; see `bridge.protocols.native`."""

    @property
    def name(self) -> str:
        """The protocol's label in metrics."""

    def opening(self) -> Start | None:
        """The session's start if the request itself holds it."""

    def receive_text(self, text: str) -> list[ClientEvent]:
        """Decode a text message."""

    def receive_bytes(self, data: bytes) -> ClientEvent:
        """Decode a binary message."""

    def encode(self, event: ServerEvent) -> str:
        """Encode an event as a text message."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What bounds one connection; durations in seconds."""

    connections: int = 8_192
    start_seconds: float = 10
    send_seconds: float = 10
    bad_messages: int = 20


class StreamEndpoint:
    """The ASGI application of one streaming route. One codec per connection, from `make_codec(query)`."""

    def __init__(
        self,
        make_codec: Callable[[Mapping[str, str]], Codec],
        manager: SessionManager,
        gatekeeper: Gatekeeper,
        metrics: Metrics,
        limits: ConnectionLimits,
    ) -> None:
        self._make_codec = make_codec
        self._manager = manager
        self._gatekeeper = gatekeeper
        self._metrics = metrics
        self._limits = limits
        self._connections = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        await receive()  # websocket.connect
        query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            admission = self._gatekeeper.admit(headers, query, scope.get("subprotocols", ()))
            if (refusal := self._manager.refusal()) and refusal.code != "at_capacity":
                raise refusal
            if self._connections >= self._limits.connections:
                raise BridgeError("at_capacity", "too many connections")
        except BridgeError as exc:
            self._metrics.refused.labels(exc.code).inc()
            await refuse(send, exc)
            return
        await send({"type": "websocket.accept", "subprotocol": admission.subprotocol})
        began = time.monotonic()
        self._connections += 1
        try:
            abort = scope.get("extensions", {}).get(ABORT_EXTENSION)
            connection = _Connection(self._make_codec(query), receive, send, abort, self._limits, self._metrics)
            await connection.serve(self._manager)
        finally:
            self._connections -= 1
            self._metrics.connection_seconds.observe(time.monotonic() - began)


class _Disconnected(Exception):  # noqa: N818 - an end, not an error
    """The peer is gone."""


class _Connection:
    """One accepted connection."""

    def __init__(
        self,
        codec: Codec,
        receive: Receive,
        send: Send,
        abort: Callable[[], None] | None,
        limits: ConnectionLimits,
        metrics: Metrics,
    ) -> None:
        self._codec = codec
        self._receive = receive
        self._send = send
        self._abort = abort
        self._limits = limits
        self._observe_chunk = metrics.chunk_seconds.observe
        self._metrics = metrics
        self._bad = 0
        self._outbox: Outbox | None = None

    async def serve(self, manager: SessionManager) -> None:
        """From the first message to the close frame."""
        try:
            start, rest = await self._await_start()
            async with manager.session(start, self._codec.name) as session:
                await self._run(session, rest)
        except _Disconnected:
            return
        except BridgeError as exc:
            self._metrics.refused.labels(exc.code).inc()
            await self._dismiss(exc)
        except Exception:
            log.exception("connection failed")
            await self._dismiss(BridgeError("internal"))

    async def _await_start(self) -> tuple[Start, list[ClientEvent]]:
        """The first `Start`, and what came with it."""
        opening = self._codec.opening()
        if opening is not None:
            return opening, []
        try:
            async with asyncio.timeout(self._limits.start_seconds):
                while True:
                    first, *rest = await self._next_events() or (None,)
                    if isinstance(first, Start):
                        return first, list(rest)
        except TimeoutError:
            raise BridgeError("start_timeout") from None

    async def _run(self, session: Session, first: list[ClientEvent]) -> None:
        """Reader, writer and session of one connection; the first to end ends the others."""
        outbox = self._outbox = session.subscribe()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(session.run(), name=f"session-{session.id}")
                group.create_task(self._write(outbox, session), name=f"writer-{session.id}")
                await self._read(session, first)
        except* _Disconnected:
            pass

    async def _read(self, session: Session, first: list[ClientEvent]) -> None:
        """Pass on what the client sends; raises `_Disconnected` at its end."""
        try:
            for event in first:
                await self._handle(session, event)
        except BridgeError as exc:
            self._blame(session, exc)
        while True:
            message = await self._receive()
            if message["type"] != "websocket.receive":
                raise _Disconnected
            began = time.perf_counter()
            try:
                data = message.get("bytes")
                if data is not None:
                    event = self._codec.receive_bytes(data)
                    room = not isinstance(event, Audio) or session.feed(event.data)
                    self._observe_chunk(time.perf_counter() - began)
                else:
                    room = True
                    for event in self._codec.receive_text(message["text"]):
                        room = await self._handle(session, event)
                if not room:
                    await session.room()
            except BridgeError as exc:
                self._blame(session, exc)

    def _blame(self, session: Session, error: BridgeError) -> None:
        """Answer a message that was refused; what the session accepted before is not hurt."""
        session.touch()
        if error.fatal:
            session.refuse(error)
        elif self._tell(error):
            session.refuse(BridgeError("too_many_errors"))

    async def _handle(self, session: Session, event: ClientEvent) -> bool:
        """Pass one event on; whether the session takes more audio."""
        match event:
            case Audio():
                began = time.perf_counter()
                room = session.feed(event.data)
                self._observe_chunk(time.perf_counter() - began)
                return room
            case Flush():
                session.flush()
            case Stop():
                session.stop()
            case Start():
                session.touch()
        return True

    async def _next_events(self) -> list[ClientEvent]:
        """The events of the next message; empty for one that was refused and answered."""
        message = await self._receive()
        if message["type"] != "websocket.receive":
            raise _Disconnected
        try:
            data = message.get("bytes")
            return [self._codec.receive_bytes(data)] if data is not None else self._codec.receive_text(message["text"])
        except BridgeError as exc:
            if exc.fatal:
                raise
            self._bad += 1
            if self._bad > self._limits.bad_messages:
                raise BridgeError("too_many_errors") from exc
            await self._transmit(_error(exc))
            return []

    def _tell(self, error: BridgeError) -> bool:
        """Answer a bad message; whether it was one too many."""
        self._bad += 1
        if self._outbox is not None and self._bad <= self._limits.bad_messages:
            self._outbox.put(_error(error))
        return self._bad > self._limits.bad_messages

    async def _write(self, outbox: Outbox, session: Session) -> None:
        """Send what the outbox holds until the session is closed, then close the connection.

        Raises:
            _Disconnected: nobody reads; the reader may be waiting for room, and would find out late.
        """
        while events := await outbox.get():
            try:
                async with asyncio.timeout(self._limits.send_seconds):
                    for event in events:
                        await self._transmit(event)
            except TimeoutError:
                break
            if isinstance(events[-1], Closed):
                with contextlib.suppress(_Disconnected):
                    await self._close(events[-1].code)
                return
        log.warning("receiver too slow", extra={"session": session.id, "code": "slow_receiver"})
        self._metrics.refused.labels("slow_receiver").inc()
        session.stop("slow_receiver")
        await self._drop()
        raise _Disconnected

    async def _drop(self) -> None:
        """Give a receiver that does not read a last chance to be told, then drop it."""
        with contextlib.suppress(TimeoutError, _Disconnected):
            async with asyncio.timeout(1):
                await self._close("slow_receiver")
        if self._abort is not None:
            self._abort()

    async def _dismiss(self, error: BridgeError) -> None:
        """End a connection that has no session, or none any more."""
        try:
            async with asyncio.timeout(self._limits.send_seconds):
                await self._transmit(_error(error))
                await self._transmit(Closed(1, error.code, 0, 0, 0.0))
                await self._close(error.code)
        except TimeoutError:
            await self._drop()
        except _Disconnected:
            return

    async def _transmit(self, event: ServerEvent) -> None:
        await self._asgi({"type": "websocket.send", "text": self._codec.encode(event)})

    async def _close(self, code: str) -> None:
        await self._asgi({"type": "websocket.close", "code": ERRORS[code].close, "reason": code})

    async def _asgi(self, message: Message) -> None:
        """Send; a peer that is gone raises `_Disconnected`, whatever the server calls that."""
        try:
            await self._send(message)
        except (OSError, RuntimeError) as exc:
            raise _Disconnected from exc


def _error(error: BridgeError) -> Error:
    return Error(None, error.code, str(error), error.fatal, error.row.retryable)


async def refuse(send: Send, error: BridgeError) -> None:
    """Answer the upgrade request with the error's HTTP status and a JSON body."""
    body = msgspec.json.encode({"error": {"code": error.code, "message": str(error)}})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if error.row.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if error.row.status == 503:
        headers.append((b"retry-after", b"1"))
    await send({"type": "websocket.http.response.start", "status": error.row.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})
