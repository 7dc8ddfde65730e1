"""HTTP beside the stream: health, readiness, metrics, and refusals that are JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from backends.scripted import marker_audio
from bridge.transports import http_protocol as transport
from tests.wire import PATH, Wire, eventually, get, http_get, metric, serve, upgrade

REQUEST = "{} {} HTTP/1.1\r\nHost: x\r\n\r\n"


async def test_health_and_readiness(plain: str) -> None:
    health = await get(f"{plain}/healthz")
    assert (health.status, health.json) == (200, {"status": "ok"})
    ready = await get(f"{plain}/readyz")
    assert ready.status == 200
    assert {k: v for k, v in ready.json.items() if k != "sessions"} == {
        "ready": True,
        "code": None,
        "backend": "scripted",
        "backend_state": "ready",
        "capacity": None,
        "progress": None,
        "backends": [{"name": "scripted", "state": "ready", "breaker": "closed", "streams": 0, "capacity": None}],
    }


async def test_several_backends_and_their_breakers(tmp_path: Path) -> None:
    """The preferred one fails; a session that starts after that goes to the other at once."""
    script = tmp_path / "script.json"
    script.write_text(json.dumps({"faults": [{"at": 0.7, "kind": "fail"}]}))
    env = {"STT_SCRIPTED_MODE": "markers", "STT_SCRIPTED_SCRIPT": str(script), "STT_SCRIPTED_THREADS_MODE": "markers"}
    env["STT_SCRIPTED_THREADS_MAX_STREAMS"] = "9"
    async with serve(env, backend="scripted, scripted-threads", breaker_failures=1) as url:
        backends = []
        for _ in range(2):
            async with Wire.stream(url, start={}) as wire:
                backends.append((await wire.until("ready"))["backend"])
                await wire.audio(marker_audio(3))
                await wire.say({"type": "stop"})
                outcome = await wire.finish()
                assert [final["text"] for final in outcome.of("final")] == ["w0", "w1", "w2"]
        ready = (await get(f"{url}/readyz")).json
        metrics = (await get(f"{url}/metrics")).body
    assert backends == ["scripted", "scripted-threads"]
    assert (ready["ready"], ready["backend"], ready["capacity"]) == (True, "scripted-threads", None)
    assert ready["backends"] == [
        {"name": "scripted", "state": "ready", "breaker": "open", "streams": 0, "capacity": None},
        {"name": "scripted-threads", "state": "ready", "breaker": "closed", "streams": 0, "capacity": 9},
    ]
    assert metric(metrics, "stt_backend_breaker", backend="scripted") == 2
    assert metric(metrics, "stt_backend_breaker", backend="scripted-threads") == 0
    assert metric(metrics, "stt_backend_moves_total", **{"from": "scripted", "to": "scripted-threads"}) == 1
    for name in ("stt_final_latency_seconds_count", "stt_backend_audio_seconds_total"):
        assert metric(metrics, name, backend="scripted") > 0
        assert metric(metrics, name, backend="scripted-threads") > 0
    assert metric(metrics, "stt_final_latency_seconds_count", backend="scripted") == 1


async def test_health_needs_no_key(keyed: str) -> None:
    assert (await get(f"{keyed}/healthz")).status == 200
    assert (await get(f"{keyed}/readyz")).status == 200


@pytest.mark.parametrize("headers", [{"Authorization": "Bearer sesame"}, {"X-API-Key": "open"}])
async def test_metrics_with_a_key(keyed: str, headers: dict[str, str]) -> None:
    answer = await get(f"{keyed}/metrics", headers)
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")


async def test_metrics_with_the_key_in_the_query_string(keyed: str) -> None:
    assert (await get(f"{keyed}/metrics?api_key=sesame")).status == 200


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}])
async def test_metrics_without_the_key(keyed: str, headers: dict[str, str]) -> None:
    answer = await get(f"{keyed}/metrics", headers)
    assert answer.status == 401
    assert answer.json["error"]["code"] == "unauthorized"


async def test_metrics_tell_of_a_session() -> None:
    async with serve() as url:
        async with Wire.stream(url, start={}) as wire:
            await wire.until("ready")
            during = (await get(f"{url}/metrics")).body
            await wire.audio(marker_audio(6))
            await wire.say({"type": "stop"})
            outcome = await wire.finish()
        await eventually(lambda: metric(http_get(f"{url}/metrics").body, "stt_connection_seconds_count") == 1)
        after = (await get(f"{url}/metrics")).body
    assert metric(during, "stt_sessions_open") == 1
    assert metric(during, "stt_backend_sessions", backend="scripted") == 1
    assert metric(during, "stt_ready") == 1
    assert metric(after, "stt_sessions_open") == 0
    assert metric(after, "stt_backend_sessions", backend="scripted") == 0
    assert metric(after, "stt_sessions_total", code="stopped") == 1
    assert metric(after, "stt_audio_seconds_total", protocol="native") == pytest.approx(3.6)
    assert metric(after, "stt_chunk_handling_seconds_count") == len(range(0, 6 * 19_200, 3_200))
    assert metric(after, "stt_final_latency_seconds_count", backend="scripted") == len(outcome.of("final"))
    partials = metric(after, "stt_partial_latency_seconds_count", backend="scripted")
    assert partials >= len(outcome.of("partial"))  # of those that come at once only the newest is sent
    assert 0 < metric(after, "stt_first_partial_latency_seconds_count", backend="scripted") <= partials
    assert 0 <= metric(after, "stt_final_latency_seconds_sum") < 5
    assert metric(after, "stt_queue_depth_seconds_count") > 0
    assert 0 < metric(after, "stt_connection_seconds_sum") < 10
    assert metric(after, "stt_backend_errors_total") == 0


@pytest.mark.parametrize("path", ["/nothing", "/v1", "/healthz/x", "/%00", "/a?b=c"])
async def test_not_found(plain: str, path: str) -> None:
    answer = await get(plain + path)
    assert answer.status == 404
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json) == {"error"}
    assert set(answer.json["error"]) == {"code", "message"}
    assert answer.json["error"]["code"] == "not_found"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
async def test_wrong_method(plain: str, path: str, method: str) -> None:
    answer = await get(plain + path, method=method)
    assert answer.status == 405
    assert answer.headers["allow"] == "GET"
    assert answer.json["error"]["code"] == "bad_message"
    assert answer.json["error"]["message"]


async def test_the_documentation_is_served(plain: str) -> None:
    assert (await get(f"{plain}/docs")).status == 200
    paths = (await get(f"{plain}/openapi.json")).json["paths"]
    assert {"/healthz", "/readyz", "/metrics"} <= set(paths)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),
        (b"GET /x HTTP/1.1\r\nbad header\r\n\r\n", 400),
        (b"GET /x HTTP/1.1\r\nX: " + b"x" * 70_000, 431),
        (upgrade(PATH, {"X": "x" * 20_000}), 431),
        (upgrade(PATH, {"Transfer-Encoding": "chunked"}), 400),
        (upgrade(PATH).replace(b"HTTP/1.1", b"HTTP/1.0"), 505),
    ],
)
async def test_what_is_no_request_is_refused(plain: str, data: bytes, status: int) -> None:
    async with Wire.open(plain) as wire:
        await wire.send(data)
        outcome = await wire.response()
        assert outcome.status == status
        await wire.finish()
    if outcome.headers["content-type"] == "application/json":
        assert outcome.error["code"] == "bad_message"


async def test_requests_one_after_another_on_one_connection(plain: str) -> None:
    async with Wire.open(plain) as wire:
        for path in ("/healthz", "/nothing", "/readyz", "/healthz"):
            await wire.send(REQUEST.format("GET", path).encode())
            outcome = await wire.response()
            assert outcome.status == (404 if path == "/nothing" else 200)
            assert json.loads(outcome.body)


async def test_requests_sent_ahead_are_answered_in_order(plain: str) -> None:
    async with Wire.open(plain) as wire:
        await wire.send("".join(REQUEST.format("GET", p) for p in ["/healthz", "/nothing"] * 5).encode())
        seen = [(await wire.response()).status for _ in range(10)]
    assert seen == [200, 404] * 5


async def test_half_a_request_has_a_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "HEAD_SECONDS", 0.2)
    async with serve() as url:
        for data in (b"", b"GET /he", REQUEST.format("GET", "/healthz").encode() + b"GET /x HTTP/1.1\r\nX"):
            async with Wire.open(url) as wire:
                await wire.send(data)
                if data.count(b"HTTP") > 1:
                    assert (await wire.response()).status == 200
                outcome = await wire.response()
                assert outcome.status == 408
                assert outcome.error["code"] == "start_timeout"
                assert (await wire.finish()).ended


async def test_a_response_that_nobody_reads_has_a_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "RESPONSE_SECONDS", 0.2)
    async with serve() as url, Wire.open(url, rcvbuf=4_096) as wire:
        gone = False
        for _ in range(10_000):  # until every buffer is full
            try:
                await wire.send(REQUEST.format("GET", "/metrics").encode())
                await get(f"{url}/healthz")  # so that they are not sent ahead
            except OSError:
                gone = True
                break
        assert gone


async def test_a_body_without_end_does_not_keep_the_connection(plain: str) -> None:
    async with Wire.open(plain) as wire:
        await wire.send(b"POST /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        outcome = await wire.response()
        assert outcome.status == 405
        assert (await wire.finish()).ended


async def test_an_answer_that_does_not_wait_for_the_body_says_that_it_ends_the_connection(plain: str) -> None:
    """Else a client that has sent it all takes the connection for one that it may use again."""
    head = b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"
    async with Wire.open(plain) as wire:
        await wire.send(head)
        outcome = await wire.response()
        assert (outcome.status, outcome.headers["connection"]) == (405, "close")
        await wire.send(b"hello" + head)
        assert (await wire.finish()).ended
    async with Wire.open(plain) as wire:
        for _ in range(2):
            await wire.send(head + b"hello")
            outcome = await wire.response()
            assert outcome.status == 405
            assert "connection" not in outcome.headers
