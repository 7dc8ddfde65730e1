"""The whole road on real speech: a file, the client, the server, PocketSphinx, and the words that come back."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge.app import serving
from bridge.audio.files import open_audio
from bridge.client import connect
from bridge.protocols.native import FinalMessage, PartialMessage, ServerMessage, StartMessage
from bridge.settings import Settings
from bridge.transcript import word_errors
from tests.speech import RECORDINGS, SAMPLES, manifest

pytest.importorskip("pocketsphinx")

RMS = [name for name, entry in manifest().items() if entry["voice"] == "rms" and entry["sample_rate"] >= 16_000]
NOT_CLEAN = ("noisy.flac", "long.flac")  # the long one takes a minute, bench.accuracy has it


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with serving(Settings.load({}, None, port=0), {}) as address:
        yield address.replace("http", "ws") + "/v1/stream"


async def streamed(url: str, path: Path, milliseconds: int = 100) -> list[ServerMessage]:
    """Every message for a file that is sent as fast as the server takes it."""
    import asyncio

    with open_audio(str(path)) as source:
        audio = b"".join(source.chunks(milliseconds))
        start = StartMessage(sample_rate=source.format.sample_rate, channels=source.format.channels)
        size = source.format.frame_bytes * source.format.sample_rate * milliseconds // 1_000
    async with connect(url, start) as client, asyncio.TaskGroup() as group:

        async def send() -> None:
            for at in range(0, len(audio), size):
                await client.send(audio[at : at + size])
            await client.stop()

        group.create_task(send())
        return [message async for message in client]


def text(messages: list[ServerMessage]) -> str:
    return " ".join(m.text for m in messages if isinstance(m, FinalMessage))


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_clean_samples_are_recognized_live(url: str) -> None:
    errors = words = 0
    for name in RMS:
        if name in NOT_CLEAN:
            continue
        said = manifest()[name]["transcript"]
        heard = text(await streamed(url, SAMPLES / name))
        wrong, count = word_errors(said, heard)
        errors, words = errors + wrong, words + count
        assert heard.split()[-1] == said.split()[-1], f"{name}: the last word is missing"
    assert words > 200
    assert errors / words <= 0.05


async def test_partials_grow_into_the_final(url: str) -> None:
    messages = await streamed(url, SAMPLES / "hello.flac")
    final = next(m for m in messages if isinstance(m, FinalMessage))
    partials = [m for m in messages if isinstance(m, PartialMessage)]
    assert partials, "no text while it was spoken"
    assert final.text == manifest()["hello.flac"]["transcript"]
    assert [w.text for w in final.words] == final.text.split()
    spoken = manifest()["hello.flac"]["utterances"][0]
    assert final.words[0].start == pytest.approx(spoken["start"], abs=0.2)
    assert final.words[-1].end == pytest.approx(spoken["end"], abs=0.2)


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_real_recordings_are_heard_as_well_as_the_engine_can(url: str) -> None:
    """At most four points above the same engine's decoding of each whole file."""
    import pocketsphinx

    readme = RECORDINGS / "README.md"
    if not readme.exists():
        pytest.skip("there are no real recordings beside the project")
    engine = pocketsphinx.Decoder(loglevel="FATAL")
    cold = engine.get_cmn(False)
    live = whole = words = 0
    table = re.findall(r"^\| (\S+\.wav) \| 16 kHz \| ([a-z' /]+) \|$", readme.read_text(), re.MULTILINE)
    for name, transcript in table:
        said = transcript.replace("/", " ")
        with open_audio(str(RECORDINGS / name)) as source:
            audio = b"".join(source.chunks(1_000))
        engine.set_cmn(cold)
        engine.start_utt()
        engine.process_raw(audio, full_utt=True)
        engine.end_utt()
        hypothesis = engine.hyp()
        live += word_errors(said, text(await streamed(url, RECORDINGS / name)))[0]
        errors, count = word_errors(said, hypothesis.hypstr if hypothesis else "")
        whole, words = whole + errors, words + count
    assert words > 50
    assert (live - whole) / words <= 0.04
