"""Channels that are recognized each by itself, and what a session does with much audio in one message."""

from __future__ import annotations

import asyncio
import io
import itertools
import time
from collections.abc import AsyncIterator
from typing import Any

import av
import numpy as np
import pytest

from backends.base import BackendError, RecognitionConfig, Result
from backends.scripted import ScriptedBackend, ScriptedFault, ScriptedOptions, ScriptedThreadsBackend, marker_audio
from bridge.audio.decode import StreamDecoder
from bridge.audio.formats import AudioFormat, Encoding
from bridge.audio.vad.segmenter import Endpointing
from bridge.errors import BridgeError
from bridge.observe.metrics import Metrics
from bridge.protocols.events import Error, Final, Partial, SpeechEnded, SpeechStarted, Start, Warning
from bridge.session.engine import Engine
from bridge.session.failover import EnginePool
from bridge.session.limits import SessionLimits
from bridge.session.manager import SessionManager
from bridge.session.session import WARNINGS
from bridge.session.voice import VoicePolicy
from tests.session.harness import FunctionEngine, NonzeroDetection, Running, markers, session_on, words

STEREO = Start(AudioFormat(Encoding.PCM_S16LE, 16_000, 2), separate=True)
KINDS: list[Any] = [ScriptedBackend, ScriptedThreadsBackend]


def interleaved(left: bytes, right: bytes) -> bytes:
    """Both as one stream; the shorter is filled with silence."""
    length = max(len(left), len(right))
    return np.stack([np.frombuffer(c.ljust(length, b"\0"), "<i2") for c in (left, right)], axis=1).tobytes()


def said(running: Running, channel: int) -> str:
    return " ".join(e.text for e in running.events if isinstance(e, Final) and e.channel == channel)


def assert_speech_alternates(running: Running, channel: int | None) -> None:
    events = [e for e in running.events if isinstance(e, SpeechStarted | SpeechEnded) and e.channel == channel]
    assert events
    for n, event in enumerate(events):
        assert isinstance(event, SpeechEnded if n % 2 else SpeechStarted)
    times = [e.start if isinstance(e, SpeechStarted) else e.end for e in events]
    assert times == sorted(times)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gate", [None, 1.0])
async def test_every_word_has_its_channel(kind: Any, gate: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.session.channel._backoff", lambda failures, error: 0.01)
    audio = interleaved(
        marker_audio(5, pause=0.4) + bytes(200_000) + marker_audio(5, first=5), bytes(8_000) + marker_audio(9, first=50)
    )
    voice = VoicePolicy(NonzeroDetection(), gate_seconds=gate) if gate else None
    faults = [ScriptedFault(at, "fail") for at in (0.5, 1.2)]
    limits = SessionLimits(ack_seconds=0)
    async with session_on(markers(*faults, kind=kind), STEREO, limits, voice) as running:
        await running.send(audio, frame=6_400)
        running.session.stop()
    assert said(running, 0) == words(10)
    assert said(running, 1) == words(9, first=50)
    assert running.closed.finalized == running.closed.received == len(audio) // 4
    assert all(a.finalized <= b.finalized for a, b in itertools.pairwise(running.acks))
    for channel in (0, 1):
        assert_speech_alternates(running, channel)
    assert all(e.channel in (0, 1) for e in running.events if isinstance(e, Final | Partial))


async def test_acks_are_of_what_is_final_in_every_channel() -> None:
    """One channel is final at once, the other when its stream ends."""

    async def late(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        given = 0
        async for chunk in audio:
            given += len(chunk) // 2
            if chunk[0]:
                yield Result("", True, 0.0, given / 16_000)
        yield Result("", True, 0.0, given / 16_000)

    audio = interleaved(np.full(16_000, 257, "<i2").tobytes(), bytes(32_000))
    async with session_on(FunctionEngine(late), STEREO, SessionLimits(ack_seconds=0)) as running:
        await running.send(audio, frame=6_400)
        await asyncio.sleep(0.01)
        assert running.session._channels[0].final == 16_000
        assert {ack.finalized for ack in running.acks} == {0}
        running.session.stop()
    assert running.closed.finalized == 16_000


async def test_a_channel_that_fails_ends_the_session_and_takes_no_final_back() -> None:
    heard = asyncio.Event()

    async def body(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        async for chunk in audio:
            if chunk[0]:  # the left channel
                yield Result("left", True, 0.0, 0.1)
                heard.set()
            else:
                await heard.wait()
                raise BackendError("broken", code="failed", retryable=False)

    async with session_on(FunctionEngine(body), STEREO) as running:
        await running.send(interleaved(np.full(1_600, 257, "<i2").tobytes(), bytes(3_200)), frame=6_400)
    assert [(e.text, e.channel) for e in running.events if isinstance(e, Final)] == [("left", 0)]
    assert [e.code for e in running.events if isinstance(e, Error)] == ["backend_failed"]
    assert (running.closed.code, running.closed.finalized) == ("backend_failed", 0)


async def test_a_stop_while_a_session_breaks_is_harmless() -> None:
    """One channel has failed, the other is slow to close, and a message is not yet drained."""
    opened, closing, go = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def body(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        async for chunk in audio:
            if chunk[0]:
                await opened.wait()
                raise BackendError("broken", code="failed", retryable=False)
            try:
                opened.set()
                await asyncio.get_running_loop().create_future()
            finally:
                closing.set()
                await go.wait()
        yield Result("", True, 0, 0)

    async with session_on(FunctionEngine(body), STEREO) as running:
        running.session.feed(interleaved(np.full(160_000, 257, "<i2").tobytes(), b""))
        async with asyncio.timeout(5):
            await closing.wait()
        running.session.stop("shutting_down")
        go.set()
    assert running.closed.code == "backend_failed"


async def test_the_newest_partial_of_every_channel_reaches_a_slow_receiver() -> None:
    done = asyncio.Semaphore(0)

    async def body(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        given = 0
        async for chunk in audio:
            given += len(chunk) // 2
            yield Result(f"{chunk[0]}-{given}", False, 0.0, given / 16_000)
            if given == 16_000:
                done.release()
        yield Result("", True, 0.0, given / 16_000)

    async with session_on(FunctionEngine(body), STEREO) as running:
        slow = running.session.subscribe()
        await running.send(interleaved(np.full(16_000, 257, "<i2").tobytes(), bytes(32_000)), frame=6_400)
        async with asyncio.timeout(5):
            await done.acquire()
            await done.acquire()
        partials = [(e.channel, e.text) for e in await slow.get() if isinstance(e, Partial)]
        assert sorted(partials) == [(0, "1-16000"), (1, "0-16000")]
        running.session.stop()


async def test_each_channel_counts_as_a_stream_of_the_engine() -> None:
    engine = Engine(ScriptedBackend(ScriptedOptions(max_streams=3)))
    manager = SessionManager(EnginePool(engine), SessionLimits(), Metrics(), max_sessions=10, language="en-US")
    await manager.load()
    async with manager.session(STEREO, "native"):
        assert engine.streams == 2
        with pytest.raises(BridgeError) as refused:
            async with manager.session(STEREO, "native"):
                pass
        assert refused.value.code == "at_capacity"
        async with manager.session(Start(), "native"):
            assert engine.streams == 3
    assert engine.streams == 0
    await manager.close()


async def test_channels_of_mixed_lengths_of_silence_end_together() -> None:
    """One channel never says a word."""
    voice = VoicePolicy(NonzeroDetection(), Endpointing(padding_seconds=0.3), 1.0)
    async with session_on(markers(), STEREO, voice=voice) as running:
        await running.send(interleaved(marker_audio(20), b""), frame=6_400)
        running.session.stop()
    assert said(running, 0) == words(20)
    assert said(running, 1) == ""
    assert running.closed.finalized == running.closed.received
    assert running.observed.given_seconds == pytest.approx(12, abs=0.2)


# Much audio in one message


def flac(pcm: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="flac") as container:
        stream = container.add_stream("flac", rate=16_000, layout="mono")
        for at in range(0, len(pcm), 4_608):
            frame = av.AudioFrame.from_ndarray(pcm[None, at : at + 4_608], format="s16", layout="mono")
            frame.sample_rate = 16_000
            frame.pts = at
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


@pytest.fixture(scope="module")
def half_an_hour() -> bytes:
    """FLAC of half an hour: silence, with a word in its middle and one at its end."""
    pcm = np.zeros(1_800 * 16_000, "<i2")
    for n, second in enumerate((900, 1_798)):
        pcm[second * 16_000 :][:4_800] = 1_000 + n
    return flac(pcm)


async def longest_turn(until: asyncio.Event) -> float:
    """The seconds of work for which the loop was kept at most: of this thread, because the machine may be busy."""
    longest, last = 0.0, time.thread_time()
    while not until.is_set():
        await asyncio.sleep(0)
        now = time.thread_time()
        longest, last = max(longest, now - last), now
    return longest


FLAC = Start(AudioFormat(Encoding.FLAC))


@pytest.mark.parametrize("stop", [False, True])
async def test_a_message_that_holds_half_an_hour_keeps_nobody_waiting(stop: bool, half_an_hour: bytes) -> None:
    assert len(half_an_hour) < 1_048_576
    done = asyncio.Event()
    voice = VoicePolicy(NonzeroDetection(), gate_seconds=1.0)
    async with session_on(markers(), FLAC, SessionLimits(ack_seconds=0.05), voice) as running:
        other = asyncio.create_task(longest_turn(done))
        assert not running.session.feed(half_an_hour)
        if stop:
            running.session.stop()
        else:
            await running.session.room()
            assert running.session.audio_seconds > 1_799  # the end of the last frame is not known before the stop
            assert len(running.acks) > 5
            running.session.stop()
        while not running.session._audio_closed:
            assert running.session._channels[0]._buffer.held < 20 * 16_000
            await asyncio.sleep(0)
        done.set()
    assert await other < 0.2
    assert running.text == "w0 w1"
    assert (running.closed.code, running.closed.duration) == ("stopped", 1_800)
    assert running.closed.finalized == running.closed.received == 1_800 * 16_000


async def test_a_stop_while_the_client_waits_for_room_lets_both_go_on() -> None:
    """The rest of the message is drained for the stop, and the client's waiting ends."""
    release = asyncio.Event()

    async def waits(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        await release.wait()
        async for result in markers().recognize(config, audio):
            yield result

    async with session_on(FunctionEngine(waits), limits=SessionLimits(queue_seconds=1)) as running:
        assert not running.session.feed(marker_audio(20))
        waiting = asyncio.create_task(running.session.room())
        await asyncio.sleep(0.01)
        running.session.stop("shutting_down")
        await asyncio.sleep(0.01)
        release.set()
        async with asyncio.timeout(2):
            await waiting
    assert running.text == words(20)
    assert running.closed.code == "shutting_down"


async def test_audio_that_is_not_what_it_is_declared_to_be_ends_the_session() -> None:
    async with session_on(markers(), FLAC) as running:
        with pytest.raises(BridgeError) as caught:
            running.session.feed(marker_audio(3))
        running.session.refuse(caught.value)
    assert [e.code for e in running.events if isinstance(e, Error)] == ["undecodable_audio"]
    assert (running.closed.code, running.closed.received) == ("undecodable_audio", 0)


@pytest.mark.parametrize("pieces", [1, 10])
@pytest.mark.parametrize("stop", [False, True])
async def test_audio_that_proves_undecodable_costs_no_word_before_it(
    stop: bool, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error comes after so many pieces: at once, or while the rest of the message is drained."""
    async with session_on(markers()) as running:
        running.session.feed(marker_audio(3))
        left = pieces

        def read(_: StreamDecoder) -> Any:
            nonlocal left
            left -= 1
            if left == -1:
                raise BridgeError("undecodable_audio", "the container is broken")
            return None if left < 0 else (np.full(1_600, 1_003, "<i2").tobytes(),)

        monkeypatch.setattr(StreamDecoder, "read", read)
        if stop:
            running.session.stop()
        else:
            with pytest.raises(BridgeError) as caught:
                if not running.session.feed(b"more"):
                    await running.session.room()
            running.session.refuse(caught.value)
    assert running.text == words(3) + " w3~"
    assert [e.code for e in running.events if isinstance(e, Error)] == ["undecodable_audio"]
    assert running.closed.code == "undecodable_audio"
    assert running.closed.duration == pytest.approx(1.8 + 0.1 * pieces)
    assert running.closed.finalized == running.closed.received


async def test_a_warning_is_not_repeated_for_ever() -> None:
    async with session_on(markers()) as running:
        for _ in range(100):
            running.session._warn("damaged_audio", "a frame was damaged")
        running.session._warn("other", "something else")
        running.session.stop()
    assert [e.code for e in running.events if isinstance(e, Warning)] == ["damaged_audio"] * WARNINGS + ["other"]


# Speech without a detector


async def test_speech_that_the_engine_tells_of_alternates_and_never_goes_back() -> None:
    """Its partial begins behind the silence that an empty final tells of a moment later."""

    async def body(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        async for _ in audio:
            pass
        yield Result("he", False, 0.8, 1.0)
        yield Result("", True, 0.0, 0.5)
        yield Result("hell", False, 0.8, 1.1)
        yield Result("hello", True, 0.8, 1.2)
        yield Result("", True, 1.2, 2.0)
        yield Result("", False, 1.5, 2.0)

    async with session_on(FunctionEngine(body)) as running:
        await running.send(bytes(64_000))
        running.session.stop()
    assert_speech_alternates(running, None)


async def test_a_session_that_is_gone_can_be_stopped_with_all_that_it_had() -> None:
    voice = VoicePolicy(NonzeroDetection(), gate_seconds=1.0)
    with pytest.raises(ExceptionGroup):
        async with session_on(markers(), STEREO, voice=voice, denoise=True) as running:
            await running.send(interleaved(marker_audio(2), b""), frame=6_400)
            raise LookupError("the client is gone")
    running.session.flush()
    running.session.feed(bytes(6_400))
    running.session.stop("shutting_down")
