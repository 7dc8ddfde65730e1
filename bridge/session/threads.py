"""The one door to blocking engines: a bounded thread pool, a bounded queue in, `run_coroutine_threadsafe` out.

`ThreadBridge.recognize` gives a `BlockingBackend` the face of an asynchronous one. The engine's thread waits for audio
in a bounded queue and for each result until the event loop has taken it, so neither side can run away from the other.
Closing the returned generator frees a thread that waits in the audio iterator, or on a result, at once; a thread that
is inside the engine ends when the engine comes back to either.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from backends.base import BackendError, BlockingBackend, RecognitionConfig, Result, StreamCancelled

AUDIO_CHUNKS: Final = 16
"""Chunks on their way to a thread; what the session holds behind them is bounded by its replay buffer."""
RESULTS: Final = 16
"""Results on their way back, before the thread waits."""


class ThreadBridge:
    """Runs the streams of one blocking engine, at most `threads` at once."""

    def __init__(self, backend: BlockingBackend, threads: int) -> None:
        self._backend = backend
        self._threads = threads
        self._busy = 0
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=f"stt-{backend.name}")

    async def load(self) -> None:
        """The engine's `load`, off the event loop."""
        await asyncio.get_running_loop().run_in_executor(self._executor, self._backend.load)

    async def close(self) -> None:
        """The engine's `close`; a thread stuck inside the engine is left behind."""
        await asyncio.get_running_loop().run_in_executor(self._executor, self._backend.close)
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def recognize(self, config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncGenerator[Result, None]:
        """One stream on a thread of its own.

        Raises:
            BackendError: the engine's, or `overloaded` if every thread is taken: a stream never waits unseen.
        """
        if self._busy >= self._threads:
            raise BackendError("every thread is taken", code="overloaded", retryable=True)
        loop = asyncio.get_running_loop()
        feed = _Feed(loop)
        results: asyncio.Queue[Result | None] = asyncio.Queue(RESULTS)

        async def deliver(result: Result | None) -> None:
            if result is not None and feed.cancelled.is_set():
                raise StreamCancelled
            await results.put(result)

        def work() -> None:
            stream = self._backend.recognize(config, feed)
            try:
                for result in stream:
                    asyncio.run_coroutine_threadsafe(deliver(result), loop).result()
            finally:
                if close := getattr(stream, "close", None):
                    close()
                asyncio.run_coroutine_threadsafe(deliver(None), loop).result()

        self._busy += 1
        worker = loop.run_in_executor(self._executor, work)
        worker.add_done_callback(self._ended)
        pump = asyncio.create_task(feed.fill(audio), name="thread-bridge-pump")
        try:
            while (result := await results.get()) is not None:
                yield result
            if pump.done():
                pump.result()  # the session's own iterator failed: that is the cause, not what the thread says
            await worker
        finally:
            feed.cancel()
            while not results.empty():  # a thread that waits to deliver finds room, and then that it is over
                results.get_nowait()
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)

    def _ended(self, worker: asyncio.Future[None]) -> None:
        self._busy -= 1
        if not worker.cancelled():
            worker.exception()  # of an abandoned stream: nobody else asks


class _Feed(Iterator[bytes]):
    """The audio iterator of a thread, filled from the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.cancelled = threading.Event()
        self._loop = loop
        self._chunks: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._space = asyncio.Event()
        self._closed = False
        self._on_cancel: Callable[[], None] | None = None

    def __next__(self) -> bytes:
        with self._changed:
            while not self._chunks and not self._closed and not self.cancelled.is_set():
                self._changed.wait()
            if self.cancelled.is_set():
                raise StreamCancelled
            if not self._chunks:
                raise StopIteration
            chunk = self._chunks.popleft()
            if len(self._chunks) == AUDIO_CHUNKS - 1:
                self._loop.call_soon_threadsafe(self._space.set)
            return chunk

    async def fill(self, audio: AsyncIterator[bytes]) -> None:
        """Pass on all audio, then the end; an iterator that fails cancels the stream."""
        try:
            async for chunk in audio:
                await self._put(chunk)
        except BaseException:
            self.cancel()
            raise
        with self._changed:
            self._closed = True
            self._changed.notify()

    async def _put(self, chunk: bytes) -> None:
        while True:
            with self._changed:  # held for an instant by the thread, never while it waits
                if len(self._chunks) < AUDIO_CHUNKS:
                    self._chunks.append(chunk)
                    self._changed.notify()
                    return
                self._space.clear()
            await self._space.wait()

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Have this called when the stream is cancelled; at once if it is already."""
        with self._changed:
            if not self.cancelled.is_set():
                self._on_cancel = callback
                return
        callback()

    def cancel(self) -> None:
        """Free the thread if it waits, and let it find out otherwise."""
        with self._changed:
            self.cancelled.set()
            self._changed.notify()
            callback, self._on_cancel = self._on_cancel, None
        if callback is not None:
            callback()
