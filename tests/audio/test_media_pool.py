"""Decoding processes that crash, hang, are too many, or are not wanted any more."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from bridge.audio import media_pool, media_wire
from bridge.audio.media import Media, MediaDecoder
from bridge.errors import BridgeError
from tests.audio.clips import RATE, clip, hear, outcome, tone, wav

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
    pytest.mark.asyncio(loop_scope="module"),
]

LONG = clip("flac", "flac", np.zeros((RATE * 120, 1), "<i2"))
SHORT = clip("flac", "flac", tone(0.2))


READING = """
import asyncio, pathlib, sys
from bridge.audio.media import MediaDecoder

async def main():
    decoder = MediaDecoder(max_bytes=2**30, max_seconds=3_600)
    async with decoder.read(pathlib.Path(sys.argv[1]), "a.flac") as media:
        await anext(media.chunks())
        print("reading", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest_asyncio.fixture(loop_scope="module")
async def own() -> AsyncIterator[MediaDecoder]:
    """For a test that does to the zygote, too."""
    others = children(os.getpid())
    decoder = MediaDecoder(max_bytes=2**30, max_seconds=3_600, most=4)
    yield decoder
    await decoder.close()
    assert children(os.getpid()) == others


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[MediaDecoder]:
    others = children(os.getpid())
    decoder = MediaDecoder(max_bytes=2**30, max_seconds=3_600, most=4)
    yield decoder
    await decoder.close()
    assert children(os.getpid()) == others


@pytest_asyncio.fixture(loop_scope="module")
async def decoder(shared: MediaDecoder) -> AsyncIterator[MediaDecoder]:
    """One zygote for all, without a child."""
    await hear(shared, SHORT)
    for child in workers(shared):
        os.kill(child, signal.SIGKILL)
    await until(lambda: not workers(shared))
    yield shared


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def state(process: int) -> str:
    """`S`: it sleeps; `Z`: it has ended, and nobody was told."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def zygote(decoder: MediaDecoder) -> int:
    running = decoder._children._zygote
    assert running is not None
    return running._process.pid


def workers(decoder: MediaDecoder) -> list[int]:
    return children(zygote(decoder))


async def until(holds: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came to be"
        await asyncio.sleep(0.01)


async def rest(media: Media) -> int:
    return sum([len(chunk) async for chunk in media.chunks()])


async def test_nothing_runs_until_a_file_needs_it(own: MediaDecoder) -> None:
    before = children(os.getpid())
    await own.open()
    assert children(os.getpid()) == before
    await hear(own, SHORT)
    assert len(workers(own)) == 1


async def test_one_process_takes_one_file_after_another(decoder: MediaDecoder) -> None:
    await hear(decoder, SHORT)
    first = workers(decoder)
    for data in (SHORT, b"no audio at all", SHORT):
        how, _ = await outcome(decoder, data)
        assert how == ("heard" if data is SHORT else "unsupported_audio")
    assert workers(decoder) == first


async def test_a_process_is_replaced_after_so_many_files(
    decoder: MediaDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media_pool, "FILES_PER_CHILD", 2)
    seen = set()
    for _ in range(4):
        await hear(decoder, SHORT)
        seen |= set(workers(decoder))
    assert len(seen) >= 2


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGXCPU])
async def test_a_process_that_dies_over_its_file(decoder: MediaDecoder, number: signal.Signals) -> None:
    async with decoder.read(io.BytesIO(LONG), "a.flac") as media:
        chunks = media.chunks()
        assert len(await anext(chunks)) == 4 * RATE
        os.kill(workers(decoder)[0], number)
        with pytest.raises(BridgeError, match=r"a\.flac: decoding it failed") as caught:
            while True:
                await anext(chunks)
        assert caught.value.code == "undecodable_audio"
    await until(lambda: not workers(decoder))
    assert len((await hear(decoder, SHORT))[1]) == RATE // 5


async def test_a_process_that_hangs(decoder: MediaDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_pool, "STALL_SECONDS", 0.3)
    async with decoder.read(io.BytesIO(LONG), "a.flac") as media:
        chunks = media.chunks()
        await anext(chunks)
        os.kill(workers(decoder)[0], signal.SIGSTOP)
        with pytest.raises(BridgeError) as caught:
            while True:
                await anext(chunks)
    assert caught.value.code == "undecodable_audio"
    await until(lambda: not workers(decoder))


async def test_a_reader_that_rests_is_no_hanging_process(
    decoder: MediaDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media_pool, "STALL_SECONDS", 0.3)
    async with decoder.read(io.BytesIO(LONG), "a.flac") as media:
        await asyncio.sleep(0.6)
        assert await rest(media) == 120 * 2 * RATE


async def test_a_process_that_died_between_two_files(decoder: MediaDecoder) -> None:
    await hear(decoder, SHORT)
    os.kill(workers(decoder)[0], signal.SIGKILL)  # the server has not heard of it yet
    assert len((await hear(decoder, SHORT))[1]) == RATE // 5


async def test_a_zygote_that_died(own: MediaDecoder) -> None:
    await hear(own, SHORT)
    old = zygote(own)
    async with own.read(io.BytesIO(LONG), "a.flac") as media:
        await anext(media.chunks())
        os.kill(old, signal.SIGKILL)
        with pytest.raises(BridgeError) as caught:
            await rest(media)
    assert caught.value.code == "undecodable_audio"  # its processes go with it
    assert len((await hear(own, SHORT))[1]) == RATE // 5
    assert zygote(own) != old


async def test_a_zygote_that_does_not_start(own: MediaDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_pool, "_WORKER", "bridge.audio.no_such_module")
    with pytest.raises(BridgeError) as caught:
        await hear(own, SHORT)
    assert (caught.value.code, caught.value.retry_after) == ("at_capacity", 5)
    assert len((await hear(own, wav(tone(0.1).tobytes())))[1]) == RATE // 10
    monkeypatch.undo()
    assert len((await hear(own, SHORT))[1]) == RATE // 5


async def test_a_process_that_says_what_no_decoder_says(decoder: MediaDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_wire, "MAX_PCM", 1_000)
    with pytest.raises(BridgeError) as caught:
        await hear(decoder, LONG)
    assert caught.value.code == "undecodable_audio"
    await until(lambda: not workers(decoder))


async def test_cancelling_a_reader_ends_its_process(decoder: MediaDecoder) -> None:
    started = asyncio.Event()

    async def read() -> None:
        async with decoder.read(io.BytesIO(LONG), "a.flac") as media:
            await anext(media.chunks())
            started.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(read())
    await started.wait()
    assert len(workers(decoder)) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not workers(decoder))


@pytest.mark.parametrize("delay", [0.0, 0.001, 0.003, 0.01, 0.1])
async def test_cancelling_while_it_begins(decoder: MediaDecoder, delay: float) -> None:
    tasks = [asyncio.create_task(hear(decoder, LONG)) for _ in range(6)]
    await asyncio.sleep(delay)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert len((await hear(decoder, SHORT))[1]) == RATE // 5
    await until(lambda: len(workers(decoder)) <= media_pool.IDLE_CHILDREN)


async def test_only_so_many_are_decoded_at_once(decoder: MediaDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_pool, "WAIT_SECONDS", 0.2)
    readers = [decoder.read(io.BytesIO(LONG), "a.flac") for _ in range(4)]
    medias = [await reader.__aenter__() for reader in readers]
    try:
        assert len(workers(decoder)) == 4
        with pytest.raises(BridgeError) as caught:
            await hear(decoder, SHORT)
        assert caught.value.code == "at_capacity"
        assert caught.value.retry_after is not None
        monkeypatch.setattr(media_pool, "WAIT_SECONDS", 10)
        waiting = asyncio.create_task(hear(decoder, SHORT))
        await rest(medias[0])
        await readers[0].__aexit__(None, None, None)
        assert len((await waiting)[1]) == RATE // 5
    finally:
        for reader in readers[1:]:
            await reader.__aexit__(None, None, None)


async def test_closing_the_server_ends_what_is_read(own: MediaDecoder) -> None:
    async def read() -> None:
        async with own.read(io.BytesIO(LONG), "a.flac") as media:
            chunks = media.chunks()
            await anext(chunks)
            started.set()
            await release.wait()
            async for _ in chunks:
                pass

    started, release = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(read())
    await started.wait()
    await own.close()
    release.set()
    with pytest.raises(BridgeError) as caught:
        await task
    assert caught.value.code == "shutting_down"


async def test_a_slow_reader_holds_the_decoder_back(decoder: MediaDecoder) -> None:
    async with decoder.read(io.BytesIO(LONG), "a.flac") as media:
        await anext(media.chunks())
        (process,) = workers(decoder)
        await until(lambda: state(process) == "S")
        assert await rest(media) == 118 * 2 * RATE


async def test_a_server_that_is_killed_takes_its_processes_along(tmp_path: Path) -> None:
    (tmp_path / "a.flac").write_bytes(LONG)
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", READING, tmp_path / "a.flac", stdout=asyncio.subprocess.PIPE
    )
    assert server.stdout is not None
    await asyncio.wait_for(server.stdout.readline(), 20)
    (process,) = children(server.pid)
    family = [process, *children(process)]
    assert len(family) == 2
    server.kill()
    await server.wait()
    await until(lambda: not any(Path(f"/proc/{one}/fd").exists() for one in family))


async def test_a_thousand_files_leave_nothing_behind(decoder: MediaDecoder) -> None:
    async def some(number: int) -> None:
        for at in range(125):
            if at % 20 == number:  # left at once
                async with decoder.read(io.BytesIO(SHORT), "a"):
                    pass
            else:
                bad = at % 3 == number % 3
                how, _ = await outcome(decoder, b"fLaC" * 9 if bad else SHORT)
                assert how == ("unsupported_audio" if bad else "heard")

    await hear(decoder, SHORT)
    before = descriptors()
    await asyncio.gather(*(some(number) for number in range(8)))
    await until(lambda: len(workers(decoder)) <= 4)
    assert descriptors() - before <= 8  # those that wait for a file, and what others opened; not 1,000
    await until(lambda: "Z" not in {state(process) for process in workers(decoder)})
