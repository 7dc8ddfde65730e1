"""Both drivers against the emulator: statuses, cancellation, what is left over, pacing, the pool.

The contract suite (tests/backends/test_contract.py) runs over both as well; here stands what only Google's can do.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from typing import Any

import grpc
import pytest

from backends import registry
from backends.base import BackendError, Fault, RecognitionConfig, Result
from backends.google.api import METADATA
from backends.google.async_backend import GoogleBackend, _Stream
from backends.google.errors import MASKED
from backends.google.options import GoogleOptions
from backends.google.threads_backend import GoogleThreadsBackend
from backends.scripted import marker_audio
from bridge.emulator.faults import Faults, Plan
from bridge.emulator.server import Emulator, EmulatorConfig, emulating
from bridge.session.engine import Engine

SILENCE = bytes(16_000)  # half a second
RETRY = (Fault.ENGINE, True)


@pytest.fixture(params=["google", "google-threads"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextlib.asynccontextmanager
async def driving(name: str, emulator: Emulator, *, threads: int = 4, **options: Any) -> AsyncIterator[Engine]:
    """The engine, loaded, told to call the emulator."""
    backend = registry.load_class(name)
    given = {"endpoint": emulator.address, "replay_speed": 0.0, **options}
    engine = Engine(backend(GoogleOptions(**given)), threads=threads)
    await engine.load()
    try:
        yield engine
    finally:
        async with asyncio.timeout(8):
            while getattr(engine._face, "_busy", 0):  # threads that closed streams had
                await asyncio.sleep(0.01)
        await engine.close()


async def played(chunks: Iterable[bytes], *, then: asyncio.Future[None] | None = None) -> AsyncIterator[bytes]:
    """The chunks; then the end, or what the future brings."""
    for chunk in chunks:
        yield chunk
        await asyncio.sleep(0)
    if then is not None:
        await then


def cut(audio: bytes, size: int = 3_200) -> list[bytes]:
    return [audio[i : i + size] for i in range(0, len(audio), size)]


def forever() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


async def recognized(engine: Engine, audio: AsyncIterator[bytes], limit: float = 10) -> list[Result]:
    async with asyncio.timeout(limit):
        return [result async for result in engine.recognize(RecognitionConfig(), audio)]


def text(results: list[Result]) -> str:
    return " ".join(r.text for r in results if r.is_final and r.text)


async def failure(engine: Engine, audio: AsyncIterator[bytes]) -> BackendError:
    with pytest.raises(BackendError) as caught:
        await recognized(engine, audio)
    return caught.value


async def none_left(emulator: Emulator) -> None:
    """No stream on the server, no task and no thread of a driver's on this side."""
    await emulator.stats.until(lambda stats: stats.open == 0)
    async with asyncio.timeout(8):
        while [t for t in asyncio.all_tasks() if t.get_name().startswith("google-")]:
            await asyncio.sleep(0.01)
        # gRPC's own for the requests (`_consume_request_iterator`) and for the connection, and ours
        while [t for t in threading.enumerate() if "consume_request" in t.name or t.name == "google-reader"]:
            await asyncio.sleep(0.01)


# How streams end


REFUSALS = {
    "INVALID_ARGUMENT": ("rejected", Fault.CLIENT, False),
    "PERMISSION_DENIED": ("denied", Fault.OPERATOR, False),
    "UNAUTHENTICATED": ("unauthenticated", Fault.OPERATOR, False),
    "NOT_FOUND": ("misconfigured", Fault.OPERATOR, False),
    "RESOURCE_EXHAUSTED": ("overloaded", *RETRY),
    "UNAVAILABLE": ("unavailable", *RETRY),
    "CANCELLED": ("cancelled", *RETRY),
    "INTERNAL": ("internal", *RETRY),
}


@pytest.mark.parametrize("status", REFUSALS)
async def test_refusals(name: str, status: str) -> None:
    """However it is refused: where a write masked the status, the driver asked again."""
    config = EmulatorConfig(plan=Plan(usual=Faults(refuse=status)))
    async with emulating(config) as emulator, driving(name, emulator) as engine:
        error = await failure(engine, played(cut(marker_audio(3)), then=forever()))
        assert (error.code, error.fault, error.retryable) == REFUSALS[status]
        assert error.__cause__ is not None
        await none_left(emulator)


ABORTS = {
    "OUT_OF_RANGE": "stream_limit",
    "ABORTED": "aborted",
    "UNAVAILABLE": "unavailable",
    "INTERNAL": "internal",
    "UNKNOWN": "unknown",
    "CANCELLED": "cancelled",
    "RESOURCE_EXHAUSTED": "overloaded",
}


async def test_aborts_in_mid_speech(name: str) -> None:
    """An answer has come by then, so no status is asked for again; a masked one may be `unknown_status`."""
    messages = {"OUT_OF_RANGE": "Exceeded maximum allowed stream duration of 305 seconds."}
    plan = Plan(streams=tuple(Faults(abort_at=2.0, status=s, message=messages.get(s)) for s in ABORTS))
    async with emulating(EmulatorConfig(plan=plan)) as emulator, driving(name, emulator) as engine:
        for code in ABORTS.values():
            error = await failure(engine, played(cut(marker_audio(4)), then=forever()))
            assert error.code in (code, "unknown_status")
            assert (error.fault, error.retryable) == RETRY
        await none_left(emulator)
        assert emulator.stats.opened == len(ABORTS)


async def test_a_stream_that_google_ends_by_itself(name: str) -> None:
    """Nothing is said of the audio behind the last final: the session sends it again."""
    plan = Plan(usual=Faults(abort_at=1.5, status="OK"))
    results = []
    async with emulating(EmulatorConfig(plan=plan)) as emulator, driving(name, emulator) as engine:
        with contextlib.suppress(BackendError):  # `unknown_status`, if a write was under way
            async for result in engine.recognize(RecognitionConfig(), played(cut(marker_audio(4)), then=forever())):
                results.append(result)  # noqa: PERF401 - what came before an exception counts
        assert text(results) in ("w0", "w0 w1")
        assert max(r.end for r in results if r.is_final) <= 1.5
        await none_left(emulator)


async def test_a_stream_that_google_ends_by_itself_is_told_from_one_that_heard_everything(name: str) -> None:
    """Without a write that is under way, which would hide the status: the audio goes no further than the end."""
    plan = Plan(usual=Faults(abort_at=1.5, status="OK"))
    audio = marker_audio(4)[: round(1.6 * 32_000)]
    async with emulating(EmulatorConfig(plan=plan)) as emulator, driving(name, emulator) as engine:
        error = await failure(engine, played(cut(audio), then=forever()))
        assert (error.code, error.fault, error.retryable) == ("ended_early", *RETRY)
        await none_left(emulator)


async def test_a_channel_that_is_closed_under_a_stream(name: str) -> None:
    async with emulating() as emulator, driving(name, emulator) as engine:
        stream = engine.recognize(RecognitionConfig(), played(cut(marker_audio(2)), then=forever()))
        await anext(stream)
        closing = engine._backend.close
        await (closing() if asyncio.iscoroutinefunction(closing) else asyncio.to_thread(closing))
        with pytest.raises(BackendError) as caught:
            async with asyncio.timeout(5):
                async for _ in stream:
                    pass
        assert (caught.value.code, caught.value.retryable) == ("cancelled", True)
        await none_left(emulator)


async def test_a_server_that_is_not_there(name: str) -> None:
    async with emulating() as emulator:
        await emulator.kill()
        async with driving(name, emulator) as engine:
            began = time.monotonic()
            error = await failure(engine, played(cut(marker_audio(1)), then=forever()))
            assert (error.code, error.retryable) == ("unavailable", True)
            assert time.monotonic() - began < 2  # the client's own method would try for 5,000 s


async def test_a_server_that_dies_and_comes_back(name: str) -> None:
    async with emulating() as emulator, driving(name, emulator) as engine:
        said = asyncio.Event()

        async def audio() -> AsyncIterator[bytes]:
            for chunk in cut(marker_audio(2)):
                yield chunk
            await said.wait()
            await emulator.kill()
            await forever()

        with pytest.raises(BackendError) as caught:
            async with asyncio.timeout(10):
                async for _ in engine.recognize(RecognitionConfig(), audio()):
                    said.set()
        assert caught.value.code == "unavailable"
        for _ in range(4):  # attempts in the outage make gRPC wait longer, within bounds
            assert (await failure(engine, played([SILENCE]))).code == "unavailable"
            await asyncio.sleep(0.2)
        await emulator.start()
        async with asyncio.timeout(4):
            while True:
                with contextlib.suppress(BackendError):
                    assert text(await recognized(engine, played(cut(marker_audio(2))))) == "w0 w1"
                    break
                await asyncio.sleep(0.05)


async def test_a_call_whose_status_is_masked_ends_in_core_too() -> None:
    """Nobody reads what was answered, so that Core does not tell of its end; the write that fails tells it."""

    def waiting() -> list[str]:
        return [repr(task) for task in asyncio.all_tasks() if "_handle_status_once_received" in repr(task)]

    plan = Plan(usual=Faults(abort_at=2.0))
    async with emulating(EmulatorConfig(plan=plan)) as emulator, driving("google", emulator) as engine:
        assert isinstance(engine._backend, GoogleBackend)
        service = engine._backend._service
        with service.pool.lease() as client:
            first, transcript = service.open(RecognitionConfig())
            stream = _Stream(service, client, transcript)
            speech = cut(marker_audio(100))
            stream.start(first, speech[0], played(speech[1:]))
            assert stream._writing is not None
            async with asyncio.timeout(8):
                await stream._writing
                assert stream._call.done()
                assert waiting()
                await stream.close()
                while waiting():
                    await asyncio.sleep(0.01)
        await none_left(emulator)


async def test_a_masked_status_is_asked_for_again() -> None:
    """Once, without audio. What is then still not known may be tried again by the session."""
    masked = Faults(refuse="INTERNAL", message=MASKED)
    plan = Plan(streams=(masked, Faults(refuse="PERMISSION_DENIED"), masked, Faults(), masked, masked))
    async with emulating(EmulatorConfig(plan=plan)) as emulator, driving("google", emulator) as engine:
        error = await failure(engine, played(cut(marker_audio(1)), then=forever()))
        assert (error.code, error.fault) == ("denied", Fault.OPERATOR)
        error = await failure(engine, played(cut(marker_audio(1)), then=forever()))
        assert (error.code, error.retryable) == ("unknown_status", True)
        assert emulator.stats.opened == 4
        error = await failure(engine, played(cut(marker_audio(1)), then=forever()))
        assert error.code == "unknown_status"
        assert emulator.stats.opened == 6
        await none_left(emulator)


async def test_a_refusal_is_never_mistaken_however_fast_audio_comes() -> None:
    """Without the hold, writes mask the status of most refusals."""
    plan = Plan(usual=Faults(refuse="PERMISSION_DENIED"))
    async with (
        emulating(EmulatorConfig(plan=plan)) as emulator,
        driving("google", emulator, hold_seconds=0.0) as engine,
    ):
        errors = await asyncio.gather(
            *(failure(engine, played(cut(marker_audio(5), 320), then=forever())) for _ in range(20))
        )
        assert {error.code for error in errors} == {"denied"}


async def test_the_audio_s_own_failure_passes(name: str) -> None:
    async with emulating() as emulator, driving(name, emulator) as engine:
        broken = forever()
        broken.set_exception(ZeroDivisionError())
        error = await failure(engine, played(cut(marker_audio(1)), then=broken))
        assert isinstance(error.__cause__, ZeroDivisionError)  # the engine's face wraps what is not a BackendError
        await none_left(emulator)


async def test_a_writer_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the stream would hang until it is given up, and nobody would know why."""
    chunks = itertools.count()

    def broken(chunk: bytes) -> list[bytes]:
        if next(chunks) == 3:
            raise ZeroDivisionError
        return [chunk]

    monkeypatch.setattr("backends.google.async_backend.messages", broken)
    async with emulating() as emulator, driving("google", emulator) as engine:
        error = await failure(engine, played(cut(marker_audio(3)), then=forever()))
        assert isinstance(error.__cause__, ZeroDivisionError)
        await none_left(emulator)


# When streams begin


async def test_nothing_is_opened_before_there_is_audio(name: str) -> None:
    async with emulating() as emulator, driving(name, emulator) as engine:
        assert await recognized(engine, played([])) == []
        stream = engine.recognize(RecognitionConfig(), played([], then=forever()))
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert emulator.stats.opened == 0


async def test_a_language_that_the_model_cannot_hear(name: str) -> None:
    async with emulating() as emulator, driving(name, emulator, model="medical_dictation") as engine:
        config = RecognitionConfig(language="de-DE")
        with pytest.raises(BackendError, match="knows en-US only") as caught:
            await anext(engine.recognize(config, played([SILENCE])))
        assert (caught.value.code, caught.value.fault) == ("language", Fault.CLIENT)
        assert emulator.stats.opened == 0


async def test_the_quota_of_requests(name: str) -> None:
    async with emulating() as emulator, driving(name, emulator, requests_per_minute=10) as engine:
        for _ in range(9):
            assert not engine.full
            await recognized(engine, played([SILENCE]))
        assert engine.full  # new sessions are refused; those that are open may open one more stream
        await recognized(engine, played([SILENCE]))
        error = await failure(engine, played([SILENCE]))
        assert (error.code, error.retryable) == ("overloaded", True)
        assert emulator.stats.opened == 10


# What is sent


async def test_messages_are_small(name: str) -> None:
    async with emulating() as emulator, driving(name, emulator) as engine:
        assert text(await recognized(engine, played([marker_audio(20)]))) == " ".join(f"w{i}" for i in range(20))
        assert emulator.stats.largest_audio <= 12_800


async def test_a_replay_is_paced(name: str) -> None:
    async with emulating() as emulator, driving(name, emulator, replay_speed=10.0) as engine:
        began = time.monotonic()
        assert text(await recognized(engine, played([marker_audio(5)]))) == "w0 w1 w2 w3 w4"  # 3 s
        assert 0.24 <= time.monotonic() - began < 2


async def test_no_audio_before_the_hold_is_over() -> None:
    async with emulating() as emulator, driving("google", emulator, hold_seconds=0.3) as engine:
        began = time.monotonic()
        await recognized(engine, played([SILENCE]))
        assert time.monotonic() - began >= 0.3


async def test_silence_is_closed_while_google_says_nothing(name: str) -> None:
    """The stream stays open, no response comes: the driver itself must wake up."""
    async with emulating() as emulator, driving(name, emulator) as engine:
        stream = engine.recognize(RecognitionConfig(), played([SILENCE] * 16, then=forever()))
        end = 0.0
        async with asyncio.timeout(5):
            while end < 4:
                result = await anext(stream)
                assert (result.text, result.is_final, result.start) == ("", True, end)
                end = result.end
        assert end <= 7
        await stream.aclose()
        await none_left(emulator)


async def test_silence_is_closed_while_a_server_answers_it(name: str) -> None:
    """With a response to each message there is always something to read."""

    async def answers(api: Any, asked: Any, audio: AsyncGenerator[bytes, None]) -> AsyncGenerator[Any, None]:
        async for _ in audio:
            yield api.response()

    emulator = Emulator(EmulatorConfig(), answers)
    await emulator.start()
    try:
        async with driving(name, emulator) as engine:
            results = await recognized(engine, played([SILENCE] * 40))
    finally:
        await emulator.kill()
    assert not text(results)
    assert len(results) >= 3
    assert results[-1].end == pytest.approx(20)


async def test_speech_after_silence_is_heard(name: str) -> None:
    audio = [SILENCE] * 20 + cut(marker_audio(3)) + [SILENCE] * 20 + cut(marker_audio(2, first=3))
    async with emulating() as emulator, driving(name, emulator) as engine:
        results = [r for r in await recognized(engine, played(audio)) if r.is_final]
    assert text(results) == "w0 w1 w2 w3 w4"
    assert all(before.end <= after.start + 0.001 for before, after in itertools.pairwise(results))
    words = [word for result in results for word in result.words]
    assert [word.start for word in words] == pytest.approx([10.0, 10.6, 11.2, 21.8, 22.4], abs=0.02)


# What is left over


@pytest.mark.parametrize("frozen", [False, True])
async def test_streams_that_are_closed_leave_nothing(name: str, frozen: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with emulating() as emulator, driving(name, emulator, threads=12) as engine:
        if frozen:
            emulator.freeze()
        streams = [
            engine.recognize(RecognitionConfig(), played(cut(marker_audio(4)), then=forever())) for _ in range(12)
        ]
        reading = [asyncio.ensure_future(anext(stream)) for stream in streams]
        await emulator.stats.until(lambda stats: stats.open == 12)
        for i, task in enumerate(reading):
            await asyncio.sleep(0.005 * (i % 3))
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
        for stream in streams:
            await stream.aclose()
        emulator.thaw()
        await none_left(emulator)
    assert not caplog.records  # gRPC logs an exception that leaves its requests


async def test_cancelled_before_the_connection_is_up(name: str) -> None:
    """A host that takes the connection and never says a word: the call waits for it."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"127.0.0.1:{silent.getsockname()[1]}"
        async with emulating() as emulator, driving(name, emulator, endpoint=endpoint) as engine:
            stream = engine.recognize(RecognitionConfig(), played([SILENCE], then=forever()))
            reading = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0.1)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            await stream.aclose()
            await none_left(emulator)


async def test_aborts_leave_no_thread_and_no_task(name: str) -> None:
    plan = Plan(usual=Faults(abort_at=0.5))
    async with emulating(EmulatorConfig(plan=plan)) as emulator, driving(name, emulator, threads=10) as engine:
        for _ in range(2):
            await asyncio.gather(*(failure(engine, played(cut(marker_audio(2)), then=forever())) for _ in range(10)))
        await none_left(emulator)


# The pool


async def test_200_streams_on_a_server_that_lets_100_share_a_connection() -> None:
    async with emulating() as emulator, driving("google", emulator) as engine:
        hold = forever()
        heard = 0

        async def one() -> str:
            nonlocal heard
            results = []
            async for result in engine.recognize(RecognitionConfig(), played(cut(marker_audio(1)), then=hold)):
                results.append(result)
                heard += result.is_final and bool(result.text)
                if heard == 200 and not hold.done():
                    hold.set_result(None)  # every one of them was answered while all were open
            return text(results)

        async with asyncio.timeout(20):
            assert await asyncio.gather(*(one() for _ in range(200))) == ["w0"] * 200
        assert emulator.stats.peak == 200
        assert emulator.stats.peak_connections == 3


# What the drivers rely on in the library


async def test_the_stub_returns_before_any_response() -> None:
    """The client's method would wait for the first response, and could not be cancelled before that."""
    async with emulating() as emulator:
        backend = GoogleThreadsBackend(GoogleOptions(endpoint=emulator.address))

        def call() -> grpc.StatusCode:
            backend.load()
            more = threading.Event()
            with backend._service.pool.lease() as client:
                began = time.monotonic()
                call = client.transport.streaming_recognize(
                    (None for _ in iter(more.wait, None)), timeout=5, metadata=METADATA
                )
                assert time.monotonic() - began < 1
                call.cancel()
                with pytest.raises(grpc.RpcError):
                    next(call)
                more.set()
            backend.close()
            code: grpc.StatusCode = call.code()
            return code

        assert await asyncio.to_thread(call) is grpc.StatusCode.CANCELLED
