"""One suite over every engine: what `backends.base` promises and demands, seen through the face that sessions see."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import pytest

from backends import registry
from backends.base import FLUSH, AsyncBackend, BlockingBackend, RecognitionConfig, Result
from backends.scripted import ScriptedBackend, ScriptedOptions, ScriptedThreadsBackend, marker_audio
from bridge.session.engine import Engine
from tests import wire
from tests.models import fixture
from tests.speech import SAMPLES, manifest, pcm, word_error_rate

SILENCE = bytes(16_000)  # half a second


Backend = AsyncBackend | BlockingBackend


@dataclass(frozen=True)
class Case:
    """An engine by its name, speech that it knows, and what was said.

    `make` is given the address of Google's emulator, which runs for the cases that want it (`emulated`), or of another
    server of the project's own in marker mode (`behind`). Fed faster than `speed` times life, an engine that has the
    whole utterance at once may leave out its partials.
    """

    name: str
    make: Callable[[str], Backend]
    speech: Callable[[], bytes]
    text: Callable[[], str]
    emulated: bool = False
    behind: bool = False
    speed: float | None = None


def markers() -> bytes:
    return marker_audio(6)


def marker_text() -> str:
    return "w0 w1 w2 w3 w4 w5"


def whisper(_: str) -> Backend:
    """With the project's own tiny model."""
    engine = registry.load_class("whisper")
    assert engine.Options is not None
    return engine(engine.Options(model=str(fixture.MODEL)))


def spoken() -> bytes:
    """Speech that this model hears exactly: two utterances, and not much silence behind the last one."""
    return b"".join(pcm(one.path) + bytes(32_000) for one in fixture.certain(words=2)[:2])[:-24_000]


def google(name: str, api: str) -> Case:
    """Marker words through the API, sent as fast as they come."""

    def make(address: str) -> Backend:
        engine = registry.load_class(name)
        assert engine.Options is not None
        return engine(engine.Options(api=api, endpoint=address, replay_speed=0))

    return Case(name, make, markers, marker_text, emulated=True)


def relay(address: str) -> Backend:
    """Another server's sessions."""
    engine = registry.load_class("relay")
    assert engine.Options is not None
    return engine(engine.Options(url=address))


_OPTIONS = ScriptedOptions(mode="markers")
CASES = {
    "google, v1": google("google", "v1"),
    "google, v2": google("google", "v2"),
    "google-threads, v1": google("google-threads", "v1"),
    "google-threads, v2": google("google-threads", "v2"),
    "relay": Case("relay", relay, markers, marker_text, behind=True, speed=4),
    "scripted": Case("scripted", lambda _: ScriptedBackend(_OPTIONS), markers, marker_text),
    "scripted-threads": Case("scripted-threads", lambda _: ScriptedThreadsBackend(_OPTIONS), markers, marker_text),
    "pocketsphinx": Case(
        "pocketsphinx",
        lambda _: registry.load_class("pocketsphinx")(),
        lambda: pcm(SAMPLES / "hello.flac"),
        lambda: manifest()["hello.flac"]["transcript"],
    ),
    "whisper": Case(
        "whisper", whisper, spoken, lambda: " ".join(one.text for one in fixture.certain(words=2)[:2]), speed=4
    ),
}


def test_every_engine_of_the_project_is_in_the_suite() -> None:
    assert {case.name for case in CASES.values()} == set(registry.names())


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    case = CASES[request.param]
    availability = registry.probe(case.name)
    if not availability.available:
        pytest.skip(f"{case.name}: {availability.reason}")
    return case


@pytest.fixture
async def engine(case: Case) -> AsyncIterator[Engine]:
    async with contextlib.AsyncExitStack() as stack:
        address = ""
        if case.emulated:
            from bridge.emulator.server import emulating

            address = (await stack.enter_async_context(emulating())).address
        if case.behind:
            address = await stack.enter_async_context(wire.serve())
        engine = Engine(case.make(address), threads=4)
        await engine.load()
        yield engine
        await engine.close()


def running() -> set[asyncio.Task[object]]:
    """Every task but those of the emulator, whose server waits for the next call in a new one each time."""
    return {task for task in asyncio.all_tasks() if "AioServer" not in repr(task)}


async def played(chunks: Sequence[bytes], speed: float | None = None) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
        await asyncio.sleep(len(chunk) / 32_000 / speed if speed else 0)


def cut(audio: bytes, size: int) -> list[bytes]:
    return [audio[i : i + size] for i in range(0, len(audio), size)]


async def recognized(
    engine: Engine, chunks: Sequence[bytes], config: RecognitionConfig | None = None, speed: float | None = None
) -> list[Result]:
    async with asyncio.timeout(30):
        return [r async for r in engine.recognize(config or RecognitionConfig(), played(chunks, speed))]


def finals(results: Sequence[Result]) -> list[Result]:
    return [r for r in results if r.is_final]


def text(results: Sequence[Result]) -> str:
    return " ".join(r.text for r in finals(results) if r.text)


async def test_capabilities_are_sane(engine: Engine) -> None:
    capabilities = engine.capabilities
    assert capabilities.sample_rates
    assert engine.sample_rate in capabilities.sample_rates
    assert capabilities.max_streams is None or capabilities.max_streams > 0


async def test_speech_becomes_its_words(engine: Engine, case: Case) -> None:
    results = await recognized(engine, cut(case.speech(), 3_200))
    assert word_error_rate(case.text(), text(results)) <= 0.1


async def test_finals_are_in_order_inside_the_audio_and_reach_its_end(engine: Engine, case: Case) -> None:
    audio = case.speech()
    seconds = len(audio) / 32_000
    closed = 0.0
    for result in await recognized(engine, cut(audio, 3_200)):
        assert 0 <= result.start <= result.end <= seconds + 0.001
        if not result.is_final:
            continue
        assert result.start >= closed - 0.001
        closed = result.end
        at = result.start
        for word in result.words:
            assert at - 0.05 <= word.start <= word.end <= result.end + 0.05
            assert word.confidence is None or 0 <= word.confidence <= 1
            at = word.start
        if engine.capabilities.word_times and result.text:
            assert " ".join(w.text for w in result.words) == result.text
    assert closed == pytest.approx(seconds, abs=0.05)


async def test_partials_come_before_their_final_and_only_if_wanted(engine: Engine, case: Case) -> None:
    chunks = cut(case.speech(), 3_200)
    results = await recognized(engine, chunks, speed=case.speed)
    kinds = [r.is_final for r in results if r.text]
    assert not kinds[0]
    assert kinds[-1]
    quiet = await recognized(engine, chunks, RecognitionConfig(partials=False))
    assert not [r for r in quiet if not r.is_final and r.text]
    assert text(quiet) == text(results)


async def test_words_only_if_wanted(engine: Engine, case: Case) -> None:
    results = await recognized(engine, cut(case.speech(), 3_200), RecognitionConfig(words=False))
    assert not [w for r in results for w in r.words]


@pytest.mark.parametrize("size", [962, 9_600, 1_000_000])
async def test_the_text_does_not_depend_on_the_chunks(engine: Engine, case: Case, size: int) -> None:
    audio = case.speech()
    assert text(await recognized(engine, cut(audio, size))) == text(await recognized(engine, cut(audio, 3_200)))


async def test_a_flush_is_answered_before_more_audio_comes(engine: Engine, case: Case) -> None:
    if not engine.capabilities.flush:
        pytest.skip("this engine knows no flush")
    audio = case.speech()
    half = len(audio) // 4 * 2
    answered = asyncio.Event()

    async def with_flush() -> AsyncIterator[bytes]:
        for chunk in cut(audio[:half], 3_200):
            yield chunk
        yield FLUSH
        await answered.wait()
        for chunk in cut(audio[half:], 3_200):
            yield chunk

    results = []
    async with asyncio.timeout(30):
        async for result in engine.recognize(RecognitionConfig(), with_flush()):
            results.append(result)
            if result.is_final and result.end >= half / 32_000 - 0.001:
                answered.set()
    assert answered.is_set()
    assert finals(results)[-1].end == pytest.approx(len(audio) / 32_000, abs=0.05)


async def test_silence_says_nothing_and_is_closed_as_it_passes(engine: Engine, case: Case) -> None:
    results = await recognized(engine, [SILENCE] * 40, speed=case.speed and 20)
    assert not [r for r in results if r.text]
    assert finals(results)[-1].end == pytest.approx(20, abs=0.05)
    assert len(finals(results)) >= 3


async def test_no_audio_at_all(engine: Engine) -> None:
    assert text(await recognized(engine, [])) == ""


async def test_streams_do_not_hear_each_other(engine: Engine, case: Case) -> None:
    chunks = cut(case.speech(), 3_200)
    alone = text(await recognized(engine, chunks))
    several = await asyncio.gather(*(recognized(engine, chunks) for _ in range(3)), recognized(engine, [SILENCE] * 8))
    assert [text(r) for r in several] == [alone, alone, alone, ""]


@pytest.mark.parametrize("after", [0, 1, 12])
async def test_closing_a_stream_at_any_moment_leaves_nothing(engine: Engine, case: Case, after: int) -> None:
    tasks, threads = running(), threading.active_count()

    async def endless() -> AsyncIterator[bytes]:
        for chunk in cut(case.speech() * 12, 3_200):  # for some engines' twelfth result it takes so much
            yield chunk
        await asyncio.get_running_loop().create_future()

    stream = engine.recognize(RecognitionConfig(), endless())
    with contextlib.suppress(StopAsyncIteration):
        for _ in range(after):
            await asyncio.wait_for(anext(stream), 10)
    await stream.aclose()
    async with asyncio.timeout(5):
        while running() - tasks:
            await asyncio.sleep(0.01)
    assert threading.active_count() <= threads + 4  # the pool keeps its threads, and no more
    assert text(await recognized(engine, cut(case.speech(), 3_200)))


async def test_cancelling_the_task_that_reads_ends_the_stream(engine: Engine) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield SILENCE
        await asyncio.get_running_loop().create_future()

    async def read() -> None:
        async with contextlib.aclosing(engine.recognize(RecognitionConfig(), endless())) as stream:
            async for _ in stream:
                pass

    before = running()
    reading = asyncio.create_task(read())
    await asyncio.sleep(0.1)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(reading, 5)
    async with asyncio.timeout(5):
        while running() - before:
            await asyncio.sleep(0.01)
