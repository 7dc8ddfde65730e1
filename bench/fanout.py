"""One sender, many receivers on one server: how long a message takes to reach them, and what they cost.

`python -m bench.fanout --receivers 500` starts the real server on the scripted engine, two processes of receivers and
one sender that speaks words of markers in real time. A third of the receivers waits for the session, a third joins in
its first seconds, a third joins late and wants everything from the beginning; one more never reads.

Times are of the machine's monotonic clock, which all processes share. `from_audio` counts from when the sender handed
the last audio of a result to its socket, so it holds the recognition and the writing of the event log as well;
`behind_sender` counts from when the sender itself had read the message. A receiver's time is taken when its bytes come
out of the socket, before they are looked at. Of late joiners only what comes live is counted. Exit code 1 if a receiver
missed a message, saw one twice, or the 99th percentile of the finals is over `--limit`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from backends.markers import marker_audio
from bench.machine import machine
from bench.percentiles import percentiles
from bench.process import cpu_seconds, environment, resident_mb, started
from bridge.client import connect
from bridge.protocols.native import FinalMessage, PartialMessage, StartMessage

RATE: Final = 16_000
CHUNK_SECONDS: Final = 0.1
PROCESSES: Final = 2
WATCH_SECONDS: Final = 0.25
JOIN_EVERY: Final = 0.002
"""Seconds between two receivers of one process: all at once is a test of `accept`, not of broadcasting."""
OPEN_SECONDS: Final = 30.0
LIMIT_MS: Final = 100.0
SMALL_BUFFER: Final = 4_096
ESTABLISHED: Final = 1
"""TCP_ESTABLISHED of Linux's <net/tcp_states.h>."""


class Message(msgspec.Struct):
    """The fields that are looked at, of any message."""

    type: str
    seq: int | None = None
    end: float = 0.0
    code: str = ""


@dataclass
class Receipts:
    """What one receiver got: numbers of lasting messages, and when each message came."""

    group: str
    joined: float = 0.0
    state: str = ""
    seqs: list[int] = field(default_factory=list)
    lasting: dict[int, float] = field(default_factory=dict)
    partials: dict[str, float] = field(default_factory=dict)
    code: str = ""


class Receiver(asyncio.Protocol):
    """A WebSocket that is only read. `done` is set with `closed`, or when the connection ends."""

    def __init__(self, receipts: Receipts, host: str, path: str) -> None:
        self.receipts = receipts
        self.done = asyncio.get_running_loop().create_future()
        self.joined = asyncio.get_running_loop().create_future()
        self._request = (
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        self._buffer = bytearray()
        self._upgraded = False
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - for the type
        self._transport = transport
        transport.write(self._request.encode())

    def data_received(self, data: bytes) -> None:
        """Note what came."""
        now = time.monotonic()
        self._buffer += data
        if not self._upgraded:
            head, found, rest = bytes(self._buffer).partition(b"\r\n\r\n")
            if not found:
                return
            if b" 101 " not in head.split(b"\r\n", 1)[0]:
                raise SystemExit(f"a receiver was refused: {head!r} {rest!r}")
            self._upgraded, self._buffer = True, bytearray(rest)
        for opcode, payload in frames(self._buffer):
            if opcode == 0x1:
                self._take(msgspec.json.decode(payload, type=Message), now)
            elif opcode == 0x9:
                self._transport.write(bytes([0x8A, 0x80 | len(payload), 0, 0, 0, 0]) + payload)

    def _take(self, message: Message, now: float) -> None:
        if message.type == "joined":
            self.receipts.joined = now
            if not self.joined.done():
                self.joined.set_result(None)
        elif message.seq is not None:
            self.receipts.seqs.append(message.seq)
            self.receipts.lasting[message.seq] = now
        elif message.type == "partial":
            self.receipts.partials.setdefault(f"{message.end:.3f}", now)
        if message.type in ("closed", "error"):
            self.receipts.code = message.code
        if message.type == "closed":
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the name is asyncio's
        """It is over."""
        self._finish()

    def _finish(self) -> None:
        for future in (self.joined, self.done):
            if not future.done():
                future.set_result(None)
        self._transport.close()


def frames(buffer: bytearray) -> Iterator[tuple[int, bytes]]:
    """Take the whole frames of a server out of the buffer: opcode and payload."""
    while len(buffer) >= 2:
        size, at = buffer[1] & 0x7F, 2
        if size >= 126:
            at = 4 if size == 126 else 10
            if len(buffer) < at:
                return
            size = int.from_bytes(buffer[2:at])
        if len(buffer) < at + size:
            return
        opcode, payload = buffer[0] & 0x0F, bytes(buffer[at : at + size])
        del buffer[: at + size]
        yield opcode, payload


# The receivers' process


async def receive_all(args: argparse.Namespace) -> list[Receipts]:
    """All receivers of one process. Says `joined` on standard output once those that wait are there."""
    loop = asyncio.get_running_loop()
    address = urlsplit(args.receive)
    path = f"{address.path}?role=receiver&session_id={args.session}"
    counts = {group: len(range(i, args.receivers, 3)) for i, group in enumerate(("waiting", "early", "late"))}
    receivers: list[Receiver] = []

    async def join(group: str, query: str = "") -> None:
        joining = []
        for _ in range(counts[group]):
            protocol = Receiver(Receipts(group), address.netloc, path + query)
            joining.append(protocol.joined)
            receivers.append(protocol)
            await loop.create_connection(lambda p=protocol: p, address.hostname, address.port)  # type: ignore[misc]
            await asyncio.sleep(JOIN_EVERY)
        async with asyncio.timeout(OPEN_SECONDS):
            await asyncio.gather(*joining)

    await join("waiting", "&from_seq=1")
    print("joined", flush=True)
    await asyncio.to_thread(sys.stdin.readline)  # the sender has begun
    await join("early", "&from_seq=1")
    await asyncio.sleep(args.seconds / args.speed / 3)
    await join("late", "&from_seq=1")
    async with asyncio.timeout(args.seconds + OPEN_SECONDS):
        await asyncio.gather(*(r.done for r in receivers))
    return [r.receipts for r in receivers]


# The sender's process


@dataclass
class Sent:
    """What the sender said and heard. `at[i]`: when chunk i had been handed to the socket."""

    at: list[float] = field(default_factory=list)
    lasting: dict[int, float] = field(default_factory=dict)
    partials: dict[str, float] = field(default_factory=dict)
    finals: dict[int, float] = field(default_factory=dict)
    """Their ends, by number."""

    def since(self, end: float, received: float) -> float:
        """Seconds from when the audio that ends at `end` had been sent."""
        chunk = min(len(self.at) - 1, max(0, -int(-end // CHUNK_SECONDS) - 1))
        return received - self.at[chunk]


def speech(seconds: float, sentence: int) -> bytes:
    """Sentences of so many words of markers."""
    parts, at, word = [], 0.0, 0
    while at < seconds:
        for i in range(sentence):
            pause = 0.5 if i == sentence - 1 else 0.06
            parts.append(marker_audio(1, rate=RATE, pause=pause, first=word))
            word, at = word + 1, at + 0.3 + pause
    return b"".join(parts)


async def send(url: str, session_id: str, args: argparse.Namespace) -> Sent:
    """Speak, `args.speed` times faster than life."""
    sent = Sent()
    start = StartMessage(encoding="pcm_s16le", session_id=session_id)
    async with connect(url, start, reconnect=None) as client, asyncio.TaskGroup() as tasks:

        async def speak() -> None:
            pcm, size, began = speech(args.seconds, args.sentence), 2 * round(CHUNK_SECONDS * RATE), time.monotonic()
            for i, at in enumerate(range(0, len(pcm), size)):
                if (delay := began + (i + 1) * CHUNK_SECONDS / args.speed - time.monotonic()) > 0:
                    await asyncio.sleep(delay)
                await client.send(pcm[at : at + size])
                sent.at.append(time.monotonic())
            await client.stop()

        tasks.create_task(speak())
        async for message in client:
            now = time.monotonic()
            if isinstance(message, PartialMessage):
                sent.partials.setdefault(f"{message.end:.3f}", now)
            elif (seq := getattr(message, "seq", None)) is not None:
                sent.lasting[seq] = now
                if isinstance(message, FinalMessage):
                    sent.finals[seq] = message.end
    return sent


@contextlib.contextmanager
def never_reading(url: str, session_id: str) -> Iterator[socket.socket]:
    """A receiver that joins and then reads nothing, with little room in its kernel."""
    address = urlsplit(url)
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        sock.connect((address.hostname, address.port))
        request = f"GET {address.path}?role=receiver&session_id={session_id}&from_seq=1 HTTP/1.1\r\n"
        headers = (
            f"Host: {address.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        )
        sock.sendall(f"{request}{headers}Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode())
        yield sock


@contextlib.asynccontextmanager
async def receiving(
    url: str, session_id: str, args: argparse.Namespace
) -> AsyncGenerator[list[asyncio.subprocess.Process]]:
    """The receivers' processes, once those that wait have joined."""
    shares = [len(range(i, args.receivers, PROCESSES)) for i in range(PROCESSES)]
    command = [sys.executable, "-m", "bench.fanout", "--receive", url, "--session", session_id]
    processes = [
        await asyncio.create_subprocess_exec(
            *(*command, "--receivers", str(share), "--seconds", str(args.seconds), "--speed", str(args.speed)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment({}),
            limit=256 * 1_048_576,
        )
        for share in shares
    ]
    try:
        for process in processes:
            async with asyncio.timeout(OPEN_SECONDS + 0.05 * args.receivers):
                if process.stdout is None or await process.stdout.readline() != b"joined\n":
                    raise RuntimeError("the receivers did not join")
        yield processes
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def watch(pid: int, sizes: list[float]) -> None:
    """Note the server's memory."""
    while True:
        sizes.append(resident_mb(pid))
        await asyncio.sleep(WATCH_SECONDS)


async def drop_of(silent: socket.socket) -> float:
    """Seconds until the server drops the connection; the kernel gives no other sign while nothing is read."""
    began = time.monotonic()
    while silent.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == ESTABLISHED:  # noqa: ASYNC110 - no event tells
        await asyncio.sleep(WATCH_SECONDS)
    return time.monotonic() - began


async def run(args: argparse.Namespace, pid: int, url: str) -> dict[str, object]:
    """Everything; returns the report."""
    where = machine()
    session_id = secrets.token_urlsafe(16)
    memory = {"before": resident_mb(pid)}
    sizes: list[float] = []
    watching = asyncio.create_task(watch(pid, sizes))
    try:
        async with receiving(url, session_id, args) as processes:
            memory["joined"] = resident_mb(pid)
            with never_reading(url, session_id) as silent:
                dropping = asyncio.create_task(drop_of(silent))
                for process in processes:
                    process.stdin.write(b"\n")  # type: ignore[union-attr]
                cpu, began = cpu_seconds(pid), time.monotonic()
                sent = await send(url, session_id, args)
                dropped = round(dropping.result(), 1) if dropping.done() else None
                dropping.cancel()
                cpu, wall = cpu_seconds(pid) - cpu, time.monotonic() - began
                receipts: list[Receipts] = []
                for process in processes:
                    async with asyncio.timeout(OPEN_SECONDS):
                        receipts += msgspec.json.decode(await process.stdout.readline(), type=list[Receipts])  # type: ignore[union-attr]
    finally:
        watching.cancel()
    memory |= {"most": max(sizes), "after": resident_mb(pid)}
    return report(args, sent, receipts) | {
        "never_reading_dropped_after_seconds": dropped,
        "server_cpu_percent": round(100 * cpu / wall, 1),
        "server_mb": {name: round(size, 1) for name, size in memory.items()},
        "machine": where,
    }


def report(args: argparse.Namespace, sent: Sent, receipts: list[Receipts]) -> dict[str, object]:
    """What was measured."""
    wanted = sorted(sent.lasting)
    finals: list[float] = []
    behind: list[float] = []
    partials: list[float] = []
    for receiver in receipts:
        for seq, end in sent.finals.items():
            at = receiver.lasting.get(seq)
            if at is not None and sent.lasting[seq] > receiver.joined:  # else it is read from the log
                finals.append(sent.since(end, at))
                behind.append(at - sent.lasting[seq])
        partials += [
            sent.since(float(end), at)
            for end, at in receiver.partials.items()
            if sent.partials.get(end, 0) > receiver.joined
        ]
    own = [sent.since(end, sent.lasting[seq]) for seq, end in sent.finals.items()]
    wrong = [f"{r.group}: {r.seqs} {r.code}" for r in receipts if r.seqs != wanted]
    if wanted != list(range(1, len(wanted) + 1)):
        wrong.append(f"the sender: {wanted}")
    at_99 = percentiles(list(finals)).get("p99", float("inf"))
    if at_99 > args.limit:
        wrong.append(f"p99 of the finals is {at_99} ms")
    return {
        "receivers": len(receipts),
        "seconds": args.seconds,
        "speed": args.speed,
        "finals": len(sent.finals),
        "lasting_messages": len(wanted),
        "sender_from_audio_ms": percentiles(own),
        "finals_from_audio_ms": percentiles(finals),
        "finals_behind_sender_ms": percentiles(behind),
        "partials_from_audio_ms": percentiles(partials),
        "wrong": wrong[:20],
        "wrong_count": len(wrong),
    }


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.fanout", description=__doc__)
    parser.add_argument("--receivers", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=30, help="of speech")
    parser.add_argument("--sentence", type=int, default=6, help="words in one final; partials grow with it")
    parser.add_argument("--speed", type=float, default=1, help="times faster than life")
    parser.add_argument("--limit", type=float, default=LIMIT_MS, help="milliseconds, for the 99th percentile")
    parser.add_argument("--receive", metavar="URL", help=argparse.SUPPRESS)
    parser.add_argument("--session", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.receive:
        print(msgspec.json.encode(asyncio.run(receive_all(args))).decode(), flush=True)
        return 0
    with tempfile.TemporaryDirectory(prefix="fanout-") as folder:
        settings = {
            "STT_SCRIPTED_MODE": "markers",
            "STT_EVENT_LOG": f"sqlite:{Path(folder) / 'sessions.db'}",
            "STT_MAX_CONNECTIONS": str(args.receivers + 100),
        }
        command = ["serve", "--backend", "scripted", "--port", "0", "--log-level", "warning"]
        with started(command, "stream", settings) as (pid, url):
            figures = asyncio.run(run(args, pid, url))
    print(json.dumps(figures, indent=1))
    return int(bool(figures["wrong"]))


if __name__ == "__main__":
    sys.exit(main())
