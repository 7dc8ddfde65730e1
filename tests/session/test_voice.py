"""Sessions whose silence is not given to the engine: the same words at the same times, whatever breaks or is late."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest

from backends.base import BackendError, RecognitionConfig, Result
from backends.scripted import (
    MARKER,
    MARKER_SECONDS,
    ScriptedBackend,
    ScriptedFault,
    ScriptedThreadsBackend,
)
from bridge.audio.formats import AudioFormat
from bridge.audio.vad.segmenter import Endpointing
from bridge.audio.vad.webrtc import WebrtcDetection
from bridge.protocols.events import Final, SpeechEnded, SpeechStarted, Start
from bridge.session.limits import SessionLimits
from bridge.session.voice import VoicePolicy
from tests.session.harness import NEVER, FunctionEngine, NonzeroDetection, Running, limited, markers, session_on

RATE = 16_000

Words = list[tuple[str, float, float]]


def spoken(*pauses: float, first: float = 0.0) -> tuple[bytes, Words]:
    """Markers after `first` seconds, each followed by its pause; and the words with their times."""
    parts, expected, at = [np.zeros(round(first * RATE), "<i2")], [], first
    for n, pause in enumerate(pauses):
        parts.append(np.full(round(MARKER_SECONDS * RATE), MARKER + n, "<i2"))
        expected.append((f"w{n}", at, at + MARKER_SECONDS))
        parts.append(np.zeros(round(pause * RATE), "<i2"))
        at += (len(parts[-1]) + len(parts[-2])) / RATE
    return np.concatenate(parts).tobytes(), expected


def gated(
    seconds: float = 1.0,
    lateness: Callable[[], float | None] = lambda: None,
    frame_seconds: float = 0.032,
    **endpointing: float,
) -> VoicePolicy:
    return VoicePolicy(NonzeroDetection(frame_seconds, lateness), Endpointing(**endpointing), seconds)


def ears(policy: VoicePolicy) -> NonzeroDetection:
    assert isinstance(policy.detection, NonzeroDetection)
    return policy.detection


def assert_heard(running: Running, expected: Words, within: float = 0.0011) -> None:
    """Every word exactly once, at its time."""
    assert running.text == " ".join(w for w, _, _ in expected)
    heard = [t for w in running.words for t in (w.start, w.end)]
    assert heard == pytest.approx([t for _, start, end in expected for t in (start, end)], abs=within)
    assert running.closed.finalized == running.closed.received
    finals = [(e.start, e.end) for e in running.events if isinstance(e, Final)]
    assert all(start <= end for start, end in finals)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(finals))
    assert_speech_alternates(running)


def assert_speech_alternates(running: Running, channel: int | None = None) -> None:
    events = [e for e in running.events if isinstance(e, SpeechStarted | SpeechEnded) and e.channel == channel]
    assert [type(e) for e in events[::2]] == [SpeechStarted] * len(events[::2])
    assert [type(e) for e in events[1::2]] == [SpeechEnded] * len(events[1::2])
    times = [e.start if isinstance(e, SpeechStarted) else e.end for e in events]
    assert times == sorted(times)
    assert not times or times[-1] <= running.closed.duration


async def send(running: Running, audio: bytes, chance: random.Random, most: int = 48_000) -> None:
    """Messages of random lengths, as fast as the session takes them."""
    at = 0
    while at < len(audio):
        size = 2 * chance.randint(1, max(1, chance.choice([320, 3_200, most]) // 2))
        await running.send(audio[at : at + size], frame=size)
        at += size


ENGINES: dict[str, Callable[..., Any]] = {
    "asyncio": lambda *faults: markers(*faults, kind=ScriptedBackend),
    "threads": lambda *faults: markers(*faults, kind=ScriptedThreadsBackend),
    "no flush": lambda *faults: FunctionEngine(markers(*faults).recognize),
    "limited": lambda *faults: FunctionEngine(limited(4.0), max_stream_seconds=4.0),
    "idle": lambda *faults: FunctionEngine(markers(*faults).recognize, idle_seconds=0.1),
    "limited, flush": lambda *faults: FunctionEngine(limited(4.0), max_stream_seconds=4.0, flush=True),
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("engine", ENGINES)
async def test_a_gate_changes_no_word_and_no_time(engine: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of any length, messages of any length, a detector that is late now and then, and faults."""
    monkeypatch.setattr("bridge.session.channel._backoff", lambda failures, error: 0.01)
    chance = random.Random(f"{engine} {seed}")
    pauses = [chance.choice([0.0, 0.05, 0.3, 0.7, 1.3, 2.2, 5.0, 20.0]) for _ in range(25)]
    audio, expected = spoken(*pauses, first=chance.choice([0.0, 0.01, 0.5, 10.0]))
    moments = sorted(chance.uniform(0, len(audio) / 32_000) for _ in range(chance.randint(0, 10)))
    faults = [ScriptedFault(at, chance.choice(["fail", "end", "stall"])) for at in moments]
    lateness: list[float | None] = chance.choice([[None], [None, 0.0, 0.005], [0.01]])
    voice = gated(
        chance.choice([0.1, 0.5, 1.0, 2.0]),
        lambda: chance.choice(lateness),
        chance.choice([0.02, 0.032, 0.03]),
        silence_seconds=chance.choice([0.1, 0.3, 0.8]),
        padding_seconds=chance.choice([0.0, 0.3, 1.0]),
    )
    limits = SessionLimits(stall_seconds=0.15)
    async with session_on(ENGINES[engine](*faults), limits=limits, voice=voice) as running:
        await send(running, audio, chance)
        running.session.stop()
    assert_heard(running, expected, 0.011 if "limited" in engine else 0.0011)


async def test_long_silence_is_given_to_no_engine() -> None:
    audio, expected = spoken(60, 0.2, 60, 60, first=60)
    async with session_on(markers(), voice=gated(1.0, padding_seconds=0.3)) as running:
        await running.send(audio)
        running.session.stop()
    assert_heard(running, expected)
    assert running.observed.seconds == pytest.approx(241.4)
    # Three stretches of speech, with what surrounds each.
    assert running.observed.given_seconds == pytest.approx(3 * 0.3 + 0.5 + 3 * 1.3, abs=3 * 0.16)


async def test_silence_is_final_as_it_comes_and_is_not_kept() -> None:
    """Ten minutes before anybody speaks, and ten after."""
    audio, expected = spoken(600, first=600)
    voice = gated(1.0, padding_seconds=0.3)
    async with session_on(markers(), limits=SessionLimits(ack_seconds=0), voice=voice) as running:
        buffer = running.session._channels[0]._buffer
        most = 0.0
        for at in range(0, len(audio), 16_000):
            await running.send(audio[at : at + 16_000], frame=16_000)
            most = max(most, (buffer.end - buffer.start) / RATE, len(buffer._chunks) * 0.5)
        assert most < 2.5
        running.session.stop()
    assert_heard(running, expected)
    behind = [ack.received - ack.finalized for ack in running.acks]
    assert max(behind) < 2.5 * RATE
    assert [a.finalized for a in running.acks] == sorted(a.finalized for a in running.acks)


class Lazy:
    """Opens a stream when there is audio, as an engine does that is paid by the minute."""

    def __init__(self, **capabilities: Any) -> None:
        self.opened: list[float] = []
        self.engine = FunctionEngine(self._recognize, **capabilities)

    async def _recognize(self, config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        async def watched() -> AsyncIterator[bytes]:
            async for chunk in audio:
                if chunk and (not self.opened or self.opened[-1] != config.attempt):
                    self.opened.append(config.attempt)
                yield chunk

        async for result in markers().recognize(config, watched()):
            yield result


@pytest.mark.parametrize("flush", [False, True])
async def test_a_flush_in_silence_is_answered_without_a_stream(flush: bool) -> None:
    lazy = Lazy(flush=flush)
    async with session_on(lazy.engine, voice=gated(1.0)) as running:
        await running.send(bytes(32_000 * 5 + 404))
        running.session.flush()
        await acknowledged(running, RATE * 5 + 202)
        assert lazy.opened == []
        audio, _ = spoken(5)
        await running.send(audio)
        await running.until(Final)
        await running.send(bytes(1_000))
        running.session.flush()
        await acknowledged(running, RATE * 10 + 202 + 4_800 + 500)
        running.session.stop()
    assert len(lazy.opened) == 1
    assert running.text == "w0"


async def acknowledged(running: Running, position: int) -> None:
    """Wait until all is final up to there."""
    async with asyncio.timeout(5):
        while not any(ack.finalized >= position for ack in running.acks):
            running.news.clear()
            await running.news.wait()


async def test_a_flush_between_two_streams_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = asyncio.Event()

    def backoff(failures: int, error: BackendError) -> float:
        failed.set()
        return 0.1

    monkeypatch.setattr("bridge.session.channel._backoff", backoff)
    audio, _ = spoken(5)
    async with session_on(markers(ScriptedFault(0.9, "fail")), voice=gated(1.0)) as running:
        await running.send(audio)
        await failed.wait()
        running.session.flush()
        await acknowledged(running, len(audio) // 2)
        running.session.stop()
    assert running.text == "w0"


@pytest.mark.parametrize("lateness", [None, 0.02])
@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("ends", ["flush", "stop"])
@pytest.mark.parametrize("at", [0.05, 0.09, 0.15])
async def test_what_begins_just_before_a_decision_is_heard(
    at: float, ends: str, flush: bool, lateness: float | None
) -> None:
    """`at` seconds of a word have come; the detector is not sure, or not even asked."""
    audio, _ = spoken(5, 5)
    middle = len(spoken(5)[0]) + 2 * round(at * RATE)
    engine = FunctionEngine(markers().recognize, flush=flush)
    async with session_on(engine, voice=gated(1.0, lambda: lateness)) as running:
        await running.send(audio[:middle])
        if ends == "flush":
            running.session.flush()
            await acknowledged(running, middle // 2)
            await running.send(audio[middle:])
        running.session.stop()
    assert running.closed.finalized == running.closed.received
    assert running.text == ("w0 w1~ w1~" if ends == "flush" else "w0 w1~")
    heard = sum(w.end - w.start for w in running.words[1:])
    assert heard == pytest.approx(0.3 if ends == "flush" else at, abs=0.002)
    assert_speech_alternates(running)


async def test_audio_waits_for_a_detector_that_is_late_and_so_does_the_client() -> None:
    voice = gated(1.0, lambda: NEVER)
    audio, expected = spoken(0.5, 3, first=3)
    async with session_on(markers(), voice=voice) as running:
        for at in range(0, len(audio), 3_200):
            if not running.session.feed(audio[at : at + 3_200]):
                assert running.session.audio_seconds < 12
                room = asyncio.create_task(running.session.room())
                await asyncio.sleep(0.001)
                assert not room.done()
                ears(voice).answer()
                async with asyncio.timeout(1):
                    await room
        ears(voice).lateness = lambda: None
        ears(voice).answer()
        running.session.stop()
    assert_heard(running, expected)


async def test_a_stop_waits_for_a_detector_that_is_late() -> None:
    voice = gated(1.0, lambda: NEVER)
    async with session_on(markers(), voice=voice) as running:
        await running.send(spoken(0.1)[0])
        running.session.stop()
        await asyncio.sleep(0.01)
        assert running.text == ""
        ears(voice).answer()
    assert running.text == "w0"
    assert_speech_alternates(running)


async def test_a_detector_that_never_answers_does_not_hold_a_stop_for_ever() -> None:
    voice = gated(1.0, lambda: NEVER)
    async with session_on(markers(), limits=SessionLimits(stop_seconds=0.2), voice=voice) as running:
        await running.send(spoken(0.1)[0])
        running.session.stop()
    assert running.closed.code == "backend_stalled"
    assert all(detector.closed for detector in ears(voice).detectors)


async def test_a_client_that_goes_while_the_detector_is_late_leaves_nothing() -> None:
    voice = gated(1.0, lambda: NEVER)
    before = len(asyncio.all_tasks())
    with pytest.raises(ExceptionGroup):
        async with session_on(markers(), voice=voice) as running:
            await running.send(spoken(0.1)[0])
            running.session.flush()
            raise LookupError("the client is gone")
    assert all(detector.closed for detector in ears(voice).detectors)
    said = list(running.events)
    ears(voice).answer()
    running.session.stop()
    await asyncio.sleep(0)
    assert running.events == said
    assert len(asyncio.all_tasks()) == before


async def test_a_detector_that_fails_open_lets_all_pass() -> None:
    voice = VoicePolicy(NonzeroDetection(), Endpointing(threshold=0.0), 1.0)  # each frame reaches that
    audio, expected = spoken(5, 5)
    async with session_on(markers(), voice=voice) as running:
        await running.send(audio)
        running.session.stop()
    assert_heard(running, expected)
    assert running.observed.given_seconds == pytest.approx(10.6)


@pytest.mark.parametrize("gate", [None, 2.0])
async def test_an_utterance_ends_where_the_session_wants_it(gate: float | None) -> None:
    """The engine hears no endpoint by itself."""

    async def deaf(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        assert config.silence_seconds == 0.4
        given = answered = 0
        async for chunk in audio:
            given += len(chunk) // 2
            if not chunk and given > answered:
                yield Result("speech", True, answered / RATE, given / RATE)
                answered = given

    start = Start(endpointing={"silence_seconds": 0.4})
    voice = VoicePolicy(NonzeroDetection(), gate_seconds=gate)
    async with session_on(FunctionEngine(deaf, flush=True), start, voice=voice) as running:
        await running.send(spoken(0.1, 0.8, 0.1, 0.8)[0], frame=640)
        first, second, *_ = await running.until(Final, 2)
        running.session.stop()
    assert isinstance(first, Final)
    assert isinstance(second, Final)
    assert (first.end, second.end) == pytest.approx((0.7 + 0.4, 2.2 + 0.4), abs=0.07)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("engine", ENGINES)
async def test_endpoints_cut_no_word(engine: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the messages' lengths, and however late it is known that the utterance has ended."""
    monkeypatch.setattr("bridge.session.channel._backoff", lambda failures, error: 0.01)
    chance = random.Random(f"{engine} {seed}")
    audio, expected = spoken(*[chance.choice([0.0, 0.12, 0.2, 0.3, 0.5, 0.9]) for _ in range(40)])
    lateness: list[float | None] = chance.choice([[None], [None, 0.0, 0.005]])
    detection = NonzeroDetection(0.032, lambda: chance.choice(lateness))
    voice = VoicePolicy(detection, gate_seconds=chance.choice([None, None, 0.5]))
    start = Start(endpointing={"silence_seconds": chance.choice([0.1, 0.2, 0.5])})
    async with session_on(ENGINES[engine](), start, voice=voice) as running:
        await send(running, audio, chance)
        running.session.stop()
    assert_heard(running, expected, 0.011 if "limited" in engine else 0.0011)


async def test_an_engine_that_leaves_a_flush_unanswered_is_replaced_while_nobody_speaks() -> None:
    """The silence that is passed over is no sign of life."""

    async def stuck(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        async def until_flush() -> AsyncIterator[bytes]:
            async for chunk in audio:
                if not chunk and not config.attempt:
                    await asyncio.get_running_loop().create_future()
                yield chunk

        async for result in markers().recognize(config, until_flush()):
            if not config.attempt:
                continue
            yield result

    limits = SessionLimits(stall_seconds=0.2)
    async with session_on(FunctionEngine(stuck, flush=True), limits=limits, voice=gated(1.0)) as running:
        await running.send(spoken(2)[0])
        async with asyncio.timeout(5):
            while not running.text:
                await running.send(bytes(3_200))
                await asyncio.sleep(0.02)
        running.session.stop()
    assert running.observed.errors == ["stalled"]
    assert running.text == "w0"


async def test_noise_that_is_not_speech_is_no_broken_off_word() -> None:
    """The stream is ended because nothing is let through: that is no word whose second half is still to come."""
    hum = np.tile(np.array([900, -900], "<i2"), RATE).tobytes()  # 2 s; for the detector of this test it is silence
    detection = NonzeroDetection()
    voice = VoicePolicy(detection, gate_seconds=0.5)
    detection.silent = {900, -900}
    lazy = Lazy(idle_seconds=0.1)
    async with session_on(lazy.engine, voice=voice) as running:
        await running.send(spoken(0.5)[0] + hum)
        await asyncio.sleep(0.3)
        await running.send(hum)
        await asyncio.sleep(0.3)
        running.session.stop()
    assert running.text == "w0"
    assert lazy.opened == [0]


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("seconds", [0.5, 2.0])
async def test_what_the_gate_holds_back_is_no_backlog(seconds: float, flush: bool) -> None:
    """The audio that a coming onset may need is as much as may wait, and as much as may be kept."""
    audio, expected = spoken(5, 0.3, 5, first=5)
    lazy = Lazy(flush=flush)
    limits = SessionLimits(queue_seconds=seconds, replay_seconds=seconds + 1)
    async with session_on(lazy.engine, limits=limits, voice=gated(1.0, padding_seconds=2.0)) as running:
        async with asyncio.timeout(5):
            await running.send(audio)
        running.session.stop()
    assert_heard(running, expected)
    assert len(lazy.opened) < 10


async def test_a_flush_cuts_where_it_was_asked_for_however_much_is_sent_behind_it() -> None:
    """The detector answers later than the audio behind the flush comes; the open gate lets that pass."""
    flushed: list[int] = []

    async def count(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        given = 0
        async for chunk in audio:
            given += len(chunk) // 2
            if not chunk:
                flushed.append(given)
                yield Result("", True, 0, given / RATE)
        yield Result("", True, 0, given / RATE)

    voice = gated(1.0)
    detection = voice.detection
    assert isinstance(detection, NonzeroDetection)
    speech = np.full(RATE // 4, 1_000, "<i2").tobytes()
    async with session_on(FunctionEngine(count, flush=True), voice=voice) as running:
        await running.send(speech)
        await running.until(SpeechStarted)
        detection.lateness = lambda: NEVER
        await running.send(speech)
        running.session.flush()
        await running.send(speech)
        detection.lateness = lambda: None
        detection.answer()
        running.session.stop()
    assert flushed == [len(speech)]


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 44_100])
async def test_a_flush_waits_for_no_frame_that_is_not_whole(rate: int) -> None:
    """A detector that works at another rate is behind by its resampler, and more audio may never come."""
    voice = VoicePolicy(WebrtcDetection(), gate_seconds=1.0)
    engine, start = FunctionEngine(markers().recognize, sample_rates=(rate,)), Start(AudioFormat(sample_rate=rate))
    sent = 0
    async with session_on(engine, start, voice=voice) as running:
        for n in range(1, 12):
            sent += 1_600 + n
            await running.send(bytes(3_200 + 2 * n))
            running.session.flush()
            await acknowledged(running, sent)
        running.session.stop()
    assert running.closed.finalized == running.closed.received


@pytest.mark.parametrize("ends", ["stop", "flush"])
@pytest.mark.parametrize("kind", [ScriptedBackend, ScriptedThreadsBackend])
@pytest.mark.parametrize("voice", [None, gated(1.0)], ids=["all", "gated"])
async def test_an_engine_that_takes_all_audio_and_no_more_has_stalled(
    voice: VoicePolicy | None, kind: Any, ends: str
) -> None:
    """No audio waits for it, only the mark or the end."""
    audio, expected = spoken(0.1)
    limits = SessionLimits(stall_seconds=0.2)
    async with session_on(markers(ScriptedFault(0.35, "stall"), kind=kind), limits=limits, voice=voice) as running:
        await running.send(audio)
        await asyncio.sleep(0.05)  # the engine takes it and stalls
        if ends == "flush":
            running.session.flush()
            await running.until(Final)
        running.session.stop()
    assert_heard(running, expected)
    assert running.observed.errors == ["stalled"]
