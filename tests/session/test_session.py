"""The session's promise: each word of the audio is finalized exactly once, whatever breaks."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from backends.base import BackendError, Fault, RecognitionConfig, Result
from backends.scripted import (
    MARKER,
    Script,
    ScriptedBackend,
    ScriptedFault,
    ScriptedOptions,
    ScriptedThreadsBackend,
    marker_audio,
)
from bridge.audio.formats import AudioFormat, Encoding
from bridge.protocols.events import Ack, Error, Final, Partial, Ready, SpeechStarted, Start, Warning
from bridge.session.channel import _backoff
from bridge.session.engine import Engine
from bridge.session.failover import EnginePool
from bridge.session.limits import SessionLimits
from bridge.session.session import Session
from tests.session.harness import FunctionEngine, Observed, lasting_numbers, markers, seats_of, session_on, words

QUICK = SessionLimits(stall_seconds=0.4, stop_seconds=5)


@pytest.mark.parametrize("kind", [ScriptedBackend, ScriptedThreadsBackend])
async def test_an_undisturbed_session(kind: Any) -> None:
    async with session_on(markers(kind=kind)) as running:
        await running.send(marker_audio(10))
        running.session.stop()
    assert isinstance(running.events[0], Ready)
    assert running.text == words(10)
    assert lasting_numbers(running.events) == list(range(1, (running.closed.seq or 0) + 1))
    assert running.closed.code == "stopped"
    assert running.closed.received == running.closed.finalized == 96_000
    assert running.closed.duration == 6.0
    assert running.observed.seconds == pytest.approx(6.0)


@pytest.mark.parametrize("kind", [ScriptedBackend, ScriptedThreadsBackend])
async def test_five_failures_change_nothing(kind: Any) -> None:
    faults = [ScriptedFault(at, "fail") for at in (0.05, 1.25, 1.3, 3.75, 5.95)]
    async with session_on(markers(*faults, kind=kind)) as running:
        await running.send(marker_audio(12))
        running.session.stop()
    assert running.observed.errors == ["scripted"] * 5
    assert running.text == words(12)
    starts = [e.start for e in running.events if isinstance(e, Final)]
    assert starts == pytest.approx([0.6 * i for i in range(12)], abs=0.01)
    assert lasting_numbers(running.events) == list(range(1, (running.closed.seq or 0) + 1))
    assert not [e for e in running.events if isinstance(e, Error | Warning)]


@pytest.mark.parametrize("seed", range(5))
async def test_failures_at_random_moments_lose_and_double_nothing(seed: int) -> None:
    chance = random.Random(seed)
    at, faults = 0.0, []
    for _ in range(20):
        at += chance.uniform(0.0, 1.0)
        faults.append(ScriptedFault(at, chance.choice(["fail", "fail", "end"])))
    async with session_on(markers(*faults)) as running:
        await running.send(marker_audio(25, pause=chance.uniform(0.2, 0.5)), frame=chance.choice([320, 3_200, 9_602]))
        running.session.stop()
    assert running.text == words(25)


async def test_a_script_played_over_failures_reads_the_same() -> None:
    script = {
        "results": [
            {"at": 0.5, "text": "good", "start": 0.2, "end": 0.5},
            {"at": 1.0, "text": "good morning", "final": True, "start": 0.2, "end": 0.9},
            {"at": 2.0, "text": "how are you", "final": True, "start": 1.2, "end": 1.9},
            {"at": 2.9, "text": "fine", "final": True, "start": 2.4, "end": 2.8},
        ],
        "faults": [{"at": at, "kind": "fail"} for at in (0.4, 0.6, 1.1, 1.9, 2.5)],
    }
    async with session_on(ScriptedBackend(script=Script.parse(script))) as running:
        await running.send(bytes(96_000))
        running.session.stop()
    assert running.observed.errors == ["scripted"] * 5
    assert [(e.text, e.start, e.end) for e in running.events if isinstance(e, Final)] == [
        ("good morning", 0.2, 0.9),
        ("how are you", 1.2, 1.9),
        ("fine", 2.4, 2.8),
    ]


@pytest.mark.parametrize("kind", [ScriptedBackend, ScriptedThreadsBackend])
async def test_a_stalled_backend_is_left_and_its_audio_replayed(kind: Any) -> None:
    async with session_on(markers(ScriptedFault(1.0, "stall"), kind=kind), limits=QUICK) as running:
        await running.send(marker_audio(5))
        running.session.stop()
    assert running.observed.errors == ["stalled"]
    assert running.text == words(5)


async def test_a_backend_that_always_stalls_ends_with_its_code() -> None:
    faults = [ScriptedFault(1.0, "stall")] * 3
    limits = SessionLimits(stall_seconds=0.2, reopen_seconds=0.1)
    async with session_on(markers(*faults), limits=limits) as running:
        await running.send(marker_audio(5))
    assert running.closed.code == "backend_stalled"
    error = next(e for e in running.events if isinstance(e, Error))
    assert (error.code, error.fatal, error.retryable) == ("backend_stalled", True, True)
    assert running.closed.finalized < running.closed.received


async def test_a_backend_that_breaks_for_good_ends_at_once_with_what_it_had() -> None:
    async with session_on(markers(ScriptedFault(1.5, "fail", retryable=False))) as running:
        await running.send(marker_audio(5))
    assert running.text == words(2)
    assert running.closed.code == "backend_failed"
    assert running.closed.finalized <= running.closed.received


async def test_a_refused_configuration_is_the_clients_fault() -> None:
    async with session_on(markers(ScriptedFault(0, "reject"))) as running:
        pass
    assert running.closed.code == "backend_rejected"


async def test_a_stalled_backend_that_is_slow_to_close_does_not_stop_the_clock() -> None:
    async def stubborn(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        try:
            await asyncio.get_running_loop().create_future()
            yield Result("", True, 0, 0)
        finally:
            await asyncio.sleep(0.5)

    limits = SessionLimits(stall_seconds=0.1, session_seconds=0.6, reopen_seconds=1)
    async with session_on(FunctionEngine(stubborn), limits=limits) as running:
        await running.send(bytes(3_200))
    assert running.closed.code == "backend_stalled"
    assert set(running.observed.errors) == {"stalled"}


async def test_an_engine_that_never_waits_does_not_drown_a_receiver_that_reads() -> None:
    async def many(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        async for _ in audio:
            pass
        for i in range(2_000):
            yield Result(f"f{i}", True, i / 4_000, (i + 1) / 4_000)

    async with session_on(FunctionEngine(many)) as running:
        await running.send(bytes(16_000))
        running.session.stop()
    assert len([e for e in running.events if isinstance(e, Final)]) == 2_000


async def test_time_without_progress_is_limited_and_progress_resets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.session.channel._backoff", lambda failures, error: 0.05)
    limits = SessionLimits(reopen_seconds=0.5)
    fails = [ScriptedFault(0.1, "fail")] * 6 + [ScriptedFault(1.3, "fail")] * 6
    async with session_on(markers(*fails), limits=limits) as running:
        await running.send(marker_audio(5))
        running.session.stop()
    assert running.text == words(5)
    assert len(running.observed.errors) == 12
    async with session_on(markers(*[ScriptedFault(0.1, "fail")] * 100), limits=limits) as running:
        await running.send(marker_audio(5))
    assert running.closed.code == "backend_failed"
    assert 5 <= len(running.observed.errors) <= 12


def test_the_wait_before_another_stream_grows_and_is_longer_for_an_overloaded_backend(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    failed, overloaded = BackendError("", code="unavailable"), BackendError("", code="overloaded")
    assert [_backoff(n, failed) for n in (0, 1, 2, 10, 500)] == [0.1, 0.2, 0.4, 5.0, 5.0]
    assert [_backoff(n, overloaded) for n in (0, 1, 500)] == pytest.approx([0.6, 1.2, 30.0])


async def test_an_exception_that_is_no_backend_error_costs_a_retry_not_the_session() -> None:
    async def body(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        async for _ in audio:
            if not config.attempt:
                raise KeyError("a plug-in's bug")
        yield Result("fine", True, 0.0, 1.0)

    async with session_on(FunctionEngine(body)) as running:
        await running.send(bytes(32_000))
        running.session.stop()
    assert running.text == "fine"
    assert running.observed.errors == ["failed"]


async def test_flush_finalizes_what_was_said_and_goes_on() -> None:
    async with session_on(markers()) as running:
        await running.send(marker_audio(1, pause=0.05))
        running.session.flush()
        flushed = await running.until(Final)
        assert isinstance(flushed[0], Final)
        assert flushed[0].text == "w0"
        assert flushed[0].end == pytest.approx(0.35)
        await running.send(marker_audio(2, first=1))
        running.session.stop()
    assert running.text == words(3)


async def test_flush_on_a_backend_that_knows_none_ends_its_stream() -> None:
    async def count(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        total = 0
        async for chunk in audio:
            assert chunk
            total += len(chunk) // 2
        yield Result(f"{total}@{config.start:.1f}", True, 0.0, total / config.sample_rate)

    engine = FunctionEngine(count)
    async with session_on(engine) as running:
        await running.send(bytes(16_000))
        running.session.flush()
        await running.until(Final)
        await running.send(bytes(6_400))
        running.session.stop()
    assert running.text == "8000@0.0 3200@0.5"
    assert [c.attempt for c in engine.configs] == [0, 1]


async def test_a_flush_survives_a_failure() -> None:
    async with session_on(markers(ScriptedFault(0.3, "fail"))) as running:
        await running.send(marker_audio(1, pause=0.05))
        running.session.flush()
        await running.until(Final)
        running.session.stop()
    assert running.text == "w0"


async def test_streams_are_renewed_before_the_backends_limit() -> None:
    async def limited(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        """Words like the marker engine's, one final each; fails past two seconds, as Google does past five minutes."""
        player = ScriptedBackend(ScriptedOptions(mode="markers"), Script())
        total = 0

        async def watched() -> AsyncIterator[bytes]:
            nonlocal total
            async for chunk in audio:
                total += len(chunk) // 2
                if total > 2 * config.sample_rate:
                    raise BackendError("too long", code="stream_limit", retryable=True)
                yield chunk

        async for result in player.recognize(config, watched()):
            yield result

    engine = FunctionEngine(limited, max_stream_seconds=2.0)
    async with session_on(engine) as running:
        for word in range(20):
            await running.send(marker_audio(1, first=word))
            await running.until(Final, word + 1)
        running.session.stop()
    assert running.text == words(20)
    assert running.observed.errors == []
    assert len(engine.configs) >= 6


async def test_a_full_replay_buffer_asks_for_a_final_instead_of_standing_still() -> None:
    async def deaf(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        """Gives nothing until the stream ends."""
        total = 0
        async for chunk in audio:
            total += len(chunk)
        yield Result("words", True, 0.0, total / 32_000)

    limits = SessionLimits(replay_seconds=1.0)
    async with session_on(FunctionEngine(deaf), limits=limits) as running:
        await running.send(bytes(5 * 32_000))
        running.session.stop()
    assert running.closed.finalized == running.closed.received == 80_000
    async with session_on(markers(), limits=limits) as running:  # the same with a backend that can be flushed
        await running.send(np.full(3 * 16_000, MARKER, "<i2").tobytes())
        running.session.stop()
    assert running.closed.finalized == 48_000


async def test_a_nearly_full_replay_buffer_is_marked_once() -> None:
    """However much comes before the engine has answered: each mark would cut a word."""
    ready, marks = asyncio.Event(), 0

    async def slow(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        async def counted() -> AsyncIterator[bytes]:
            nonlocal marks
            await ready.wait()
            async for chunk in audio:
                marks += not chunk
                yield chunk

        async for result in markers().recognize(config, counted()):
            yield result

    limits = SessionLimits(replay_seconds=5.0, queue_seconds=100)
    async with session_on(FunctionEngine(slow, flush=True), limits=limits) as running:
        await running.send(marker_audio(16, pause=0.0))  # 4.8 s, and 4.5 are nearly all
        ready.set()
        running.session.stop()
    assert marks == 1
    assert running.text == words(16)
    assert running.closed.finalized == running.closed.received


async def test_audio_waiting_for_the_backend_is_bounded() -> None:
    release = asyncio.Event()

    async def waits(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        await release.wait()
        async for _ in audio:
            pass
        yield Result("", True, 0.0, 1.0)

    async with session_on(FunctionEngine(waits), limits=SessionLimits(queue_seconds=1)) as running:
        sending = asyncio.create_task(running.send(bytes(10 * 32_000)))
        await asyncio.sleep(0.05)
        assert running.session.audio_seconds == pytest.approx(1.0)
        release.set()
        await sending
        running.session.stop()
    assert running.closed.received == 160_000


async def test_silence_is_no_error_and_is_forgotten() -> None:
    async with session_on(markers(), limits=SessionLimits(replay_seconds=2)) as running:
        await running.send(bytes(60 * 32_000))
        running.session.stop()
    assert running.text == ""
    assert running.closed.finalized == 60 * 16_000
    assert not [e for e in running.events if isinstance(e, Final)]


async def test_nothing_said_at_all() -> None:
    async with session_on(markers()) as running:
        running.session.stop()
    assert running.closed.code == "stopped"
    assert running.closed.received == 0


async def test_what_comes_after_stop_is_not_part_of_the_session() -> None:
    async with session_on(markers()) as running:
        await running.send(marker_audio(1))
        running.session.stop()
        running.session.feed(marker_audio(1, first=1))
        running.session.stop("idle_timeout")
    assert running.text == "w0"
    assert running.closed.code == "stopped"


async def test_an_idle_session_ends_with_its_words_and_a_code() -> None:
    async with session_on(markers(), limits=SessionLimits(idle_seconds=0.2)) as running:
        await running.send(marker_audio(1, pause=0.05))
    assert running.text == "w0"
    assert running.closed.code == "idle_timeout"


async def test_a_session_that_is_too_long_ends_with_its_words_and_a_code() -> None:
    async with session_on(markers(), limits=SessionLimits(session_seconds=0.3)) as running:
        while running.session.end_code is None:
            await running.send(marker_audio(1))
            await asyncio.sleep(0.02)
    assert running.closed.code == "session_too_long"
    assert running.closed.finalized == running.closed.received


async def test_a_stop_that_the_backend_never_answers_ends_within_its_limit() -> None:
    async def never(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        async for _ in audio:
            pass
        await asyncio.get_running_loop().create_future()
        yield Result("", True, 0, 0)

    async with session_on(FunctionEngine(never), limits=SessionLimits(stop_seconds=0.3)) as running:
        await running.send(bytes(3_200))
        running.session.stop()
    assert running.closed.code == "backend_stalled"


async def test_a_stopping_session_that_is_abandoned_closes_with_what_is_final() -> None:
    asked = asyncio.Event()

    async def one_word(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        async for _ in audio:
            pass
        yield Result("word", True, 0.0, 0.5)
        asked.set()
        await asyncio.get_running_loop().create_future()

    async with session_on(FunctionEngine(one_word)) as running:
        await running.send(bytes(32_000))
        running.session.stop("shutting_down")
        async with asyncio.timeout(5):
            await asked.wait()
        running.session.abandon()
    assert running.text == "word"
    assert (running.closed.code, running.closed.finalized) == ("shutting_down", 8_000)
    assert not [e for e in running.events if isinstance(e, Error)]


async def test_a_session_that_is_abandoned_before_it_runs() -> None:
    async def deaf(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        async for _ in audio:
            pass
        await asyncio.get_running_loop().create_future()
        yield Result("", True, 0, 0)

    engines = EnginePool(Engine(FunctionEngine(deaf)))
    await engines.load()
    with seats_of(engines, "en-US") as seats:
        session = Session("test", Start(), seats, SessionLimits(), observer=Observed(), language="en-US")
        session.feed(bytes(3_200))
        session.stop("shutting_down")
        session.abandon()
        async with asyncio.timeout(2):
            await session.run()
    assert session.end_code == "shutting_down"


async def test_a_stop_that_comes_after_the_client_is_gone_is_harmless() -> None:
    engine = markers()
    with pytest.raises(ExceptionGroup):
        async with session_on(engine) as running:
            raise LookupError("the client is gone")
    running.session.stop("shutting_down")
    running.session.flush()


async def test_a_cancelled_session_closes_its_stream_and_says_no_more() -> None:
    closed = asyncio.Event()

    async def body(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        try:
            async for _ in audio:
                yield Result("partial", False, 0.0, 0.1)
        finally:
            closed.set()

    with pytest.raises(ExceptionGroup, match="unhandled"):
        async with session_on(FunctionEngine(body)) as running:
            await running.send(bytes(3_200))
            await running.until(Partial)
            raise LookupError("the client is gone")
    assert closed.is_set()
    assert not [e for e in running.events if isinstance(e, Error)]


async def test_acks_count_frames_at_the_clients_rate() -> None:
    start = Start(audio=AudioFormat(Encoding.PCM_S16LE, 48_000, 2))

    async def body(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        total = 0
        async for chunk in audio:
            total += len(chunk) // 2
            yield Result("x", True, 0.0, total / config.sample_rate)

    async with session_on(FunctionEngine(body), start, SessionLimits(ack_seconds=0.001)) as running:
        await running.send(bytes(4 * 48_000), frame=19_200)
        running.session.stop()
    assert running.closed.received == running.closed.finalized == 48_000
    for ack in running.acks:
        assert ack.finalized <= ack.received <= 48_000
    assert [a.received for a in running.acks] == sorted(a.received for a in running.acks)
    assert [a.finalized for a in running.acks] == sorted(a.finalized for a in running.acks)


async def test_times_are_session_times_after_a_replay() -> None:
    async def body(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        total = 0
        async for chunk in audio:
            total += len(chunk) // 2
            if config.attempt == 0 and total == 16_000:
                yield Result("first", True, 0.25, 0.75)
                raise BackendError("gone", retryable=True)
        yield Result("second", True, 0.5, total / 16_000)

    async with session_on(FunctionEngine(body)) as running:
        await running.send(bytes(64_000))
        running.session.stop()
    finals = [(e.text, e.start, e.end) for e in running.events if isinstance(e, Final)]
    assert finals == [("first", 0.25, 0.75), ("second", 1.25, 2.0)]


async def test_results_outside_the_audio_are_put_inside() -> None:
    async def body(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        async for _ in audio:
            pass
        yield Result("a", True, -5.0, 0.5)
        yield Result("b", True, 0.1, 99.0)

    async with session_on(FunctionEngine(body)) as running:
        await running.send(bytes(32_000))
        running.session.stop()
    finals = [(e.text, e.start, e.end) for e in running.events if isinstance(e, Final)]
    assert finals == [("a", 0.0, 0.5), ("b", 0.5, 1.0)]


async def test_speech_started_once_per_utterance_and_partials_only_if_wanted() -> None:
    async with session_on(markers(), Start(partials=False)) as running:
        await running.send(marker_audio(4))
        running.session.stop()
    assert not [e for e in running.events if isinstance(e, Partial)]
    kinds = [type(e).__name__ for e in running.events if isinstance(e, Final | SpeechStarted)]
    assert kinds == ["SpeechStarted", "Final"] * 4


async def test_a_wav_header_is_skipped_with_a_warning() -> None:
    import io
    import wave

    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(16_000)
        writer.writeframes(marker_audio(2))
    async with session_on(markers(), Start(AudioFormat(Encoding.PCM_S16LE))) as running:
        await running.send(file.getvalue())
        running.session.stop()
    assert running.text == words(2)
    assert [e.code for e in running.events if isinstance(e, Warning)] == ["wav_header"]


async def test_the_backends_own_words_reach_a_client_only_where_they_help() -> None:
    async def body(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        async for _ in audio:
            raise BackendError("credentials of /etc/key are bad", code="auth", fault=Fault.OPERATOR)
        yield Result("", True, 0, 0)

    async with session_on(FunctionEngine(body)) as running:
        await running.send(bytes(3_200))
    error = next(e for e in running.events if isinstance(e, Error))
    assert "/etc/key" not in error.message
    assert running.closed.code == "backend_misconfigured"


async def test_what_is_wrong_with_a_request_is_told_the_client_and_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def body(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        async for _ in audio:
            raise BackendError("no such phrase: 'Jane Q. Patient'", code="rejected", fault=Fault.CLIENT)
        yield Result("", True, 0, 0)

    caplog.set_level(logging.DEBUG)
    async with session_on(FunctionEngine(body)) as running:
        await running.send(bytes(3_200))
    error = next(e for e in running.events if isinstance(e, Error))
    assert "Jane Q. Patient" in error.message
    assert "rejected" in caplog.text
    assert "Jane" not in caplog.text


async def test_a_session_owes_acks_even_without_finals() -> None:
    async def body(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        async for _ in audio:
            pass
        yield Result("", True, 0, 1)

    async with session_on(FunctionEngine(body), limits=SessionLimits(ack_seconds=0.05)) as running:
        await running.send(bytes(3_200))
        await asyncio.sleep(0.06)
        await running.send(bytes(3_200))
        acks = await running.until(Ack)
        assert acks[0] == Ack(3_200, 0)
        running.session.stop()
