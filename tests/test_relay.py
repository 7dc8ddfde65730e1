"""A node at the edge in front of another: what a caller sees is what the second node said, whatever breaks between."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import random
import wave
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from backends import registry
from backends.scripted import marker_audio
from bench.chaos.proxy import KINDS, Proxy
from bench.chaos.supervisor import free_port
from bridge.client import ConnectionLost, SessionError, connect
from bridge.protocols.native import (
    ClosedMessage,
    FinalMessage,
    PartialMessage,
    ServerMessage,
    StartMessage,
    WarningMessage,
)
from tests import wire
from tests.client.fake import FakeServer, Plan
from tests.conftest import Spawn
from tests.speech import SAMPLES, manifest, pcm, word_error_rate

CHUNK = 3_200
START = StartMessage(encoding="pcm_s16le")


@contextlib.asynccontextmanager
async def edge(node: str, backend: str = "relay", **settings: Any) -> AsyncIterator[str]:
    """A server in front of the one at `node`; options of the relay by their names, `relay_…`."""
    options = {name: value for name, value in settings.items() if name.startswith("relay_")}
    env = {f"STT_{name.upper()}": str(value) for name, value in options.items()}
    others = {name: value for name, value in settings.items() if name not in options}
    async with wire.serve(wire.engine_env() | {"STT_RELAY_URL": node} | env, backend=backend, **others) as url:
        yield url


@contextlib.asynccontextmanager
async def between(node: str, seed: int = 7) -> AsyncIterator[Proxy]:
    """A network that breaks on command."""
    async with Proxy.to("127.0.0.1", [urlsplit(node).port or 0], random.Random(seed)) as proxy:
        yield proxy


def at(proxy: Proxy) -> str:
    return f"ws://{proxy.address[0]}:{proxy.address[1]}"


async def said(
    url: str, audio: bytes, start: StartMessage = START, *, speed: float = 8, key: str | None = None
) -> list[ServerMessage]:
    """What a caller hears who says it so many times faster than life."""
    stream = f"ws{url.removeprefix('http')}/v1/stream"
    async with asyncio.timeout(40), connect(stream, start, api_key=key) as client:

        async def speak() -> None:
            with contextlib.suppress(ConnectionLost):  # who hears is told why
                for place in range(0, len(audio), CHUNK):
                    await client.send(audio[place : place + CHUNK])
                    await asyncio.sleep(CHUNK / 32_000 / speed)
                await client.stop()

        speaking = asyncio.create_task(speak())
        try:
            return [message async for message in client]
        finally:
            speaking.cancel()
            await asyncio.gather(speaking, return_exceptions=True)


def words(messages: list[ServerMessage]) -> list[str]:
    return [word for message in messages if isinstance(message, FinalMessage) for word in message.text.split()]


def warned(messages: list[ServerMessage]) -> list[str]:
    return [message.code for message in messages if isinstance(message, WarningMessage)]


def assert_closed(messages: list[ServerMessage], audio: bytes) -> None:
    last = messages[-1]
    assert isinstance(last, ClosedMessage)
    assert last.code == "stopped"
    assert last.received == last.finalized == len(audio) // 2


async def test_a_caller_hears_the_same_as_from_the_node_itself(plain: str) -> None:
    audio = marker_audio(12)
    direct = [m for m in await said(plain, audio) if isinstance(m, FinalMessage)]
    async with edge(plain) as url:
        messages = await said(url, audio)
        partials = [m for m in messages if isinstance(m, PartialMessage)]
        through = [m for m in messages if isinstance(m, FinalMessage)]
    assert_closed(messages, audio)
    assert partials
    assert [(m.text, m.start, m.end, m.words, m.confidence) for m in through] == [
        (m.text, m.start, m.end, m.words, m.confidence) for m in direct
    ]


async def test_many_callers_at_once(plain: str) -> None:
    counts = [3, 9, 6, 1, 12, 4]
    async with edge(plain) as url:
        heard = await asyncio.gather(*(said(url, marker_audio(n, first=10 * n)) for n in counts))
    assert [words(messages) for messages in heard] == [wire.markers(n, first=10 * n) for n in counts]


async def test_a_network_that_breaks_in_every_way_costs_no_word(plain: str, caplog: pytest.LogCaptureFixture) -> None:
    audio = marker_audio(40)  # 24 s
    caplog.set_level(logging.INFO, "backends.relay")
    async with between(plain) as proxy, edge(at(proxy)) as url, asyncio.TaskGroup() as group:

        async def strike() -> None:
            for kind in KINDS:
                await asyncio.sleep(0.4)
                await proxy.strike(kind)

        striking = group.create_task(strike())
        messages = await said(url, audio, speed=4)
        await striking
    assert words(messages) == wire.markers(40)
    assert_closed(messages, audio)
    assert "backend_changed" not in warned(messages)
    assert caplog.text.count("goes on at") >= 3


async def test_another_node_that_knows_nothing_of_the_session_is_given_what_is_not_final(plain: str) -> None:
    audio = marker_audio(14)
    async with wire.serve() as second, between(plain) as proxy, edge(at(proxy)) as url:
        saying = asyncio.create_task(said(url, audio, speed=5))
        await asyncio.sleep(0.7)
        proxy.ports = [urlsplit(second).port or 0]
        assert await proxy.strike("reset") is not None
        messages = await saying
    assert words(messages) == wire.markers(14)
    assert_closed(messages, audio)


async def test_where_the_node_is_gone_another_backend_goes_on(plain: str) -> None:
    audio = marker_audio(14)
    async with between(plain) as proxy, edge(at(proxy), "relay,scripted", relay_resume_seconds=0.3) as url:
        saying = asyncio.create_task(said(url, audio, speed=5))
        await asyncio.sleep(0.7)
        proxy.ports = [free_port()]
        assert await proxy.strike("fin") is not None
        messages = await saying
    assert words(messages) == wire.markers(14)
    assert_closed(messages, audio)
    assert "backend_changed" in warned(messages)


async def test_real_speech_through_a_network_that_breaks(spawn: Spawn) -> None:
    if not registry.probe("pocketsphinx").available:
        pytest.skip("pocketsphinx is not installed")
    node = await asyncio.to_thread(spawn, {"STT_BACKEND": "pocketsphinx"})
    audio = pcm(SAMPLES / "hello.flac")
    async with between(node.url) as proxy, edge(at(proxy)) as url, asyncio.TaskGroup() as group:

        async def strike() -> None:
            for kind in ("reset", "mid_frame"):
                await asyncio.sleep(0.25)
                await proxy.strike(kind)

        group.create_task(strike())
        messages = await said(url, audio, speed=3)
        assert proxy.connections >= 3
    assert word_error_rate(manifest()["hello.flac"]["transcript"], " ".join(words(messages))) <= 0.1


# Files


def posted(url: str, body: bytes, key: str | None = None) -> wire.Answer:
    headers = {"Content-Type": "application/octet-stream"} | ({"X-API-Key": key} if key else {})
    return wire.http_get(f"{url}/v1/transcribe?format=json", headers, method="POST", body=body)


def wav(pcm16: bytes) -> bytes:
    held = io.BytesIO()
    with wave.open(held, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(pcm16)
    return held.getvalue()


def heard(answer: wire.Answer) -> list[wire.Json]:
    """Every word; where one final ends and the next begins, is a matter of how much an engine is given at once."""
    return [word for segment in answer.json["segments"] for word in segment["words"]]


@pytest.mark.parametrize("count", [5, 200])  # three seconds; and two minutes, more than is on its way at once
async def test_a_file(plain: str, count: int) -> None:
    file = wav(marker_audio(count))
    async with edge(plain) as url:
        through = await asyncio.to_thread(posted, url, file)
    assert through.status == 200
    assert through.json["text"].split() == wire.markers(count)
    assert through.json["backend"] == "relay"
    direct = await asyncio.to_thread(posted, plain, file)
    assert heard(through) == heard(direct)


async def test_a_file_through_a_network_that_breaks(plain: str) -> None:
    async with between(plain) as proxy, edge(at(proxy)) as url:
        asking = asyncio.create_task(asyncio.to_thread(posted, url, wav(marker_audio(400))))  # four minutes
        strikes = 0
        while not asking.done() and strikes < 4:
            await asyncio.sleep(0.03)
            strikes += await proxy.strike(("reset", "fin")[strikes % 2]) is not None
        answer = await asking
    assert answer.status == 200, answer.body
    assert answer.json["text"].split() == wire.markers(400)
    assert strikes >= 2


async def test_a_file_comes_with_the_callers_key() -> None:
    async with (
        wire.serve(api_keys="alice") as node,
        edge(node, relay_pass_authorization=True, api_keys="alice,bob") as url,
    ):
        file = wav(marker_audio(2))
        assert (await asyncio.to_thread(posted, url, file, "alice")).json["text"].split() == wire.markers(2)
        refused = await asyncio.to_thread(posted, url, file, "bob")
        assert (refused.status, refused.json["error"]["code"]) == (400, "backend_rejected")


async def test_a_job_comes_with_the_edges_own_key(tmp_path: Path) -> None:
    form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    body = form + wav(marker_audio(4)) + b"\r\n--b--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    settings: wire.Json = {"store": "sqlite::memory:", "uploads": str(tmp_path), "relay_pass_authorization": True}
    async with wire.serve(api_keys="edge-key") as node, edge(node, relay_api_key="edge-key", **settings) as url:
        job = (await wire.get(f"{url}/v1/jobs", headers, method="POST", body=body)).json
        address = f"{url}/v1/jobs/{job['id']}"
        await wire.eventually(lambda: wire.http_get(address).json["state"] in ("succeeded", "failed"))
        answer = await wire.get(f"{address}/transcript?format=txt")
    assert answer.body.decode().split() == wire.markers(4)


# Who is let in, and what for


def contents(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in folder.iterdir()]


async def test_the_callers_key_is_passed_on_and_never_written_down(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    log = tmp_path / "log.db"
    keys = {"api_keys": "alice-secret,bob-secret", "event_log": f"sqlite:{log}"}
    async with (
        wire.serve(api_keys="alice-secret") as node,
        edge(node, relay_pass_authorization=True, **keys) as url,
    ):
        assert words(await said(url, marker_audio(3), key="alice-secret")) == wire.markers(3)
        with pytest.raises(SessionError) as caught:
            await said(url, marker_audio(3), key="bob-secret")
    assert caught.value.code == "backend_rejected"
    assert "does not let you in" in caught.value.message
    own = [r.getMessage() for r in caplog.records if r.name.startswith(("bridge", "backends"))]
    assert own
    assert not [line for line in own if "-secret" in line]
    assert b"-secret" not in b"".join(await asyncio.to_thread(contents, tmp_path))


async def test_an_edge_without_keys_of_its_own_passes_on_what_it_is_given() -> None:
    async with wire.serve(api_keys="alice") as node, edge(node, relay_pass_authorization=True) as url:
        assert words(await said(url, marker_audio(3), key="alice")) == wire.markers(3)
        with pytest.raises(SessionError) as caught:
            await said(url, marker_audio(3))
        assert caught.value.code == "backend_misconfigured"


async def test_a_language_that_the_node_refuses() -> None:
    node = FakeServer(Plan(), Plan(refuse="unsupported_language"))
    async with node.serving(), edge(node.url) as url:
        with pytest.raises(SessionError) as caught:
            await said(url, marker_audio(1), StartMessage(encoding="pcm_s16le", language="fi"))
    assert (caught.value.code, caught.value.message) == ("unsupported_language", "No.")


async def test_it_is_ready_when_the_node_is() -> None:
    async with contextlib.AsyncExitStack() as stack:
        node = await stack.enter_async_context(wire.serve(wire.engine_env(max_streams=5)))
        port = urlsplit(node).port
        async with edge(node, relay_health_seconds=0.1) as url:
            ready = await wire.get(f"{url}/readyz")
            assert (ready.status, ready.json["capacity"]) == (200, 5)
            await stack.aclose()
            await wire.eventually(lambda: wire.http_get(f"{url}/readyz").status == 503)
            async with wire.serve(port=port):
                await wire.eventually(lambda: wire.http_get(f"{url}/readyz").status == 200)


async def test_a_muted_caller_costs_the_node_nothing_and_is_heard_again() -> None:
    start = {"encoding": "pcm_s16le"}
    async with (
        wire.serve(idle_seconds=0.4) as node,
        edge(node) as url,
        wire.Wire.stream(url, start=start) as caller,
    ):
        await caller.until("ready")
        await caller.audio(marker_audio(2))
        await caller.until("final", 2)
        await wire.eventually(lambda: wire.http_get(f"{node}/readyz").json["sessions"] == 0)
        await caller.audio(marker_audio(2, first=2))
        await caller.say({"type": "stop"})
        outcome = await caller.finish()
    assert outcome.words == wire.markers(4)
    assert outcome.messages[-1]["code"] == "stopped"
