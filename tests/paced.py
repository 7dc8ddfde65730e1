"""The scripted engine with a speed limit, and `python -m tests.paced serve …`: the server that knows it.

`paced` and `paced-threads` hear `STT_PACED_SPEED` seconds of audio a second (`STT_PACED_THREADS_SPEED`).
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import ClassVar

from backends import registry
from backends.base import RecognitionConfig, Result
from backends.scripted import ScriptedBackend, ScriptedOptions, ScriptedThreadsBackend


@dataclass(frozen=True, slots=True)
class PacedOptions(ScriptedOptions):
    """Those of the scripted engine, and the speed."""

    speed: float = 20


class PacedBackend(ScriptedBackend):
    """On the event loop."""

    name: ClassVar[str] = "paced"
    Options = PacedOptions

    async def recognize(self, config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        async def slowly() -> AsyncIterator[bytes]:
            async for chunk in audio:
                await asyncio.sleep(len(chunk) / 2 / config.sample_rate / self.options.speed)
                yield chunk

        async for result in super().recognize(config, slowly()):
            yield result


class PacedThreadsBackend(ScriptedThreadsBackend):
    """On a thread."""

    name: ClassVar[str] = "paced-threads"
    Options = PacedOptions

    def recognize(self, config: RecognitionConfig, audio: Iterator[bytes]) -> Iterator[Result]:
        def slowly() -> Iterator[bytes]:
            for chunk in audio:
                time.sleep(len(chunk) / 2 / config.sample_rate / self.options.speed)
                yield chunk

        yield from super().recognize(config, slowly())


if __name__ == "__main__":
    from bridge.cli import main

    registry._BUILT_IN["paced"] = registry._Entry("tests.paced:PacedBackend")
    registry._BUILT_IN["paced-threads"] = registry._Entry("tests.paced:PacedThreadsBackend")
    sys.exit(main())
