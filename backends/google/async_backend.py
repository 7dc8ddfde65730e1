"""`google`: the asynchronous driver. One gRPC stream for each `recognize`; a writer and a reader task of its own.

The stub is called instead of the client's method, for two reasons. The method returns only when the connection is
up, and a cancellation before that leaves the call running. And v1's method retries with audio that is already used up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, ClassVar, Final

import grpc
import grpc.aio

from backends.base import AsyncBackend, BackendError, Capabilities, RecognitionConfig, Result
from backends.google import clients
from backends.google.api import METADATA, messages
from backends.google.errors import translate
from backends.google.options import GoogleOptions
from backends.google.pacing import Pacer
from backends.google.results import Transcript
from backends.google.service import Service, capabilities

INBOX: Final = 16
"""Responses taken from gRPC and not yet read by the session; behind them, gRPC's flow control slows the server."""
PROBE_SECONDS: Final = (1.0, 0.3)
"""How long a probe waits for a refusal: in general, and from this machine."""


class GoogleBackend(AsyncBackend):
    """Google Cloud Speech on the event loop."""

    name: ClassVar[str] = "google"
    Options = GoogleOptions

    def __init__(self, options: GoogleOptions | None = None) -> None:
        options = options or GoogleOptions()
        super().__init__(options)
        self._service = Service(options, clients.async_client)

    @property
    def capabilities(self) -> Capabilities:
        """What the options say."""
        return capabilities(self.options)

    def refusal(self) -> str | None:
        """The quota of requests, when it is nearly used up."""
        return self._service.quota.refusal()

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
            if reading.done() and (failure := reading.exception()):
                raise translate(failure) from failure
        finally:
            call.cancel()
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


async def _ask(call: Any, first: Any) -> None:
    await call.write(first)
    await call.read()


class _Stream:
    """One call: a task writes, a task reads, and `next` hands on what comes from both."""

    def __init__(self, service: Service, client: Any, transcript: Transcript) -> None:
        self.answered = False
        self._service = service
        self._transcript = transcript
        self._half_closed = False
        self._claiming = False
        self._failure: Exception | None = None  # what the audio iterator raised
        # Responses (None: time for a claim), then EOF or what ended the call.
        self._inbox: asyncio.Queue[Any] = asyncio.Queue(INBOX)
        self._call = client.transport.streaming_recognize(timeout=service.deadline, metadata=METADATA)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, first: Any, chunk: bytes, audio: AsyncIterator[bytes]) -> None:
        """Send the first request, the chunk and the rest of the audio from now on."""
        self._tasks = [
            asyncio.create_task(self._write(first, chunk, audio), name="google-writer"),
            asyncio.create_task(self._read(), name="google-reader"),
        ]

    async def next(self) -> Iterator[Result] | None:
        """Wait until there is something to hear; None: Google has ended the stream.

        Raises:
            BackendError: the call's status.
            Exception: whatever the audio iterator raised.
        """
        item = await self._inbox.get()
        if item is grpc.aio.EOF:
            if self._failure is not None:
                raise self._failure
            return None
        if item is None:
            self._claiming = False
            return self._transcript.claim()
        if isinstance(item, BaseException):
            raise translate(item) from item
        self.answered = True
        return self._transcript.take(type(item).pb(item))

    def rest(self) -> Iterator[Result]:
        """What is left to say when Google has ended the stream: nothing if that was before the audio ended."""
        return self._transcript.rest() if self._half_closed else iter(())

    async def close(self) -> None:
        """End the call if it runs, and both tasks."""
        self._call.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _read(self) -> None:
        try:
            while (response := await self._call.read()) is not grpc.aio.EOF:
                await self._inbox.put(response)
            await self._inbox.put(response)
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            await self._inbox.put(exc)  # not this task was cancelled but the call: its channel was closed
        except Exception as exc:  # noqa: BLE001 - handed on, and raised by `next`
            await self._inbox.put(exc)

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
                    self._wake()
                try:
                    chunk = await anext(audio)
                except StopAsyncIteration:
                    break
                except Exception as exc:  # noqa: BLE001 - handed on, and raised by `next`
                    self._failure = exc
                    await self._inbox.put(grpc.aio.EOF)
                    return
            self._half_closed = True
            await self._call.done_writing()
        except (asyncio.InvalidStateError, grpc.RpcError):
            pass  # the call is over; why, the reader is told

    def _wake(self) -> None:
        """Let `next` return for a claim; not if it has something to hand on: then it will not wait."""
        if self._inbox.empty() and not self._claiming:
            self._claiming = True
            self._inbox.put_nowait(None)
