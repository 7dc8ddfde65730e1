"""Several backends as one: which of them a session goes to, and how they are loaded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from backends.base import AsyncBackend, BackendError, Capabilities, Fault, RecognitionConfig, Result
from backends.scripted import (
    ScriptedFault,
    marker_audio,
)
from bridge.errors import BridgeError
from bridge.session.breaker import BreakerRules
from bridge.session.failover import EnginePool, Seat
from tests.session.harness import (
    FunctionEngine,
    seats_of,
    session_on,
)
from tests.session.pools import ScriptedThreads, engine, function, loaded, scripted

# Where it goes


def seated(pool: EnginePool, language: str = "en-US", count: int = 1) -> str:
    """Where a session would be."""
    with seats_of(pool, language, count) as seats:
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
    with seats_of(pool, "en-US") as probe:
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
    with seats_of(pool, "en-US"):
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
        with seats_of(pool, "en-US") as seats:
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
    with seats_of(pool, "en-US") as (seat,):
        assert seat.failed(DOWN) == "now"
        assert seat.engine.name == "c"


async def test_one_that_is_full() -> None:
    small = function("small", max_streams=1)
    pool = await loaded(small, function("b", max_streams=2))
    assert pool.capacity == 3
    with seats_of(pool, "en-US"):
        assert (seated(pool), pool.full) == ("b", False)
        with seats_of(pool, "en-US", 2), pytest.raises(BridgeError) as refused:
            assert pool.full
            seated(pool)
    assert refused.value.code == "at_capacity"
    assert [e.streams for e in pool.engines] == [0, 0]


async def test_no_room_at_the_next_one() -> None:
    """It stays, with pauses, where it is; and moves when there is room."""
    clock = Clock()
    pool = await loaded(function("a"), function("small", max_streams=1), clock=clock)
    small = pool.engines[1]
    with seats_of(pool, "en-US") as (seat,):
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
    with seats_of(pool, "en-US") as (seat,):
        assert seat.failed(BackendError("no key", fault=Fault.OPERATOR)) == "never"


async def test_it_does_not_go_back_to_one_that_it_has_just_left() -> None:
    clock = Clock()
    pool = await loaded(function("a"), function("b"), clock=clock)
    with seats_of(pool, "en-US") as (seat,):
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
    with seats_of(pool, "en-US") as (seat,):
        assert (seat.failed(DOWN), seat.engine.name) == ("now", "c")
        assert seat.failed(DOWN) == "later"
        seat.move_round()
        assert seat.engine.name == "a"  # b is last, although it has never failed this channel


async def test_a_seat_is_given_back_once() -> None:
    pool = await loaded(function("a"))
    with seats_of(pool, "en-US") as (seat,):
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
    with seats_of(pool, "en-US") as (seat,):
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
