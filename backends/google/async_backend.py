"""`google`: the asynchronous driver. One gRPC stream for each `recognize`, with a task of its own that writes.

The stub is called instead of the client's method, for two reasons. The method returns only when the connection is
up, and a cancellation before that leaves the call running. And v1's method retries with audio that is already used up.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any, ClassVar, Final

import grpc
import grpc.aio

from backends.base import AsyncBackend, BackendError, RecognitionConfig, Result
from backends.google import clients
from backends.google.api import METADATA, messages
from backends.google.errors import translate
from backends.google.options import GoogleOptions
from backends.google.pacing import Pacer
from backends.google.results import Transcript
from backends.google.service import GoogleEngine, Service

PROBE_SECONDS: Final = (1.0, 0.3)
"""How long a probe waits for a refusal: in general, and from this machine."""


class GoogleBackend(GoogleEngine, AsyncBackend):
    """Google Cloud Speech on the event loop."""

    name: ClassVar[str] = "google"

    def __init__(self, options: GoogleOptions | None = None) -> None:
        super().__init__(options, clients.async_client)

    async def load(self) -> None:
        """Find the credentials and make the first client."""
        await asyncio.to_thread(self._service.find_account)
        self._service.pool.grow()

    async def close(self) -> None:
        """Close every channel."""
        for client in self._service.pool.empty():
            await client.transport.close()

    async def recognize(self, config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        """One gRPC stream, opened with the first audio."""
        chunk = await anext(audio, None)
        if chunk is None:
            return
        first, transcript = self._service.open(config)
        with self._service.pool.lease() as client:
            stream = _Stream(self._service, client, transcript)
            try:
                stream.start(first, chunk, audio)
                while (results := await stream.next()) is not None:
                    for result in results:
                        yield result
                for result in stream.rest():
                    yield result
            except BackendError as exc:
                if exc.code == "unknown_status" and not stream.answered:
                    await self._probe(client, first)
                raise
            finally:
                await stream.close()

    async def _probe(self, client: Any, first: Any) -> None:
        """Ask again without audio: no write is then under way that could hide the status of a refusal.

        Raises:
            BackendError: the refusal.
        """
        self._service.quota.take()
        call = client.transport.streaming_recognize(timeout=self._service.deadline, metadata=METADATA)
        reading = asyncio.create_task(_ask(call, first), name="google-probe")
        try:
            await asyncio.wait({reading}, timeout=PROBE_SECONDS[self.options.address.loopback])
            if reading.done() and not reading.cancelled() and (failure := reading.exception()):
                raise translate(failure) from failure
        finally:
            _end(call)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


async def _ask(call: Any, first: Any) -> None:
    await call.write(first)
    await call.read()


def _end(call: Any) -> None:
    """Cancel it, wherever it stands.

    A write that fails gives the call a status of its own (see `errors.MASKED`), and `cancel` does nothing for a call
    that has one. In Core it goes on, with a task of grpc's that waits for the true status: for ever, if an answer was
    not read.
    """
    if not call.cancel():
        call._cython_call.cancel("ended by the bridge")  # noqa: SLF001 - there is no other way to it


class _Stream:
    """One call: a task writes, and `next` reads. One task more reads while the audio is quiet, see `_response`."""

    def __init__(self, service: Service, client: Any, transcript: Transcript) -> None:
        self.answered = False
        self._service = service
        self._transcript = transcript
        self._half_closed = False
        self._failure: Exception | None = None  # why `_write` gave up: what the audio iterator raised, as a rule
        self._news = asyncio.Event()  # in quiet: there is a response, or time for a claim
        self._call = client.transport.streaming_recognize(timeout=service.deadline, metadata=METADATA)
        self._writing: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[Any] | None = None

    def start(self, first: Any, chunk: bytes, audio: AsyncIterator[bytes]) -> None:
        """Send the first request, the chunk and the rest of the audio from now on."""
        self._writing = asyncio.create_task(self._write(first, chunk, audio), name="google-writer")

    async def next(self) -> Iterator[Result] | None:
        """Wait until there is something to hear; None: Google has ended the stream.

        Raises:
            BackendError: the call's status.
            Exception: whatever the audio iterator raised.
        """
        try:
            response = await self._response()
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Not this task was cancelled but the call: by `_write`, or because its channel was closed.
            raise self._failure or translate(exc) from exc
        except Exception as exc:
            raise self._failure or translate(exc) from exc
        if response is grpc.aio.EOF:
            return None
        if response is None:
            return self._transcript.claim()
        self.answered = True
        # A server that answers silence, too, leaves no other moment for a claim.
        return itertools.chain(self._transcript.take(type(response).pb(response)), self._transcript.claim())

    async def _response(self) -> Any:
        """The next response, or EOF; None: time for a claim.

        In quiet audio either may come first, so a task of its own reads. Elsewhere there is nothing to claim before
        Google has answered, and a task would cost every result a round of the event loop.
        """
        if self._reading is None:
            if not self._transcript.quiet:
                return await self._call.read()
            self._reading = asyncio.create_task(self._call.read(), name="google-reader")
            self._reading.add_done_callback(lambda _: self._news.set())
        await self._news.wait()
        self._news.clear()
        if not self._reading.done():
            return None
        reading, self._reading = self._reading, None
        return reading.result()

    def rest(self) -> Iterator[Result]:
        """What is left to say when Google has ended the stream.

        Raises:
            BackendError: that was before the audio ended.
        """
        if not self._half_closed:
            raise BackendError("Google ended the stream early", code="ended_early", retryable=True)
        return self._transcript.rest()

    async def close(self) -> None:
        """End the call if it runs, and its tasks."""
        _end(self._call)
        tasks = [task for task in (self._writing, self._reading) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _write(self, first: Any, chunk: bytes, audio: AsyncIterator[bytes]) -> None:
        options, transcript = self._service.options, self._transcript
        try:
            await self._call.write(first)
            # A refusal that arrives during a write is masked (see `errors.MASKED`): give it time to arrive.
            await asyncio.sleep(options.hold)
            pacer = Pacer(options.replay_speed)
            while True:
                for piece in messages(chunk):
                    if delay := pacer.delay(len(piece) / transcript.bytes_per_second):
                        await asyncio.sleep(delay)
                    transcript.sent(piece)
                    await self._call.write(self._service.api.audio_request(piece))
                if transcript.claimable:
                    self._news.set()
                try:
                    chunk = await anext(audio)
                except StopAsyncIteration:
                    break
            self._half_closed = True
            await self._call.done_writing()
        except (asyncio.InvalidStateError, grpc.RpcError):
            pass  # the call is over; why, the reader is told
        except Exception as exc:  # noqa: BLE001 - handed on, and raised by `next`
            self._failure = exc
            self._call.cancel()
