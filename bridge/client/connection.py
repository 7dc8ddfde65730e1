"""One WebSocket of the native protocol: messages out and in, every failure told in a sentence.

A connection begins with `start` and the server's first answer and ends with whatever breaks it. What becomes of the
session then is decided in `bridge.client.lifeline`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

import msgspec
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_websocket
from websockets.exceptions import ConnectionClosed, InvalidStatus, InvalidURI, WebSocketException

from bridge.client.errors import ClientError, ConnectError, ConnectionLost, ProtocolFault, SessionError, is_retryable
from bridge.protocols.native import ClientMessage, ServerMessage, StartMessage

OPEN_SECONDS: Final = 10.0
"""For the connection, and again for the first answer: a server that carries its load answers within milliseconds."""

CLOSE_SECONDS: Final = 2.0
"""For the closing handshake; after that the connection is cut."""

PING_SECONDS: Final = 5.0
"""Between a pong and the next ping."""

SEND_BUFFER_BYTES: Final = 131_072
"""What may wait in the kernel (4 s of PCM16 at 16 kHz): `stop`, `flush` and pongs wait behind it."""

MAX_MESSAGE_BYTES: Final = 8 * 1_048_576
"""Largest message taken from a server: an hour of words in one final would be smaller."""


class _Refusal(msgspec.Struct):
    code: str
    message: str


class _RefusalBody(msgspec.Struct):
    error: _Refusal


_decoder: Final = msgspec.json.Decoder(ServerMessage)
_encoder: Final = msgspec.json.Encoder()


class Connection:
    """An open WebSocket. Get one from `open`; one task receives, one sends."""

    def __init__(self, websocket: ClientConnection) -> None:
        self._websocket = websocket
        self._heard = 0  # messages received
        self._receiving = False
        self._why: str | None = None  # we gave it up ourselves

    @classmethod
    async def open(
        cls,
        url: str,
        start: StartMessage,
        *,
        api_key: str | None,
        seconds: float,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[Connection, ServerMessage | None]:
        """Connect, say `start`, and wait for the first message (None: of a type that is not known).

        May be cancelled. `seconds` count for the connection, and again for the message. `headers`: of the request,
        besides the key's.

        Raises:
            ConnectError: no server, none that answers in time, or one that breaks off.
            SessionError: the server refuses the upgrade.
        """
        connection = cls(await _connect(url, api_key, seconds, headers or {}))
        try:
            await connection.say(start)
            async with asyncio.timeout(seconds):
                return connection, await connection.receive()
        except TimeoutError:
            connection.abort()
            raise ConnectError(f"{url}: the server did not get ready within {seconds:g} s") from None
        except ConnectionLost as exc:
            connection.abort()
            raise ConnectError(f"{url}: {exc}") from None
        except BaseException:
            connection.abort()
            raise

    async def send(self, audio: bytes) -> None:
        """Send a binary message; waits while the peer is slow to take it.

        Raises:
            ConnectionLost: the connection is closed. If the server said why, `receive` tells.
        """
        if self._websocket.transport.is_closing():  # what is written then goes nowhere, and nothing would say so
            raise ConnectionLost(self._why or "the connection broke off")
        try:
            await self._websocket.send(audio)
        except ConnectionClosed as exc:
            raise ConnectionLost(self._closing(exc)) from None

    async def say(self, message: ClientMessage) -> None:
        """Send a text message.

        Raises:
            ConnectionLost: see `send`.
        """
        try:
            await self._websocket.send(_encoder.encode(message), text=True)
        except ConnectionClosed as exc:
            raise ConnectionLost(self._closing(exc)) from None

    async def receive(self) -> ServerMessage | None:
        """The next message; None for a type of a newer protocol, which a client ignores. Cancelling loses none.

        Raises:
            ConnectionLost: there is none, the connection is closed.
            ProtocolFault: the server speaks something else; nothing that follows can be relied on.
        """
        self._receiving = True
        try:
            data = await self._websocket.recv(decode=False)
        except ConnectionClosed as exc:
            raise ConnectionLost(self._closing(exc)) from None
        finally:
            self._receiving = False
        self._heard += 1
        return _decode(data)

    async def watch(self, silence: float) -> None:
        """Cut the connection when it is dead: so many seconds after a ping neither a pong nor a message has come.

        Messages count because a pong may wait behind audio that a slow server has yet to read. While nobody
        receives, silence is our own doing. Runs until the connection is closed.
        """
        while True:
            before = self._heard
            try:
                async with asyncio.timeout(silence):
                    await (await self._websocket.ping())
            except ConnectionClosed:
                return
            except TimeoutError:
                if self._heard == before and self._receiving:
                    self._why = f"nothing was heard of the server for {silence:g} s"
                    self.abort()
                    return
            else:
                await asyncio.sleep(min(PING_SECONDS, silence))

    async def close(self) -> None:
        """Close it in order, within `CLOSE_SECONDS`; what the peer said before that and nobody took is dropped."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._websocket.close(), name="client-closing")
            with contextlib.suppress(ConnectionClosed):
                while True:  # its close frame comes behind that
                    await self._websocket.recv(decode=False)

    def abort(self) -> None:
        """Cut it at once."""
        self._websocket.transport.abort()

    def _closing(self, exc: ConnectionClosed) -> str:
        if self._why is not None:
            return self._why
        if exc.rcvd is None:
            return "the connection broke off"
        reason = f": {exc.rcvd.reason}" if exc.rcvd.reason else ""
        return f"the server closed the connection with code {exc.rcvd.code}{reason}"


async def _connect(url: str, api_key: str | None, seconds: float, headers: Mapping[str, str]) -> ClientConnection:
    key = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    try:
        websocket = await open_websocket(
            url,
            additional_headers={**headers, **key},
            compression=None,  # audio does not shrink, and each side would keep 50 KiB of state
            open_timeout=seconds,
            close_timeout=CLOSE_SECONDS,
            ping_interval=None,  # `watch` is more patient with a slow server, and less with a dead one
            max_size=MAX_MESSAGE_BYTES,
            proxy=None if _is_loopback(url) else True,
        )
    except InvalidStatus as exc:
        raise _refusal(url, exc.response.status_code, exc.response.body) from None
    except InvalidURI as exc:
        raise ConnectError(f"{url}: not the address of a WebSocket: {exc.msg}") from None
    except TimeoutError:
        raise ConnectError(f"{url}: no answer within {seconds:g} s") from None
    except (OSError, WebSocketException) as exc:
        raise ConnectError(f"{url}: {_reason(exc)}") from None
    raw = websocket.transport.get_extra_info("socket")
    if raw is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    return websocket


def _decode(data: bytes) -> ServerMessage | None:
    try:
        message: ServerMessage = _decoder.decode(data)
    except msgspec.ValidationError as exc:
        if str(exc).endswith("`$.type`"):
            return None
        raise ProtocolFault(f"the server sent a message that cannot be understood: {exc}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise ProtocolFault(f"the server sent something that is no message: {exc}") from None
    return message


def _refusal(url: str, status: int, body: bytes | bytearray) -> ClientError:
    """What an HTTP answer instead of the upgrade means."""
    try:
        error = msgspec.json.decode(bytes(body), type=_RefusalBody).error
    except msgspec.MsgspecError:
        return ConnectError(f"{url}: the server answers with HTTP status {status} instead of a WebSocket")
    return SessionError(error.code, error.message, retryable=is_retryable(error.code, unknown=status >= 500))


def _is_loopback(url: str) -> bool:
    """Whether a proxy of the environment would be no way to get there."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _reason(exc: BaseException) -> str:
    """One sentence; asyncio joins the failures of several addresses into one text."""
    if isinstance(exc, ConnectionRefusedError) or "Connect call failed" in str(exc):
        return "connection refused: nothing listens there"
    return getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
