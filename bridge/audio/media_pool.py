"""The server's side of the decoding processes: it starts the zygote, and lends its children to one file at a time.

See `media_worker` for what they are, `media_wire` for what they say.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from bridge.audio import media_wire as wire
from bridge.errors import BridgeError

log = logging.getLogger(__name__)

_WORKER: Final = "bridge.audio.media_worker"
_ROOT: Final = str(Path(__file__).resolve().parent.parent.parent)  # where the package `bridge` lies
_ENVIRONMENT: Final = ("DYLD_", "HOME", "LANG", "LC_", "LD_", "PATH", "PYTHON", "TMPDIR", "VIRTUAL_ENV")
"""How the variables begin that the processes get: no key is among them."""

START_SECONDS: Final = 30.0
"""FFmpeg is imported in 0.2 s, and in seconds from a cold disk; past this it hangs."""
EXIT_SECONDS: Final = 2.0
"""The zygote has nothing to save."""
STALL_SECONDS: Final = 30.0
"""A child that says nothing for so long, although somebody reads, is ended."""
CHILDREN: Final = max(4, min(64, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**29))
"""Files decoded at once. A child that waits for its reader takes 10 MB and no processor time, but a file that is made
for it may have one take 200 MB: all together not half of the machine's memory."""
WAIT_SECONDS: Final = 20.0
"""A file waits so long for a child; short files are decoded in milliseconds."""
IDLE_CHILDREN: Final = 8
"""Kept for the next files; a burst's others end."""
FILES_PER_CHILD: Final = 1_000
"""After so many a child ends: whatever leaks in FFmpeg ends with it."""

T = TypeVar("T")


class ChildError(Exception):
    """A decoding process ended or was ended, and not because the server is done with it. The text says how."""


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
    async def lend(self, *, new: bool = False) -> AsyncIterator[Child]:
        """A child for one file, on demand one that had none before. It is ended if its file was not read to the end.

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
            child = await self._take(new=new)
            self._busy.add(child)
            try:
                yield child
            finally:
                self._busy.discard(child)
                self._give(child)
        finally:
            self._places.release()

    async def _take(self, *, new: bool) -> Child:
        while self._idle and not new:
            child = self._idle.pop()
            if child.alive:
                return child
            child.close()
        try:
            return await (await self._running()).fork()
        except OSError as exc:
            log.warning("no process to decode a file in: %s", exc)
            raise BridgeError("at_capacity", "the server cannot decode files now", retry_after=5) from exc

    def _give(self, child: Child) -> None:
        if self._closed or not child.idle or child.files >= FILES_PER_CHILD or len(self._idle) >= IDLE_CHILDREN:
            child.close()
        else:
            self._idle.append(child)

    async def _running(self) -> _Zygote:
        async with self._starting:
            if self._closed:
                raise BridgeError("shutting_down")
            if self._zygote is not None and not self._zygote.alive:
                log.warning("the process that decodes files is gone; starting another")
                zygote, self._zygote = self._zygote, None
                await zygote.stop(kill=True)
            if self._zygote is None:
                self._zygote = await _Zygote.start()
            return self._zygote


class Child:
    """One decoding process."""

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
        self._closed = False
        self._greeted = False
        self.files = 0
        """It was given so far."""
        self.idle = True
        """Whether it has answered what it was given to the end."""

    @property
    def alive(self) -> bool:
        """Whether it can take a file, as far as is known."""
        return not (self._closed or self._reader.at_eof() or self._writer.is_closing())

    async def begin(self, job: wire.Job, fd: int) -> wire.Info:
        """Give it a file; it gets its own descriptor of it. What it found it to be.

        Raises:
            BridgeError, ChildError: as `next`.
        """
        self.files += 1
        self.idle = False
        try:
            # It waits for nothing else, so a message this small never waits.
            socket.send_fds(self._sock, [wire.encode_frame(0, job)], [fd])
        except OSError as exc:
            raise ChildError("it is gone") from exc
        kind, body = await self._next()
        if kind != wire.INFO:
            raise self._misbehaved()
        return self._decoded(body, wire.Info)

    async def next(self) -> bytes | None:
        """The next piece of PCM16; None at the end.

        Raises:
            BridgeError: what it found wrong with the file; `shutting_down`, `at_capacity`.
            ChildError: it died, or hangs and was ended.
        """
        kind, body = await self._next()
        if kind == wire.DONE:
            self.idle = True
            return None
        if kind != wire.PCM or len(body) % 2:
            raise self._misbehaved()
        return body

    def close(self) -> None:
        """End it now. Who waits for its next word hears `shutting_down`."""
        if not self._closed:
            self._closed = True
            self.idle = False
            self._kill()
            self._writer.transport.abort()

    async def _next(self) -> tuple[int, bytes]:
        try:
            async with asyncio.timeout(STALL_SECONDS):
                kind, body = await self._frame()
                if kind == wire.HELLO and not self._greeted:
                    self._greeted = True
                    kind, body = await self._frame()
        except TimeoutError:
            self.close()
            raise ChildError(f"it gave nothing for {STALL_SECONDS:g} s") from None
        except (asyncio.IncompleteReadError, OSError) as exc:
            if self._closed:
                raise BridgeError("shutting_down") from None
            self.close()
            if not self._greeted:  # it was never forked: that is not the file's fault
                raise BridgeError("at_capacity", "the server cannot decode files now", retry_after=5) from exc
            raise ChildError("it died") from exc
        if kind == wire.REFUSAL:
            refusal = self._decoded(body, wire.Refusal)
            self.idle = True
            raise BridgeError(refusal.code, refusal.message)
        return kind, body

    async def _frame(self) -> tuple[int, bytes]:
        kind, size = wire.HEADER.unpack(await self._reader.readexactly(wire.HEADER.size))
        if size > (wire.MAX_PCM if kind == wire.PCM else wire.MAX_BODY):
            raise self._misbehaved()
        return kind, await self._reader.readexactly(size) if size else b""

    def _decoded(self, body: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.MsgspecError as exc:
            raise self._misbehaved() from exc

    def _misbehaved(self) -> ChildError:
        self.close()
        return ChildError("it said what no decoder says")


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
        environ = {name: value for name, value in os.environ.items() if name.startswith(_ENVIRONMENT)}
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-P",  # the working directory may hold a folder `bridge` of someone else's
                    "-m",
                    _WORKER,
                    str(theirs.fileno()),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    # A thread of numpy's would be one more thing to fork.
                    env=environ | {"PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1"},
                )
        except BaseException:
            control.close()
            raise
        zygote = cls(process, control)
        try:
            async with asyncio.timeout(START_SECONDS):
                if not await asyncio.get_running_loop().sock_recv(control, wire.HEADER.size):
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
                self._tell(wire.SPAWN, number, theirs)
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
            socket.send_fds(self._control, [wire.CONTROL.pack(kind, number)], [sock.fileno()] if sock else [])
        except OSError:
            self._broken = True
            raise

    def _kill(self, number: int) -> None:
        with contextlib.suppress(OSError):  # without a zygote its children end, too
            self._tell(wire.KILL, number)
