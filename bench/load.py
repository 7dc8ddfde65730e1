"""Many real-time sessions from one process, and what they saw: `python -m bench.load --help`.

Speaks the native protocol to a server on the scripted engine, which answers at known audio times: a partial that ends
at second T can leave when the frame that holds T has arrived. The added latency is the time from sending that frame to
reading the partial, so it holds both kernels' socket queues, the bridge and this process's own lag, which is printed
beside it. Bounded in sessions and seconds; loopback only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Final, cast
from urllib.parse import urlsplit

import msgspec
import numpy as np
import uvloop
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri

FRAME_SECONDS: Final = 0.1
FRAME_BYTES: Final = 3_200
LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


class _Message(msgspec.Struct):
    """The fields that are looked at, of any message."""

    type: str
    end: float = 0.0
    code: str = ""
    received: int = 0
    text: str = ""


@dataclass
class Report:
    """What a run saw; latencies in milliseconds."""

    sessions: int
    seconds: float
    completed: int = 0
    refused: int = 0
    dropped: int = 0
    frames: int = 0
    partials: int = 0
    finals: int = 0
    lost_frames: int = 0
    latency_ms: dict[str, float] = field(default_factory=dict)
    final_latency_ms: dict[str, float] = field(default_factory=dict)
    opening_ms: dict[str, float] = field(default_factory=dict)
    generator_lag_ms: dict[str, float] = field(default_factory=dict)
    generator_cpu_percent: float = 0.0


def percentiles(values: list[float]) -> dict[str, float]:
    """p50, p95, p99 and the maximum of seconds, in milliseconds."""
    if not values:
        return {}
    values.sort()
    at = {f"p{p}": round(1e3 * values[min(len(values) - 1, len(values) * p // 100)], 2) for p in (50, 95, 99)}
    return at | {"max": round(1e3 * values[-1], 2)}


class Samples:
    """What all sessions measured, in seconds."""

    def __init__(self) -> None:
        self.partial: list[float] = []
        self.final: list[float] = []
        self.opening: list[float] = []
        self.lag: list[float] = []


class Client(asyncio.Protocol):
    """One session: paces frames on the audio's clock, reads what comes."""

    def __init__(self, url: str, frames: int, delay: float, samples: Samples, report: Report) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()
        self._protocol = ClientProtocol(parse_uri(url), max_size=1 << 20)
        self._frames = frames
        self._delay = delay
        self._samples = samples
        self._report = report
        self._transport: asyncio.Transport
        self._sent_at: list[float] = []
        self._start_at = 0.0
        self._opened = False
        self._closed_code: str | None = None
        # A voice's pitch at a level and phase of its own: what no reading of bytes explains would be looked at longer.
        wave = 8_000 * np.sin(2 * np.pi * (np.arange(FRAME_BYTES // 2) / 160 + random.random())) * random.random()
        self._audio = (wave + np.random.default_rng().normal(0, 200, len(wave))).astype("<i2").tobytes()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name
        self._protocol.send_request(self._protocol.connect())
        self._write()

    def _write(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._transport.write(data)
            else:
                self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                self._message(msgspec.json.decode(event.data, type=_Message))
            elif isinstance(event, Response) and event.status_code == 101:
                self._start_at = time.perf_counter()
                self._protocol.send_text(b'{"type":"start","words":false}')
        self._write()

    def _message(self, message: _Message) -> None:
        now = time.perf_counter()  # uvloop's clock ticks in milliseconds
        if message.type == "ready":
            self._opened = True
            self._samples.opening.append(now - self._start_at)
            self._due = self._loop.time() + self._delay
            self._loop.call_at(self._due, self._send)
        elif message.type in ("partial", "final"):
            index = round(message.end / FRAME_SECONDS) - 1
            if 0 <= index < len(self._sent_at) < self._frames:  # not what `stop` brought
                values = self._samples.partial if message.type == "partial" else self._samples.final
                values.append(now - self._sent_at[index])
            if message.type == "partial":
                self._report.partials += 1
            else:
                self._report.finals += 1
        elif message.type == "closed":
            self._closed_code = message.code
            self._report.lost_frames += len(self._sent_at) - message.received // (FRAME_BYTES // 2)

    def _send(self) -> None:
        if self._transport.is_closing() or self._protocol.state is not State.OPEN:
            return
        now = self._loop.time()
        if len(self._sent_at) >= self._frames:
            self._protocol.send_text(b'{"type":"stop"}')
            self._write()
            return
        self._samples.lag.append(now - self._due)
        self._sent_at.append(time.perf_counter())
        self._protocol.send_binary(self._audio)
        self._write()
        self._report.frames += 1
        self._due += FRAME_SECONDS
        self._loop.call_at(self._due, self._send)

    def connection_lost(self, _: Exception | None) -> None:
        if not self._opened:
            self._report.refused += 1
        elif self._closed_code == "stopped":
            self._report.completed += 1
        else:
            self._report.dropped += 1
        if not self.done.done():
            self.done.set_result(None)


async def run(url: str, sessions: int, seconds: float, ramp: float) -> Report:
    """Play `sessions` sessions of `seconds` each, opened evenly over `ramp` seconds."""
    parts = urlsplit(url)
    if parts.hostname not in LOOPBACK or parts.port is None:
        raise SystemExit(
            "the address must be ws://127.0.0.1:PORT/…: only a server on this machine may be put under load"
        )
    samples, report = Samples(), Report(sessions, seconds)
    loop = asyncio.get_running_loop()
    clients: list[Client] = []
    cpu, began = time.process_time(), time.monotonic()
    for i in range(sessions):
        await asyncio.sleep(max(0.0, began + ramp * i / sessions - time.monotonic()))
        jitter = random.uniform(0, FRAME_SECONDS)
        try:
            _, client = await loop.create_connection(
                lambda jitter=jitter: Client(url, round(seconds / FRAME_SECONDS), jitter, samples, report),  # type: ignore[misc]
                parts.hostname,
                parts.port,
            )
        except OSError:
            report.refused += 1
            continue
        clients.append(client)
    async with asyncio.timeout(seconds + 60):
        await asyncio.gather(*(c.done for c in clients))
    report.generator_cpu_percent = round(100 * (time.process_time() - cpu) / (time.monotonic() - began), 1)
    report.latency_ms = percentiles(samples.partial)
    report.final_latency_ms = percentiles(samples.final)
    report.opening_ms = percentiles(samples.opening)
    report.generator_lag_ms = percentiles(samples.lag)
    return report


def main() -> None:
    """Print the report as JSON; exit 1 if a session was refused or dropped."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__)
    parser.add_argument("--url", default="ws://127.0.0.1:8000/v1/stream")
    parser.add_argument("--sessions", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=20, help="audio of each session")
    parser.add_argument("--ramp", type=float, default=5, help="seconds over which sessions are opened")
    args = parser.parse_args()
    if not 1 <= args.sessions <= 20_000 or not 1 <= args.seconds <= 7_200:
        parser.error("sessions: 1 to 20000, seconds: 1 to 7200")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    report = uvloop.run(run(args.url, args.sessions, args.seconds, args.ramp))
    print(json.dumps(asdict(report), indent=1))
    sys.exit(0 if report.completed == report.sessions else 1)


if __name__ == "__main__":
    main()
