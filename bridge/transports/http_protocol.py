"""uvicorn's HTTP connection, bounded: the size of a request's head, its time, and the wait for a reader."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Self

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from bridge.transports.endings import CLOSE_SECONDS, end_writing, refusal, reset

HEAD_BYTES: Final = 65_536
"""Largest request line with its headers; nginx and Apache stop at 32 KiB and less."""
HEAD_SECONDS: Final = 10
"""For a request's headers to arrive: half a request held open costs the sender nothing."""
PIPELINED: Final = 16
"""Requests that may wait for the answer to another; browsers send none ahead."""
_WITH_BODY: Final = frozenset({b"POST", b"PUT", b"PATCH"})
JOINED_BYTES: Final = 65_536
"""Of an answer's body that are sent in one piece with its head; more are not worth the copying."""
RESPONSE_SECONDS: Final = 10
"""For a client to read what blocks an HTTP response."""


class Crowd:
    """Requests with a body that one server works on. One more than `most` is refused by its head, which costs little.

    It is for floods alone: whom the application would refuse, when others may give way, it decides with more sense.
    """

    def __init__(self, most: int, refused: Callable[[], None] = lambda: None) -> None:
        self.most = most
        self.refused = refused
        self.requests: set[RequestResponseCycle] = set()

    @property
    def full(self) -> bool:
        """Whether one more is too many."""
        return len(self.requests) >= self.most


class HttpProtocol(HttpToolsProtocol):
    """Bounds what uvicorn leaves open: the size of a request's head, its time, and the wait for a reader.

    `max_connections` counts those of every kind; one more is refused with 503 before it says anything.
    """

    def __init__(
        self, *args: Any, max_connections: int | None = None, crowd: Crowd | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._max_connections = max_connections
        self._crowd = crowd

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock: the first request's head is awaited."""
        super().connection_made(transport)
        self._head = 0  # bytes of the head that is arriving
        self._heads = 0  # complete ones
        self._bodies = 0  # the same
        self._in_head = True
        self._done = False  # refused, or upgraded
        self._cycles: list[RequestResponseCycle] = []  # requests that have no whole response yet
        self._deadline: asyncio.TimerHandle | None = self.loop.call_later(HEAD_SECONDS, self._too_late)
        self._unread: asyncio.TimerHandle | None = None
        if self._max_connections is not None and len(self.connections) > self._max_connections:
            self.refuse(503, "at_capacity", "too many connections")

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        self._disarm()
        self.resume_writing()
        super().connection_lost(exc)
        for cycle in (*self._cycles, self.cycle):
            if cycle is not None:
                self._let_go(cycle)
        self._cycles.clear()

    def data_received(self, data: bytes) -> None:
        """Parse, unless the connection was refused: then what still comes is thrown away."""
        if self._done:
            return
        before = (self._heads, self._bodies)
        super().data_received(data)
        if self._done or not self._in_head or self.transport.is_closing():
            return
        if before == (self._heads, self._bodies):  # otherwise at most the end of these bytes is of this head
            self._head += len(data)
        if self._head > HEAD_BYTES:
            self.refuse(431, "bad_message", "the request's headers are too large")
        elif self._head or not self._cycles:
            self._arm()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count what follows the body too: trailers are headers to the parser."""
        super().on_header(name, value)
        if not self._in_head:
            self._head += len(name) + len(value)
            if self._head > HEAD_BYTES:
                self.refuse(431, "bad_message", "the request's trailers are too large")

    def on_headers_complete(self) -> None:
        """The head is there in time."""
        self._disarm()
        self._in_head = False
        self._head = 0
        self._heads += 1
        if self._done:
            return
        crowd = self._crowd if self.parser.get_method() in _WITH_BODY else None
        if crowd is not None and crowd.full:
            crowd.refused()
            self.refuse(503, "at_capacity", "too many requests at once")
            return
        before = self.cycle
        super().on_headers_complete()
        if (cycle := self.cycle) is not before:
            self._cycles.append(cycle)
            if crowd is not None:
                crowd.requests.add(cycle)
            cycle.body = _Pieces()  # type: ignore[assignment] # all that it is used for is there, as below
            # An answer that does not wait for the body ends the connection, and says so: a client that has sent all of
            # it would send the next request on it, too.
            cycle.default_headers = [*cycle.default_headers, (b"connection", b"close")]
            cycle.transport = _Ending(self)  # type: ignore[assignment]
        if len(self.pipeline) > PIPELINED:
            self.refuse(400, "bad_message", "too many requests are sent ahead")

    def on_body(self, body: bytes) -> None:
        """Keep it, unless the request was refused by its head."""
        if not self._done:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The next head may follow."""
        if self._done:
            return
        super().on_message_complete()
        cycle: Any = self.cycle  # none of an upgrade
        if cycle is not None and isinstance(cycle.transport, _Ending) and not cycle.response_started:
            cycle.default_headers = self.server_state.default_headers
            cycle.transport = _Answer(self)
        self._bodies += 1
        self._in_head = True
        self._head = 0

    def on_response_complete(self) -> None:
        """Close after a response that did not wait for its request's body: that may have no end."""
        for cycle in self._cycles:
            if cycle.response_complete:
                self._let_go(cycle)
        self._cycles = [cycle for cycle in self._cycles if not cycle.response_complete]
        if self.cycle.response_complete and self.cycle.more_body and not self._in_head:
            if not self._done:
                self.hang_up()
        elif self._in_head and not self._cycles:
            self._arm()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Give the client its time to read."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(RESPONSE_SECONDS, reset, self.transport)

    def resume_writing(self) -> None:
        """It has read."""
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        super().resume_writing()

    def handle_websocket_upgrade(self) -> None:
        """Leave the connection to its new protocol, clocks and all."""
        if self.parser.get_http_version() != "1.1":  # RFC 6455, 4.1; the request is handed on as if it were
            self.refuse(505, "bad_message", "WebSocket needs HTTP/1.1")
            return
        self._done = True
        self._disarm()
        super().handle_websocket_upgrade()
        self.parser = None  # type: ignore[assignment] # as at the end: it knows this protocol, and would keep it

    def send_400_response(self, msg: str) -> None:
        """Refuse in the shape of all other refusals."""
        self.refuse(400, "bad_message", msg)

    def refuse(self, status: int, code: str, message: str) -> None:
        """Answer with an error, whatever the request was to become, and hang up."""
        if self._done or self.transport.is_closing():
            return
        self._flush()
        self.transport.write(refusal(status, code, message))
        self.hang_up()

    def hang_up(self) -> None:
        """Send what waits and the end, throw away what comes, close soon: closing at once could lose the answer."""
        self._done = True
        self._disarm()
        self._flush()
        self.pipeline.clear()
        for cycle in self._cycles:
            cycle.disconnected = True  # whatever the application still says is not sent
            cycle.body = bytearray()
            cycle.message_event.set()
        end_writing(self.transport)
        self.loop.call_later(CLOSE_SECONDS, self.transport.close)

    def _let_go(self, cycle: RequestResponseCycle) -> None:
        """Nothing more is written: without what points to each other, all of it is freed at once and not some day."""
        cycle.transport = self.transport
        if self._crowd is not None:
            self._crowd.requests.discard(cycle)

    def _flush(self) -> None:
        """What was answered so far comes before all that the connection itself has to say."""
        for cycle in self._cycles:
            answer: Any = cycle.transport
            if isinstance(answer, _Answer):
                answer.flush()

    def _too_late(self) -> None:
        self._deadline = None
        self.refuse(408, "start_timeout", "no request came in time")

    def _arm(self) -> None:
        """Give the next head its time. Not while a request is answered, however long that takes: none need come."""
        if self._deadline is None and not self._done:
            self._deadline = self.loop.call_later(HEAD_SECONDS, self._too_late)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class _Answer:
    """The transport of an answer. Its head waits for what is written at once behind it: one packet instead of two."""

    __slots__ = ("_head", "_protocol", "_waiting")

    def __init__(self, protocol: HttpProtocol) -> None:
        self._protocol = protocol
        self._head = b""
        self._waiting: asyncio.Handle | None = None

    def write(self, data: bytes) -> None:
        transport = self._protocol.transport
        if self._waiting is not None and len(data) <= JOINED_BYTES:
            self._waiting.cancel()
            self._waiting = None
            transport.write(self._head + data)
        elif self._waiting is None and data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 1"):
            self._head = data
            self._waiting = self._protocol.loop.call_soon(self.flush)
        else:
            self.flush()
            transport.write(data)

    def flush(self) -> None:
        """Nothing comes behind it, or something else does."""
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
            if not self._protocol.transport.is_closing():
                self._protocol.transport.write(self._head)

    def close(self) -> None:
        self.flush()
        self._protocol.transport.close()

    def is_closing(self) -> bool:
        return self._protocol.transport.is_closing()


class _Ending(_Answer):
    """The same while the request is still coming: closing waits until the answer is surely read."""

    __slots__ = ()

    def close(self) -> None:
        self.flush()
        self._protocol.hang_up()


class _Pieces:
    """A body as uvicorn collects it, without copying what comes in one piece: a short file, most often."""

    __slots__ = ("_pieces", "_size")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def __iadd__(self, piece: bytes) -> Self:
        self._pieces.append(piece)
        self._size += len(piece)
        return self

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
