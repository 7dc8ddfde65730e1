"""One backend stream over audio that is all here: nothing comes that it would have to wait for, or be ended for.

The first stream of a recording is one. If it fails, those that follow are `BackendStream`s, and go on from its last
final.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator, Callable
from typing import Final

from backends.base import BackendError, RecognitionConfig, Result
from bridge.session.engine import Engine
from bridge.session.replay import ReplayBuffer
from bridge.session.stream import Placed, placed_word

PIECE_SECONDS: Final = 2.5
"""That the backend is given at once."""


class Given:
    """How much the backend was given, in samples."""

    given = 0


class WholeStream:
    """A stream over all the audio of `buffer`, of which nothing is final yet; `publish` gets each result.

    `stall_seconds`: how long the engine may neither take audio nor answer.
    """

    def __init__(
        self, engine: Engine, buffer: ReplayBuffer, *, stall_seconds: float, publish: Callable[[Placed], None]
    ) -> None:
        self.reader = Given()
        self._engine = engine
        self._rate = engine.sample_rate
        self._pcm = buffer.audio(0, buffer.end)
        self._end = buffer.end
        self._start = 0  # everything before it is final
        self._publish = publish
        self._patience = stall_seconds
        self._answer_seconds = min(stall_seconds, engine.capabilities.answer_seconds or stall_seconds)
        self._loop = asyncio.get_running_loop()
        self._scope = asyncio.timeout(self._patience)
        self._ended = False

    def make_room(self) -> None:
        """Nothing more comes."""

    async def run(self, config: RecognitionConfig) -> None:
        """Recognize to the end of the audio.

        Raises:
            BackendError: it ended before that. What was published stands.
        """
        try:
            async with self._scope, contextlib.aclosing(self._engine.recognize(config, self._audio())) as results:
                async for result in results:
                    self._scope.reschedule(self._loop.time() + self._patience)
                    self._place(result)
        except TimeoutError as exc:
            if not self._scope.expired():
                raise
            raise BackendError("the stream does not answer", code="stalled", retryable=True) from exc
        if not self._ended:
            raise BackendError("the stream ended early", code="ended_early", retryable=True)
        if self._start < self._end:
            self._publish(Placed(Result("", True, 0.0, self._end / self._rate), self._start, self._end, self._end))

    async def _audio(self) -> AsyncGenerator[bytes]:
        size = round(PIECE_SECONDS * self._rate) * 2
        for at in range(0, len(self._pcm), size):
            self._scope.reschedule(self._loop.time() + self._patience)
            piece = self._pcm[at : at + size]
            self.reader.given += len(piece) // 2
            yield piece
        self._ended = True
        self._patience = self._answer_seconds
        self._scope.reschedule(self._loop.time() + self._patience)

    def _place(self, result: Result) -> None:
        """Publish it, clipped to what the stream was given and to what is not final yet."""
        end = max(self._start, min(round(result.end * self._rate), self.reader.given))
        start = min(max(self._start, round(result.start * self._rate)), end)
        if result.words:
            words = tuple([placed_word(word, 0, self._rate) for word in result.words])
            if words != result.words:
                result = dataclasses.replace(result, words=words)
        self._publish(Placed(result, start, end, end))
        if result.is_final:
            self._start = end
