"""The one door to blocking engines: a bounded thread pool, a bounded queue in, a bounded queue out.

`ThreadBridge.recognize` gives a `BlockingBackend` the face of an asynchronous one. The engine's thread waits for audio
in one queue. Its results go into the other; when that is full, it waits by `run_coroutine_threadsafe` until the event
loop has taken one, so that neither side can run away from the other. It does not wait at each result: with 200 streams
that took half of the CPU, and answers came seconds late.
Closing the returned generator frees a thread that waits in the audio iterator, or on a result, at once; a thread that
is inside the engine ends when the engine comes back to either.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import queue
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Final

from backends.base import BackendError, BlockingBackend, RecognitionConfig, Result, StreamCancelled

AUDIO_CHUNKS: Final = 16
"""Chunks on their way to a thread; what the session holds behind them is bounded by its replay buffer."""
RESULTS: Final = 16
"""Results on their way back, before the thread waits."""
RELEASE_SECONDS: Final = 0.5
"""How long a closed stream waits for its thread, which is free within milliseconds unless the engine holds it."""


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
        """The engine's `close`, on a thread of its own; those that are stuck inside the engine are left behind."""
        await asyncio.to_thread(self._backend.close)
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def recognize(self, config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncGenerator[Result, None]:
        """One stream on a thread of its own.

        Raises:
            BackendError: the engine's; `overloaded` if every thread is taken: a stream never waits unseen; or
                `ended_early` if the engine returned before it had read to the end: what was on its way to the thread
                was never heard, although the session has handed it out.
        """
        if self._busy >= self._threads:
            raise BackendError("every thread is taken", code="overloaded", retryable=True)
        loop = asyncio.get_running_loop()
        feed, results = _Feed(loop), _Results(loop)

        def work() -> None:
            try:
                with _closing(self._backend.recognize(config, feed)) as stream:
                    for result in stream:
                        results.put(result)
            finally:
                results.close()  # whatever happened: else the loop would wait for ever

        self._busy += 1
        # What the engine logs belongs to this session.
        worker = loop.run_in_executor(self._executor, contextvars.copy_context().run, work)
        worker.add_done_callback(self._ended)
        pump = asyncio.create_task(feed.fill(audio), name="thread-bridge-pump")
        try:
            while (result := await results.get()) is not None:
                yield result
            if pump.done():
                pump.result()  # the session's own iterator failed: that is the cause, not what the thread says
            await worker
            if not feed.ended:
                raise BackendError("the stream ended early", code="ended_early", retryable=True)
        finally:
            feed.cancel()
            results.cancel()
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)
            # The session's next stream should not find its own last thread taken.
            await asyncio.wait({worker}, timeout=RELEASE_SECONDS)

    def _ended(self, worker: asyncio.Future[None]) -> None:
        self._busy -= 1
        if not worker.cancelled():
            worker.exception()  # of an abandoned stream: nobody else asks


@contextlib.contextmanager
def _closing(stream: Iterator[Result]) -> Iterator[Iterator[Result]]:
    """Close an engine's generator in the end; one that returns another iterator has nothing to close."""
    try:
        yield stream
    finally:
        if close := getattr(stream, "close", None):
            close()


class _Feed(Iterator[bytes]):
    """The audio iterator of a thread, filled from the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.ended = False  # the engine was told of the end of the audio
        self.cancelled = threading.Event()  # an engine that waits for something else may look at it
        self._loop = loop
        self._chunks: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()  # None: look why
        self._space = asyncio.Event()
        self._waiting = False  # `fill` waits for space
        self._lock = threading.Lock()  # of the cancellation and its callback
        self._on_cancel: Callable[[], None] | None = None

    def __next__(self) -> bytes:
        chunk = self._chunks.get()
        if self.cancelled.is_set():
            self._chunks.put(None)  # for whoever asks again
            raise StreamCancelled
        if chunk is None:
            self._chunks.put(None)
            self.ended = True
            raise StopIteration
        if self._waiting:
            self._waiting = False
            _tell(self._loop, self._space)
        return chunk

    async def fill(self, audio: AsyncIterator[bytes]) -> None:
        """Pass on all audio, then the end; an iterator that fails cancels the stream."""
        try:
            async for chunk in audio:
                while self._full():
                    await self._space.wait()
                self._chunks.put(chunk)
        except BaseException:
            self.cancel()
            raise
        self._chunks.put(None)

    def _full(self) -> bool:
        """Whether there is no space. Then the thread will tell when there is."""
        if self._chunks.qsize() < AUDIO_CHUNKS:
            return False
        self._space.clear()
        self._waiting = True
        return self._chunks.qsize() >= AUDIO_CHUNKS  # it may have taken some just before it was asked to tell

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Have this called when the stream is cancelled; at once if it is already."""
        with self._lock:
            if not self.cancelled.is_set():
                self._on_cancel = callback
                return
        callback()

    def cancel(self) -> None:
        """Free the thread if it waits, and let it find out otherwise."""
        with self._lock:
            self.cancelled.set()
            callback, self._on_cancel = self._on_cancel, None
        self._chunks.put(None)
        if callback is not None:
            callback()


def _tell(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    """Set an event of the loop's. Where the loop has ended, nobody waits for it any more.

    Raises:
        StreamCancelled: the loop has ended.
    """
    try:
        loop.call_soon_threadsafe(event.set)
    except RuntimeError:
        raise StreamCancelled from None


class _Results:
    """The results of a thread, in the order in which it puts them; read by one task of the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._items: deque[Result | None] = deque()  # None: the end
        self._lock = threading.Lock()  # of the items
        self._some = asyncio.Event()
        self._taken = asyncio.Event()
        self._cancelled = False

    def put(self, result: Result) -> None:
        """Hand it to the loop; waits while so many are on their way that the loop must be behind.

        Raises:
            StreamCancelled: nobody reads them any more.
        """
        while not self._offer(result):
            room = self._room()
            try:
                asyncio.run_coroutine_threadsafe(room, self._loop).result()
            except (RuntimeError, CancelledError):  # the loop has ended, or is ending
                room.close()
                raise StreamCancelled from None

    def _offer(self, result: Result) -> bool:
        with self._lock:
            if self._cancelled:
                raise StreamCancelled
            if len(self._items) >= RESULTS:
                return False
            self._append(result)
            return True

    def close(self) -> None:
        """The thread has ended."""
        with self._lock:
            self._append(None)

    def _append(self, item: Result | None) -> None:
        self._items.append(item)
        if len(self._items) == 1:  # else the loop was told, and has not looked since
            _tell(self._loop, self._some)

    async def _room(self) -> None:
        """Wait until there is room, or no need of it."""
        while len(self._items) >= RESULTS and not self._cancelled:
            self._taken.clear()
            await self._taken.wait()

    async def get(self) -> Result | None:
        """The next one; None at the end."""
        while True:
            with self._lock:  # held for an instant by the thread, never while it waits
                if self._items:
                    self._taken.set()
                    return self._items.popleft()
                self._some.clear()
            await self._some.wait()

    def cancel(self) -> None:
        """Free the thread if it waits, and let it find out otherwise."""
        with self._lock:
            self._cancelled = True
        self._taken.set()
