"""`bench.frontend` in short: what it sends is what it says, sessions are measured, live clients see the server."""

from __future__ import annotations

import time

import pytest

from bench import frontend
from bench.frontend_live import Client, Seen
from bench.frontend_streams import FORMATS, RECORDINGS, streams
from bridge.audio.decode import StreamDecoder
from bridge.audio.vad.silero import missing
from tests.wire import serve

SECONDS = 2.0


@pytest.mark.parametrize("name", FORMATS)
def test_a_stream_holds_the_audio_that_it_should(name: str) -> None:
    coded = streams(name, SECONDS)
    assert len(coded) == RECORDINGS
    decoder, heard = StreamDecoder(coded[0].audio, 16_000), 0
    for message in coded[0].messages:
        decoder.push(message)
        while lanes := decoder.read():
            heard += len(lanes[0])
    assert len(coded[0].messages) * coded[0].milliseconds == 1_000 * SECONDS
    assert heard / 32_000 == pytest.approx(SECONDS, abs=0.2)  # less what decoder and resampler hold


@pytest.mark.parametrize("variant", frontend.VARIANTS, ids=lambda variant: variant.name)
def test_every_variant_has_its_cost(variant: frontend.Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    if variant.detector == "silero" and (absent := missing()):
        pytest.skip(f"needs {absent}")
    monkeypatch.setattr(frontend, "WARM_UP", 0.5)
    cost = frontend.cost(streams("μ-law 8 kHz", 0.5 + SECONDS), 3, SECONDS, variant, rounds=1)
    assert cost.per_second > 0
    assert 0 < cost.given <= 1.01


async def test_a_live_client_sees_partials_and_onsets() -> None:
    seen = Seen()
    async with serve({}, backend="scripted", vad="webrtc") as url:
        stream = streams("Opus 48 kHz, 20 ms", SECONDS)[0]
        await Client(f"ws{url.removeprefix('http')}/v1/stream", stream, time.perf_counter(), seen).run()
    assert (seen.completed, seen.failures) == (1, [])
    assert seen.missing < 0.05
    assert all(0 <= lag < SECONDS for lag in seen.partials)
    assert len(seen.partials) >= 2
