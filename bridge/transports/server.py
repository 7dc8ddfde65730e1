"""The HTTP and WebSocket server: uvicorn, with the few things that audio in and an orderly end need."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import uvicorn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

from bridge.transports.websocket import ABORT_EXTENSION

log = logging.getLogger(__name__)

WRITE_HIGH_WATER: Final = 65_536
"""Bytes that may wait in this process for one receiver before its writer waits."""
WAITING_MESSAGES: Final = 8
"""Small messages that may wait for the application before the socket is paused."""
SMALL_MESSAGE: Final = 16_384
"""Bytes; a larger one pauses the socket at once, so that waiting messages stay within 128 KiB."""
CLOSE_SECONDS: Final = 1
"""For a peer to answer a close frame. What it had to be told was sent before."""


class StreamProtocol(WebSocketsSansIOProtocol):
    """Bounds the write buffer and lets the application drop a connection that no longer reads."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Set the write buffer's limit."""
        super().connection_made(transport)
        self.close_timeout = CLOSE_SECONDS
        self.transport.set_write_buffer_limits(high=WRITE_HIGH_WATER)

    def handle_connect(self, event: Request) -> None:
        """Hand the application the means to drop the connection."""
        super().handle_connect(event)
        if self.response.status_code == 101:
            # The task that will read the scope has been made, but has not run yet.
            extensions: dict[str, Any] = self.scope["extensions"]
            extensions[ABORT_EXTENSION] = self.transport.abort

    def send_receive_event_to_app(self) -> None:
        """Queue a complete message; pause reading once enough of them wait.

        The base class pauses at every message, which costs two system calls for each frame of audio.
        """
        parts = self.frames
        small = len(parts) == 1 and len(parts[0]) <= SMALL_MESSAGE
        if not small or self.curr_msg_data_type != "bytes" or self.queue.qsize() >= WAITING_MESSAGES:
            super().send_receive_event_to_app()
            return
        self.frames = []
        if not self.close_sent:
            self.queue.put_nowait({"type": "websocket.receive", "bytes": parts[0]})


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
                await self._stopping

    def stop(self) -> None:
        """Begin to stop; called again, stop at once."""
        if self._stopping is None:
            log.info("stopping: sessions are being finished")
            self._stopping = asyncio.get_running_loop().create_task(self._stop(), name="server-stop")
        else:
            self.force_exit = self.should_exit = True

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
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
) -> Server:
    """A server for the application; it is given its listening sockets by `serve`."""
    config = uvicorn.Config(
        app,
        loop="none",  # the caller runs it, on uvloop where there is one
        http="httptools" if sys.platform != "win32" else "h11",
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
        timeout_graceful_shutdown=max(1, round(shutdown_seconds)),
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
