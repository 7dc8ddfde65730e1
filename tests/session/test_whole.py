"""A recording that is all here: the same words as from a session, and an end for each way to end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from backends.base import BackendError, RecognitionConfig, Result
from backends.scripted import ScriptedFault, marker_audio
from bridge.audio.formats import AudioFormat, Encoding
from bridge.errors import BridgeError
from bridge.observe.metrics import Metrics
from bridge.protocols.events import Start
from bridge.session.engine import Engine
from bridge.session.failover import EnginePool
from bridge.session.limits import SessionLimits
from bridge.session.manager import SessionManager
from bridge.session.voice import VoicePolicy
from bridge.session.whole import PIECE_SECONDS, Whole
from tests.session.harness import NonzeroDetection, Observed, seats_of
from tests.session.pools import QUICK, failing, function, loaded, scripted
from tests.wire import markers

LIMIT = 10.0
PCM = AudioFormat(Encoding.PCM_S16LE, 16_000)


@contextlib.asynccontextmanager
async def whole(*engines: Engine) -> AsyncIterator[tuple[Whole, Observed]]:
    pool = await loaded(*engines)
    observed = Observed()
    async with asyncio.timeout(LIMIT):
        with seats_of(pool, "en-US") as seats:
            yield Whole("w", Start(partials=False), seats[0], QUICK, observer=observed, language="en-US"), observed
        assert not sum(engine.streams for engine in engines), "every place was given back"
        await pool.close()


async def words(recording: Whole, audio: bytes) -> list[str]:
    return [word for final in await recording.finals(PCM, audio) for word in final.text.split()]


async def test_every_word_once() -> None:
    audio = marker_audio(20)
    assert len(audio) > 4 * PIECE_SECONDS * 32_000
    async with whole(scripted("one")) as (recording, observed):
        assert await words(recording, audio) == markers(20)
        assert (recording.end_code, recording.backend) == ("stopped", "one")
        assert recording.audio_seconds == observed.seconds == observed.given_seconds == len(audio) / 32_000


async def test_a_file_of_another_rate_is_resampled() -> None:
    heard = 0

    async def length(_: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        nonlocal heard
        async for chunk in audio:
            heard += len(chunk) // 2
        yield Result("so long", True, 0.0, heard / 16_000)

    async with whole(function("one", length)) as (recording, _):
        finals = await recording.finals(AudioFormat(Encoding.PCM_S16LE, 8_000), bytes(2 * 8_001))
        assert [final.end for final in finals] == [1.0]
        assert heard == 16_002, "its last samples too"


async def test_nothing_is_lost_or_doubled_by_faults_and_another_backend() -> None:
    faults = (ScriptedFault(1.0, "fail"), ScriptedFault(2.5, "end"), ScriptedFault(4.0, "stall"))
    async with whole(scripted("first", *faults), scripted("second")) as (recording, observed):
        assert await words(recording, marker_audio(20)) == markers(20)
        assert recording.backend == "second"
        assert observed.moves == [("first", "second")]


async def test_a_backend_that_cannot_go_on() -> None:
    async with whole(function("one", failing(retryable=False))) as (recording, _):
        with pytest.raises(BridgeError) as caught:
            await recording.finals(PCM, marker_audio(2))
        assert caught.value.code == recording.end_code == "backend_failed"


async def test_a_bug_costs_one_recording_and_tells_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with whole(scripted("one")) as (recording, _):
        monkeypatch.setattr(recording, "_take", lambda _: 1 / 0)
        with pytest.raises(BridgeError, match=r"^(?!.*division)") as caught:
            await recording.finals(PCM, marker_audio(2))
        assert caught.value.code == recording.end_code == "internal"
        assert "session failed" in caplog.text


class Stuck:
    """An engine that answers nothing, and knows when its stream was closed."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.closed = False

    async def recognize(self, _: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        self.asked.set()
        try:
            await asyncio.get_running_loop().create_future()
            yield Result("", True, 0, 0)
        finally:
            self.closed = True


async def test_cancelled_it_leaves_no_stream_open() -> None:
    stuck = Stuck()
    async with whole(function("one", stuck.recognize)) as (recording, _):
        task = asyncio.create_task(words(recording, marker_audio(2)))
        await stuck.asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert stuck.closed
        assert recording.end_code is None, "nobody was told of an end"


async def test_a_stream_that_fails_as_the_server_gives_up_is_not_followed_by_another() -> None:
    async def fails(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        async for _ in audio:
            if not config.attempt:
                recording.abandon()
                raise BackendError("now", retryable=True)
        yield Result("too late", True, 0, 1)

    async with whole(function("one", fails)) as (recording, _):
        with pytest.raises(BridgeError) as caught:
            await recording.finals(PCM, marker_audio(2))
        assert caught.value.code == "shutting_down"


async def test_a_server_that_stops_waits_for_it_and_then_no_longer() -> None:
    stuck = Stuck()
    manager = SessionManager(
        EnginePool(function("one", stuck.recognize)),
        SessionLimits(stall_seconds=LIMIT),
        Metrics(),
        max_sessions=1,
        language="en-US",
    )
    await manager.load()
    start = Start()

    async def hear() -> None:
        async with manager.place() as place:
            assert manager.hears_whole(place, start)
            await manager.whole(place, start, "test", manager.limits, PCM, marker_audio(2))

    task = asyncio.create_task(hear())
    await stuck.asked.wait()
    assert not await manager.drain(0.05)
    with pytest.raises(BridgeError) as caught:
        await task
    assert caught.value.code == "shutting_down"
    assert stuck.closed
    assert manager.count == 0
    await manager.close()


@pytest.mark.parametrize(
    ("asked", "voice", "whole"),
    [
        (Start(), VoicePolicy(), True),
        (Start(), VoicePolicy(NonzeroDetection()), True),
        (Start(), VoicePolicy(NonzeroDetection(), gate_seconds=1.0), False),
        (Start(vad=True), VoicePolicy(NonzeroDetection()), False),
        (Start(denoise=True), VoicePolicy(), False),
    ],
)
async def test_what_only_a_session_has_takes_a_session(asked: Start, voice: VoicePolicy, whole: bool) -> None:
    pool = EnginePool(scripted("one"))
    manager = SessionManager(pool, SessionLimits(), Metrics(), max_sessions=1, language="en-US", voice=voice)
    await manager.load()
    async with manager.place() as place:
        assert manager.hears_whole(place, asked) is whole
    await manager.close()
