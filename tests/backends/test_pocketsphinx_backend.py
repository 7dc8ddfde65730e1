"""The engine with its processes: the real one, killed and abandoned in every way."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from backends import pocketsphinx_backend
from backends.base import FLUSH, BackendError, Fault, RecognitionConfig, Result
from backends.pocketsphinx_backend import PocketSphinxBackend, PocketSphinxOptions
from tests.speech import CARDS, ROOT, SECOND, recording

pytest.importorskip("pocketsphinx")
if not Path("/proc/self/task").exists():
    pytest.skip("looks for processes in /proc", allow_module_level=True)

COMMANDS = RecognitionConfig(phrases=CARDS)


def children(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def gone(pid: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def until(condition: Any, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        await asyncio.sleep(0.02)


async def play(*parts: bytes, chunk: int = 3_200) -> AsyncIterator[bytes]:
    for part in parts:
        if not part:
            yield FLUSH
        for at in range(0, len(part), chunk):
            yield part[at : at + chunk]


async def play_and_wait(audio: bytes) -> AsyncIterator[bytes]:
    async for chunk in play(audio):
        yield chunk
    await asyncio.Event().wait()


async def said(results: AsyncIterator[Result]) -> str:
    return " ".join([result.text async for result in results if result.is_final and result.text])


def zygote(backend: PocketSphinxBackend) -> int:
    assert backend._zygote
    return backend._zygote._process.pid


@pytest.fixture
async def backend() -> AsyncIterator[PocketSphinxBackend]:
    """A loaded engine, checked to leave nothing behind: a grammar's, because that decodes ten times as fast."""
    before = open_files()
    engine = PocketSphinxBackend(PocketSphinxOptions(phrases="grammar"))
    await engine.load()
    pid = zygote(engine)
    yield engine
    await until(lambda: not children(pid))
    await engine.close()
    await until(lambda: gone(pid))
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("pocketsphinx")]
    await until(lambda: open_files() <= before)


async def test_a_stream_from_end_to_end(backend: PocketSphinxBackend) -> None:
    results = [result async for result in backend.recognize(COMMANDS, play(recording("cards-005.wav")))]
    assert results[-1].text == "eight of spades four of clubs seven of hearts"
    assert results[-1].is_final
    assert [word.text for word in results[-1].words] == results[-1].text.split()
    assert results[0].text == ""
    assert not results[0].is_final


async def test_what_is_not_wanted_is_not_sent(backend: PocketSphinxBackend) -> None:
    config = RecognitionConfig(phrases=CARDS, partials=False, words=False)
    results = [result async for result in backend.recognize(config, play(recording("cards-001.wav")))]
    assert [(result.text, result.words) for result in results] == [("ten of clubs", ())]


async def test_free_speech_with_preferred_phrases(caplog: pytest.LogCaptureFixture) -> None:
    engine = PocketSphinxBackend()
    config = RecognitionConfig(phrases=("tend of clubs", "zorblax"), session_id="s1")
    assert await said(engine.recognize(config, play(recording("cards-001.wav")))) == "tend of clubs"
    assert "session s1: 1 of 2 phrases left out" in caplog.text
    assert "zorblax" not in caplog.text
    await engine.close()


async def test_flush_is_answered_while_the_stream_goes_on(backend: PocketSphinxBackend) -> None:
    audio = recording("cards-001.wav")
    asked = asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        async for chunk in play(audio, FLUSH):
            yield chunk
        await asked.wait()
        async for chunk in play(audio):
            yield chunk

    stream = backend.recognize(COMMANDS, source())
    finals = []
    async for result in stream:
        if result.is_final:
            finals.append((result.text, result.end))
            asked.set()
    seconds = len(audio) / SECOND
    assert finals == [("ten of clubs", seconds), ("ten of clubs", 2 * seconds)]


async def test_one_long_chunk_and_an_empty_stream(backend: PocketSphinxBackend) -> None:
    audio = recording("cards-001.wav") + bytes(60 * SECOND)
    assert await said(backend.recognize(COMMANDS, play(audio, chunk=len(audio)))) == "ten of clubs"
    assert await said(backend.recognize(COMMANDS, play())) == ""


async def test_eight_streams_at_once(backend: PocketSphinxBackend) -> None:
    audio = recording("cards-005.wav")
    texts = await asyncio.gather(*(said(backend.recognize(COMMANDS, play(audio))) for _ in range(8)))
    assert texts == ["eight of spades four of clubs seven of hearts"] * 8


async def test_a_killed_child_ends_its_own_stream_only(backend: PocketSphinxBackend) -> None:
    audio = recording("cards-001.wav")
    victim = backend.recognize(COMMANDS, play_and_wait(audio))
    await anext(victim)
    (child,) = children(zygote(backend))
    other = asyncio.create_task(said(backend.recognize(COMMANDS, play(audio * 3, chunk=320))))
    await until(lambda: len(children(zygote(backend))) == 2)
    os.kill(child, signal.SIGKILL)
    with pytest.raises(BackendError) as raised:
        async for _ in victim:
            pass
    assert (raised.value.code, raised.value.fault, raised.value.retryable) == ("failed", Fault.ENGINE, True)
    assert await other == "ten of clubs ten of clubs ten of clubs"


async def test_a_killed_zygote_hurts_no_stream_and_is_replaced(backend: PocketSphinxBackend) -> None:
    audio = recording("cards-001.wav")
    go_on = asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        yield audio[:6_400]
        await go_on.wait()
        yield audio[6_400:]

    running = asyncio.create_task(said(backend.recognize(COMMANDS, source())))
    first = zygote(backend)
    await until(lambda: len(children(first)) == 1)
    (child,) = children(first)
    os.kill(first, signal.SIGKILL)
    assert await said(backend.recognize(COMMANDS, play(audio))) == "ten of clubs"
    assert zygote(backend) != first
    go_on.set()
    assert await running == "ten of clubs"
    await until(lambda: gone(child))


@pytest.mark.parametrize("results", [0, 1, 4])
async def test_closing_early_leaves_no_process(backend: PocketSphinxBackend, results: int) -> None:
    stream = backend.recognize(COMMANDS, play_and_wait(recording("cards-005.wav")))
    for _ in range(results):
        await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined] # it is a generator
    await until(lambda: not children(zygote(backend)), seconds=1)


@pytest.mark.parametrize("delay", [0.0, 0.002, 0.01, 0.05, 0.2])
async def test_cancelling_at_any_moment_leaves_no_process(backend: PocketSphinxBackend, delay: float) -> None:
    task = asyncio.create_task(said(backend.recognize(COMMANDS, play_and_wait(recording("cards-005.wav")))))
    await asyncio.sleep(delay)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    await until(lambda: not children(zygote(backend)), seconds=1)


async def test_a_failing_audio_source_is_told_as_it_is(backend: PocketSphinxBackend) -> None:
    async def source() -> AsyncIterator[bytes]:
        yield bytes(3_200)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await said(backend.recognize(COMMANDS, source()))


async def test_a_stopped_child_stops_the_audio_instead_of_filling_memory(backend: PocketSphinxBackend) -> None:
    taken = 0

    async def source() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 3_200
            yield bytes(3_200)

    stream = backend.recognize(COMMANDS, source())
    await anext(stream)
    (child,) = children(zygote(backend))
    os.kill(child, signal.SIGSTOP)
    before = taken
    reading = asyncio.ensure_future(said(stream))
    await asyncio.sleep(0.5)
    assert taken - before < 20 * SECOND
    before = taken
    await asyncio.sleep(0.2)
    assert taken == before
    reading.cancel()
    await asyncio.wait([reading])
    await until(lambda: gone(child))


async def test_ctrl_c_and_a_stop_signal_are_the_servers_to_handle(backend: PocketSphinxBackend) -> None:
    audio = recording("cards-001.wav")
    stream = backend.recognize(COMMANDS, play(audio))
    await anext(stream)
    for process in (zygote(backend), *children(zygote(backend))):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(process, number)
    assert await said(stream) == "ten of clubs"


async def test_nothing_outlives_a_killed_server() -> None:
    script = """
import asyncio, os
from backends.base import RecognitionConfig
from backends.pocketsphinx_backend import PocketSphinxBackend
async def audio():
    yield bytes(320000)
    print(backend._zygote._process.pid, flush=True)
    await asyncio.Event().wait()
async def main():
    async for result in backend.recognize(RecognitionConfig(), audio()):
        pass
backend = PocketSphinxBackend()
asyncio.run(main())
"""
    server = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=subprocess.PIPE, cwd=ROOT)
    assert server.stdout
    parent = int(await server.stdout.readline())
    processes = [parent, *children(parent)]
    assert len(processes) == 2
    server.kill()
    await server.communicate()
    await until(lambda: all(gone(pid) for pid in processes))


@pytest.mark.parametrize(
    ("config", "word"),
    [(RecognitionConfig(language="de-DE"), "English"), (RecognitionConfig(sample_rate=8_000), "16000 Hz")],
)
async def test_what_the_engine_cannot_do_is_rejected(config: RecognitionConfig, word: str) -> None:
    with pytest.raises(BackendError, match=word) as raised:
        await said(PocketSphinxBackend().recognize(config, play(b"")))
    assert (raised.value.code, raised.value.fault, raised.value.retryable) == ("rejected", Fault.CLIENT, False)


async def test_a_missing_model_is_the_operators_to_mend(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="does not load") as raised:
        await PocketSphinxBackend(PocketSphinxOptions(model=tmp_path)).load()
    assert (raised.value.code, raised.value.fault) == ("unavailable", Fault.OPERATOR)


async def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match="pip install") as raised:
        await PocketSphinxBackend().load()
    assert (raised.value.code, raised.value.fault) == ("not_installed", Fault.OPERATOR)


async def test_a_zygote_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pocketsphinx_backend, "LOAD_SECONDS", 0.01)
    before = children(os.getpid())
    with pytest.raises(BackendError, match="no answer"):
        await PocketSphinxBackend().load()
    assert children(os.getpid()) == before


async def test_a_zygote_that_stops_answering_is_replaced(
    backend: PocketSphinxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pocketsphinx_backend, "OPEN_SECONDS", 1.0)
    first = zygote(backend)
    os.kill(first, signal.SIGSTOP)
    assert await said(backend.recognize(COMMANDS, play(recording("cards-001.wav")))) == "ten of clubs"
    assert gone(first)


async def test_no_process_in_time_is_worth_another_try(
    backend: PocketSphinxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pocketsphinx_backend, "OPEN_SECONDS", 0.0)
    with pytest.raises(BackendError, match="no pocketsphinx process") as raised:
        await said(backend.recognize(COMMANDS, play()))
    assert (raised.value.code, raised.value.retryable) == ("unavailable", True)


def test_capabilities_are_known_before_loading() -> None:
    plain = PocketSphinxBackend().capabilities
    assert all([plain.partials, plain.word_times, plain.confidences, plain.phrases, plain.flush])
    assert plain.sample_rates == (16_000,)
    assert plain.languages == ("en-US", "en")
    assert plain.max_streams is not None
    assert plain.max_streams >= 3
    own = PocketSphinxBackend(PocketSphinxOptions(model=Path("mine"), streams=7, phrases="off")).capabilities
    assert (own.languages, own.max_streams, own.phrases) == ((), 7, False)
