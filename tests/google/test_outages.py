"""Google goes away, hangs or lags in mid-speech, and the client notices nothing.

How long an outage lasts is one second here; `STT_TEST_OUTAGE_SECONDS=20` makes it as long as the issue asks for.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Final

import pytest

from backends.scripted import marker_audio
from bench.chaos.supervisor import free_port
from bridge.emulator.faults import Faults, Plan
from bridge.emulator.server import EmulatorConfig, emulating
from tests.google.harness import always, in_order, journal, road, server, spoken, talking

OUTAGE: Final = float(os.environ.get("STT_TEST_OUTAGE_SECONDS", "1"))
ANSWER: Final = 0.3
"""Seconds that a stream may leave speech unanswered in these tests."""
IMPATIENT: Final = {"ANSWER_SECONDS": str(ANSWER)}
NOTICED: Final = 2 * ANSWER + 1.0 + 1.0
"""Seconds in which a stream that hangs must be given up: so long without an answer, a quiet moment to end it, so long
for its end; and one for a machine that is busy."""
BOTH: Final = ("google", "google-threads")
BOTH_APIS: Final = (("google", "v2"), ("google-threads", "v1"))


@pytest.mark.timeout(60 + 3 * OUTAGE)
@pytest.mark.parametrize(("engine", "api"), BOTH_APIS)
async def test_an_outage(engine: str, api: str) -> None:
    words = 5 + round(3 * OUTAGE / 0.6)
    async with road(engine, api) as (url, emulator), talking(url, seconds=30 + OUTAGE) as talk:
        saying = asyncio.create_task(talk.say(marker_audio(words), speed=3))
        await talk.until_words(2)
        await emulator.kill()
        await asyncio.sleep(OUTAGE)
        await emulator.start()
        await asyncio.wait_for(saying, 30 + OUTAGE)
    talk.heard.assert_whole(words)


@pytest.mark.parametrize("engine", BOTH)
async def test_it_comes_up_after_the_client(engine: str) -> None:
    port = free_port()
    async with server(f"127.0.0.1:{port}", engine) as url:
        with journal() as log:
            talking_to = asyncio.create_task(spoken(url, marker_audio(6), speed=4))
            await log.until(2)
            async with emulating(EmulatorConfig(port=port)):
                heard = await asyncio.wait_for(talking_to, 20)
    heard.assert_whole(6)


@pytest.mark.parametrize("engine", BOTH)
async def test_it_refuses_six_times_in_a_row(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.session.channel.BACKOFF_CAP", 0.2)
    config = EmulatorConfig(plan=Plan(usual=Faults(refuse="UNAVAILABLE"), refuse_first=6))
    async with road(engine, "v1", config) as (url, emulator):
        heard = await spoken(url, marker_audio(5))
        assert emulator.stats.opened == 7
    heard.assert_whole(5)


@pytest.mark.parametrize("engine", BOTH)
async def test_it_ends_streams_in_mid_speech_as_if_it_had_heard_everything(engine: str) -> None:
    """Paced, so that the client's `stop` is known to the bridge, but not yet to Google, when a stream ends."""
    config = in_order(*(Faults(abort_at=at, status="OK") for at in (2.05, 1.5)))
    with journal() as log:
        async with road(engine, "v1", config, env={"REPLAY_SPEED": "4"}) as (url, emulator):
            heard = await spoken(url, marker_audio(6))
            assert emulator.stats.opened >= 3
    heard.assert_whole(6)
    # A write that is under way hides the status from the asynchronous driver.
    codes = {record.getMessage().split(": ")[1] for record in log.records}
    assert codes <= {"ended_early", "unknown_status"}


# It hangs


@pytest.mark.parametrize(("engine", "api"), BOTH_APIS)
async def test_one_stream_that_hangs_is_replaced(engine: str, api: str) -> None:
    config = in_order(Faults(freeze_at=1.5))
    with journal() as log:
        async with road(engine, api, config, env=IMPATIENT) as (url, emulator), talking(url) as talk:
            saying = asyncio.create_task(talk.say(marker_audio(8), speed=3))
            await talk.until_words(2)
            began = asyncio.get_running_loop().time()
            await saying
            await log.until(1)
            await emulator.stats.until(lambda stats: stats.opened >= 2)
    talk.heard.assert_whole(8)
    assert "stalled" in log.records[0].getMessage()
    assert log.times[0] - began < NOTICED


@pytest.mark.parametrize("engine", BOTH)
async def test_the_whole_server_hangs(engine: str) -> None:
    """The connection stays, and so does the next stream that is opened on it: until the server goes on."""
    with journal() as log:
        async with road(engine, "v1", env=IMPATIENT) as (url, emulator), talking(url) as talk:
            saying = asyncio.create_task(talk.say(marker_audio(10), speed=3))
            await talk.until_words(2)
            emulator.freeze()
            began = asyncio.get_running_loop().time()
            await log.until(1)
            assert log.times[0] - began < NOTICED
            await emulator.stats.until(lambda stats: stats.opened == 2)
            emulator.thaw()
            await saying
    talk.heard.assert_whole(10)
    assert "stalled" in log.records[0].getMessage()


@pytest.mark.parametrize("engine", BOTH)
async def test_it_hangs_after_the_end_of_the_audio(engine: str) -> None:
    config = in_order(Faults(half_close_lag=3600))
    with journal() as log:
        async with road(engine, "v1", config, env=IMPATIENT) as (url, _):
            began = time.monotonic()
            heard = await spoken(url, marker_audio(4))
            assert time.monotonic() - began < 4
    heard.assert_whole(4)
    assert "stalled" in log.records[0].getMessage()


# It is slow


@pytest.mark.parametrize(("engine", "api"), BOTH_APIS)
async def test_results_that_are_late(engine: str, api: str) -> None:
    """Slower than anybody could like, and yet healthy: no stream is given up for it."""
    with journal() as log:
        async with road(engine, api, always(Faults(lag=1.5, half_close_lag=0.3))) as (url, emulator):
            heard = await asyncio.gather(*(spoken(url, marker_audio(8, first=100 * i), speed=8) for i in range(4)))
            assert emulator.stats.opened == 4
    for i, one in enumerate(heard):
        one.assert_whole(8, 100 * i)
    assert not log.records


async def test_late_results_of_streams_that_end_all_the_time() -> None:
    """Results still on their way when a stream ends are heard again from the audio, not lost."""
    config = EmulatorConfig(
        plan=Plan(usual=Faults(lag=1.0), streams=tuple(Faults(abort_at=t, lag=1.0) for t in (3, 2, 4)))
    )
    async with road("google", "v1", config) as (url, _):
        heard = await spoken(url, marker_audio(15), speed=10)
    heard.assert_whole(15)
