"""A session over a real socket: order, shapes of audio, doors, limits, mistakes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import struct
from collections.abc import AsyncIterator
from typing import ClassVar

import pytest
from websockets.server import ServerProtocol

from backends import registry
from backends.scripted import ScriptedBackend, marker_audio
from bridge import app
from bridge.errors import ERRORS
from bridge.protocols.events import Final, ServerEvent
from bridge.protocols.native import NativeCodec
from bridge.session.channel import Channel
from bridge.session.session import Session
from bridge.settings import Settings
from bridge.transports.http_protocol import HttpProtocol
from bridge.transports.server import listen
from bridge.transports.websocket_protocol import StreamProtocol
from tests.wire import (
    PATH,
    PING,
    Json,
    Outcome,
    Wire,
    engine_env,
    eventually,
    frame,
    get,
    http_get,
    markers,
    metric,
    serve,
    text,
)

AUDIO = marker_audio(4)


def fatal(outcome: Outcome, code: str) -> None:
    """The session ended with this code, and said so in every place."""
    row = ERRORS[code]
    assert outcome.messages[-1]["type"] == "closed"
    assert outcome.messages[-1]["code"] == code
    assert (outcome.close, outcome.reason) == (row.close, code)
    assert outcome.ended


# The order of things


OURS = Session | Channel | HttpProtocol | StreamProtocol | ServerProtocol


async def test_a_session_is_freed_when_it_ends() -> None:
    """And not by the collector: after an hour of talk all of it is old, and a thousand sessions wait to be found."""

    def left() -> list[str]:
        ours = [o for o in gc.get_objects() if isinstance(o, OURS)]
        return [type(o).__name__ for o in ours if id(o) not in known]

    async with serve(event_log="off") as url:
        gc.collect()
        others = [o for o in gc.get_objects() if isinstance(o, OURS)]  # of tests before this one
        known = set(map(id, others))
        gc.disable()
        try:
            for _ in range(3):
                async with Wire.stream(url) as wire:
                    await wire.say({"type": "start"})
                    await wire.audio(marker_audio(2))
                    await wire.say({"type": "stop"})
                    await wire.finish()
                assert wire.outcome.close == 1000
            await eventually(lambda: not left())
        finally:
            gc.enable()


async def test_a_session_in_order() -> None:
    async with serve(ack_seconds=0.01) as url, Wire.stream(url) as wire:
        assert wire.outcome.status == 101
        await wire.say({"type": "start", "sample_rate": 16_000})
        ready = await wire.until("ready")
        await wire.audio(marker_audio(2))
        await wire.say({"type": "flush"})
        first = await wire.until("final")
        await wire.audio(marker_audio(2, first=2))
        await wire.say({"type": "stop"})
        outcome = await wire.finish()
    assert ready["protocol"] == 1
    assert len(ready["session_id"]) >= 20
    assert (ready["backend"], ready["encoding"], ready["sample_rate"], ready["channels"]) == (
        "scripted",
        "auto",
        16_000,
        1,
    )
    assert first["words"][0] == {"text": "w0", "start": 0.0, "end": 0.3, "confidence": 1.0}
    assert outcome.types[0] == "ready"
    assert outcome.types[1] in {"speech_started", "ack"}
    assert outcome.types.index("speech_started") < outcome.types.index("final")
    assert outcome.types.count("closed") == 1
    assert outcome.words == markers(4)
    numbered = [m["seq"] for m in outcome.messages if "seq" in m]
    assert numbered == list(range(1, len(numbered) + 1))
    assert outcome.messages[-1] == {
        "type": "closed",
        "seq": numbered[-1],
        "code": "stopped",
        "received": 4 * 9_600,
        "finalized": 4 * 9_600,
        "duration": 2.4,
    }
    assert (outcome.close, outcome.reason, outcome.ended) == (1000, "stopped", True)


async def test_audio_before_ready_is_not_lost(plain: str) -> None:
    async with Wire.stream(plain, start={}) as wire:
        await wire.audio(AUDIO)
        await wire.say({"type": "stop"})
        outcome = await wire.finish()
    assert outcome.types[0] == "ready"
    assert outcome.words == markers(4)


async def test_base64_and_binary_give_the_same() -> None:
    seen = []
    async with serve() as url:
        for encode in (False, True):
            async with Wire.stream(url, start={}) as wire:
                for at in range(0, len(AUDIO), 3_201):  # not even whole samples
                    piece = AUDIO[at : at + 3_201]
                    if encode:
                        await wire.say({"type": "audio", "data": base64.b64encode(piece).decode()})
                    else:
                        await wire.audio(piece, 3_201)
                await wire.say({"type": "stop"})
                outcome = await wire.finish()
            seen.append([{k: v for k, v in m.items() if k != "seq"} for m in outcome.of("final")])
            assert outcome.words == markers(4)
            assert outcome.close == 1000
    assert seen[0] == seen[1]


async def test_start_in_the_query_string(plain: str) -> None:
    path = f"{PATH}?sample_rate=16000&channels=2&encoding=linear16&partials=false&words=false&phrases=a,b&other=1"
    stereo = b"".join(AUDIO[at : at + 2] * 2 for at in range(0, len(AUDIO), 2))
    async with Wire.stream(plain, path) as wire:
        ready = await wire.until("ready")
        await wire.audio(stereo)
        await wire.say({"type": "stop"})
        outcome = await wire.finish()
    assert (ready["channels"], ready["encoding"], ready["partials"]) == (2, "pcm_s16le", False)
    assert outcome.words == markers(4)
    assert "partial" not in outcome.types
    assert all("words" not in m for m in outcome.of("final"))


async def test_a_bad_start_in_the_query_string(plain: str) -> None:
    async with Wire.stream(plain, f"{PATH}?sample_rate=fast") as wire:
        outcome = await wire.finish()
    assert outcome.codes == ["bad_start"]
    fatal(outcome, "bad_start")


async def test_the_earliest_android_clients(plain: str) -> None:
    async with Wire.stream(plain) as wire:
        for at in range(0, len(AUDIO), 6_400):
            content = base64.b64encode(AUDIO[at : at + 6_400]).decode()
            await wire.say({"content": content, "audio_id": "clip-7"})
        await wire.say({"type": "stop"})
        outcome = await wire.finish()
    assert outcome.types[0] == "ready"
    assert outcome.words == markers(4)
    assert {m["audio_id"] for m in outcome.messages if m["type"] in {"partial", "final"}} == {"clip-7"}
    assert outcome.close == 1000


# Doors


@pytest.mark.parametrize("key", [None, "wrong", "", "sesam", "sesame,open"])
async def test_a_missing_or_wrong_key_is_refused_before_the_upgrade(keyed: str, key: str | None) -> None:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    async with Wire.stream(keyed, headers=headers) as wire:
        outcome = await wire.finish()
    assert outcome.status == 401
    assert outcome.headers["content-type"] == "application/json"
    assert outcome.headers["www-authenticate"] == "Bearer"
    assert "upgrade" not in outcome.headers
    assert outcome.error["code"] == "unauthorized"
    assert outcome.ended


@pytest.mark.parametrize(
    ("path", "headers", "echoed"),
    [
        (PATH, {"Authorization": "Bearer sesame"}, None),
        (PATH, {"authorization": "Token open"}, None),
        (PATH, {"X-API-Key": "sesame"}, None),
        (f"{PATH}?token=sesame", {}, None),
        (f"{PATH}?api_key=open", {}, None),
        (PATH, {"Sec-WebSocket-Protocol": "bearer, sesame"}, "bearer"),
        (PATH, {"Sec-WebSocket-Protocol": "token, open"}, "token"),
        (PATH, {"Authorization": "Bearer sesame", "Origin": "https://elsewhere.example"}, None),
    ],
)
async def test_a_key_in_every_place(keyed: str, path: str, headers: dict[str, str], echoed: str | None) -> None:
    async with Wire.stream(keyed, path, headers, start={}) as wire:
        await wire.until("ready")
    assert wire.outcome.status == 101
    assert wire.outcome.headers.get("sec-websocket-protocol") == echoed
    assert not any("sesame" in value or "open" in value for value in wire.outcome.headers.values())


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://evil.example", 403),
        ("null", 403),
        ("https://app.example", 101),
        ("HTTPS://APP.EXAMPLE/", 101),
        ("http://127.0.0.1", 101),
    ],
)
async def test_foreign_web_pages_are_refused_without_a_key(plain: str, origin: str, status: int) -> None:
    async with Wire.stream(plain, headers={"Origin": origin}) as wire:
        assert wire.outcome.status == status
        if status == 403:
            assert wire.outcome.error["code"] == "forbidden_origin"


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/stream/", "/v2/stream", "/healthz", "/v1/%73tream%2f"])
async def test_unknown_paths(plain: str, path: str) -> None:
    async with Wire.stream(plain, path) as wire:
        outcome = await wire.finish()
    assert outcome.status == 404
    assert outcome.error["code"] == "not_found"


class SlowLoading(ScriptedBackend):
    """Loads when it is told."""

    name: ClassVar[str] = "slow-loading"
    may_load: ClassVar[asyncio.Event]

    async def load(self) -> None:
        await self.may_load.wait()


@contextlib.asynccontextmanager
async def loading_server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """A server whose backend loads, and what is set once it has."""
    entry = registry._Entry(f"{__name__}:SlowLoading")
    monkeypatch.setitem(registry._BUILT_IN, "slow-loading", entry)
    SlowLoading.may_load = asyncio.Event()
    settings = Settings.load(env={}, env_file=None, port=0, backend="slow-loading")
    built = app.make_bridge(settings, {"STT_SLOW_LOADING_MODE": "markers"})
    listener = listen(settings.host, settings.port)
    loaded = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(built.serve(listener, loaded))
        yield app.address(settings, listener), loaded
        built.server.stop()


async def test_not_ready_while_the_backend_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    async with loading_server(monkeypatch) as (url, loaded):
        async with Wire.stream(url) as wire:
            outcome = await wire.finish()
        assert outcome.status == 503
        assert outcome.headers["retry-after"] == "1"
        assert outcome.error["code"] == "not_ready"
        assert (await get(f"{url}/healthz")).status == 200
        ready = await get(f"{url}/readyz")
        assert (ready.status, ready.json["code"], ready.json["backend_state"]) == (503, "not_ready", "loading")
        SlowLoading.may_load.set()
        async with asyncio.timeout(10):
            await loaded.wait()
        assert (await get(f"{url}/readyz")).status == 200
        async with Wire.stream(url, start={}) as wire:
            await wire.until("ready")


async def test_stopping_while_the_backend_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    async with asyncio.timeout(10), loading_server(monkeypatch) as (url, _):
        assert (await get(f"{url}/healthz")).status == 200


async def test_at_capacity() -> None:
    async with serve(engine_env(max_streams=1)) as url:
        async with Wire.stream(url, start={}) as first:
            await first.until("ready")
            ready = await get(f"{url}/readyz")
            assert ready.status == 503
            assert (ready.json["ready"], ready.json["code"]) == (False, "at_capacity")
            assert (ready.json["sessions"], ready.json["capacity"]) == (1, 1)
            async with Wire.stream(url, start={}) as second:
                refused = await second.finish()
            assert refused.types == ["error", "closed"]
            assert refused.messages[0]["fatal"]
            assert refused.messages[0]["retryable"]
            fatal(refused, "at_capacity")
            assert refused.close == 1013
            await first.audio(AUDIO)
            await first.say({"type": "stop"})
            assert (await first.finish()).words == markers(4)
        await eventually(lambda: http_get(f"{url}/readyz").status == 200)
        async with Wire.stream(url, start={}) as third:
            await third.until("ready")
            assert metric((await get(f"{url}/metrics")).body, "stt_refused_total", code="at_capacity") == 1


async def test_a_client_that_goes_frees_its_place() -> None:
    async with serve(engine_env(max_streams=1)) as url:
        for leave in ("reset", "close", "half"):
            async with Wire.stream(url, start={}) as wire:
                await wire.until("ready")
                await wire.audio(AUDIO)
                if leave == "reset":
                    wire.reset()
                elif leave == "half":
                    wire.half_close()
                    await wire.finish()
            await eventually(lambda: http_get(f"{url}/readyz").status == 200)
        body = (await get(f"{url}/metrics")).body
        assert metric(body, "stt_sessions_total", code="at_capacity") == 2
        assert metric(body, "stt_sessions_held") == 1


async def test_too_many_connections() -> None:
    async with serve(max_connections=2) as url, Wire.stream(url) as first, Wire.stream(url) as second:
        assert (first.outcome.status, second.outcome.status) == (101, 101)
        async with Wire.stream(url) as third:
            assert third.outcome.status == 503
            assert third.outcome.error["code"] == "at_capacity"


# Clocks


async def test_idle_timeout() -> None:
    async with serve(idle_seconds=0.3) as url, Wire.stream(url, start={}) as wire:
        await wire.audio(AUDIO[: 2 * 19_200 + 4_800])  # half of the third word
        outcome = await wire.finish()
    assert outcome.words == ["w0", "w1", "w2~"]
    assert outcome.messages[-1]["finalized"] == outcome.messages[-1]["received"]
    fatal(outcome, "idle_timeout")


async def test_any_message_shows_life() -> None:
    async with serve(idle_seconds=0.4) as url, Wire.stream(url, start={}) as wire:
        for _ in range(8):
            await asyncio.sleep(0.1)
            await wire.say({"type": "nonsense"})
        assert (await wire.until("error", 8))["code"] == "unknown_type"
        assert "closed" not in wire.outcome.types


async def test_start_timeout() -> None:
    async with serve(start_seconds=0.2) as url, Wire.stream(url) as wire:
        await wire.say({"type": "flush"})
        outcome = await wire.finish()
    assert outcome.codes == ["bad_order", "start_timeout"]
    fatal(outcome, "start_timeout")


async def test_session_too_long() -> None:
    async with serve(max_session_seconds=0.5) as url, Wire.stream(url, start={}) as wire:
        await wire.audio(AUDIO)
        outcome = await wire.finish()
    assert outcome.words == markers(4)
    fatal(outcome, "session_too_long")


async def test_pings_at_the_interval() -> None:
    async with serve(ping_seconds=0.1, ping_timeout_seconds=5) as url, Wire.stream(url, start={}) as wire:
        began = asyncio.get_running_loop().time()
        for _ in range(5):
            await wire.ping()
        took = asyncio.get_running_loop().time() - began
        assert 0.35 < took < 3
        assert wire.outcome.pings == 5
        await wire.audio(AUDIO)
        await wire.say({"type": "stop"})
        assert (await wire.finish()).words == markers(4)


@pytest.mark.parametrize("started", [False, True])
async def test_a_dead_peer_is_closed(started: bool) -> None:
    """It has sent audio, and then answers nothing, not even pings."""
    async with serve(ping_seconds=0.1, ping_timeout_seconds=0.2, resume_seconds=0) as url:
        async with Wire.stream(url, start={} if started else None) as wire:
            wire.mute = True
            outcome = await wire.finish()
        assert outcome.pings == 1
        assert (outcome.close, outcome.ended) == (1011, True)
        await eventually(lambda: metric(http_get(f"{url}/metrics").body, "stt_connection_seconds_count") == 1)
        await eventually(lambda: metric(http_get(f"{url}/metrics").body, "stt_sessions_open") == 0)


async def test_a_dead_peer_whose_buffers_are_full_is_dropped() -> None:
    """Nothing can be said to it any more, not even a close frame."""
    async with (
        serve(ping_seconds=0.2, ping_timeout_seconds=0.2) as url,
        Wire.stream(url, rcvbuf=4_096, sndbuf=4_096) as wire,
    ):
        flood = asyncio.create_task(_flood_of_pings(wire))
        await eventually(lambda: metric(http_get(f"{url}/metrics").body, "stt_connection_seconds_count") == 1)
        flood.cancel()
        await asyncio.gather(flood, return_exceptions=True)


async def _flood_of_pings(wire: Wire) -> None:
    with contextlib.suppress(OSError):
        while True:
            await wire.send(frame(PING, bytes(125)) * 100)


# Mistakes

MISTAKES: list[tuple[str, Json | str | bytes]] = [
    ("bad_message", "{"),
    ("bad_message", "[1, 2]"),
    ("bad_message", "7"),
    ("bad_message", ""),
    ("bad_message", "{}"),
    ("bad_message", '{"type": "audio"}'),
    ("bad_message", '{"type": "audio", "data": 7}'),
    ("bad_message", "[" * 10_000),
    ("unknown_type", {"type": "sing"}),
    ("unknown_type", {"type": None}),
    ("unknown_type", {"type": {"type": "stop"}}),
    ("bad_order", {"type": "start"}),
    ("bad_audio", {"type": "audio", "data": "not base64!"}),
    ("bad_audio", {"type": "audio", "data": "AAA"}),
    ("bad_audio", {"content": "*", "audio_id": "x"}),
]


async def test_mistakes_are_answered_and_hurt_nothing(plain: str) -> None:
    """One after each stretch of audio: the transcript is that of an undisturbed session."""
    audio = marker_audio(10)
    step = len(audio) // len(MISTAKES) // 2 * 2 + 2
    async with Wire.stream(plain, start={}) as wire:
        for index, (_, mistake) in enumerate(MISTAKES):
            await wire.audio(audio[index * step : (index + 1) * step])
            await wire.send(text(mistake))
        await wire.say({"type": "stop"})
        outcome = await wire.finish()
    assert outcome.codes == [code for code, _ in MISTAKES]
    assert not any(m["fatal"] or "seq" in m for m in outcome.of("error"))
    assert outcome.words == markers(10)
    assert (outcome.close, outcome.messages[-1]["code"]) == (1000, "stopped")


async def test_mistakes_before_start(plain: str) -> None:
    mistakes = [m for m in MISTAKES if m[0] != "bad_order"]
    async with Wire.stream(plain) as wire:
        await wire.audio(b"\0\0")
        for _, mistake in mistakes:
            await wire.send(text(mistake))
        await wire.say({"type": "start"})
        await wire.audio(AUDIO)
        await wire.say({"type": "stop"})
        outcome = await wire.finish()
    expected = ["bad_order", *(("bad_order" if _needs_start(m) else code) for code, m in mistakes)]
    assert outcome.codes == expected
    assert outcome.words == markers(4)


def _needs_start(mistake: Json | str | bytes) -> bool:
    return isinstance(mistake, dict) and mistake.get("type") == "audio"


async def test_nothing_may_follow_stop(plain: str) -> None:
    async with Wire.stream(plain, start={}) as wire:
        await wire.send(text({"type": "stop"}) + text({"type": "flush"}) + text({"type": "stop"}))
        outcome = await wire.finish()
    assert set(outcome.codes) <= {"bad_order"}
    assert outcome.close == 1000


async def test_too_many_errors_finalizes_what_was_accepted() -> None:
    async with serve(max_bad_messages=3) as url, Wire.stream(url, start={}) as wire:
        await wire.audio(AUDIO)
        for _ in range(5):
            await wire.send(text("?"))
        outcome = await wire.finish()
    assert outcome.codes == ["bad_message"] * 3 + ["too_many_errors"]
    assert outcome.words == markers(4)
    fatal(outcome, "too_many_errors")


async def test_too_many_errors_before_start() -> None:
    async with serve(max_bad_messages=3) as url, Wire.stream(url) as wire:
        for _ in range(5):
            await wire.send(text("?"))
        outcome = await wire.finish()
    assert outcome.codes == ["bad_message"] * 3 + ["too_many_errors"]
    fatal(outcome, "too_many_errors")


@pytest.mark.parametrize(
    ("start", "code"),
    [
        ({"sample_rate": 7_999}, "unsupported_audio"),
        ({"sample_rate": 10**30}, "bad_start"),
        ({"sample_rate": -1}, "unsupported_audio"),
        ({"sample_rate": "16000"}, "bad_start"),
        ({"channels": 0}, "unsupported_audio"),
        ({"channels": 9}, "unsupported_audio"),
        ({"encoding": "mp5"}, "unsupported_audio"),
        ({"encoding": ["pcm_s16le"]}, "bad_start"),
        ({"phrases": ["x" * 101]}, "bad_start"),
        ({"phrases": "x"}, "bad_start"),
        ({"language": ""}, "bad_start"),
    ],
)
async def test_start_that_is_refused(plain: str, start: Json, code: str) -> None:
    async with Wire.stream(plain, start=start) as wire:
        outcome = await wire.finish()
    assert outcome.codes == [code]
    assert outcome.types == ["error", "closed"]
    fatal(outcome, code)


async def test_a_message_that_is_too_large() -> None:
    async with serve(max_message_bytes=4_096, resume_seconds=0) as url, Wire.stream(url, start={}) as wire:
        await wire.until("ready")
        await wire.audio(bytes(4_096), 4_096)
        with contextlib.suppress(OSError):
            await wire.audio(bytes(1_000_000), 1_000_000)
        outcome = await wire.finish()
        await eventually(lambda: metric(http_get(f"{url}/metrics").body, "stt_sessions_open") == 0)
    assert outcome.close == ERRORS["message_too_large"].close
    assert outcome.ended


# WAV headers


def wav(rate: int = 16_000, channels: int = 1, bits: int = 16, tag: int = 1, data: int = 0xFFFFFFFF) -> bytes:
    """A header in front of samples of unknown length."""
    block = channels * bits // 8
    form = struct.pack("<HHIIHH", tag, channels, rate, rate * block, block, bits)
    return (
        struct.pack("<4sI4s4sI", b"RIFF", data, b"WAVE", b"fmt ", len(form)) + form + struct.pack("<4sI", b"data", data)
    )


async def test_a_wav_header_is_skipped_with_a_warning(plain: str) -> None:
    async with Wire.stream(plain, start={"encoding": "pcm_s16le"}) as wire:
        await wire.audio(wav() + AUDIO)
        await wire.say({"type": "stop"})
        outcome = await wire.finish()
    assert [m["code"] for m in outcome.of("warning")] == ["wav_header"]
    assert outcome.words == markers(4)
    assert outcome.messages[-1]["received"] == len(AUDIO) // 2


@pytest.mark.parametrize("header", [wav(rate=44_100), wav(channels=2), wav(bits=8), wav(tag=85)])
async def test_a_wav_header_that_contradicts_is_refused(plain: str, header: bytes) -> None:
    async with Wire.stream(plain, start={"encoding": "pcm_s16le"}) as wire:
        await wire.audio(header + AUDIO, 64_000)
        outcome = await wire.finish()
    assert outcome.codes == ["unsupported_audio"]
    assert outcome.words == []
    fatal(outcome, "unsupported_audio")


async def test_a_broken_wav_header_in_the_first_message_of_all(plain: str) -> None:
    """The first message with audio may be refused; the session is not hurt."""
    broken = base64.b64encode(wav()[:-8]).decode()
    async with Wire.stream(plain, start={"encoding": "pcm_s16le"}) as wire:
        await wire.say({"content": broken, "audio_id": 1})
        await wire.say({"content": base64.b64encode(AUDIO).decode(), "audio_id": 2})
        await wire.say({"type": "stop"})
        outcome = await wire.finish()
    assert outcome.types[0] == "ready"
    assert outcome.codes == ["bad_audio"]
    assert outcome.words == markers(4)


async def test_a_fault_of_this_server_has_a_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs one connection, and its log line has the details."""
    encode = NativeCodec.encode

    def broken(codec: NativeCodec, event: ServerEvent) -> str:
        if isinstance(event, Final) and codec._audio_id == "break":
            raise OverflowError
        return encode(codec, event)

    monkeypatch.setattr(NativeCodec, "encode", broken)
    content = base64.b64encode(AUDIO).decode()
    async with serve(engine_env(max_streams=1)) as url:
        async with Wire.stream(url) as wire:
            await wire.say({"content": content, "audio_id": "break"})
            outcome = await wire.finish()
        assert outcome.codes == ["internal"]
        fatal(outcome, "internal")
        async with Wire.stream(url) as wire:
            await wire.say({"content": content, "audio_id": "whole"})
            await wire.say({"type": "stop"})
            assert (await wire.finish()).words == markers(4)
