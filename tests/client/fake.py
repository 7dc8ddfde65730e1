"""A server that holds one session, hears a word in every tenth of a second, and breaks as it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import http
import json
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Literal

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from bridge.errors import ERRORS

RATE = 8_000
WORD = 1_600  # bytes of PCM16: a tenth of a second
LAG = 2 * WORD  # audio that has no final yet

Cut = Literal["reset", "end", "close", "mid-frame", "closed", "rubbish", "gap", "freeze"]
Json = dict[str, Any]


@dataclass
class Plan:
    """What becomes of one connection. Counts are of this connection; None: it never comes to that."""

    refuse: str | None = None  # a code, as `error` and `closed`
    http: int | None = None  # a status, before the upgrade
    mute: bool = False  # never answers
    drop: bool = False  # is gone before `ready`
    ready: Json = field(default_factory=dict)  # other values
    after_audio: int | None = None  # bytes
    after_messages: int | None = None  # lasting ones
    after_stop: bool = False
    linger: float = 0  # seconds before the cut
    cut: Cut = "reset"
    code: str = "shutting_down"  # of `closed`, where that is the cut
    restart: bool = False  # the next connection meets a server that has only the log
    acks: bool = True
    repeat: int = 0  # so many lasting messages are said again


class FakeServer:
    """`audio` is what reached the decoder; `events` the log."""

    def __init__(self, *plans: Plan, encoding: str = "pcm_s16le", resume_seconds: float = 5) -> None:
        self.url = ""
        self.plans = list(plans)
        self.encoding = encoding
        self.raw = encoding.startswith("pcm")
        self.resume_seconds = resume_seconds
        self.audio = bytearray()
        self.packets: list[bytes] = []
        self.events: list[Json] = []
        self.starts: list[Json] = []
        self.said: list[tuple[str, int]] = []  # flush and stop, and after how much audio
        self.got = 0  # bytes, over all connections
        self.final = 0  # bytes
        self.stopped = False
        self.open = 0  # connections
        self.release = asyncio.Event()  # ends what is frozen

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        def refuse(connection: ServerConnection, _: Request) -> Response | None:
            if self.plans and (status := self.plans[0].http) is not None:
                self.plans.pop(0)
                body = {"error": {"code": "not_ready", "message": "Wait."}}
                return connection.respond(http.HTTPStatus(status), json.dumps(body))
            return None

        options: Json = {"process_request": refuse, "compression": None, "close_timeout": 0.2}
        async with serve(self._handle, "127.0.0.1", 0, **options) as server:
            self.url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/v1/stream"
            yield self.url

    @property
    def texts(self) -> list[str]:
        """What is said in the audio."""
        return [event["text"] for event in self.events if event["type"] == "final"]

    async def _handle(self, connection: ServerConnection) -> None:
        plan = self.plans.pop(0) if self.plans else Plan()
        self.open += 1
        with contextlib.suppress(ConnectionClosed):
            await _Talk(self, connection, plan).run()
        self.open -= 1

    def restart(self) -> None:
        """What a server that has only the log knows; a session that has ended is not run again."""
        if self.events and self.events[-1]["type"] == "closed":
            return
        if self.raw:
            del self.audio[self.final :]
        else:
            self.audio.clear()
            self.packets.clear()
        self.stopped = False

    def log(self, **event: Any) -> None:
        self.events.append({**event, "seq": len(self.events) + 1})

    def hear(self, until: int) -> None:
        """Finals for all whole words before this byte."""
        while self.final + WORD <= until:
            at = self.final / WORD / 10
            if self.final % (3 * WORD) == 0:
                self.log(type="speech_started", start=at)
            self.log(type="final", text=f"w{self.final // WORD}", start=at, end=at + 0.1)
            self.final += WORD


class _Talk:
    """One connection."""

    def __init__(self, server: FakeServer, connection: ServerConnection, plan: Plan) -> None:
        self.server = server
        self.connection = connection
        self.plan = plan
        self.next = 1
        self.sent = 0
        self.heard = 0

    async def run(self) -> None:
        server, plan = self.server, self.plan
        start = json.loads(await self.connection.recv())
        server.starts.append(start)
        if plan.mute:
            await self.connection.wait_closed()
        if plan.drop:
            return self.break_off()
        if plan.refuse is not None:
            return await self.say_closed(plan.refuse)
        resumed = "resume_token" in start
        self.next = start.get("from_seq", len(server.events) + 1)
        await self.say(ready(server, resumed) | plan.ready)
        try:
            await self.pump()
            async for message in self.connection:
                await self.take(message)
        except _CutOffError:
            if plan.restart:
                server.restart()

    async def take(self, message: str | bytes) -> None:
        server, plan = self.server, self.plan
        if isinstance(message, bytes):
            room = None if plan.after_audio is None else plan.after_audio - self.heard
            taken = message if room is None else message[:room]
            self.heard += len(taken)
            server.got += len(taken)
            if server.encoding == "opus":
                if taken == message:
                    server.packets.append(message)
                    server.audio += message
            else:
                server.audio += taken
            server.hear(len(server.audio) - LAG)
            await self.pump()
            if room is not None and len(message) >= room:
                await self.cut()
            if plan.acks:
                await self.say_ack()
            return
        kind = json.loads(message)["type"]
        server.said.append((kind, len(server.audio)))
        if kind == "flush":
            server.hear(len(server.audio))
            await self.pump()
            if plan.acks:
                await self.say_ack()
        elif kind == "stop":
            if not server.stopped:
                server.stopped = True
                server.hear(len(server.audio))
                frames = len(server.audio) // 2
                server.log(type="closed", code="stopped", received=frames, finalized=frames, duration=frames / RATE)
            if plan.after_stop:
                await self.cut()
            await self.pump()
            await self.connection.close()

    async def pump(self) -> None:
        """Lasting messages that this connection has not seen."""
        while self.next <= len(self.server.events):
            if self.plan.after_messages is not None and self.sent >= self.plan.after_messages:
                await self.cut()
            event = self.server.events[self.next - 1]
            await self.say(event)
            if self.plan.repeat:
                self.plan.repeat -= 1
                await self.say(event)
            self.next += 1
            self.sent += 1

    async def say(self, message: Json) -> None:
        await self.connection.send(json.dumps(message))

    async def say_ack(self) -> None:
        frames = len(self.server.audio) // 2
        await self.say({"type": "ack", "received": frames, "finalized": self.server.final // 2})

    async def say_closed(self, code: str) -> None:
        if code in ERRORS:
            retryable = ERRORS[code].retryable
            await self.say({"type": "error", "code": code, "message": "No.", "fatal": True, "retryable": retryable})
        await self.say({"type": "closed", "code": code, "received": 0, "finalized": 0, "duration": 0})
        await self.connection.close()

    async def cut(self) -> None:
        cut = self.plan.cut
        await asyncio.sleep(self.plan.linger)
        if cut == "closed":
            await self.say_closed(self.plan.code)
        elif cut == "close":
            await self.connection.close(1011, "oh dear")
        elif cut == "end":
            self.connection.transport.close()
        elif cut == "rubbish":
            await self.connection.send("{")
            await self.connection.wait_closed()
        elif cut == "freeze":
            self.connection.transport.pause_reading()
            await self.server.release.wait()
            self.break_off()
        elif cut == "gap":
            await self.say({"type": "final", "seq": self.next + 1, "text": "lost", "start": 0, "end": 0})
            await self.connection.wait_closed()
        else:
            if cut == "mid-frame":
                self.connection.transport.write(b'\x81\x7e\x01\x00{"type":"final","se')
            self.break_off()
        raise _CutOffError

    def break_off(self) -> None:
        raw = self.connection.transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.transport.abort()


class _CutOffError(Exception):
    pass


def ready(server: FakeServer, resumed: bool) -> Json:
    return {
        "type": "ready",
        "protocol": 1,
        "session_id": "session-of-the-test",
        "backend": "fake",
        "language": "en-US",
        "encoding": server.encoding,
        "sample_rate": RATE,
        "channels": 1,
        "partials": False,
        "limits": {"session_seconds": 60, "idle_seconds": 10, "message_bytes": 65_536},
        "resume_token": "token",
        "resume_seconds": server.resume_seconds,
        "resumed": resumed,
        "last_seq": len(server.events),
        "received": len(server.audio) // 2 if server.raw else 0,
        "received_bytes": len(server.audio),
        "finalized": server.final // 2,
    }
