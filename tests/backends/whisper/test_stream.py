"""From audio to results: every word once and in its place, however it is cut and however long decoding takes."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.base import FLUSH, BackendError, RecognitionConfig
from backends.whisper.model import Request
from backends.whisper.options import WhisperOptions
from backends.whisper.stream import BACKLOG_SECONDS
from backends.whisper.window import RATE, Hypothesis, Kind, Piece
from tests.backends.whisper.harness import Heard, cut, flushed
from tests.backends.whisper.oracle import Bench, Script, ears, feed

pytestmark = pytest.mark.usefixtures("ears")
__all__ = ["ears"]

EXACT = 0.08
"""Seconds that a word's time may be off: what the detector's frames and the rounding of windows make of exact ones."""


# Random scripts


@dataclass(frozen=True)
class Case:
    """A script and how it comes. `sizes` of chunks in samples, taken in turn; flushes stand behind these words."""

    script: Script
    sizes: tuple[int, ...]
    flushes: tuple[int, ...]
    window: float
    turns: int
    noise: float
    seed: int

    def chunks(self, sizes: tuple[int, ...] | None = None) -> Iterator[bytes]:
        audio = self.script.pcm()
        marks = [2 * self.mark(word) for word in self.flushes]
        at = 0
        sizes = sizes or self.sizes
        for i in range(10**6):
            stop = min([at + 2 * sizes[i % len(sizes)], len(audio), *(mark for mark in marks[:1])])
            yield audio[at:stop] or b"\0\0"[:0]
            at = stop
            if marks and at == marks[0]:
                marks.pop(0)
                yield FLUSH
            if at == len(audio):
                return

    def mark(self, word: int) -> int:
        """In the middle of the silence behind a word, in samples."""
        words = self.script.words
        after = words[word + 1].start if word + 1 < len(words) else self.script.length
        return (words[word].end + after) // 2

    @property
    def longest_run(self) -> float:
        """Seconds of the longest utterance: speech without a pause that would end it."""
        longest = start = end = 0
        for word in self.script.words:
            if word.start - end > 0.9 * RATE:
                start = word.start
            end = word.end
            longest = max(longest, end - start)
        return longest / RATE

    def bench(self, **changes: float) -> Bench:
        return Bench.of(
            self.script,
            options=WhisperOptions(window_seconds=self.window),
            chance=random.Random(self.seed + int(changes.get("seed", 0))),
            turns=int(changes.get("turns", self.turns)),
            noise=self.noise,
        )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    pauses = st.one_of(st.floats(0.03, 0.25), st.floats(0.03, 0.25), st.floats(0.25, 3.0))
    words = draw(st.lists(st.tuples(pauses, st.floats(0.22, 0.6)), min_size=1, max_size=40))
    script = Script.of(*words, tail=draw(st.sampled_from([0.0, 0.1, 0.4, 1.5])))
    flushes = draw(st.sets(st.integers(0, len(words) - 1), max_size=3))
    wide = [
        i
        for i in sorted(flushes)
        if (script.words[i + 1].start if i + 1 < len(words) else script.length) - script.words[i].end > 0.1 * RATE
    ]
    return Case(
        script,
        draw(st.sampled_from([(1_600,), (320, 480), (8_000,), (160, 3_333, 20_000), (400_000,)])),
        tuple(wide),
        draw(st.sampled_from([4.0, 8.0, 20.0])),
        draw(st.sampled_from([0, 2, 10, 60])),
        draw(st.sampled_from([0.0, 0.3])),
        draw(st.integers(0, 1_000)),
    )


def played(case: Case, sizes: tuple[int, ...] | None = None, **changes: float) -> tuple[Heard, Bench]:
    bench = case.bench(**changes)

    async def play() -> Heard:
        async with asyncio.timeout(20):
            return await bench.hear(feed(case.chunks(sizes), random.Random(case.seed)))

    return asyncio.run(play()), bench


@given(cases())
@settings(max_examples=100)
def test_every_word_once_and_in_its_place(case: Case) -> None:
    heard, bench = played(case)
    assert heard.text == case.script.text
    heard.assert_in_order(case.script.seconds)
    words = [word for final in heard.finals for word in final.words]
    for word, spoken in zip(words, case.script.words, strict=True):
        assert word.start == pytest.approx(spoken.start / RATE, abs=EXACT)
        assert word.end == pytest.approx(spoken.end / RATE, abs=EXACT)
    ends = [final.end for final in heard.finals]
    for word_behind in case.flushes:  # a flush is answered with a final that reaches up to it
        assert min(abs(case.mark(word_behind) / RATE - end) for end in ends) < 0.001
    assert all(request.seconds <= case.window + 0.5 for request in bench.oracle.requests)
    for final in heard.finals:
        assert final.text or not final.words


@given(cases())
@settings(max_examples=40)
def test_the_same_finals_however_it_comes(case: Case) -> None:
    """Also the same ends, unless a window was cut: where that is depends on the words that were committed."""
    heard, _ = played(case)
    for sizes, turns in (((777,), 0), ((100_000,), 30)):
        other, _ = played(case, sizes, turns=turns, seed=7)
        assert other.text == heard.text
        if case.longest_run < case.window - 1.5:
            assert [(f.text, f.start, f.end) for f in other.finals] == [(f.text, f.start, f.end) for f in heard.finals]


@given(cases(), st.integers(0, 400), st.booleans())
@settings(max_examples=100)
def test_whenever_it_ends_nothing_is_left(case: Case, after: int, closed: bool) -> None:
    """Cancelled while it waits, or closed between two results."""
    bench = case.bench(turns=20)

    async def play() -> None:
        before = asyncio.all_tasks()
        source = feed(case.chunks(), random.Random(case.seed))
        results = bench.stream.results(source)

        async def read() -> None:
            count = 0
            async with contextlib.aclosing(results):
                async for _ in results:
                    count += 1
                    if closed and count > after % 7:
                        return

        reading = asyncio.create_task(read())
        for _ in range(after):
            await asyncio.sleep(0)
        if not closed:
            reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading
        bench.assert_left(before)

    asyncio.run(play())


# One thing at a time


def sentence(words: int = 6, pause: float = 0.1, first: float = 0.3, tail: float = 0.5) -> Script:
    """Words without a pause between them."""
    return Script.of((first, 0.3), *[(pause, 0.3)] * (words - 1), tail=tail)


async def test_partials_grow_and_say_what_is_certain() -> None:
    bench = Bench.of(sentence(12))
    heard = await bench.hear(cut(bench.script.pcm()))
    assert len(heard.partials) >= 4
    for one, other in pairwise(heard.partials):
        assert other.end > one.end
        assert len(other.text) >= len(one.text)
    committed = [partial.committed or 0 for partial in heard.partials]
    assert committed == sorted(committed)
    assert committed[-1] > 0
    assert all(partial.stability is not None and 0 <= partial.stability <= 1 for partial in heard.partials)
    assert heard.finals[-1].confidence == pytest.approx(0.905, abs=0.01)


async def test_committed_words_are_the_prefix_of_the_next_partial() -> None:
    bench = Bench.of(sentence(12))
    await bench.hear(cut(bench.script.pcm()))
    partials = [request for request in bench.oracle.requests if request.kind is Kind.PARTIAL]
    assert partials[0].prefix == ()
    assert partials[-1].prefix
    for one, other in pairwise(partials):
        assert other.prefix[: len(one.prefix)] == one.prefix
    assert all(not request.prefix for request in bench.oracle.requests if request.kind is Kind.FINAL)


async def test_speech_is_announced_once_in_an_utterance() -> None:
    bench = Bench.of(Script.of((0.5, 0.3), (0.1, 0.3), (2.0, 0.3), (0.1, 0.3), tail=1.5))
    heard = await bench.hear(cut(bench.script.pcm()))
    announced = [result for result in heard.results if not result.is_final and not result.text]
    assert [result.start for result in announced] == pytest.approx([0.5, 3.2], abs=0.05)
    assert heard.utterances == [" ".join(w.text for w in bench.script.words[i : i + 2]) for i in (0, 2)]


async def test_without_partials_none_is_decoded() -> None:
    bench = Bench.of(sentence(12), config=RecognitionConfig(partials=False))
    heard = await bench.hear(cut(bench.script.pcm()))
    assert [result.is_final for result in heard.results] == [True]
    assert {request.kind for request in bench.oracle.requests} == {Kind.FINAL}


async def test_without_words_there_are_none() -> None:
    bench = Bench.of(sentence(), config=RecognitionConfig(words=False))
    heard = await bench.hear(cut(bench.script.pcm()))
    assert heard.text == bench.script.text
    assert not any(final.words for final in heard.finals)


@pytest.mark.parametrize(("pause", "utterances"), [(0.5, 1), (1.1, 2)])
async def test_the_session_says_how_much_silence_ends_an_utterance(pause: float, utterances: int) -> None:
    bench = Bench.of(
        Script.of((0.1, 0.3), (0.1, 0.3), (pause, 0.3), (0.1, 0.3)), config=RecognitionConfig(silence_seconds=1.0)
    )
    assert len((await bench.hear(cut(bench.script.pcm()))).utterances) == utterances


async def test_a_pause_asks_for_no_more_partials() -> None:
    """What was decoded last has heard it all."""
    bench = Bench.of(Script.of((0.1, 0.4), (0.1, 0.4), tail=6), config=RecognitionConfig(silence_seconds=5.0), turns=0)
    await bench.hear(cut(bench.script.pcm()))
    partials = [request for request in bench.oracle.requests if request.kind is Kind.PARTIAL]
    assert 1 <= len(partials) <= 4


async def test_silence_is_closed_as_it_passes_and_nothing_is_decoded() -> None:
    bench = Bench.of(Script.of(tail=60))
    heard = await bench.hear(cut(bench.script.pcm()))
    assert not bench.oracle.requests
    assert len(heard.finals) >= 10
    assert not heard.text
    heard.assert_in_order(60)


async def test_no_audio() -> None:
    heard = await Bench.of(Script.of()).hear([])
    assert heard.results == []


async def test_flushes_in_silence_and_in_a_row() -> None:
    script = Script.of((1.0, 0.3), (0.1, 0.3), tail=1.0)
    bench = Bench.of(script)
    audio = script.pcm()
    heard = await bench.hear([FLUSH, audio[:16_000], FLUSH, FLUSH, *cut(audio[16_000:]), FLUSH, FLUSH])
    assert heard.text == script.text
    assert [final.end for final in heard.finals][:3] == [0.0, 0.5, 0.5]
    heard.assert_in_order(script.seconds)


async def test_a_flush_in_the_middle_of_a_run_is_a_boundary() -> None:
    script = sentence(8, pause=0.2)
    position = (script.words[3].end + script.words[4].start) / 2 / RATE
    heard = await Bench.of(script).hear(flushed(script.pcm(), position))
    assert heard.utterances == [" ".join(w.text for w in script.words[i : i + 4]) for i in (0, 4)]


async def test_a_flush_is_answered_while_no_more_audio_comes() -> None:
    script = sentence()
    bench = Bench.of(script)
    answered = asyncio.Event()

    async def audio() -> AsyncIterator[bytes]:
        yield script.pcm()
        yield FLUSH
        await answered.wait()

    async with asyncio.timeout(5):
        async for result in bench.stream.results(audio()):
            if result.is_final:
                assert result.text == script.text
                assert result.end == script.seconds
                answered.set()


@pytest.mark.parametrize("tail", [0.0, 0.1, 2.0])
async def test_a_final_ends_in_silence_although_the_audio_ends_with_the_word(tail: float) -> None:
    """Whisper tends to leave out a word that its window ends with."""
    bench = Bench.of(sentence(tail=tail))
    heard = await bench.hear(cut(bench.script.pcm()))
    (final,) = (request for request in bench.oracle.requests if request.kind is Kind.FINAL)
    quiet = round(0.35 * RATE)
    assert not final.samples[-quiet:].any()
    assert final.samples[-round(0.5 * RATE) :].any()
    assert heard.text == bench.script.text
    heard.assert_in_order(bench.script.seconds)


async def test_a_slow_decoder_slows_the_sender() -> None:
    """Not the memory grows: audio is left where it comes from."""
    script = Script.of(*[(0.1, 0.3)] * 400, tail=1.0)
    taken = 0
    holds = asyncio.Event()

    async def audio() -> AsyncIterator[bytes]:
        nonlocal taken
        for chunk in cut(script.pcm()):
            taken += len(chunk)
            yield chunk

    bench = Bench.of(script, gate=lambda request: holds.wait())
    reading = asyncio.create_task(bench.hear(audio()))
    for _ in range(3_000):
        await asyncio.sleep(0)
    assert taken / 2 / RATE <= BACKLOG_SECONDS + 0.2
    holds.set()
    async with asyncio.timeout(20):
        assert (await reading).text == script.text


@pytest.mark.parametrize("pause", [0.1, 1.0])
async def test_more_audio_at_once_than_may_wait(pause: float) -> None:
    """As when a session is replayed: all of it is heard, although no more comes."""
    script = Script.of(*[(pause, 0.3)] * 100, tail=1.0)
    bench = Bench.of(script)
    heard = Heard()
    open_end = asyncio.get_running_loop().create_future()

    async def audio() -> AsyncIterator[bytes]:
        yield script.pcm()
        await open_end

    async with asyncio.timeout(20), contextlib.aclosing(bench.stream.results(audio())) as results:
        async for result in results:
            heard.take(result)
            if len(heard.text.split()) > 90:  # the last words may go on
                break
    assert len(heard.text.split()) > 90
    assert script.text.startswith(heard.text)


async def test_a_long_run_that_comes_at_once_is_cut_like_any_other() -> None:
    """The pause behind it is known already, and too far away."""
    script = Script.of(*[(0.1, 0.3)] * 60, (1.5, 0.3), tail=1.5)
    bench = Bench.of(script, options=WhisperOptions(window_seconds=8.0))
    heard = await bench.hear([script.pcm()])
    assert heard.text == script.text
    assert max(request.seconds for request in bench.oracle.requests) < 8.5


async def test_the_prompt() -> None:
    """Phrases and the initial prompt, then what was said: only if it is wanted."""
    script = Script.of((0.1, 0.3), (0.1, 0.3), (1.5, 0.3), (0.1, 0.3), tail=1.0)
    for condition in (True, False):
        bench = Bench.of(
            script,
            config=RecognitionConfig(phrases=("Ada", "Boole")),
            options=WhisperOptions(initial_prompt="A meeting.", condition=condition),
        )
        heard = await bench.hear(cut(script.pcm()))
        assert {lead for lead, _ in bench.library.prompts} == {"Ada, Boole A meeting."}
        first, last = bench.library.prompts[0][1], bench.library.prompts[-1][1]
        assert (first, last.strip()) == ("", heard.utterances[0] if condition else "")


async def test_an_error_of_the_decoder_ends_the_stream_and_leaves_nothing() -> None:
    for kind in Kind:
        error = BackendError("it broke", code="worker_died", retryable=True)
        bench = Bench.of(sentence(12), answer=lambda request, _, k=kind, e=error: e if request.kind is k else _)
        before = asyncio.all_tasks()
        with pytest.raises(BackendError) as caught:
            await bench.hear(cut(bench.script.pcm()))
        assert caught.value is error
        bench.assert_left(before)


async def test_an_error_of_the_audio_ends_the_stream_and_leaves_nothing() -> None:
    async def audio() -> AsyncIterator[bytes]:
        yield sentence(12).pcm()[:64_000]
        raise OSError("gone")

    bench = Bench.of(sentence(12), turns=30)
    before = asyncio.all_tasks()
    with pytest.raises(OSError, match="gone"):
        await bench.hear(audio())
    bench.assert_left(before)


# What the guards reject


def saying(*texts: str) -> tuple[Piece, ...]:
    return tuple(Piece(f" {text}", (1_000 + i,), 0.3 + 0.2 * i, 0.5 + 0.2 * i, 0.5) for i, text in enumerate(texts))


async def test_silence_that_was_taken_for_words() -> None:
    def imagined(_: Request, heard: Hypothesis) -> Hypothesis:
        return replace(heard, pieces=saying("Thank", "you."), log_probability=-1.5, no_speech_probability=0.9)

    bench = Bench.of(sentence(3), answer=imagined)
    heard = await bench.hear(cut(bench.script.pcm()))
    assert heard.text == ""
    assert not heard.partials
    heard.assert_in_order(bench.script.seconds)
    assert {reason for reason, _ in bench.metrics.reasons} == {"no_speech"}
    # Another temperature would not help.
    assert [r.temperature for r in bench.oracle.requests if r.kind is Kind.FINAL] == [0.0]


async def test_a_loop_is_tried_again_hotter() -> None:
    def looping(request: Request, heard: Hypothesis) -> Hypothesis:
        loops = request.kind is Kind.FINAL and request.temperature < 0.5
        return replace(heard, pieces=saying(*["again"] * 12)) if loops else heard

    bench = Bench.of(sentence(), answer=looping, options=WhisperOptions(temperatures=(0.0, 0.3, 0.6, 0.9)))
    heard = await bench.hear(cut(bench.script.pcm()))
    assert heard.text == bench.script.text
    assert [r.temperature for r in bench.oracle.requests if r.kind is Kind.FINAL] == [0.0, 0.3, 0.6]
    assert bench.metrics.reasons.count(("loop", Kind.FINAL)) == 2


async def test_a_loop_at_every_temperature_is_said_once() -> None:
    def looping(_: Request, heard: Hypothesis) -> Hypothesis:
        return replace(heard, pieces=saying("well", *["again"] * 12))

    bench = Bench.of(sentence(), answer=looping)
    assert (await bench.hear(cut(bench.script.pcm()))).text == "well again"


async def test_doubtful_words_are_better_than_none() -> None:
    def doubtful(request: Request, heard: Hypothesis) -> Hypothesis:
        text = f"at{round(10 * request.temperature)}"
        return replace(heard, pieces=saying(text), log_probability=-1.5 + request.temperature / 2)

    bench = Bench.of(sentence(), answer=doubtful, options=WhisperOptions(temperatures=(0.0, 0.8, 0.4)))
    heard = await bench.hear(cut(bench.script.pcm()))
    assert heard.text == "at8"  # the likeliest
    assert not heard.partials


async def test_committed_words_stay_although_the_final_is_rejected() -> None:
    def late(request: Request, heard: Hypothesis) -> Hypothesis:
        rejected = request.kind is Kind.FINAL
        return replace(heard, log_probability=-3.0, no_speech_probability=0.9) if rejected else heard

    bench = Bench.of(sentence(12), answer=late)
    heard = await bench.hear(cut(bench.script.pcm()))
    assert heard.text
    assert bench.script.text.startswith(heard.text)
    assert heard.promises.committed == ""


# Languages


async def test_a_detected_language_is_kept_once_enough_was_said() -> None:
    script = Script.of((0.1, 0.4), *[(0.1, 0.4)] * 9, (1.5, 0.4), tail=1.0)
    bench = Bench.of(script, config=RecognitionConfig(language="auto"), language=None, heard_as="de")
    heard = await bench.hear(cut(script.pcm()))
    assert {final.language for final in heard.finals if final.text} == {"de"}
    finals = [request.language for request in bench.oracle.requests]
    assert finals[0] is None
    assert finals[-1] == "de"


async def test_little_speech_keeps_no_language() -> None:
    script = Script.of((0.1, 0.4), (1.5, 0.4), (1.5, 0.4), tail=1.0)
    bench = Bench.of(script, config=RecognitionConfig(language="auto"), language=None)
    await bench.hear(cut(script.pcm()))
    assert {request.language for request in bench.oracle.requests} == {None}


async def test_another_language_is_believed_where_the_words_are_doubtful() -> None:
    """Somebody else speaks: what is kept makes bad sense of it."""
    script = Script.of(*[(0.1, 0.4)] * 10, (1.5, 0.4), *[(0.1, 0.4)] * 9, tail=1.0)

    def in_german(request: Request, heard: Hypothesis) -> Hypothesis:
        german = bool(heard.pieces) and heard.pieces[0].tokens[0] > 10
        if not german or request.prefix:
            return heard
        if request.language is None:
            return replace(heard, language="de", language_probability=0.95)
        return heard if request.language == "de" else replace(heard, log_probability=-0.9)

    bench = Bench.of(script, config=RecognitionConfig(language="auto"), language=None, answer=in_german)
    heard = await bench.hear(cut(script.pcm()))
    assert [final.language for final in heard.finals if final.text] == ["en", "de"]
    assert heard.text == script.text


async def test_a_language_that_was_asked_for_is_never_left() -> None:
    bench = Bench.of(
        sentence(12),
        config=RecognitionConfig(language="en-GB"),
        answer=lambda request, heard: replace(heard, log_probability=-0.9),
    )
    heard = await bench.hear(cut(bench.script.pcm()))
    assert {request.language for request in bench.oracle.requests} == {"en"}
    assert {final.language for final in heard.finals if final.text} == {"en-GB"}


# Another model


async def test_a_stream_between_two_utterances_leaves_at_once() -> None:
    script = Script.of((0.1, 0.4), (0.1, 0.4), (2.5, 0.4), (0.1, 0.4), tail=1.0)
    bench = Bench.of(script)
    old = bench.library.loaded
    left: list[bool] = []

    async def audio() -> AsyncIterator[bytes]:
        for i, chunk in enumerate(cut(script.pcm())):
            if i == 25:
                bench.library.switch()
                left.append(old.idle.is_set())
            for _ in range(4):
                await asyncio.sleep(0)
            yield chunk

    heard = await bench.hear(audio())
    assert left == [True]
    assert heard.text == script.text


async def test_an_utterance_that_has_begun_is_finished_with_its_model() -> None:
    script = Script.of((0.1, 0.4), *[(0.1, 0.4)] * 9, (1.5, 0.4), tail=1.0)
    bench = Bench.of(script)
    old = bench.library.loaded
    left: list[bool] = []

    async def audio() -> AsyncIterator[bytes]:
        for i, chunk in enumerate(cut(script.pcm())):
            if i == 30:
                bench.library.switch()
            if i in {30, 45, 65}:
                left.append(old.idle.is_set())
            for _ in range(8):
                await asyncio.sleep(0)
            yield chunk

    heard = await bench.hear(audio())
    assert left == [False, False, True]
    assert heard.text == script.text
    assert old.idle.is_set()
