"""One backend stream of a session: what the engine is given, when it has to end, its results on the session's clock.

The session opens one after another; each begins where the finals of those before it end.

| The stream ends because | who decides | its last word is held back | the next begins |
|---|---|---|---|
| the client stopped | `ReplayBuffer.close` | no | never |
| of a flush that the engine does not know | `AudioReader` | no | at the mark |
| it lasted long, and a final came | `run`, by `StreamEnd.due` | no: it is abandoned | at that final |
| it lasted long, and it is quiet | `StreamEnd.take` | no | where it ended |
| it lasted too long, in speech | `StreamEnd.take` | yes | with that word |
| speech was left unanswered | `_watch`, by `StreamEnd.ask` | if in speech | where it ended, or with that word |
| no audio came for long | `_watch` | if it broke off in speech | with the next audio |
| the buffer is full, without a final | `AudioReader`, `make_room` | if in speech | where it ended, or with that word |
| it failed, or was given up as stuck | the engine, `_watch` | if its end had come in speech | at its last final |
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable
from typing import Final, NamedTuple

from backends.base import BackendError, Capabilities, RecognitionConfig, Result, Word
from bridge.audio.loudness import quiet_near
from bridge.session.engine import Engine
from bridge.session.replay import ReplayBuffer
from bridge.session.stream_end import StreamEnd

RESULTS_AT_ONCE: Final = 32
"""Results that are taken without a pause for other tasks; fewer than an outbox holds."""

PROBE_VOICE: Final = 0.5
"""Seconds of what may be speech that a healthy backend answers: less may be a cough."""
PROBE_CAP: Final = 60.0
"""Seconds that a backend may leave such audio unanswered at most, once it has shown that it heard no words in it."""
LEAST_LIMIT: Final = 1.0
"""Seconds below which no engine's limit lies: a stream that is ended so early has another fault."""
SHORTER: Final = 0.8
"""Share that is left of a stream's length when its last answer came too late for the engine's limit."""
CAUTIOUS: Final = 4.0
"""Seconds that a stream lasts at least when those before it failed without a final."""
LOOKS: Final = 16
"""Looks at a stream within the time that it has to answer: a stall is noticed by so much later than it might be."""
NEARLY_ALL: Final = 1.0
"""Seconds of audio that may be left for a stream that counts as having been given everything."""
UNHEARD: Final = 0.6
"""Seconds of audio after a final's last word, before a cut in speech, that may hold a word which was not recognized."""
ROUNDED: Final = 0.1
"""Seconds by which a word's times may be off."""
LONGEST_WORD: Final = 3.0
LEAST_PROGRESS: Final = 0.5
"""Seconds. A word that is longer, or so near to the stream's start, is taken as it is: else the same audio might be
heard for ever."""


class Placed(NamedTuple):
    """A result and its place on the session's clock, in samples; its words' times are seconds of that clock, too.

    `covered`: up to where all is final if the result is, which may be in the silence behind `end`.
    """

    result: Result
    start: int
    end: int
    covered: int


class Experience:
    """What a session learns of its engine from one stream to the next.

    `patience`: seconds that it may leave speech unanswered, ever more while it hears no words in the noise (None: any).
    `longest`: seconds that a stream may last, less than the engine declares if two were ended for that (None: any).
    """

    __slots__ = (
        "_cautious",
        "_ended_at",
        "_patience",
        "broken_off",
        "longest",
        "patience",
    )

    def __init__(self, can: Capabilities) -> None:
        self.patience = self._patience = can.answer_seconds
        self.longest = can.max_stream_seconds
        self._ended_at: float | None = None
        self._cautious: float | None = None
        self.broken_off = 0
        """Session position at which audio last broke off in speech: the word there needs what follows to be heard."""

    def advanced(self) -> None:
        """A stream came to its end."""
        self._cautious = None

    def failed(self, age: float, *, progress: bool) -> None:
        """A stream of so many seconds failed. Without a final, the next is ended early, so that there is one."""
        if progress:
            self._cautious = None
        elif age >= LEAST_LIMIT:
            self._cautious = max(CAUTIOUS, min(age, self._cautious or age) / 2)

    @property
    def stream_seconds(self) -> float | None:
        """How long the next stream should last at most."""
        if self.longest is None or self._cautious is None:
            return self.longest
        return min(self.longest, self._cautious)

    def heard_words(self) -> None:
        """The engine recognized something."""
        self.patience = self._patience

    def heard_nothing(self) -> None:
        """It was asked, and there was nothing."""
        if self.patience is not None:
            self.patience = min(2 * self.patience, max(PROBE_CAP, self.patience))

    def ended_by_limit(self, age: float, *, late: bool = False) -> None:
        """The engine ended a stream of so many seconds because it had lasted too long. The second time it counts.

        `late`: its audio had been ended before that, too late for the answer. The next must end earlier than this one,
        or they might all be ended so, and speech without finals never come forward.
        """
        if self.longest is None or age < LEAST_LIMIT:
            return
        if late:
            self.longest = min(self.longest, max(LEAST_LIMIT, SHORTER * age))
        elif self._ended_at is not None:
            self.longest = min(self.longest, max(age, self._ended_at))
        self._ended_at = age


class BackendStream:
    """A stream over the audio of `buffer` that no final covers. `run` is its whole life; `publish` gets each result.

    `stall_seconds`: how long the engine may leave waiting audio untouched, or the end of its audio unanswered.
    """

    __slots__ = (
        "_asked",
        "_buffer",
        "_end",
        "_engine",
        "_experience",
        "_held",
        "_idle_seconds",
        "_loop",
        "_publish",
        "_rate",
        "_results",
        "_scope",
        "_seen",
        "_seen_at",
        "_stalled",
        "_unanswered_seconds",
        "_untouched_seconds",
        "_watch_handle",
        "_words",
        "reader",
    )

    def __init__(
        self,
        engine: Engine,
        buffer: ReplayBuffer,
        experience: Experience,
        *,
        stall_seconds: float,
        publish: Callable[[Placed], None],
    ) -> None:
        can = engine.capabilities
        self._loop = asyncio.get_running_loop()
        # An engine that can be flushed and knows no longest stream is never ended in the middle of audio.
        self._end = (
            None
            if can.flush and can.max_stream_seconds is None and can.idle_seconds is None
            else StreamEnd(engine.sample_rate, experience.stream_seconds, self._loop.time)
        )
        self.reader = buffer.reader(self._end)
        self.reader.flush_marks = can.flush
        self.reader.beyond = experience.broken_off
        self._engine = engine
        self._buffer = buffer
        self._rate = engine.sample_rate
        self._experience = experience
        self._untouched_seconds = stall_seconds
        self._unanswered_seconds = min(stall_seconds, can.answer_seconds or stall_seconds)
        self._idle_seconds = can.idle_seconds
        self._publish = publish
        self._held: Result | None = None  # the last final of a stream that was ended in speech
        self._results = 0
        self._asked = False  # it was ended to see whether it answers
        self._words = False  # it has recognized something (since it was asked)
        self._stalled = False
        self._scope = asyncio.timeout(None)
        self._seen: tuple[int, int] = (0, 0)
        self._seen_at = self._loop.time()
        self._watch_handle: asyncio.TimerHandle

    def make_room(self) -> None:
        """The replay buffer is nearly full and no final came: ask for one, or end the stream so that it does."""
        if self._engine.capabilities.flush:
            if not self._buffer.flushing:  # one is enough: each cuts where it stands
                self._buffer.flush()
        elif self._buffer.unread < NEARLY_ALL * self._rate:  # else it is still being given what was held
            self.reader.finish_soon()

    async def run(self, config: RecognitionConfig) -> None:
        """Recognize until the stream has ended and all that it was given is final, or until renewing it is due.

        Raises:
            BackendError: it ended before that. What was published stands; another stream goes on from there.
        """
        # Words tell where to go on after a stream that was ended in speech; partials, that a stream still hears.
        words = config.words or self._end is not None
        partials = config.partials or self._engine.capabilities.answer_seconds is not None
        if (words, partials) != (config.words, config.partials):
            config = dataclasses.replace(config, words=words, partials=partials)
        self._watch_later()
        try:
            renewed = await self._read(config)
        except BackendError as exc:
            if exc.code == "stream_limit" and self._end is not None:
                self._experience.ended_by_limit(self._end.age, late=self.reader.ended)
            self._release()
            if self._end is not None:
                self._experience.failed(self._end.age, progress=self._buffer.start > self.reader.base)
            raise
        finally:
            self._watch_handle.cancel()
            self.reader.detach()
        if not renewed and not self.reader.ended:
            raise BackendError("the stream ended early", code="ended_early", retryable=True)
        self._experience.advanced()
        if renewed:
            return
        if self._asked and not self._words:
            self._experience.heard_nothing()
        if not self._release():
            self._place(Result("", True, 0.0, self._unspoken))

    async def _read(self, config: RecognitionConfig) -> bool:
        """Take every result. Returns whether it stopped at a final because the stream has lasted long enough."""
        try:
            async with self._scope, contextlib.aclosing(self._engine.recognize(config, self.reader)) as results:
                async for result in results:
                    self._take(result)
                    due = self._end is not None and self._end.due and not self._end.in_speech
                    if result.is_final and due and self.reader.reading:
                        return True
                    if self._results % RESULTS_AT_ONCE == 0:
                        await asyncio.sleep(0)  # an engine that never waits must not keep receivers from reading
        except TimeoutError as exc:
            if not self._stalled:
                raise
            raise BackendError("the stream does not answer", code="stalled", retryable=True) from exc
        return False

    # Results

    def _take(self, result: Result) -> None:
        self._results += 1
        if result.text:
            self._words = True
            self._experience.heard_words()
        if self._end is not None:
            self._end.answered()
            if self._end.in_speech and result.is_final:
                # The last one with text may hold a word that was cut in two; which is the last, the end tells.
                if result.text:
                    previous, self._held = self._held, result
                    if previous is not None:
                        self._place(previous)
                return
            if self._end.in_speech and result.committed is not None:
                # Of the last word, which may be cut in two, the next stream decides.
                result = dataclasses.replace(result, committed=None)
        self._place(result)

    def _release(self) -> bool:
        """Publish what was held back, without the word that may have been cut; returns whether there was something."""
        held, self._held = self._held, None
        if held is None:
            return False
        kept = without_cut_word(held, self._given)
        if len(kept.words) < len(held.words):
            kept = self._ended_between_words(kept)
        self._place(kept)
        return True

    def _ended_between_words(self, result: Result) -> Result:
        """With its end moved to a quiet place nearby: engines round the times of words, Google's to 0.1 s."""
        at = self._at(result.end, end=True)
        first = max(self._buffer.start, at - round(ROUNDED * self._rate))
        pcm = self._buffer.audio(first, at + round(ROUNDED * self._rate))
        end = result.end + (first + quiet_near(pcm, at - first, self._rate) - at) / self._rate
        words = tuple(dataclasses.replace(w, start=min(w.start, end), end=min(w.end, end)) for w in result.words)
        return dataclasses.replace(result, end=end, words=words)

    @property
    def _given(self) -> float:
        """Seconds of audio that the stream was given."""
        return self.reader.given / self._rate

    @property
    def _unspoken(self) -> float:
        """Seconds of audio that surely held no speech, where nothing was heard: a cut may have come in a first word."""
        in_speech = self._end is not None and self._end.in_speech
        return self._given - UNHEARD if in_speech and self._given > 2 * UNHEARD else self._given

    def _place(self, result: Result) -> None:
        """Publish it, clipped to what the stream was given and to what is not final yet."""
        first = self._buffer.start
        end = max(first, self._at(result.end, end=True))
        start = min(max(first, self._at(result.start)), end)
        if result.words:
            shift = self.reader.shift
            words = tuple(self._placed_word(word, shift) for word in result.words)
            if words != result.words:
                result = dataclasses.replace(result, words=words)
        self._publish(Placed(result, start, end, self.reader.covered(end)))

    def _at(self, seconds: float, *, end: bool = False) -> int:
        """A time of this stream as a position of the session."""
        return self.reader.place(min(round(seconds * self._rate), self.reader.given), end=end)

    def _placed_word(self, word: Word, shift: int | None) -> Word:
        if shift is not None:
            return placed_word(word, shift, self._rate)
        rate = self._rate
        start = self.reader.place(round(word.start * rate)) / rate
        end = self.reader.place(round(word.end * rate), end=True) / rate
        return _rounded(word, start, end)

    # Watching the clock

    def _watch_later(self) -> None:
        limits = [self._untouched_seconds / 4, self._unanswered_seconds / LOOKS]
        if self._idle_seconds is not None:
            limits.append(self._idle_seconds / 4)
        self._watch_handle = self._loop.call_later(max(0.01, min(limits)), self._watch)

    def _watch(self) -> None:
        """End the stream if it gets no audio, ask it if it leaves speech unanswered, give it up if it is stuck."""
        now = self._loop.time()
        reader = self.reader
        if reader.reading:
            if self._idle(now):
                if self._end is not None and self._end.voice:  # the client went silent in the middle of a word
                    self._end.in_speech, self._experience.broken_off = True, self._buffer.end
                reader.finish()
            elif self._mute(now) and not self._asked:
                self._asked, self._words = True, False
                reader.finish_soon()
        seen = (reader.given, self._results)  # not its position: silence is passed over without the engine
        owing = self._owing()
        if seen != self._seen or owing is None:
            self._seen, self._seen_at = seen, now
        elif now - self._seen_at >= owing and not self._stalled:
            self._stalled = True  # once: closing the stream may take its time
            self._scope.reschedule(now)
        self._watch_later()

    def _idle(self, now: float) -> bool:
        """Whether the stream has read all there is, and nothing came for too long."""
        return (
            self._idle_seconds is not None
            and self.reader.given > 0
            and not self.reader.available
            and now - self.reader.arrived >= self._idle_seconds
        )

    def _mute(self, now: float) -> bool:
        """Whether the stream was given speech and said nothing for too long."""
        end, patience = self._end, self._experience.patience
        return (
            end is not None
            and patience is not None
            and end.unanswered_since is not None
            and end.unanswered_voice >= PROBE_VOICE
            and now - end.unanswered_since >= patience
        )

    def _owing(self) -> float | None:
        """How long the engine may take for what it owes; None if it owes nothing.

        It owes the end of a stream whose audio has ended, the answer to a flush, and to read what waits for it.
        """
        if self.reader.ended:
            return self._unanswered_seconds
        if self.reader.waiting:
            return None
        if self.reader.awaited or self.reader.flushed > self._buffer.start:
            return self._untouched_seconds
        return None


def placed_word(word: Word, shift: int, rate: int) -> Word:
    """The word of a stream that begins `shift` samples into the session; its times in whole milliseconds."""
    if shift == 0 and _is_rounded(word):
        return word  # a sample is less than a millisecond: it would come out as it is
    return _rounded(word, (round(word.start * rate) + shift) / rate, (round(word.end * rate) + shift) / rate)


def _rounded(word: Word, start: float, end: float) -> Word:
    confidence = None if word.confidence is None else round(word.confidence, 3)
    return Word(word.text, round(start, 3), round(max(start, end), 3), confidence, word.speaker)


def _is_rounded(word: Word) -> bool:
    """Whether its times are whole milliseconds, and in order."""
    start, end, confidence = word.start, word.end, word.confidence
    return (
        0 <= start <= end
        # As `round(x, 3) == x`, at a third of its time: the nearest number to so many thousandths is that quotient.
        and int(start * 1_000 + 0.5) / 1_000 == start
        and int(end * 1_000 + 0.5) / 1_000 == end
        and (confidence is None or int(confidence * 1_000 + 0.5) / 1_000 == confidence)
    )


def without_cut_word(result: Result, given: float) -> Result:
    """What is certain of a stream's last final if its audio, `given` seconds, was ended in speech.

    The last word may be cut in two, so it is left to the next stream, which begins with it. Where audio follows that
    word, that may be the beginning of one that was not recognized: then the next stream begins behind the word.
    """
    if not result.words:
        return result  # the engine times no words: nothing tells where to begin
    last = result.words[-1]
    if given - last.end > UNHEARD:
        return dataclasses.replace(result, end=last.end)
    if last.end - last.start > LONGEST_WORD or last.start < LEAST_PROGRESS:
        return dataclasses.replace(result, end=last.end)
    at = result.text.rfind(last.text.strip())  # punctuation may follow it in the text
    if at < 0:
        return result  # it is written otherwise in the text: better cut than said twice
    return dataclasses.replace(result, text=result.text[:at].rstrip(), words=result.words[:-1], end=last.start)
