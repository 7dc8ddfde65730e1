"""Log lines for operators: one per lifecycle edge, JSON by default, without a transcript and without a secret.

Each line says by itself to which request, session and caller it belongs, if to any: see `bridge.observe.trace`.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Final, Literal

import msgspec

from bridge.observe import trace


def configure(level: str, style: Literal["json", "text"], process: int | None = None) -> None:
    """Send every log line to standard error in this style. To be called once, by the command.

    `process`: the number that lines of this process bear, where several write to the same place.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(place)
    handler.setFormatter(JsonFormatter(process) if style == "json" else TextFormatter(process))
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False  # looked up, and shown nowhere
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # uvicorn logs each WebSocket's address with its query string, where an API key may stand; what matters of a
    # connection is logged by the transport.
    for name in ("uvicorn.error", "uvicorn.access", "websockets"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    # What each request to a collector or a webhook says of itself may hold an address with a secret.
    for name in ("httpx", "httpcore", "urllib3"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def place(record: logging.LogRecord) -> bool:
    """A handler's filter: add to the line where the program was when it was written. What it says itself counts."""
    here = trace.current()
    if here is not None:
        fields = record.__dict__
        fields.setdefault("trace", here.trace_id)
        for name, value in (("session", here.session), ("subject", here.subject), ("sender_trace", here.sender_trace)):
            if value is not None:
                fields.setdefault(name, value)
    return True


_OWN: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
"""What every record has; the rest is what the line was given."""


class JsonFormatter(logging.Formatter):
    """One object a line, in ASCII. Ours, because a library's takes 40 µs a line, and each request has one."""

    def __init__(self, process: int | None = None) -> None:
        super().__init__()
        self._process: dict[str, object] = {} if process is None else {"process": process}
        self._second = -1
        self._time = ""
        self._encoder = msgspec.json.Encoder(enc_hook=str)

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        fields: dict[str, object] = {
            "time": self._stamp(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        } | self._process
        fields |= {name: value for name, value in record.__dict__.items() if name not in _OWN}
        if record.exc_info:
            fields["exc_info"] = self.formatException(record.exc_info)
        elif record.exc_text:
            fields["exc_info"] = record.exc_text
        if record.stack_info:
            fields["stack_info"] = self.formatStack(record.stack_info)
        try:
            line = self._encoder.encode(fields).decode()
        except (TypeError, ValueError, OverflowError):  # half a character, a number that is too large
            line = ""
        # Standard error may not be able to write anything else; the slower encoder escapes it.
        return line if line and line.isascii() else json.dumps(fields, default=str)

    def _stamp(self, record: logging.LogRecord) -> str:
        second = int(record.created)
        if second != self._second:
            self._time = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
            self._second = second
        return f"{self._time},{int(record.msecs):03d}"


class TextFormatter(logging.Formatter):
    """Adds the session and the numbers that a line carries."""

    def __init__(self, process: int | None = None) -> None:
        number = "" if process is None else f" {process}:"
        super().__init__(f"%(asctime)s %(levelname)-7s{number} %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = super().format(record)
        extra = [f"{name}={record.__dict__[name]}" for name in _EXTRAS if name in record.__dict__]
        return f"{line} ({', '.join(extra)})" if extra else line


_EXTRAS: Final = (
    "session",
    "job",
    "backend",
    "code",
    "close_code",
    "seconds",
    "audio_seconds",
    "failures",
    "method",
    "route",
    "status",
    "ms",
    "bytes_in",
    "bytes_out",
    "subject",
    "trace",
    "sender_trace",
    "session_trace",
)
