"""Work that goes on for as long as the server: what it did not expect costs a pause, never the rest of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

log = logging.getLogger(__name__)

FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0
"""Seconds; each pause is twice the one before it, until the work has gone well for as long as the longest."""


def for_ever(work: Callable[[], Awaitable[None]], name: str) -> asyncio.Task[None]:
    """A task for work that is not meant to end. It does not raise; whoever has it cancels it.

    Errors that the work knows are its own business. Any other is logged, and the work begins again.
    """
    return asyncio.create_task(_again_and_again(work, name), name=name)


async def _again_and_again(work: Callable[[], Awaitable[None]], name: str) -> None:
    clock = asyncio.get_running_loop().time
    pause = FIRST_PAUSE
    while True:
        began = clock()
        try:
            await work()
        except Exception:
            if clock() - began >= LONGEST_PAUSE:
                pause = FIRST_PAUSE
            log.exception("the task %s failed; it begins again in %.0f s", name, pause)
        else:
            return
        await asyncio.sleep(pause)
        pause = min(LONGEST_PAUSE, 2 * pause)
