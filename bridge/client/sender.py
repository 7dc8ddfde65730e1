"""The sender's half of a session: audio goes in whatever the connection does."""

from __future__ import annotations

import asyncio
import contextlib
from bisect import bisect_right
from collections.abc import AsyncGenerator, Mapping
from typing import Final

import msgspec

from bridge.audio.formats import AudioFormat, Encoding
from bridge.audio.sniff import sniff
from bridge.client.backoff import Reconnect
from bridge.client.connection import CLOSE_SECONDS, OPEN_SECONDS, Connection
from bridge.client.errors import ConnectError, ConnectionLost, SessionError
from bridge.client.lifeline import Lifeline, OnReconnect
from bridge.client.mailbox import Signal
from bridge.client.ring import Ring
from bridge.protocols.native import (
    AckMessage,
    FlushMessage,
    ReadyMessage,
    ServerMessage,
    StartMessage,
    StopMessage,
)

ACK_PATIENCE_SECONDS: Final = 2.0
"""Acks come about once a second while audio comes. From a server that sends none, the socket alone holds back."""

PIECE_SECONDS: Final = 0.25
"""Raw audio in one message at most; more only delays what follows it."""

PIECE_BYTES: Final = 32_768
"""The same of coded audio."""

DIRECT_BYTES: Final = 262_144
"""Audio that waits for the socket where none is kept for another connection."""

SNIFF_BYTES: Final = 65_536
"""Of `auto`: what does not show itself by then is treated as coded."""

MAX_FLUSHES: Final = 1_024
"""Flushes that are remembered until they are answered; the oldest are the least missed."""

DEFAULT: Final = Reconnect()


@contextlib.asynccontextmanager
async def connect(
    url: str,
    start: StartMessage | None = None,
    *,
    api_key: str | None = None,
    reconnect: Reconnect | None = DEFAULT,
    on_reconnect: OnReconnect | None = None,
    open_seconds: float = OPEN_SECONDS,
    headers: Mapping[str, str] | None = None,
) -> AsyncGenerator[Client]:
    """Open a session; in the context the server has said `ready`.

    When the connection breaks, the session is resumed over another one (`reconnect` None: it is lost, as it is with a
    server that gives no `resume_token`); `on_reconnect` is told. On leaving the context the session is stopped and the
    connection closed: unless all messages were read up to `closed`, what was said last is lost. `headers` go with the
    request of each connection, besides the key's. Safe to cancel at any point.

    Raises:
        ConnectError: there is no server, or none that answers within `open_seconds`.
        SessionError: the server refuses, before or after the upgrade.
    """
    start = start or StartMessage()
    if reconnect is not None and start.resume is None:
        start = msgspec.structs.replace(start, resume=True)
    client = Client(
        url,
        start,
        api_key=api_key,
        reconnect=reconnect,
        open_seconds=open_seconds,
        on_reconnect=on_reconnect,
        headers=headers,
    )
    await client._begin()  # noqa: SLF001 - its life is this context's
    try:
        yield client
    finally:
        await client._end()  # noqa: SLF001


class Client(Lifeline):
    """An open session. Get one from `connect`."""

    ready: ReadyMessage
    """What the server agreed to, at the last connection."""

    def __init__(
        self,
        url: str,
        start: StartMessage,
        *,
        api_key: str | None,
        reconnect: Reconnect | None,
        open_seconds: float,
        on_reconnect: OnReconnect | None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            url,
            api_key=api_key,
            reconnect=reconnect,
            open_seconds=open_seconds,
            on_reconnect=on_reconnect,
            headers=headers,
        )
        self._start = start
        self._begun = False
        self._ring = Ring()
        self._limit = DIRECT_BYTES  # of the ring
        self._frame_bytes = 0  # of raw samples; 0: bytes and frames have nothing to do with each other
        self._cursor = 0  # the next byte to be sent
        self._acked = 0  # bytes known to be received
        self._best = (0, 0)  # the furthest ack
        self._base_window = self._window = 0
        self._piece = PIECE_BYTES  # most in a message
        self._unknown = False  # what `auto` means
        self._acks_come = True
        self._flushes: list[int] = []  # where they were asked for
        self._stop_at: int | None = None
        self._wanted = Signal()  # there may be something to say
        self._room = Signal()  # there may be room in the ring
        self._ack = Signal()

    @property
    def sent(self) -> int:
        """Bytes of audio that `send` has taken."""
        return self._ring.end

    async def send(self, audio: bytes) -> None:
        """Send audio in the format of `start` (of `opus`, one packet).

        It is taken at once while there is room for it, also while there is no connection; then `send` waits, and the
        server's acks make room. When cancelled, `sent` tells how much was taken.

        Raises:
            ConnectionLost: the session is over. If the server said why, the iterator tells.
        """
        if self._stop_at is not None:
            raise RuntimeError("nothing may follow `stop`")
        # A single packet is never cut, everything else at what a message and the ring can hold.
        most = len(audio) if self._packets else min(self.ready.limits.message_bytes, self._limit)
        for at in range(0, len(audio), most or 1):
            piece = audio[at : at + most]
            self._check()
            while not self._make_room(len(piece)):
                await self._room.wait()
                self._check()
            self._ring.append(piece)
            if self._unknown:
                self._sniff()
            self._wanted.wake()

    async def flush(self) -> None:
        """Ask for finals of everything sent so far; the session goes on.

        Raises:
            ConnectionLost: see `send`.
        """
        self._check()
        self._flushes.append(self._ring.end)
        del self._flushes[:-MAX_FLUSHES]
        self._wanted.wake()

    async def stop(self) -> None:
        """Say that there is no more audio. The finals that are left follow, then `closed`.

        Raises:
            ConnectionLost: see `send`.
        """
        self._check()
        if self._stop_at is None:
            self._stop_at = self._ring.end
        self._wanted.wake()

    def _check(self) -> None:
        if self._task is not None and not self._task.done() and self.closed is None:
            return
        reason = str(self._failure) if isinstance(self._failure, ConnectionLost) else "the session is over"
        raise ConnectionLost(reason)

    # What is kept

    @property
    def _packets(self) -> bool:
        return self.ready.encoding == Encoding.OPUS.value

    @property
    def _keeps(self) -> bool:
        """Whether audio is kept for another connection."""
        return self._reconnect is not None and self.ready.resume_token is not None

    def _make_room(self, size: int) -> bool:
        """Whether there is room for so much.

        Where there is none, audio that this server has got is let go of, final or not: the session can then be resumed
        only where it lives, but a microphone never has to wait for a final.
        """
        over = self._ring.held + size - self._limit
        if over <= 0:
            return True
        if self._keeps:
            # Of coded audio nobody says how much arrived; what was sent long before the last byte did.
            got = self._acked if self._frame_bytes else self._cursor - self._limit // 2
            self._ring.forget(min(self._ring.start + over, got, self._cursor))
        return self._ring.held + size <= self._limit or not self._ring.held

    def _heed(self, message: ServerMessage) -> bool:
        if not isinstance(message, AckMessage):
            return super()._heed(message)
        further = message.received > self._best[0] or message.finalized > self._best[1]
        self._best = (max(self._best[0], message.received), max(self._best[1], message.finalized))
        self._acks_come = True
        if self._frame_bytes:
            received = message.received * self._frame_bytes
            # Two intervals' worth: twice as much as a fast server takes from one ack to the next.
            self._window = max(self._base_window, 2 * (received - self._acked))
            self._acked = max(self._acked, received)
        self._let_go(message.finalized)
        self._ack.wake()
        return further

    def _let_go(self, finalized: int) -> None:
        """Of audio that the server has finalized; wakes who waits for room."""
        final = finalized * self._frame_bytes
        # A header of the client's, which is no frame, makes this err on the side of keeping.
        self._ring.forget(min(final, self._cursor))
        del self._flushes[: bisect_right(self._flushes, final + self._frame_bytes - 1)]
        self._room.wake()

    # Connections

    @property
    def _hold_seconds(self) -> float | None:
        return None if self.ready.resume_token is None else self.ready.resume_seconds

    def _opening(self) -> StartMessage:
        if not self._begun:
            return self._start
        return StartMessage(
            session_id=self.ready.session_id, resume_token=self.ready.resume_token, from_seq=self._last + 1
        )

    def _welcome(self, first: ServerMessage | None) -> int:
        if not isinstance(first, ReadyMessage):
            tag = "an unknown message" if first is None else repr(type(first).__struct_config__.tag)
            raise ConnectError(f"{self._url}: the server began with {tag} instead of `ready`")
        if self._begun:
            return self._go_on(first)
        self._begun = True
        self.ready = first
        self._ring = Ring(packets=self._packets)
        if self._keeps:
            self._limit = (self._reconnect or DEFAULT).ring_bytes
        audio = AudioFormat.parse(first.encoding, first.sample_rate, first.channels)
        self._unknown = audio.encoding is Encoding.AUTO
        if audio.encoding.width is not None:
            self._measure(audio)
        return 0

    def _sniff(self) -> None:
        """Find out, as the server does, whether it is raw samples that were declared as `auto`."""
        head = self._ring.piece(0, SNIFF_BYTES) if self._ring.start == 0 else b""
        encoding = sniff(head)
        if encoding is Encoding.PCM_S16LE:
            self._measure(AudioFormat(encoding, self.ready.sample_rate, self.ready.channels))
        if encoding is not None or len(head) in (0, SNIFF_BYTES):
            self._unknown = False

    def _measure(self, audio: AudioFormat) -> None:
        """It is raw samples: frames are so many bytes, and time is so many frames."""
        chosen = self._reconnect or DEFAULT
        self._frame_bytes = audio.frame_bytes
        second = audio.frame_bytes * audio.sample_rate
        self._window = self._base_window = max(int(chosen.window_seconds * second), 1)
        self._piece = max(int(PIECE_SECONDS * second), 1)
        if self._keeps:
            self._limit = max(min(self._limit, int(chosen.ring_seconds * second)), 1)

    def _go_on(self, ready: ReadyMessage) -> int:
        """Take the audio up again where the server wants it."""
        at = ready.received_bytes
        if not ready.resumed or ready.session_id != self.ready.session_id:
            raise ConnectError(f"{self._url}: the server opened another session instead of resuming this one")
        if at > self._ring.end:
            raise ConnectError(f"{self._url}: the server wants audio from byte {at} on of {self._ring.end}")
        if ready.resume_token is None:
            return 0  # it has ended meanwhile: only messages are left, and audio is ignored
        if at < self._ring.start:
            raise SessionError(
                "offset_ahead",
                f"the session cannot be resumed there: the server wants audio from byte {at} on, "
                f"and what was kept begins with byte {self._ring.start}",
                retryable=False,
            )
        before = self._cursor
        self._cursor = self._ring.whole(at)
        self._acked = at
        self._window, self._acks_come = self._base_window, True
        self.ready = ready
        self._let_go(ready.finalized)  # what is told here is not told again by an ack
        return max(before - self._cursor, 0)

    async def _write(self, connection: Connection) -> None:
        """Audio, flushes and `stop`, each at its place. Ends after `stop`, or with the connection."""
        flushed = self._cursor - 1  # flushes up to here have been said, or lie before what the server has
        with contextlib.suppress(ConnectionLost):  # who reads learns why, and what came before
            while True:
                index = bisect_right(self._flushes, flushed)
                flush = self._flushes[index] if index < len(self._flushes) else None
                end = self._ring.end if flush is None else flush
                if self._cursor < end:
                    await self._send_piece(connection, end)
                elif flush is not None:
                    flushed = flush
                    await connection.say(FlushMessage())
                elif self._stop_at is not None:
                    await connection.say(StopMessage())
                    return
                else:
                    await self._wanted.wait()

    async def _send_piece(self, connection: Connection, end: int) -> None:
        size = min(self._piece, self.ready.limits.message_bytes, end - self._cursor)
        if self._frame_bytes and self._acks_come:
            room = self._acked + self._window - self._cursor
            if room <= 0:
                try:
                    async with asyncio.timeout(ACK_PATIENCE_SECONDS):
                        await self._ack.wait()
                except TimeoutError:
                    self._acks_come = False
                return
            size = min(size, room)
        piece = self._ring.piece(self._cursor, size)
        await connection.send(piece)
        self._cursor += len(piece)
        if not self._keeps:
            self._ring.forget(self._cursor)
        self._room.wake()

    async def _leave(self, connection: Connection) -> None:
        """Without `stop` the server would hold the session for somebody who does not come back."""
        if self.closed is None and self.ready.resume_token is not None:
            with contextlib.suppress(ConnectionLost, TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await connection.say(StopMessage())

    def _over(self) -> None:
        self._room.wake()
