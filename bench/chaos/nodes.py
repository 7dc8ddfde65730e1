"""What a chaos run runs against: one server with a file for its event log, or several on one Redis."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.chaos import faulty
from bench.chaos.faulty import Command, tell
from bench.chaos.supervisor import HOST, READY_SECONDS, Supervisor, free_port

LOOK_SECONDS: Final = 0.05


@dataclass(frozen=True)
class Node:
    """A server on the engine `faulty`, and the socket that takes the engine's commands."""

    server: Supervisor
    control: Path


class Redis:
    """A `redis-server` that keeps what it is told over its own end. Get one from `running`."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"redis://{HOST}:{self.port}"
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._process: asyncio.subprocess.Process | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, folder: Path) -> AsyncGenerator[Redis]:
        """One that answers; killed in the end."""
        if shutil.which("redis-server") is None:
            raise SystemExit("redis-server is not installed")
        redis = cls(folder)
        try:
            await redis.start()
            yield redis
        finally:
            await redis.stop(signal.SIGKILL)

    async def start(self) -> None:
        """Start it and wait until it takes connections."""
        options = {"port": self.port, "bind": HOST, "dir": self._folder, "save": "", "appendonly": "yes"}
        arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
        self._process = await asyncio.create_subprocess_exec(
            *("redis-server", *arguments, "--logfile", str(self._folder / "log")), stdin=asyncio.subprocess.DEVNULL
        )
        async with asyncio.timeout(READY_SECONDS):
            while not await self._listens():  # noqa: ASYNC110 - another process
                await asyncio.sleep(LOOK_SECONDS)

    async def _listens(self) -> bool:
        try:
            reader, writer = await asyncio.open_connection(HOST, self.port)
        except OSError:
            return False
        with contextlib.closing(writer):
            writer.write(b"PING\r\n")
            return (await reader.readline()).startswith(b"+PONG")

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it in order, or at once; nothing if it does not run."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)
            await self._process.wait()

    async def pause(self, seconds: float) -> None:
        """It hangs for so long: takes connections and answers nothing."""
        if self._process is None:
            raise RuntimeError("it does not run")
        self._process.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            self._process.send_signal(signal.SIGCONT)


@dataclass(frozen=True)
class Nodes:
    """All of it. Clients come to any server, as a load balancer sends them."""

    all: Sequence[Node]
    redis: Redis | None = None

    @property
    def ports(self) -> list[int]:
        """Where the servers listen."""
        return [node.server.port for node in self.all]

    @property
    def surprises(self) -> list[str]:
        """Lines of the logs that tell of a fault of the servers' own."""
        return [line for node in self.all for line in node.server.surprises]

    async def tell(self, command: Command) -> int:
        """Command the engines; how many streams were struck."""
        return sum([await tell(node.control, command) or 0 for node in self.all])


@contextlib.asynccontextmanager
async def serving(
    engine: str, folder: Path, settings: Mapping[str, str], *, count: int = 1, redis: bool = False
) -> AsyncGenerator[Nodes]:
    """Servers with `engine` inside the engine `faulty`, ready; in the end all are killed."""
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(Redis.running(folder / "redis")) if redis else None
        nodes = []
        for number in range(count):
            control = folder / f"control-{number}"
            env = {
                **faulty.installed(folder / "plugin"),
                "STT_BACKEND": "faulty",
                "STT_FAULTY_ENGINE": engine,
                "STT_FAULTY_CONTROL": str(control),
                "STT_SCRIPTED_MODE": "markers",
                "STT_EVENT_LOG": store.url if store else f"sqlite:{folder / 'sessions.db'}",
                "STT_STALL_SECONDS": "3",
                **settings,
            }
            server = await stack.enter_async_context(Supervisor.running(env, folder / f"server-{number}.log"))
            nodes.append(Node(server, control))
        yield Nodes(nodes, store)
