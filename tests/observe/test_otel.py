"""Traces at a collector: a real one's protocol, on a real socket."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from backends.markers import marker_audio
from bridge.app import make_bridge
from bridge.observe import trace
from bridge.observe.recording import open_tracing
from bridge.settings import Settings, SettingsError
from tests import wire
from tests.wire import Wire

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="stt-bridge[otel] is not installed")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from bridge.observe.otel import FLUSH_SECONDS, OtelRecorder

GIVEN = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"


class Collector:
    """Takes what is sent, and reads it."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, bytes]] = []
        self.stuck = threading.Event()
        self.free = threading.Event()
        self.free.set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.requests.append((self.path, body))
                collector.stuck.set()
                collector.free.wait(30)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def spans(self) -> dict[str, Any]:
        """By name."""
        found: dict[str, Any] = {}
        for path, body in self.requests:
            assert path == "/v1/traces"
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                about = {a.key: a.value.string_value for a in resource.resource.attributes}
                assert about["service.name"] == "stt-bridge"
                for scope in resource.scope_spans:
                    found |= {span.name: span for span in scope.spans}
        return found


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.05,))
    thread.start()
    yield made
    made.free.set()
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def attributes(span: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


async def test_a_connection_its_session_and_its_backend_s_stream_are_one_trace(collector: Collector) -> None:
    header = {"traceparent": f"00-{GIVEN}-{CALLER}-01", "authorization": "Bearer sesame"}
    async with (
        wire.serve(otel_endpoint=collector.url, api_keys=("sesame",)) as url,
        Wire.stream(url, "/v1/stream?phrases=secret", headers=header, start={}) as client,
    ):
        assert client.outcome.headers["x-request-id"] == GIVEN
        ready = await client.until("ready")
        await client.audio(marker_audio(2))
        await client.say({"type": "stop"})
        assert (await client.finish()).words == wire.markers(2)
    spans = collector.spans()  # the server has sent what was left
    assert set(spans) == {"GET /v1/stream", "session", "backend stream"}
    assert {span.trace_id.hex() for span in spans.values()} == {GIVEN}
    connection, session, stream = spans["GET /v1/stream"], spans["session"], spans["backend stream"]
    assert connection.parent_span_id.hex() == CALLER
    assert client.outcome.headers["traceparent"] == f"00-{GIVEN}-{connection.span_id.hex()}-01"
    assert session.parent_span_id == connection.span_id
    assert stream.parent_span_id == session.span_id
    said = attributes(connection)
    assert said.pop("enduser.id").startswith("key-")
    assert said == {
        "http.request.method": "GET",
        "http.route": "/v1/stream",
        "http.response.status_code": 101,
        "stt.session.id": ready["session_id"],
    }
    assert attributes(session) == {
        "stt.session.id": ready["session_id"],
        "stt.protocol": "native",
        "stt.language": "en-US",
        "stt.backend": "scripted",
        "stt.code": "stopped",
        "stt.audio_seconds": pytest.approx(len(marker_audio(2)) / 32_000),
    }
    assert attributes(stream) == {"stt.backend": "scripted", "stt.attempt": 0}
    everything = b"".join(body for _, body in collector.requests)
    assert b"w0" not in everything  # nothing of what was said
    assert b"sesame" not in everything
    assert b"secret" not in everything


async def test_a_file_s_request_its_session_and_its_stream_are_one_trace(collector: Collector) -> None:
    async with wire.serve(otel_endpoint=collector.url) as url:
        where = url + "/v1/transcribe?encoding=pcm_s16le&sample_rate=16000"
        answer = await wire.get(where, method="POST", body=marker_audio(2))
    assert answer.status == 200
    spans = collector.spans()
    request, session, stream = (spans[name] for name in ("POST /v1/transcribe", "session", "backend stream"))
    assert {span.trace_id.hex() for span in spans.values()} == {answer.headers["x-request-id"]}
    assert (session.parent_span_id, stream.parent_span_id) == (request.span_id, session.span_id)
    assert attributes(request)["stt.session.id"] == attributes(session)["stt.session.id"]
    assert session.end_time_unix_nano <= request.end_time_unix_nano


async def test_requests_of_all_outcomes(collector: Collector) -> None:
    async with wire.serve(otel_endpoint=collector.url) as url:
        answer = await wire.get(url + "/v1/sessions/none-such?token=sesame")
        refused = await wire.get(url + "/healthz", {"traceparent": f"00-{GIVEN}-{CALLER}-00"})
    assert refused.headers["x-request-id"] == GIVEN
    spans = collector.spans()
    assert set(spans) == {"GET /v1/sessions/{session_id}"}  # whoever asked did not want the other recorded
    (span,) = spans.values()
    assert span.trace_id.hex() == answer.headers["x-request-id"]
    assert attributes(span)["http.response.status_code"] == 404
    assert b"none-such" not in collector.requests[0][1]


async def test_a_collector_that_does_not_answer_keeps_nobody(collector: Collector) -> None:
    collector.free.clear()
    async with wire.serve(otel_endpoint=collector.url) as url:
        await wire.get(url + "/healthz")
        began = time.monotonic()
    assert collector.stuck.is_set()
    assert time.monotonic() - began < FLUSH_SECONDS + 3


async def test_what_goes_wrong_is_named_by_its_code() -> None:
    """A message may quote what somebody said."""
    exporter = InMemorySpanExporter()
    recorder = OtelRecorder(None, exporter=exporter)
    with (
        pytest.raises(ValueError, match="said"),
        trace.Tracing(recorder).scope("job", attributes={"stt.job.id": "j"}),
        trace.scope("session", {}, session="s"),
    ):
        raise ValueError("what somebody said")
    await recorder.close()
    session, job = exporter.get_finished_spans()
    assert (session.name, job.name) == ("session", "job")
    assert session.parent == job.get_span_context()
    for span in (session, job):
        assert (span.status.status_code.name, span.status.description) == ("ERROR", "ValueError")
        assert not span.events
    trace.enter(None)


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_HEADERS": "a=b"},
    ],
)
def test_nothing_is_recorded_unless_somebody_wants_it(env: dict[str, str]) -> None:
    assert open_tracing(None, env, "1")._recorder is None


def test_the_standard_s_own_variable_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    recorder = open_tracing(None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, "1")._recorder
    assert isinstance(recorder, OtelRecorder)
    recorder._provider.shutdown()


def test_a_missing_package_is_named_with_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bridge.observe.otel", None)
    settings = Settings.load({}, None, backend="scripted", otel_endpoint="http://127.0.0.1:4318", event_log="off")
    with pytest.raises(SettingsError, match=r"STT_OTEL_ENDPOINT: .*pip install 'stt-bridge\[otel\]'"):
        make_bridge(settings, {})


def test_without_a_collector_nothing_of_it_is_loaded() -> None:
    code = (
        "import sys; from bridge.app import make_bridge; from bridge.settings import Settings;"
        "make_bridge(Settings.load({}, None, backend='scripted', event_log='off'), {});"
        "sys.exit(any(name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter')) for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=30).returncode == 0
