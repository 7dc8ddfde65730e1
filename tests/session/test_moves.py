"""A backend fails in mid-stream and another goes on: no word is lost or doubled in between."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from backends.base import BackendError, Fault, RecognitionConfig, Result
from backends.scripted import (
    ScriptedFault,
    marker_audio,
)
from bridge.audio.vad.segmenter import Endpointing
from bridge.protocols.events import Error, Final, Ready, Start, Warning
from bridge.session.breaker import BreakerRules
from bridge.session.failover import EnginePool
from bridge.session.limits import SessionLimits
from bridge.session.voice import VoicePolicy
from tests.session.harness import (
    NonzeroDetection,
    Running,
    lasting_numbers,
    limited,
    markers,
    session_on,
    words,
)
from tests.session.pools import NEVER, QUICK, Scripted, ScriptedThreads, failing, function, scripted


def changes(running: Running) -> list[str]:
    """What the client was told of backends."""
    return [e.message for e in running.events if isinstance(e, Warning) and e.code == "backend_changed"]


def whole(running: Running, count: int) -> None:
    """Every word once, in its place, and numbers without a gap."""
    assert running.text == words(count)
    assert running.closed.code == "stopped"
    assert running.closed.finalized == running.closed.received
    assert lasting_numbers(running.events) == list(range(1, (running.closed.seq or 0) + 1))
    assert len(changes(running)) == min(10, len(running.observed.moves))


@pytest.mark.parametrize("kinds", list(itertools.product([Scripted, ScriptedThreads], repeat=2)))
@pytest.mark.parametrize("fault", ["fail", "stall", "end"])
@pytest.mark.parametrize("at", [0.05, 1.3, 2.95])
async def test_the_next_one_goes_on(kinds: Sequence[Any], fault: Any, at: float) -> None:
    first = scripted("first", ScriptedFault(at, fault), kind=kinds[0])
    async with session_on(EnginePool(first, scripted("second", kind=kinds[1])), limits=QUICK) as running:
        await running.send(marker_audio(5))
        running.session.stop()
    whole(running, 5)
    code = {"fail": "scripted", "stall": "stalled", "end": "ended_early"}[fault]
    assert changes(running) == [f"first failed ({code}); second goes on"]
    assert running.observed.moves == [("first", "second")]
    ready = running.events[0]
    assert isinstance(ready, Ready)
    assert ready.backend == "first"
    assert running.session.backend == "second"
    starts = [e.start for e in running.events if isinstance(e, Final)]
    assert starts == pytest.approx([0.6 * i for i in range(5)], abs=0.01)


async def test_a_flood_before_the_failure() -> None:
    """Partials by the thousand, then the end of the engine: the next one's words are whole."""

    async def flooding(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        async for result in markers(ScriptedFault(1.3, "flood", count=5_000)).recognize(config, audio):
            yield result
            if result.text == "flood 4999":
                raise BackendError("it drowned", code="failed", retryable=False)

    pool = EnginePool(function("first", flooding), scripted("second"))
    async with session_on(pool, limits=QUICK) as running:
        await running.send(marker_audio(6))
        running.session.stop()
    whole(running, 6)
    assert running.observed.moves == [("first", "second")]


async def test_three_in_a_row() -> None:
    pool = EnginePool(
        scripted("first", ScriptedFault(1.0, "fail")),
        scripted("second", ScriptedFault(2.0, "stall"), kind=ScriptedThreads),
        scripted("third", ScriptedFault(3.0, "end")),
        scripted("fourth"),
    )
    async with session_on(pool, limits=QUICK) as running:
        await running.send(marker_audio(8))
        running.session.stop()
    whole(running, 8)
    assert running.observed.moves == [("first", "second"), ("second", "third"), ("third", "fourth")]


UNLIKE: dict[str, Any] = {
    "flushes, times words": {"flush": True, "word_times": True},
    "bare": {},
    "short streams": {"max_stream_seconds": 4.0, "word_times": True},
    "idle": {"idle_seconds": 0.3, "answer_seconds": 2.0, "word_times": True},
    "finals only": {"partials": False, "flush": True},
}


@pytest.mark.parametrize("pair", list(itertools.permutations(UNLIKE, 2)), ids=" to ".join)
@pytest.mark.parametrize("pause", [0.3, 0.0])
async def test_unlike_engines(pair: tuple[str, str], pause: float) -> None:
    """The first fails two seconds into each of its streams that lasts so long; the second has its own limits."""

    def breaking(inner: Any) -> Any:
        async def body(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
            given = 0

            async def watched() -> AsyncIterator[bytes]:
                nonlocal given
                async for chunk in audio:
                    given += len(chunk) // 2
                    if given > 2.05 * config.sample_rate:
                        raise BackendError("it broke", code="unavailable", retryable=True)
                    yield chunk

            async for result in inner(config, watched()):
                yield result

        return body

    def hearing(name: str) -> Any:
        return limited(4.0) if "max_stream_seconds" in UNLIKE[name] else markers().recognize

    pool = EnginePool(
        function("first", breaking(hearing(pair[0])), **UNLIKE[pair[0]]),
        function("second", hearing(pair[1]), **UNLIKE[pair[1]]),
    )
    async with session_on(pool, limits=QUICK) as running:
        await running.send(marker_audio(30, pause=pause))
        running.session.stop()
    whole(running, 30)
    assert running.observed.moves == [("first", "second")]


async def test_what_was_held_back_at_a_cut_is_not_said_twice() -> None:
    """The first ends its stream in the middle of speech and then fails: the last word is the second's."""

    async def cut_then_fail(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        async for result in markers().recognize(config, audio):
            yield result
        raise BackendError("it failed at the end", code="unavailable", retryable=True)

    pool = EnginePool(
        function("first", cut_then_fail, max_stream_seconds=4.0, word_times=True),
        function("second", limited(4.0), max_stream_seconds=4.0, word_times=True),
    )
    async with session_on(pool, limits=QUICK) as running:
        await running.send(marker_audio(40, pause=0))
        running.session.stop()
    whole(running, 40)
    assert running.observed.moves == [("first", "second")]


@pytest.mark.parametrize("seed", range(12))
async def test_faults_at_random_moments_lose_and_double_nothing(seed: int) -> None:
    chance = random.Random(seed)
    engines = []
    for number in range(chance.choice([2, 3])):
        at, faults = 0.0, []
        for _ in range(8):
            at += chance.uniform(0.0, 2.0)
            faults.append(ScriptedFault(at, chance.choice(["fail", "fail", "end", "flood"]), count=50))
        engines.append(scripted(f"engine{number}", *faults, kind=chance.choice([Scripted, ScriptedThreads])))
    pool = EnginePool(*engines, rules=BreakerRules(window_seconds=chance.choice([0.05, 30.0])))
    audio = marker_audio(25, pause=chance.uniform(0.2, 0.5))
    limits = dataclasses.replace(QUICK, reopen_seconds=10)
    async with session_on(pool, Start(partials=False), limits) as running:
        await running.send(audio, frame=chance.choice([320, 3_200, 9_602]))
        running.session.stop()
    whole(running, 25)


def troubled(chance: random.Random, limit: float | None) -> Any:
    """Hears markers, until a fault of each stream's own strikes; refuses audio past its limit."""

    async def body(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        at = chance.choice([chance.uniform(0, 1.5), chance.uniform(0, 6), 1e9])
        fault = chance.choice(["fail", "fail", "stall", "end"])

        async def watched() -> AsyncIterator[bytes]:
            given = 0.0
            async for chunk in audio:
                given += len(chunk) / 2 / config.sample_rate
                if limit is not None and given > limit:
                    raise BackendError("too long", code="stream_limit", retryable=True)
                if given > at and fault == "stall":
                    await asyncio.get_running_loop().create_future()
                elif given > at:
                    raise BackendError("it broke", code=fault, retryable=True)
                yield chunk

        try:
            async for result in markers().recognize(config, watched()):
                yield result
        except BackendError as exc:
            if exc.code != "end":  # that one just returns, and what it was given is lost
                raise

    return body


@pytest.mark.parametrize("seed", range(10))
async def test_engines_of_any_kind_with_any_faults_and_a_gate(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.session.channel.BACKOFF_CAP", 0.05)
    chance = random.Random(seed)
    engines = []
    for number in range(chance.choice([2, 3])):
        limit = chance.choice([None, 4.0, 6.0])
        timed = {"max_stream_seconds": limit, "idle_seconds": chance.choice([None, 0.2])}
        timed["answer_seconds"] = chance.choice([None, 0.6])
        word_times = any(timed.values()) or chance.random() < 0.5  # where streams end in speech, words tell where
        body = troubled(chance, limit)
        engines.append(function(f"e{number}", body, flush=chance.random() < 0.5, word_times=word_times, **timed))
    pool = EnginePool(*engines, rules=BreakerRules(window_seconds=chance.choice([0.05, 2, 30]), failures=2))
    gate = chance.choice([None, 0.5, 2.0])
    voice = VoicePolicy(NonzeroDetection(), Endpointing(padding_seconds=0.3), gate)
    limits = SessionLimits(stall_seconds=0.3, stop_seconds=30, reopen_seconds=20)
    count = 0
    async with session_on(pool, Start(words=chance.random() < 0.5), limits, voice) as running:
        for _ in range(4):
            said = chance.randrange(1, 8)
            audio = marker_audio(said, pause=chance.choice([0.0, 0.06, 0.3]), first=count)
            await running.send(audio + bytes(32 * chance.choice([0, 300, 4_000])), frame=chance.choice([320, 9_600]))
            count += said
            if chance.random() < 0.3:
                running.session.flush()
        running.session.stop()
    whole(running, count)


async def test_all_fail_for_ever() -> None:
    """They are tried in turn, with pauses, for as long as one alone would be."""
    first, second = function("first", failing()), function("second", failing("overflow"))
    limits = SessionLimits(reopen_seconds=0.7)
    began = asyncio.get_running_loop().time()
    async with session_on(EnginePool(first, second), limits=limits) as running:
        await running.send(marker_audio(1))
        await running.until(Error)
    assert 0.7 <= asyncio.get_running_loop().time() - began < 5
    assert running.closed.code == "backend_failed"
    moves = running.observed.moves
    assert len(moves) >= 3
    assert moves == list(itertools.islice(itertools.cycle([("first", "second"), ("second", "first")]), len(moves)))
    assert len(changes(running)) <= 10  # more of them would say nothing new


async def test_stalls_that_outlast_the_window_do_not_go_round_for_ever() -> None:
    """When the second has stalled, the first failed so long ago that it might be well; but there is an end to it."""
    stalls = [ScriptedFault(0.1, "stall")] * 50
    pool = EnginePool(
        scripted("first", *stalls), scripted("second", *stalls), rules=BreakerRules(window_seconds=0.1, failures=1_000)
    )
    limits = SessionLimits(stall_seconds=0.2, reopen_seconds=0.8)
    async with session_on(pool, limits=limits) as running:
        await running.send(marker_audio(1))
        await running.until(Error)
    assert running.closed.code == "backend_stalled"
    assert len(running.observed.moves) < 10


async def test_one_that_was_not_tried_yet_is_tried_however_late() -> None:
    """The first two stall for longer than a session may go without progress."""
    stall = ScriptedFault(0.1, "stall")
    pool = EnginePool(scripted("first", stall), scripted("second", stall), scripted("third"))
    limits = SessionLimits(stall_seconds=0.3, reopen_seconds=0.1)
    async with session_on(pool, limits=limits) as running:
        await running.send(marker_audio(3))
        running.session.stop()
    whole(running, 3)
    assert running.observed.moves == [("first", "second"), ("second", "third")]


async def test_one_that_is_well_again_is_found() -> None:
    """The second fails for good; the first is what is left, and is back by then."""
    first = scripted("first", ScriptedFault(0.5, "fail"), ScriptedFault(0.7, "fail"))
    second = function("second", failing(fault=Fault.OPERATOR, retryable=False))
    async with session_on(EnginePool(first, second), limits=QUICK) as running:
        await running.send(marker_audio(5))
        running.session.stop()
    whole(running, 5)
    assert running.observed.moves == [("first", "second"), ("second", "first")]


async def test_all_in_vain_ends_the_session_at_once() -> None:
    """A key that is refused will be refused again."""
    body = failing("permission_denied", fault=Fault.OPERATOR, retryable=False)
    began = asyncio.get_running_loop().time()
    async with session_on(EnginePool(function("first", body), function("second", body))) as running:
        await running.send(marker_audio(1))
        await running.until(Error)
    assert running.closed.code == "backend_misconfigured"
    assert asyncio.get_running_loop().time() - began < 2
    assert running.observed.moves == [("first", "second")]


async def test_the_clients_own_fault_moves_nobody() -> None:
    pool = EnginePool(function("first", failing("rejected", fault=Fault.CLIENT, retryable=False)), scripted("second"))
    async with session_on(pool) as running:
        await running.send(marker_audio(1))
        await running.until(Error)
    assert running.closed.code == "backend_rejected"
    assert (running.observed.moves, changes(running)) == ([], [])
    assert pool.members[0].breaker._in_a_row == 0


async def test_a_stream_that_was_ended_for_its_length_moves_nobody() -> None:
    """Google ends each of its streams; that is no failure."""
    first = function("first", limited(2.0), max_stream_seconds=8.0, word_times=True)
    pool = EnginePool(first, scripted("second"), rules=BreakerRules(failures=1))
    async with session_on(pool) as running:
        await running.send(marker_audio(20))
        running.session.stop()
    whole(running, 20)
    assert "stream_limit" in running.observed.errors
    assert running.observed.moves == []
    assert pool.members[0].breaker.state == "closed"


async def test_each_channel_moves_for_itself() -> None:
    """One fails, the other works on: places are counted for each."""
    first, second = scripted("first", ScriptedFault(0.3, "fail"), NEVER), scripted("second")
    stereo = Start(dataclasses.replace(Start().audio, channels=2), separate=True)
    async with session_on(EnginePool(first, second), stereo) as running:
        mono = marker_audio(6)
        await running.send(b"".join(mono[i : i + 2] * 2 for i in range(0, len(mono), 2)), frame=6_400)
        async with asyncio.timeout(5):
            while not running.observed.moves:
                await asyncio.sleep(0)
        assert (first.streams, second.streams) == (1, 1)
        running.session.stop()
    for channel in (0, 1):
        assert " ".join(e.text for e in running.events if isinstance(e, Final) and e.channel == channel) == words(6)
    assert (first.streams, second.streams) == (0, 0)
    assert len(changes(running)) == 1


async def test_the_log_tells_of_a_move_without_a_word_of_the_transcript(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        pool = EnginePool(scripted("first", ScriptedFault(1.3, "fail")), scripted("second"))
        async with session_on(pool) as running:
            await running.send(marker_audio(4))
            running.session.stop()
    whole(running, 4)
    (record,) = [r for r in caplog.records if r.message == "backend first is left, second goes on"]
    told = vars(record)
    assert [told[k] for k in ("session", "backend", "code")] == ["test", "second", "scripted"]
    assert "w0" not in caplog.text


async def test_one_backend_alone_is_counted_and_not_held_back() -> None:
    """As before there were several: it retries, and the first final closes the breaker again."""
    pool = EnginePool(scripted("a", *[ScriptedFault(0.1, "fail")] * 3), rules=BreakerRules(failures=3))
    async with session_on(pool) as running:
        await running.send(marker_audio(2))
        running.session.stop()
    whole(running, 2)
    assert running.observed.errors == ["scripted"] * 3
    assert running.observed.moves == []
    assert pool.members[0].breaker.state == "closed"
