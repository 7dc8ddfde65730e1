"""Moves messages between a WebSocket, a codec and a session. Knows flow control, knows no speech.

An ASGI application by itself rather than a FastAPI handler: it answers before the upgrade, and on the way of a frame
stands nothing but the codec and the session. Where the server offers a line (`LINE_EXTENSION`), a message is taken in
where the socket is read, while nothing has to be waited for. Backpressure: this reads the next message only when the
session has room; the server protocol pauses the socket while a message waits, and TCP slows the client.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import math
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from bridge.errors import ERRORS, BridgeError
from bridge.observe import trace
from bridge.observe.http import Opened
from bridge.observe.metrics import Metrics
from bridge.observe.trace import Tracing
from bridge.protocols.events import (
    Audio,
    ClientEvent,
    Closed,
    Error,
    Flush,
    Join,
    Opening,
    Resume,
    ServerEvent,
    Start,
    Stop,
)
from bridge.security.entrance import Arrival, Entrance
from bridge.security.headers import ALWAYS
from bridge.security.rights import Rights
from bridge.session.account import Account
from bridge.session.feed import Feed
from bridge.session.hub import Outbox
from bridge.session.live import Sender
from bridge.session.reception import Reception
from bridge.session.session import Session

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

ABORT_EXTENSION: Final = "stt_bridge.abort"
"""Key in `scope["extensions"]` of a callable that drops the connection at once; `transports.server` puts it there."""

LINE_EXTENSION: Final = "stt_bridge.line"
"""Key in `scope["extensions"]` of a `Line`; `transports.server` puts it there."""
FULL: Final = "stt_bridge.full"
Sink = Callable[[bytes | str], bool]


class Line(Protocol):
    """A connection without tasks and queues in between: what need not wait goes through at once, in order."""

    def listen(self, sink: Sink | None) -> None:
        """Unless messages wait, they go to the sink from now on, and not through `receive`.

        A sink that returns False has taken its last one: `receive` then returns a message of the type `FULL`, those
        that follow come by `receive`, and the socket is not read before the next call. None: no sink any more.
        """

    def write(self, texts: Sequence[str]) -> bool:
        """Send these messages, if that is possible without waiting; otherwise nothing is sent, and `send` tells why."""


class Codec(Protocol):
    """What a wire protocol has to offer; see `bridge.protocols.native`."""

    @property
    def name(self) -> str:
        """The protocol's label in metrics."""

    def opening(self) -> Opening | None:
        """The session's start if the request itself holds it."""

    def receive_text(self, text: str) -> list[ClientEvent]:
        """Decode a text message."""

    def receive_bytes(self, data: bytes) -> ClientEvent:
        """Decode a binary message."""

    def encode(self, event: ServerEvent) -> str | None:
        """Encode an event as a text message; None where the protocol has none for it."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What bounds one connection; durations in seconds."""

    connections: int = 8_192
    start_seconds: float = 10
    send_seconds: float = 10
    bad_messages: int = 20


class StreamEndpoint:
    """The ASGI application of one streaming route. One codec per connection, from `make_codec(path, query)`."""

    def __init__(
        self,
        make_codec: Callable[[str, Mapping[str, str]], Codec],
        reception: Reception,
        entrance: Entrance,
        metrics: Metrics,
        limits: ConnectionLimits,
        tracing: Tracing,
        route: str,
    ) -> None:
        self._make_codec = make_codec
        self._reception = reception
        self._entrance = entrance
        self._metrics = metrics
        self._limits = limits
        self._tracing = tracing
        self._route = route
        self._connections = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        opened = Opened(scope, self._route, self._metrics.http, self._tracing)
        try:
            await self._serve(opened, scope, receive, send)
        finally:
            opened.closed()

    async def _serve(self, opened: Opened, scope: Message, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        arrival = Arrival.of(scope)
        try:
            admission = await self._entrance.admit(arrival)
            if (refusal := self._reception.refusal()) and refusal.code != "at_capacity":
                raise refusal
            if self._connections >= self._limits.connections:
                raise BridgeError("at_capacity", "too many connections")
        except BridgeError as exc:
            self._metrics.refused.labels(exc.code).inc()
            opened.status = exc.row.status
            await refuse(send, exc, [*opened.headers, *arrival.told])
            return
        trace.identify(admission.subject)
        opened.status = 101
        headers = [*opened.headers, *arrival.told]
        await send({"type": "websocket.accept", "subprotocol": admission.subprotocol, "headers": headers})
        began = time.monotonic()
        self._connections += 1
        try:
            abort = scope.get("extensions", {}).get(ABORT_EXTENSION)
            codec = self._make_codec(scope["path"], arrival.query)
            line = scope.get("extensions", {}).get(LINE_EXTENSION, _NoLine())
            connection = _Connection(codec, admission.rights, receive, send, abort, line, self._limits, self._metrics)
            await connection.serve(self._reception, Account(admission.subject, admission.credential))
        finally:
            self._connections -= 1
            self._metrics.connection_seconds.observe(time.monotonic() - began)


class _NoLine:
    """Every message comes by `receive`, and goes by `send`."""

    def listen(self, sink: Sink | None) -> None:
        """See `Line`."""

    def write(self, texts: Sequence[str]) -> bool:  # noqa: ARG002 - see `Line`
        """See `Line`."""
        return False


class _Disconnected(Exception):  # noqa: N818 - an end, not an error
    """The peer is gone."""


class _Connection:
    """One accepted connection."""

    __slots__ = (
        "__weakref__",
        "_abort",
        "_bad",
        "_codec",
        "_failure",
        "_limits",
        "_line",
        "_metrics",
        "_observe_chunk",
        "_outbox",
        "_receive",
        "_rights",
        "_send",
    )

    def __init__(
        self,
        codec: Codec,
        rights: Rights,
        receive: Receive,
        send: Send,
        abort: Callable[[], None] | None,
        line: Line,
        limits: ConnectionLimits,
        metrics: Metrics,
    ) -> None:
        self._codec = codec
        self._rights = rights
        self._receive = receive
        self._send = send
        self._abort = abort
        self._line = line
        self._failure: Exception | None = None  # what went wrong in the sink
        self._limits = limits
        self._observe_chunk = metrics.chunk_seconds.observe
        self._metrics = metrics
        self._bad = 0
        self._outbox: Outbox | None = None

    async def serve(self, reception: Reception, account: Account) -> None:
        """From the first message to the close frame."""
        try:
            opening, rest = await self._await_opening()
            # Asked before it is said whether there is such a session.
            self._rights.require("receive" if isinstance(opening, Join) else "send", opening.session_id)
            if isinstance(opening, Join):
                async with reception.receiver(opening) as feed:
                    await self._run(feed, self._listen(feed))
                return
            async with reception.sender(opening, self._codec.name, account) as sender:
                if isinstance(sender, Feed):
                    await self._run(sender, self._ignore())
                else:
                    await self._run(sender.feed, self._read(sender, rest), sender)
        except _Disconnected:
            return
        except BridgeError as exc:
            self._metrics.refused.labels(exc.code).inc()
            await self._dismiss(exc)
        except Exception:
            log.exception("connection failed")
            await self._dismiss(BridgeError("internal"))

    async def _await_opening(self) -> tuple[Opening, list[ClientEvent]]:
        """What the connection begins with, and what came with it."""
        opening = self._codec.opening()
        if opening is not None:
            return opening, []
        try:
            async with asyncio.timeout(self._limits.start_seconds):
                while True:
                    first, *rest = await self._next_events() or (None,)
                    if isinstance(first, Start | Resume | Join):
                        return first, list(rest)
        except TimeoutError:
            raise BridgeError("start_timeout") from None

    async def _run(self, feed: Feed, reading: Coroutine[Any, Any, None], sender: Sender | None = None) -> None:
        """Reader and writer of one connection; the first to end ends the other."""
        self._outbox = feed.outbox
        trace.attend(feed.session_id)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._write(feed, sender), name="writer")
                await reading
        except* _Disconnected as ends:
            _forget(ends)

    async def _listen(self, feed: Feed) -> None:
        """A receiver has little to say; raises `_Disconnected` at its end."""
        while True:
            for event in await self._next_events():
                if isinstance(event, Stop):
                    feed.outbox.put(Closed(None, "stopped", 0, 0, 0.0))
                elif self._tell(BridgeError("bad_order", "a receiver only receives")):
                    feed.outbox.put(Closed(None, "too_many_errors", 0, 0, 0.0))

    async def _ignore(self) -> None:
        """The sender of a session that has ended is only told what is left; raises `_Disconnected` at its end."""
        while (await self._receive())["type"] == "websocket.receive":
            pass
        raise _Disconnected

    async def _read(self, sender: Sender, first: list[ClientEvent]) -> None:
        """Pass on what the client sends; raises `_Disconnected` at its end."""
        session = sender.session
        context = contextvars.copy_context()  # logs tell whose message it was
        await self._room(session)  # a connection before this one may have left more than there was room for
        try:
            for event in first:
                self._handle(session, event)
        except BridgeError as exc:
            self._blame(session, exc)
        try:
            while True:
                self._line.listen(lambda data: context.run(self._sink, sender, data))
                message = await self._receive()
                if message["type"] == "websocket.receive":
                    data = message.get("bytes")
                    room = self._take(sender, message["text"] if data is None else data)
                elif message["type"] == FULL:
                    room = False
                else:
                    raise _Disconnected
                if self._failure is not None:
                    raise self._failure
                if not room:
                    await self._room(session)
        finally:
            self._line.listen(None)
            self._failure = None

    async def _room(self, session: Session) -> None:
        try:
            await session.room()
        except BridgeError as exc:
            self._blame(session, exc)

    def _sink(self, sender: Sender, data: bytes | str) -> bool:
        """`_take`, from where the socket is read: a fault of this code's is for the reader to raise."""
        try:
            return self._take(sender, data)
        except Exception as exc:  # noqa: BLE001 - see above
            self._failure = exc
            return False

    def _take(self, sender: Sender, data: bytes | str) -> bool:
        """Pass a message on; whether the session takes more audio."""
        if not sender.current:
            return True  # it was told that another connection has taken its place
        session = sender.session
        room = True
        try:
            if isinstance(data, str):
                for event in self._codec.receive_text(data):
                    room = self._handle(session, event)
            else:
                room = self._handle(session, self._codec.receive_bytes(data))
        except BridgeError as exc:
            self._blame(session, exc)
        return room

    def _blame(self, session: Session, error: BridgeError) -> None:
        """Answer a message that was refused; what the session accepted before is not hurt."""
        session.touch()
        if error.fatal:
            session.refuse(error)
        elif self._tell(error):
            session.refuse(BridgeError("too_many_errors"))

    def _handle(self, session: Session, event: ClientEvent) -> bool:
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
            case _:
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

    async def _write(self, feed: Feed, sender: Sender | None) -> None:
        """Send what the feed holds until the session is closed, then close the connection.

        Raises:
            _Disconnected: nobody reads; the reader may be waiting for room, and would find out late.
        """
        try:
            async with contextlib.aclosing(aiter(feed)) as batches:
                async for events in batches:
                    texts = [text for event in events if (text := self._codec.encode(event)) is not None]
                    if not self._line.write(texts):
                        async with asyncio.timeout(self._limits.send_seconds):
                            for text in texts:
                                await self._asgi({"type": "websocket.send", "text": text})
                    if isinstance(events[-1], Closed):
                        with contextlib.suppress(_Disconnected):
                            await self._close(events[-1].code)
                        return
            if not feed.outbox.overflowed:  # nothing was left to be told
                await self._close("stopped")
                return
        except BridgeError as exc:
            self._metrics.refused.labels(exc.code).inc()
            await self._dismiss(exc)
            raise _Disconnected from exc
        except TimeoutError:
            pass
        log.warning("receiver too slow", extra={"session": feed.session_id, "code": "slow_receiver"})
        self._metrics.refused.labels("slow_receiver").inc()
        if sender is not None:
            sender.reason = "slow_receiver"
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
                await self._transmit(Closed(None, error.code, 0, 0, 0.0))
                await self._close(error.code)
        except TimeoutError:
            await self._drop()
        except _Disconnected:
            return

    async def _transmit(self, event: ServerEvent) -> None:
        text = self._codec.encode(event)
        if text is not None:
            await self._asgi({"type": "websocket.send", "text": text})

    async def _close(self, code: str) -> None:
        await self._asgi({"type": "websocket.close", "code": ERRORS[code].close, "reason": code})

    async def _asgi(self, message: Message) -> None:
        """Send; a peer that is gone raises `_Disconnected`, whatever the server calls that."""
        try:
            await self._send(message)
        except (OSError, RuntimeError) as exc:
            raise _Disconnected from exc


def _forget(group: BaseExceptionGroup[Any]) -> None:
    """Let go of what the tracebacks hold: else the session stays until the collector comes, which it does seldom."""
    for exc in group.exceptions:
        traceback.clear_frames(exc.__traceback__)
        exc.__traceback__ = None
    traceback.clear_frames(group.__traceback__)


def _error(error: BridgeError) -> Error:
    return Error(None, error.code, str(error), error.fatal, error.row.retryable)


async def refuse(send: Send, error: BridgeError, more: Iterable[tuple[bytes, bytes]] = ()) -> None:
    """Answer the upgrade request with the error's HTTP status, a JSON body, and these headers besides."""
    body = msgspec.json.encode({"error": {"code": error.code, "message": str(error)}})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *ALWAYS, *more]
    if error.row.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    wait = error.retry_after or (1 if error.row.status == 503 else None)
    if wait is not None:
        headers.append((b"retry-after", str(math.ceil(wait)).encode()))
    await send({"type": "websocket.http.response.start", "status": error.row.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})
