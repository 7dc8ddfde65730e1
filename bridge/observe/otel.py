"""Traces for a collector, by OpenTelemetry's own library; nothing of it is imported where no collector is named.

Ended spans wait in a bounded queue for a thread that sends them; while the collector is away the oldest are dropped.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Final

from opentelemetry import trace as api
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from bridge.observe.trace import Attributes, Parent, Trace

_NOWHERE: Final = Context()

FLUSH_SECONDS: Final = 3.0
"""For what is left to be sent when the server stops; a collector that is away does not keep it."""
PATH: Final = "/v1/traces"


class OtelRecorder:
    """A `Recorder`. `endpoint` is the collector's address, without the path; None: as the `OTEL_…` variables say.

    Those variables also say what else the standard lets them: sampling, headers, attributes of this service, limits.
    """

    def __init__(self, endpoint: str | None, *, version: str = "", exporter: SpanExporter | None = None) -> None:
        if exporter is None:
            exporter = OTLPSpanExporter(endpoint=None if endpoint is None else endpoint.rstrip("/") + PATH)
        about = {"service.name": "stt-bridge"} | ({"service.version": version} if version else {})
        resource = Resource(about).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("stt-bridge", version)

    def start(self, name: str, parent: Parent | Trace | None, attributes: Attributes, *, serves: bool) -> OtelSpan:
        """See `Recorder`. Never the library's own idea of what goes on: the parent is said."""
        if isinstance(parent, Trace) and isinstance(parent.span, OtelSpan):
            context = api.set_span_in_context(parent.span.span, _NOWHERE)
        elif parent is not None:
            context = api.set_span_in_context(api.NonRecordingSpan(_remote(parent)), _NOWHERE)
        else:
            context = _NOWHERE
        kind = api.SpanKind.SERVER if serves else api.SpanKind.INTERNAL
        return OtelSpan(self._tracer.start_span(name, context, kind, attributes))

    async def close(self) -> None:
        """Send what is left, within a limit."""
        # The library would wait half a minute for a collector that is away: then its thread is left behind.
        worker = threading.Thread(target=self._provider.shutdown, name="otel-flush", daemon=True)
        worker.start()
        await asyncio.to_thread(worker.join, FLUSH_SECONDS)


class OtelSpan:
    """A `Span`."""

    def __init__(self, span: api.Span) -> None:
        self.span = span
        context = span.get_span_context()
        self.trace_id = f"{context.trace_id:032x}"
        self.span_id = f"{context.span_id:016x}"
        self.flags = f"{context.trace_flags & 1:02x}"

    def set(self, attributes: Attributes) -> None:
        """See `Span`."""
        self.span.set_attributes(attributes)

    def rename(self, name: str) -> None:
        """See `Span`."""
        self.span.update_name(name)

    def fail(self, reason: str) -> None:
        """See `Span`."""
        self.span.set_status(api.StatusCode.ERROR, reason)

    def end(self) -> None:
        """See `Span`."""
        self.span.end()


def _remote(parent: Parent | Trace) -> api.SpanContext:
    return api.SpanContext(
        int(parent.trace_id, 16), int(parent.span_id, 16), True, api.TraceFlags(int(parent.flags, 16))
    )
