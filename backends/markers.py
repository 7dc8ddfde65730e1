"""Words that can be read out of the audio itself: proof that none was lost, cut or doubled on the way.

During word i every sample has the value MARKER + i, silence is 0. A final ends at a pause; times are seconds.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from backends.base import Result, Word

MARKER: Final = 1_000
"""Sample value of word 0; word i is MARKER + i."""
MARKER_SECONDS: Final = 0.3
"""Length of a whole word of markers."""
MARKER_PAUSE: Final = 0.2
"""Silence that ends an utterance of markers."""


def marker_audio(words: int, *, rate: int = 16_000, pause: float = 0.3, first: int = 0) -> bytes:
    """Marker audio of so many words, each followed by a pause (seconds): PCM16 mono."""
    quiet = np.zeros(round(pause * rate), "<i2")
    length = round(MARKER_SECONDS * rate)
    parts = [p for i in range(words) for p in (np.full(length, MARKER + first + i, "<i2"), quiet)]
    return np.concatenate(parts).tobytes() if parts else b""


class MarkerReader:
    """Words out of marker audio at this rate (Hz); a word that is not whole ends in `~`."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._position = 0  # samples taken
        self._value = 0  # of the run that is going on
        self._run = 0
        self._words: list[Word] = []
        self._covered = 0
        self._quiet = 0

    def take(self, chunk: bytes) -> list[Result]:
        """What the chunk brings: at most one partial, and a final for each stretch that a pause ends."""
        samples = np.frombuffer(chunk, "<i2")
        edges = np.flatnonzero(np.diff(samples)) + 1
        results: list[Result] = []
        changed = False
        for part in np.split(samples, edges):
            value = int(part[0])
            if value != self._value:
                changed |= self._end_run()
                self._value = value
            self._run += len(part)
            self._position += len(part)
            self._quiet = self._quiet + len(part) if value == 0 else 0
            if self._quiet >= MARKER_PAUSE * self._rate and self._position - self._covered >= self._rate / 2:
                results.append(self._final(self._position))
                changed = False
        if changed and self._words:
            text = " ".join(w.text for w in self._words)
            results.append(Result(text, False, self._words[0].start, self._position / self._rate))
        return results

    def rest(self) -> list[Result]:
        """A final of everything up to now, none where all of it is covered."""
        self._end_run()
        return [self._final(self._position)] if self._position > self._covered else []

    def _end_run(self) -> bool:
        value, run, self._run = self._value, self._run, 0
        if value < MARKER or not run:
            return False
        whole = abs(run - MARKER_SECONDS * self._rate) <= 0.01 * self._rate
        end = self._position / self._rate
        self._words.append(Word(f"w{value - MARKER}{'' if whole else '~'}", end - run / self._rate, end, 1.0))
        return True

    def _final(self, until: int) -> Result:
        words, self._words = tuple(self._words), []
        start = words[0].start if words else self._covered / self._rate
        self._covered = until
        return Result(" ".join(w.text for w in words), True, start, until / self._rate, words, confidence=1.0)
