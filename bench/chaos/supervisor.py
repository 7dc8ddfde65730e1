"""The real server in a process of its own, on a port that stays: killed, stopped and started again."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Final

from bench.chaos.faulty import ROOT
from bench.process import announced, environment

READY_SECONDS: Final = 60.0
STOP_SECONDS: Final = 20.0
"""More than `STT_SHUTDOWN_SECONDS`."""
LINE_BYTES: Final = 1_048_576
HOST: Final = "127.0.0.1"


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        port: int = sock.getsockname()[1]
        return port


COMMANDS: Final = {
    "serve": (("serve", "--host", HOST, "--port"), "stream"),
    "worker": (("worker", "--host", HOST, "--health-port"), "health"),
}
"""The arguments of each command, the port behind them, and the line of its banner that says that it is ready."""


class Supervisor:
    """`stt-bridge serve` (or `worker`), again and again. Get one from `running`."""

    def __init__(self, settings: Mapping[str, str], log: Path, port: int, command: str = "serve") -> None:
        self.port = port
        self._arguments, self._word = COMMANDS[command]
        self.starts = 0
        self._settings = settings
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()

    @classmethod
    @contextlib.asynccontextmanager
    async def running(
        cls, settings: Mapping[str, str], log: Path, port: int | None = None, command: str = "serve"
    ) -> AsyncGenerator[Supervisor]:
        """A server that is ready; killed in the end. What it writes to standard error is added to the file `log`."""
        supervisor = cls(settings, log, port or free_port(), command)
        try:
            await supervisor.start()
            yield supervisor
        finally:
            await supervisor.kill()

    @property
    def pid(self) -> int:
        """The process's id; of the last one while none runs."""
        return 0 if self._process is None else self._process.pid

    @property
    def log(self) -> str:
        """Everything that the servers wrote so far."""
        return self._log.read_text(errors="replace")

    @property
    def surprises(self) -> list[str]:
        """Lines of the log that tell of a fault of the server's own."""
        wanted = ("Traceback", '"level":"ERROR"', '"level":"CRITICAL"')
        return [line for line in self.log.splitlines() if any(text in line for text in wanted)]

    async def start(self) -> None:
        """Start it and wait until it is ready."""
        self.starts += 1
        self._ready.clear()
        self._process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bridge", *self._arguments, str(self.port)),
            cwd=self._log.parent,  # where no .env lies
            env=environment({"PYTHONPATH": str(ROOT)} | dict(self._settings)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            limit=LINE_BYTES,
        )
        self._reading = asyncio.create_task(self._read(process))
        ready = asyncio.create_task(self._ready.wait())
        try:
            async with asyncio.timeout(READY_SECONDS):
                await asyncio.wait({ready, self._reading}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        if not self._ready.is_set():
            raise RuntimeError(f"the server did not start: {self.log[-2_000:]}")

    async def kill(self) -> None:
        """End it at once, as a machine that loses power would; nothing if it does not run."""
        await self._end(signal.SIGKILL)

    async def terminate(self) -> int | None:
        """Ask it to end, and wait; its exit code."""
        return await self._end(signal.SIGTERM)

    async def pause(self, seconds: float) -> None:
        """Let nothing of it run for so long: a machine that swaps, a virtual one that is moved."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGCONT)

    async def _end(self, number: signal.Signals) -> int | None:
        process, reading = self._process, self._reading
        if process is None:
            return None
        if process.returncode is None:
            process.send_signal(number)
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
        finally:
            if process.returncode is None:
                process.kill()
            if reading is not None:
                await reading
        return process.returncode

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        if process.stderr is None:
            raise RuntimeError("no pipe")
        with self._log.open("a") as file:
            async for line in process.stderr:
                text = line.decode(errors="replace")
                file.write(text)
                file.flush()
                if announced(self._word, text):
                    self._ready.set()
