"""A client of the native protocol (`/v1/stream`) on asyncio.

    async with connect("ws://127.0.0.1:8000/v1/stream", StartMessage(sample_rate=8000)) as client:
        await client.send(audio)      # from any task
        await client.stop()
        async for message in client:  # until the server says `closed`
            ...

Send from one task and receive in another: both directions push back on their own. The exceptions:

    ClientError
      ConnectError      no session came about: no server, no WebSocket, no answer in time
      ConnectionLost    the session broke off without `closed`
      SessionError      the server says so, with a code of `bridge.errors`: a refusal or a session that failed
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final
from urllib.parse import urlsplit

import msgspec
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_websocket
from websockets.exceptions import ConnectionClosed, InvalidStatus, InvalidURI, WebSocketException

from bridge.errors import ERRORS
from bridge.protocols.native import (
    ClientMessage,
    ClosedMessage,
    ErrorMessage,
    FlushMessage,
    ReadyMessage,
    ServerMessage,
    StartMessage,
    StopMessage,
)

OPEN_SECONDS: Final = 10.0
"""For the connection, and again for `ready`: a server that carries its load answers within milliseconds."""

CLOSE_SECONDS: Final = 2.0
"""For the closing handshake; after that the connection is cut."""

PING_TIMEOUT_SECONDS: Final = 60.0
"""Longer than usual: a ping waits behind the audio that a slow server has yet to read, and so does its answer."""

SEND_BUFFER_BYTES: Final = 131_072
"""What may wait in the kernel (4 s of PCM16 at 16 kHz): `stop`, `flush` and pongs wait behind it."""

MAX_MESSAGE_BYTES: Final = 8 * 1_048_576
"""Largest message taken from a server: an hour of words in one final would be smaller."""


class ClientError(Exception):
    """What keeps a session from ending well; the text is a sentence for people."""


class ConnectError(ClientError):
    """No session came about."""


class ConnectionLost(ClientError):  # noqa: N818 - it says what happened
    """The connection ended before the server had said `closed`."""


class SessionError(ClientError):
    """The server's own word: it refused the session or ended it with an error.

    `retryable` says that the same request may succeed later.
    """

    def __init__(self, code: str, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = retryable

    def __str__(self) -> str:
        return f"{self.message} ({self.code})"


class _Refusal(msgspec.Struct):
    code: str
    message: str


class _RefusalBody(msgspec.Struct):
    error: _Refusal


_decoder: Final = msgspec.json.Decoder(ServerMessage)
_encoder: Final = msgspec.json.Encoder()


@contextlib.asynccontextmanager
async def connect(
    url: str,
    start: StartMessage | None = None,
    *,
    api_key: str | None = None,
    open_seconds: float = OPEN_SECONDS,
) -> AsyncGenerator[Client]:
    """Open a session; in the context the server has said `ready`.

    On leaving the context the connection is closed, and so is the session: without `stop`, and all messages read
    up to `closed`, what was said last is lost. Safe to cancel at any point.

    Raises:
        ConnectError: there is no server, or none that answers within `open_seconds`.
        SessionError: the server refuses, before or after the upgrade.
    """
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    try:
        connection = await open_websocket(
            url,
            additional_headers=headers,
            compression=None,  # audio does not shrink, and each side would keep 50 KiB of state
            open_timeout=open_seconds,
            close_timeout=CLOSE_SECONDS,
            ping_timeout=PING_TIMEOUT_SECONDS,
            max_size=MAX_MESSAGE_BYTES,
            proxy=None if _is_loopback(url) else True,
        )
    except InvalidStatus as exc:
        raise _refusal(url, exc.response.status_code, exc.response.body) from None
    except InvalidURI as exc:
        raise ConnectError(f"{url}: not the address of a WebSocket: {exc.msg}") from None
    except TimeoutError:
        raise ConnectError(f"{url}: no answer within {open_seconds:g} s") from None
    except (OSError, WebSocketException) as exc:
        raise ConnectError(f"{url}: {_reason(exc)}") from None
    raw = connection.transport.get_extra_info("socket")
    if raw is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    try:
        yield await _start(url, connection, start or StartMessage(), open_seconds)
    finally:
        await connection.close()


async def _start(url: str, connection: ClientConnection, start: StartMessage, seconds: float) -> Client:
    try:
        await connection.send(_encoder.encode(start), text=True)
        async with asyncio.timeout(seconds):
            first = _decode(await connection.recv(decode=False))
    except TimeoutError:
        raise ConnectError(f"{url}: the server did not get ready within {seconds:g} s") from None
    except ConnectionClosed as exc:
        raise ConnectError(f"{url}: {_closing(exc)}") from None
    except ConnectionLost as exc:
        raise ConnectError(f"{url}: {exc}") from None
    match first:
        case ReadyMessage():
            return Client(connection, first)
        case ErrorMessage():
            raise SessionError(first.code, first.message, retryable=first.retryable)
        case ClosedMessage():
            raise _ended(first, None)
        case _:
            raise ConnectError(f"{url}: the server began with {_tag(first)!r} instead of `ready`")


class Client:
    """An open session. Get one from `connect`."""

    def __init__(self, connection: ClientConnection, ready: ReadyMessage) -> None:
        self.ready = ready
        """What the server agreed to."""
        self.sent = 0
        """Bytes of audio sent so far."""
        self.closed: ClosedMessage | None = None
        """The server's last message, once it came."""
        self._connection = connection
        self._error: ErrorMessage | None = None  # the fatal one

    async def send(self, audio: bytes) -> None:
        """Send audio in the format of `start`; waits while the server is slow to take it.

        When cancelled, a part of the audio may be on its way: send nothing but `stop` after that.

        Raises:
            ConnectionLost: the connection is closed. If the server said why, the iterator tells.
        """
        limit = self.ready.limits.message_bytes
        for at in range(0, len(audio), limit):
            piece = audio[at : at + limit]
            try:
                await self._connection.send(piece)
            except ConnectionClosed as exc:
                raise ConnectionLost(_closing(exc)) from None
            self.sent += len(piece)

    async def flush(self) -> None:
        """Ask for finals of everything sent so far; the session goes on.

        Raises:
            ConnectionLost: see `send`.
        """
        await self._send(FlushMessage())

    async def stop(self) -> None:
        """Say that there is no more audio. The finals that are left follow, then `closed`.

        Raises:
            ConnectionLost: see `send`.
        """
        await self._send(StopMessage())

    async def _send(self, message: ClientMessage) -> None:
        try:
            await self._connection.send(_encoder.encode(message), text=True)
        except ConnectionClosed as exc:
            raise ConnectionLost(_closing(exc)) from None

    async def __aiter__(self) -> AsyncIterator[ServerMessage]:
        """Every message after `ready`, `closed` included. Cancelling loses no message.

        Raises:
            SessionError: after the last message, if the session ended with an error.
            ConnectionLost: the connection broke off before `closed`.
        """
        while self.closed is None:
            try:
                data = await self._connection.recv(decode=False)
            except ConnectionClosed as exc:
                if (error := self._error) is not None:
                    raise SessionError(error.code, error.message, retryable=error.retryable) from None
                raise ConnectionLost(_closing(exc)) from None
            message = _decode(data)
            if message is None:
                continue
            if isinstance(message, ErrorMessage) and message.fatal:
                self._error = message
            elif isinstance(message, ClosedMessage):
                self.closed = message
            yield message
        if self.closed.code != "stopped":
            raise _ended(self.closed, self._error)


def _decode(data: bytes) -> ServerMessage | None:
    """The message; None for a type of a newer protocol, which a client ignores.

    Raises:
        ConnectionLost: the server speaks something else; nothing that follows can be relied on.
    """
    try:
        message: ServerMessage = _decoder.decode(data)
    except msgspec.ValidationError as exc:
        if str(exc).endswith("`$.type`"):
            return None
        raise ConnectionLost(f"the server sent a message that cannot be understood: {exc}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise ConnectionLost(f"the server sent something that is no message: {exc}") from None
    return message


def _refusal(url: str, status: int, body: bytes | bytearray) -> ClientError:
    """What an HTTP answer instead of the upgrade means."""
    try:
        error = msgspec.json.decode(bytes(body), type=_RefusalBody).error
    except msgspec.MsgspecError:
        return ConnectError(f"{url}: the server answers with HTTP status {status} instead of a WebSocket")
    known = ERRORS.get(error.code)
    retryable = known.retryable if known else status >= 500
    return SessionError(error.code, error.message, retryable=retryable)


def _ended(closed: ClosedMessage, error: ErrorMessage | None) -> SessionError:
    if error is not None:
        return SessionError(closed.code, error.message, retryable=error.retryable)
    known = ERRORS.get(closed.code)
    meaning = known.meaning if known else "The server ended the session."
    return SessionError(closed.code, meaning, retryable=known.retryable if known else False)


def _closing(exc: ConnectionClosed) -> str:
    if exc.rcvd is None:
        return "the connection broke off"
    reason = f": {exc.rcvd.reason}" if exc.rcvd.reason else ""
    return f"the server closed the connection with code {exc.rcvd.code}{reason}"


def _tag(message: ServerMessage | None) -> str:
    return "an unknown message" if message is None else str(type(message).__struct_config__.tag)


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
