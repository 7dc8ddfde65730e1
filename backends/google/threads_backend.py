"""`google-threads`: the blocking driver. The bridge's thread reads a call, gRPC's own thread takes the audio for it.

The stub is called instead of the client's method: the method returns only with the first response, so that a call
that is silent could not be cancelled, and v1's method retries with audio that is already used up.

Who waits for whom, in one stream:

- the bridge's thread, in `results`: for a response of gRPC's; in quiet audio for `_inbox` instead, see `_next`;
- gRPC's thread, in `_requests`: for audio of the bridge, for the pace, and inside gRPC for a connection or for room;
- a helper in quiet audio, in `_read_aside`: for a response, which it puts into `_inbox`;
- the event loop waits for none of them; when the session is gone it calls `on_cancel`, which cancels the call, and that
  frees all three.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from typing import Any, ClassVar, Final

import grpc

from backends.base import BlockingBackend, RecognitionConfig, Result, StreamCancelled
from backends.google import clients
from backends.google.api import METADATA, messages
from backends.google.errors import translate
from backends.google.options import GoogleOptions
from backends.google.pacing import Pacer
from backends.google.results import Transcript
from backends.google.service import GoogleEngine, Service

JOIN_SECONDS: Final = 1.0
"""How long a closed stream waits for a thread that it has released; it is there within milliseconds."""

_END: Final = object()
_CLAIM: Final = object()


class GoogleThreadsBackend(GoogleEngine, BlockingBackend):
    """Google Cloud Speech through the blocking client."""

    name: ClassVar[str] = "google-threads"

    def __init__(self, options: GoogleOptions | None = None) -> None:
        super().__init__(options, clients.blocking_client)

    def load(self) -> None:
        """Find the credentials and make the first client."""
        self._service.find_account()
        self._service.pool.grow()

    def close(self) -> None:
        """Close every channel."""
        for client in self._service.pool.empty():
            client.transport.close()

    def recognize(self, config: RecognitionConfig, audio: Iterator[bytes]) -> Iterator[Result]:
        """One gRPC stream, opened with the first audio."""
        chunk = next(audio, None)
        if chunk is None:
            return
        first, transcript = self._service.open(config)
        with self._service.pool.lease() as client:
            stream = _Stream(self._service, client, transcript)
            try:
                stream.start(first, chunk, audio)
                yield from stream.results()
            finally:
                stream.close()


class _Stream:
    """One call. `results` runs on the bridge's thread, `_requests` on the one that gRPC starts for the call."""

    def __init__(self, service: Service, client: Any, transcript: Transcript) -> None:
        self._service = service
        self._client = client
        self._transcript = transcript
        self._call: Any = None
        self._half_closed = False
        self._failure: Exception | None = None  # what the audio iterator raised
        self._over = threading.Event()
        # What is read aside: a response, _END or an exception; and _CLAIM, one at most.
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._waiting = False  # `results` waits for the inbox
        self._claiming = False
        self._helper: threading.Thread | None = None

    def start(self, first: Any, chunk: bytes, audio: Iterator[bytes]) -> None:
        """Open the call; gRPC takes the requests from now on."""
        # The bridge's iterator says when it is cancelled. gRPC's thread would not see it while it waits for a
        # connection, or for a server that takes nothing.
        if on_cancel := getattr(audio, "on_cancel", None):
            on_cancel(lambda: self._fail(StreamCancelled()))
        self._call = self._client.transport.streaming_recognize(
            self._requests(first, chunk, audio), timeout=self._service.deadline, metadata=METADATA
        )
        if self._failure is not None:  # so early that there was no call yet to cancel
            self._call.cancel()

    def results(self) -> Iterator[Result]:
        """What Google says, until it ends the stream.

        Raises:
            BackendError: the call's status.
            StreamCancelled: out of the audio iterator, as anything else that it raises.
        """
        while True:
            try:
                response = yield from self._next()
            except grpc.RpcError as exc:
                raise self._failure or translate(exc) from exc
            if response is _END:
                break
            yield from self._transcript.take(type(response).pb(response))
            yield from self._transcript.claim()  # a server that answers silence, too, leaves no other moment
        if self._failure is not None:
            raise self._failure
        if self._half_closed:
            yield from self._transcript.rest()

    def close(self) -> None:
        """End the call if it runs, which frees both threads that wait in it."""
        self._over.set()
        if self._call is not None:
            self._call.cancel()
        if self._helper is not None:
            self._helper.join(JOIN_SECONDS)

    def _fail(self, failure: Exception) -> None:
        """Give up for a reason that lies in the audio iterator. Called from any thread."""
        self._failure = self._failure or failure
        if self._call is not None:
            self._call.cancel()

    def _next(self) -> Generator[Result, None, Any]:
        """Wait for the next response, or _END. While there is only silence to answer, yield claims meanwhile.

        Reading blocks, so a claim can only be yielded if another thread reads. That thread costs nothing in speech:
        it is started for the first response after quiet audio, and ends with it.
        """
        if not self._transcript.quiet:
            return next(self._call, _END)
        self._waiting = True
        self._helper = threading.Thread(target=self._read_aside, name="google-reader", daemon=True)
        self._helper.start()
        yield from self._transcript.claim()  # what was sent before `_waiting` was set wakes nobody
        while (item := self._inbox.get()) is _CLAIM:
            self._claiming = False
            yield from self._transcript.claim()
        self._waiting = False
        if isinstance(item, Exception):
            raise item
        return item

    def _read_aside(self) -> None:
        try:
            self._inbox.put(next(self._call, _END))
        except Exception as exc:  # noqa: BLE001 - handed on, and raised by `_next`
            self._inbox.put(exc)

    def _requests(self, first: Any, chunk: bytes | None, audio: Iterator[bytes]) -> Iterator[Any]:
        """The messages. Raises nothing: gRPC would log it, and call it an unknown status."""
        yield first
        transcript = self._transcript
        pacer = Pacer(self._service.options.replay_speed)
        while chunk is not None:
            for piece in messages(chunk):
                if (delay := pacer.delay(len(piece) / transcript.bytes_per_second)) and self._over.wait(delay):
                    return
                transcript.sent(piece)
                yield self._service.api.audio_request(piece)
            if self._waiting and not self._claiming and transcript.claimable:
                self._claiming = True
                self._inbox.put(_CLAIM)
            try:
                chunk = next(audio, None)
            except Exception as exc:  # noqa: BLE001 - handed on, and raised by `results`
                self._fail(exc)
                return
        self._half_closed = True
