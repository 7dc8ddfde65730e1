"""A child's side of its line: what the server in this process learns of its parent, and says to its siblings."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncGenerator, Callable
from typing import Final

from bridge.processes.line import Line, Papers, Post, Present, Ready, Stop
from bridge.settings import Settings, SettingsError

log = logging.getLogger(__name__)

PAPERS_SECONDS: Final = 30.0
"""That the parent has to say what is to be served."""

Handler = Callable[[int, bytes], None]
"""Told the sender's number, and what it says. Never waits."""


class Member:
    """The process `number` of `processes`; get one from `joined`. For one event loop's thread."""

    def __init__(self, number: int, line: Line, papers: Papers) -> None:
        self.number = number
        self.processes = papers.processes
        self.settings = Settings.model_validate_json(papers.settings).share()
        self.env = papers.env
        self.siblings: frozenset[int] = frozenset()
        """The numbers of the others that serve now."""
        self._line = line
        self._handlers: dict[str, Handler] = {}
        self._watchers: list[Callable[[], None]] = []
        self._stop: Callable[[bool], None] | None = None
        self._told: list[bool] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def joined(cls, number: int) -> AsyncGenerator[Member]:
        """Take the line that is this process's standard input, and listen to it for as long as the context lasts.

        Raises:
            SettingsError: there is no parent on it.
        """
        try:
            line = await Line.over(_take_standard_input())
            async with asyncio.timeout(PAPERS_SECONDS):
                papers = await line.hear()
        except (OSError, EOFError) as exc:  # a TimeoutError is an OSError
            raise SettingsError(f"--member is for the processes that `stt-bridge serve` starts ({exc})") from None
        if not isinstance(papers, Papers):
            raise SettingsError("--member: the parent says what no parent says")
        member = cls(number, line, papers)
        listening = asyncio.create_task(member._listen(), name="siblings")
        try:
            yield member
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            await line.close()

    def serves(self, url: str) -> None:
        """Say that this process is ready."""
        self._line.say(Ready(url))

    def when_told_to_stop(self, stop: Callable[[bool], None]) -> None:
        """Call this when the parent says so, or is gone; `True`: at once. Also for what it has said already."""
        self._stop = stop
        for at_once in self._told:
            stop(at_once)

    def when_siblings_change(self, tell: Callable[[], None]) -> None:
        """Call this whenever one has come or gone."""
        self._watchers.append(tell)

    def on(self, topic: str, handler: Handler) -> None:
        """Call this with what siblings say of the topic."""
        self._handlers[topic] = handler

    def post(self, topic: str, body: bytes, to: int = 0) -> None:
        """Tell a sibling, or all of them. Never waits; what they cannot take is lost."""
        self._line.say(Post(topic, body, to))

    async def _listen(self) -> None:
        try:
            while True:
                try:
                    self._take(await self._line.hear())
                except EOFError:
                    raise
                except Exception:
                    log.exception("a message of another process was not understood")
        except EOFError:
            log.error("the parent process is gone: this one stops, too")  # noqa: TRY400 - no fault of this one's
            self._stopped(at_once=False)

    def _take(self, message: object) -> None:
        match message:
            case Stop(at_once):
                self._stopped(at_once=at_once)
            case Present(numbers):
                self.siblings = numbers - {self.number}
                for tell in self._watchers:
                    tell()
            case Post() as post if (handler := self._handlers.get(post.topic)) is not None:
                handler(post.sender, post.body)

    def _stopped(self, *, at_once: bool) -> None:
        self._told.append(at_once)
        if self._stop is not None:
            self._stop(at_once)


def _take_standard_input() -> socket.socket:
    """The socket that this process was given as its standard input, where there is nothing from now on.

    Raises:
        OSError: it is none.
    """
    line = socket.socket(fileno=os.dup(0))  # raises for what is no socket
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return line
