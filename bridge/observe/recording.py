"""Whether traces are recorded, and by what. Importing what records them is left until somebody wants it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from bridge.observe.trace import Tracing

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""OpenTelemetry's own variables that name a collector."""


class MissingPackageError(Exception):
    """The text is the command that helps."""


def open_tracing(endpoint: str | None, env: Mapping[str, str], version: str) -> Tracing:
    """Traces, recorded where `endpoint` or one of `ENDPOINTS` names a collector and `OTEL_SDK_DISABLED` is not true.

    Raises:
        MissingPackageError: they should be recorded, and the library is not installed.
    """
    if endpoint is None and not any(env.get(name) for name in ENDPOINTS):
        return Tracing()
    if env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return Tracing()
    try:
        from bridge.observe.otel import OtelRecorder  # noqa: PLC0415 - an extra
    except ImportError as exc:
        raise MissingPackageError(
            f"traces need a package that is not installed: pip install 'stt-bridge[otel]' ({exc})"
        ) from None
    return Tracing(OtelRecorder(endpoint, version=version))
