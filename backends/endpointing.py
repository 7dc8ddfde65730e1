"""Where speech starts and ends, decided on a row of yes-or-no frames.

Pure logic: the caller asks a voice activity detector about each frame of fixed length and pushes the answer;
nothing here knows audio, seconds or an engine. The same answers give the same endpoints however the audio was cut
into chunks on its way here.

    (silence frames* STARTED speech frames* ENDED)*

Why not the endpointer that comes with an engine: those hand audio on only after their own window has passed, which
adds that window to the latency of every partial. Here the caller may decode each frame at once while `in_speech`.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from dataclasses import dataclass


class Endpoint(enum.Enum):
    """What the pushed frame changed."""

    STARTED = "started"
    """Speech is on; it begins with frame `Endpointer.start`, which lies in the past."""
    ENDED = "ended"
    """Speech is over; the pushed frame is the last of its segment."""


@dataclass(frozen=True, slots=True)
class EndpointRules:
    """Windows in frames, thresholds in frames of that window. The comments give them for frames of 30 ms.

    A window decides, not a run: a detector flickers inside words and on clicks between them.
    """

    onset_window: int = 10  # 0.3 s: shorter starts on clicks, longer delays the first partial
    onset_speech: int = 7
    pre_roll: int = 10  # 0.3 s: soft consonants before the first voiced frame
    hangover_window: int = 10  # 0.3 s: shorter splits sentences at commas, longer delays every final
    hangover_silence: int = 9
    tail_speech: int = 3  # 90 ms: at a forced end, this much may be a word that the onset has not proved yet

    def __post_init__(self) -> None:
        if not 0 < self.onset_speech <= self.onset_window:
            raise ValueError("onset_speech must lie in 1..onset_window")
        if not 0 < self.hangover_silence <= self.hangover_window:
            raise ValueError("hangover_silence must lie in 1..hangover_window")
        if self.pre_roll < 0:
            raise ValueError("pre_roll must not be negative")
        if not 0 < self.tail_speech <= self.onset_window:
            raise ValueError("tail_speech must lie in 1..onset_window")

    @classmethod
    def ending_after(cls, frames: int) -> EndpointRules:
        """The usual rules, but for the silence that ends speech: a window of so many frames, nine in ten silent."""
        return cls(hangover_window=frames, hangover_silence=math.ceil(0.9 * frames))

    @property
    def look_back(self) -> int:
        """The most frames before "now" that a segment which starts now takes in: audio worth keeping."""
        return self.onset_window + self.pre_roll


class Endpointer:
    """Push frames, get endpoints. Frames are counted from 0; `position` is how many have been pushed."""

    def __init__(self, rules: EndpointRules | None = None) -> None:
        self.rules = rules or EndpointRules()
        self.position = 0
        self.start = 0  # first frame of the segment that is open, or was open last
        self.in_speech = False
        self._closed = 0  # no later segment may begin before this frame: an earlier one took it in
        self._quiet = 0
        self._recent: deque[bool] = deque(maxlen=max(self.rules.onset_window, self.rules.hangover_window))

    @property
    def quiet(self) -> int:
        """How many frames in a row, up to now, were not speech."""
        return self._quiet

    def push(self, speech: bool) -> Endpoint | None:
        """Take in the answer for the next frame."""
        self.position += 1
        self._quiet = 0 if speech else self._quiet + 1
        self._recent.append(speech)
        if self.in_speech:
            return self._push_in_speech()
        if self._speech_in(self.rules.onset_window) >= self.rules.onset_speech:
            self._open()
            return Endpoint.STARTED
        return None

    def force_start(self) -> bool:
        """Before a forced end: open a segment for a word too fresh to have been noticed; says whether it did."""
        if self.in_speech or self._speech_in(self.rules.onset_window) < self.rules.tail_speech:
            return False
        self._open()
        return True

    def close(self) -> None:
        """Nothing so far belongs to a later segment; ends the open one."""
        self._closed = self.position
        self.in_speech = False
        self._recent.clear()

    def keep_from(self, frame: int) -> None:
        """Between segments: none begins before `frame`, because a final has been given for what lies before."""
        if self.in_speech:
            raise ValueError("keep_from is for silence")
        self._closed = max(self._closed, min(frame, self.position))

    def split(self, at: int) -> None:
        """End the open segment at frame `at` and begin the next one there: an utterance grew too long."""
        if not self.in_speech or not self.start < at <= self.position:
            raise ValueError("split needs an open segment that frame `at` lies in")
        self._closed = self.start = at

    def _open(self) -> None:
        self.in_speech = True
        self.start = max(self._closed, self.position - self.rules.look_back)

    def _push_in_speech(self) -> Endpoint | None:
        window = self.rules.hangover_window
        if len(self._recent) < window or self._speech_in(window) > window - self.rules.hangover_silence:
            return None
        self.close()
        return Endpoint.ENDED

    def _speech_in(self, window: int) -> int:
        recent = len(self._recent)
        return sum(1 for n, speech in enumerate(self._recent) if speech and n >= recent - window)
