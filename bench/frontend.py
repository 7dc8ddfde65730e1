"""What the audio front end costs: decoding, resampling and voice activity of live streams, and how many a core carries.

`python -m bench.frontend` prints for each format the processor's time, in milliseconds for a second of audio, of the
decoder alone, of whole sessions on an engine that only takes the audio, and of sessions with each voice detector: with
`speech_started` and `speech_ended` for the client, and with the gate. Many sessions are fed in turns, a message each,
faster than real time; the event loop gets its turn after each message, and the detector is waited for before the next
round, so that it judges as many frames at once as in a live server. All threads count. The process keeps to one core.

`python -m bench.frontend --live` is the proof in real time: a server on one core, its clients on the others.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Final

import uvloop

from backends.base import AsyncBackend, Capabilities, RecognitionConfig, Result
from bench.frontend_live import LIVE, live
from bench.frontend_streams import FORMATS, Stream, streams
from bridge.audio.decode import StreamDecoder
from bridge.audio.vad.detector import DetectorName, Heard, VoiceDetection, VoiceDetector, make_voice_detection
from bridge.audio.vad.segmenter import Endpointing
from bridge.commands.serve import settle_memory
from bridge.observe.metrics import Metrics
from bridge.protocols.events import Closed, Start
from bridge.session.engine import Engine
from bridge.session.failover import EnginePool
from bridge.session.limits import SessionLimits
from bridge.session.manager import SessionManager
from bridge.session.session import Session
from bridge.session.voice import VoicePolicy
from bridge.settings import Settings

WARM_UP: Final = 8.0
"""Seconds of audio before the cost counts: the format's suspicions are looked for in the first seconds only."""


class Taker(AsyncBackend):
    """An engine that counts its audio and hears nothing in it."""

    name: ClassVar[str] = "taker"

    def __init__(self) -> None:
        super().__init__()
        self.samples = 0

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(flush=True)

    async def recognize(self, config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        samples = 0
        async for chunk in audio:
            samples += len(chunk) // 2
            self.samples += len(chunk) // 2
            if not chunk:
                yield Result("", True, 0.0, samples / config.sample_rate)
        yield Result("", True, 0.0, samples / config.sample_rate)


class Followed:
    """A voice detection that can be waited for."""

    def __init__(self, detection: VoiceDetection) -> None:
        self.name = detection.name
        self.frame_seconds = detection.frame_seconds
        self.load = detection.load
        self.close = detection.close
        self._detection = detection
        self._detectors: list[VoiceDetector] = []
        self._news = asyncio.Event()

    def open(self, rate: int, heard: Heard) -> VoiceDetector:
        """A detector of a new stream."""

        def tell(probabilities: Sequence[float]) -> None:
            heard(probabilities)
            self._news.set()

        self._detectors.append(self._detection.open(rate, tell))
        return self._detectors[-1]

    async def caught_up(self) -> None:
        """Wait until all that was pushed is judged."""
        while any(detector.waiting_seconds > 0 for detector in self._detectors):
            self._news.clear()
            await self._news.wait()


@dataclass(frozen=True, slots=True)
class Variant:
    """What is measured: the decoder alone, or sessions, with a detector or without."""

    name: str
    session: bool = True
    detector: DetectorName | None = None
    gate: bool = False


VARIANTS: Final = (
    Variant("decoder", session=False),
    Variant("session"),
    Variant("+ silero", detector="silero"),
    Variant("+ webrtc", detector="webrtc"),
    Variant("gate silero", detector="silero", gate=True),
    Variant("gate webrtc", detector="webrtc", gate=True),
)


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one session: milliseconds of the processor for a second of audio, and once, for opening and first seconds."""

    per_second: float
    once: float
    given: float
    """Share of the audio that the engine was given."""


class Clock:
    """The processor's time of this process: to be read when sessions are open, after the warm-up and at the end."""

    def __init__(self) -> None:
        self._read = [time.process_time()]

    def read(self) -> None:
        self._read.append(time.process_time())

    def cost(self, sessions: int, seconds: float, given: float) -> Cost:
        warming, measured = (1e3 * (later - before) / sessions for before, later in pairwise(self._read))
        return Cost(measured / seconds, warming - measured / seconds * WARM_UP, given)


def decoders(coded: Sequence[Stream], count: int, seconds: float) -> Cost:
    """The decoders of so many streams."""
    running = [(coded[n % len(coded)], StreamDecoder(coded[n % len(coded)].audio, 16_000)) for n in range(count)]
    clock = Clock()
    warm = round(1_000 * WARM_UP / coded[0].milliseconds)
    for index in range(len(coded[0].messages)):
        if index == warm:
            clock.read()
        for stream, decoder in running:
            decoder.push(stream.messages[index])
            while decoder.read() is not None:
                pass
    clock.read()
    for _, decoder in running:
        decoder.close()
    return clock.cost(count, seconds, 1.0)


async def sessions(coded: Sequence[Stream], count: int, seconds: float, variant: Variant) -> Cost:
    """So many sessions, as the server opens them."""
    settings = Settings.load({}, None)
    followed = Followed(make_voice_detection(variant.detector)) if variant.detector else None
    policy = VoicePolicy(
        followed,
        Endpointing(settings.speech_threshold, settings.endpoint_silence_seconds, settings.speech_padding_seconds),
        settings.gate_seconds if variant.gate else None,
    )
    taker = Taker()
    manager = SessionManager(
        EnginePool(Engine(taker)), SessionLimits(), Metrics(), max_sessions=count, language="en-US", voice=policy
    )
    await manager.load()
    async with contextlib.AsyncExitStack() as stack:
        clock = Clock()
        opened: list[tuple[Stream, Session]] = []
        for n in range(count):
            stream = coded[n % len(coded)]
            start = Start(stream.audio, vad=True if variant.detector and not variant.gate else None)
            opened.append((stream, await stack.enter_async_context(manager.session(start, "native"))))
        async with asyncio.TaskGroup() as group:
            for _, session in opened:
                group.create_task(read(session))
                group.create_task(session.run())
            with collected_seldom():
                await feed(opened, followed, clock)
            for _, session in opened:
                session.stop()
    await manager.close()
    audio = sum(session.audio_seconds for _, session in opened)
    return clock.cost(count, seconds, taker.samples / 16_000 / audio)


async def feed(opened: Sequence[tuple[Stream, Session]], followed: Followed | None, clock: Clock) -> None:
    """A message of each session in turn."""
    first = opened[0][0]
    warm = round(1_000 * WARM_UP / first.milliseconds)
    for index in range(len(first.messages)):
        if index == warm:
            clock.read()
        for stream, session in opened:
            if not session.feed(stream.messages[index]):
                await session.room()
            await asyncio.sleep(0)
        if followed is not None:
            await followed.caught_up()
    clock.read()


async def read(session: Session) -> None:
    """What a client would be sent."""
    outbox = session.subscribe()
    while events := await outbox.get():
        if isinstance(events[-1], Closed):
            return


@contextlib.contextmanager
def collected_seldom() -> Iterator[None]:
    """Garbage as in the server; it is frozen there, too."""
    usual = gc.get_threshold()
    settle_memory()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*usual)


def cost(coded: Sequence[Stream], count: int, seconds: float, variant: Variant, rounds: int) -> Cost:
    """The best of some rounds: what else the machine does can only make it dearer."""
    costs = []
    for _ in range(rounds):
        if variant.session:
            costs.append(uvloop.run(sessions(coded, count, seconds, variant)))
        else:
            costs.append(decoders(coded, count, seconds))
    return min(costs, key=lambda one: one.per_second)


def table(
    names: Sequence[str], counts: Sequence[int], variants: Sequence[Variant], seconds: float, rounds: int
) -> None:
    """Print milliseconds for a second of audio, and how many streams a core carries that does nothing else."""
    print(
        f"{'':22}{'sessions':>9}" + "".join(f"{variant.name:>15}" for variant in variants) + f"{'once':>9}{'given':>7}"
    )
    for name in names:
        coded = streams(name, WARM_UP + seconds)
        for count in counts:
            line, once, given = f"{name:22}{count:9}", 0.0, 1.0
            for variant in variants:
                one = cost(coded, count, seconds, variant, rounds)
                line += f"{one.per_second:8.2f} {f'({1e3 / one.per_second:.0f})':>6}"
                once = one.once if variant.name == "session" else once
                given = min(given, one.given)
            print(f"{line}{once:9.1f}{given:7.0%}", flush=True)
    print("milliseconds of CPU for a second of audio (streams per core); once: opening a session and its first seconds")
    print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} CPUs")


def main() -> int:
    """Measure and print; see the module."""
    parser = argparse.ArgumentParser(prog="python -m bench.frontend", description=__doc__)
    parser.add_argument("--formats", nargs="+", default=[], metavar="NAME", help="only those whose name holds one")
    parser.add_argument("--sessions", type=int, nargs="+", metavar="N", help="at once (default: 100; live: as aimed)")
    parser.add_argument("--variants", nargs="+", default=[], metavar="NAME", help="likewise; not live")
    parser.add_argument("--seconds", type=float, help="of audio that are measured (default: 12; live: 30)")
    parser.add_argument("--rounds", type=int, default=3, help="of which the best is printed (default: %(default)s)")
    parser.add_argument("--live", action="store_true", help="in real time, through a server")
    parser.add_argument("--detector", choices=("silero", "webrtc", "off"), default="silero", help="of the live server")
    args = parser.parse_args()
    known = LIVE if args.live else FORMATS
    names = [name for name in known if not args.formats or any(part in name for part in args.formats)]
    if not names:
        parser.error("there is no such format")
    if args.live:
        return live(names, args.sessions, args.seconds or 30.0, args.detector)
    variants = [one for one in VARIANTS if not args.variants or any(part in one.name for part in args.variants)]
    if not variants:
        parser.error("there is no such variant")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    table(names, args.sessions or (100,), variants, args.seconds or 12.0, args.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
