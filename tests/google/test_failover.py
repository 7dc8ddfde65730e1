"""Google fails in mid-speech, and another engine goes on: real speech over the whole road, every word once."""

from __future__ import annotations

import pytest

from bridge.emulator.faults import Faults, Plan
from bridge.emulator.server import EmulatorConfig
from bridge.protocols.native import FinalMessage, StartMessage, WarningMessage
from tests.google.harness import road, spoken
from tests.speech import SAMPLES, manifest, pcm
from tests.wire import get, metric


@pytest.mark.parametrize("engine", ["google", "google-threads"])
@pytest.mark.parametrize(
    ("name", "faults", "codes"),
    [
        ("hello.flac", Faults(refuse="UNAVAILABLE"), ["unavailable"]),
        ("hello.flac", Faults(refuse="PERMISSION_DENIED"), ["denied"]),
        ("hello.flac", Faults(abort_at=1.2), ["unavailable", "unknown_status"]),  # Google's client may lose a status
        ("hello.flac", Faults(freeze_at=0.9), ["stalled"]),
        ("demo.flac", Faults(abort_at=9.0), ["unavailable", "unknown_status"]),
    ],
    ids=["refused", "denied", "aborted", "frozen", "aborted after finals"],
)
async def test_pocketsphinx_goes_on(engine: str, name: str, faults: Faults, codes: list[str]) -> None:
    sample = manifest()[name]
    config = EmulatorConfig(mode="speech", backend="pocketsphinx", env={}, plan=Plan(usual=faults))
    env = {"ANSWER_SECONDS": "1" if codes == ["stalled"] else "20"}
    async with road(f"{engine},pocketsphinx", "v1", config, env=env) as (url, _):
        heard = await spoken(url, pcm(SAMPLES / name), start=StartMessage(sample_rate=sample["sample_rate"]))
        metrics = (await get(f"{url}/metrics")).body
        ready = (await get(f"{url}/readyz")).json
    assert heard.text == sample["transcript"]
    (warning,) = [m for m in heard.messages if isinstance(m, WarningMessage)]
    assert warning.code == "backend_changed"
    assert warning.message in [f"{engine} failed ({code}); pocketsphinx goes on" for code in codes]
    assert heard.closed.code == "stopped"
    assert heard.closed.finalized == heard.closed.received
    ends = [m.end for m in heard.messages if isinstance(m, FinalMessage)]
    assert ends == sorted(ends)
    assert metric(metrics, "stt_backend_moves_total", **{"from": engine, "to": "pocketsphinx"}) == 1
    finals = sum(isinstance(m, FinalMessage) for m in heard.messages)
    counted = [
        metric(metrics, "stt_final_latency_seconds_count", backend=backend) for backend in (engine, "pocketsphinx")
    ]
    assert sum(counted) == finals
    assert counted[1] > 0
    assert [b["name"] for b in ready["backends"]] == [engine, "pocketsphinx"]
