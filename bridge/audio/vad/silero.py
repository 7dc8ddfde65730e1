"""Silero's voice detector: one model and one thread for all sessions of the server.

The frames that wait are judged together, as a batch, which costs half as much for each frame. A server with little to
do answers at once. Otherwise a batch begins `GATHER_SECONDS` after the last one began, or once it is full; a frame that
comes alone costs more to hand over than to judge.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np

from bridge.audio.vad.detector import FAILED_OPEN, Heard
from bridge.audio.vad.frames import RATE, FrameDetector, Frames
from bridge.audio.vad.silero_model import CONTEXT, FRAME_SAMPLES, SileroModel, fresh_memory, missing

__all__ = ["SileroDetection", "missing"]

log = logging.getLogger(__name__)

MOST_STREAMS: Final = 64
MOST_FRAMES: Final = 4
"""At most so many frames of so many streams are judged in one go: 15 ms, the longest that others wait for a turn."""

GATHER_SECONDS: Final = 0.01
"""Least time from the beginning of one batch to that of the next, unless it is full: a third of a frame. A hundred
streams that send 20 ms at a time need a quarter less CPU for it."""

Probabilities = list[list[float]]
"""Of each stream of a batch, those of its frames."""


class SileroDetection:
    """The model, its thread, and the streams that have frames to be judged.

    What waits is bounded by who pushes: see `VoiceDetector.waiting_seconds`.
    """

    name = "silero"
    frame_seconds = FRAME_SAMPLES / RATE

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="voice-detection")
        self._loop: asyncio.AbstractEventLoop
        self._model: SileroModel | None = None
        self._waiting: dict[SileroDetector, None] = {}  # in the order of their turns
        self._batch: asyncio.Future[Probabilities] | None = None
        self._scheduled: asyncio.Handle | None = None
        self._next = 0.0  # when the next batch may begin
        self._failed = False
        self._closed = False

    async def load(self) -> None:
        """Load the model, in the thread."""
        begun = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._model = await self._loop.run_in_executor(self._executor, SileroModel)
        log.info("the voice detector silero was loaded in %.1f s", time.monotonic() - begun)

    async def close(self) -> None:
        """Wait for the batch that is being judged, if any, and end the thread."""
        self._closed = True
        self._waiting.clear()
        if self._scheduled is not None:
            self._scheduled.cancel()
        self._executor.shutdown(wait=False, cancel_futures=True)
        if self._batch is not None:
            await asyncio.wait([self._batch])

    def open(self, rate: int, heard: Heard) -> SileroDetector:
        """A detector of a new stream."""
        if self._model is None or self._closed:
            raise RuntimeError("the voice detection is not loaded, or closed")
        return SileroDetector(self, rate, heard)

    def enqueue(self, detector: SileroDetector) -> None:
        """Whole frames wait in this stream."""
        if not self._closed:
            self._waiting[detector] = None
            self._schedule()

    def withdraw(self, detector: SileroDetector) -> None:
        """This stream was closed."""
        self._waiting.pop(detector, None)

    def _schedule(self) -> None:
        """Begin a batch when its time has come, at least when this turn of the loop is over."""
        if not self._waiting or self._batch is not None:
            return
        full = len(self._waiting) >= MOST_STREAMS
        if self._scheduled is None:
            at_once = full or self._loop.time() >= self._next
            self._scheduled = (
                self._loop.call_soon(self._begin) if at_once else self._loop.call_at(self._next, self._begin)
            )
        elif full:
            self._scheduled.cancel()
            self._scheduled = self._loop.call_soon(self._begin)

    def _begin(self) -> None:
        self._scheduled = None
        self._next = self._loop.time() + GATHER_SECONDS
        if self._model is None or self._closed or not self._waiting:
            return
        turns = []
        for detector in list(islice(self._waiting, MOST_STREAMS)):
            del self._waiting[detector]
            turns.append(detector.turn())
            if detector.has_frames:
                self._waiting[detector] = None  # behind the others
        if self._failed:
            self._tell(turns, None)
        else:
            self._batch = self._loop.run_in_executor(self._executor, judge, self._model, turns)
            self._batch.add_done_callback(lambda batch: self._end(turns, batch))

    def _end(self, turns: Sequence[Turn], batch: asyncio.Future[Probabilities]) -> None:
        self._batch = None
        if self._closed or batch.cancelled():
            return
        if error := batch.exception():
            self._failed = True
            log.error("the voice detector silero failed: from now on all audio counts as speech", exc_info=error)
            self._tell(turns, None)
        else:
            self._tell(turns, batch.result())

    def _tell(self, turns: Sequence[Turn], heard: Probabilities | None) -> None:
        """Hand the probabilities out, and begin the next batch; None where there is no telling."""
        for n, turn in enumerate(turns):
            turn.detector.tell(heard[n] if heard else [FAILED_OPEN] * len(turn.frames))
        self._schedule()


class SileroDetector(FrameDetector):
    """One stream, and what the model remembers of it."""

    def __init__(self, detection: SileroDetection, rate: int, heard: Heard) -> None:
        super().__init__(Frames(rate, FRAME_SAMPLES, context=CONTEXT), heard)
        self.memory = fresh_memory()
        """The thread's while a batch with this stream is judged."""
        self._detection = detection

    def close(self) -> None:
        """Tell nothing more, and take no more of the model's time."""
        super().close()
        self._detection.withdraw(self)

    def turn(self) -> Turn:
        """The frames that are next, so many as one turn allows."""
        return Turn(self, self._frames.take(MOST_FRAMES))

    @property
    def has_frames(self) -> bool:
        """Whether whole frames wait for a turn."""
        return self._frames.whole > 0

    def _judge(self) -> None:
        if not self._closed:
            self._detection.enqueue(self)


@dataclass(frozen=True, slots=True)
class Turn:
    """A stream's part in a batch."""

    detector: SileroDetector
    frames: list[bytes]


def judge(model: SileroModel, turns: Sequence[Turn]) -> Probabilities:
    """In the thread: the first frames of all streams, then the second ones of those that have one, and so on."""
    order = sorted(range(len(turns)), key=lambda n: -len(turns[n].frames))
    memory = np.concatenate([turns[n].detector.memory for n in order], axis=1)
    heard: Probabilities = [[] for _ in turns]
    for step in range(len(turns[order[0]].frames)):
        frames = [turns[n].frames[step] for n in order if step < len(turns[n].frames)]
        probabilities, memory[:, : len(frames)] = model.judge(frames, memory[:, : len(frames)])
        for n, probability in zip(order, probabilities.tolist(), strict=False):
            heard[n].append(probability)
    for place, n in enumerate(order):
        turns[n].detector.memory = memory[:, place : place + 1].copy()
    return heard
