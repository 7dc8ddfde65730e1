"""Voice activity of one channel: when somebody speaks, and what of the audio the backend is to be given.

A detector says for each frame how likely it is speech, a segmenter makes onsets and ends of that, and a gate lets
speech with its surroundings pass. The detector answers a little later, on the event loop; what has to be decided at a
certain point, a flush or the end of the audio, is decided when it has answered for everything before.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from bridge.audio.vad.detector import VoiceDetection
from bridge.audio.vad.segmenter import Endpointing, Segmenter, SpeechEnd, SpeechOnset
from bridge.protocols.events import Start
from bridge.session.gate import Gate

__all__ = ["Voice", "VoicePolicy"]

SLOWEST_SECONDS: Final = 1.0
"""Audio that may wait for the detector before the client is read more slowly."""


@dataclass(frozen=True, slots=True)
class VoicePolicy:
    """What the server does about voice activity.

    `detection`: None where sessions cannot have it. `gate`: silence is kept from the backend. `endpointing`: for
    sessions that choose nothing of it.
    """

    detection: VoiceDetection | None = None
    gate: bool = False
    endpointing: Endpointing = Endpointing()

    def asked_for(self, start: Start) -> bool:
        """Whether the session itself wants voice activity detection."""
        return start.vad is True or start.endpointing is not None

    def wanted(self, start: Start) -> VoiceDetection | None:
        """The detection for this session; None if it has none."""
        return self.detection if self.gate or self.asked_for(start) else None

    def rules(self, start: Start) -> Endpointing:
        """The session's endpointing: what it chose, and the server's choice for the rest."""
        return self.endpointing if start.endpointing is None else replace(self.endpointing, **start.endpointing)


class Voice:
    """Follows one channel. `started` and `ended` get positions in samples; `moved` is called when the gate changed.

    `ended` gets where the speech ended, and the position up to which silence has followed it.
    """

    def __init__(
        self,
        detection: VoiceDetection,
        rate: int,
        rules: Endpointing,
        gate: Gate | None,
        *,
        started: Callable[[int], None],
        ended: Callable[[int, int], None],
        moved: Callable[[], None],
    ) -> None:
        self._gate = gate
        self._started, self._ended, self._moved = started, ended, moved
        self._samples_per_frame = detection.frame_seconds * rate
        self._segmenter = Segmenter(detection.frame_seconds, rules)
        # Frames that must be judged first, the position that is decided then, what is done then.
        self._decisions: deque[tuple[int, int, Callable[[], None]]] = deque()
        self._room: asyncio.Future[None] | None = None
        self._closed = False
        self._detector = detection.open(rate, self._heard)

    @property
    def has_room(self) -> bool:
        """Whether the detector keeps up."""
        return self._closed or self._detector.waiting_seconds < SLOWEST_SECONDS

    async def room(self) -> None:
        """Wait until `has_room`; for one waiter at a time. Safe to cancel."""
        while not self.has_room:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def push(self, pcm: bytes) -> None:
        """Take in audio."""
        self._detector.push(pcm)

    def decide(self, position: int, then: Callable[[], None]) -> None:
        """End the utterance at `position`, the end of what was pushed: call `then` once it is known what was speech."""
        self._await(int(position / self._samples_per_frame), position, then)

    def finish(self, position: int, then: Callable[[], None]) -> None:
        """No more audio comes after `position`; else as `decide`."""
        self._await(self._detector.finish(), position, then)

    def close(self) -> None:
        """Nothing is called any more."""
        self._closed = True
        self._decisions.clear()
        self._detector.close()
        self._wake()

    def _await(self, frames: int, position: int, then: Callable[[], None]) -> None:
        self._decisions.append((frames, position, then))
        self._decide_due()

    def _heard(self, probabilities: Sequence[float]) -> None:
        for probability in probabilities:
            event = self._segmenter.push(probability)
            if event is not None:
                self._take(event)
            if self._decisions:
                self._decide_due()
        if self._gate is not None and not self._gate.is_open:
            self._gate.silence(self._position(self._segmenter.keep_from))
            self._moved()
        if self._room is not None and self.has_room:
            self._wake()

    def _wake(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _decide_due(self) -> None:
        while self._decisions and self._decisions[0][0] <= self._segmenter.position:
            _, position, then = self._decisions.popleft()
            for event in self._segmenter.force():
                self._take(event, position)
            if self._gate is not None:
                self._gate.silence(position)
                self._moved()
            then()

    def _take(self, event: SpeechOnset | SpeechEnd, decided: int | None = None) -> None:
        at = self._position(event.frame)
        if isinstance(event, SpeechOnset):
            if self._gate is not None:
                self._gate.open(self._position(event.opens))
                self._moved()
            self._started(at)
            return
        # The samples behind the last whole frame belong to it where everything so far was to be decided.
        closes = self._position(event.closes) if decided is None else decided
        at = min(at, closes)
        if self._gate is not None:
            self._gate.shut(closes, at)
            self._moved()
        self._ended(at, closes)

    def _position(self, frame: int) -> int:
        return round(frame * self._samples_per_frame)
