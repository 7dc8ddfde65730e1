"""One session's audio becomes windows, and what is heard in them results.

The window is the audio behind the last final. A step looks at it whenever half a second has come: it listens for
speech, and then asks for a partial, ends the utterance in silence, or cuts a window that has become too long. A flush
and the end of the audio end the utterance at once. Partials begin with the words that are committed; a final is heard
afresh, with beam search, and joined to them.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from backends.base import RecognitionConfig, Result, Word
from backends.whisper.agreement import Agreement, cut, forced_cut, joined_text
from backends.whisper.guards import GuardRules, Rejection, judge, without_loop
from backends.whisper.metrics import WhisperMetrics
from backends.whisper.model import Request
from backends.whisper.models import Loaded, Models
from backends.whisper.options import WhisperOptions
from backends.whisper.scheduler import Lane, Replaced, closed
from backends.whisper.speech import Ears, Span
from backends.whisper.window import RATE, Hypothesis, Kind, Piece

BACKLOG_SECONDS: Final = 30.0
"""Audio that may wait here; past it nothing more is read, and the sender is slowed."""
LEAD_SECONDS: Final = 0.5
"""Silence that is left before the speech of a window."""
TAIL_SECONDS: Final = 0.4
"""And behind it, for a final."""
SETTLED_SECONDS: Final = 0.3
"""Silence after which a window's last word is complete."""
QUIET_SECONDS: Final = 5.0
"""Silence after which the bridge is told that nothing was said, so that it need not keep the audio."""
FAINT_SECONDS: Final = 0.25
FAINT_LOG_PROBABILITY: Final = -0.4
"""With less evidence of speech than one syllable gives, words must be likelier than usual."""
HISTORY_CHARACTERS: Final = 400
"""Of the last finals, for the prompt."""
LANGUAGE_SECONDS: Final = 3.0
"""Speech from which a detected language is kept."""
OTHER_LANGUAGE: Final = 0.8
"""Probability from which another language than the kept one is believed, where the words in that one are doubtful."""
DOUBTFUL: Final = -0.7
"""Mean log-probability, up to which words are doubtful."""


class Stream:
    """The state of one `recognize`. `language`: Whisper's code, None to detect it."""

    def __init__(
        self,
        models: Models,
        ears: Ears,
        pool: Executor,
        config: RecognitionConfig,
        options: WhisperOptions,
        metrics: WhisperMetrics,
        *,
        language: str | None,
    ) -> None:
        self._models = models
        self._ears = ears
        self._pool = pool
        self._config = config
        self._options = options
        self._metrics = metrics
        self._rules = GuardRules(
            no_speech_threshold=options.no_speech_threshold,
            log_probability_threshold=options.log_probability_threshold,
            compression_threshold=options.compression_threshold,
        )
        self._language = language
        self._detects = language is None
        self._silence = _samples(config.silence_seconds or options.silence_seconds)
        self._lead = " ".join([", ".join(config.phrases), options.initial_prompt]).strip()
        self._history = ""
        self._agreement = Agreement()
        self._pcm = bytearray()  # from the beginning of the window on
        self._start = 0  # samples before it
        self._told = 0  # everything before is final
        self._interval = _samples(options.partial_seconds)
        self._looked = 0  # how far the last step looked
        self._asked = 0  # how far the last partial reaches
        self._marks: deque[int] = deque()  # flushes
        self._ended = False
        self._decoded_until = 0  # speech up to here is in a partial
        self._utterance = 0  # counts the windows that are over: an answer for one of those comes too late
        self._announced = False  # that speech has begun
        self._concluding = False
        self._listening = asyncio.Lock()
        self._steps: set[asyncio.Task[list[Result]]] = set()
        self._ready: deque[asyncio.Task[list[Result]]] = deque()  # of these, those that have ended, in that order
        self._partials: set[asyncio.Task[list[Result]]] = set()  # of the steps, those of this window
        self._leases = ExitStack()
        self._leased: tuple[Loaded, Lane] | None = None

    async def results(self, audio: AsyncIterator[bytes]) -> AsyncGenerator[Result, None]:
        """See `AsyncBackend.recognize`."""
        iterator = aiter(audio)
        reading: asyncio.Task[bytes | None] | None = None
        try:
            while True:
                self._next_step()
                if reading is None and not self._ended and self._end - self._start < _samples(BACKLOG_SECONDS):
                    reading = asyncio.create_task(_read(iterator), name="whisper-audio")
                waiting: set[asyncio.Task[bytes | None] | asyncio.Task[list[Result]]] = {*self._steps}
                if reading is not None:
                    waiting.add(reading)
                if not waiting:
                    break
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if reading is not None and reading.done():
                    self._take(reading.result())
                    reading = None
                while self._ready:
                    step = self._ready.popleft()
                    self._steps.discard(step)
                    if step.cancelled():
                        continue  # a partial of an utterance that is over
                    for result in step.result():
                        yield result
        finally:
            tasks = [*self._steps] if reading is None else [*self._steps, reading]
            for task in tasks:
                task.cancel()
            try:
                await asyncio.gather(*tasks, return_exceptions=True)
            finally:  # also where even this is cancelled: a lane that stays would count for ever
                self._leases.close()

    # The audio

    @property
    def _end(self) -> int:
        return self._start + len(self._pcm) // 2

    def _take(self, chunk: bytes | None) -> None:
        if chunk is None:
            self._ended = True
        elif chunk:
            self._pcm += chunk
        else:
            self._marks.append(self._end)

    def _samples(self, start: int, end: int) -> npt.NDArray[np.float32]:
        data = bytes(self._pcm[2 * (start - self._start) : 2 * (end - self._start)])
        return np.frombuffer(data, "<i2").astype(np.float32) * np.float32(1 / 32_768)

    def _forget(self, position: int) -> None:
        """The window begins here from now on."""
        del self._pcm[: 2 * (position - self._start)]
        self._start = max(self._start, position)
        self._ears.forget(self._start)

    async def _listen(self, end: int) -> list[Span]:
        """The speech of the window up to `end`."""
        async with self._listening:
            if end > self._ears.heard:
                samples = self._samples(self._ears.heard, end)
                try:
                    listened = asyncio.get_running_loop().run_in_executor(self._pool, self._ears.listen, samples)
                except RuntimeError:  # the pool was shut down
                    raise closed() from None
                await listened
        return self._ears.speech(self._start, end)

    # Steps

    def _next_step(self) -> None:
        if self._concluding:
            return
        if self._marks or (self._ended and self._told < self._end):
            self._concluding = True
            self._begin(self._finish(self._marks[0] if self._marks else self._end), "whisper-final")
        elif not self._ended and self._end - self._looked >= self._interval and not self._listening.locked():
            self._looked = self._end
            self._begin(self._look(self._end), "whisper-look")

    def _begin(self, step: Coroutine[Any, Any, list[Result]], name: str) -> asyncio.Task[list[Result]]:
        task = asyncio.create_task(step, name=name)
        self._steps.add(task)
        task.add_done_callback(self._ready.append)
        return task

    async def _look(self, end: int) -> list[Result]:
        """Half a second more has come."""
        utterance = self._utterance
        speech = await self._listen(end)
        if utterance != self._utterance or self._concluding:
            return []  # it was decided otherwise meanwhile
        if not speech:
            return self._quiet(end)
        if (step := self._due(speech, end)) is not None:
            self._concluding = True
            return await step
        if self._partial_due(end, speech):
            self._asked, self._decoded_until = end, end - _samples(SETTLED_SECONDS)
            self._partials.add(self._begin(self._partial(end, speech, utterance), "whisper-partial"))
        return self._announce(speech[0].start, end)

    def _partial_due(self, end: int, speech: Sequence[Span]) -> bool:
        # While somebody pauses, the window that was decoded last has heard it all.
        if not self._config.partials or speech[-1].end <= self._decoded_until:
            return False
        loaded = self._models.loaded
        stretch = 1.0 if loaded is None else loaded.scheduler.partial_stretch
        return not self._announced or end - self._asked >= self._interval * stretch

    def _quiet(self, end: int) -> list[Result]:
        """Nobody speaks: only what an onset may need is kept."""
        self._forget(max(self._start, end - _samples(2 * LEAD_SECONDS)))
        if self._start - self._told < _samples(QUIET_SECONDS):
            return []
        return [self._final((), self._start, None)]

    def _announce(self, start: int, end: int) -> list[Result]:
        if self._announced or not self._config.partials:
            return []
        self._announced = True
        return [Result("", False, max(start, self._told) / RATE, end / RATE)]

    async def _partial(self, end: int, speech: Sequence[Span], utterance: int) -> list[Result]:
        """What is heard so far."""
        request = await self._request(Kind.PARTIAL, self._start, end)
        committed, position = self._agreement.committed, self._agreement.position
        request = replace(request, prefix=tuple(token for piece in committed for token in piece.tokens))
        try:
            heard = await self._decode(request)
        except Replaced:
            return []
        if utterance != self._utterance:
            return []  # too late
        if rejection := self._judged(heard, speech, committed):
            self._metrics.rejected(rejection.value, Kind.PARTIAL)
            return []
        self._learn_language(heard, speech)
        settled = len(heard.pieces) if end - speech[-1].end >= _samples(SETTLED_SECONDS) else None
        self._agreement.partial(heard.pieces, settled=settled, after=position, seconds=request.seconds)
        text = self._agreement.text
        if not text:
            return []
        return [
            Result(
                text,
                False,
                max(speech[0].start, self._told) / RATE,
                end / RATE,
                stability=self._agreement.stability,
                committed=self._agreement.committed_length,
                language=self._tag(heard.language),
            )
        ]

    async def _finish(self, position: int) -> list[Result]:
        """Everything before a flush, or the end of the audio, becomes final: one utterance after the other."""
        try:
            speech = await self._listen(position)
            step = self._due(speech, position)
        except BaseException:
            self._concluding = False
            raise
        results = await (self._conclude(position, speech) if step is None else step)
        if self._marks and self._told >= self._marks[0]:
            self._marks.popleft()
        return results

    def _due(self, speech: Sequence[Span], end: int) -> Coroutine[Any, Any, list[Result]] | None:
        """What is due before `end`: the end of the first utterance, or a cut. However fast the audio came: the same."""
        if not speech:
            return None
        if not self._agreement.text:
            self._forget(max(self._start, speech[0].start - _samples(LEAD_SECONDS)))
        stops = [span.start for span in speech[1:]] + [end]
        pause = next((span for span, stop in zip(speech, stops, strict=True) if stop - span.end >= self._silence), None)
        longest = self._start + _samples(self._options.window_seconds)
        if pause is not None and pause.end <= longest:
            position = pause.end + self._silence // 2
            return self._conclude(position, [span for span in speech if span.end <= pause.end])
        if end > longest:
            return self._shorten(longest, self._ears.speech(self._start, longest))
        return None

    async def _conclude(self, position: int, speech: Sequence[Span]) -> list[Result]:
        """The utterance is over here: everything before becomes final."""
        try:
            if not speech:
                return [self._final((), position, None)]
            begin = self._start
            last = speech[-1].end + _samples(TAIL_SECONDS)
            heard = await self._hear(begin, min(position, last), speech, quiet=max(0, last - position))
            pieces = self._agreement.rejected() if heard is None else self._agreement.final(heard.pieces)
            return [self._final(_shifted(pieces, begin), position, heard, speech)]
        finally:
            self._over(position)

    async def _shorten(self, end: int, speech: Sequence[Span]) -> list[Result]:
        """The utterance goes on and its window is full: what is surely heard becomes final, and leaves it."""
        begin = self._start
        try:
            heard = await self._hear(begin, end, speech)
            if heard is None:
                pieces = self._agreement.rejected()
                position = max(begin, end - _samples(LEAD_SECONDS))
                self._forget(position)
                return [self._final(_shifted(pieces, begin), position, None, speech)]
            committed = len(self._agreement.committed)
            joined = self._agreement.joined(heard.pieces)
            seconds = (end - begin) / RATE
            gaps = [
                ((before.end - begin) / RATE, (after.start - begin) / RATE)
                for before, after in itertools.pairwise(speech)
            ]
            found = cut(joined, committed, seconds, gaps, self._options.window_seconds)
            if found is not None:
                self._agreement.trim(found.words, found.seconds)
            else:
                found = forced_cut(joined, seconds, gaps, committed=committed)
                self._agreement = Agreement()
            position = min(max(begin + _samples(found.seconds), begin), end)
            self._forget(position)
            return [self._final(_shifted(joined[: found.words], begin), position, heard, speech)]
        finally:
            self._looked = min(self._looked, end)
            self._another_window()

    # Hearing

    async def _hear(self, begin: int, end: int, speech: Sequence[Span], *, quiet: int = 0) -> Hypothesis | None:
        """What was said; None: nothing, or nothing that can be believed.

        `quiet`: samples of silence put behind it, where the audio ends with the word: else that is often not heard.
        """
        request = await self._request(Kind.FINAL, begin, end, quiet)
        failed: list[tuple[Rejection, Hypothesis]] = []
        for temperature in self._options.temperatures:
            heard = await self._decode(replace(request, temperature=temperature))
            rejection = self._judged(heard, speech)
            if not failed and self._doubted(heard, rejection):
                heard, rejection = await self._in_another_language(request, heard, rejection, speech)
            if rejection is None:
                self._learn_language(heard, speech)
                return heard
            self._metrics.rejected(rejection.value, Kind.FINAL)
            if not rejection.retry:
                return None
            failed.append((rejection, heard))
        self._history = ""  # it may have led astray
        return self._best(failed, speech)

    def _best(self, failed: Sequence[tuple[Rejection, Hypothesis]], speech: Sequence[Span]) -> Hypothesis | None:
        """Of what was rejected, what people would still rather read than nothing: somebody has spoken."""
        doubtful = [heard for rejection, heard in failed if rejection is Rejection.LOG_PROBABILITY]
        if doubtful:
            return max(doubtful, key=lambda heard: heard.log_probability)
        for _, heard in failed:
            shorter = replace(heard, pieces=tuple(without_loop(heard.pieces, self._rules)))
            rejection = self._judged(shorter, speech)
            if shorter.pieces and rejection in {None, Rejection.LOG_PROBABILITY}:
                return shorter
        return None

    def _doubted(self, heard: Hypothesis, rejection: Rejection | None) -> bool:
        """Whether the kept language may be the wrong one."""
        doubtful = rejection is not None or heard.log_probability < DOUBTFUL
        return self._detects and self._language is not None and doubtful

    async def _in_another_language(
        self, request: Request, heard: Hypothesis, rejection: Rejection | None, speech: Sequence[Span]
    ) -> tuple[Hypothesis, Rejection | None]:
        other = await self._decode(replace(request, language=None))
        if other.language == self._language or (other.language_probability or 0) < OTHER_LANGUAGE:
            return heard, rejection
        verdict = self._judged(other, speech)
        if verdict is not None or other.log_probability <= heard.log_probability:
            return heard, rejection
        self._language = None  # and learned anew
        return other, None

    def _learn_language(self, heard: Hypothesis, speech: Sequence[Span]) -> None:
        if self._language is None and _seconds(speech) >= LANGUAGE_SECONDS:
            self._language = heard.language

    def _judged(self, heard: Hypothesis, speech: Sequence[Span], prefix: Sequence[Piece] = ()) -> Rejection | None:
        rejection = judge(
            heard,
            speech_seconds=_seconds(speech),
            rules=self._rules,
            prefix=prefix,
        )
        faint = sum(span.evidence for span in speech) < FAINT_SECONDS
        if rejection is None and faint and heard.log_probability < FAINT_LOG_PROBABILITY:
            return Rejection.NO_SPEECH
        return rejection

    async def _request(self, kind: Kind, begin: int, end: int, quiet: int = 0) -> Request:
        loaded, _ = await self._lease()
        fit = kind is Kind.PARTIAL and self._options.partial_window == "fit"
        prompt = loaded.model.prompt(self._lead, self._history if self._options.condition else "")
        samples = np.pad(self._samples(begin, end), (0, quiet))
        return Request(kind, samples, self._language, prompt, fit=fit)

    async def _decode(self, request: Request) -> Hypothesis:
        loaded, lane = await self._lease()
        return await loaded.scheduler.decode(lane, request)

    async def _lease(self) -> tuple[Loaded, Lane]:
        """The model of this utterance."""
        if self._leased is None:
            loaded = await self._models.current()
            if self._leased is None:
                self._leased = loaded, self._leases.enter_context(loaded.lease(self._leave))
        return self._leased

    def _leave(self) -> None:
        """There is another model: an utterance that has begun is finished with this one."""
        if not self._concluding and not any(not task.done() for task in self._partials) and not self._agreement.text:
            self._release()

    def _release(self) -> None:
        self._leases.close()
        self._leased = None

    # Results

    def _over(self, position: int) -> None:
        """The window ends here, and another begins."""
        self._forget(position)
        self._agreement = Agreement()
        self._announced = False
        self._looked = position  # what has come meanwhile may hold the next end already
        self._another_window()
        if self._leased is not None and self._leased[0] is not self._models.loaded:
            self._release()

    def _another_window(self) -> None:
        self._utterance += 1
        self._concluding = False
        for task in self._partials:
            task.cancel()
        self._partials.clear()

    def _final(
        self, pieces: Sequence[Piece], position: int, heard: Hypothesis | None, speech: Sequence[Span] = ()
    ) -> Result:
        """Everything up to `position` is final; the pieces' times are seconds of the stream."""
        start, self._told = self._told / RATE, position
        text = joined_text(pieces).rstrip()
        if not text:
            return Result("", True, start, position / RATE)
        self._history = f"{self._history} {text}"[-HISTORY_CHARACTERS:]
        words = tuple(_words(pieces, start, position / RATE, speech)) if self._config.words else ()
        begin = words[0].start if words else max(start, speech[0].start / RATE) if speech else start
        return Result(
            text,
            True,
            min(begin, position / RATE),
            position / RATE,
            words,
            confidence=None if heard is None else math.exp(min(0.0, heard.log_probability)),
            language=None if heard is None else self._tag(heard.language),
        )

    def _tag(self, language: str) -> str:
        """The language as the client calls it, where that is the one."""
        asked = self._config.language
        return asked if asked.partition("-")[0].lower() == language else language


def _samples(seconds: float) -> int:
    return round(seconds * RATE)


def _seconds(speech: Sequence[Span]) -> float:
    return sum(span.end - span.start for span in speech) / RATE


def _shifted(pieces: Sequence[Piece], begin: int) -> list[Piece]:
    """With times of the stream instead of the window's."""
    offset = begin / RATE
    return [
        replace(
            piece,
            start=None if piece.start is None else piece.start + offset,
            end=None if piece.end is None else piece.end + offset,
        )
        for piece in pieces
    ]


def _words(pieces: Sequence[Piece], start: float, end: float, speech: Sequence[Span]) -> list[Word]:
    """The words with times in order and within the stretch; none begins in the silence before it.

    Whisper's first word tends to begin where its window does, and words before a pause to last until its end.
    """
    words: list[Word] = []
    at = start
    for piece in pieces:
        begin = min(max(piece.start if piece.start is not None else at, at), end)
        stop = min(max(piece.end if piece.end is not None else begin, begin), end)
        for span in speech:
            first, last = span.start / RATE, span.end / RATE
            if begin < first < stop:
                begin = first
                break
            if begin < last < stop <= _next_start(speech, span) / RATE:
                stop = last
                break
        words.append(Word(piece.text.strip(), begin, stop, piece.probability))
        at = stop
    return words


def _next_start(speech: Sequence[Span], span: Span) -> float:
    return next((other.start for other in speech if other.start >= span.end), math.inf)


async def _read(audio: AsyncIterator[bytes]) -> bytes | None:
    return await anext(audio, None)
