"""The parent of several servers on one port: starts them, watches them, stops them in order.

It holds the port with a socket that is bound and does not listen, so that a free port stays the same one, and serves
nobody itself: the system shares connections out among the children's own sockets (SO_REUSEPORT). Where the parent is
gone, the children's lines end, and they stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from bridge.processes.line import Line, Papers, Post, Present, Ready, Stop
from bridge.settings import Settings

log = logging.getLogger(__name__)

_ROOT: Final = str(Path(__file__).resolve().parent.parent.parent)  # where the package `bridge` lies
FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 30.0
"""Seconds before a child is started again; each pause is twice the one before it."""
WELL_SECONDS: Final = 60.0
"""A child that has lived for so long was well: the first pause again."""
MOST_FAILURES: Final = 5
"""Starts in a row that may come to nothing while no child serves."""
STOP_SECONDS: Final = 15.0
"""More than `STT_SHUTDOWN_SECONDS` that children have to end; then they are killed."""
AT_ONCE_SECONDS: Final = 5.0
"""The same for those that are to end at once."""


def reserve(host: str, port: int) -> socket.socket:
    """The port for all children: bound, not listening. 0: a free one.

    Raises:
        OSError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # Without SO_REUSEPORT: it would let us in beside another server of this user's.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        port = probe.getsockname()[1]
    holder = socket.socket(family, socket.SOCK_STREAM)
    try:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((host, port))
    except BaseException:
        holder.close()
        raise
    return holder


class _Child:
    """One life of one child."""

    def __init__(self, number: int, process: asyncio.subprocess.Process, line: Line) -> None:
        self.number = number
        self.process = process
        self.line = line
        self.ready = False


class Parent:
    """`settings` are everybody's, with the port that is reserved; `env` are the variables that engines are set by.

    `announce` is told the address once, when all children serve.
    """

    def __init__(self, settings: Settings, env: Mapping[str, str], announce: Callable[[str], None]) -> None:
        self._papers = Papers(settings.model_dump_json().encode(), dict(env), settings.processes)
        self._most = settings.processes
        self._shutdown_seconds = settings.shutdown_seconds
        self._announce = announce
        self._announced = False
        self._children: dict[int, _Child] = {}
        self._first = asyncio.Event()
        self._stopping = asyncio.Event()
        self._failures = 0
        self._code = 0

    async def run(self) -> int:
        """Until a signal, or until nothing can be started. The exit code: 0 after an orderly stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.stop)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep(1), name="process-1")
            # What is wrong with the settings is said once, and what the first one downloads is there for the others.
            await self._first.wait()
            for child in range(2, self._most + 1):
                group.create_task(self._keep(child), name=f"process-{child}")
        return self._code

    def stop(self) -> None:
        """Have all children end in order; called again, at once."""
        at_once = self._stopping.is_set()
        self._stopping.set()
        self._first.set()
        for child in self._children.values():
            child.line.say(Stop(at_once))
        seconds = AT_ONCE_SECONDS if at_once else self._shutdown_seconds + STOP_SECONDS
        asyncio.get_running_loop().call_later(seconds, self._kill)

    def _kill(self) -> None:
        for child in self._children.values():
            log.error("process %d does not end: it is killed", child.number)
            with contextlib.suppress(ProcessLookupError):
                child.process.kill()

    # One child after another

    async def _keep(self, number: int) -> None:
        """Have this child live, again and again."""
        clock = asyncio.get_running_loop().time
        pause = 0.0
        while not self._stopping.is_set():
            began = clock()
            served, code = await self._live(number)
            if self._stopping.is_set():
                return
            if served and code == 0:  # somebody has told this one to stop
                log.info("process %d has stopped; another takes its place", number)
                continue
            pause = FIRST_PAUSE if clock() - began >= WELL_SECONDS or not pause else min(LONGEST_PAUSE, 2 * pause)
            if not served:
                self._failures += 1
                if self._hopeless():
                    log.error("process %d cannot be started (%s)", number, _how(code))
                    self._code = code if code in (1, 2) else 1
                    self.stop()
                    return
            log.error("process %d died (%s); another takes its place in %.1f s", number, _how(code), pause)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)

    def _hopeless(self) -> bool:
        """Whether starting once more is in vain."""
        someone_serves = any(child.ready for child in self._children.values())
        return not self._announced or (self._failures >= MOST_FAILURES and not someone_serves)

    async def _live(self, number: int) -> tuple[bool, int]:
        """One life: whether it came to serve, and how it ended."""
        ours, theirs = socket.socketpair()
        paths = [_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # the working directory may hold a folder `bridge` of someone else's
                *("-m", "bridge", "serve", "--member", str(number)),
                stdin=theirs.fileno(),
                env=dict(os.environ) | {"PYTHONPATH": os.pathsep.join(paths)},
                start_new_session=True,  # a terminal's Ctrl-C is for the parent
            )
        child = self._children[number] = _Child(number, process, await Line.over(ours))
        child.line.say(self._papers)
        if self._stopping.is_set():
            child.line.say(Stop())
        hearing = asyncio.create_task(self._hear(child), name=f"hear-{number}")
        try:
            code = await process.wait()
            return child.ready, code
        finally:
            hearing.cancel()
            await asyncio.gather(hearing, return_exceptions=True)
            del self._children[number]
            await child.line.close()
            self._tell_who_is_here()

    async def _hear(self, child: _Child) -> None:
        with contextlib.suppress(EOFError):  # how it ended is known once it has
            while True:
                match await child.line.hear():
                    case Ready(url):
                        child.ready = True
                        self._failures = 0
                        log.info("process %d serves", child.number)
                        self._tell_who_is_here()
                        self._first.set()
                        if not self._announced and self._all_serve():
                            self._announced = True
                            self._announce(url)
                    case Post() as post:
                        self._pass_on(msgspec.structs.replace(post, sender=child.number))
                    case message:
                        log.error("process %d says what no child says: %s", child.number, type(message).__name__)

    def _all_serve(self) -> bool:
        return sum(child.ready for child in self._children.values()) == self._most

    def _pass_on(self, post: Post) -> None:
        for child in self._children.values():
            if child.ready and child.number != post.sender and post.to in (0, child.number):
                child.line.say(post)

    def _tell_who_is_here(self) -> None:
        present = Present(frozenset(child.number for child in self._children.values() if child.ready))
        for child in self._children.values():
            child.line.say(present)


def _how(code: int) -> str:
    """A process's end in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
