"""What a client's tasks leave for its caller, and how they wait for one another."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from bridge.protocols.native import AckMessage, PartialMessage, ServerMessage

MAX_LASTING: Final = 1_024
"""Lasting messages that may wait for the caller; past that the client stops reading, and the server notices."""

MAX_PASSING: Final = 128
"""Waiting messages from which on a new partial or ack takes the place of the one before it."""


class Signal:
    """Wakes who waits; who does not wait yet looks first, without an `await` between looking and waiting."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    async def wait(self) -> None:
        """Until the next `wake`. May be cancelled."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)

    def wake(self) -> None:
        """Wake all who wait now."""
        for future in self._waiting:
            if not future.done():
                future.set_result(None)


class Mailbox:
    """Messages for the caller, in order and bounded: lasting ones wait for room, passing ones replace each other."""

    def __init__(self) -> None:
        self._waiting: deque[ServerMessage] = deque()
        self._lasting = 0
        self._ended = False
        self._changed = Signal()

    async def put(self, message: ServerMessage) -> None:
        """Leave a message. Waits while the caller is far behind; a cancelled one was not left."""
        if isinstance(message, PartialMessage | AckMessage):
            if len(self._waiting) >= MAX_PASSING:
                self._replace(message)
        else:
            while self._lasting >= MAX_LASTING:
                await self._changed.wait()
            self._lasting += 1
        self._waiting.append(message)
        self._changed.wake()

    def _replace(self, message: PartialMessage | AckMessage) -> None:
        """Take away the one before it of its kind; of partials, of its channel."""
        channel = getattr(message, "channel", None)
        for index in range(len(self._waiting) - 1, -1, -1):
            other = self._waiting[index]
            if type(other) is type(message) and getattr(other, "channel", None) == channel:
                del self._waiting[index]
                return

    def end(self) -> None:
        """Nothing follows."""
        self._ended = True
        self._changed.wake()

    async def get(self) -> ServerMessage | None:
        """The next message, None when there are no more. Cancelling loses none."""
        while not self._waiting:
            if self._ended:
                return None
            await self._changed.wait()
        message = self._waiting.popleft()
        if not isinstance(message, PartialMessage | AckMessage):
            self._lasting -= 1
            self._changed.wake()
        return message
