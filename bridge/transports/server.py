"""The HTTP and WebSocket server: uvicorn, with the few things that audio in and an orderly end need."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http
import logging
import signal
import socket
import struct
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame
from websockets.http11 import Request
from websockets.protocol import State

from bridge.transports.websocket import ABORT_EXTENSION

log = logging.getLogger(__name__)

WRITE_HIGH_WATER: Final = 65_536
"""Bytes that may wait in this process for one receiver before its writer waits."""
WAITING_MESSAGES: Final = 8
"""Small messages that may wait for the application before the socket is paused."""
SMALL_MESSAGE: Final = 16_384
"""Bytes; a larger one pauses the socket at once, so that waiting messages stay within 128 KiB."""
CLOSE_SECONDS: Final = 1
"""For a peer to answer a close frame, or to read why it was refused. What it had to be told was sent before."""
SLICE: Final = 16_384
LARGE_SLICE: Final = 65_536
"""Bytes parsed before other connections have their turn: tiny frames by the thousand cost 15 µs each, 35 ms a slice.

Where the frames before were large, the next slice is: slicing costs a bulk transfer half of its speed.
"""
FEW_FRAMES: Final = 64
"""Frames in a slice, up to which they are called large."""
HEAD_BYTES: Final = 65_536
"""Largest request line with its headers; nginx and Apache stop at 32 KiB and less."""
HEAD_SECONDS: Final = 10
"""For a request's headers to arrive: half a request held open costs the sender nothing."""
PIPELINED: Final = 16
"""Requests that may wait for the answer to another; browsers send none ahead."""
RESPONSE_SECONDS: Final = 10
"""For a client to read what blocks an HTTP response."""


class HttpProtocol(HttpToolsProtocol):
    """Bounds what uvicorn leaves open: the size of a request's head, its time, and the wait for a reader.

    `max_connections` counts those of every kind; one more is refused with 503 before it says anything.
    """

    def __init__(self, *args: Any, max_connections: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._max_connections = max_connections

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock: the first request's head is awaited."""
        super().connection_made(transport)
        self._head = 0  # bytes of the head that is arriving
        self._heads = 0  # complete ones
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

    def data_received(self, data: bytes) -> None:
        """Parse, unless the connection was refused: then what still comes is thrown away."""
        if self._done:
            return
        heads = self._heads
        super().data_received(data)
        if self._done or not self._in_head or self.transport.is_closing():
            return
        if heads == self._heads:  # otherwise only the end of these bytes is of this head
            self._head += len(data)
        if self._head > HEAD_BYTES:
            self.refuse(431, "bad_message", "the request's headers are too large")
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_SECONDS, self._too_late)

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
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before:
            self._cycles.append(self.cycle)
        if len(self.pipeline) > PIPELINED:
            self.refuse(400, "bad_message", "too many requests are sent ahead")

    def on_message_complete(self) -> None:
        """The next head may follow."""
        super().on_message_complete()
        self._in_head = True
        self._head = 0

    def on_response_complete(self) -> None:
        """Close after a response that did not wait for its request's body: that may have no end."""
        self._cycles = [cycle for cycle in self._cycles if not cycle.response_complete]
        if self.cycle.response_complete and self.cycle.more_body and not self._in_head:
            self.hang_up()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Give the client its time to read."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(RESPONSE_SECONDS, _reset, self.transport)

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

    def send_400_response(self, msg: str) -> None:
        """Refuse in the shape of all other refusals."""
        self.refuse(400, "bad_message", msg)

    def refuse(self, status: int, code: str, message: str) -> None:
        """Answer with an error, whatever the request was to become, and hang up."""
        if self._done or self.transport.is_closing():
            return
        self.transport.write(_refusal(status, code, message))
        self.hang_up()

    def hang_up(self) -> None:
        """Send what waits and the end, throw away what comes, close soon: closing at once could lose the answer."""
        self._done = True
        self._disarm()
        self.pipeline.clear()
        for cycle in self._cycles:
            cycle.disconnected = True  # whatever the application still says is not sent
            cycle.message_event.set()
        _end_writing(self.transport)
        self.loop.call_later(CLOSE_SECONDS, self.transport.close)

    def _too_late(self) -> None:
        self._deadline = None
        self.refuse(408, "start_timeout", "no request came in time")

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


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
        self._joined: bytearray | None = None  # the fragments of a message so far
        self._last_resort: asyncio.TimerHandle | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        if self._last_resort is not None:
            self._last_resort.cancel()
            self._last_resort = None
        super().connection_lost(exc)

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
        super().data_received(data)
        if not self.handshake_initiated and self.conn.handshake_exc is not None:
            # The HTTP parser took it for an upgrade, the WebSocket parser does not even take it for a request.
            self.close_sent = self.handshake_complete = True
            answer = b"".join(self.conn.data_to_send())
            self.transport.write(answer or _refusal(400, "bad_message", "the upgrade request cannot be read"))
            self._linger()

    def _work(self) -> None:
        """Parse one slice, unless the application is behind or the peer does not read: both call `_go_on` later."""
        self._working = None
        if not self.close_sent and (self.queue.qsize() > WAITING_MESSAGES or not self.writable.is_set()):
            return
        data = bytes(self._backlog[: self._slice])
        del self._backlog[: self._slice]
        self._take(data)
        if self._backlog or self.queue.empty():
            self._go_on()

    def handle_events(self) -> None:
        """Size the next slice by the frames of this one."""
        self._slice = LARGE_SLICE if len(self.conn.events) <= FEW_FRAMES else SLICE
        super().handle_events()

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
        if self.read_paused and self.queue.empty():
            self._go_on()
        return message

    async def send(self, message: Any) -> None:
        """Send; after a close frame, look for the peer's behind everything that it sent before."""
        await super().send(message)
        if message["type"] == "websocket.close":
            self._go_on()

    # The handshake

    def handle_connect(self, event: Request) -> None:
        """Hand the application the means to drop the connection."""
        super().handle_connect(event)
        if self.response.status_code == 101:
            # The task that will read the scope has been made, but has not run yet.
            extensions: dict[str, Any] = self.scope["extensions"]
            extensions[ABORT_EXTENSION] = functools.partial(_reset, self.transport)

    async def run_asgi(self) -> None:
        """Run the application; after it nothing keeps the connection, not even a peer that does not read."""
        app = self.app

        async def uncancelled(*args: Any) -> None:
            try:
                await app(*args)
            except asyncio.CancelledError:  # the server stops and waits no longer
                _reset(self.transport)
                raise ClientDisconnected from None

        self.app = uncancelled
        await super().run_asgi()
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
        """Queue a complete message; pause reading once enough of them wait.

        The base class pauses at every message, which costs two system calls for each frame of audio.
        """
        (data,) = self.frames
        self.frames = []
        if self.close_sent:
            return
        small = self.curr_msg_data_type == "bytes" and len(data) <= SMALL_MESSAGE
        if self.curr_msg_data_type == "text":
            try:
                self.queue.put_nowait({"type": "websocket.receive", "text": data.decode()})
            except UnicodeDecodeError:
                self.conn.fail(CloseCode.INVALID_DATA, "a text message is not UTF-8")
                self.handle_parser_exception()
                return
        else:
            self.queue.put_nowait({"type": "websocket.receive", "bytes": data})
        if not small or self.queue.qsize() > WAITING_MESSAGES:
            self._pause_reading()

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
        _end_writing(self.transport)
        if self.close_timer is None:
            self.close_timer = self.loop.call_later(CLOSE_SECONDS, self.transport.close)

    def shutdown(self) -> None:
        """The server stops. A closing handshake that is going on has its own clock."""
        if self.close_sent or self.conn.state is State.CLOSING:
            self.stop_keepalive()
            if self.close_timer is None:
                self.transport.close()
            return
        super().shutdown()

    def _abort_later(self, seconds: float) -> None:
        if self._last_resort is None:
            self._last_resort = self.loop.call_later(seconds, _reset, self.transport)


def _refusal(status: int, code: str, message: str) -> bytes:
    """An HTTP response that ends the connection."""
    body = msgspec.json.encode({"error": {"code": code, "message": message}})
    return (
        f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    ).encode() + body


def _reset(transport: asyncio.Transport) -> None:
    """Drop the connection, and with it what the kernel would go on offering to a peer that does not read."""
    raw = transport.get_extra_info("socket")
    if raw is not None:
        with contextlib.suppress(OSError, ValueError):  # it may be closed already
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _end_writing(transport: asyncio.Transport) -> None:
    if transport.can_write_eof() and not transport.is_closing():
        transport.write_eof()


class Server(uvicorn.Server):
    """Stops in order: `drain` runs while the sockets are still open, then uvicorn closes them."""

    def __init__(self, config: uvicorn.Config, drain: Callable[[], Awaitable[object]]) -> None:
        super().__init__(config)
        self._drain = drain
        self._stopping: asyncio.Task[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal or `stop`. A second signal ends it at once."""
        loop = asyncio.get_running_loop()
        installed = []
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                loop.add_signal_handler(number, self.stop)
                installed.append(number)
            except (NotImplementedError, RuntimeError, ValueError):
                pass  # not the main thread (a test), or a platform without signals: `stop` is called by hand
        try:
            await self._serve(sockets)
        finally:
            for number in installed:
                loop.remove_signal_handler(number)
            if self._stopping is not None:
                await asyncio.wait({self._stopping})
                if not self._stopping.cancelled():
                    self._stopping.result()

    def stop(self) -> None:
        """Begin to stop; called again, stop at once."""
        if self._stopping is None:
            log.info("stopping: sessions are being finished")
            self._stopping = asyncio.get_running_loop().create_task(self._stop(), name="server-stop")
        else:
            self.force_exit = self.should_exit = True
            self._stopping.cancel()

    async def _stop(self) -> None:
        try:
            await self._drain()
        finally:
            self.should_exit = True


def make_server(
    app: Any,
    *,
    drain: Callable[[], Awaitable[object]],
    max_message_bytes: int,
    ping_seconds: float,
    ping_timeout_seconds: float,
    shutdown_seconds: float,
    max_connections: int | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
) -> Server:
    """A server for the application; it is given its listening sockets by `serve`."""
    http_protocol: Any = functools.partial(HttpProtocol, max_connections=max_connections)
    config = uvicorn.Config(
        app,
        loop="none",  # the caller runs it, on uvloop where there is one
        http=http_protocol if sys.platform != "win32" else "h11",
        ws=StreamProtocol,
        ws_max_size=max_message_bytes,
        ws_ping_interval=ping_seconds,
        ws_ping_timeout=ping_timeout_seconds,
        ws_per_message_deflate=False,  # 64 KiB a connection, and audio does not shrink
        lifespan="off",  # bridge.app owns the life cycle
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=CLOSE_SECONDS + max(1, round(shutdown_seconds)),
        ssl_certfile=str(tls_cert) if tls_cert else None,
        ssl_keyfile=str(tls_key) if tls_key else None,
    )
    return Server(config, drain)


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket.

    Raises:
        OSError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1_024)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener
