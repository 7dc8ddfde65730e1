"""Several backends as one: which takes a session, which goes on, and that no word is lost or doubled in between."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from backends.base import AsyncBackend, BackendError, Capabilities, Fault, RecognitionConfig, Result
from backends.scripted import (
    Script,
    ScriptedBackend,
    ScriptedFault,
    ScriptedOptions,
    ScriptedThreadsBackend,
    marker_audio,
)
from bridge.errors import BridgeError
from bridge.protocols.events import Error, Final, Ready, Start, Warning
from bridge.session.breaker import BreakerRules
from bridge.session.engine import Engine
from bridge.session.failover import EnginePool, Seat
from bridge.session.limits import SessionLimits
from tests.session.harness import FunctionEngine, Running, lasting_numbers, limited, markers, session_on, words

QUICK = SessionLimits(stall_seconds=0.4, stop_seconds=10, reopen_seconds=2)
NEVER = ScriptedFault(1e9, "end")


class Own:
    """Of a scripted engine: its faults belong to its own streams, whatever others a session opened before."""

    opened = 0

    def _player(self, config: RecognitionConfig) -> Any:
        config = dataclasses.replace(config, attempt=self.opened)
        self.opened += 1
        return super()._player(config)  # type: ignore[misc]


class Scripted(Own, ScriptedBackend):
    """On the event loop."""


class ScriptedThreads(Own, ScriptedThreadsBackend):
    """On a thread."""


def engine(name: str, backend: Any) -> Engine:
    """An engine of this name."""
    made = Engine(backend, threads=4)
    made.name = name
    return made


def scripted(name: str, *faults: ScriptedFault, kind: Any = Scripted) -> Engine:
    """The marker engine, whose streams meet these faults in turn."""
    return engine(name, kind(ScriptedOptions(mode="markers"), Script(faults=faults)))


def function(name: str, body: Any = None, **capabilities: Any) -> Engine:
    """An engine with these capabilities; without a body, it hears markers."""
    return engine(name, FunctionEngine(body or markers().recognize, **capabilities))


def failing(code: str = "unavailable", **how: Any) -> Any:
    """The body of an engine that fails at once."""

    async def body(_: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        async for _chunk in audio:
            raise BackendError("it is down", code=code, **{"retryable": True, **how})
        yield Result("", True, 0, 0)

    return body


async def loaded(*engines: Engine, **pool: Any) -> EnginePool:
    """The pool of these, ready."""
    made = EnginePool(*engines, **pool)
    await made.load()
    return made


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


# In mid-stream


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
    (record,) = [r for r in caplog.records if r.message == "backend changed"]
    told = vars(record)
    assert [told[k] for k in ("session", "from", "to", "code")] == ["test", "first", "second", "scripted"]
    assert "w0" not in caplog.text


# Where it goes


def seated(pool: EnginePool, language: str = "en-US", count: int = 1) -> str:
    """Where a session would be."""
    with pool.seats(language, count) as seats:
        return seats[0].engine.name


def broken(pool: EnginePool, *numbers: int) -> None:
    """Open the breakers of these."""
    for number in numbers:
        for _ in range(5):
            pool.members[number].breaker.begin().failed()


DOWN = BackendError("it is down", code="unavailable", retryable=True)


class Clock:
    """Seconds that pass when told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_a_session_goes_to_the_first_that_is_well() -> None:
    clock = Clock()
    pool = await loaded(function("a"), function("b"), function("c"), clock=clock)
    assert seated(pool) == "a"
    broken(pool, 0)
    assert (seated(pool), pool.current.name) == ("b", "b")
    broken(pool, 1, 2)
    assert (seated(pool), pool.current.name) == ("a", "a")  # a breaker refuses nobody


async def test_the_preferred_one_is_probed_by_one_session_alone() -> None:
    clock = Clock()
    pool = await loaded(function("a"), function("b"), clock=clock)
    broken(pool, 0)
    clock.now += 60
    with pool.seats("en-US") as probe:
        assert probe[0].engine.name == "a"
        assert seated(pool) == "b"
        assert seated(pool) == "b"
        probe[0].begin().result(final=True)
        assert seated(pool) == "a"  # it works: everybody goes back, at the start of a session


async def test_a_probe_without_a_stream_tells_nothing() -> None:
    clock = Clock()
    pool = await loaded(function("a"), function("b"), clock=clock)
    broken(pool, 0)
    clock.now += 60
    with pool.seats("en-US"):
        pass
    assert pool.members[0].breaker.state == "half_open"
    assert seated(pool) == "a"


async def test_sessions_that_start_together_are_not_all_the_probe() -> None:
    clock = Clock()
    pool = await loaded(function("a"), function("b"), clock=clock)
    broken(pool, 0)
    clock.now += 60

    async def session() -> str:
        await asyncio.sleep(0)
        with pool.seats("en-US") as seats:
            await asyncio.sleep(0)
            return seats[0].engine.name

    assert sorted(await asyncio.gather(*(session() for _ in range(20)))) == ["a"] + 19 * ["b"]


async def test_a_language_that_only_one_knows() -> None:
    danish, polyglot = function("danish", languages=("da",)), function("polyglot", detects_language=True)
    pool = await loaded(function("english", languages=("en",)), danish, polyglot)
    assert [seated(pool, language) for language in ("en-GB", "da-DK", "fr", "auto")] == [
        "english",
        "danish",
        "polyglot",
        "polyglot",
    ]


async def test_a_language_that_none_knows() -> None:
    pool = await loaded(function("a", languages=("en",)), function("b", languages=("da", "de")))
    for language, said in (
        ("fr", "the backend a knows en; the backend b knows da, de"),
        ("auto", "the backend a detects no language; the backend b detects no language: name one"),
    ):
        with pytest.raises(BridgeError, match=said) as refused:
            seated(pool, language)
        assert refused.value.code == "unsupported_language"


async def test_a_move_is_to_one_that_knows_the_language() -> None:
    pool = await loaded(function("a"), function("danish", languages=("da",)), function("c"))
    with pool.seats("en-US") as (seat,):
        assert seat.failed(DOWN) == "now"
        assert seat.engine.name == "c"


async def test_one_that_is_full() -> None:
    small = function("small", max_streams=1)
    pool = await loaded(small, function("b", max_streams=2))
    assert pool.capacity == 3
    with pool.seats("en-US"):
        assert (seated(pool), pool.full) == ("b", False)
        with pool.seats("en-US", 2), pytest.raises(BridgeError) as refused:
            assert pool.full
            seated(pool)
    assert refused.value.code == "at_capacity"
    assert [e.streams for e in pool.engines] == [0, 0]


async def test_no_room_at_the_next_one() -> None:
    """It stays, with pauses, where it is; and moves when there is room."""
    clock = Clock()
    pool = await loaded(function("a"), function("small", max_streams=1), clock=clock)
    small = pool.engines[1]
    with pool.seats("en-US") as (seat,):
        small.take(1)
        assert seat.failed(DOWN) == "later"
        seat.move_round()
        assert seat.engine.name == "a"
        small.give_back(1)
        assert seat.failed(DOWN) == "now"
        assert (seat.engine.name, small.streams, pool.engines[0].streams) == ("small", 1, 0)
    assert small.streams == 0


async def test_no_room_and_in_vain() -> None:
    pool = await loaded(function("a"), function("small", max_streams=1))
    pool.engines[1].take(1)
    with pool.seats("en-US") as (seat,):
        assert seat.failed(BackendError("no key", fault=Fault.OPERATOR)) == "never"


async def test_it_does_not_go_back_to_one_that_it_has_just_left() -> None:
    clock = Clock()
    pool = await loaded(function("a"), function("b"), clock=clock)
    with pool.seats("en-US") as (seat,):
        assert (seat.failed(DOWN), seat.engine.name) == ("now", "b")
        clock.now += 10
        assert (seat.failed(DOWN), seat.engine.name) == ("later", "b")
        seat.move_round()  # both have failed
        assert seat.engine.name == "a"
        clock.now += 30
        assert (seat.failed(DOWN), seat.engine.name) == ("now", "b")  # that was long ago


async def test_one_whose_breaker_is_open_is_passed_over() -> None:
    pool = await loaded(function("a"), function("b"), function("c"))
    broken(pool, 1)
    with pool.seats("en-US") as (seat,):
        assert (seat.failed(DOWN), seat.engine.name) == ("now", "c")
        assert seat.failed(DOWN) == "later"
        seat.move_round()
        assert seat.engine.name == "a"  # b is last, although it has never failed this channel


async def test_a_seat_is_given_back_once() -> None:
    pool = await loaded(function("a"))
    with pool.seats("en-US") as (seat,):
        assert isinstance(seat, Seat)
        seat.give_back()
        assert pool.preferred.streams == 0
    assert pool.preferred.streams == 0


async def test_streams_tell_the_breaker() -> None:
    pool = EnginePool(scripted("a", ScriptedFault(0.1, "fail")), function("b"), rules=BreakerRules(failures=1))
    async with session_on(pool) as running:
        await running.send(marker_audio(2))
        running.session.stop()
    assert [member.breaker.state for member in pool.members] == ["open", "closed"]
    assert [member.openness() for member in pool.members] == [2, 0]


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


async def test_the_models_are_those_of_the_first_that_has_some() -> None:
    class Models(FunctionEngine):
        async def use_model(self, name: str) -> None:
            raise NotImplementedError

    rich = engine("rich", Models(None))
    assert EnginePool(function("a"), rich, engine("other", Models(None))).with_models is rich
    poor = function("a")
    assert EnginePool(poor, scripted("b", kind=ScriptedThreads)).with_models is poor
    assert (poor.has_models, rich.has_models) == (False, True)


# Loading


class Slow(AsyncBackend):
    """Loads when it is told to; `error`: then it fails."""

    name = "slow"

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.error = error
        self.closed = False

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities()

    async def load(self) -> None:
        await self.go.wait()
        if self.error:
            raise self.error

    async def close(self) -> None:
        self.closed = True

    async def recognize(self, _: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        async for _chunk in audio:
            yield Result("", True, 0, 0)


async def test_sessions_wait_for_the_preferred_one_and_for_no_other() -> None:
    first, second = Slow(), Slow()
    pool = EnginePool(engine("first", first), engine("second", second))
    loading = asyncio.create_task(pool.load())
    await asyncio.sleep(0)
    second.go.set()
    await asyncio.sleep(0.01)
    assert (pool.state, pool.current.name) == ("loading", "first")
    first.go.set()
    await loading
    assert pool.state == "ready"

    first, second = Slow(), Slow()
    pool = EnginePool(engine("first", first), engine("second", second))
    loading = asyncio.create_task(pool.load())
    await asyncio.sleep(0)
    first.go.set()
    await asyncio.sleep(0.01)
    assert (pool.state, seated(pool)) == ("ready", "first")
    loading.cancel()
    await asyncio.wait({loading})
    assert pool.engines[1].state == "failed"  # nobody loads it any more
    await pool.close()
    assert (first.closed, second.closed) == (True, True)


@pytest.mark.parametrize("error", [BackendError("no model", code="unavailable"), LookupError("a bug")])
async def test_one_that_cannot_be_loaded_is_left_out(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    bad, good = Slow(error), Slow()
    pool = EnginePool(engine("bad", bad), engine("good", good))
    loading = asyncio.create_task(pool.load())
    bad.go.set()
    await asyncio.sleep(0.01)
    assert (pool.state, pool.current.name) == ("loading", "good")
    good.go.set()
    await loading
    assert (pool.state, seated(pool)) == ("ready", "good")
    assert "backend bad is left out" in caplog.text
    with pool.seats("en-US") as (seat,):
        assert seat.failed(DOWN) == "later"  # the one left out is no alternative


async def test_none_can_be_loaded() -> None:
    bad = [Slow(BackendError("no key")), Slow(BackendError("no model"))]
    for backend in bad:
        backend.go.set()
    pool = EnginePool(engine("a", bad[0]), engine("b", bad[1]))
    with pytest.raises(BackendError, match="no key"):
        await pool.load()
    assert pool.state == "failed"
    with pytest.raises(BridgeError) as refused:
        seated(pool)
    assert refused.value.code == "not_ready"


async def test_a_rate_that_all_take() -> None:
    """The one that the preferred engine likes best of them."""
    pool = EnginePool(function("a", sample_rates=(48_000, 16_000, 8_000)), function("b", sample_rates=(8_000, 16_000)))
    assert pool.sample_rate == 16_000
    assert [e.sample_rate for e in pool.engines] == [16_000, 16_000]
    with pytest.raises(ValueError, match=r"no sample rate in common.*a: 48000 Hz, b: 8000 16000 Hz"):
        EnginePool(function("a", sample_rates=(48_000,)), function("b", sample_rates=(8_000, 16_000)))
