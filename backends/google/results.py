"""Google's responses as results: one `Transcript` for each stream, told of the audio that goes out as well.

It also says what Google does not: that audio held no speech. Google answers silence with silence; but the bridge can
only forget audio that a final covers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from backends.base import RecognitionConfig, Result, Word
from backends.google.api import Fields
from backends.google.errors import from_code

QUIET: Final = 64
"""Samples below this (of 32,768) hold no speech: practically digital silence. Not meant to find pauses."""
CLAIM_SECONDS: Final = 4.0
"""So much quiet audio without a word from Google is declared to hold none; Google lags by far less."""
CLAIM_MARGIN: Final = 1.0
"""Seconds at the end of it that are left out, as the start of the next word."""

_ROUNDING: Final = 0.001
_SPEECH_ACTIVITY_BEGIN: Final = 2  # the same number in both versions


class Transcript:
    """What one stream has heard. Not for two threads at once, but for `sent` beside the others.

    Finals follow each other without overlap and stay inside of the audio that was sent. Times in stream seconds.
    """

    def __init__(self, fields: Fields, config: RecognitionConfig, *, diarization: bool = False) -> None:
        self.seconds = 0.0
        """Audio sent."""
        self._fields = fields
        self._partials = config.partials
        self._words = config.words
        self._diarization = diarization
        self.bytes_per_second = 2 * config.sample_rate
        self._bytes = 0
        self._covered = 0.0  # end of the last final
        self._partial: str | None = None  # heard since, not final
        self._partial_end = 0.0
        self._loud = (0.0, b"")  # the last chunk that was not quiet, and where it begins

    def sent(self, chunk: bytes) -> None:
        """Note that this audio goes out; call it before it does, so that no answer can be ahead of it."""
        samples = np.frombuffer(chunk, "<i2")
        if samples.max() >= QUIET or samples.min() <= -QUIET:
            self._loud = (self.seconds, chunk)
        self._bytes += len(chunk)
        self.seconds = self._bytes / self.bytes_per_second

    def take(self, response: Any) -> Iterator[Result]:
        """The results that a response (a plain protobuf message) brings: the final first, then the partial.

        Raises:
            BackendError: the response holds an error (v1).
        """
        if (error := getattr(response, "error", None)) is not None and error.code:
            raise from_code(error.code, error.message)
        pending = []
        for result in response.results:
            if result.is_final:
                yield self._final(result)
            else:
                pending.append(result)
        if response.speech_event_type == _SPEECH_ACTIVITY_BEGIN:
            at = self._clip(_seconds(getattr(response, self._fields.event_time)))
            yield Result("", False, at, at)
        if pending and (partial := self._interim(pending)):
            yield partial

    @property
    def quiet(self) -> bool:
        """Whether everything after the last final is quiet: Google will say nothing about it."""
        if self._partial is not None:
            return False
        start, chunk = self._loud
        if not chunk:
            return True  # nothing was loud yet
        if start >= self._covered:
            return False
        samples = np.abs(np.frombuffer(chunk, "<i2").astype(np.int32))
        last = int(np.flatnonzero(samples >= QUIET)[-1]) + 1
        return start + 2 * last / self.bytes_per_second <= self._covered + _ROUNDING

    @property
    def claimable(self) -> bool:
        """Whether `claim` would give a final."""
        return self.seconds - self._covered >= CLAIM_SECONDS and self.quiet

    def claim(self) -> Iterator[Result]:
        """A final without text for quiet audio, if there is enough of it."""
        seconds = self.seconds  # read once, and first: a thread may be sending speech by now
        if seconds - self._covered >= CLAIM_SECONDS and self.quiet:
            yield self._close(seconds - CLAIM_MARGIN)

    def rest(self) -> Iterator[Result]:
        """The last final, once Google has said everything: what it says nothing about holds no speech.

        Should it leave a partial open, its text is kept: there is none better.
        """
        if self.seconds > self._covered:
            yield self._close(self.seconds, self._partial or "")

    def _close(self, end: float, text: str = "") -> Result:
        start, self._covered, self._partial = self._covered, end, None
        return Result(text, True, start, end)

    def _final(self, result: Any) -> Result:
        best = result.alternatives[0] if result.alternatives else None
        words = tuple(self._read_words(best)) if best else ()
        text = best.transcript.strip() if best else ""
        end = _seconds(getattr(result, self._fields.result_end))
        if words:
            end = max(end, words[-1].end)
        elif end <= 0:  # not said: as far as the last partial went
            end = self._partial_end or self.seconds - CLAIM_MARGIN
        before, end = self._covered, self._clip(end)
        start = min(max(words[0].start, before), end) if words and text else before
        self._covered, self._partial, self._partial_end = end, None, 0.0
        return Result(
            text,
            True,
            start,
            end,
            words if self._words and text else (),
            confidence=(best.confidence or None) if best and text else None,
            language=result.language_code or None,
        )

    def _interim(self, pending: list[Any]) -> Result | None:
        """All that is not final yet, as one: the results of a response cover consecutive audio."""
        parts = [result for result in pending if result.alternatives]
        text = "".join([result.alternatives[0].transcript for result in parts]).strip()
        if not text:
            return None
        self._partial = text
        self._partial_end = self._clip(_seconds(getattr(parts[-1], self._fields.result_end)))
        if not self._partials:
            return None
        return Result(
            text,
            False,
            self._covered,
            self._partial_end,
            stability=min([result.stability for result in parts]) or None,
            language=parts[0].language_code or None,
        )

    def _read_words(self, best: Any) -> Iterator[Word]:
        """The words, if their times are known. With speakers told apart, words of earlier finals may come again."""
        if not best.words or _seconds(getattr(best.words[-1], self._fields.word_end)) <= 0:
            return
        for word in best.words:
            start = _seconds(getattr(word, self._fields.word_start))
            end = _seconds(getattr(word, self._fields.word_end))
            if self._diarization and (start + end) / 2 <= self._covered:  # its end may be rounded
                continue
            yield Word(
                word.word,
                min(start, self.seconds),
                min(max(start, end), self.seconds),
                word.confidence or None,
                word.speaker_label or None,
            )

    def _clip(self, position: float) -> float:
        return max(self._covered, min(position, self.seconds))


def _seconds(duration: Any) -> float:
    """A protobuf duration."""
    return float(duration.seconds + duration.nanos / 1e9)
