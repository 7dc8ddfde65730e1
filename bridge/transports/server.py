"""The HTTP and WebSocket server: uvicorn, with the few things that audio in and an orderly end need."""

from __future__ import annotations

import asyncio
import functools
import logging
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvicorn

from bridge.transports.endings import CLOSE_SECONDS
from bridge.transports.http_protocol import Crowd, HttpProtocol
from bridge.transports.websocket_protocol import StreamProtocol

log = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """Stops in order: `drain` runs while the sockets are still open, then uvicorn closes them."""

    def __init__(self, config: uvicorn.Config, drain: Callable[[], Awaitable[object]], *, patient: bool) -> None:
        super().__init__(config)
        self._drain = drain
        self._on_signal = self.finish if patient else self.stop
        self._stopping: asyncio.Task[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal or `stop`. A second signal ends it at once, unless the server is `patient`."""
        loop = asyncio.get_running_loop()
        installed = []
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                loop.add_signal_handler(number, self._on_signal)
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
            self.finish()
        else:
            self.force_exit = self.should_exit = True
            self._stopping.cancel()

    def finish(self) -> None:
        """Begin to stop; called again, nothing changes."""
        if self._stopping is None:
            log.info("stopping: sessions are being finished")
            self._stopping = asyncio.get_running_loop().create_task(self._stop(), name="server-stop")

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
    crowd: Crowd | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    patient: bool = False,
) -> Server:
    """A server for the application; it is given its listening sockets by `serve`. `crowd`: what keeps a flood away.

    `patient`: however often it is signalled, it ends in order; for who has somebody else to end it at once.
    """
    http_protocol: Any = functools.partial(HttpProtocol, max_connections=max_connections, crowd=crowd)
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
    return Server(config, drain, patient=patient)


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening TCP socket. `shared`: beside those of other processes of this user, if they say so, too.

    Raises:
        OSError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
        listener.listen(1_024)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener
