"""Whether the server behind is ready: at start, and from then on."""

from __future__ import annotations

import time
from typing import Any

import pytest

from backends.base import BackendError, Fault
from bench.chaos.supervisor import free_port
from tests import wire
from tests.backends.relay.harness import CONFIG, heard, loaded, relay, until
from tests.client.fake import FakeServer, Plan


async def test_how_much_it_carries() -> None:
    async with wire.serve(wire.engine_env(max_streams=3)) as url:
        async with loaded(url) as backend:
            assert backend.capabilities.max_streams == 3
        async with loaded(url, max_streams=2) as backend:
            assert backend.capabilities.max_streams == 2


async def test_one_that_is_full_and_has_room_again() -> None:
    async with wire.serve(wire.engine_env(max_streams=1)) as url, loaded(url) as backend:
        async with wire.Wire.stream(url, start={"encoding": "pcm_s16le"}) as other:
            await other.until("ready")
            await until(lambda: backend.refusal() is not None)
            assert "at_capacity" in (backend.refusal() or "")
            with pytest.raises(BackendError) as caught:
                await heard(relay(url, retry_seconds=0), b"\0\0")
            assert caught.value.code == "overloaded"
            await other.say({"type": "stop"})
            await other.finish()
        await until(lambda: backend.refusal() is None)


async def test_a_full_one_takes_our_key_all_the_same() -> None:
    start = {"encoding": "pcm_s16le"}
    async with wire.serve(wire.engine_env(max_streams=1)) as url, wire.Wire.stream(url, start=start) as other:
        await other.until("ready")
        began = time.monotonic()
        async with loaded(url, load_seconds=5) as backend:
            assert time.monotonic() - began < 2
            assert backend.refusal() is not None


async def test_a_refusal_keeps_others_away_until_it_is_asked_again() -> None:
    server = FakeServer(Plan(), Plan(refuse="at_capacity"))
    async with server.serving() as url, loaded(url, retry_seconds=0, health_seconds=0.3) as backend:
        with pytest.raises(BackendError, match="at_capacity"):
            await heard(backend, b"\0\0")
        assert backend.refusal() is not None
        await until(lambda: backend.refusal() is None)


async def test_one_that_comes_up_later(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    async with loaded(f"ws://127.0.0.1:{port}", load_seconds=0.2) as backend:
        assert "does not answer" in (backend.refusal() or "")
        assert "sessions are refused until it is" in caplog.text
        assert backend.progress is None
        async with wire.serve(port=port):
            await until(lambda: backend.refusal() is None)
        await until(lambda: backend.refusal() is not None)
    told = [record.getMessage().partition(" takes ")[2] for record in caplog.records]
    again = told.index("sessions again")
    assert [why for why in told[again + 1 :] if why.startswith("no sessions: ")]


@pytest.mark.parametrize("options", [{}, {"api_key": "wrong"}, {"api_key": "wrong", "pass_authorization": True}])
async def test_a_key_that_is_refused_stops_the_start(options: dict[str, Any]) -> None:
    async with wire.serve(api_keys="sesame") as url:
        with pytest.raises(BackendError, match="STT_RELAY_API_KEY") as caught:
            async with loaded(url, **options):
                pass
    assert (caught.value.code, caught.value.fault) == ("unauthenticated", Fault.OPERATOR)
    assert "wrong" not in str(caught.value).replace("is wrong", "")


@pytest.mark.parametrize("options", [{"api_key": "sesame"}, {"pass_authorization": True}])
async def test_a_key_that_is_taken_or_comes_with_the_callers(options: dict[str, Any]) -> None:
    async with wire.serve(api_keys="sesame") as url, loaded(url, **options) as backend:
        assert backend.refusal() is None


async def test_a_server_that_only_speaks_the_protocol() -> None:
    server = FakeServer()
    async with server.serving() as url, loaded(url) as backend:
        assert backend.refusal() is None
        assert backend.capabilities.max_streams is None
        assert server.starts[0]["store"] is False  # the first was only to see whether it can be opened


async def test_keys_in_the_clear_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    async with loaded("ws://192.0.2.1:9", api_key="sesame", load_seconds=0, connect_seconds=0.1):
        assert "in the clear" in caplog.text
        assert "sesame" not in caplog.text


async def test_its_metrics() -> None:
    server = FakeServer(Plan(), Plan(after_audio=1_600))
    async with server.serving() as url, loaded(url) as backend:
        await heard(backend, bytes(16_000), CONFIG)
        samples = {s.name: s.value for c in backend.collectors for m in c.collect() for s in m.samples}
    assert samples["stt_relay_ready"] == 1
    assert samples["stt_relay_interruptions_total"] == samples["stt_relay_resumes_total"] == 1
