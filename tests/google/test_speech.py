"""Real speech over the whole road: a file, the client, the server, Google's API as the emulator speaks it, text."""

from __future__ import annotations

import pytest

from bridge.emulator.server import EmulatorConfig
from bridge.protocols.native import FinalMessage, StartMessage
from tests.google.harness import road, spoken
from tests.speech import SAMPLES, manifest, pcm


@pytest.mark.parametrize(("engine", "api"), [("google", "v2"), ("google-threads", "v1")])
async def test_a_sample(engine: str, api: str) -> None:
    name = "hello.flac"
    sample = manifest()[name]
    config = EmulatorConfig(mode="speech", backend="pocketsphinx", env={})
    async with road(engine, api, config) as (url, emulator):
        heard = await spoken(url, pcm(SAMPLES / name), start=StartMessage(sample_rate=sample["sample_rate"]))
        assert [stream.api for stream in emulator.stats.ended] == [api]
    assert heard.text == sample["transcript"]
    assert heard.codes == []
    words = [word for message in heard.messages if isinstance(message, FinalMessage) for word in message.words]
    assert " ".join(word.text for word in words) == sample["transcript"]
    said = sample["utterances"]
    assert words[0].start == pytest.approx(said[0]["start"], abs=0.3)
    assert words[-1].end == pytest.approx(said[-1]["end"], abs=0.3)
