"""Models by time of day: what is read, when changes come, also where clocks are put forward and back."""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
import time
from collections.abc import Callable, Iterator
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.whisper import schedule as schedule_module
from backends.whisper.schedule import LONGEST_RETRY_SECONDS, LOOK_SECONDS, RETRY_SECONDS, Schedule, run

TEXT = "07:00=large-v3-turbo, 22:00 = small"
BERLIN = "Europe/Berlin"
HOUR = 3_600.0


def instant(text: str, zone: str = "UTC", fold: int = 0) -> float:
    """The time that a clock shows, as seconds since the epoch."""
    return dt.datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()


# What is read


def test_changes_in_their_order() -> None:
    schedule = Schedule.parse("22:00=small,7:05=/models/a=b, ,12:30=owner/name,", "UTC")
    assert [(f"{change.at:%H:%M}", change.model) for change in schedule.changes] == [
        ("07:05", "/models/a=b"),
        ("12:30", "owner/name"),
        ("22:00", "small"),
    ]
    assert Schedule.parse("1:00=a,2:00=b,3:00=a").models == ("a", "b")


@pytest.mark.parametrize("text", ["", "  ", ","])
def test_an_empty_schedule_is_none(text: str) -> None:
    schedule = Schedule.parse(text)
    assert not schedule
    assert schedule.now() is None


@pytest.mark.parametrize(
    "piece",
    ["small", "7=small", "07:00", "07:00=", "07:00=  ", "24:00=small", "07:60=small", "-1:00=small", "07:00:00=small"],
)
def test_a_piece_that_is_wrong_is_named(piece: str) -> None:
    with pytest.raises(
        ValueError, match=r"^STT_WHISPER_SCHEDULE: .* is not allowed: it should be HH:MM=MODEL"
    ) as caught:
        Schedule.parse(f"06:00=tiny,{piece}")
    assert repr(piece.strip()) in str(caught.value)
    assert "tiny" not in str(caught.value)


def test_a_time_comes_once() -> None:
    with pytest.raises(ValueError, match=r"^STT_WHISPER_SCHEDULE: '7:00=b' is not allowed: 07:00 has a model already"):
        Schedule.parse("07:00=a,7:00=b")


@pytest.mark.parametrize("zone", ["Mars/Olympus", "../../etc/passwd", "/etc/localtime", "Europe", "x\0y", "é"])
def test_a_zone_that_is_none_is_named(zone: str) -> None:
    with pytest.raises(ValueError, match=r"^STT_WHISPER_TIMEZONE: .* is not allowed: it should be a time zone"):
        Schedule.parse(TEXT, zone)


# When changes come


@pytest.mark.parametrize(
    ("shown", "model", "hours"),
    [
        ("2026-11-21 00:00", "small", 7),
        ("2026-11-21 06:30", "small", 0.5),
        ("2026-11-21 07:00", "large-v3-turbo", 15),
        ("2026-11-21 12:00", "large-v3-turbo", 10),
        ("2026-11-21 22:00", "small", 9),
        ("2026-12-31 23:00", "small", 8),
    ],
)
@pytest.mark.parametrize("zone", ["UTC", BERLIN, "Asia/Kathmandu", "Pacific/Auckland"])
def test_an_ordinary_day(zone: str, shown: str, model: str, hours: float) -> None:
    schedule = Schedule.parse(TEXT, zone)
    when = instant(shown, zone)
    assert schedule.model(when) == model
    assert schedule.now(lambda: when) == model
    assert schedule.seconds_until_change(when) == hours * HOUR
    assert schedule.last(when + hours * HOUR) == when + hours * HOUR
    assert schedule.model(when + hours * HOUR - 0.001) == model != schedule.model(when + hours * HOUR)


def test_one_model_for_all_hours() -> None:
    schedule = Schedule.parse("03:00=small", "UTC")
    when = instant("2026-11-21 02:00")
    assert schedule.model(when) == "small"
    assert schedule.seconds_until_change(when) == HOUR


@pytest.mark.parametrize(
    ("day", "hours"), [("2026-03-28", 24), ("2026-03-29", 23), ("2026-10-24", 24), ("2026-10-25", 25)]
)
def test_a_day_that_is_longer_or_shorter(day: str, hours: int) -> None:
    schedule = Schedule.parse("00:00=a", BERLIN)
    assert schedule.seconds_until_change(instant(f"{day} 00:00", BERLIN)) == hours * HOUR


def test_a_time_that_is_skipped_comes_when_the_clocks_are_put_forward() -> None:
    """In Berlin, on 29 March 2026, 02:00 is 03:00 already."""
    schedule = Schedule.parse("02:15=a,02:45=b,03:00=c,03:15=d", BERLIN)
    skip = instant("2026-03-29 01:00")
    assert schedule.model(skip - 0.01) == "d"  # of the day before
    assert schedule.last(skip) == skip
    assert schedule.model(skip) == "c"  # three at once: the last one counts
    assert schedule.seconds_until_change(skip) == 900
    assert Schedule.parse("02:30=a,12:00=b", BERLIN).last(skip + 1) == skip


def test_a_time_that_comes_twice_counts_the_first_time() -> None:
    """In Berlin, on 25 October 2026, 03:00 is 02:00 again."""
    schedule = Schedule.parse("02:30=a,12:00=b", BERLIN)
    first, second = (instant("2026-10-25 02:30", BERLIN, fold) for fold in (0, 1))
    assert second - first == HOUR
    assert schedule.model(first - 1) == "b"
    for minutes in range(0, 120, 5):  # also when the clock shows 02:05 again
        assert schedule.model(first + minutes * 60) == "a"
    assert schedule.seconds_until_change(first) == 10.5 * HOUR


def test_a_day_that_is_left_out() -> None:
    """Samoa had no 30 December 2011."""
    schedule = Schedule.parse("06:00=a,18:00=b", "Pacific/Apia")
    skip = instant("2011-12-31 00:00", "Pacific/Apia")
    assert schedule.model(skip - 1) == "b"
    assert schedule.last(skip) == skip  # all the changes of the missing day, of which the last is the one before, too
    assert schedule.model(skip) == "b"
    assert schedule.seconds_until_change(skip) == 6 * HOUR


@pytest.fixture
def local_zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Says where the machine is."""

    def put(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield put
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("zone", [BERLIN, "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"])
def test_the_zone_of_the_machine(local_zone: Callable[[str], None], zone: str) -> None:
    local_zone(zone)
    here, named = Schedule.parse("02:10=a,02:40=b,22:00=c"), Schedule.parse("02:10=a,02:40=b,22:00=c", zone)
    for day in range(366):
        when = instant("2026-01-01 00:00") + day * 24 * HOUR + (day * 3_607) % 86_400
        assert here.model(when) == named.model(when)
        assert here.seconds_until_change(when) == named.seconds_until_change(when)


ZONES = (
    "UTC",
    BERLIN,
    "America/St_Johns",
    "Australia/Lord_Howe",
    "America/Asuncion",
    "Pacific/Apia",
    "Africa/Casablanca",
)


def shifts(zone: str) -> list[float]:
    """A moment of each day since 2009 at which the clocks of a zone are put forward or back; of UTC any day."""
    tz = ZoneInfo(zone)
    days = [instant("2009-01-01 00:00") + n * 24 * HOUR for n in range(18 * 365)]
    offsets = [dt.datetime.fromtimestamp(day, tz).utcoffset() for day in days]
    return [day for day, a, b in zip(days, offsets, offsets[1:], strict=False) if a != b] or days[:1]


SHIFTS = [(zone, day) for zone in ZONES for day in shifts(zone)]


@settings(max_examples=30)
@given(
    st.lists(st.integers(0, 24 * 60 - 1), min_size=1, max_size=4, unique=True),
    st.sampled_from(SHIFTS),
    st.integers(0, 24 * 60 - 1),
)
def test_every_change_comes_once_a_day_and_in_order(minutes: list[int], shift: tuple[str, float], early: int) -> None:
    """Against somebody who looks at the clock on the wall every minute, and does what he has not done yet."""
    zone, start = shift[0], shift[1] - early * 60 - 24 * HOUR
    pieces = [f"{m // 60:02}:{m % 60:02}=at-{m}" for m in minutes]
    schedule = Schedule.parse(",".join(pieces), zone)
    tz = ZoneInfo(zone)
    shown = dt.datetime.fromtimestamp(start, tz).replace(tzinfo=None)
    latest, model = shown, None
    for step in range(60 * 24 * 4):
        when = start + 60 * step
        shown = dt.datetime.fromtimestamp(when, tz).replace(tzinfo=None)
        if shown > latest:
            for day in range((shown.date() - latest.date()).days + 1):
                for minute in sorted(minutes):
                    due = dt.datetime.combine(latest.date(), dt.time()) + dt.timedelta(days=day, minutes=minute)
                    if latest < due <= shown:
                        model = f"at-{minute}"
            latest = shown
        if model is not None and step % 7 == 0:
            assert schedule.model(when) == model, (zone, when, shown)
            assert schedule.last(when) <= when < when + schedule.seconds_until_change(when)


# Following it


class World:
    """A clock that goes on by sleeping only, and a server whose model is changed."""

    def __init__(self, shown: str) -> None:
        self.time = instant(shown)
        self.used: list[tuple[str, str]] = []
        self.failures = 0
        self.end = self.time + 48 * HOUR
        self.sleeps: list[float] = []

    def clock(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.time += seconds
        if self.time >= self.end:
            raise asyncio.CancelledError
        await asyncio.sleep(0)

    async def use_model(self, name: str) -> None:
        shown = dt.datetime.fromtimestamp(self.time, dt.UTC)
        self.used.append((f"{shown:%H:%M:%S}", name))
        if self.failures:
            self.failures -= 1
            raise RuntimeError("out of memory")

    async def follow(
        self, text: str = TEXT, hours: float = 48, loaded_at: float | None = None
    ) -> list[tuple[str, str]]:
        """Follow the schedule for so long; what was used, and when."""
        self.end = self.time + hours * HOUR
        with pytest.raises(asyncio.CancelledError):
            await run(
                Schedule.parse(text, "UTC"), self.use_model, loaded_at=loaded_at, clock=self.clock, sleep=self.sleep
            )
        return self.used


async def test_every_change_is_made_when_it_is_due() -> None:
    world = World("2026-11-21 12:00")
    assert await world.follow() == [
        ("22:00:00", "small"),
        ("07:00:00", "large-v3-turbo"),
        ("22:00:00", "small"),
        ("07:00:00", "large-v3-turbo"),
    ]
    assert max(world.sleeps) <= LOOK_SECONDS


async def test_a_change_that_came_while_the_first_model_was_loaded_is_made_up() -> None:
    world = World("2026-11-21 07:02")
    assert await world.follow(hours=1, loaded_at=instant("2026-11-21 06:58")) == [("07:02:00", "large-v3-turbo")]
    assert await World("2026-11-21 07:02").follow(hours=1) == []


async def test_a_model_that_fails_is_tried_again_ever_more_seldom(caplog: pytest.LogCaptureFixture) -> None:
    world = World("2026-11-21 21:59")
    world.failures = 7
    used = await world.follow(hours=3)
    assert [name for _, name in used] == ["small"] * 8
    times = [
        dt.timedelta(**dict(zip(("hours", "minutes", "seconds"), map(int, at.split(":")), strict=True)))
        for at, _ in used
    ]
    waits = [(b - a).total_seconds() for a, b in itertools.pairwise(times)]
    expected = [min(LONGEST_RETRY_SECONDS, RETRY_SECONDS * 2**n) for n in range(7)]
    assert [wait % (24 * HOUR) for wait in waits] == expected
    assert len([r for r in caplog.records if "small is not used" in r.getMessage()]) == 7


async def test_a_retry_need_not_wait_for_the_next_look_at_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule_module, "RETRY_SECONDS", 10.0)
    world = World("2026-11-21 21:59")
    world.failures = 2
    assert [at for at, _ in await world.follow(hours=1)] == ["22:00:00", "22:00:10", "22:00:30"]


async def test_the_next_change_comes_although_the_one_before_never_did() -> None:
    world = World("2026-11-21 09:59")
    world.failures = 1_000
    used = await world.follow("10:00=a,10:02=b", hours=0.25)
    assert [name for at, name in used if at < "10:02"] == ["a", "a"]
    assert used[2] == ("10:02:00", "b")
    assert {name for _, name in used[2:]} == {"b"}


async def test_a_machine_that_slept_through_changes_makes_the_last_one() -> None:
    world = World("2026-11-21 12:00")

    async def sleep(seconds: float) -> None:
        if not world.sleeps:
            world.time += 15 * HOUR  # shut at noon, opened at three in the morning
        await World.sleep(world, seconds)

    with pytest.raises(asyncio.CancelledError):
        world.end = world.time + 20 * HOUR
        await run(Schedule.parse(TEXT, "UTC"), world.use_model, clock=world.clock, sleep=sleep)
    assert world.used == [("03:01:00", "small"), ("07:00:00", "large-v3-turbo")]


async def test_a_clock_that_is_set_back_a_little_undoes_no_change() -> None:
    world = World("2026-11-21 06:59")
    steps = iter([0.0, 0.0, -2.0])

    async def sleep(seconds: float) -> None:
        await World.sleep(world, seconds)
        world.time += next(steps, 0.0)

    with pytest.raises(asyncio.CancelledError):
        world.end = world.time + HOUR
        await run(Schedule.parse(TEXT, "UTC"), world.use_model, clock=world.clock, sleep=sleep)
    assert [name for _, name in world.used] == ["large-v3-turbo"]


async def test_a_clock_that_was_wrong_is_followed_when_it_is_right() -> None:
    world = World("2030-01-01 07:00")

    async def sleep(seconds: float) -> None:
        if len(world.sleeps) == 3:
            world.time = instant("2026-11-21 23:00")
            world.end = world.time + 9 * HOUR
        await World.sleep(world, seconds)

    with pytest.raises(asyncio.CancelledError):
        await run(Schedule.parse(TEXT, "UTC"), world.use_model, clock=world.clock, sleep=sleep)
    assert world.used == [("23:01:00", "small"), ("07:00:00", "large-v3-turbo")]


async def test_it_runs_on_the_real_clock_until_it_is_cancelled() -> None:
    used = asyncio.Event()

    async def use_model(_: str) -> None:
        used.set()

    start = time.time()
    schedule = Schedule.parse("00:00=a,12:00=b", "UTC")
    task = asyncio.create_task(run(schedule, use_model, loaded_at=start - 24 * HOUR))
    await asyncio.wait_for(used.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
