"""What the socket tests share: a WebSocket client without manners, servers, and a look at their figures."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

from bridge import app
from bridge.settings import Settings

ROOT: Final = Path(__file__).parent.parent
PATH: Final = "/v1/stream"
LIMIT: Final = 10.0
"""Seconds that nothing here may take longer than, unless told."""

CONT: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

_ESTABLISHED: Final = 1
"""TCP_ESTABLISHED of Linux's <net/tcp_states.h>."""

Json = dict[str, Any]


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, masked: bool = True) -> bytes:
    """One WebSocket frame, right or wrong. The mask is zero: it leaves the payload as it is."""
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    mask = 0x80 if masked else 0
    if len(payload) < 126:
        head = struct.pack("!BB", first, mask | len(payload))
    elif len(payload) < 65_536:
        head = struct.pack("!BBH", first, mask | 126, len(payload))
    else:
        head = struct.pack("!BBQ", first, mask | 127, len(payload))
    return head + (bytes(4) if masked else b"") + payload


def text(message: object) -> bytes:
    """A text frame; what is not a string is written as JSON."""
    return frame(TEXT, (message if isinstance(message, str) else json.dumps(message)).encode())


def upgrade(path: str = PATH, headers: Mapping[str, str] | None = None) -> bytes:
    """An upgrade request; `headers` are added or replace."""
    fields = {
        "Host": "127.0.0.1",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode(),
        "Sec-WebSocket-Version": "13",
    } | dict(headers or {})
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1")


@dataclass
class Outcome:
    """How a connection ended, as its client saw it."""

    status: int | None = None
    """Of the HTTP answer."""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    messages: list[Json] = field(default_factory=list)
    close: int | None = None
    """Code of the close frame; 1005 for one without."""
    reason: str = ""
    pings: int = 0
    ended: bool = False
    """TCP ended, or was reset."""
    reset: bool = False

    def of(self, kind: str) -> list[Json]:
        """The messages of one type."""
        return [m for m in self.messages if m["type"] == kind]

    @property
    def types(self) -> list[str]:
        """The types of all messages, in order."""
        return [m["type"] for m in self.messages]

    @property
    def codes(self) -> list[str]:
        """The codes of all errors, in order."""
        return [m["code"] for m in self.of("error")]

    @property
    def words(self) -> list[str]:
        """The transcript."""
        return [word for m in self.of("final") for word in m["text"].split()]

    @property
    def error(self) -> Json:
        """The body of a refusal."""
        error: Json = json.loads(self.body)["error"]
        assert set(error) == {"code", "message"}
        assert error["message"]
        return error


class Wire:
    """A TCP connection to the server. Everything it reads is collected in `outcome`; it answers pings unless `mute`."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.outcome = Outcome()
        self.mute = False
        self.sent = 0
        self._sending = asyncio.Lock()
        self._buffer = bytearray()
        self._loop = asyncio.get_running_loop()

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, url: str, *, rcvbuf: int | None = None, sndbuf: int | None = None) -> AsyncIterator[Self]:
        """A connection; small buffers make a side that does not read felt sooner."""
        address = urlsplit(url)
        sock = socket.socket()
        try:
            if rcvbuf is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
            if sndbuf is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sndbuf)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, (address.hostname, address.port))
            yield cls(sock)
        finally:
            sock.close()

    @classmethod
    @contextlib.asynccontextmanager
    async def stream(
        cls,
        url: str,
        path: str = PATH,
        headers: Mapping[str, str] | None = None,
        *,
        start: Json | None = None,
        rcvbuf: int | None = None,
        sndbuf: int | None = None,
    ) -> AsyncIterator[Self]:
        """A connection after the upgrade, or after its refusal; `start` is sent where given."""
        async with cls.open(url, rcvbuf=rcvbuf, sndbuf=sndbuf) as wire:
            await wire.send(upgrade(path, headers))
            await wire.response()
            if start is not None:
                await wire.say({"type": "start"} | start)
            yield wire

    async def send(self, data: bytes) -> None:
        """Send bytes; waits while the server does not read. From any task, one after another."""
        async with self._sending:
            await self._loop.sock_sendall(self.sock, data)
            self.sent += len(data)

    async def say(self, message: Json) -> None:
        """Send a JSON message."""
        await self.send(text(message))

    async def audio(self, pcm: bytes, chunk: int = 3_200) -> None:
        """Send audio in binary messages of `chunk` bytes."""
        await self.send(b"".join(frame(BINARY, pcm[at : at + chunk]) for at in range(0, len(pcm), chunk)))

    def half_close(self) -> None:
        """Say that nothing more will be sent."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close with a reset instead of an end."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    async def response(self, limit: float = LIMIT) -> Outcome:
        """Read the HTTP answer; the body too unless it is an upgrade."""
        async with asyncio.timeout(limit):
            while b"\r\n\r\n" not in self._buffer:
                if not await self._more():
                    return self.outcome
            head, _, rest = bytes(self._buffer).partition(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            self.outcome.status = int(lines[0].split(" ")[1])
            self.outcome.headers = {k.strip().lower(): v.strip() for k, _, v in (x.partition(":") for x in lines[1:])}
            self._buffer = bytearray(rest)
            if self.outcome.status != 101:
                length = int(self.outcome.headers.get("content-length", 0))
                while len(self._buffer) < length and await self._more():
                    pass
                self.outcome.body = bytes(self._buffer[:length])
                del self._buffer[:length]
        return self.outcome

    async def until(self, kind: str, count: int = 1, limit: float = LIMIT) -> Json:
        """Read until so many messages of the type have come; the last of them."""
        async with asyncio.timeout(limit):
            while len(found := self.outcome.of(kind)) < count:
                assert await self._step(), f"the connection ended before {kind!r}: {self.outcome}"
            return found[count - 1]

    async def finish(self, limit: float = LIMIT) -> Outcome:
        """Answer the server's close frame and read until TCP ends."""
        async with asyncio.timeout(limit):
            while await self._step():
                pass
        return self.outcome

    async def ping(self) -> None:
        """Read until a ping comes."""
        before = self.outcome.pings
        async with asyncio.timeout(LIMIT):
            while self.outcome.pings == before:
                assert await self._step(), self.outcome

    async def dropped(self, limit: float = LIMIT) -> None:
        """Wait, without reading, until the server has reset or ended the connection."""
        async with asyncio.timeout(limit):
            # The kernel gives no other sign while nothing is read.
            while self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _ESTABLISHED:
                await asyncio.sleep(0.02)

    async def _more(self) -> bool:
        try:
            data = await self._loop.sock_recv(self.sock, 65_536)
        except (ConnectionResetError, BrokenPipeError):
            self.outcome.reset = self.outcome.ended = True
            return False
        if not data:
            self.outcome.ended = True
        self._buffer += data
        return bool(data)

    async def _step(self) -> bool:
        """Take in one frame; whether there was one."""
        while (parsed := _parse(self._buffer)) is None:
            if not await self._more():
                return False
        opcode, payload, size = parsed
        del self._buffer[:size]
        if opcode == TEXT:
            self.outcome.messages.append(json.loads(payload))
        elif opcode == PING:
            self.outcome.pings += 1
            if not self.mute:
                await self.send(frame(PONG, payload))
        elif opcode == CLOSE:
            self.outcome.close = int.from_bytes(payload[:2]) if payload else 1005
            self.outcome.reason = payload[2:].decode()
            with contextlib.suppress(OSError):
                await self.send(frame(CLOSE, payload[:2]))
        return True


def _parse(buffer: bytearray) -> tuple[int, bytes, int] | None:
    """The first frame of a server, if it is whole: opcode, payload, size."""
    if len(buffer) < 2:
        return None
    length, at = buffer[1] & 0x7F, 2
    if length >= 126:
        at = 4 if length == 126 else 10
        if len(buffer) < at:
            return None
        length = int.from_bytes(buffer[2:at])
    if len(buffer) < at + length:
        return None
    return buffer[0] & 0x0F, bytes(buffer[at : at + length]), at + length


def markers(count: int, first: int = 0) -> list[str]:
    """The transcript of so many words of marker audio."""
    return [f"w{i}" for i in range(first, first + count)]


# Servers


def engine_env(
    tmp_path: Path | None = None,
    *,
    mode: str = "markers",
    script: Json | None = None,
    max_streams: int | None = None,
    backend: str = "scripted",
) -> dict[str, str]:
    """The scripted engine's settings as environment variables; `script` is written to a file in `tmp_path`."""
    prefix = f"STT_{backend.upper().replace('-', '_')}_"
    env = {f"{prefix}MODE": mode}
    if script is not None:
        assert tmp_path is not None
        file = tmp_path / f"script-{random.getrandbits(32):08x}.json"
        file.write_text(json.dumps(script))
        env[f"{prefix}SCRIPT"] = str(file)
    if max_streams is not None:
        env[f"{prefix}MAX_STREAMS"] = str(max_streams)
    return env


@contextlib.asynccontextmanager
async def serve(env: dict[str, str] | None = None, **settings: Any) -> AsyncIterator[str]:
    """A server in this process, on the scripted engine in marker mode unless told otherwise; its address."""
    private = {"port": 0, "backend": "scripted", "event_log": "sqlite::memory:"}
    chosen = Settings.load(env={}, env_file=None, **private | settings)
    async with app.serving(chosen, env=engine_env() if env is None else env) as url:
        yield url


class Process:
    """A server in a process of its own."""

    def __init__(self, process: subprocess.Popen[bytes], stderr: Path) -> None:
        self.process = process
        self.pid = process.pid
        self._stderr = stderr
        self.url = ""

    @property
    def log(self) -> str:
        """Everything that it wrote to standard error."""
        return self._stderr.read_text(errors="replace")

    def wait_ready(self, limit: float = 20) -> None:
        """Wait for the banner."""
        poll(lambda: self.process.poll() is not None or "try " in self.log, limit)
        match = re.search(r"stream +ws(://\S+?)/v1/stream", self.log)
        assert match, self.log
        self.url = "http" + match[1]

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def exit_code(self, limit: float = LIMIT) -> int:
        """Wait for its end."""
        return self.process.wait(limit)

    async def exited(self, limit: float = LIMIT) -> int:
        """Wait for its end while the event loop goes on."""
        return await asyncio.to_thread(self.process.wait, limit)

    def rss(self) -> int:
        """Resident memory, in bytes."""
        fields = Path(f"/proc/{self.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")

    def fds(self) -> int:
        """Open file descriptors."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def assert_no_traceback(self) -> None:
        """Nothing that the server met surprised it."""
        bad = [line for line in self.log.splitlines() if "Traceback" in line or "exc_info" in line]
        assert not bad, bad[0][-4_000:]


@contextlib.contextmanager
def spawned(
    tmp_path: Path, env: Mapping[str, str], *args: str, module: str = "bridge", ready: bool = True
) -> Iterator[Process]:
    """`python -m bridge serve --port 0 ARGS` with only these `STT_` variables, killed in the end."""
    stderr = tmp_path / f"stderr-{random.getrandbits(32):08x}"
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("STT_")}
    paths = os.pathsep.join(filter(None, [str(ROOT), inherited.get("PYTHONPATH")]))
    port = () if "--port" in args else ("--port", "0")
    with stderr.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", module, "serve", *port, *args],
            cwd=tmp_path,  # where no .env lies
            env=inherited
            | {"PYTHONPATH": paths, "STT_BACKEND": "scripted", "XDG_STATE_HOME": str(tmp_path)}
            | dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=file,
        )
    server = Process(process, stderr)
    try:
        if ready:
            server.wait_ready()
        yield server
    finally:
        process.kill()
        process.wait()


def poll(condition: Callable[[], bool], limit: float = LIMIT, interval: float = 0.02) -> None:
    """Wait for a thing that gives no event: another process's state."""
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(interval)


async def eventually(condition: Callable[[], bool], limit: float = LIMIT, interval: float = 0.02) -> None:
    """The same, while the event loop goes on."""
    end = time.monotonic() + limit
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < end, "it did not come about in time"
        await asyncio.sleep(interval)


@dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Json:
        """The body."""
        body: Json = json.loads(self.body)
        return body


def http_get(
    url: str, headers: Mapping[str, str] | None = None, *, method: str = "GET", body: bytes | None = None
) -> Answer:
    """An HTTP request, from any thread but the event loop's."""
    request = urllib.request.Request(url, body, headers=dict(headers or {}), method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=LIMIT) as answer:
            return Answer(answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read())
    except urllib.error.HTTPError as exc:
        with exc:
            return Answer(exc.code, {k.lower(): v for k, v in exc.headers.items()}, exc.read())


async def get(
    url: str, headers: Mapping[str, str] | None = None, *, method: str = "GET", body: bytes | None = None
) -> Answer:
    """An HTTP request while the event loop goes on."""
    return await asyncio.to_thread(http_get, url, headers, method=method, body=body)


def metric(body: bytes | str, name: str, **labels: str) -> float:
    """The sum of the samples of that name with these labels; 0 if there is none."""
    lines = (body.decode() if isinstance(body, bytes) else body).splitlines()
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in lines
        if re.match(rf"{name}[ {{]", line) and all(w in line for w in wanted)
    )
