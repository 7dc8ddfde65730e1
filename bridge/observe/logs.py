"""Log lines for operators: one per lifecycle edge, JSON by default, without a transcript and without a secret."""

from __future__ import annotations

import logging
import sys
from typing import Final, Literal

from pythonjsonlogger.json import JsonFormatter

_FIELDS: Final = "%(asctime)s %(levelname)s %(name)s %(message)s"


def configure(level: str, style: Literal["json", "text"]) -> None:
    """Send every log line to standard error in this style. To be called once, by the command."""
    handler = logging.StreamHandler(sys.stderr)
    if style == "json":
        handler.setFormatter(
            JsonFormatter(_FIELDS, rename_fields={"asctime": "time", "levelname": "level", "name": "logger"})
        )
    else:
        handler.setFormatter(_TextFormatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # uvicorn logs each WebSocket's address with its query string, where an API key may stand; what matters of a
    # connection is logged by the transport.
    for name in ("uvicorn.error", "uvicorn.access", "websockets"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


class _TextFormatter(logging.Formatter):
    """Adds the session and the numbers that a line carries."""

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        extra = [f"{name}={record.__dict__[name]}" for name in _EXTRAS if name in record.__dict__]
        return f"{line} ({', '.join(extra)})" if extra else line


_EXTRAS: Final = ("session", "backend", "code", "close_code", "seconds", "audio_seconds", "failures")
