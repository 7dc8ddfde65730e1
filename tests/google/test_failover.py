"""Google fails in mid-speech, and another engine goes on: real speech over the whole road, every word once."""

from __future__ import annotations

import pytest

from bridge.emulator.faults import Faults, Plan
from bridge.emulator.server import EmulatorConfig
from bridge.protocols.native import FinalMessage, StartMessage, WarningMessage
from tests.google.harness import road, spoken
from tests.speech import SAMPLES, manifest, pcm
from tests.wire import get, metric

SAMPLE = "hello.flac"


@pytest.mark.parametrize("engine", ["google", "google-threads"])
@pytest.mark.parametrize(
    ("faults", "code"),
    [
        (Faults(refuse="UNAVAILABLE"), "unavailable"),
        (Faults(refuse="PERMISSION_DENIED"), "denied"),
        (Faults(abort_at=1.2), "unavailable"),
        (Faults(freeze_at=0.9), "stalled"),
    ],
    ids=["refused", "denied", "aborted", "frozen"],
)
async def test_pocketsphinx_goes_on(engine: str, faults: Faults, code: str) -> None:
    sample = manifest()[SAMPLE]
    config = EmulatorConfig(mode="speech", backend="pocketsphinx", env={}, plan=Plan(usual=faults))
    env = {"ANSWER_SECONDS": "0.5"}
    async with road(f"{engine},pocketsphinx", "v1", config, env=env, stall_seconds=3) as (url, _):
        heard = await spoken(url, pcm(SAMPLES / SAMPLE), start=StartMessage(sample_rate=sample["sample_rate"]))
        metrics = (await get(f"{url}/metrics")).body
        ready = (await get(f"{url}/readyz")).json
    assert heard.text == sample["transcript"]
    (warning,) = [m for m in heard.messages if isinstance(m, WarningMessage)]
    assert (warning.code, warning.message) == ("backend_changed", f"{engine} failed ({code}); pocketsphinx goes on")
    assert heard.closed.code == "stopped"
    assert heard.closed.finalized == heard.closed.received
    ends = [m.end for m in heard.messages if isinstance(m, FinalMessage)]
    assert ends == sorted(ends)
    assert metric(metrics, "stt_backend_moves_total", **{"from": engine, "to": "pocketsphinx"}) == 1
    finals = sum(isinstance(m, FinalMessage) for m in heard.messages)
    counted = [metric(metrics, "stt_final_latency_seconds_count", backend=name) for name in (engine, "pocketsphinx")]
    assert sum(counted) == finals
    assert counted[1] > 0
    assert [b["name"] for b in ready["backends"]] == [engine, "pocketsphinx"]
