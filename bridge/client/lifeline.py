"""Connection after connection to one session, so that its caller sees a single unbroken run of messages.

What the server wrote down has a number, 1, 2, 3 and so on. Whatever breaks, the next connection asks for what follows
the last number that was taken; a repeat is dropped, and a gap means that the connection cannot be relied on.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from bridge.client.backoff import Backoff, Reconnect
from bridge.client.connection import Connection
from bridge.client.errors import (
    ClientError,
    ConnectError,
    ConnectionLost,
    ProtocolFault,
    SessionError,
    ended,
    is_retryable,
)
from bridge.client.mailbox import Mailbox
from bridge.protocols.native import (
    ClosedMessage,
    ErrorMessage,
    FinalMessage,
    JoinedMessage,
    ReadyMessage,
    ServerMessage,
    SpeechEndedMessage,
    SpeechStartedMessage,
    StartMessage,
    WarningMessage,
)

DOUBTFUL_SECONDS: Final = 15.0
"""For which an attempt that broke off may lie in a server that hangs."""
STEADY_SECONDS: Final = 10.0
"""A connection that has lived so long ends an outage, even if nobody has said anything."""

MAX_FAULTS: Final = 3
"""Connections given up one after another for what the server sent on them, with nothing lasting in between."""

FRUITLESS: Final = 5
"""Times the limit of one outage, for which resumes that come to nothing are gone on with: the engine may be down."""

IMPATIENT_SECONDS: Final = 60.0
"""Without a way to resume, silence says little: a slow server may have minutes of audio to read before the pong."""


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The connection is lost; another one is tried for."""

    reason: str


@dataclass(frozen=True, slots=True)
class Resumed:
    """The session goes on over a new connection.

    `seconds`: since the connection was lost. `attempts`: connections that were tried. `again_bytes`: audio that was
    sent before and is sent again.
    """

    seconds: float
    attempts: int
    again_bytes: int = 0


OnReconnect = Callable[[Interrupted | Resumed], None]
"""Told of each outage and of its end, on the event loop. What it raises ends the session."""

_Lasting = SpeechStartedMessage | SpeechEndedMessage | FinalMessage | WarningMessage | ErrorMessage | ClosedMessage


class _TooLateError(Exception):
    """Nobody waits for the session any longer; the text says what the last attempt came to."""


class Lifeline(ABC):
    """What senders and receivers have in common. `reconnect` None: the first connection is the only one."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None,
        reconnect: Reconnect | None,
        open_seconds: float,
        on_reconnect: OnReconnect | None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.closed: ClosedMessage | None = None
        """The server's last message, once it came."""
        self.reconnects = 0
        """How often the session was resumed."""
        self._url = url
        self._api_key = api_key
        self._headers = headers
        self._reconnect = reconnect
        self._open_seconds = open_seconds
        self._on_reconnect = on_reconnect
        self._last = 0  # seq of the last lasting message
        self._mailbox = Mailbox()
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._error: ErrorMessage | None = None  # the fatal one
        self._failure: BaseException | None = None
        chosen = reconnect or Reconnect()
        self._doubtful_until = 0.0  # so long an attempt that broke off may yet be answered
        self._backoff = Backoff(chosen.base_seconds, chosen.most_seconds)
        self._since: float | None = None  # when the outage began that has seen no progress since
        self._faults = 0

    # What sets senders and receivers apart

    @abstractmethod
    def _opening(self) -> StartMessage:
        """What the next connection begins with."""

    @abstractmethod
    def _welcome(self, first: ServerMessage | None) -> int:
        """Take the first message of a connection. Returns the bytes of audio that are to be sent again.

        Raises:
            ConnectError: it is no welcome.
            SessionError: it is one that nothing can be made of.
        """

    @property
    @abstractmethod
    def _hold_seconds(self) -> float | None:
        """How long after a break it makes sense to come back; None: not at all."""

    async def _write(self, connection: Connection) -> None:  # noqa: B027 - a receiver says nothing
        """Say on a connection what there is to say; cancelled when it ends."""

    async def _leave(self, connection: Connection) -> None:  # noqa: B027 - a receiver is not missed
        """The connection is about to be closed from this side."""

    def _heed(self, message: ServerMessage) -> bool:
        """Look at a message before the caller gets it. Whether it shows that the session has come further."""
        return isinstance(message, _Lasting) and message.seq is not None

    def _over(self) -> None:  # noqa: B027 - nobody waits for a receiver
        """The session is over, for good or bad: wake who waits."""

    # Life

    async def _begin(self) -> None:
        """Connect for the first time.

        Raises:
            ConnectError: there is no server, or none that answers in time.
            SessionError: the server refuses.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (self._reconnect.first_seconds if self._reconnect else 0)
        while True:
            try:
                connection, _ = await self._open(self._open_seconds)
                break
            except ClientError as exc:
                hopeless = isinstance(exc, SessionError) and not exc.retryable
                if hopeless or loop.time() >= deadline:
                    raise
            await asyncio.sleep(min(self._backoff.next(), max(deadline - loop.time(), 0)))
        self._backoff.reset()
        self._connection = connection
        self._task = asyncio.create_task(self._live(connection), name="client")
        self._task.add_done_callback(self._ended)

    async def _end(self) -> None:
        """Close what is open; leaves no task behind, also when cancelled."""
        try:
            if self._task is not None:
                self._task.cancel()
                await asyncio.wait({self._task})  # ends at once: it waits for nothing then
            if self._connection is not None:
                await self._leave(self._connection)
                await self._connection.close()
        finally:
            if self._connection is not None:
                self._connection.abort()  # where there was no time for that

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self._failure = task.exception()
        self._mailbox.end()
        self._over()

    async def _open(self, seconds: float) -> tuple[Connection, int]:
        connection, first = await Connection.open(
            self._url, self._opening(), api_key=self._api_key, seconds=seconds, headers=self._headers
        )
        welcome = False
        try:
            match first:
                case ErrorMessage():
                    raise SessionError(first.code, first.message, retryable=first.retryable)
                case ClosedMessage():
                    raise ended(first, None)
                case _:
                    again = self._welcome(first)
            welcome = True
        except ClientError:
            await connection.close()
            raise
        finally:
            if not welcome:
                connection.abort()
        return connection, again

    async def _live(self, connection: Connection) -> None:
        """Every connection, from the first to the last.

        Raises:
            ClientError: the session broke off.
        """
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            loss = await self._converse(connection)
            if loss is None:
                await connection.close()
                return
            self._connection = None
            connection.abort()  # the peer may be gone: a handshake would cost time
            if loop.time() - began >= STEADY_SECONDS:
                self._progress()
            connection = await self._come_back(loss)

    async def _converse(self, connection: Connection) -> ConnectionLost | None:
        """Until the connection is lost (then: why), or the session is over (None)."""
        resumable = self._reconnect is not None and self._hold_seconds is not None
        silence = self._reconnect.silence_seconds if self._reconnect and resumable else IMPATIENT_SECONDS
        async with asyncio.TaskGroup() as group:
            helpers = (
                group.create_task(self._write(connection), name="client-writer"),
                group.create_task(connection.watch(silence), name="client-watch"),
            )
            try:
                return await self._read(connection, resumable=resumable)
            finally:
                for helper in helpers:
                    helper.cancel()

    async def _read(self, connection: Connection, *, resumable: bool) -> ConnectionLost | None:
        refused: ErrorMessage | None = None  # the connection, not the session
        while True:
            try:
                message = await connection.receive()
                if message is None or not self._is_news(message, checked=resumable):
                    continue
            except ConnectionLost as loss:
                return loss
            if self._heed(message):
                self._progress()
            if isinstance(message, ErrorMessage) and message.fatal:
                if message.seq is None and resumable:
                    refused = message  # nothing for the caller unless the session ends with it
                    continue
                self._error = message
            elif isinstance(message, ClosedMessage):
                if message.seq is None and resumable and self._not_for_good(message.code):
                    return ConnectionLost(f"the server ended the connection ({message.code})")
                if refused is not None:
                    self._error = refused
                    await self._mailbox.put(refused)
                self.closed = message
                await self._mailbox.put(message)
                return None
            await self._mailbox.put(message)

    def _not_for_good(self, code: str) -> bool:
        """Whether a connection that ends with this code may be followed by another one.

        What took this one's place may be an attempt of our own, which we gave up and a server that hung has seen late.
        """
        own = code == "taken_over" and asyncio.get_running_loop().time() < self._doubtful_until
        return own or is_retryable(code, unknown=True)

    def _is_news(self, message: ServerMessage, *, checked: bool) -> bool:
        """Whether the caller is to see it. Only of a server that counts so is anything expected.

        Raises:
            ProtocolFault: messages are missing before it.
        """
        if isinstance(message, ReadyMessage | JoinedMessage):
            return False
        if not checked or not isinstance(message, _Lasting) or message.seq is None:
            return True
        if message.seq > self._last + 1:
            raise ProtocolFault(f"the server went on with message {message.seq} after {self._last}")
        if message.seq <= self._last:
            return False
        self._last = message.seq
        self._faults = 0
        return True

    def _progress(self) -> None:
        """The outage before, if there was one, is over."""
        self._since = None
        self._backoff.reset()

    async def _come_back(self, loss: ConnectionLost) -> Connection:
        """Another connection.

        Raises:
            ClientError: there is no way back.
        """
        hold = self._hold_seconds
        if self._reconnect is None or hold is None:
            if (error := self._error) is not None:
                raise SessionError(error.code, error.message, retryable=error.retryable)
            raise loss
        if isinstance(loss, ProtocolFault):
            self._faults += 1
            if self._faults >= MAX_FAULTS:
                raise loss
        loop = asyncio.get_running_loop()
        began = loop.time()
        limit = hold if self._reconnect.give_up_seconds is None else self._reconnect.give_up_seconds
        if self._since is None:
            self._since = began
        elif began >= self._since + FRUITLESS * limit:
            raise ConnectionLost(f"{loss}; resumed for {FRUITLESS * limit:g} s without getting any further")
        self._tell(Interrupted(str(loss)))
        try:
            connection, again, attempts = await self._attempt(began + limit)  # each resume holds the session anew
        except _TooLateError as exc:
            raise ConnectionLost(f"{loss}; it could not be resumed within {limit:g} s: {exc}") from exc.__cause__
        self.reconnects += 1
        self._connection = connection  # from here on it is closed with the rest, whatever the caller makes of the news
        self._tell(Resumed(loop.time() - began, attempts, again))
        return connection

    async def _attempt(self, deadline: float) -> tuple[Connection, int, int]:
        """Connections until one is welcome: it, the bytes that are sent again, how many it took. One at least is tried.

        Raises:
            SessionError: the server refuses for good.
            _TooLateError: the time is over.
        """
        loop = asyncio.get_running_loop()
        attempts = 0
        while True:
            await asyncio.sleep(max(min(self._backoff.next(), deadline - loop.time()), 0))
            attempts += 1
            try:
                connection, again = await self._open(max(min(self._open_seconds, deadline - loop.time()), 1))
            except (ConnectError, SessionError) as exc:
                if isinstance(exc, ConnectError):
                    self._doubtful_until = loop.time() + DOUBTFUL_SECONDS
                # A session can be taken only for a moment: while it ends, or moves from one server to another.
                if isinstance(exc, SessionError) and not (exc.retryable or exc.code == "session_taken"):
                    raise
                if loop.time() >= deadline:
                    raise _TooLateError(str(exc)) from exc
            else:
                return connection, again, attempts

    def _tell(self, event: Interrupted | Resumed) -> None:
        if self._on_reconnect is not None:
            self._on_reconnect(event)

    async def __aiter__(self) -> AsyncGenerator[ServerMessage]:
        """Every message after the first, `closed` included, whatever connections they came over.

        No lasting message comes twice or is left out. Cancelling loses none.

        Raises:
            SessionError: after the last message, if the session ended with an error or the server will not resume it.
            ConnectionLost: the session broke off before `closed`, and could not be resumed.
        """
        while (message := await self._mailbox.get()) is not None:
            yield message
        if self._failure is not None:
            raise self._failure
        if self.closed is None:
            raise ConnectionLost("the connection was closed from this side")
        if self.closed.code != "stopped":
            raise ended(self.closed, self._error)
