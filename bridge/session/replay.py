"""The audio of a channel that no final has covered yet: what the backend reads, and reads again after a failure.

Positions are samples at the engine's rate, counted from the start of the session. Everything here runs on the event
loop; `append` never waits, the caller asks `has_room` and awaits `room` before it reads more from the client.

With a gate, a backend is given stretches of the audio with silence left out in between; `AudioReader.place` tells
where in the session the backend's own count of samples lies.
"""

from __future__ import annotations

import asyncio
import bisect
from collections import deque
from collections.abc import Callable
from typing import Final, Self

from backends.base import FLUSH
from bridge.session.gate import Gate
from bridge.session.stream_end import StreamEnd

_WIDTH: Final = 2  # bytes of a sample


_SMALL: Final = 640
"""Bytes (20 ms at 16 kHz); smaller chunks are joined, because each costs 200 bytes beside its audio."""

NEARLY_FULL: Final = 0.9
"""Share of the replay limit from which a final is wanted."""

Chunk = tuple[int, bytes, float]
"""Position of the first sample, the audio, when it arrived (the last of it, where chunks were joined)."""


def _join(chunks: deque[Chunk], chunk: Chunk) -> None:
    """Append a chunk, or join it to the last one while that is small."""
    if chunks and len(chunks[-1][1]) < _SMALL and len(chunk[1]) < _SMALL:
        first, pcm, _ = chunks.pop()
        chunk = (first, pcm + chunk[1], chunk[2])
    chunks.append(chunk)


def _nothing() -> None:
    """Nobody asks."""


class ReplayBuffer:
    """Audio from `start` (all before it is finalized) to `end` (received), in arrival order.

    Bounded by two limits, in samples: `queue_limit` for what the backend has not read yet, `replay_limit` for all
    that is held. At either one `has_room` turns false until the backend reads, or a final trims. While no stream
    reads, between two of them, only the second one counts: an outage should not be felt by a client that speaks.

    `gate`: which of the audio the backend is given (None: all); tell `gate_moved` of every change. `answered` is called
    when silence that is passed over leaves a flush mark with nothing to wait for. `begin`: where the audio begins, if
    the session has come so far elsewhere.
    """

    __slots__ = (
        "_answered",
        "_chunks",
        "_flushes",
        "_nearly_full",
        "_queue_limit",
        "_reader",
        "_replay_limit",
        "_room",
        "closed",
        "end",
        "gate",
        "start",
    )

    def __init__(
        self,
        *,
        queue_limit: int,
        replay_limit: int,
        gate: Gate | None = None,
        answered: Callable[[], None] = _nothing,
        begin: int = 0,
    ) -> None:
        self.gate = gate
        self._answered = answered
        self.start = begin
        self.end = begin
        self.closed = False
        self._queue_limit = queue_limit
        self._replay_limit = replay_limit
        self._nearly_full = round(NEARLY_FULL * replay_limit)
        self._chunks: deque[Chunk] = deque()
        self._flushes: list[int] = []  # positions, ascending
        self._reader: AudioReader | None = None
        self._room: asyncio.Event | None = None

    @property
    def unread(self) -> int:
        """Samples that the backend may read and has not."""
        return self.end - (self._reader.position if self._reader else self.start) - self._held_back

    @property
    def held(self) -> int:
        """Samples kept for a replay."""
        return self.end - self.start - self._held_back

    @property
    def full(self) -> bool:
        """Whether the replay limit is reached: only a final can make room."""
        return self.held >= self._replay_limit

    @property
    def nearly_full(self) -> bool:
        """Whether a final is wanted, so that the limit is not reached."""
        return self.held >= self._nearly_full

    @property
    def has_room(self) -> bool:
        """Whether the client may send more."""
        reader = self._reader
        if self.gate is None:  # as below, for every frame of nearly all sessions
            if self.end - self.start >= self._replay_limit:
                return False
            read = self.start if reader is None else reader.position
            return self.end - read < self._queue_limit or self._between_streams
        return self.held < self._replay_limit and (self.unread < self._queue_limit or self._between_streams)

    @property
    def flushing(self) -> bool:
        """Whether there are flush marks."""
        return bool(self._flushes)

    @property
    def _held_back(self) -> int:
        """Samples that the gate may yet let pass. The voice detector bounds them: they are no backlog."""
        reader = self._reader
        return self.end - reader.position if self.gate and reader and reader.reading and not reader.available else 0

    @property
    def _between_streams(self) -> bool:
        return self._reader is not None and not self._reader.reading

    async def room(self) -> None:
        """Wait until `has_room`. Safe to cancel."""
        while not self.has_room and not self.closed:
            self._room = self._room or asyncio.Event()
            self._room.clear()
            await self._room.wait()

    def append(self, pcm: bytes, now: float) -> None:
        """Take in audio that arrived at `now` (seconds of any steady clock)."""
        if not pcm or self.closed:
            return
        chunk = (self.end, pcm, now)
        _join(self._chunks, chunk)
        self.end += len(pcm) // _WIDTH
        if self._reader is not None:
            self._reader._offer(chunk)  # noqa: SLF001 - the two are one mechanism

    def flush(self, at: int | None = None) -> None:
        """Mark a position (None: the end so far): everything before it is to be finalized now."""
        position = self.end if at is None else at
        if position > self.start and position not in self._flushes:
            bisect.insort(self._flushes, position)
            if self._reader is not None:
                self._reader._wake()  # noqa: SLF001

    def gate_moved(self) -> None:
        """The gate was opened or shut, or knows more of what is silence."""
        if self._reader is not None:
            self._reader._gate_moved()  # noqa: SLF001

    def close(self) -> None:
        """No more audio will come."""
        self.closed = True
        if self._reader is not None:
            self._reader._wake()  # noqa: SLF001
        self._wake_room()

    def abort(self) -> None:
        """Nothing is wanted any more; the audio is given back."""
        self.close()
        self._chunks.clear()
        self._answered = _nothing

    def trim(self, position: int) -> None:
        """Forget the audio before `position`: a final covers it."""
        self.start = max(self.start, min(position, self.end))
        while self._chunks and self._chunks[0][0] + len(self._chunks[0][1]) // _WIDTH <= self.start:
            self._chunks.popleft()
        del self._flushes[: bisect.bisect_right(self._flushes, self.start)]
        if self.gate is not None:
            self.gate.forget(self.start)
        self._wake_room()

    def _pass_over(self, position: int) -> None:
        """All before `position` is final or silence."""
        marked = self.flushing and self._flushes[0] <= position
        self.trim(position)
        if marked:
            self._answered()

    def arrival(self, position: int) -> float | None:
        """When the sample before `position` arrived; None if it is no longer held."""
        for first, pcm, when in reversed(self._chunks):  # asked for recent audio, as a rule
            if first < position <= first + len(pcm) // _WIDTH:
                return when
        return None

    def audio(self, first: int, last: int) -> bytes:
        """The samples from `first` to `last`, as far as they are held."""
        parts = []
        for at, pcm, _ in self._chunks:
            if at < last and at + len(pcm) // _WIDTH > first:
                parts.append(pcm[max(0, first - at) * _WIDTH : (last - at) * _WIDTH])
        return b"".join(parts)

    def reader(self, end: StreamEnd | None = None) -> AudioReader:
        """A new reader from `start` on; the one before it gets nothing more. `end` decides where it ends by itself.

        Known silence is passed over first, so that `start` is where the stream begins.
        """
        if self._reader is not None:
            self._reader.detach()
        if self.gate is not None:
            self._pass_over(self.gate.next(self.start)[0])
        self._reader = AudioReader(self, self._chunks, end)
        self._wake_room()
        return self._reader

    def next_flush(self, position: int) -> int | None:
        """The first flush mark at or after `position`."""
        if not self._flushes:
            return None
        index = bisect.bisect_left(self._flushes, position)
        return self._flushes[index] if index < len(self._flushes) else None

    def _wake_room(self) -> None:
        if self._room is not None and not self._room.is_set() and (self.has_room or self.closed):
            self._room.set()


class AudioReader:
    """One backend stream's audio, as the asynchronous iterator that the contract asks for.

    `base` is the session position where the stream begins, `position` how far it has come, `given` how many samples
    the backend was given.
    """

    __slots__ = (
        "_buffer",
        "_finishing",
        "_given_until",
        "_loop",
        "_pending",
        "_places",
        "_waiter",
        "arrived",
        "base",
        "beyond",
        "end",
        "ended",
        "flush_marks",
        "flushed",
        "given",
        "position",
    )

    def __init__(self, buffer: ReplayBuffer, chunks: deque[Chunk], end: StreamEnd | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self.end = end
        self.base = buffer.start
        self.position = buffer.start
        self.given = 0
        self.arrived = 0.0
        """When the last audio that was given had come."""
        self._given_until = buffer.start  # position behind the last sample given
        # Where audio goes on behind silence that was left out: samples given before, position.
        self._places: deque[tuple[int, int]] = deque([(0, buffer.start)])
        self.ended = False  # the backend was told that the audio ended
        self.flush_marks = True  # whether marks are passed on; otherwise a mark ends the stream
        self.flushed = 0  # the last mark passed on
        self.beyond = 0  # nothing is given before there is audio beyond this position
        self._buffer: ReplayBuffer | None = buffer
        self._pending = deque(chunks)
        self._finishing = False
        self._waiter: asyncio.Future[None] | None = None

    @property
    def reading(self) -> bool:
        """Whether the stream takes audio: it was neither told of the end nor abandoned."""
        return self._buffer is not None and not self.ended

    @property
    def waiting(self) -> bool:
        """Whether it holds audio back until more comes, see `beyond`."""
        buffer = self._buffer
        if buffer is None or self.given or buffer.closed or buffer.flushing:
            return False
        return buffer.end <= self.beyond

    @property
    def available(self) -> bool:
        """Whether there is audio that the backend may be given now."""
        buffer = self._buffer
        if buffer is None:
            return False
        if buffer.gate is None:
            return buffer.end > self.position
        first, last = buffer.gate.next(self.position)
        return first < buffer.end and last != first

    @property
    def awaited(self) -> bool:
        """Whether the backend need only read on: there is audio, a flush mark or the end."""
        buffer = self._buffer
        if buffer is None or self.ended:
            return False
        mark = self._next_mark(buffer)
        return self.available or buffer.closed or self._finishing or (mark is not None and mark <= self.position)

    @property
    def shift(self) -> int | None:
        """How far the session's positions are from the stream's samples; None where silence was left out."""
        if len(self._places) > 1:
            return None
        given, position = self._places[0]
        return position - given

    def place(self, sample: int, *, end: bool = False) -> int:
        """The session position of the stream's sample; of the `end` of something, which lies before any silence."""
        first = self._places[0]
        for given, position in self._places:
            if given > sample or (end and given == sample > 0):
                break
            first = (given, position)
        return first[1] + sample - first[0]

    def covered(self, end: int) -> int:
        """Up to which position all is final, if a final reaches to `end`: silence that was left out behind it, too."""
        return self.position if self.position > self._given_until and end >= self._last_to_answer else end

    def finish(self) -> None:
        """End this stream where the backend stands; later audio is left for the next stream."""
        self._finishing = True
        self._wake()

    def finish_soon(self) -> None:
        """End this stream in a quiet moment, or a little later where the backend stands."""
        if self.end is not None:
            self.end.ask()

    def detach(self) -> None:
        """Give nothing more; the stream is abandoned."""
        buffer, self._buffer = self._buffer, None
        self._pending.clear()
        self._wake()
        if buffer is not None:
            buffer._wake_room()  # noqa: SLF001 - the two are one mechanism

    def _stop(self, buffer: ReplayBuffer | None) -> StopAsyncIteration:
        """The backend is told that its audio has ended; what comes now waits for the next stream."""
        self.ended = True
        if buffer is not None:
            buffer._wake_room()  # noqa: SLF001 - the two are one mechanism
        return StopAsyncIteration()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while True:
            buffer = self._buffer
            if buffer is None or self._finishing or self.ended:
                raise self._stop(buffer)
            self._pass_over(buffer)
            mark = self._next_mark(buffer) if buffer.flushing else None
            if mark is not None and mark <= self.position:
                self.flushed = mark
                if self.flush_marks:
                    return FLUSH
                raise self._stop(buffer)
            if self.available and not (self.beyond and self.waiting):
                if pcm := self._take(buffer, mark):
                    return pcm
                continue  # the stream ends before this chunk
            if buffer.closed:
                raise self._stop(buffer)
            if buffer.full and not self.flush_marks:
                # No audio can come before a final makes room, and the end of the stream brings one.
                if self.end is not None:
                    self.end.in_speech = True  # perhaps: nobody looked
                raise self._stop(buffer)
            self._waiter = self._loop.create_future()
            await self._waiter

    def _next_mark(self, buffer: ReplayBuffer) -> int | None:
        return buffer.next_flush(max(self.base, self.flushed) + 1)

    def _take(self, buffer: ReplayBuffer, mark: int | None) -> bytes:
        """The next chunk, cut at the reader's position and at a flush mark."""
        first, pcm, when = self._pending.popleft()
        if first < self.position:  # a final ended inside this chunk
            pcm = pcm[(self.position - first) * _WIDTH :]
            first = self.position
        until = first + len(pcm) // _WIDTH
        if buffer.gate is not None and (last := buffer.gate.next(first)[1]) is not None:
            until = min(until, last)
        if self.end is not None:
            until = min(until, first + self.end.piece)
        if mark is not None and first < mark < until:
            until = mark
        cut = (until - first) * _WIDTH
        if cut < len(pcm):
            self._pending.appendleft((until, pcm[cut:], when))
            pcm = pcm[:cut]
        if self.end is not None and (kept := self.end.take(pcm)) is not None:
            self._finishing = True
            pcm = pcm[: kept * _WIDTH]
        self._note_given(buffer, first, len(pcm) // _WIDTH)
        self.arrived = when
        buffer._wake_room()  # noqa: SLF001 - the two are one mechanism
        return pcm

    def _note_given(self, buffer: ReplayBuffer, first: int, samples: int) -> None:
        if first != self._given_until:
            self._places.append((self.given, first))
            while len(self._places) > 1 and self._places[1][1] <= buffer.start:
                self._places.popleft()
        self.given += samples
        self.position = self._given_until = first + samples
        if buffer.gate is not None:
            buffer.gate.passed = max(buffer.gate.passed, self.position)

    @property
    def _last_to_answer(self) -> int:
        """Where the last speech that was given ended, as far as the gate knows; what was given behind it is silence."""
        gate = self._buffer.gate if self._buffer is not None else None
        return self._given_until if gate is None else min(self._given_until, gate.speech_until)

    def _pass_over(self, buffer: ReplayBuffer) -> None:
        """Move on over silence. Where all speech before it is final, so is the silence."""
        if buffer.gate is None:
            return
        target = min(buffer.gate.next(self.position)[0], buffer.end)
        if target <= self.position:
            return
        self.position = target
        while self._pending and self._pending[0][0] + len(self._pending[0][1]) // _WIDTH <= target:
            self._pending.popleft()
        if buffer.start >= self._last_to_answer:
            buffer._pass_over(target)  # noqa: SLF001 - the two are one mechanism
        else:
            buffer._wake_room()  # noqa: SLF001

    def _gate_moved(self) -> None:
        """Silence is passed over here and now: a task need not be woken for it."""
        buffer = self._buffer
        if buffer is not None and not self._finishing and not self.ended:
            self._pass_over(buffer)
            buffer._wake_room()  # noqa: SLF001 - the two are one mechanism
            if self._waiter is not None and (buffer.flushing or self.available):
                self._wake()

    def _offer(self, chunk: tuple[int, bytes, float]) -> None:
        _join(self._pending, chunk)
        buffer = self._buffer
        if buffer is None or buffer.gate is None or buffer.full or self.available:
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
