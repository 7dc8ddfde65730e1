"""The composition root: what it refuses to serve, and how a server's life ends."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from prometheus_client import Gauge
from websockets.asyncio.client import connect

from backends import registry
from backends.base import AsyncBackend, BackendError, Capabilities, Fault, RecognitionConfig, Result
from backends.scripted import ScriptedBackend
from bridge.app import (
    address,
    check_certificate,
    check_exposure,
    make_bridge,
    make_engines,
    misspellings,
    serving,
    voice_policy,
)
from bridge.settings import Settings, SettingsError
from bridge.transports.server import listen
from tests.wire import get, metric


def settings(**overrides: object) -> Settings:
    return Settings.load({}, None, **({"port": 0, "backend": "scripted"} | overrides))


class Backend(AsyncBackend):
    """An engine whose loading a test decides."""

    name: ClassVar[str] = "scripted"
    loading: ClassVar[asyncio.Event]

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities()

    async def recognize(self, config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        async for _ in audio:
            pass
        yield Result("", True, 0, 0)


@pytest.mark.parametrize(
    ("host", "keys", "insecure", "served"),
    [
        ("127.0.0.1", (), False, True),
        ("::1", (), False, True),
        ("localhost", (), False, True),
        ("0.0.0.0", (), False, False),
        ("192.0.2.1", (), False, False),
        ("speech.example", (), False, False),
        ("0.0.0.0", ("key",), False, True),
        ("0.0.0.0", (), True, True),
    ],
)
def test_strangers_are_served_only_on_purpose(host: str, keys: tuple[str, ...], insecure: bool, served: bool) -> None:
    chosen = settings(host=host, api_keys=keys, insecure=insecure)
    if served:
        check_exposure(chosen)
    else:
        with pytest.raises(SettingsError, match=r"STT_HOST.*STT_API_KEYS"):
            check_exposure(chosen)


def test_an_unknown_backend_is_named_with_those_there_are() -> None:
    with pytest.raises(SettingsError, match=r"STT_BACKEND: 'nope' is not one of google, .*pocketsphinx, "):
        make_engines(settings(backend="nope"), {})


def test_several_backends_in_their_order() -> None:
    pool = make_engines(settings(backend="scripted-threads , scripted", breaker_failures=7), {})
    assert [engine.name for engine in pool.engines] == ["scripted-threads", "scripted"]
    assert pool.rules.failures == 7
    with pytest.raises(SettingsError, match="STT_BACKEND: 'nope' is not one of"):
        make_engines(settings(backend="scripted,nope"), {})


def test_backends_without_a_sample_rate_in_common(monkeypatch: pytest.MonkeyPatch) -> None:
    class Narrow(ScriptedBackend):
        @property
        def capabilities(self) -> Capabilities:
            return Capabilities(sample_rates=(8_000,))

    classes = {"narrow": Narrow, "scripted": ScriptedBackend}
    monkeypatch.setattr(registry, "load_class", classes.__getitem__)
    with pytest.raises(SettingsError, match=r"STT_BACKEND: 'scripted,narrow' is not allowed.*scripted: 16000 Hz"):
        make_engines(settings(backend="scripted,narrow"), {})


def test_the_gate_is_on_if_one_of_several_is_metered(monkeypatch: pytest.MonkeyPatch) -> None:
    class Metered(ScriptedBackend):
        @property
        def capabilities(self) -> Capabilities:
            return Capabilities(metered=True)

    classes = {"metered": Metered, "scripted": ScriptedBackend}
    monkeypatch.setattr(registry, "load_class", classes.__getitem__)
    chosen = settings(backend="scripted,metered", vad="webrtc")
    assert voice_policy(chosen, make_engines(chosen, {})).gate_seconds == chosen.gate_seconds
    chosen = settings(backend="scripted", vad="webrtc")
    assert voice_policy(chosen, make_engines(chosen, {})).gate_seconds is None


def test_options_of_every_backend_of_the_list_are_checked() -> None:
    chosen = settings(backend="scripted,scripted-threads")
    env = {"STT_SCRIPTED_THREADS_MOOD": "x"}
    assert misspellings(chosen, env) == [
        "STT_SCRIPTED_THREADS_MOOD is not a setting; did you mean STT_SCRIPTED_THREADS_MODE?"
    ]


def test_a_bad_option_of_the_engine_is_named() -> None:
    with pytest.raises(SettingsError, match="STT_SCRIPTED_MAX_STREAMS: '0' is not allowed"):
        make_bridge(settings(), {"STT_SCRIPTED_MAX_STREAMS": "0"})


def test_a_misspelled_option_is_noticed_unless_its_engine_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sharing(ScriptedBackend):
        @classmethod
        def settings_name(cls) -> str:
            return "shared"

    classes = {"sharing": Sharing, "scripted": ScriptedBackend}
    loaded = []

    def load_class(name: str) -> type[AsyncBackend]:
        loaded.append(name)
        if name not in classes:
            raise BackendError("no such package", code="not_installed", fault=Fault.OPERATOR)
        return classes[name]

    monkeypatch.setattr(registry, "names", lambda: ["sharing", "scripted", "absent", "unwanted"])
    monkeypatch.setattr(registry, "load_class", load_class)
    env = {"STT_SHARED_MODE": "script", "STT_SCRIPTED_MODUS": "script", "STT_ABSENT_MODUS": "x", "STT_PORT": "1"}
    assert misspellings(settings(backend="sharing"), env) == [
        "STT_SCRIPTED_MODUS is not a setting; did you mean STT_SCRIPTED_MODE?"
    ]
    assert loaded == ["sharing", "scripted", "absent"]


def test_what_is_no_certificate_is_refused_before_anything_is_served(tmp_path: Path) -> None:
    cert = tmp_path / "cert.pem"
    cert.write_text("not a certificate")
    with pytest.raises(SettingsError, match="STT_TLS_CERT"):
        check_certificate(settings(tls_cert=cert, tls_key=cert))


async def test_a_stream_over_tls(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl, which makes the test's certificate, is not installed")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    making = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    await asyncio.to_thread(subprocess.run, making + names, check=True, capture_output=True)
    async with serving(settings(tls_cert=cert, tls_key=key), {}) as url:
        assert url.startswith("https://")
        trusting = ssl.create_default_context(cafile=cert)
        async with connect(url.replace("https", "wss") + "/v1/stream?words=false", ssl=trusting) as socket:
            assert '"ready"' in str(await socket.recv())
            await socket.send('{"type":"stop"}')
            assert '"stopped"' in [str(m) async for m in socket][-1]


async def test_a_backend_that_does_not_load_ends_the_server_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Backend):
        async def load(self) -> None:
            raise BackendError("the model is missing", code="unavailable", fault=Fault.OPERATOR)

    monkeypatch.setattr(registry, "load_class", lambda _: Broken)
    with pytest.raises(ExceptionGroup) as caught:
        async with serving(settings(), {}):
            pytest.fail("it must not get this far")
    assert caught.group_contains(BackendError, match="the model is missing")


async def test_while_it_loads_it_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = asyncio.Event()

    class Slow(Backend):
        @property
        def progress(self) -> str | None:
            return None if loads.is_set() else "downloading small: 43 %"

        async def load(self) -> None:
            await loads.wait()

    monkeypatch.setattr(registry, "load_class", lambda _: Slow)
    bridge = make_bridge(settings(), {})
    listener, loaded = listen("127.0.0.1", 0), asyncio.Event()
    url = address(settings(), listener)
    running = asyncio.create_task(bridge.serve(listener, loaded))
    loading = await get(f"{url}/readyz")
    assert (loading.status, loading.json["code"]) == (503, "not_ready")
    assert loading.json["progress"] == "downloading small: 43 %"
    loads.set()
    await loaded.wait()
    ready = await get(f"{url}/readyz")
    assert (ready.status, ready.json["progress"]) == (200, None)
    bridge.server.stop()
    await asyncio.wait_for(running, 5)


async def test_the_engine_s_metrics_are_scraped_with_the_bridge_s(monkeypatch: pytest.MonkeyPatch) -> None:
    gauge = Gauge("stt_fast_batch", "Windows in a batch.", registry=None)
    gauge.set(7)

    class Fast(Backend):
        @property
        def collectors(self) -> Sequence[Any]:
            return [gauge, object()]  # the second is no collector: it costs only itself

    monkeypatch.setattr(registry, "load_class", lambda _: Fast)
    async with serving(settings(), {}) as url:
        body = (await get(f"{url}/metrics")).body
    assert metric(body, "stt_fast_batch") == 7
    assert metric(body, "stt_ready") == 1


async def test_a_server_that_is_stopped_while_it_loads_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    began, cancelled = asyncio.Event(), asyncio.Event()

    class Slow(Backend):
        async def load(self) -> None:
            began.set()
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                cancelled.set()

    monkeypatch.setattr(registry, "load_class", lambda _: Slow)
    bridge = make_bridge(settings(), {})
    running = asyncio.create_task(bridge.serve(listen("127.0.0.1", 0)))
    await began.wait()
    assert bridge.manager.refusal() is not None
    bridge.server.stop()
    await asyncio.wait_for(running, 5)
    assert cancelled.is_set()


async def test_cancelling_a_server_closes_its_socket_and_leaves_no_task() -> None:
    before = asyncio.all_tasks()
    bridge = make_bridge(settings(), {})
    listener, loaded = listen("127.0.0.1", 0), asyncio.Event()
    running = asyncio.create_task(bridge.serve(listener, loaded))
    await loaded.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert asyncio.all_tasks() == before
    assert listener.fileno() == -1


def test_the_address_is_one_that_a_client_can_use() -> None:
    with listen("127.0.0.1", 0) as listener:
        assert address(settings(), listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
