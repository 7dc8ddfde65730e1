"""Where in a stream there is speech, by the Silero model that comes with faster-whisper.

The bridge has a gate of its own, and it may be off: nothing is decoded in which this hears no speech.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from faster_whisper.vad import get_vad_model

from backends.whisper.window import RATE

FRAME: Final = 512
CONTEXT: Final = 64
"""Samples: of a frame, and of the audio before it that the model is given with it."""

LEAST_EVIDENCE: Final = 0.1
"""Of one span, for a window to count as speech at all: seconds of what is surely speech, or more of what may be. Chords
and melodies reach 0.05 to 0.15, the shortest words 0.2, two seconds over a bad telephone line 0.7."""
WEAK_EVIDENCE: Final = 0.03
"""Of a span beside one that is speech: a short word said softly, not a click."""
LONGEST_GAP_FRAMES: Final = 6
"""0.2 s: inside words there are gaps, before plosives."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of speech, in samples from the beginning of the stream.

    `evidence`: seconds, each counted as much as it is likely to be speech.
    """

    start: int
    end: int
    evidence: float


class Ears:
    """One stream's detector and what it has heard. `listen` may run in any thread, one call at a time."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._session: Any = get_vad_model().session
        self._memory = np.zeros((1, 1, 128), np.float32), np.zeros((1, 1, 128), np.float32)
        self._context = np.zeros(CONTEXT, np.float32)
        self._rest = np.zeros(0, np.float32)
        self._probabilities = np.zeros(0, np.float32)
        self._first = 0  # the frame of the first of these

    @property
    def heard(self) -> int:
        """Samples taken in; less than a frame of them is not judged yet."""
        return (self._first + len(self._probabilities)) * FRAME + len(self._rest)

    def listen(self, samples: npt.NDArray[np.float32]) -> None:
        """Judge what comes next."""
        samples = np.concatenate([self._rest, samples])
        whole = len(samples) // FRAME * FRAME
        self._rest = samples[whole:]
        if not whole:
            return
        frames = samples[:whole].reshape(-1, FRAME)
        before = np.concatenate([self._context[None], frames[:-1, -CONTEXT:]])
        self._context = frames[-1, -CONTEXT:].copy()
        hidden, cell = self._memory
        judged, hidden, cell = self._session.run(
            None, {"input": np.concatenate([before, frames], 1), "h": hidden, "c": cell}
        )
        self._memory = hidden, cell
        self._probabilities = np.concatenate([self._probabilities, np.asarray(judged, np.float32).reshape(-1)])

    def forget(self, position: int) -> None:
        """What lies before this sample will not be asked for again."""
        frames = min(max(position // FRAME - self._first, 0), len(self._probabilities))
        self._probabilities = self._probabilities[frames:]
        self._first += frames

    def speech(self, start: int, end: int) -> list[Span]:
        """The speech between two samples; none where nothing of it is sure."""
        first = max(start // FRAME - self._first, 0)
        last = max(-(-end // FRAME) - self._first, 0)
        probabilities = self._probabilities[first:last]
        loud = probabilities >= self._threshold
        edges = np.flatnonzero(np.diff(np.concatenate([[False], loud, [False]]).astype(np.int8)))
        runs: list[list[int]] = []
        for begin, stop in edges.reshape(-1, 2).tolist():
            if runs and begin - runs[-1][1] <= LONGEST_GAP_FRAMES:
                runs[-1][1] = stop
            else:
                runs.append([begin, stop])
        offset = self._first + first
        spans = [
            Span(
                max(start, (offset + begin) * FRAME),
                min(end, (offset + stop) * FRAME),
                float(probabilities[begin:stop].sum()) * FRAME / RATE,
            )
            for begin, stop in runs
        ]
        if not any(span.evidence >= LEAST_EVIDENCE for span in spans):
            return []
        return [span for span in spans if span.evidence >= WEAK_EVIDENCE]
