from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from bridge.audio.vad import silero
from bridge.audio.vad.silero import MOST_FRAMES, MOST_STREAMS, SileroDetection
from bridge.audio.vad.silero_model import Float32, Memory, SileroModel, missing
from tests.audio.vad.listening import Listener, chunks, judged, speech_times
from tests.speech import SAMPLES, manifest, pcm

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"needs {', '.join(missing())}")

FRAME = 1_024  # bytes
SPEECH = "hello.flac"


@pytest.fixture
async def detection() -> AsyncIterator[SileroDetection]:
    detection = SileroDetection()
    await detection.load()
    yield detection
    await detection.close()


class Slow(SileroModel):
    """Judges when it is allowed to, and remembers how many streams each batch had."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()
        self.allowed = threading.Event()
        self.batches: list[int] = []

    def judge(self, frames: Sequence[bytes], memory: Memory) -> tuple[Float32, Memory]:
        self.batches.append(len(frames))
        self.begun.set()
        assert self.allowed.wait(10)
        return super().judge(frames, memory)


class Broken(SileroModel):
    def judge(self, frames: Sequence[bytes], memory: Memory) -> tuple[Float32, Memory]:
        raise RuntimeError("out of order")


@pytest.fixture
async def slow(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[SileroDetection, Slow]]:
    monkeypatch.setattr(silero, "SileroModel", Slow)
    detection = SileroDetection()
    await detection.load()
    model: Any = detection._model
    yield detection, model
    model.allowed.set()
    await detection.close()


@pytest.mark.parametrize(("file", "rate"), [(SPEECH, 16_000), ("telephone.flac", 8_000), ("rate-22k.flac", 22_050)])
async def test_speech_is_found_where_it_is(detection: SileroDetection, file: str, rate: int) -> None:
    times = speech_times(await judged(detection, [pcm(SAMPLES / file)], rate), detection.frame_seconds)
    spoken = manifest()[file]["utterances"]
    late = 0.3 if file.startswith("telephone") else 0.1  # no more than the padding before an onset
    assert times[0][0] == pytest.approx(spoken[0]["start"], abs=late)
    assert times[-1][1] == pytest.approx(spoken[-1]["end"], abs=0.15)


async def test_silence_is_silence(detection: SileroDetection) -> None:
    assert max(await judged(detection, [bytes(64_000)])) < 0.1


async def test_the_probabilities_depend_neither_on_the_messages_nor_on_other_streams(
    detection: SileroDetection,
) -> None:
    audio = {file: pcm(SAMPLES / file) for file in (SPEECH, "short.flac", "voice-slt.flac")}
    alone = {file: await judged(detection, [stream]) for file, stream in audio.items()}
    sizes = (640, 3_200, 646)
    together = await asyncio.gather(
        *(judged(detection, chunks(stream, size)) for stream, size in zip(audio.values(), sizes, strict=True))
    )
    for one, other in zip(alone.values(), together, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


async def test_what_waits_while_a_batch_is_judged_makes_the_next_one(slow: tuple[SileroDetection, Slow]) -> None:
    detection, model = slow
    listeners = [Listener() for _ in range(5)]
    detectors = [detection.open(16_000, listener) for listener in listeners]
    detectors[0].push(bytes(FRAME))
    await asyncio.to_thread(model.begun.wait, 10)
    for detector in detectors:
        detector.push(bytes(2 * FRAME))
    assert detectors[0].waiting_seconds == pytest.approx(3 * 0.032)
    model.allowed.set()
    await asyncio.gather(*(listener.heard(2) for listener in listeners))
    await listeners[0].heard(3)
    assert model.batches == [1, 5, 5]


async def test_a_batch_is_limited_and_all_have_their_turn(slow: tuple[SileroDetection, Slow]) -> None:
    detection, model = slow
    listeners = [Listener() for _ in range(MOST_STREAMS + 6)]
    for listener in listeners:
        detection.open(16_000, listener).push(bytes((MOST_FRAMES + 1) * FRAME))
    model.allowed.set()
    await asyncio.gather(*(listener.heard(MOST_FRAMES + 1) for listener in listeners))
    assert max(model.batches) == MOST_STREAMS
    # Those that had no turn in the first batch come before those whose last frame is left.
    assert model.batches[: MOST_FRAMES + 1] == [MOST_STREAMS] * (MOST_FRAMES + 1)
    assert sum(model.batches) == len(listeners) * (MOST_FRAMES + 1)


async def test_a_closed_stream_hears_nothing_more_and_takes_no_time(slow: tuple[SileroDetection, Slow]) -> None:
    detection, model = slow
    judged_one, waiting_one, other = Listener(), Listener(), Listener()
    first, second, third = (detection.open(16_000, listener) for listener in (judged_one, waiting_one, other))
    first.push(bytes(FRAME))
    await asyncio.to_thread(model.begun.wait, 10)
    second.push(bytes(FRAME))
    third.push(bytes(FRAME))
    first.close()
    second.close()
    second.push(bytes(FRAME))
    model.allowed.set()
    await other.heard(1)
    assert judged_one.calls == waiting_one.calls == 0
    assert model.batches == [1, 1]


async def test_what_one_session_does_wrong_harms_no_other(detection: SileroDetection) -> None:
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))

    def fail(probabilities: Sequence[float]) -> None:
        raise ZeroDivisionError

    listener = Listener()
    for heard in (fail, listener):
        detection.open(16_000, heard).push(bytes(FRAME))
    await listener.heard(1)
    assert [type(failure["exception"]) for failure in failures] == [ZeroDivisionError]


async def test_a_model_that_fails_lets_all_through_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(silero, "SileroModel", Broken)
    detection = SileroDetection()
    await detection.load()
    with caplog.at_level(logging.ERROR):
        assert await judged(detection, [bytes(FRAME * 3)] * 4) == [1.0] * 12
        assert await judged(detection, [bytes(FRAME)]) == [1.0]
    assert len(caplog.records) == 1
    await detection.close()


async def test_closing_waits_for_the_batch_and_tells_nothing_more(slow: tuple[SileroDetection, Slow]) -> None:
    detection, model = slow
    listener = Listener()
    detector = detection.open(16_000, listener)
    detector.push(bytes(FRAME))
    await asyncio.to_thread(model.begun.wait, 10)
    detector.push(bytes(FRAME))
    closing = asyncio.create_task(detection.close())
    await asyncio.sleep(0)
    assert not closing.done()
    model.allowed.set()
    await closing
    detector.push(bytes(FRAME))
    await detection.close()
    assert listener.calls == 0
    with pytest.raises(RuntimeError):
        detection.open(16_000, listener)


async def test_closing_may_be_cancelled_and_done_again(slow: tuple[SileroDetection, Slow]) -> None:
    detection, model = slow
    detection.open(16_000, Listener()).push(bytes(FRAME))
    await asyncio.to_thread(model.begun.wait, 10)
    closing = asyncio.create_task(detection.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    model.allowed.set()
    await detection.close()


async def test_loading_may_be_cancelled() -> None:
    detection = SileroDetection()
    loading = asyncio.create_task(detection.load())
    await asyncio.sleep(0)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    await detection.close()


async def test_nothing_opens_before_it_is_loaded() -> None:
    detection = SileroDetection()
    with pytest.raises(RuntimeError):
        detection.open(16_000, Listener())
    await detection.close()
