"""Files through sessions: every word once, in bounded memory, and an orderly end whatever happens."""

from __future__ import annotations

import asyncio
import io
import shutil
import subprocess
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import IO, Any, Self

import httpx
import pytest

from backends.base import RecognitionConfig, Result
from backends.scripted import ScriptedFault, marker_audio
from bridge.audio.formats import AudioFormat
from bridge.audio.media import MediaDecoder
from bridge.errors import BridgeError
from bridge.observe.metrics import Metrics
from bridge.protocols.events import Start
from bridge.session import batch as module
from bridge.session.batch import Batch, Run
from bridge.session.engine import Engine
from bridge.session.failover import EnginePool
from bridge.session.limits import SessionLimits
from bridge.session.manager import SessionManager
from tests.api.test_openai import wav
from tests.session.pools import failing, function, scripted
from tests.wire import LIMIT, Process, eventually, markers, spawned

TALK = 40
"""Words, 24 seconds: more than is held whole."""


class Bench:
    """A manager on these engines, with what reads files."""

    def __init__(self, *engines: Engine, limits: SessionLimits | None = None) -> None:
        self.metrics = Metrics()
        limits = limits or SessionLimits(stall_seconds=0.4, reopen_seconds=1)
        self.manager = SessionManager(EnginePool(*engines), limits, self.metrics, max_sessions=9, language="en-US")
        self.media = MediaDecoder(max_bytes=2**30, max_seconds=86_400)
        self.batch = Batch(self.manager, self.media)

    async def __aenter__(self) -> Batch:
        await self.manager.load()
        await self.media.open()
        return self.batch

    async def __aexit__(self, *_: object) -> None:
        await self.media.close()
        assert self.manager.count == 0, "every session has ended"
        await self.manager.close()

    def ended(self, code: str) -> float:
        """Sessions that ended so."""
        value: float = self.metrics.sessions.labels(code).value
        return value


def talk(words: int = TALK) -> IO[bytes]:
    return io.BytesIO(wav(marker_audio(words)))


async def heard(run: Run) -> list[str]:
    return [word async for final in run.finals() for word in final.text.split()]


async def test_every_word_once_and_how_far_it_is() -> None:
    told: list[tuple[float, float | None]] = []
    async with (
        Bench(scripted("one")) as batch,
        batch.open(talk(), "talk", Start(), "test", progress=lambda done, total: told.append((done, total))) as run,
    ):
        assert (run.backend, run.language) == ("one", "en-US")
        assert await heard(run) == markers(TALK)
        seconds = len(marker_audio(TALK)) / 32_000
        assert run.seconds == run.total == pytest.approx(seconds)
        assert [total for _, total in told] == [run.total] * len(told)
        assert [done for done, _ in told] == sorted(done for done, _ in told)
        assert told[-1][0] == run.seconds
        assert len(told) > 2


@pytest.mark.parametrize("words", [3, TALK])
async def test_the_whole_of_a_file(words: int) -> None:
    bench = Bench(scripted("one", ScriptedFault(0.5, "fail"), ScriptedFault(0.9, "end")))
    async with bench as batch:
        said = await batch.whole(talk(words), "talk", Start(), "test")
    assert [word for final in said.finals for word in final.text.split()] == markers(words)
    assert said.seconds == pytest.approx(len(marker_audio(words)) / 32_000)
    assert (said.backend, said.language) == ("one", "en-US")
    assert bench.ended("stopped") == 1


async def test_another_backend_goes_on_and_the_wanted_one_is_asked_first() -> None:
    bench = Bench(scripted("one"), function("two", failing()), scripted("three"))
    async with bench as batch, batch.open(talk(), "talk", Start(), "test", backend="two") as run:
        assert run.backend == "two"
        assert await heard(run) == markers(TALK)
        assert run.backend == "one"


async def test_a_backend_that_cannot_go_on() -> None:
    bench = Bench(function("one", failing(retryable=False)))
    async with bench as batch:
        for words in (3, TALK):
            async with batch.open(talk(words), "talk", Start(), "test") as run:
                with pytest.raises(BridgeError) as failed:
                    await heard(run)
            assert failed.value.code == "backend_failed"
            with pytest.raises(BridgeError) as failed:
                await batch.whole(talk(words), "talk", Start(), "test")
            assert failed.value.code == "backend_failed"
    assert bench.ended("backend_failed") == 4


class Breaking:
    """A file whose audio breaks off after so many pieces."""

    def __init__(self, pieces: int) -> None:
        pcm = marker_audio(TALK)
        self.format = AudioFormat()
        self.duration = None
        self._pieces = [pcm[at : at + 16_000] for at in range(0, len(pcm), 16_000)][:pieces]

    def read(self, *_: object, **__: object) -> Any:
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return

    async def chunks(self) -> AsyncGenerator[bytes]:
        for piece in self._pieces:
            yield piece
        raise BridgeError("undecodable_audio", "it breaks off")


async def test_what_came_before_a_break_is_given() -> None:
    bench = Bench(scripted("one"))
    async with bench:
        breaking: Any = Breaking(20)
        words: list[str] = []
        async with Batch(bench.manager, breaking).open(talk(), "talk", Start(), "test") as run:
            with pytest.raises(BridgeError, match="breaks off"):
                async for final in run.finals():
                    words += final.text.split()
        assert words[:-1] == markers(len(words) - 1)
        assert len(words) > 10


async def test_leaving_early_ends_everything() -> None:
    bench = Bench(scripted("one", *[ScriptedFault(1, "stall")] * 9), limits=SessionLimits(stall_seconds=60))
    before = len(asyncio.all_tasks())
    async with bench as batch:
        async with batch.open(talk(), "talk", Start(), "test"):
            assert bench.manager.count == 1
        assert bench.manager.count == 0
        for work in (batch.whole(talk(3), "talk", Start(), "test"), batch.whole(talk(), "talk", Start(), "test")):
            task = asyncio.create_task(work)
            await eventually(lambda: bench.manager.count == 1)
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled()
    assert bench.ended("client_gone") == 3
    assert len(asyncio.all_tasks()) == before


async def test_a_reader_that_takes_its_time_slows_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "silence.wav"
    file.write_bytes(wav(bytes(32_000 * 600)))
    monkeypatch.setattr(module, "MOST_WAITING", 4)

    async def chatty(_: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        given = 0
        async for chunk in audio:
            given += len(chunk)
            yield Result("word", True, (given - len(chunk)) / 32_000, given / 32_000)

    async with Bench(function("one", chatty)) as batch, batch.open(file, "talk", Start(), "test") as run:
        finals = run.finals()
        await anext(finals)
        await asyncio.sleep(0.3)
        assert run.seconds < 60, "of ten minutes"
        assert len([final async for final in finals]) > 100
        assert run.seconds == 600


async def test_the_end_of_the_server_is_no_transcript() -> None:
    bench = Bench(scripted("one", *[ScriptedFault(1, "stall")] * 9), limits=SessionLimits(stall_seconds=60))
    async with bench as batch:

        async def file(words: int) -> None:
            await batch.whole(talk(words), "talk", Start(), "test")

        files = [asyncio.create_task(file(words)) for words in (3, TALK)]
        await eventually(lambda: bench.manager.count == 2)
        await bench.manager.drain(0.2)
        results = await asyncio.wait_for(asyncio.gather(*files, return_exceptions=True), LIMIT)
    assert [result.code for result in results if isinstance(result, BridgeError)] == ["shutting_down"] * 2


@pytest.mark.parametrize(
    "minutes", [10, pytest.param(120, marks=[pytest.mark.slow, pytest.mark.timeout(180)])], ids=str
)
def test_a_long_file_in_small_memory(tmp_path: Path, minutes: int) -> None:
    if shutil.which("ffmpeg") is None:
        pytest.skip("needs ffmpeg to make the file")
    file = tmp_path / "long.flac"
    source = f"sine=frequency=300:sample_rate=16000:duration={60 * minutes}"
    subprocess.run(
        ["ffmpeg", "-loglevel", "error", "-f", "lavfi", "-i", source, "-compression_level", "0", str(file)], check=True
    )
    with spawned(tmp_path, {"STT_SCRIPTED_MODE": "script"}) as server:
        post(server, wav(bytes(32_000)))
        before = server.rss()
        with Peak(server) as peak:
            found = post(server, file.read_bytes())
        assert found["duration"] == pytest.approx(60 * minutes)
        assert found["text"].split() == ["one", "two", "three", "four", "five", "six"] * 20 * minutes
        assert peak.bytes - before < 100_000_000
        server.assert_no_traceback()


def post(server: Process, body: bytes) -> Any:
    """What the server makes of it."""
    answer = httpx.post(f"{server.url}/v1/transcribe?words=false", content=body, timeout=120, trust_env=False)
    return answer.json()


class Peak:
    """The most memory of a process while the context lasts."""

    def __init__(self, server: Process) -> None:
        self.bytes = 0
        self._server = server
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            self.bytes = max(self.bytes, self._server.rss())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
