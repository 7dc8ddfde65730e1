"""The same HTTP request again and again on some connections, and what came of it: the load of `bench.http`.

Reads a request, head and body, from standard input, and prints what it saw as JSON. Sockets are raw: what this process
costs is taken from the server on a machine with few cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import cast

import uvloop

from bench.percentiles import percentiles


@dataclass
class Load:
    """What one run saw; latencies in milliseconds."""

    requests: int = 0
    failed: int = 0
    seconds: float = 0.0
    cpu_percent: float = 0.0
    latency_ms: dict[str, float] = field(default_factory=dict)
    example: str = ""
    """The body of the last answer."""


class Client(asyncio.Protocol):
    """One connection: a request as soon as the one before is answered, until `until` (`time.perf_counter`)."""

    def __init__(self, request: bytes, until: float, load: Load, latencies: list[float]) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._until = until
        self._load = load
        self._latencies = latencies
        self._answer = b""
        self._sent_at = 0.0
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name
        self._send()

    def _send(self) -> None:
        self._sent_at = time.perf_counter()
        if self._sent_at >= self._until:
            self._transport.close()
        else:
            self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, found, body = self._answer.partition(b"\r\n\r\n")
        if not found or len(body) < _length(head):
            return
        self._answer = b""
        self._latencies.append(time.perf_counter() - self._sent_at)
        self._load.requests += 1
        self._load.failed += head.split(b" ", 2)[1] != b"200"
        self._load.example = body.decode()
        self._send()

    def connection_lost(self, _: Exception | None) -> None:
        if time.perf_counter() < self._until:
            self._load.failed += 1
        if not self.done.done():
            self.done.set_result(None)


def _length(head: bytes) -> int:
    """What `Content-Length` says."""
    return next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))


async def run(port: int, request: bytes, connections: int, seconds: float) -> Load:
    """Play it."""
    load, latencies = Load(), list[float]()
    loop = asyncio.get_running_loop()
    cpu, began = time.process_time(), time.perf_counter()
    clients = [
        (await loop.create_connection(lambda: Client(request, began + seconds, load, latencies), "127.0.0.1", port))[1]
        for _ in range(connections)
    ]
    async with asyncio.timeout(seconds + 60):
        await asyncio.gather(*(client.done for client in clients))
    passed = time.perf_counter() - began
    load.seconds = round(passed, 3)
    load.cpu_percent = round(100 * (time.process_time() - cpu) / passed, 1)
    load.latency_ms = percentiles(latencies)
    return load


def main() -> None:
    """Print the report as JSON; exit 1 if a request failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.http_load", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=3)
    args = parser.parse_args()
    if not 1 <= args.connections <= 1_000 or not 0 < args.seconds <= 600:
        parser.error("connections: 1 to 1000, seconds: up to 600")
    load = uvloop.run(run(args.port, sys.stdin.buffer.read(), args.connections, args.seconds))
    print(json.dumps(asdict(load)))
    sys.exit(1 if load.failed else 0)


if __name__ == "__main__":
    main()
