"""What operators and callers learn of each request: by hand-made applications, and by a real server's answers."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import wave
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client import generate_latest

from backends.markers import marker_audio
from bridge.observe import trace
from bridge.observe.http import HttpObserver, Message, Receive, Send
from bridge.observe.metrics import Metrics
from bridge.observe.trace import Tracing
from tests import wire
from tests.wire import Wire

GIVEN = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{GIVEN}-b7ad6b7169203331-01"


class Route:
    path_format = "/v1/things/{name}"


async def request(app: Any, metrics: Metrics, method: str = "POST", path: str = "/v1/things/x") -> list[Message]:
    """One request with 5 bytes in two pieces; what was sent back."""
    pieces: list[Message] = [
        {"type": "http.request", "body": b"abc", "more_body": True},
        {"type": "http.request", "body": b"de"},
    ]
    answered: list[Message] = []

    async def receive() -> Message:
        return pieces.pop(0) if pieces else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        answered.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": [(b"traceparent", TRACEPARENT.encode())]}
    await HttpObserver(app, metrics.http, Tracing())(scope, receive, send)
    return answered


def answers(status: int, *, route: bool = True) -> Any:
    """An application that reads everything and answers 4 bytes."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        trace.identify("key-1")
        if route:
            scope["route"] = Route
        await send({"type": "http.response.start", "status": status, "headers": [(b"x-mine", b"1")]})
        await send({"type": "http.response.body", "body": b"ab", "more_body": True})
        await send({"type": "http.response.body", "body": b"cd"})

    return app


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [record.__dict__ for record in caplog.records if record.name == "bridge.access"]


def shown(metrics: Metrics) -> str:
    return generate_latest(metrics.registry).decode()


async def test_a_request_is_counted_logged_and_answered_with_its_trace(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()
    with caplog.at_level(logging.INFO):
        start, *_ = await request(answers(201), metrics)
    headers = dict(start["headers"])
    assert headers[b"x-mine"] == b"1"
    assert headers[b"x-request-id"] == GIVEN.encode()
    assert re.fullmatch(rf"00-{GIVEN}-[0-9a-f]{{16}}-01".encode(), headers[b"traceparent"])
    assert re.fullmatch(rb"app;dur=\d+\.\d", headers[b"server-timing"])
    (line,) = lines(caplog)
    assert line["levelname"] == "INFO"
    assert (line["method"], line["route"], line["status"]) == ("POST", "/v1/things/{name}", 201)
    assert (line["bytes_in"], line["bytes_out"]) == (5, 4)
    assert 0 <= line["ms"] < 1_000
    labels = {"route": "/v1/things/{name}", "method": "POST", "status": "201"}
    assert wire.metric(shown(metrics), "stt_http_requests_total", **labels) == 1
    assert wire.metric(shown(metrics), "stt_http_request_seconds_count", route="/v1/things/{name}") == 1


async def test_strangers_make_no_labels(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()
    with caplog.at_level(logging.INFO):
        for number in range(20):
            await request(answers(404, route=False), metrics, f"METHOD{number}", f"/guess/{number}")
    assert len(re.findall(r"^stt_http_requests_total", shown(metrics), re.MULTILINE)) == 1
    assert wire.metric(shown(metrics), "stt_http_requests_total", route="other", method="other", status="404") == 20
    assert "guess" not in caplog.text + str(lines(caplog))


async def test_a_client_that_went_before_it_was_answered() -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        scope["route"] = Route

    metrics = Metrics()
    assert await request(app, metrics) == []
    assert wire.metric(shown(metrics), "stt_http_requests_total", status="499") == 1


async def test_an_application_that_fails_is_counted_and_passed_on() -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        raise ValueError("mine")

    metrics = Metrics()
    with pytest.raises(ValueError, match="mine"):
        await request(app, metrics)
    assert wire.metric(shown(metrics), "stt_http_requests_total", status="500") == 1
    assert wire.metric(shown(metrics), "stt_http_requests_in_flight") == 0


async def test_what_is_in_flight_is_seen_and_a_cancelled_one_is_not_forgotten() -> None:
    entered = asyncio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        entered.set()
        await asyncio.Event().wait()

    metrics = Metrics()
    task = asyncio.create_task(request(app, metrics))
    await entered.wait()
    assert wire.metric(shown(metrics), "stt_http_requests_in_flight") == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert wire.metric(shown(metrics), "stt_http_requests_in_flight") == 0
    assert wire.metric(shown(metrics), "stt_http_requests_total", status="499") == 1


@pytest.mark.parametrize(("status", "level"), [(200, "DEBUG"), (401, "DEBUG"), (503, "INFO")])
async def test_probes_are_no_news(status: int, level: str, caplog: pytest.LogCaptureFixture) -> None:
    class Probe:
        path_format = "/readyz"

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        scope["route"] = Probe
        await send({"type": "http.response.start", "status": status})

    with caplog.at_level(logging.DEBUG):
        await request(app, Metrics(), "GET")
    assert [line["levelname"] for line in lines(caplog)] == [level]


# A real server

Log = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[wire.Process]:
    env = wire.engine_env() | {"STT_API_KEYS": "sesame", "STT_LOG_LEVEL": "debug"}
    with wire.spawned(tmp_path_factory.mktemp("observed"), env) as process:
        yield process
        process.assert_no_traceback()


@pytest.fixture
def logged(server: wire.Process) -> Log:
    """The lines with these fields."""

    def find(**fields: Any) -> list[dict[str, Any]]:
        read = [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]
        return [line for line in read if all(line.get(name) == value for name, value in fields.items())]

    return find


def new_trace() -> tuple[str, dict[str, str]]:
    """A trace id of the caller's, and the header that says it."""
    here = Tracing().begin("test", None)
    trace.enter(None)
    return here.trace_id, {"traceparent": here.traceparent}


KEY = {"authorization": "Bearer sesame"}


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "route"),
    [
        ("GET", "/healthz", {}, 200, "/healthz"),
        ("GET", "/v1/sessions/none-such?token=sesame", {}, 404, "/v1/sessions/{session_id}"),
        ("GET", "/v1/sessions/none-such", {}, 401, "/v1/sessions/{session_id}"),
        ("PUT", "/v1/sessions/none-such", KEY, 405, "/v1/sessions/{session_id}"),
        ("GET", "/no/such/place", KEY, 404, "other"),
        ("GET", "/docs", {}, 200, "/docs"),
    ],
)
async def test_every_answer_names_its_trace(
    server: wire.Process,
    logged: Log,
    method: str,
    path: str,
    headers: dict[str, str],
    status: int,
    route: str,
) -> None:
    trace_id, header = new_trace()
    answer = await wire.get(server.url + path, headers | header, method=method)
    assert answer.status == status
    assert answer.headers["x-request-id"] == trace_id
    parent = trace.parse(answer.headers["traceparent"])
    assert parent is not None
    assert parent.trace_id == trace_id
    await wire.eventually(lambda: bool(logged(trace=trace_id, message="request")))
    (line,) = logged(trace=trace_id, message="request")
    assert (line["method"], line["route"], line["status"]) == (method, route, status)
    assert line["bytes_out"] == len(answer.body)
    assert "none-such" not in server.log
    assert "sesame" not in server.log


async def test_a_wrong_header_begins_a_new_trace(server: wire.Process) -> None:
    answer = await wire.get(server.url + "/healthz", {"traceparent": TRACEPARENT.upper()})
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])
    assert answer.headers["x-request-id"] != GIVEN


async def test_a_refused_opening_names_its_trace(server: wire.Process, logged: Log) -> None:
    trace_id, header = new_trace()
    async with Wire.stream(server.url, headers=header) as client:
        assert client.outcome.status == 401
        assert client.outcome.headers["x-request-id"] == trace_id
    await wire.eventually(lambda: bool(logged(trace=trace_id, route="/v1/stream", status=401)))


async def test_a_session_and_all_it_says_has_its_connection_s_trace(server: wire.Process, logged: Log) -> None:
    trace_id, header = new_trace()
    async with Wire.stream(server.url, headers=header | KEY, start={}) as client:
        assert client.outcome.headers["x-request-id"] == trace_id
        ready = await client.until("ready")
        assert ready["trace_id"] == trace_id
        await client.audio(marker_audio(2))
        await client.say({"type": "stop"})
        await client.finish()
    await wire.eventually(lambda: bool(logged(trace=trace_id, message="request")))
    of_it = logged(trace=trace_id)
    assert [line["message"] for line in of_it] == ["session opened", "session closed", "request"]
    (subject,) = {line["subject"] for line in of_it}
    assert re.fullmatch("key-[0-9a-f]+", subject)
    assert {line["session"] for line in of_it} == {ready["session_id"]}
    (line,) = logged(trace=trace_id, message="request")
    assert (line["method"], line["route"], line["status"]) == ("GET", "/v1/stream", 101)
    shown = await wire.get(server.url + "/metrics", KEY)
    assert wire.metric(shown.body, "stt_http_requests_total", route="/v1/stream", status="101") >= 1
    assert wire.metric(shown.body, "stt_http_request_seconds_count", route="/v1/stream") == 0


async def test_a_file_and_its_session_are_one_trace(server: wire.Process, logged: Log) -> None:
    trace_id, header = new_trace()
    where = "/v1/transcribe?encoding=pcm_s16le&sample_rate=16000"
    answer = await wire.get(server.url + where, header | KEY, method="POST", body=marker_audio(2))
    assert (answer.status, answer.headers["x-request-id"]) == (200, trace_id)
    await wire.eventually(lambda: bool(logged(trace=trace_id, message="request")))
    of_it = logged(trace=trace_id)
    assert [line["message"] for line in of_it] == ["session opened", "session closed", "request"]
    assert len({(line["session"], line["subject"]) for line in of_it}) == 1
    line = of_it[-1]
    assert (line["route"], line["bytes_in"], line["bytes_out"]) == (
        "/v1/transcribe",
        len(marker_audio(2)),
        len(answer.body),
    )


async def test_a_job_goes_on_under_the_trace_of_who_handed_it_in(server: wire.Process, logged: Log) -> None:
    trace_id, header = new_trace()
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(marker_audio(2))
    head = b'--x\r\ncontent-disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    form = head + content.getvalue() + b"\r\n--x--\r\n"
    kind = {"content-type": "multipart/form-data; boundary=x"}
    answer = await wire.get(server.url + "/v1/jobs", header | KEY | kind, method="POST", body=form)
    assert answer.status == 202, answer.body
    await wire.eventually(lambda: bool(logged(trace=trace_id, message="job succeeded")))
    messages = [line["message"] for line in logged(trace=trace_id)]
    assert {"request", "job begun", "session opened", "session closed", "job succeeded"} <= set(messages)
    assert len({line["subject"] for line in logged(trace=trace_id)}) == 1


async def test_a_resumed_session_has_both_traces(server: wire.Process, logged: Log) -> None:
    first, header = new_trace()
    async with Wire.stream(server.url, headers=header | KEY, start={}) as client:
        ready = await client.until("ready")
        client.reset()
    second, header = new_trace()
    papers = {"session_id": ready["session_id"], "resume_token": ready["resume_token"]}
    async with Wire.stream(server.url, headers=header | KEY, start=papers) as client:
        again = await client.until("ready")
        assert (again["resumed"], again["trace_id"]) == (True, second)
        await client.say({"type": "stop"})
        await client.finish()
    await wire.eventually(lambda: bool(logged(trace=second, message="request")))
    (resumed,) = logged(message="session resumed", session=ready["session_id"])
    assert (resumed["trace"], resumed["session_trace"]) == (second, first)
    (closed,) = logged(message="session closed", session=ready["session_id"])
    assert (closed["trace"], closed["sender_trace"]) == (first, second)
