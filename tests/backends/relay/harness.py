"""What the relay's tests share: streams of it, against a server that breaks as it is told or a real one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from backends.base import RecognitionConfig, Result
from backends.relay.backend import RelayBackend
from backends.relay.options import RelayOptions
from tests import wire
from tests.client.fake import RATE

CONFIG = RecognitionConfig(sample_rate=RATE, session_id="a-session")


def relay(url: str, **options: Any) -> RelayBackend:
    """Not loaded: it asks nobody whether he is ready."""
    return RelayBackend(RelayOptions(url=url, **options))


@contextlib.asynccontextmanager
async def loaded(url: str, **options: Any) -> AsyncIterator[RelayBackend]:
    backend = relay(url, **{"health_seconds": 0.05, **options})
    await backend.load()
    try:
        yield backend
    finally:
        await backend.close()


async def spoken(audio: bytes | Sequence[bytes], chunk: int = 1_600) -> AsyncIterator[bytes]:
    pieces = [audio[at : at + chunk] for at in range(0, len(audio), chunk)] if isinstance(audio, bytes) else audio
    for piece in pieces:
        yield piece
        await asyncio.sleep(0)


async def heard(
    backend: RelayBackend,
    audio: bytes | AsyncIterator[bytes],
    config: RecognitionConfig = CONFIG,
    *,
    seconds: float = 10,
) -> list[Result]:
    """Everything that a stream says."""
    stream = backend.recognize(config, spoken(audio) if isinstance(audio, bytes) else audio)
    async with asyncio.timeout(seconds):
        return [result async for result in stream]


def words(results: Sequence[Result]) -> list[str]:
    return [word for result in results if result.is_final for word in result.text.split()]


async def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    await wire.eventually(condition, seconds)
