"""What Google is asked for, and when: nothing beyond the quota, and no stream for those who do not speak."""

from __future__ import annotations

import asyncio

import pytest

from backends.scripted import marker_audio
from bridge.client import SessionError, connect
from bridge.emulator.faults import Faults, Plan
from bridge.emulator.server import EmulatorConfig
from tests.google.harness import road, spoken, talking

BOTH = ("google", "google-threads")


async def refused(url: str) -> str:
    """The code with which a new session is refused."""
    with pytest.raises(SessionError) as caught:
        async with connect(f"ws{url.removeprefix('http')}/v1/stream"):
            pass
    return caught.value.code


@pytest.mark.parametrize("engine", BOTH)
async def test_as_many_sessions_as_google_allows_streams(engine: str) -> None:
    async with road(engine, env={"MAX_STREAMS": "2"}) as (url, emulator):
        async with talking(url) as first, talking(url) as second:
            for talk in (first, second):
                await talk.say(marker_audio(3))
            assert await refused(url) == "at_capacity"
            await first.until_words(2)
            await second.until_words(2)
            assert emulator.stats.opened == 2
        for talk in (first, second):
            talk.heard.assert_whole(3)
        (await spoken(url, marker_audio(2))).assert_whole(2)
        assert emulator.stats.opened == 3


@pytest.mark.parametrize("engine", BOTH)
async def test_open_sessions_may_use_what_new_ones_may_not(engine: str) -> None:
    """Ten requests a minute, nine of them for new sessions: the tenth renews the stream of the last one."""
    plan = Plan(streams=(*(Faults(),) * 8, Faults(abort_at=1.5)))
    async with road(engine, "v1", EmulatorConfig(plan=plan), env={"REQUESTS_PER_MINUTE": "10"}) as (url, emulator):
        await asyncio.gather(*(spoken(url, marker_audio(1)) for _ in range(8)))
        async with talking(url) as last:
            await last.say(marker_audio(2))
            await last.until_words(1)
            assert await refused(url) == "at_capacity"
            assert emulator.stats.opened == 9
            await last.say(marker_audio(3, first=2))
        last.heard.assert_whole(5)
        assert emulator.stats.opened == 10
        assert await refused(url) == "at_capacity"
        assert emulator.stats.opened == 10


async def test_google_counts_otherwise() -> None:
    """The emulator's own quota is the smaller one: a session that is let in waits until there is room."""
    limits = EmulatorConfig().limits
    config = EmulatorConfig(limits=type(limits)(max_streams=1))
    async with road("google", "v1", config) as (url, emulator):
        async with talking(url) as first:
            await first.say(marker_audio(3))
            await first.until_words(2)
            async with talking(url) as second:
                await second.say(marker_audio(2))
                await emulator.stats.until(lambda stats: stats.opened >= 2 and stats.open == 1)
                await first.client.stop()
        first.heard.assert_whole(3)
        second.heard.assert_whole(2)


@pytest.mark.parametrize("engine", BOTH)
async def test_no_stream_for_who_does_not_speak(engine: str) -> None:
    async with road(engine, env={"IDLE_SECONDS": "0.2"}) as (url, emulator):
        async with talking(url) as silent:
            async with talking(url) as talk:
                await talk.say(marker_audio(2))
                await emulator.stats.until(lambda stats: stats.open == 1)
                await emulator.stats.until(lambda stats: stats.open == 0)
                assert talk.heard.text == "w0 w1"
                await talk.say(marker_audio(2, first=2))
                await emulator.stats.until(lambda stats: stats.open == 1)
                await emulator.stats.until(lambda stats: stats.open == 0)
            talk.heard.assert_whole(4)
            assert emulator.stats.opened == 2
        assert silent.heard.codes == []
        assert silent.heard.closed.code == "stopped"
        assert emulator.stats.opened == 2
        assert [stream.status for stream in emulator.stats.ended] == ["OK", "OK"]


@pytest.mark.parametrize("engine", BOTH)
async def test_a_client_that_leaves_takes_its_stream_along(engine: str) -> None:
    async with road(engine) as (url, emulator):
        async with connect(f"ws{url.removeprefix('http')}/v1/stream") as client:
            await client.send(marker_audio(2))
            await emulator.stats.until(lambda stats: stats.open == 1)
        await emulator.stats.until(lambda stats: stats.open == 0)
        assert [stream.status for stream in emulator.stats.ended] == ["OK"], "who leaves says `stop`"
