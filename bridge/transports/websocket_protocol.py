"""uvicorn's WebSocket connection, bounded and hardened: what waits, what a peer may cost others, how it ends.

A plain message goes straight to whoever listens (see `LINE_EXTENSION`): no parser's generator, no queue and no switch
of tasks lie between the socket and the session.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from typing import Any, Final

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State

from bridge.transports.endings import CLOSE_SECONDS, end_writing, refusal, reset
from bridge.transports.frames import Frames, Kind
from bridge.transports.websocket import ABORT_EXTENSION, FULL, LINE_EXTENSION, Sink

WRITE_HIGH_WATER: Final = 65_536
"""Bytes that may wait in this process for one receiver before its writer waits."""
WAITING_MESSAGES: Final = 8
"""Small messages that may wait for the application before the socket is paused."""
SMALL_MESSAGE: Final = 16_384
"""Bytes; a larger one pauses the socket at once, so that waiting messages stay within 128 KiB."""
SLICE: Final = 16_384
LARGE_SLICE: Final = 65_536
"""Bytes parsed before other connections have their turn: tiny frames by the thousand cost 15 µs each, 35 ms a slice.

Where the frames before were large, the next slice is: slicing costs a bulk transfer half of its speed.
"""
FEW_FRAMES: Final = 64
"""Frames in a slice, up to which they are called large."""


class StreamProtocol(WebSocketsSansIOProtocol):
    """Bounds what one connection can hold, ends each in time, and takes garbage for what it is: no exception."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Set the write buffer's limit."""
        super().connection_made(transport)
        self.close_timeout = CLOSE_SECONDS
        self.transport.set_write_buffer_limits(high=WRITE_HIGH_WATER)
        self._heard = self.loop.time()  # when the peer last sent anything
        self._failed = False  # a broken frame came: what follows is thrown away
        self._backlog = bytearray()  # received, not parsed yet
        self._slice = SLICE
        self._working: asyncio.Handle | None = None
        self._frames = Frames(self.config.ws_max_size)
        self._joined: bytearray | None = None  # the fragments of a message so far
        self._sink: Sink | None = None  # where messages go that need not wait
        self._full = False  # it took the last one that it could
        self._last_resort: asyncio.TimerHandle | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        if self._last_resort is not None:
            self._last_resort.cancel()
            self._last_resort = None
        self._sink = None
        super().connection_lost(exc)
        # It and the library's protocol hold each other, 2 KB that would wait for the collector, which comes seldom.
        self.conn.parser.close()

    # What comes in

    def data_received(self, data: bytes) -> None:
        """Parse at once, or in slices what is large, with other connections in between."""
        if self._failed:
            return
        self._heard = self.loop.time()
        if self._backlog or len(data) > self._slice:
            self._backlog += data
            self._go_on()
        else:
            self._take(data)

    def _take(self, data: bytes) -> None:
        if not self.handshake_initiated:  # the first data are the request's head and nothing else
            self._take_head(data)
            return
        pieces = self._frames.split(data)
        self._slice = LARGE_SLICE if len(pieces) <= FEW_FRAMES else SLICE
        for kind, piece in pieces:
            if kind is Kind.OTHER:
                super().data_received(piece)
                if self.conn.close_rcvd is not None:
                    return  # nothing that follows counts
            else:
                self._deliver(piece, text=kind is Kind.TEXT)
            if self._failed:
                return

    def _take_head(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.handshake_exc is not None:
            # The HTTP parser took it for an upgrade, the WebSocket parser does not even take it for a request.
            self.close_sent = self.handshake_complete = True
            answer = b"".join(self.conn.data_to_send())
            self.transport.write(answer or refusal(400, "bad_message", "the upgrade request cannot be read"))
            self._linger()

    def _work(self) -> None:
        """Parse one slice, unless the application is behind or the peer does not read: both call `_go_on` later."""
        self._working = None
        behind = self._full or self.queue.qsize() > WAITING_MESSAGES or not self.writable.is_set()
        if behind and not self.close_sent:
            return
        data = bytes(self._backlog[: self._slice])
        del self._backlog[: self._slice]
        self._take(data)
        if self._backlog or self.queue.empty():
            self._go_on()

    def _go_on(self) -> None:
        """Parse what waits; when nothing does, read on."""
        if self.transport.is_closing():
            self._backlog.clear()
        elif self._backlog:
            self._pause_reading()
            if self._working is None:
                self._working = self.loop.call_soon(self._work)
        elif self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()

    def _pause_reading(self) -> None:
        if not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    async def receive(self) -> Any:
        """The next message for the application."""
        message = await self.queue.get()
        if self.read_paused and self.queue.empty() and not self._full:
            self._go_on()
        return message

    def listen(self, sink: Sink | None) -> None:
        """See `Line`."""
        self._sink, self._full = None, False
        if self.queue.empty():
            self._sink = sink
            self._go_on()

    async def send(self, message: Any) -> None:
        """Send; after a close frame, look for the peer's behind everything that it sent before."""
        await super().send(message)
        if message["type"] == "websocket.close":
            self._go_on()
        elif message["type"] == "websocket.http.response.body":
            self.handshake_complete = True  # refused, which uvicorn would take for an application that says nothing

    def write(self, texts: Sequence[str]) -> bool:
        """See `Line`: between the two handshakes, to a peer that reads, without an extension that would change it."""
        conn = self.conn
        if not self.handshake_complete or self.close_sent or conn.state is not State.OPEN or conn.extensions:
            return False
        if not self.writable.is_set() or self.transport.is_closing():
            return False
        self.transport.write(b"".join(Frame(Opcode.TEXT, text.encode()).serialize(mask=False) for text in texts))
        return True

    # The handshake

    def handle_connect(self, event: Request) -> None:
        """Hand the application the means to drop the connection."""
        super().handle_connect(event)
        if self.response.status_code == 101:
            # The task that will read the scope has been made, but has not run yet.
            extensions: dict[str, Any] = self.scope["extensions"]
            extensions[ABORT_EXTENSION] = functools.partial(reset, self.transport)
            extensions[LINE_EXTENSION] = self

    async def run_asgi(self) -> None:
        """Run the application; after it nothing keeps the connection, not even a peer that does not read."""
        app = self.app

        async def uncancelled(*args: Any) -> None:
            try:
                await app(*args)
            except asyncio.CancelledError:  # the server stops and waits no longer
                reset(self.transport)
                raise ClientDisconnected from None

        self.app = uncancelled
        try:
            await super().run_asgi()
        finally:
            self.app = app  # what points to each other is freed some day, not now
            self.scope["extensions"].pop(LINE_EXTENSION, None)
        if not self.disconnected:
            self._abort_later(2 * CLOSE_SECONDS)

    # Messages

    def handle_cont(self, event: Frame) -> None:
        """Join fragments as they come: a list of them would outgrow the message's own limit a hundredfold."""
        if self._joined is None:
            self._joined = bytearray(self.frames[0])
        self._joined += event.data
        if event.fin:
            self.frames, self._joined = [bytes(self._joined)], None
            self.send_receive_event_to_app()

    def send_receive_event_to_app(self) -> None:
        """Deliver a complete message."""
        (data,) = self.frames
        self.frames = []
        self._deliver(data, text=self.curr_msg_data_type == "text")

    def _deliver(self, data: bytes, *, text: bool) -> None:
        """To who listens, or into the queue; pause reading once enough of them wait.

        The base class pauses at every message, which costs two system calls for each frame of audio.
        """
        if self.close_sent:
            return
        message: bytes | str = data
        if text:
            try:
                message = data.decode()
            except UnicodeDecodeError:
                self.conn.fail(CloseCode.INVALID_DATA, "a text message is not UTF-8")
                self.handle_parser_exception()
                return
        if self._sink is not None:  # so nothing but an end is in the queue: see `listen`
            if not self._sink(message):
                self._sink = None
                self._full = True
                self._put({"type": FULL})
                self._pause_reading()
            return
        self._put({"type": "websocket.receive", "text" if text else "bytes": message})
        if text or len(data) > SMALL_MESSAGE or self.queue.qsize() > WAITING_MESSAGES:
            self._pause_reading()

    def _put(self, message: Any) -> None:
        """Also what uvicorn has no type for."""
        self.queue.put_nowait(message)

    # Pings

    def handle_ping(self) -> None:
        """Answer; a peer that sends pings but does not read the pongs is read no more."""
        super().handle_ping()
        if not self.writable.is_set():
            self._pause_reading()

    def resume_writing(self) -> None:
        """Read on."""
        super().resume_writing()
        if self.queue.empty():
            self._go_on()

    def keepalive_timeout(self) -> None:
        """Close a dead peer. One that is heard is alive: its pong waits behind the audio it has sent before.

        So is one that this side does not read because the session has no room.
        """
        timeout = float(self.ping_timeout or 0)
        patience = self._heard + timeout - self.loop.time()
        if patience <= 0 and self.read_paused and self.writable.is_set():
            patience = timeout
        if patience > 0:
            self.pong_timer = self.loop.call_later(patience, self.keepalive_timeout)
            return
        super().keepalive_timeout()
        self._abort_later(CLOSE_SECONDS)

    # Ends

    def handle_parser_exception(self) -> None:
        """Tell the peer why, and the application that it is gone."""
        close = self.conn.close_sent
        self._sink = None
        code, reason = (close.code, close.reason) if close else (CloseCode.ABNORMAL_CLOSURE, "")
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self._linger()

    def _linger(self) -> None:
        """Close soon: closing at once, with data unread, resets the connection and loses what it was told."""
        self._failed = True
        self._backlog.clear()
        self.stop_keepalive()
        self._go_on()
        end_writing(self.transport)
        if self.close_timer is None:
            self.close_timer = self.loop.call_later(CLOSE_SECONDS, self.transport.close)

    def shutdown(self) -> None:
        """The server stops. A closing handshake that is going on has its own clock."""
        self._sink = None
        if self.close_sent or self.conn.state is State.CLOSING:
            self.stop_keepalive()
            if self.close_timer is None:
                self.transport.close()
            return
        super().shutdown()

    def _abort_later(self, seconds: float) -> None:
        if self._last_resort is None:
            self._last_resort = self.loop.call_later(seconds, reset, self.transport)
