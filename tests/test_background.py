"""Work that does not end, whatever happens in it."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from bridge import background
from bridge.background import for_ever


async def test_what_fails_begins_again_and_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(background, "FIRST_PAUSE", 0.001)
    begun = 0
    fourth = asyncio.Event()

    async def work() -> None:
        nonlocal begun
        begun += 1
        if begun < 4:
            raise ZeroDivisionError
        fourth.set()
        await asyncio.get_running_loop().create_future()

    task = for_ever(work, "counting")
    async with asyncio.timeout(5):
        await fourth.wait()
    assert [record.getMessage() for record in caplog.records] == [
        "the task counting failed; it begins again in 0 s"
    ] * 3
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_pauses_grow_until_it_goes_well(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    now = 0.0
    lasting = iter([0.0, 0.0, 1.0, 0.0, background.LONGEST_PAUSE, 0.0])

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async def work() -> None:
        nonlocal now
        last = next(lasting, None)
        if last is None:
            return
        now += last
        raise ZeroDivisionError

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now, raising=False)
    await for_ever(work, "counting")
    assert pauses == [1.0, 2.0, 4.0, 8.0, 1.0, 2.0]
