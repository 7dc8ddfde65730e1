"""The engine that fails when told: whom it strikes, how, and that it is the engine inside otherwise."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import pytest

from backends.base import BackendError, RecognitionConfig, Result
from backends.scripted import marker_audio
from bench.chaos.faulty import Command, FaultyBackend, FaultyOptions, installed, tell
from bench.process import environment

LIMIT = 5.0


@pytest.fixture
async def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[FaultyBackend]:
    monkeypatch.setenv("STT_SCRIPTED_MODE", "markers")
    faulty = FaultyBackend(FaultyOptions(engine="scripted", control=tmp_path / "control"))
    await faulty.load()
    async with asyncio.timeout(LIMIT):
        yield faulty
    await faulty.close()


class Audio:
    """A stream's audio, given piece by piece."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()

    def give(self, *chunks: bytes | None) -> None:
        for chunk in chunks:
            self._queue.put_nowait(chunk)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (chunk := await self._queue.get()) is not None:
            yield chunk


async def heard(engine: FaultyBackend, audio: Audio, session_id: str = "one") -> list[Result]:
    return [r async for r in engine.recognize(RecognitionConfig(session_id=session_id), aiter(audio)) if r.is_final]


async def test_it_is_the_engine_inside(engine: FaultyBackend) -> None:
    audio = Audio()
    audio.give(marker_audio(3), None)
    assert [r.text for r in await heard(engine, audio)] == ["w0", "w1", "w2"]
    assert engine.capabilities.flush


async def test_the_stream_that_is_named_fails_and_no_other(engine: FaultyBackend, tmp_path: Path) -> None:
    one, two = Audio(), Audio()
    first, second = asyncio.create_task(heard(engine, one)), asyncio.create_task(heard(engine, two, "two"))
    await asyncio.sleep(0)
    assert await tell(tmp_path / "control", Command("fail", "one")) == 1
    with pytest.raises(BackendError, match="told to fail") as caught:
        await first
    assert caught.value.retryable
    two.give(marker_audio(1), None)
    assert [r.text for r in await second] == ["w0"]
    assert await tell(tmp_path / "control", Command("fail", "one")) == 0


async def test_a_stream_that_stalls_takes_nothing_and_can_be_cancelled(engine: FaultyBackend, tmp_path: Path) -> None:
    audio = Audio()
    stream = asyncio.create_task(heard(engine, audio))
    await asyncio.sleep(0)
    assert await tell(tmp_path / "control", Command("stall")) == 1
    audio.give(marker_audio(1), None)
    assert not (await asyncio.wait({stream}, timeout=0.1))[0]
    stream.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stream


async def test_a_stream_ends_early_but_not_once_it_owes_finals_of_all_it_was_given(
    engine: FaultyBackend, tmp_path: Path
) -> None:
    early, late = Audio(), Audio()
    streams = [asyncio.create_task(heard(engine, audio)) for audio in (early, late)]
    late.give(marker_audio(1), None)
    await streams[1]
    again = asyncio.create_task(heard(engine, late, "late"))
    await asyncio.sleep(0)
    assert await tell(tmp_path / "control", Command("end", "one")) == 1
    assert await streams[0] == []
    late.give(b"")  # a flush: to return now would say that nothing was there
    await asyncio.sleep(0.05)
    assert await tell(tmp_path / "control", Command("end", "late")) == 1
    with pytest.raises(BackendError):
        await again


async def test_an_engine_that_is_down_takes_no_stream_for_so_long(engine: FaultyBackend, tmp_path: Path) -> None:
    assert await tell(tmp_path / "control", Command("down", seconds=0.2)) == 0
    with pytest.raises(BackendError):
        await heard(engine, Audio())
    await asyncio.sleep(0.25)
    audio = Audio()
    audio.give(None)
    assert await heard(engine, audio) == []


async def test_nobody_listens(tmp_path: Path) -> None:
    assert await tell(tmp_path / "nothing", Command("fail")) is None


def test_a_server_finds_it_as_other_peoples_engines_are_found(tmp_path: Path) -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "bridge", "backends"],
        env=environment(installed(tmp_path)),
        capture_output=True,
        text=True,
        check=True,
    )
    with contextlib.suppress(StopIteration):
        assert next(line for line in listed.stdout.splitlines() if line.split()[:1] == ["faulty"])
        return
    pytest.fail(listed.stdout)
