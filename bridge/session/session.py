"""One session: client audio in, events out; a channel of its own for each recognition.

    bytes → decoder → (denoiser) → channel → hub
                    ↘ monitor

The session knows its client: the format, the clock, how it ends. What is heard is the business of its channels.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from bridge.audio.decode import Lanes, StreamDecoder
from bridge.audio.denoise import DenoiseError, Denoiser, make_denoiser
from bridge.audio.levels import SignalMonitor
from bridge.audio.suspicion import Budget
from bridge.audio.wavheader import strip_wav_header
from bridge.errors import BridgeError
from bridge.protocols.events import Ack, Closed, Error, Ready, Start
from bridge.protocols.events import Warning as WarningEvent
from bridge.session.account import NOBODY, Account
from bridge.session.channel import Channel
from bridge.session.eventlog.base import Progress
from bridge.session.failover import Seat
from bridge.session.hub import Hub, Outbox
from bridge.session.limits import SessionLimits, SessionObserver
from bridge.session.origin import Origin
from bridge.session.publisher import Position, Publisher
from bridge.session.voice import VoicePolicy

log = logging.getLogger(__name__)

PIECES_AT_ONCE: Final = 4
"""Pieces of a message that are decoded without a pause for other sessions: few milliseconds each."""
_SOON: Final = 0.6
"""Share of the time between two acks after which one goes along with a partial."""
WARNINGS: Final = 10
"""Warnings of one code that a client is sent; the rest would say nothing new."""


class Session:
    """One session. Feed it from one task, run it in another, read its outboxes from others.

    `run` ends after `Closed` has been published, or when it is cancelled (the client is gone): then the backend's
    streams are closed and nothing more is published.

    `watched`: whether the audio is as a client made it, so that it may begin with a WAV header and its developer is
    told what is wrong with it. What this server has decoded is neither.
    """

    __slots__ = (
        "__weakref__",
        "_abandoned",
        "_acked",
        "_active",
        "_again",
        "_audio_closed",
        "_bytes",
        "_channels",
        "_decoder",
        "_denoisers",
        "_end_code",
        "_first",
        "_header_bytes",
        "_held",
        "_limits",
        "_loop",
        "_monitor",
        "_observer",
        "_opened",
        "_origin",
        "_out",
        "_rate",
        "_roomy",
        "_run_scope",
        "_seats",
        "_start",
        "_stopped",
        "_unavailable",
        "_warned",
        "_watch_handle",
        "account",
        "id",
        "language",
        "suspendable",
        "suspended",
    )

    def __init__(
        self,
        session_id: str,
        start: Start,
        seats: Sequence[Seat],
        limits: SessionLimits,
        *,
        observer: SessionObserver,
        language: str,
        voice: VoicePolicy = VoicePolicy(),
        denoise: bool = False,
        format_budget: Budget | None = None,
        publisher: Publisher | None = None,
        origin: Origin = Origin(),
        account: Account = NOBODY,
        watched: bool = True,
    ) -> None:
        self.id = session_id
        self.language = language
        self.account = account
        self._start = start
        self._seats = seats
        self._limits = limits
        self._observer = observer
        self._rate = seats[0].engine.sample_rate
        self._out = publisher or Publisher(Hub(limits.outbox_events))
        self._loop = asyncio.get_running_loop()
        self._active = self._acked = self._loop.time()
        self._opened = self._active - origin.age
        self._end_code: str | None = None
        self._abandoned = False
        self.suspended = False
        """Whether it ends here only; see `suspend`."""
        self.suspendable: Callable[[], bool] = lambda: False
        """Whether it can go on elsewhere; whoever knows puts it here."""
        self._held = False
        self._origin = origin
        self._bytes = origin.received_bytes  # of the client's, up to here
        self._header_bytes = origin.header_bytes
        self._again = 0  # bytes that a client which comes back sends once more
        self._stopped = asyncio.Event()
        self._audio_closed = False
        self._warned: Counter[str] = Counter()
        # Raw samples may begin with a WAV header.
        self._first = watched and start.audio.encoding.width is not None and not origin.received_bytes
        self._decoder = StreamDecoder(start.audio, self._rate, lanes=start.lanes, notice=self._warn)
        # What `start` asks for and this server has not: told once somebody listens.
        self._unavailable: list[tuple[str, str]] = []
        if start.vad is True and voice.detection is None:
            self._unavailable.append(("no_vad", "this server detects no voice activity: STT_VAD is off"))
        self._monitor = SignalMonitor(start.audio, self._rate, self._warn, format_budget) if watched else None
        self._denoisers = self._make_denoisers() if (denoise if start.denoise is None else start.denoise) else []
        self._channels = [
            Channel(
                number if start.lanes > 1 else None,
                session_id,
                start,
                language,
                seats[number],
                limits,
                voice,
                out=self._out,
                observer=observer,
                advanced=self._ack,
                shown=self._ack_along,
                warn=self._warn,
                origin=origin,
                account=lambda: self.account,
            )
            for number in range(start.lanes)
        ]
        self._roomy = True  # nothing waits to be decoded, and the channels had room when last looked at
        self._run_scope: asyncio.Timeout | None = None
        self._watch_handle: asyncio.TimerHandle
        self._out.position = self.position

    # What the client's side calls

    def subscribe(self) -> Outbox:
        """A new receiver of this session's events: `Ready`, then everything from now on."""
        outbox = self._out.hub.subscribe()
        outbox.put(self.ready())
        return outbox

    def deliver_to(self, outbox: Outbox) -> None:
        """Put the session's events from now on into this one, too."""
        self._out.hub.attach(outbox)

    @property
    def finalized(self) -> int:
        """Frames at the client's rate that finals cover, rounded down."""
        received = self._origin.frames + self._decoder.frames
        if self._audio_closed and all(channel.final >= channel.end for channel in self._channels):
            return max(received, self._origin.finalized)
        final = min(channel.final for channel in self._channels) * self._start.audio.sample_rate // self._rate
        return max(self._origin.finalized, min(received, final))

    @property
    def received(self) -> int:
        """Frames at the client's rate that were received; never less than are final."""
        return max(self._origin.frames + self._decoder.frames, self._origin.finalized)

    def position(self) -> Position:
        """How far it is, for the event log."""
        progress = Progress(
            tuple(channel.final / self._rate for channel in self._channels),
            self.received,
            self._header_bytes,
            self._decoder.raw,
        )
        return Position(progress, self.finalized, self.backend)

    @property
    def end_code(self) -> str | None:
        """Why the session ended, or is ending; None while it goes on."""
        return self._end_code

    @property
    def backend(self) -> str:
        """The name of the backend that works for it now; of its first channel's, where they differ."""
        return self._seats[0].engine.name

    @property
    def audio_seconds(self) -> float:
        """Audio received so far, in seconds."""
        return self._channels[0].end / self._rate

    @property
    def stopping(self) -> bool:
        """Whether the session takes no more audio."""
        return self._end_code is not None

    def feed(self, data: bytes) -> bool:
        """Take in audio in the declared format. False: await `room` before the next.

        Raises:
            BridgeError: `bad_audio`: the data is dropped, the session goes on. Or a fatal one: nothing of this audio
                can be understood any more; call `refuse`.
        """
        if self._end_code is not None:
            return True  # what comes after the end is not part of the session
        now = self._active = self._loop.time()
        if self._again:
            self._again, data = max(0, self._again - len(data)), data[self._again :]
        self._bytes += len(data)
        if self._first and data:
            self._first = False
            data = self._without_header(data)
        if self._monitor is not None:
            self._monitor.received(data, now)
        if self._roomy and self._decoder.passes(data):
            self._roomy = self._pass_on((data,), now)
            return self._roomy
        self._decoder.push(data)
        return self._take_in(now)

    async def room(self) -> None:
        """Wait until the session takes audio again. Safe to cancel.

        Raises:
            BridgeError: as `feed`: of a message that holds much, the rest is decoded here.
        """
        while not self.stopping:
            self._active = self._loop.time()  # there is still something of the client's to be taken in
            await self._channels_have_room()
            if self.stopping or self._take_in(self._loop.time()):
                break
            await asyncio.sleep(0)
        self._active = self._loop.time()  # the client was kept waiting: it was not idle

    def touch(self) -> None:
        """The client gave a sign of life other than audio."""
        self._active = self._loop.time()

    def expect(self, offset: int | None) -> None:
        """The client comes back; its audio goes on with this frame (None: with what is wanted).

        Raises:
            BridgeError: `offset_ahead`, `offset_behind`, or `bad_start` where frames cannot be counted.
        """
        again = 0
        if offset is not None:
            if not self._decoder.raw:
                raise BridgeError("bad_start", "`offset` counts raw samples; coded audio goes on with `received_bytes`")
            if offset < self.finalized:
                raise BridgeError("offset_behind", f"the audio is final up to frame {self.finalized}")
            again = self._bytes - self._header_bytes - offset * self._start.audio.frame_bytes
            if again < 0:
                raise BridgeError("offset_ahead", f"the audio was received up to frame {self._whole_frames}")
        self._again = again

    @property
    def _whole_frames(self) -> int:
        """Frames of raw samples that have come, decoded or not."""
        return (self._bytes - self._header_bytes) // self._start.audio.frame_bytes

    def hold(self) -> None:
        """The client is gone and may come back: waiting for it is not idling."""
        self._held = True

    def unhold(self) -> None:
        """It is back."""
        self._held = False
        self._active = self._loop.time()

    def flush(self) -> None:
        """Finalize what was said so far; the session goes on."""
        if not self.stopping:
            now = self._active = self._loop.time()
            self._decoder.flush()
            self._take_in(now)
            for channel in self._channels:
                channel.flush()

    def stop(self, code: str = "stopped") -> None:
        """No more audio: finalize every remaining word, then close with `code`. The first call counts."""
        if self._end_code is not None:
            return
        self._end_code = code
        self._decoder.finish()
        self._limit_stop()
        self._stopped.set()

    def refuse(self, error: BridgeError) -> None:
        """End the session for a fatal fault of the client's; what was accepted before is still finalized."""
        if not self.stopping:
            self._fail(error)
            self.stop(error.code)

    def shut_down(self) -> None:
        """The server stops: finalize what there is, unless the client goes on with it elsewhere."""
        if self.suspendable():
            self.suspend("shutting_down")
        else:
            self.stop("shutting_down")

    def abandon(self) -> None:
        """Close a stopping session with what is final now; the rest of its audio stays without a final."""
        self._abandoned = True
        if self._run_scope is not None:
            self._run_scope.reschedule(self._loop.time())

    def suspend(self, code: str) -> None:
        """End here and now, without a word of it to the log: the session goes on elsewhere, from what is final."""
        self.suspended = True
        self.cut(code)

    def cut(self, code: str) -> None:
        """End with this code at once, whatever is not final yet."""
        self._end_code = code
        self.abandon()

    def _limit_stop(self) -> None:
        """What is left must be finalized within a limit; before `run`, there is nothing to limit."""
        if self._run_scope is not None:
            self._run_scope.reschedule(self._loop.time() + self._limits.stop_seconds)

    # Audio on its way to the channels

    @property
    def _has_room(self) -> bool:
        channels = self._channels
        return channels[0].has_room if len(channels) == 1 else all(channel.has_room for channel in channels)

    async def _channels_have_room(self) -> None:
        for channel in self._channels:
            await channel.room()

    def _take_in(self, now: float) -> bool:
        """Decode what was pushed, as far as there is room and it takes no long time.

        Returns whether that was all, and there is room for more.
        """
        self._roomy = False
        room = self._has_room
        for _ in range(PIECES_AT_ONCE):
            if not room:
                break
            lanes = self._decoder.read()
            if lanes is None:
                self._roomy = True
                break
            room = self._pass_on(lanes, now)
        return self._roomy

    def _pass_on(self, lanes: Lanes, now: float) -> bool:
        """What was decoded, to the channels; whether all of them take more."""
        if self._monitor is not None:
            self._monitor.heard(lanes[0])
        self._observer.audio(len(lanes[0]) / 2 / self._rate)
        if self._denoisers:
            lanes = tuple(denoiser.process(pcm) for denoiser, pcm in zip(self._denoisers, lanes, strict=True))
        return self._append(lanes, now)

    def _append(self, lanes: Lanes, now: float) -> bool:
        room = True
        for channel, pcm in zip(self._channels, lanes, strict=True):
            room = channel.append(pcm, now) and room
        if now - self._acked >= self._limits.ack_seconds:
            self._ack()
        return room

    def _make_denoisers(self) -> list[Denoiser]:
        """One for each lane; none where this server has none."""
        try:
            return [make_denoiser(self._rate) for _ in range(self._start.lanes)]
        except DenoiseError as exc:
            self._unavailable.append(("no_denoise", str(exc)))
            return []

    async def _drain(self) -> None:
        """Once the session is stopped: take in what is left, and close the channels."""
        await self._stopped.wait()
        try:
            while not self._take_in(self._loop.time()):
                await self._channels_have_room()
                await asyncio.sleep(0)
        except BridgeError as exc:
            self._break(exc)
        self._close_audio()

    def _close_audio(self) -> None:
        self._audio_closed = True
        self._decoder.close()
        if self._monitor is not None:
            self._monitor.finish(self._loop.time())
        if self._denoisers:
            self._append(tuple(denoiser.finish() for denoiser in self._denoisers), self._loop.time())
        for channel in self._channels:
            channel.close()

    # The session's own task

    async def run(self) -> None:
        """Open the backend, publish what it hears, end with `Closed`. See the class for cancellation."""
        for code, message in self._unavailable:
            self._warn(code, message)
        self._watch_handle = self._loop.call_later(self._watch_interval(), self._watch)
        try:
            async with asyncio.timeout(None) as self._run_scope:
                if self._abandoned:
                    self.abandon()
                elif self.stopping:
                    self._limit_stop()
                await self._recognize()
        except TimeoutError:
            if not self._abandoned:
                self._break(BridgeError("backend_stalled", "the backend did not finish in time"))
        except BridgeError as exc:
            self._break(exc)
        except Exception:
            log.exception("session failed", extra={"session": self.id})
            self._break(BridgeError("internal"))
        finally:
            self._run_scope = None
            self._watch_handle.cancel()
            self._let_go()
        self._publish_end()

    def _let_go(self) -> None:
        """Of everything that would keep this session in memory, or that it would keep."""
        self._decoder.close()
        for denoiser in self._denoisers:
            denoiser.close()
        for channel in self._channels:
            channel.abort()
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None

    def _publish_end(self) -> None:
        """Say that the session has ended, or that it does not go on here."""
        if self.suspended and self._end_code != "shutting_down":
            return  # receivers need not know: they hear more when it goes on
        self._out.publish(
            Closed(
                None if self.suspended else self._out.next_seq(),
                self._end_code or "stopped",
                self.received,
                self.finalized,
                round(self.audio_seconds, 3),
            )
        )

    async def _recognize(self) -> None:
        """Run every channel to its end.

        Raises:
            BridgeError: one cannot go on; then none does.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._drain(), name=f"drain-{self.id}")
                for channel in self._channels[1:]:
                    tasks.create_task(channel.run(), name=f"channel-{self.id}")
                await self._channels[0].run()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    # What the client is told

    def _ack_along(self) -> None:
        """With what is said anyway, where one is due soon: that makes one write of two."""
        if self._loop.time() - self._acked >= _SOON * self._limits.ack_seconds:
            self._ack()

    def _ack(self) -> None:
        self._acked = self._loop.time()
        self._out.publish(Ack(self.received, self.finalized))

    def _without_header(self, data: bytes) -> bytes:
        stripped = strip_wav_header(data, self._start.audio)
        if stripped is not data:
            self._header_bytes = len(data) - len(stripped)
            self._warn("wav_header", "the audio begins with a WAV header; it was skipped: send the samples alone")
        return stripped

    def _warn(self, code: str, message: str) -> None:
        """Tell the client's developer, unless that was said often enough."""
        self._warned[code] += 1
        if self._warned[code] <= WARNINGS:
            self._out.publish(WarningEvent(self._out.next_seq(), code, message))

    # Watching the clock

    def _watch_interval(self) -> float:
        now = self._loop.time()
        return max(
            0.01,
            min(
                self._active + self._limits.idle_seconds - now,
                self._opened + self._limits.session_seconds - now,
            ),
        )

    def _watch(self) -> None:
        """Called when the earliest of the session's deadlines may have come."""
        now = self._loop.time()
        self._check_deadlines(now)
        self._watch_handle = self._loop.call_later(self._watch_interval(), self._watch)

    def _check_deadlines(self, now: float) -> None:
        if not self.stopping:
            if now - self._opened >= self._limits.session_seconds:
                self.stop("session_too_long")
            elif now - self._active >= self._limits.idle_seconds and self._has_room and not self._held:
                self.stop("idle_timeout")
        if not self.stopping and (self._held or not self._has_room):
            self._active = now  # the client is being slowed, not idle

    # Small things

    def ready(self, token: str | None = None, seconds: float = 0, *, resumed: bool = False) -> Ready:
        """What its sender is told; with the token to come back with, and for how long that helps."""
        raw = self._decoder.raw
        return Ready(
            session_id=self.id,
            backend=self.backend,
            language=self.language,
            audio=self._start.audio,
            partials=self._start.partials and self._seats[0].engine.capabilities.partials,
            max_session_seconds=self._limits.session_seconds,
            idle_seconds=self._limits.idle_seconds,
            max_message_bytes=self._limits.message_bytes,
            resume_token=token,
            resume_seconds=seconds,
            resumed=resumed,
            last_seq=self._out.hub.seq,
            received=self._whole_frames if raw else self._origin.frames + self._decoder.frames,
            received_bytes=self._bytes,
            finalized=self._out.told_finalized(self.finalized),
        )

    def _break(self, error: BridgeError) -> None:
        """The session cannot go on: whatever it was to end with, it ends with this."""
        self._fail(error)
        self._end_code = error.code

    def _fail(self, error: BridgeError) -> None:
        self._out.publish(Error(self._out.next_seq(), error.code, str(error), True, error.row.retryable))
