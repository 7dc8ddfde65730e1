"""The server's side of the decoding processes: it starts the zygote, and lends its children to one file at a time.

See `media_worker` for what they are and how they speak.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

from bridge.audio import media_worker as worker
from bridge.errors import BridgeError

log = logging.getLogger(__name__)

_ROOT: Final = str(Path(__file__).resolve().parent.parent.parent)  # where the package `bridge` lies

START_SECONDS: Final = 30.0
"""FFmpeg is imported in 0.2 s, and in seconds from a cold disk; past this it hangs."""
EXIT_SECONDS: Final = 2.0
"""The zygote has nothing to save."""
STALL_SECONDS: Final = 30.0
"""A child that says nothing for so long, although somebody reads, is ended."""
CHILDREN: Final = 64
"""Files decoded at once. A child that waits for its reader takes 10 MB and no processor time."""
WAIT_SECONDS: Final = 20.0
"""A file waits so long for a child; short files are decoded in milliseconds."""
IDLE_CHILDREN: Final = 8
"""Kept for the next files; a burst's others end."""
FILES_PER_CHILD: Final = 1_000
"""After so many a child ends: whatever leaks in FFmpeg ends with it."""

_MAX_JSON: Final = 16_384
_MAX_PCM: Final = 2 * 48_000 * worker.CHUNK_MS // 1_000


class Children:
    """The decoding processes of one server. Nothing runs before the first file that needs it."""

    def __init__(self, most: int = CHILDREN) -> None:
        self._places = asyncio.Semaphore(most)
        self._zygote: _Zygote | None = None
        self._starting = asyncio.Lock()
        self._idle: list[Child] = []
        self._busy: set[Child] = set()
        self._closed = False

    async def close(self) -> None:
        """End them all. Who reads from one hears `shutting_down`."""
        self._closed = True
        for child in (*self._idle, *self._busy):
            child.close()
        self._idle.clear()
        async with self._starting:
            zygote, self._zygote = self._zygote, None
            if zygote is not None:
                await zygote.stop()

    @contextlib.asynccontextmanager
    async def lend(self) -> AsyncIterator[Child]:
        """A child for one file. It is ended if its file was not read to the end.

        Raises:
            BridgeError: `at_capacity`, `shutting_down`.
        """
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await self._places.acquire()
        except TimeoutError:
            raise BridgeError(
                "at_capacity", "the server decodes as many files as it can", retry_after=WAIT_SECONDS
            ) from None
        try:
            child = await self._take()
            self._busy.add(child)
            try:
                yield child
            finally:
                self._busy.discard(child)
                self._give(child)
        finally:
            self._places.release()

    async def _take(self) -> Child:
        while self._idle:
            child = self._idle.pop()
            if child.alive:
                return child
            child.close()
        if self._closed:
            raise BridgeError("shutting_down")
        try:
            async with self._starting:
                if self._closed:
                    raise BridgeError("shutting_down")
                if self._zygote is None or not self._zygote.alive:
                    if self._zygote is not None:
                        log.warning("the process that decodes files is gone; starting another")
                        zygote, self._zygote = self._zygote, None
                        await zygote.stop(kill=True)
                    self._zygote = await _Zygote.start()
                zygote = self._zygote
            return await zygote.fork()
        except OSError as exc:
            log.warning("no process to decode a file in: %s", exc)
            raise BridgeError("at_capacity", "the server cannot decode files now", retry_after=5) from exc

    def _give(self, child: Child) -> None:
        if self._closed or not child.fresh or child.files >= FILES_PER_CHILD or len(self._idle) >= IDLE_CHILDREN:
            child.close()
        else:
            self._idle.append(child)


class Child:
    """One decoding process. Its methods raise `BridgeError`, and end it where they do so."""

    def __init__(
        self,
        sock: socket.socket,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        kill: Callable[[], None],
    ) -> None:
        self._sock = sock
        self._reader = reader
        self._writer = writer
        self._kill = kill
        self._ended = False
        self._greeted = False
        self.files = 0
        """It was given so far."""
        self.fresh = True
        """Whether it has answered what it was given to the end."""

    @property
    def alive(self) -> bool:
        """Whether it can take a file."""
        return not (self._ended or self._reader.at_eof() or self._writer.is_closing())

    def begin(self, order: dict[str, Any], fd: int, name: str) -> None:
        """Give it a file. It has its own descriptor of it; `name` is for sentences."""
        self.files += 1
        self.fresh = False
        self._name = name
        try:
            # It waits for nothing else, so a message this small never waits.
            socket.send_fds(self._sock, [worker.encode_json(0, order)], [fd])
        except OSError as exc:
            self.close()
            raise BridgeError("at_capacity", "the process that decodes files is gone", retry_after=1) from exc

    async def next(self) -> tuple[int, bytes]:
        """What it says next: INFO, PCM or DONE.

        Raises:
            BridgeError: what it said of the file; `undecodable_audio` if it died over it or hangs.
        """
        try:
            async with asyncio.timeout(STALL_SECONDS):
                kind, body = await self._frame()
                if kind == worker.HELLO:
                    self._greeted = True
                    kind, body = await self._frame()
        except TimeoutError:
            self.close()
            log.warning("a file kept its decoding process busy for %g s without a sound", STALL_SECONDS)
            raise self._bad("decoding it takes too long") from None
        except (asyncio.IncompleteReadError, OSError) as exc:
            ended = self._ended
            self.close()
            if ended:
                raise BridgeError("shutting_down") from None
            if not self._greeted:
                raise BridgeError("at_capacity", "the server cannot decode files now", retry_after=5) from exc
            log.warning("a decoding process died over a file")
            raise self._bad("decoding it failed, or takes more than a file may") from None
        if kind == worker.DONE:
            self.fresh = True
        if kind == worker.ERROR:
            self.fresh = True
            error = json.loads(body)
            raise BridgeError(error["code"], error["message"])
        return kind, body

    def close(self) -> None:
        """End it now."""
        if not self._ended:
            self._ended = True
            self.fresh = False
            self._kill()
            self._writer.transport.abort()

    async def _frame(self) -> tuple[int, bytes]:
        kind, size = worker.HEADER.unpack(await self._reader.readexactly(worker.HEADER.size))
        if size > (_MAX_PCM if kind == worker.PCM else _MAX_JSON):
            self.close()
            raise self._bad("its decoder misbehaved")
        return kind, await self._reader.readexactly(size) if size else b""

    def _bad(self, why: str) -> BridgeError:
        return BridgeError("undecodable_audio", f"{self._name}: {why}")


class _Zygote:
    """The process that forks children."""

    def __init__(self, process: asyncio.subprocess.Process, control: socket.socket) -> None:
        self._process = process
        self._control = control
        self._ids = itertools.count(1)
        self._broken = False

    @classmethod
    async def start(cls) -> _Zygote:
        """Start it and wait until it is ready.

        Raises:
            OSError: it does not start.
        """
        control, theirs = socket.socketpair()
        control.setblocking(False)
        paths = [_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-P",  # the working directory may hold a folder `bridge` of someone else's
                    "-m",
                    worker.__name__,
                    str(theirs.fileno()),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    # A thread of numpy's would be one more thing to fork.
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1"},
                )
        except BaseException:
            control.close()
            raise
        zygote = cls(process, control)
        try:
            async with asyncio.timeout(START_SECONDS):
                if not await asyncio.get_running_loop().sock_recv(control, worker.HEADER.size):
                    raise OSError(f"it ended with status {await process.wait()}")
        except BaseException:
            await zygote.stop(kill=True)
            raise
        return zygote

    @property
    def alive(self) -> bool:
        """Whether it is worth asking for another child."""
        return self._process.returncode is None and not self._broken

    async def fork(self) -> Child:
        """Have a child forked; whether that went well is heard with its first answer.

        Raises:
            OSError: the zygote is gone.
        """
        number = next(self._ids)
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                ours.setblocking(False)
                self._tell(worker.SPAWN, number, theirs)
                # `open_unix_connection` takes any connected stream socket, on asyncio's loop and on uvloop's.
                reader, writer = await asyncio.open_unix_connection(sock=ours)
            except BaseException:
                ours.close()
                raise
        return Child(ours, reader, writer, lambda: self._kill(number))

    async def stop(self, *, kill: bool = False) -> None:
        """End it, and with it its children. Cancelling this kills it."""
        self._control.close()
        try:
            if not kill:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(EXIT_SECONDS):
                        await self._process.wait()
        finally:
            if self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
                await self._process.wait()

    def _tell(self, kind: int, number: int, sock: socket.socket | None = None) -> None:
        """Send a command; it is a few bytes and the zygote does nothing but read them, so it never waits."""
        try:
            socket.send_fds(self._control, [worker.CONTROL.pack(kind, number)], [sock.fileno()] if sock else [])
        except OSError:
            self._broken = True
            raise

    def _kill(self, number: int) -> None:
        with contextlib.suppress(OSError):  # without a zygote its children end, too
            self._tell(worker.KILL, number)
