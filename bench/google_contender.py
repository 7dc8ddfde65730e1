"""One contender of `bench.google`, in this process: prints its run as JSON.

The bare ones are what one would write with Google's client alone: no replay, no renewal of streams, no limits. The
bridge's are a session on the engine, as the server opens it, without the WebSocket: `Session.feed` in, outbox out.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import queue
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict
from typing import Any, Final

import grpc
import grpc.aio
import uvloop
from google.cloud import speech_v1 as speech
from google.cloud.speech_v1.services.speech.transports import SpeechGrpcAsyncIOTransport, SpeechGrpcTransport

from backends.google.async_backend import GoogleBackend
from backends.google.options import GoogleOptions
from backends.google.threads_backend import GoogleThreadsBackend
from bench.google_load import Hand, Heard, Load
from bridge.commands.serve import settle_memory
from bridge.observe.metrics import Metrics
from bridge.protocols.events import Closed, Partial, Start
from bridge.session.engine import Engine
from bridge.session.failover import EnginePool
from bridge.session.limits import SessionLimits
from bridge.session.manager import SessionManager
from bridge.session.session import Session

STREAMS_PER_CHANNEL: Final = 80
DEADLINE: Final = 330.0

CONFIG: Final = speech.StreamingRecognitionConfig(
    config=speech.RecognitionConfig(
        encoding=speech.RecognitionConfig.AudioEncoding.LINEAR16, sample_rate_hertz=16_000, language_code="en-US"
    ),
    interim_results=True,
)

Contender = Callable[[str, int, Heard], AbstractAsyncContextManager[list[Hand]]]
"""Given the endpoint, the number of streams and what to call with each answer: opens the streams."""


@contextlib.asynccontextmanager
async def nothing(_endpoint: str, sessions: int, heard: Heard) -> AsyncIterator[list[Hand]]:
    """No recognizer at all: the cost of the load itself."""
    received = [0] * sessions

    def hand(session: int, frame: bytes) -> None:
        received[session] += len(frame)
        heard(session, received[session])

    yield [lambda frame, i=i: hand(i, frame) for i in range(sessions)]  # type: ignore[misc]


@contextlib.asynccontextmanager
async def bare_async(endpoint: str, sessions: int, heard: Heard) -> AsyncIterator[list[Hand]]:
    """`SpeechAsyncClient`, for each stream a task that writes and one that reads."""
    channels = [grpc.aio.insecure_channel(endpoint, options=[("app.index", i)]) for i in range(_channels(sessions))]
    clients: list[Any] = [speech.SpeechAsyncClient(transport=SpeechGrpcAsyncIOTransport(channel=c)) for c in channels]
    frames: list[asyncio.Queue[bytes | None]] = [asyncio.Queue() for _ in range(sessions)]

    async def write(call: Any, frames: asyncio.Queue[bytes | None]) -> None:
        while (frame := await frames.get()) is not None:
            await call.write(speech.StreamingRecognizeRequest(audio_content=frame))
        await call.done_writing()

    async def stream(i: int) -> None:
        call = await clients[i // STREAMS_PER_CHANNEL].streaming_recognize(requests=None, retry=None, timeout=DEADLINE)
        await call.write(speech.StreamingRecognizeRequest(streaming_config=CONFIG))
        writer = asyncio.create_task(write(call, frames[i]))
        while (response := await call.read()) is not grpc.aio.EOF:
            for result in response.results:
                heard(i, int(result.alternatives[0].transcript))
        await writer

    async with asyncio.TaskGroup() as group:
        for i in range(sessions):
            group.create_task(stream(i))
        yield [f.put_nowait for f in frames]
        for f in frames:
            f.put_nowait(None)
    for channel in channels:
        await channel.close()


@contextlib.asynccontextmanager
async def bare_threads(endpoint: str, sessions: int, heard: Heard) -> AsyncIterator[list[Hand]]:
    """`SpeechClient`, a thread of a pool for each stream, which sends its results to the event loop."""
    loop = asyncio.get_running_loop()
    channels = [grpc.insecure_channel(endpoint, options=[("app.index", i)]) for i in range(_channels(sessions))]
    clients: list[Any] = [speech.SpeechClient(transport=SpeechGrpcTransport(channel=c)) for c in channels]
    for client in clients:
        client.transport.streaming_recognize._prefetch_first_result_ = False  # there is no other way
    frames: list[queue.Queue[bytes | None]] = [queue.Queue() for _ in range(sessions)]

    async def deliver(i: int, text: str) -> None:
        heard(i, int(text))

    def requests(i: int) -> Any:
        while (frame := frames[i].get()) is not None:
            yield speech.StreamingRecognizeRequest(audio_content=frame)

    def stream(i: int) -> None:
        client = clients[i // STREAMS_PER_CHANNEL]
        for response in client.streaming_recognize(CONFIG, requests(i), retry=None, timeout=DEADLINE):
            for result in response.results:
                asyncio.run_coroutine_threadsafe(deliver(i, result.alternatives[0].transcript), loop)

    with ThreadPoolExecutor(sessions) as pool:
        streams = [loop.run_in_executor(pool, stream, i) for i in range(sessions)]
        yield [f.put_nowait for f in frames]
        for f in frames:
            f.put_nowait(None)
        await asyncio.gather(*streams)
    for channel in channels:
        channel.close()


@contextlib.asynccontextmanager
async def _bridge(engine: Engine, sessions: int, heard: Heard) -> AsyncIterator[list[Hand]]:
    """Sessions as the server opens them. `feed` may ask to wait, but not for audio that is no faster than it should."""
    await engine.load()
    manager = SessionManager(EnginePool(engine), SessionLimits(), Metrics(), max_sessions=sessions, language="en-US")

    async def read(session: Session, i: int) -> None:
        outbox = session.subscribe()
        while events := await outbox.get():
            for event in events:
                if isinstance(event, Partial):
                    heard(i, int(event.text))
                elif isinstance(event, Closed):
                    return

    async with contextlib.AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(manager.session(Start(), "native")) for _ in range(sessions)]
        async with asyncio.TaskGroup() as group:
            for i, session in enumerate(opened):
                group.create_task(read(session, i))
                group.create_task(session.run())
            yield [session.feed for session in opened]  # type: ignore[misc]
            for session in opened:
                session.stop()
    await engine.close()


def _options(endpoint: str, sessions: int) -> GoogleOptions:
    return GoogleOptions(
        endpoint=f"http://{endpoint}",
        max_streams=sessions,
        requests_per_minute=1_000_000,
        streams_per_connection=STREAMS_PER_CHANNEL,
    )


def bridge_async(endpoint: str, sessions: int, heard: Heard) -> AbstractAsyncContextManager[list[Hand]]:
    """Sessions on `google`."""
    return _bridge(Engine(GoogleBackend(_options(endpoint, sessions))), sessions, heard)


def bridge_threads(endpoint: str, sessions: int, heard: Heard) -> AbstractAsyncContextManager[list[Hand]]:
    """Sessions on `google-threads`."""
    return _bridge(Engine(GoogleThreadsBackend(_options(endpoint, sessions)), threads=sessions), sessions, heard)


def _channels(sessions: int) -> int:
    return -(-sessions // STREAMS_PER_CHANNEL)


CONTENDERS: Final[dict[str, Contender]] = {
    "nothing": nothing,
    "bare-async": bare_async,
    "bridge-async": bridge_async,
    "bare-threads": bare_threads,
    "bridge-threads": bridge_threads,
}


async def measure(name: str, endpoint: str, sessions: int, seconds: float) -> Load:
    """One run."""
    load = Load(name, sessions, seconds)
    async with CONTENDERS[name](endpoint, sessions, load.heard) as hands:
        settle_memory()  # as the server does once it is ready; the same for all
        await load.play(hands)
    return load


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.google_contender", description=__doc__)
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("--endpoint", required=True, help="of an emulator in mode echo: host:port")
    parser.add_argument("--sessions", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=10)
    args = parser.parse_args()
    load = uvloop.run(measure(args.contender, args.endpoint, args.sessions, args.seconds))
    print(json.dumps(asdict(load.run)))


if __name__ == "__main__":
    main()
