"""Which request a log line, an answer and a session belong to: one trace id, by W3C Trace Context.

A `Trace` stands in a context variable, which every task inherits that is begun meanwhile: a session that outlives the
connection that began it keeps that connection's trace id. Nothing here is done for a frame of audio.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import Final, Protocol

Attributes = Mapping[str, str | int | float | bool]
"""What a span says, by the names of OpenTelemetry's conventions, or beginning with `stt.`."""

# Version 00 has nothing behind the flags; a later one may (W3C Trace Context, 3.2.4). Of 00, no other form counts.
_TRACEPARENT: Final = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-[^\r\n]*)?", re.ASCII
)
LONGEST: Final = 512
"""Characters of a `traceparent` of a later version; more is no trace context."""
_HEADER: Final = b"traceparent"


class Parent:
    """Where a trace comes from: what another program said of it."""

    __slots__ = ("flags", "span_id", "trace_id")

    def __init__(self, trace_id: str, span_id: str, flags: str) -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        self.flags = flags


def parse(traceparent: str) -> Parent | None:
    """Read a `traceparent`; None for one that is not exactly as the standard has it: then a new trace begins."""
    if len(traceparent) > LONGEST or (match := _TRACEPARENT.fullmatch(traceparent)) is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == "00" and more is not None:
        return None
    return Parent(trace_id, span_id, f"{int(flags, 16) & 1:02x}")  # of the flags, only "sampled" is known here


def parent_of(headers: Iterable[tuple[bytes, bytes]]) -> Parent | None:
    """What a request's headers (names in lower case) say; None if they say nothing, or two things."""
    found = [value for name, value in headers if name == _HEADER]
    return parse(found[0].decode("latin-1").strip(" \t")) if len(found) == 1 else None


class Span(Protocol):
    """A stretch of time that a recorder keeps."""

    trace_id: str
    span_id: str
    flags: str

    def set(self, attributes: Attributes) -> None:
        """Say more of it."""

    def rename(self, name: str) -> None:
        """Call it something else."""

    def fail(self, reason: str) -> None:
        """It went wrong; the reason is a code, never what somebody said."""

    def end(self) -> None:
        """It is over."""


class Recorder(Protocol):
    """Keeps spans; see `bridge.observe.otel`."""

    def start(self, name: str, parent: Parent | Trace | None, attributes: Attributes, *, serves: bool) -> Span:
        """Begin one; `serves`: it answers another program."""

    async def close(self) -> None:
        """Keep what is left, within a limit of its own."""


class Trace:
    """Where the program is: in which request or session, and for whom.

    `subject`: who asks, once that is known. `sender_trace`: of a session, the trace id of the connection that sends to
    it, where that is not the one that began it. Who makes one says so by `enter`.
    """

    __slots__ = ("flags", "recorder", "sender_trace", "session", "span", "span_id", "subject", "trace_id")

    def __init__(self, trace_id: str, span_id: str, flags: str) -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        self.flags = flags
        self.session: str | None = None
        self.subject: str | None = None
        self.sender_trace: str | None = None
        self.recorder: Recorder | None = None
        self.span: Span | None = None

    @property
    def traceparent(self) -> str:
        """It as a header says it, for programs that are asked on its behalf, and for whoever asked."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """What an answer says of it. `x-request-id` is what other people's clients show."""
        return [(b"traceparent", self.traceparent.encode()), (b"x-request-id", self.trace_id.encode())]

    def child(self, name: str, attributes: Attributes) -> Trace:
        """A part of it, which is recorded if it is itself."""
        if self.recorder is None:
            child = Trace(self.trace_id, self.span_id, self.flags)
        else:
            child = _recorded(self.recorder, self.recorder.start(name, self, attributes, serves=False))
        child.session, child.subject = self.session, self.subject
        return child


_CURRENT: Final[ContextVar[Trace | None]] = ContextVar("stt_trace", default=None)


def current() -> Trace | None:
    """What goes on here."""
    return _CURRENT.get()


def enter(trace: Trace | None) -> None:
    """From now on, this task and those that it begins belong to it."""
    _CURRENT.set(trace)


def traceparent() -> str | None:
    """The header for a program that is asked on behalf of what goes on here."""
    trace = _CURRENT.get()
    return None if trace is None else trace.traceparent


def trace_id() -> str | None:
    """What people search for."""
    trace = _CURRENT.get()
    return None if trace is None else trace.trace_id


def identify(subject: str) -> None:
    """It is known who asks: a name that gives no key away."""
    if (trace := _CURRENT.get()) is not None:
        trace.subject = subject


def attend(session_id: str) -> None:
    """The connection is that session's."""
    if (trace := _CURRENT.get()) is not None:
        trace.session = session_id


def say(attributes: Attributes) -> None:
    """More about what goes on here, for whoever records it."""
    trace = _CURRENT.get()
    if trace is not None and trace.span is not None:
        trace.span.set(attributes)


class Tracing:
    """Begins traces. Without a recorder there are trace ids, and nothing is kept."""

    def __init__(self, recorder: Recorder | None = None) -> None:
        self._recorder = recorder

    async def close(self) -> None:
        """No more traces; what was recorded is kept."""
        if self._recorder is not None:
            await self._recorder.close()

    def begin(self, name: str, parent: Parent | None, *, serves: bool = True) -> Trace:
        """A trace, or this program's part of one, entered. Whoever begins it ends its span."""
        if self._recorder is None:
            fresh = os.urandom(24).hex()
            if parent is None:
                trace = Trace(fresh[:32], fresh[32:], "00")
            else:
                trace = Trace(parent.trace_id, fresh[32:], parent.flags)
        else:
            trace = _recorded(self._recorder, self._recorder.start(name, parent, {}, serves=serves))
        _CURRENT.set(trace)
        return trace

    @contextlib.contextmanager
    def scope(
        self, name: str, *, parent: str | None = None, subject: str | None = None, attributes: Attributes | None = None
    ) -> Iterator[Trace]:
        """Work that no request waits for, such as a job; `parent` is the `traceparent` of who asked for it once."""
        before = _CURRENT.get()
        trace = self.begin(name, parse(parent) if parent else None, serves=False)
        trace.subject = subject
        if trace.span is not None and attributes:
            trace.span.set(attributes)
        failure: BaseException | None = None
        try:
            yield trace
        except BaseException as exc:
            failure = exc
            raise
        finally:
            _CURRENT.set(before)
            if trace.span is not None:
                _end(trace.span, failure)


def scope(
    name: str, attributes: Attributes, *, session: str | None = None
) -> contextlib.AbstractContextManager[Trace | None]:
    """A part of what goes on here: a session. Left by another task, it ends all the same."""
    return _Part(name, attributes, session)


class _Part(contextlib.AbstractContextManager["Trace | None"]):
    """What `scope` gives. No generator: it would cost more than all that it does, at each request."""

    def __init__(self, name: str, attributes: Attributes, session: str | None) -> None:
        self._name = name
        self._attributes = attributes
        self._session = session
        self._before: Trace | None = None
        self._trace: Trace | None = None

    def __enter__(self) -> Trace | None:
        before = self._before = _CURRENT.get()
        if before is None:
            return None
        trace = self._trace = before.child(self._name, self._attributes)
        if self._session is not None:
            trace.session = self._session
            if before.session is None:
                before.session = self._session  # what the request or the job has to say afterwards is about it, too
        _CURRENT.set(trace)
        return trace

    def __exit__(
        self, _: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._trace is None:
            return
        _CURRENT.set(self._before)
        if self._trace.span is not None:
            _end(self._trace.span, exc)


def span(name: str, attributes: Attributes) -> contextlib.AbstractContextManager[Trace | None]:
    """A part that matters to a recorder alone: a backend's stream. Nothing where there is none."""
    trace = _CURRENT.get()
    return _NOTHING if trace is None or trace.recorder is None else scope(name, attributes)


_NOTHING: Final = contextlib.nullcontext(None)


def _end(recorded: Span, failure: BaseException | None) -> None:
    """It is over; what went wrong is said by its code: a message may quote what somebody said."""
    if isinstance(failure, Exception):
        recorded.fail(str(getattr(failure, "code", type(failure).__name__)))
    recorded.end()


def _recorded(recorder: Recorder, recording: Span) -> Trace:
    trace = Trace(recording.trace_id, recording.span_id, recording.flags)
    trace.recorder, trace.span = recorder, recording
    return trace
