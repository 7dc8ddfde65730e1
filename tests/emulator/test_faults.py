"""The fault plan: what it strikes, when, and with which words."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from backends.scripted import marker_audio
from bridge.emulator.faults import STATUSES, Faults, Plan, PlanError, read_plan
from bridge.emulator.server import EmulatorConfig, emulating
from tests.emulator.harness import Client

AUDIO = marker_audio(5)  # 3 s: a word every 0.6 s


def planned(**faults: Any) -> EmulatorConfig:
    return EmulatorConfig(plan=Plan(Faults(**faults)))


async def test_an_abort(client: Client) -> None:
    async with emulating(planned(abort_at=1.0)) as emulator, client.call(emulator.address) as call:
        await call.send(client.config(), *client.audio(AUDIO[: 32_000 + 3_200]))
        heard = await call.rest()
        assert heard.status == ("UNAVAILABLE", "The service is currently unavailable.")
        assert heard.words == ["w0"]


@pytest.mark.parametrize("status", [name for name in STATUSES if name != "OK"])
async def test_every_status_has_its_text(client: Client, status: str) -> None:
    plan = Plan(streams=(Faults(refuse=status), Faults(refuse=status, message="no"), Faults(abort_at=0, status=status)))
    async with emulating(EmulatorConfig(plan=plan)) as emulator:
        code, text = await client.refused(emulator.address, client.config())
        assert code == status
        assert text
        assert await client.refused(emulator.address, client.config()) == (status, "no")
        assert await client.refused(emulator.address, client.config(), *client.audio(AUDIO[:320])) == (code, text)
        await emulator.stats.until(lambda stats: stats.open == 0)
        assert [stream.status for stream in emulator.stats.ended] == [status] * 3


async def test_a_stream_that_ends_early_and_well(client: Client) -> None:
    async with emulating(planned(abort_at=1.0, status="OK")) as emulator, client.call(emulator.address) as call:
        await call.send(client.config(), *client.audio(AUDIO[: 32_000 + 3_200]))
        assert (await call.rest()).status == ("OK", "")


async def test_a_freeze(client: Client) -> None:
    """It takes the audio and the end of it, and never answers; not at the limits of time either."""
    plan = Plan(Faults(freeze_at=1.0))
    async with emulating(EmulatorConfig(plan=plan, speed=200)) as emulator:
        async with client.call(emulator.address) as call:
            await call.send(client.config(), *client.audio(AUDIO))
            await call.call.done_writing()
            for _ in range(3):  # "w0", that as a final, "w1"
                await call.read()
            reading = asyncio.create_task(call.read())
            done, _ = await asyncio.wait({reading}, timeout=1.7)  # the limit of the stream: 1.5 s
            assert not done
            assert [r.alternatives[0].transcript.strip() for r in call.heard.results] == ["w0", "w0", "w1"]
            assert emulator.stats.open == 1
            call.call.cancel()
            await asyncio.wait({reading})
        await emulator.stats.until(lambda stats: stats.open == 0)
        assert emulator.stats.ended[0].audio_seconds == 3


async def test_lag(client: Client) -> None:
    async with emulating(planned(lag=1.0)) as emulator, client.call(emulator.address) as call:
        # The first word's final comes with the audio up to 0.5 s
        await call.send(client.config(interim=False), *client.audio(AUDIO[:44_800]))
        reading = asyncio.create_task(call.read())
        done, _ = await asyncio.wait({reading}, timeout=0.1)
        assert not done
        await call.send(*client.audio(AUDIO[44_800:]))
        await reading
        assert call.heard.words == ["w0"]
        assert (await call.finish()).words == ["w0", "w1", "w2", "w3", "w4"]


async def test_half_close_lag(client: Client) -> None:
    plan = Plan(Faults(half_close_lag=20))
    async with emulating(EmulatorConfig(plan=plan, speed=100)) as emulator:
        loop = asyncio.get_running_loop()
        began = loop.time()
        heard = await client.converse(emulator.address, [client.config(), *client.audio(AUDIO[:9_600])])
        assert heard.words == ["w0"]
        assert 0.19 < loop.time() - began < 2


async def test_the_first_streams_are_refused(client: Client) -> None:
    plan = Plan(Faults(refuse="RESOURCE_EXHAUSTED"), refuse_first=2)
    async with emulating(EmulatorConfig(plan=plan)) as emulator:
        for _ in range(2):
            code, _ = await client.refused(emulator.address, client.config())
            assert code == "RESOURCE_EXHAUSTED"
        assert (await client.converse(emulator.address, [client.config()])).status == ("OK", "")


def test_random_moments() -> None:
    plan = Plan(Faults(lag=1), streams=(Faults(abort_at=7), Faults()), abort_every=10.0, seed=1)
    moments = [plan.of(number).abort_at for number in range(1_000)]
    assert moments[0] == 7
    assert None not in moments
    assert 9 < sum(moment for moment in moments if moment is not None) / len(moments) < 11
    assert moments == [plan.of(number).abort_at for number in range(1_000)]
    assert moments[1:] != [Plan(abort_every=10.0, seed=2).of(number).abort_at for number in range(1, 1_000)]
    assert (plan.of(1).lag, plan.of(2).lag) == (0, 1)


def test_a_plan_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text('[{"abort_at": 2, "status": "INTERNAL", "message": "broken"}, {}, {"refuse": "ABORTED"}]')
    faults = read_plan(path)
    assert faults == (Faults(abort_at=2, status="INTERNAL", message="broken"), Faults(), Faults(refuse="ABORTED"))
    plan = Plan(Faults(lag=1), faults)
    assert [plan.of(number) for number in range(4)] == [*faults, Faults(lag=1)]


@pytest.mark.parametrize(
    "entry",
    [
        1,
        {"nonsense": 1},
        {"abort_at": "1"},
        {"abort_at": -1},
        {"abort_at": True},
        {"status": "NO"},
        {"status": None},
        {"refuse": 5},
        {"lag": None},
        {"message": 5},
    ],
)
def test_plans_that_say_nothing_sensible(tmp_path: Path, entry: Any) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps([{}, entry]))
    with pytest.raises(PlanError, match=r"stream 2: .* (is not one of|should be)"):
        read_plan(path)


@pytest.mark.parametrize("text", ["", "{}", "[1", '"a"'])
def test_files_that_are_no_plan(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(PlanError, match=r"plan\.json"):
        read_plan(path)
    with pytest.raises(PlanError, match="cannot be read"):
        read_plan(tmp_path / "missing.json")
