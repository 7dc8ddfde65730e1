"""Endless streams against Google's limits: hours of speech, and not one word lost, cut, doubled or misplaced.

`python -m bench.endless --hours 6` starts the real server on a Google engine, the emulator with the real limit of
five minutes of audio, and clients whose audio carries its own text (see `backends.markers`), all `--speed` times
faster than life. Streams abort at random moments as well. Speech comes in three kinds, one session after the other:
sentences with pauses, words with gaps of 60 ms and no pause ever, and words without any gap. Exit code 1 if anything
is wrong. Times in the report are in seconds of audio.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Final

from backends.markers import MARKER_SECONDS, marker_audio
from bench.machine import machine
from bench.process import announced, environment, resident_mb, threads_of
from bridge.client import Client, connect
from bridge.emulator.faults import Faults, Plan
from bridge.emulator.limits import Limits
from bridge.emulator.server import Emulator, EmulatorConfig, emulating
from bridge.protocols.native import ClosedMessage, FinalMessage

RATE: Final = 16_000
FRAME_SECONDS: Final = 0.4
DIFFERENT_WORDS: Final = 8_000
"""Then they begin again: with more, the step back in level would be a quiet moment, 20 dB below what came before."""
TOLERANCE: Final = 0.2
"""Seconds that a word's time may be off."""


@dataclass(frozen=True)
class Speech:
    """A way of speaking: so many words with `gap` seconds between them, then a pause."""

    name: str
    sentence: int
    gap: float
    pause: float


KINDS: Final = (
    Speech("sentences", 8, 0.06, 0.5),
    Speech("sentences", 3, 0.1, 1.2),
    Speech("without pauses", 10, 0.06, 0.06),
    Speech("without gaps", 10, 0.0, 0.0),
)


@dataclass
class Spoken:
    """One session: what it says, and what came back."""

    kind: Speech
    seconds: float
    expected: list[tuple[str, float]] = field(default_factory=list)
    heard: list[tuple[str, float, float]] = field(default_factory=list)
    finals: int = 0
    lost_time: float = 0.0  # behind its schedule at the end

    def audio(self) -> Iterator[bytes]:
        """Frames of `FRAME_SECONDS`, until there are enough; each word is noted in `expected`."""
        number, at, pending = 0, 0.0, b""
        size = 2 * round(FRAME_SECONDS * RATE)
        while at < self.seconds:
            for i in range(self.kind.sentence):
                index = number % DIFFERENT_WORDS
                pause = self.kind.pause if i == self.kind.sentence - 1 else self.kind.gap
                self.expected.append((f"w{index}", at))
                pending += marker_audio(1, rate=RATE, pause=pause, first=index)
                at += MARKER_SECONDS + pause
                number += 1
                while len(pending) >= size:
                    yield pending[:size]
                    pending = pending[size:]
        if pending:
            yield pending

    def faults(self) -> dict[str, int]:
        """How many words are missing, too many, cut or misplaced, and how often time went backwards."""
        said, got = [w for w, _ in self.expected], [w for w, _, _ in self.heard]
        wanted, have = Counter(said), Counter(w.removesuffix("~") for w in got)
        times = [t for _, start, end in self.heard for t in (start, end)]
        misplaced = 0
        if len(said) == len(got):
            misplaced = sum(
                abs(at - start) > TOLERANCE for (_, at), (_, start, _) in zip(self.expected, self.heard, strict=True)
            )
        return {
            "lost": sum((wanted - have).values()),
            "doubled": sum((have - wanted).values()),
            "cut": sum(w.endswith("~") for w in got),
            "out_of_order": int(said != got),
            "misplaced": misplaced,
            "backwards": sum(b < a - 1e-6 for a, b in itertools.pairwise(times)),
        }

    def first_difference(self) -> dict[str, object] | None:
        """Where what was heard first differs from what was said."""
        for i, ((word, at), (heard, _, _)) in enumerate(zip(self.expected, self.heard, strict=False)):
            if word != heard:
                around = [f"{w} {s:.3f}-{e:.3f}" for w, s, e in self.heard[max(0, i - 2) : i + 4]]
                return {"kind": self.kind.name, "said": f"{word} {at:.3f}", "heard": around}
        return None


async def speak(client: Client, spoken: Spoken, speed: float) -> None:
    """Send the audio at its pace; no faster if the server is slow."""
    began, sent = time.monotonic(), 0
    for chunk in spoken.audio():
        await client.send(chunk)
        sent += len(chunk)
        delay = began + sent / 2 / RATE / speed - time.monotonic()
        if delay > 0:
            await asyncio.sleep(delay)
    spoken.lost_time = max(0.0, time.monotonic() - began - sent / 2 / RATE / speed)
    await client.stop()


async def session(url: str, spoken: Spoken, speed: float) -> ClosedMessage:
    """One whole session."""
    async with connect(url) as client, asyncio.TaskGroup() as group:
        group.create_task(speak(client, spoken, speed))
        async for message in client:
            if isinstance(message, FinalMessage):
                spoken.finals += 1
                spoken.heard += [(w.text, w.start, w.end) for w in message.words]
        if client.closed is None:
            raise RuntimeError("the messages ended without `closed`")
        return client.closed


@contextlib.asynccontextmanager
async def server(env: dict[str, str]) -> AsyncIterator[tuple[int, str, list[str]]]:
    """The real server in a process of its own: its number, its stream's address, and what it logs."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bridge", "serve", "--port", "0", "--log-level", "warning"),
        env=environment(env),
        stderr=subprocess.PIPE,
    )
    if process.stderr is None:
        raise RuntimeError("no pipe")
    log: list[str] = []

    async def read(stderr: asyncio.StreamReader) -> None:
        async for line in stderr:
            log.append(line.decode())  # noqa: PERF401 - read while it is written

    async for line in process.stderr:
        if url := announced("stream", line.decode()):
            break
    else:
        raise SystemExit("the server did not start")
    reading = asyncio.create_task(read(process.stderr))
    try:
        yield process.pid, url, log
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), 30)
        await reading


async def watch_memory(pid: int, sizes: list[float]) -> None:
    """Note the server's memory, once a second."""
    while True:
        sizes.append(round(resident_mb(pid), 1))
        await asyncio.sleep(1)


async def run(args: argparse.Namespace) -> dict[str, object]:
    """Everything; returns the report."""
    where = machine()
    spoken = [Spoken(KINDS[i % len(KINDS)], 3_600 * args.hours) for i in range(args.sessions)]
    config = EmulatorConfig(
        mode="words",
        limits=Limits(stream_seconds=args.limit, pace_seconds=0, max_streams=1_000, requests_per_minute=1_000_000),
        plan=Plan(usual=Faults(lag=args.lag), abort_every=args.abort_every or None, seed=args.seed),
        speed=args.speed,
    )
    async with emulating(config) as emulator:
        env = {
            "STT_BACKEND": args.engine,
            "STT_GOOGLE_API": args.api,
            "STT_GOOGLE_PROJECT": "bench",
            "STT_GOOGLE_ENDPOINT": f"http://{emulator.address}",
            "STT_GOOGLE_STREAM_SECONDS": str(args.limit),
            "STT_GOOGLE_REPLAY_SPEED": str(0 if args.speed > 1 else 2),
            "STT_GOOGLE_REQUESTS_PER_MINUTE": "1000000",
            "STT_MAX_SESSION_SECONDS": "86400",
            "STT_VAD": "off",  # what stands for words here is no speech
        }
        async with server(env) as (pid, url, log):
            memory: list[float] = []
            before = threads_of(pid)
            began = time.monotonic()
            watching = asyncio.create_task(watch_memory(pid, memory))
            try:
                closed = await asyncio.gather(*(session(url, s, args.speed) for s in spoken))
            finally:
                watching.cancel()
            wall = time.monotonic() - began
            await emulator.stats.until(lambda stats: stats.open == 0, 10)
            left = threads_of(pid) - before
            about = {"threads_left": left, "log_lines": len(log), "machine": where}
            return report(args, spoken, closed, emulator, memory, wall) | about


def report(
    args: argparse.Namespace,
    spoken: list[Spoken],
    closed: list[ClosedMessage],
    emulator: Emulator,
    memory: list[float],
    wall: float,
) -> dict[str, object]:
    """What was measured."""
    faults: Counter[str] = Counter()
    kinds: dict[str, Counter[str]] = {}
    for one, end in zip(spoken, closed, strict=True):
        found = Counter(one.faults())
        found["unfinished"] = int(end.code != "stopped" or end.finalized != end.received)
        faults.update(found)
        kind = kinds.setdefault(one.kind.name, Counter())
        kind.update(sessions=1, words=len(one.expected), finals=one.finals, **found)
    twelfth = max(1, -(-len(memory) // 12))
    return {
        "engine": f"{args.engine} {args.api}",
        "sessions": args.sessions,
        "hours_each": args.hours,
        "limit_seconds": args.limit,
        "speed": args.speed,
        "wall_seconds": round(wall, 1),
        "behind_seconds": round(max(s.lost_time for s in spoken), 2),
        "words": sum(len(s.expected) for s in spoken),
        **dict(faults),
        "kinds": {name: dict(count) for name, count in kinds.items()},
        "differences": [d for s in spoken if (d := s.first_difference())],
        "streams": emulator.stats.opened,
        "stream_ends": dict(Counter(s.status for s in emulator.stats.ended)),
        "longest_stream_seconds": round(max(s.audio_seconds for s in emulator.stats.ended), 1),
        "largest_message_bytes": emulator.stats.largest_audio,
        "streams_left": emulator.stats.open,
        "memory_mb": [max(memory[i : i + twelfth]) for i in range(0, len(memory), twelfth)],
        "client_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.endless", description=__doc__)
    parser.add_argument("--hours", type=float, default=6, help="of audio in each session")
    parser.add_argument("--sessions", type=int, default=10)
    parser.add_argument("--speed", type=float, default=60, help="times faster than life")
    parser.add_argument("--limit", type=float, default=305, help="seconds of audio that a stream may take")
    parser.add_argument("--abort-every", type=float, default=900, help="mean seconds of audio; 0: never")
    parser.add_argument("--lag", type=float, default=1.0, help="seconds of audio that recognition is behind")
    parser.add_argument("--engine", choices=("google", "google-threads"), default="google")
    parser.add_argument("--api", choices=("v1", "v2"), default="v1")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    figures = asyncio.run(run(args))
    print(json.dumps(figures, indent=1))
    wrong = ("lost", "doubled", "cut", "out_of_order", "misplaced", "backwards", "unfinished", "streams_left")
    return int(any(figures[name] for name in wrong))


if __name__ == "__main__":
    sys.exit(main())
