"""One backend stream: renewed before its limit, ended when idle, asked when mute, and no word lost at any of these."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from backends.base import BackendError, Capabilities, RecognitionConfig, Result, Word
from backends.scripted import ScriptedBackend, marker_audio
from bridge.protocols.events import Final, Partial, Start
from bridge.session.limits import SessionLimits
from bridge.session.stream import UNHEARD, Experience, without_cut_word
from tests.session.harness import FunctionEngine, Running, limited, markers, session_on, words


def final_words(running: Running) -> list[Word]:
    return [word for e in running.events if isinstance(e, Final) for word in e.words]


@pytest.mark.parametrize("pause", [0.3, 0.06, 0.0])
async def test_no_stream_reaches_its_limit_and_no_word_is_cut(pause: float) -> None:
    """Finals end the streams; where gaps are short, quiet moments do; without any, the last word is heard again."""
    engine = FunctionEngine(limited(4.0), max_stream_seconds=4.0)
    count = 60
    async with session_on(engine) as running:
        for first in range(0, count, 3):
            await running.send(marker_audio(3, pause=pause, first=first))
            await asyncio.sleep(0)
        running.session.stop()
    assert running.text == words(count)
    assert running.observed.errors == []
    assert len(engine.configs) >= count * (0.3 + pause) / 4
    times = [(w.start, w.end) for w in final_words(running)]
    expected = [(i * (0.3 + pause), i * (0.3 + pause) + 0.3) for i in range(count)]
    assert [t for pair in times for t in pair] == pytest.approx([t for pair in expected for t in pair], abs=0.011)
    assert running.closed.finalized == running.closed.received


async def test_words_held_back_at_a_cut_are_not_shown_to_a_client_that_wants_none() -> None:
    engine = FunctionEngine(limited(4.0), max_stream_seconds=4.0)
    async with session_on(engine, Start(words=False)) as running:
        await running.send(marker_audio(30, pause=0))
        running.session.stop()
    assert running.text == words(30)
    assert not final_words(running)


async def test_a_stream_without_speech_is_renewed_in_the_silence() -> None:
    engine = FunctionEngine(limited(4.0), max_stream_seconds=4.0)
    async with session_on(engine) as running:
        await running.send(bytes(32_000 * 20))
        await running.send(marker_audio(2))
        running.session.stop()
    assert running.text == words(2)
    assert running.observed.errors == []
    assert len(engine.configs) >= 5


async def test_a_stream_that_gets_no_audio_is_ended_and_the_next_begins_with_audio() -> None:
    opened: list[float] = []
    ended = asyncio.Event()

    async def lazy(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        """Opens nothing before there is audio, as an engine should that is paid by the minute."""
        async for first in audio:
            opened.append(config.start)

            async def rest(first: bytes = first) -> AsyncIterator[bytes]:
                yield first
                async for chunk in audio:
                    yield chunk

            async for result in markers().recognize(config, rest()):
                yield result
        ended.set()

    async with session_on(FunctionEngine(lazy, idle_seconds=0.1)) as running:
        await asyncio.sleep(0.2)
        assert opened == []
        await running.send(marker_audio(2))
        async with asyncio.timeout(2):
            await ended.wait()
        await asyncio.sleep(0.2)
        assert opened == [0.0]
        await running.send(marker_audio(2, first=2))
        running.session.stop()
    assert opened == [0.0, 1.2]
    assert running.text == words(4)
    assert running.observed.errors == []


class Idle:
    """Markers from an engine that gets no audio for long; `again` is set when the stream after that is open."""

    def __init__(self, **capabilities: Any) -> None:
        self.again = asyncio.Event()
        self.engine = FunctionEngine(self._recognize, idle_seconds=0.1, **capabilities)

    async def _recognize(self, config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        if config.attempt:
            self.again.set()
        async for result in markers().recognize(config, audio):
            yield result

    async def begun_again(self) -> None:
        async with asyncio.timeout(5):
            await self.again.wait()


IN_WORD_3 = round(32_000 * (3 * 0.6 + 0.15))
"""Bytes of marker audio up to the middle of `w3`."""


@pytest.mark.parametrize("capabilities", [{}, {"max_stream_seconds": 300.0}, {"flush": True}])
async def test_a_client_that_stalls_in_a_word_and_goes_on(capabilities: dict[str, Any]) -> None:
    """The next stream waits for more than the first half of the word; that it waits is no fault of the engine's."""
    idle, audio = Idle(**capabilities), marker_audio(6)
    async with session_on(idle.engine, limits=SessionLimits(stall_seconds=0.2)) as running:
        await running.send(audio[:IN_WORD_3])
        await idle.begun_again()
        await asyncio.sleep(0.5)
        await running.send(audio[IN_WORD_3:])
        running.session.stop()
    assert running.text == words(6)
    assert running.observed.errors == []
    assert [c.start for c in idle.engine.configs] == pytest.approx([0.0, 1.8], abs=0.02)  # in the pause before w3
    assert running.closed.finalized == running.closed.received


@pytest.mark.parametrize("flush", [False, True])
async def test_a_client_that_stalls_in_a_word_and_then_wants_it_final(flush: bool) -> None:
    idle = Idle()
    async with session_on(idle.engine) as running:
        await running.send(marker_audio(6)[:IN_WORD_3])
        await idle.begun_again()
        if flush:
            running.session.flush()
            await running.until(Final, 4)
        running.session.stop()
    assert running.text == words(3) + " w3~"
    assert running.observed.errors == []
    assert running.closed.finalized == running.closed.received


async def test_a_stream_that_swallows_speech_is_noticed_and_replaced() -> None:
    async def swallows(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        if not config.attempt:
            async for _ in audio:
                pass
            await asyncio.get_running_loop().create_future()
        async for result in markers().recognize(config, audio):
            yield result

    began = time.monotonic()
    async with session_on(FunctionEngine(swallows, answer_seconds=0.3)) as running:
        for first in range(20):
            await running.send(marker_audio(1, first=first))
            await asyncio.sleep(0.03)
        await running.until(Final)
        noticed = time.monotonic() - began
        running.session.stop()
    assert running.observed.errors == ["stalled"]
    assert running.text == words(20)
    assert noticed < 4 * 0.3 + 0.3


async def test_a_healthy_stream_that_hears_no_words_in_noise_is_asked_ever_less() -> None:
    async def deaf(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        given = 0
        async for chunk in audio:
            given += len(chunk) // 2
        yield Result("", True, 0.0, given / config.sample_rate)

    engine = FunctionEngine(deaf, answer_seconds=0.1)
    async with session_on(engine) as running:
        for _ in range(100):
            await running.send(marker_audio(1, pause=0))
            await asyncio.sleep(0.015)
        running.session.stop()
    assert running.observed.errors == []
    assert 3 <= len(engine.configs) <= 6  # after 0.1, 0.2, 0.4, 0.8 s
    assert running.closed.finalized == running.closed.received


@pytest.mark.parametrize(("answer_seconds", "asked"), [(5.0, True), (None, False)])
async def test_partials_show_that_a_stream_hears_though_the_client_wants_none(
    answer_seconds: float | None, asked: bool
) -> None:
    given = 0

    async def counted(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        nonlocal given
        async for result in markers().recognize(config, audio):
            given += not result.is_final
            yield result

    engine = FunctionEngine(counted, answer_seconds=answer_seconds)
    async with session_on(engine, Start(partials=False)) as running:
        await running.send(marker_audio(4))
        running.session.stop()
    assert [c.partials for c in engine.configs] == [asked]
    assert bool(given) == asked
    assert not [e for e in running.events if isinstance(e, Partial)]
    assert running.text == words(4)


async def test_speech_that_begins_just_before_a_cut_is_heard_again() -> None:
    """Nothing was recognized, but the stream was ended in speech: that may have been the beginning of a word."""
    given = []

    async def deaf(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        samples = 0
        async for chunk in audio:
            samples += len(chunk) // 2
        given.append(samples / config.sample_rate)
        yield Result("", True, 0.0, given[-1])

    engine = FunctionEngine(deaf, max_stream_seconds=4.0)
    async with session_on(engine) as running:
        await running.send(marker_audio(20, pause=0.0))
        running.session.stop()
    assert engine.configs[1].start == pytest.approx(given[0] - UNHEARD, abs=0.001)
    assert running.observed.errors == []
    assert running.closed.finalized == running.closed.received


def test_patience_returns_with_the_first_word() -> None:
    experience = Experience(Capabilities(answer_seconds=8.0))
    seen = []
    for _ in range(5):
        experience.heard_nothing()
        seen.append(experience.patience)
    assert seen == [16, 32, 60, 60, 60]
    experience.heard_words()
    assert experience.patience == 8
    endless = Experience(Capabilities())
    endless.heard_nothing()
    assert endless.patience is None


@pytest.mark.parametrize("pause", [0.3, 0.06, 0.0])
async def test_a_limit_that_is_shorter_than_declared_is_learned(pause: float) -> None:
    engine = FunctionEngine(limited(4.0), max_stream_seconds=300.0)
    async with session_on(engine) as running:
        for first in range(0, 60, 3):
            await running.send(marker_audio(3, pause=pause, first=first))
        running.session.stop()
    assert running.text == words(60)
    assert running.observed.errors == ["stream_limit"] * 2


def test_a_single_stream_or_one_that_is_ended_at_once_teaches_nothing() -> None:
    experience = Experience(Capabilities(max_stream_seconds=300))
    for age in (0.2, 0.3, 5):
        experience.ended_by_limit(age)
        assert experience.longest == 300
    experience.ended_by_limit(60)
    assert experience.longest == 60
    experience.ended_by_limit(70)
    assert experience.longest == 60


def test_a_limit_that_strikes_while_the_end_is_awaited_shortens_the_next_stream_at_once() -> None:
    experience = Experience(Capabilities(max_stream_seconds=300))
    ages = []
    for age in (10, 10, 10, 0.5):
        experience.ended_by_limit(age, late=True)
        ages.append(experience.longest)
    assert ages == [8, 8, 8, 8]


def test_after_failures_without_a_final_streams_are_shorter_until_there_is_one() -> None:
    experience = Experience(Capabilities(max_stream_seconds=300))
    seen = []
    for age in (0.2, 60, 29, 14, 14):
        experience.failed(age, progress=False)
        seen.append(experience.stream_seconds)
    assert seen == [300, 30, 14.5, 7, 4]
    experience.failed(10, progress=True)
    assert experience.stream_seconds == 300
    experience.failed(60, progress=False)
    experience.advanced()
    assert experience.stream_seconds == 300


async def test_speech_without_finals_comes_forward_through_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stream fails after 5 to 9 s, and nothing is final before a stream ends."""
    monkeypatch.setattr("bridge.session.channel._backoff", lambda failures, error: 0.01)

    async def fails(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        async def watched() -> AsyncIterator[bytes]:
            given = 0
            async for chunk in audio:
                given += len(chunk) // 2
                if given > (5 + config.attempt % 5) * config.sample_rate:
                    raise BackendError("cut off", code="unavailable", retryable=True)
                yield chunk

        async for result in markers().recognize(config, watched()):
            yield result

    engine = FunctionEngine(fails, max_stream_seconds=300.0)
    async with session_on(engine, limits=SessionLimits(reopen_seconds=2)) as running:
        await running.send(marker_audio(150, pause=0.06))
        running.session.stop()
    assert running.text == words(150)


async def test_word_times_that_are_rounded_cut_no_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """To 0.1 s, as Google's; the next stream begins in the gap between the words."""
    # No moment counts as quiet, so that every stream ends in speech.
    monkeypatch.setattr("bridge.session.stream_end.Loudness.quiet_at", lambda self, pcm, seconds: None)

    async def rounds(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        async for result in limited(4.0)(config, audio):
            rounded = tuple(Word(w.text, round(w.start, 1), round(w.end, 1)) for w in result.words)
            yield dataclasses.replace(result, words=rounded)

    engine = FunctionEngine(rounds, max_stream_seconds=4.0)
    async with session_on(engine) as running:
        await running.send(marker_audio(80, pause=0.07))
        running.session.stop()
    assert running.text == words(80)
    assert len(engine.configs) > 5


async def test_an_outage_is_not_felt_by_a_client_that_speaks() -> None:
    back = time.monotonic() + 0.6

    async def down(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        if config.attempt and time.monotonic() < back:
            raise BackendError("nobody listens", code="unavailable", retryable=True)
        taken = 0
        async for result in markers().recognize(config, audio):
            yield result
            taken += 1
            if not config.attempt and taken > 3:
                raise BackendError("the connection is gone", code="unavailable", retryable=True)

    async with session_on(FunctionEngine(down), limits=SessionLimits(queue_seconds=0.5)) as running:
        await running.send(marker_audio(40))
        assert time.monotonic() < back
        running.session.stop()
    assert running.text == words(40)
    assert set(running.observed.errors) == {"unavailable"}


async def test_a_full_buffer_without_finals_does_not_stand_still_after_a_failure() -> None:
    async def deaf(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        """Says nothing before the end; the first stream fails when its audio ends."""
        given = 0
        async for chunk in audio:
            given += len(chunk) // 2
        if not config.attempt:
            raise BackendError("too late", retryable=True)
        yield Result("word", True, 0.0, given / config.sample_rate)

    limits = SessionLimits(replay_seconds=1.0, stall_seconds=0.4)
    async with session_on(FunctionEngine(deaf), limits=limits) as running:
        await running.send(bytes(3 * 32_000))
        running.session.stop()
    assert running.observed.errors == ["failed"]
    assert running.closed.finalized == running.closed.received == 48_000


W = (Word("one", 1.0, 1.4), Word("two", 1.5, 1.9), Word("three", 2.0, 2.4))


@pytest.mark.parametrize(
    ("given", "text", "end"),
    [
        (2.4, "one two", 2.0),  # it ends with the audio: it may be cut
        (2.9, "one two", 2.0),
        (3.1, "one two three", 2.4),  # something was said after it, and not heard
    ],
)
def test_a_cut_word_is_left_to_the_next_stream(given: float, text: str, end: float) -> None:
    kept = without_cut_word(Result("one two three", True, 1.0, given, W, confidence=0.9), given)
    assert (kept.text, kept.end, kept.confidence) == (text, end, 0.9)
    assert " ".join(w.text for w in kept.words) == text


@pytest.mark.parametrize("text", ["One, two, three.", "One, two, three ?", "one two three three"])
def test_punctuation_goes_with_the_word_that_is_cut(text: str) -> None:
    kept = without_cut_word(Result(text, True, 1.0, 2.4, W), 2.4)
    assert kept.text == text[: text.rfind("three")].rstrip()
    assert (kept.end, kept.words) == (2.0, W[:-1])


def test_a_word_that_is_written_otherwise_in_the_text_stays() -> None:
    figures = Result("one, two, 3.", True, 1.0, 2.4, W)
    assert without_cut_word(figures, 2.4) == figures


def test_what_cannot_be_told_is_taken_as_it_is() -> None:
    wordless = Result("one two three", True, 1.0, 2.4)
    assert without_cut_word(wordless, 2.4) == wordless
    endless = Result("hmm", True, 1.0, 9.0, (Word("hmm", 1.0, 9.0),))
    assert without_cut_word(endless, 9.0) == endless
    at_the_start = Result("hi", True, 0.1, 0.6, (Word("hi", 0.1, 0.6),))
    assert without_cut_word(at_the_start, 0.6) == at_the_start


# What partials promise


async def promising(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
    """Partials of `words`, each with what its length makes of a promise that is too long, and a final at the end."""
    given, said = 0, ["turn", "turn on", "turn on the"]
    async for chunk in audio:
        given += len(chunk) // 2
        if said and chunk:
            text = said.pop(0)
            yield Result(text, False, 0.0, given / 16_000, committed=4 if text != "turn" else 99)
    yield Result("turn on the light", True, 0.0, given / 16_000, committed=3)


async def test_what_is_committed_reaches_the_client_and_is_no_more_than_the_text() -> None:
    async with session_on(FunctionEngine(promising, flush=True)) as running:
        for count in range(1, 4):
            await running.send(bytes(3_200))
            await running.until(Partial, count)
        running.session.stop()
    partials = [e for e in running.events if isinstance(e, Partial)]
    assert [(p.text, p.committed) for p in partials] == [("turn", 4), ("turn on", 4), ("turn on the", 4)]


async def test_an_engine_that_promises_nothing_has_nothing_promised() -> None:
    async with session_on(ScriptedBackend()) as running:
        await running.send(bytes(25_600))
        (partial,) = await running.until(Partial)
        running.session.stop()
    assert isinstance(partial, Partial)
    assert partial.committed is None


async def test_where_a_stream_was_ended_in_speech_nothing_is_promised_any_more() -> None:
    """Its last word is heard again, and perhaps otherwise."""
    told: list[bool] = []

    async def body(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        given = 0
        async for chunk in audio:
            given += len(chunk) // 2
            yield Result("going on", False, 0.0, given / 16_000, committed=5)
        told.append(True)
        for _ in range(2):
            yield Result("going on and", False, 0.0, given / 16_000, committed=8)
            await asyncio.sleep(0.01)
        yield Result("going on and", True, 0.0, given / 16_000)

    engine = FunctionEngine(body, max_stream_seconds=4.0)
    async with session_on(engine) as running:
        await running.send(marker_audio(30, pause=0))
        running.session.stop()
    partials = [e for e in running.events if isinstance(e, Partial)]
    assert len(told) > 1
    assert {p.committed for p in partials if p.text == "going on"} == {5}
    ended_in_speech = [p for p in partials if p.text == "going on and"]
    assert ended_in_speech[0].committed is None
    assert ended_in_speech[-1].committed == 8  # the client's own end cuts no word
