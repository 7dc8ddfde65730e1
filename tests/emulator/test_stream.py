"""Message order, configs, limits and clocks: every status with Google's text."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from backends.scripted import marker_audio
from bridge.emulator.limits import Limits
from bridge.emulator.server import EmulatorConfig, emulating
from tests.emulator.harness import V1, V2, Client, open_channel

SECOND = marker_audio(2)[:32_000]
MALORDERED = (
    "INVALID_ARGUMENT",
    "Malordered Data Received. Expected audio_content none was set. Send exactly one config, followed by audio data.",
)
TOO_FAST = (
    "OUT_OF_RANGE",
    "Audio data is being streamed too fast/slow. Please stream audio data approximately at real time.",
)
EXHAUSTED = ("RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota).")
STREAM_LIMIT = {
    "v1": ("OUT_OF_RANGE", "Exceeded maximum allowed stream duration of 305 seconds."),
    "v2": ("ABORTED", "Max duration of 5 minutes reached for stream."),
}
AUDIO_TIMEOUT = {
    "v1": (
        "OUT_OF_RANGE",
        "Audio Timeout Error: Long duration elapsed without audio. Audio should be sent close to real time.",
    ),
    "v2": ("ABORTED", "Stream timed out after receiving no more client requests."),
}


def limited(*, speed: float = 1.0, **limits: Any) -> EmulatorConfig:
    return EmulatorConfig(limits=Limits(**limits), speed=speed)


# Order


async def test_one_config_then_audio(client: Client) -> None:
    config, audio = client.config(), client.audio(SECOND)
    async with emulating() as emulator:
        assert await client.refused(emulator.address, *audio[:1]) == MALORDERED
        assert await client.refused(emulator.address, client.empty) == MALORDERED
        assert await client.refused(emulator.address, config, config) == MALORDERED
        assert await client.refused(emulator.address, config, audio[0], config) == MALORDERED
        assert await client.refused(emulator.address, config, client.empty) == MALORDERED
        assert (await client.converse(emulator.address, [])).status == MALORDERED
        assert (await client.converse(emulator.address, [config])).status == ("OK", "")
        await emulator.stats.until(lambda stats: stats.open == 0)
        assert [stream.requests for stream in emulator.stats.ended] == [1, 1, 2, 3, 2, 0, 1]


async def test_the_config_is_kept_as_it_came(client: Client) -> None:
    async with emulating() as emulator:
        config = client.config(language="de-DE")
        await client.converse(emulator.address, [config])
        assert list(emulator.stats.configs) == [type(config).pb(config)]


# Configs


BAD_ENCODING = {
    "v1": "Invalid recognition 'config': bad encoding. The emulator takes LINEAR16 only.",
    "v2": "Invalid recognition 'config': the emulator takes an explicit_decoding_config with LINEAR16 only.",
}


async def test_configs_that_are_wrong(client: Client) -> None:
    async with emulating() as emulator:

        async def text(**asked: Any) -> str:
            code, text = await client.refused(emulator.address, client.config(**asked))
            assert code == "INVALID_ARGUMENT"
            return text

        assert await text(encoding="FLAC") == BAD_ENCODING[client.name]
        assert await text(rate=0) == "Invalid recognition 'config': bad sample rate hertz."
        assert await text(rate=96_000) == "Invalid recognition 'config': bad sample rate hertz."
        assert "one channel" in await text(channels=2)
        assert "language" in await text(language="")


async def test_recognizers_of_v2() -> None:
    place = "projects/p/locations/{}/recognizers/{}"
    async with emulating(EmulatorConfig(location="global")) as emulator:

        async def status(**asked: Any) -> tuple[str, str]:
            async with V2.call(emulator.address) as call:
                await call.send(V2.config(**asked))
                return (await call.finish()).status

        malformed = ("INVALID_ARGUMENT", "Invalid resource field value in the request.")
        assert await status(recognizer="") == malformed
        assert await status(recognizer="projects/p/recognizers/_") == malformed
        assert await status(recognizer=place.format("eu", "_")) == (
            "INVALID_ARGUMENT",
            "Expected resource location to be global, but found eu in resource name.",
        )
        assert (await status(model=""))[0] == "INVALID_ARGUMENT"
        assert await status(recognizer=place.format("global", "mine"), model="", language="") == ("OK", "")
        assert await status(languages=["en-US", "de-DE"]) == ("OK", "")


async def test_several_languages_are_not_taken_everywhere() -> None:
    config = V2.config(recognizer="projects/p/locations/europe-west4/recognizers/_", languages=["en-US", "de-DE"])
    async with emulating() as emulator:
        assert await V2.refused(emulator.address, config) == (
            "INVALID_ARGUMENT",
            "Multiple language recognition is only available in the following locations: eu, global, us.",
        )


# Limits


async def test_a_message_has_25600_bytes_at_most(client: Client) -> None:
    audio = bytes(25_602)
    async with emulating() as emulator:
        heard = await client.converse(emulator.address, [client.config(), *client.audio(audio[:-2], 25_600)])
        assert heard.status == ("OK", "")
        assert await client.refused(emulator.address, client.config(), *client.audio(audio, 25_602)) == (
            "INVALID_ARGUMENT",
            "Audio chunk can be of a a maximum of 25600 bytes. Received audio of 25602 bytes instead.",
        )
        assert emulator.stats.largest_audio == 25_602


async def test_the_longest_stream_by_its_audio(client: Client) -> None:
    async with emulating(limited(stream_seconds=0.9)) as emulator:
        heard = await client.refused(emulator.address, client.config(), *client.audio(SECOND))
        assert heard == STREAM_LIMIT[client.name]


async def test_the_longest_stream_by_the_clock(client: Client) -> None:
    """305 and 300 s, at a clock that runs 1,000 times faster; sends audio all the time."""
    async with emulating(limited(speed=1_000, audio_timeout=280)) as emulator, client.call(emulator.address) as call:
        await call.send(client.config())
        began = asyncio.get_running_loop().time()
        waiting = asyncio.create_task(call.rest())
        while not waiting.done():
            await call.send(*client.audio(bytes(320)))
            await asyncio.wait({waiting}, timeout=0.04)
            if waiting.done():
                break
        assert waiting.result().status == STREAM_LIMIT[client.name]
        assert 0.25 < asyncio.get_running_loop().time() - began < 3


async def test_time_without_audio(client: Client) -> None:
    async with emulating(limited(speed=100)) as emulator:
        assert await client.refused(emulator.address) == AUDIO_TIMEOUT[client.name]
        assert await client.refused(emulator.address, client.config()) == AUDIO_TIMEOUT[client.name]
        heard = await client.refused(emulator.address, client.config(), *client.audio(SECOND))
        assert heard == AUDIO_TIMEOUT[client.name]


async def test_audio_faster_than_real_time(client: Client) -> None:
    config = limited(pace_seconds=0.5, pace_rate=1)
    async with emulating(config) as emulator:
        messages = [client.config(), *client.audio(SECOND[:16_000])]
        assert (await client.converse(emulator.address, messages)).status == ("OK", "")
        assert await client.refused(emulator.address, *messages, *client.audio(SECOND[:3_200])) == TOO_FAST
    async with emulating(limited(pace_seconds=0.5, pace_rate=1, speed=1_000)) as emulator:
        assert (await client.converse(emulator.address, [*messages, *client.audio(SECOND)])).status == ("OK", "")


# Quotas


async def test_streams_at_once(client: Client) -> None:
    async with emulating(limited(max_streams=2)) as emulator:
        async with client.call(emulator.address) as first, client.call(emulator.address) as second:
            await first.send(client.config())
            await second.send(client.config())
            await emulator.stats.until(lambda stats: len(stats.configs) == 2)
            assert await client.refused(emulator.address, client.config()) == EXHAUSTED
        await emulator.stats.until(lambda stats: stats.open == 0)
        assert (await client.converse(emulator.address, [client.config()])).status == ("OK", "")
        assert emulator.stats.peak == 3


async def test_streams_a_minute(client: Client) -> None:
    async with emulating(limited(requests_per_minute=2, speed=100)) as emulator:
        for _ in range(2):
            assert (await client.converse(emulator.address, [client.config()])).status == ("OK", "")
        assert await client.refused(emulator.address, client.config()) == EXHAUSTED
        await asyncio.sleep(0.6)  # the minute
        assert (await client.converse(emulator.address, [client.config()])).status == ("OK", "")


async def test_streams_of_a_connection() -> None:
    """Those beyond wait, unseen, until others end: the trap for which clients need several connections."""
    async with emulating(limited(streams_per_connection=2)) as emulator:
        channels = [open_channel(emulator.address, number) for number in range(2)]
        try:
            async with V1.call(channels[0]) as first, V1.call(channels[0]) as second:
                await first.send(V1.config())
                await second.send(V1.config())
                await emulator.stats.until(lambda stats: len(stats.configs) == 2)
                third = asyncio.create_task(V1.converse(channels[0], [V1.config()]))
                assert (await V1.converse(channels[1], [V1.config()])).status == ("OK", "")
                assert emulator.stats.opened == 3
                assert not third.done()
                await first.finish()
                assert (await third).status == ("OK", "")
        finally:
            for channel in channels:
                await channel.close()
        await emulator.stats.until(lambda stats: stats.open == 0)
        assert (emulator.stats.peak, emulator.stats.peak_connections) == (3, 2)


@pytest.mark.parametrize("seconds", [0.0, 0.02])
async def test_cancelling_leaves_nothing(client: Client, seconds: float) -> None:
    async with emulating() as emulator:
        async with client.call(emulator.address) as call:
            await call.send(client.config(), *client.audio(SECOND))
            await asyncio.sleep(seconds)
        await emulator.stats.until(lambda stats: stats.opened == 1 and stats.open == 0)
        assert [stream.status for stream in emulator.stats.ended] == ["CANCELLED"]
