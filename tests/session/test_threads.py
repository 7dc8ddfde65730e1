"""The thread bridge: order, bounds, failures and cancellation, with real threads."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, ClassVar

import pytest

from backends.base import BackendError, BlockingBackend, Capabilities, RecognitionConfig, Result, StreamCancelled
from backends.scripted import marker_audio
from bridge.observe import trace
from bridge.observe.trace import Tracing
from bridge.session.engine import Engine
from bridge.session.threads import AUDIO_CHUNKS, ThreadBridge, _Results
from tests.session.harness import markers, session_on, words

Body = Callable[[Iterator[bytes]], Iterator[Result]]


class Blocking(BlockingBackend):
    """An engine made of a function."""

    name: ClassVar[str] = "blocking"

    def __init__(self, body: Body) -> None:
        super().__init__()
        self._body = body
        self.ended = threading.Event()
        self.error: BaseException | None = None

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities()

    def recognize(self, config: RecognitionConfig, audio: Iterator[bytes]) -> Iterator[Result]:
        try:
            yield from self._body(audio)
        except BaseException as exc:
            self.error = exc
            raise
        finally:
            self.ended.set()


def final(text: str) -> Result:
    return Result(text, True, 0.0, 0.0)


async def chunks(count: int) -> AsyncIterator[bytes]:
    for i in range(count):
        yield i.to_bytes(2, "little")


async def endless() -> AsyncIterator[bytes]:
    """A client that says nothing more."""
    yield b"\0\0"
    await asyncio.get_running_loop().create_future()


def echo(audio: Iterator[bytes]) -> Iterator[Result]:
    for chunk in audio:
        yield final(str(int.from_bytes(chunk, "little")))


async def ended(backend: Blocking) -> None:
    assert await asyncio.to_thread(backend.ended.wait, 5), "the thread was not freed"


async def test_results_come_in_order_and_the_end_is_passed_on() -> None:
    backend = Blocking(echo)
    bridge = ThreadBridge(backend, 1)
    results = [r.text async for r in bridge.recognize(RecognitionConfig(), chunks(1_000))]
    assert results == [str(i) for i in range(1_000)]
    await ended(backend)
    await bridge.close()


async def test_audio_ahead_of_the_thread_is_bounded() -> None:
    taken = 0
    release = threading.Event()

    async def counted() -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(1_000):
            taken += 1
            yield b"\0\0"

    def slow(audio: Iterator[bytes]) -> Iterator[Result]:
        next(audio)
        yield final("first")
        release.wait(5)
        yield from (final("more") for _ in audio)

    bridge = ThreadBridge(Blocking(slow), 1)
    stream = bridge.recognize(RecognitionConfig(), counted())
    assert (await anext(stream)).text == "first"
    for _ in range(50):
        await asyncio.sleep(0)
    assert taken <= AUDIO_CHUNKS + 2
    release.set()
    assert len([r async for r in stream]) == 999
    await bridge.close()


async def test_results_ahead_of_the_session_are_bounded() -> None:
    made = 0

    def flood(audio: Iterator[bytes]) -> Iterator[Result]:
        nonlocal made
        for _ in range(10_000):
            made += 1
            yield final("x")

    backend = Blocking(flood)
    bridge = ThreadBridge(backend, 1)
    stream = bridge.recognize(RecognitionConfig(), chunks(0))
    await anext(stream)
    await asyncio.sleep(0.05)
    assert made < 100
    await stream.aclose()
    await ended(backend)
    assert isinstance(backend.error, StreamCancelled | GeneratorExit)
    await bridge.close()


async def test_closing_frees_a_thread_that_waits_for_audio_at_once() -> None:
    backend = Blocking(echo)
    bridge = ThreadBridge(backend, 1)
    stream = bridge.recognize(RecognitionConfig(), endless())
    assert (await anext(stream)).text == "0"
    await stream.aclose()
    await ended(backend)
    assert isinstance(backend.error, StreamCancelled)
    await bridge.close()


@pytest.mark.parametrize("late", [False, True])
async def test_an_engine_that_waits_elsewhere_is_told(late: bool) -> None:
    gone = threading.Event()

    def waits(audio: Any) -> Iterator[Result]:
        next(audio)
        yield final("waiting")
        if not late:
            audio.on_cancel(gone.set)
        else:
            audio.cancelled.wait(5)
            audio.on_cancel(gone.set)  # too late to be called later: called at once
        if gone.wait(5):
            raise StreamCancelled

    backend = Blocking(waits)
    bridge = ThreadBridge(backend, 1)
    stream = bridge.recognize(RecognitionConfig(), endless())
    await anext(stream)
    await stream.aclose()
    await ended(backend)
    assert gone.is_set()
    await bridge.close()


async def test_cancelling_the_session_frees_the_thread_and_leaves_no_task() -> None:
    backend = Blocking(echo)
    bridge = ThreadBridge(backend, 1)

    async def session() -> None:
        async with contextlib.aclosing(bridge.recognize(RecognitionConfig(), endless())) as stream:
            async for _ in stream:
                pass

    task = asyncio.create_task(session())
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await ended(backend)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    await bridge.close()


async def test_an_engine_error_reaches_the_session() -> None:
    def broken(audio: Iterator[bytes]) -> Iterator[Result]:
        yield final(str(next(audio)))
        raise BackendError("broken", code="failed", retryable=True)

    bridge = ThreadBridge(Blocking(broken), 1)
    stream = bridge.recognize(RecognitionConfig(), endless())
    await anext(stream)
    with pytest.raises(BackendError, match="broken"):
        await anext(stream)
    await bridge.close()


async def test_an_engine_that_raises_before_it_returns_an_iterator() -> None:
    class Refusing(Blocking):
        def recognize(self, config: RecognitionConfig, audio: Iterator[bytes]) -> Iterator[Result]:
            raise BackendError("not today", code="rejected")

    bridge = ThreadBridge(Refusing(echo), 1)
    with pytest.raises(BackendError, match="not today"):
        async with asyncio.timeout(2):
            await anext(bridge.recognize(RecognitionConfig(), endless()))
    await bridge.close()


async def test_an_engine_that_returns_early_has_not_heard_what_was_fetched_for_it() -> None:
    """The session has handed out everything by then, so only the bridge can tell."""
    fetched = threading.Event()

    async def audio() -> AsyncIterator[bytes]:
        for chunk in (b"\0\0", b"\1\0", b"\2\0"):
            yield chunk
        fetched.set()

    def first_only(audio: Iterator[bytes]) -> Iterator[Result]:
        yield final(str(int.from_bytes(next(audio), "little")))
        fetched.wait(5)

    bridge = ThreadBridge(Blocking(first_only), 1)
    heard = []
    with pytest.raises(BackendError) as caught:
        async for result in bridge.recognize(RecognitionConfig(), audio()):
            heard.append(result.text)  # noqa: PERF401 - what came before the exception counts
    assert heard == ["0"]
    assert (caught.value.code, caught.value.retryable) == ("ended_early", True)
    await bridge.close()


async def test_a_failing_audio_iterator_is_the_error_that_is_seen() -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"\0\0"
        raise RuntimeError("the session broke")

    bridge = ThreadBridge(Blocking(echo), 1)
    with pytest.raises(RuntimeError, match="the session broke"):
        [r async for r in bridge.recognize(RecognitionConfig(), failing())]
    await bridge.close()


async def test_a_stream_past_the_last_thread_is_refused_not_queued() -> None:
    backend = Blocking(echo)
    bridge = ThreadBridge(backend, 1)
    first = bridge.recognize(RecognitionConfig(), endless())
    await anext(first)
    with pytest.raises(BackendError) as refused:
        await anext(bridge.recognize(RecognitionConfig(), chunks(1)))
    assert refused.value.code == "overloaded"
    await first.aclose()
    await ended(backend)
    async with asyncio.timeout(5):
        while True:  # the slot is free as soon as the loop hears of the thread's end
            try:
                assert [r.text async for r in bridge.recognize(RecognitionConfig(), chunks(1))] == ["0"]
                break
            except BackendError:
                await asyncio.sleep(0.01)
    await bridge.close()


async def test_a_hundred_streams_leave_no_thread_behind() -> None:
    bridge = ThreadBridge(Blocking(echo), 8)
    for _ in range(100):
        stream = bridge.recognize(RecognitionConfig(), endless())
        with contextlib.suppress(BackendError):
            await anext(stream)
        await stream.aclose()
    await bridge.close()
    gc.collect()
    async with asyncio.timeout(5):
        while any(t.name.startswith("stt-blocking") for t in threading.enumerate()):
            await asyncio.sleep(0.01)


async def test_sessions_for_every_thread_go_from_stream_to_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread of the stream that has just ended is the only one for the next."""

    class Renewed(Blocking):
        """Hears markers, and is slow to leave, as an engine is that closes a connection."""

        @property
        def capabilities(self) -> Capabilities:
            return Capabilities(max_stream_seconds=2.0)

        def recognize(self, config: RecognitionConfig, audio: Iterator[bytes]) -> Iterator[Result]:
            player = markers()._player(config)
            try:
                for chunk in audio:
                    yield from player.take(chunk)
                yield from player.rest()
            finally:
                time.sleep(0.02)

    monkeypatch.setattr("tests.session.harness.Engine", lambda backend, threads: Engine(backend, threads=1))
    async with session_on(Renewed(echo)) as running:
        await running.send(marker_audio(20))
        running.session.stop()
    assert running.observed.errors == []
    assert running.text == words(20)


async def test_close_does_not_wait_for_threads_that_are_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.session.threads.RELEASE_SECONDS", 0.05)
    release = threading.Event()
    closed = threading.Event()

    class Stuck(Blocking):
        def close(self) -> None:
            closed.set()

    def stuck(audio: Iterator[bytes]) -> Iterator[Result]:
        yield final(str(next(audio)))
        release.wait(5)

    backend = Stuck(stuck)
    bridge = ThreadBridge(backend, 2)
    streams = [bridge.recognize(RecognitionConfig(), endless()) for _ in range(2)]
    try:
        for stream in streams:
            await anext(stream)
            reading = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        async with asyncio.timeout(2):
            await bridge.close()
        assert closed.is_set()
        assert not backend.ended.is_set()
    finally:
        release.set()
    await ended(backend)


def test_a_thread_that_outlives_the_loop_is_told_so() -> None:
    loop = asyncio.new_event_loop()
    results = _Results(loop)
    loop.close()
    with pytest.raises(StreamCancelled):
        results.put(final("too late"))


async def test_what_a_thread_does_belongs_to_the_session() -> None:
    """Its log lines name the session and the trace; contexts do not reach a pool's threads by themselves."""

    def body(audio: Iterator[bytes]) -> Iterator[Result]:
        for _ in audio:
            pass
        yield final(str(trace.trace_id()))

    bridge = ThreadBridge(Blocking(body), 1)
    for _ in range(2):  # the same thread
        here = Tracing().begin("websocket", None)
        assert [result.text async for result in bridge.recognize(RecognitionConfig(), chunks(1))] == [here.trace_id]
    await bridge.close()
