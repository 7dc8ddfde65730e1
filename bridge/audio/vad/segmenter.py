"""Where speech begins and ends, decided on a row of speech probabilities.

Pure logic: frames of one fixed length are counted from 0, and nothing here knows audio. The same probabilities give
the same events however they were grouped on their way here.

    (silence* SpeechOnset speech* SpeechEnd)*

The rules are those of Silero's `get_speech_timestamps` (github.com/snakers4/silero-vad, utils_vad.py), which
faster-whisper's `VadOptions` took over: speech is what reaches the threshold, and what follows it without falling
below a second, lower one; a stretch of it counts when it is long enough, and ends with a silence that is long enough.
They differ in one thing: made for a stream, an onset is told as soon as it is sure, not after the segment's end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

HYSTERESIS: Final = 0.15
"""How far below the threshold a probability must fall to be silence again: Silero's `neg_threshold`."""
LEAST_SHARE: Final = 0.5
"""It need not fall below this share of the threshold, so that a low one does not make silence impossible."""
LEAST_SPEECH_SECONDS: Final = 0.09
"""A shorter stretch is a click."""

MIN_SILENCE_SECONDS: Final = 0.1
MAX_SILENCE_SECONDS: Final = 10.0
MAX_PADDING_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Endpointing:
    """What a session may choose; times in seconds.

    Raises:
        ValueError: a value is outside its limits; the message names the field.
    """

    threshold: float = 0.2
    """The probability from which a frame is speech: higher where noise is taken for speech, lower for soft voices.

    Silero's own default is 0.5, with which telephone calls lose much of their speech, at 0.35 some of it in noise;
    noise alone stays below 0.2.
    """
    silence_seconds: float = 0.8
    """A silence that ends an utterance. Shorter ends sooner, and in the middle of sentences."""
    padding_seconds: float = 1.0
    """What is let through before an onset. 0.3 holds every soft consonant and beginning that the detector missed; an
    engine that listens to the background needs more of it to hear the same words as without a gate."""

    def __post_init__(self) -> None:
        _check("threshold", self.threshold, 0.0, 1.0)
        _check("silence_seconds", self.silence_seconds, MIN_SILENCE_SECONDS, MAX_SILENCE_SECONDS)
        _check("padding_seconds", self.padding_seconds, 0.0, MAX_PADDING_SECONDS)


@dataclass(frozen=True, slots=True)
class SpeechOnset:
    """Speech began."""

    frame: int
    """The first frame of speech; it lies in the past."""
    opens: int
    """The first frame to let through: some before `frame`, none that was let through before."""


@dataclass(frozen=True, slots=True)
class SpeechEnd:
    """Speech is over."""

    frame: int
    """The first frame of the silence after it."""
    closes: int
    """The first frame not to let through."""


class Segmenter:
    """Push probabilities, get onsets and ends in turn. Never goes back behind an event that it gave."""

    def __init__(self, frame_seconds: float, endpointing: Endpointing | None = None) -> None:
        rules = endpointing or Endpointing()
        self.position = 0
        """How many frames were pushed."""
        self.in_speech = False
        """Whether the last event was an onset."""
        self._threshold = rules.threshold
        self._negative = max(rules.threshold - HYSTERESIS, LEAST_SHARE * rules.threshold)
        self._least_speech = _frames(LEAST_SPEECH_SECONDS, frame_seconds)
        self._silence = _frames(rules.silence_seconds, frame_seconds)
        self._padding = _frames(rules.padding_seconds, frame_seconds)
        self._speech = False  # what the last frame was
        self._since = 0  # the frame from which on all have been the same as the last
        self._closed = 0  # no later onset reaches back behind this frame

    @property
    def pending(self) -> int | None:
        """The first frame of what may be the beginning of speech, while that is not sure; None otherwise."""
        return self._since if self._speech and not self.in_speech else None

    @property
    def keep_from(self) -> int:
        """In silence: the first frame that an onset may still let through. What lies before never will be."""
        beginning = self.position if self.pending is None else self.pending
        return max(self._closed, beginning - self._padding)

    def push(self, probability: float) -> SpeechOnset | SpeechEnd | None:
        """Take in the next frame's probability."""
        speech = probability >= (self._negative if self._speech else self._threshold)
        if speech != self._speech:
            self._speech, self._since = speech, self.position
        self.position += 1
        lasted = self.position - self._since
        if not self.in_speech and speech and lasted >= self._least_speech:
            return self._begin()
        if self.in_speech and not speech and lasted >= self._silence:
            return self._end(self._since)
        return None

    def force(self) -> Sequence[SpeechOnset | SpeechEnd]:
        """Decide now, because a flush or the stream's end waits for nothing: what may be speech is speech, and over.

        What follows is judged anew; nothing that was let through is let through again.
        """
        events: list[SpeechOnset | SpeechEnd] = []
        if self.pending is not None:
            events.append(self._begin())
        if self.in_speech:
            events.append(self._end(self.position if self._speech else self._since))
        self._speech, self._since = False, self.position
        self._closed = self.position
        return events

    def _begin(self) -> SpeechOnset:
        onset = SpeechOnset(self._since, self.keep_from)
        self.in_speech = True
        return onset

    def _end(self, frame: int) -> SpeechEnd:
        self.in_speech = False
        self._closed = self.position
        return SpeechEnd(frame, self.position)


def _frames(seconds: float, frame_seconds: float) -> int:
    """As many frames as are needed to cover the time; a rounding error makes no frame more."""
    return math.ceil(seconds / frame_seconds - 1e-6)


def _check(field: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:  # not a number is outside, too
        raise ValueError(f"{field} must lie in {least:g} to {most:g}")
