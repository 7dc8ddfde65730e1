"""One stream: the order of its messages, its limits and clocks, its faults, and the responses out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import grpc

from backends.base import BackendError
from bridge.emulator import statuses
from bridge.emulator.api import Api, Asked
from bridge.emulator.faults import Faults
from bridge.emulator.limits import Limits, Quota
from bridge.emulator.speech import Recognizer
from bridge.emulator.stats import Stats
from bridge.emulator.statuses import Code, Status, StreamEnded

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServerState:
    """What all streams of a server share.

    `running` is clear while the server is frozen. `admit` refuses a call by its metadata, raising `StreamEnded`.
    """

    recognizer: Recognizer
    limits: Limits
    quota: Quota
    stats: Stats
    running: asyncio.Event
    admit: Callable[[Api, Any], None]
    location: str | None
    speed: float


class Stream:
    """One StreamingRecognize call, from its first message to its status."""

    def __init__(self, server_state: ServerState, api: Api, faults: Faults, number: int, context: Any) -> None:
        self.status: Status | None = None
        """How it ended; None: it has not, or the client left."""
        self.requests = 0
        self._server_state = server_state
        self._limits = server_state.limits
        self._api = api
        self._faults = faults
        self._number = number
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._heard = self._began  # when the last message came
        self._reading = False  # a slow recognizer leaves messages waiting: that is no silence of the client's
        self._received = 0  # bytes of audio
        self._rate = 0  # bytes of audio a second; 0: no config yet
        self._half_closed = False
        self._frozen = False
        self._scope = asyncio.timeout(None)
        self._timers: list[asyncio.TimerHandle] = []

    @property
    def audio_seconds(self) -> float:
        """Audio received."""
        return self._received / self._rate if self._rate else 0.0

    async def run(self) -> None:
        """Serve the call. Ends with the status sent, or with `CancelledError` when the client has gone."""
        self._start_clocks()
        try:
            await self._serve()
            self.status = Status(Code.OK)
        except StreamEnded as ended:
            self.status = ended.status
        except BackendError as exc:
            log.warning("stream %d: the backend failed: %s", self._number, exc)
            self.status = _status_of(exc)
        except Exception:  # a mistake of the emulator's own: gRPC logs it, and says UNKNOWN to the client
            self.status = Status(Code.UNKNOWN)
            raise
        finally:
            for timer in self._timers:
                timer.cancel()
        await self._answering()
        if self.status.code is not Code.OK:
            await self._context.abort(self.status.code, self.status.text)

    async def _serve(self) -> None:
        """Raises what ends the stream; a status that a clock or a reader has set wins over what it led to."""
        try:
            async with self._scope:
                self._server_state.admit(self._api, self._context)
                asked = await self._config()
                try:
                    await self._recognize(asked)
                finally:
                    self._server_state.quota.give_back()
        except (TimeoutError, BackendError) as exc:
            if self.status is None:
                raise
            raise StreamEnded(self.status) from exc

    async def _config(self) -> Asked:
        message = await self._message()
        if message is None:
            raise StreamEnded(statuses.MALORDERED)
        asked = self._api.read(message, self._server_state.location)
        self._server_state.stats.configs.append(message)
        self._server_state.stats.changed()
        self._rate = 2 * asked.sample_rate
        if self._faults.refuse is not None:
            raise StreamEnded(self._fault_status(self._faults.refuse))
        if not self._server_state.quota.take(self._loop.time()):
            raise StreamEnded(statuses.EXHAUSTED)
        return asked

    async def _recognize(self, asked: Asked) -> None:
        audio = self._audio()
        if self._faults.lag:
            audio = _delayed(audio, round(self._faults.lag * self._rate))
        async with (
            contextlib.aclosing(audio),
            contextlib.aclosing(self._server_state.recognizer(self._api, asked, audio)) as responses,
        ):
            async for response in responses:
                await self._answering()
                await self._context.write(response)
        last = self._api.response()
        self._api.bill(last, math.ceil(self.audio_seconds), self._number + 1)
        await self._answering()
        await self._context.write(last)

    async def _audio(self) -> AsyncGenerator[bytes, None]:
        """The stream's audio until its end, each message checked."""
        audio_of = attrgetter(self._api.audio_field)
        faults, limits = self._faults, self._limits
        longest = self._rate * self._stream_seconds
        abort_at = math.inf if faults.abort_at is None else faults.abort_at * self._rate
        freeze_at = math.inf if faults.freeze_at is None else faults.freeze_at * self._rate
        stats = self._server_state.stats
        while (message := await self._message()) is not None:
            chunk: bytes = audio_of(message)
            size = len(chunk)
            if not size:
                raise self._ended(statuses.MALORDERED)
            stats.largest_audio = max(stats.largest_audio, size)
            if size > limits.message_bytes:
                raise self._ended(statuses.chunk_too_large(limits.message_bytes, size))
            self._received += size
            if self._received > abort_at:
                raise self._ended(self._fault_status(faults.status))
            if self._received > longest:
                raise self._ended(self._api.stream_limit)
            if limits.pace_seconds and self._too_fast():
                raise self._ended(statuses.TOO_FAST)
            if self._received > freeze_at:
                self._frozen = True
                continue
            yield chunk
        self._half_closed = True
        if self._frozen:
            await self._answering()
        if faults.half_close_lag:
            await asyncio.sleep(faults.half_close_lag / self._server_state.speed)

    async def _message(self) -> Any | None:
        """The next request; None at the end. Nothing is read while the server is frozen."""
        self._reading = True
        message = await self._context.read()
        self._reading = False
        if not self._server_state.running.is_set():
            await self._server_state.running.wait()
        if message is grpc.aio.EOF:
            return None
        self._heard = self._loop.time()
        self.requests += 1
        return message

    async def _answering(self) -> None:
        """Waits while nothing may be answered: for the server to thaw, or, the stream being frozen, for ever."""
        if self._frozen:
            await self._loop.create_future()
        if not self._server_state.running.is_set():
            await self._server_state.running.wait()

    # Limits and clocks

    @property
    def _stream_seconds(self) -> float:
        given = self._limits.stream_seconds
        return self._api.stream_seconds if given is None else given

    def _too_fast(self) -> bool:
        due = (self._heard - self._began) * self._server_state.speed * self._limits.pace_rate
        return self._received > (self._limits.pace_seconds + due) * self._rate

    def _start_clocks(self) -> None:
        speed = self._server_state.speed
        self._timers = [
            self._loop.call_later(self._stream_seconds / speed, self._end_by_clock, self._api.stream_limit),
            self._loop.call_later(self._limits.audio_timeout / speed, self._look_for_audio),
        ]

    def _look_for_audio(self) -> None:
        """One timer a stream that asks when the last message came: cheaper than one a message."""
        allowed = self._limits.audio_timeout / self._server_state.speed
        silent = self._loop.time() - self._heard if self._reading else 0.0
        if self._half_closed:
            return
        if silent >= allowed:
            self._end_by_clock(self._api.audio_timeout)
        else:
            self._timers[1] = self._loop.call_later(allowed - silent, self._look_for_audio)

    def _end_by_clock(self, status: Status) -> None:
        if not self._frozen:
            self._ended(status)

    def _ended(self, status: Status) -> StreamEnded:
        """Ends the stream from wherever this is called; the exception is for a reader to raise."""
        if self.status is None:
            self.status = status
            self._scope.reschedule(self._loop.time())
        return StreamEnded(self.status)

    def _fault_status(self, name: str) -> Status:
        usual = self._api.usual(grpc.StatusCode[name])
        return usual if self._faults.message is None else Status(usual.code, self._faults.message)


async def _delayed(audio: AsyncGenerator[bytes, None], size: int) -> AsyncGenerator[bytes, None]:
    """The same audio, each chunk only when so many bytes have followed it, or the end."""
    held: deque[bytes] = deque()
    behind = 0
    async with contextlib.aclosing(audio):
        async for chunk in audio:
            held.append(chunk)
            behind += len(chunk)
            while behind - len(held[0]) >= size:
                behind -= len(held[0])
                yield held.popleft()
    for chunk in held:
        yield chunk


def _status_of(exc: BackendError) -> Status:
    if exc.code == "rejected":
        return statuses.invalid(f"Invalid recognition 'config': {exc}")
    return statuses.UNAVAILABLE if exc.retryable else statuses.INTERNAL
