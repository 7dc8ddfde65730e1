"""Voice activity of one channel: when somebody speaks, and what of the audio the backend is to be given.

A detector says for each frame how likely it is speech, a segmenter makes onsets and ends of that, and a gate lets
speech with its surroundings pass. The detector answers a little later, on the event loop; what has to be decided at a
certain point, a flush or the end of the audio, is decided when it has answered for everything before.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from bridge.audio.vad.detector import VoiceDetection
from bridge.audio.vad.segmenter import Endpointing, Segmenter, SpeechEnd, SpeechOnset
from bridge.protocols.events import Start
from bridge.session.gate import Gate

SLOWEST_SECONDS: Final = 1.0
"""Audio that may wait for the detector before the client is read more slowly."""


@dataclass(frozen=True, slots=True)
class VoicePolicy:
    """What the server does about voice activity.

    `detection`: None where sessions cannot have it. `endpointing`: for sessions that choose nothing of it.
    `gate_seconds`: silence after which nothing more is given to the backend until somebody speaks (None: all is given).
    """

    detection: VoiceDetection | None = None
    endpointing: Endpointing = Endpointing()
    gate_seconds: float | None = None

    def wanted(self, start: Start) -> VoiceDetection | None:
        """The detection for this session; None if it needs none."""
        asked_for = start.vad is True or start.endpointing is not None
        return self.detection if self.gate_seconds is not None or asked_for else None

    def rules(self, start: Start) -> Endpointing:
        """The session's endpointing: what it chose, and the server's choice for the rest."""
        return self.endpointing if start.endpointing is None else replace(self.endpointing, **start.endpointing)


class Listener(Protocol):
    """Whom `Voice` tells; all positions are samples from the start of the session."""

    def speech_started(self, position: int) -> None:
        """Speech began at `position`."""

    def speech_ended(self, position: int) -> None:
        """Speech ended at `position`; the silence that ends an utterance has followed it."""

    def gate_moved(self) -> None:
        """Some audio may be given, or was found to be silence."""

    def paused(self, speech_until: int, position: int) -> None:
        """Silence has followed the speech that ended at `speech_until`, and no audio behind `position` was given."""


class Voice:
    """Follows one channel, and moves `gate`.

    `gate_seconds`: see `VoicePolicy`. `endpoints`: whether the gate is shut at the end of every utterance; it is opened
    again, where it was shut, once the listener was told of the pause. `begin`: the session position at which the audio
    begins.
    """

    def __init__(
        self,
        detection: VoiceDetection,
        rate: int,
        rules: Endpointing,
        listener: Listener,
        gate: Gate | None = None,
        *,
        gate_seconds: float | None = None,
        endpoints: bool = False,
        begin: int = 0,
    ) -> None:
        self._listener = listener
        self._gate = gate
        self._begin = begin
        self._endpoints = endpoints
        self._gate_frames = math.inf
        if gate_seconds is not None:
            self._gate_frames = max(gate_seconds, rules.silence_seconds) / detection.frame_seconds
        elif gate is not None:
            gate.open(begin)
        self._shut_frames = 0.0  # silence after which the open gate is shut next
        self._shut_at: int | None = None  # where it was shut, until it is known that no speech began before
        self._frame_seconds = detection.frame_seconds
        self._samples_per_frame = detection.frame_seconds * rate
        self._segmenter = Segmenter(detection.frame_seconds, rules)
        self._speech_end = 0  # frame at which the last speech ended
        # Frames that must be judged first, the position that is decided then, what is done then.
        self._decisions: deque[tuple[int, int, Callable[[], None]]] = deque()
        self._room = asyncio.Event()
        self._closed = False
        self._detector = detection.open(rate, self._heard)

    @property
    def has_room(self) -> bool:
        """Whether the detector keeps up."""
        return self._closed or self._detector.waiting_seconds < SLOWEST_SECONDS

    async def room(self) -> None:
        """Wait until `has_room`. Safe to cancel."""
        while not self.has_room:
            self._room.clear()
            await self._room.wait()

    def push(self, pcm: bytes) -> None:
        """Take in audio."""
        self._detector.push(pcm)

    def decide(self, position: int, then: Callable[[], None]) -> None:
        """End the utterance at `position`, the end of what was pushed: call `then` once it is known what was speech.

        Less than a frame before `position` is not judged.
        """
        waiting = round(self._detector.waiting_seconds / self._frame_seconds)
        self._await(self._segmenter.position + waiting, position, then)

    def finish(self, position: int, then: Callable[[], None]) -> None:
        """No more audio comes after `position`; else as `decide`."""
        self._await(self._detector.finish(), position, then)

    def close(self) -> None:
        """Nobody is told anything any more."""
        self._closed = True
        self._decisions.clear()
        self._detector.close()
        self._room.set()

    def _await(self, frames: int, position: int, then: Callable[[], None]) -> None:
        self._decisions.append((frames, position, then))
        self._decide()

    def _heard(self, probabilities: Sequence[float]) -> None:
        for probability in probabilities:
            event = self._segmenter.push(probability)
            if event is not None:
                self._take(event)
            if self._decisions:
                self._decide()
            if self._gate is not None:
                self._move(self._gate)
        if self._gate is not None:
            self._listener.gate_moved()
        if not self._room.is_set() and self.has_room:
            self._room.set()

    def _take(self, event: SpeechOnset | SpeechEnd) -> None:
        if isinstance(event, SpeechOnset):
            if self._gate is not None:
                self._shut_at = None
                self._gate.open(self._position(event.opens))
                self._listener.gate_moved()
            self._listener.speech_started(self._position(event.frame))
        else:
            self._speech_end = event.frame
            self._shut_frames = 0 if self._endpoints else self._gate_frames
            self._listener.speech_ended(self._position(event.frame))

    def _decide(self) -> None:
        """What is due: all before it was judged."""
        while self._decisions and self._decisions[0][0] <= self._segmenter.position:
            _, position, then = self._decisions.popleft()
            for event in self._segmenter.force():
                self._take(event)
            if self._gate is not None:
                self._after_pause(self._gate)
                if not self._gate.is_open:
                    self._gate.silence(position)
                    self._listener.gate_moved()
            then()

    def _move(self, gate: Gate) -> None:
        """Shut the gate when silence has lasted, and pass over what is silence."""
        segmenter = self._segmenter
        if segmenter.in_speech or segmenter.pending is not None:
            return
        if gate.is_open and segmenter.position - self._speech_end >= self._shut_frames:
            gate.shut(self._position(segmenter.position), self._position(self._speech_end))
            self._shut_at = gate.silent_until
        # The backend may have been given more than was judged: only there it shows whether it stands in silence.
        if self._shut_at is not None and self._position(segmenter.position) >= self._shut_at:
            self._listener.paused(self._position(self._speech_end), self._shut_at)
            self._after_pause(gate)
        if not gate.is_open:
            gate.silence(self._position(segmenter.keep_from))

    def _after_pause(self, gate: Gate) -> None:
        """Unless silence has lasted long enough to be left out, let it pass, too."""
        shut_at, self._shut_at = self._shut_at, None
        self._shut_frames = self._gate_frames
        if shut_at is not None and self._segmenter.position - self._speech_end < self._gate_frames:
            gate.open(shut_at)

    def _position(self, frame: int) -> int:
        return self._begin + round(frame * self._samples_per_frame)
