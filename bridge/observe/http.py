"""Every HTTP request: its trace id in the answer, one line in the log, its numbers for Prometheus, its span.

Pure ASGI and outermost, so that it sees what everything inside of it answers; 20 to 30 µs a request. Streaming
connections are no business of it: see `Opened`, which their endpoint uses once for each.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from bridge.observe import trace
from bridge.observe.metrics import HttpMetrics
from bridge.observe.trace import Trace, Tracing

log = logging.getLogger("bridge.access")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER: Final = "other"
"""Where no route, or a method that nobody knows, was asked for: strangers do not decide how many labels there are."""
PAGES: Final = frozenset({"/docs", "/openapi.json"})
"""Routes that are not the framework's own kind, and have no template."""
PROBES: Final = frozenset({"/healthz", "/readyz", "/metrics"})
"""Asked every few seconds by machines: logged at `debug` as long as they are answered."""
GONE: Final = 499
"""Status of a request whose client went before it was answered, as in nginx's logs."""


class HttpObserver:
    """Around the application."""

    def __init__(self, app: App, metrics: HttpMetrics, tracing: Tracing) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        began = time.perf_counter()
        here = self._tracing.begin("http", trace.parent_of(scope["headers"]))
        status = bytes_in = bytes_out = 0

        async def received() -> Message:
            nonlocal bytes_in
            message = await receive()
            if body := message.get("body"):
                bytes_in += len(body)
            return message

        async def sent(message: Message) -> None:
            nonlocal status, bytes_out
            if message["type"] == "http.response.start":
                status = message["status"]
                took = (time.perf_counter() - began) * 1_000
                message["headers"] = [
                    *message.get("headers", ()),
                    *here.headers,
                    (b"server-timing", b"app;dur=%.1f" % took),  # until here: what follows may be a long stream
                ]
            elif body := message.get("body"):
                bytes_out += len(body)
            await send(message)

        self._metrics.in_flight += 1
        try:
            await self._app(scope, received, sent)
        finally:
            self._metrics.in_flight -= 1
            self._finish(scope, here, status or GONE, time.perf_counter() - began, bytes_in, bytes_out)

    def _finish(self, scope: Message, here: Trace, status: int, seconds: float, bytes_in: int, bytes_out: int) -> None:
        method = scope["method"] if scope["method"] in METHODS else OTHER
        route = template(scope)
        self._metrics.request(route, method, status, seconds)
        level = logging.DEBUG if route in PROBES and status < 500 else logging.INFO
        write(level, method, route, status, seconds, bytes_in=bytes_in, bytes_out=bytes_out)
        end_span(here, method, route, status)


class Opened:
    """One streaming connection, from its opening on; to be closed once. For its endpoint, before it answers."""

    def __init__(self, scope: Message, route: str, metrics: HttpMetrics, tracing: Tracing) -> None:
        self._began = time.perf_counter()
        self._route = route
        self._metrics = metrics
        self.trace = tracing.begin("websocket", trace.parent_of(scope["headers"]))
        self.status = GONE
        """Of the answer to its opening."""

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """What the answer says."""
        return self.trace.headers

    def closed(self) -> None:
        """It has ended. Its time is not counted among the requests'."""
        self._metrics.count(self._route, "GET", self.status)
        write(logging.INFO, "GET", self._route, self.status, time.perf_counter() - self._began)
        end_span(self.trace, "GET", self._route, self.status)


def template(scope: Message) -> str:
    """The route that was found, without what stands in its place: of these there are few."""
    path = getattr(scope.get("route"), "path_format", None)
    if isinstance(path, str):
        return path
    return scope["path"] if scope["path"] in PAGES else OTHER


def write(level: int, method: str, route: str, status: int, seconds: float, **sizes: int) -> None:
    """One line for each request. Made by hand: looking for the line of code that it comes from costs as much again."""
    if log.isEnabledFor(level):
        record = logging.LogRecord(log.name, level, __file__, 0, "request", None, None)
        record.__dict__.update(method=method, route=route, status=status, ms=round(seconds * 1_000, 1), **sizes)
        log.handle(record)


def end_span(here: Trace, method: str, route: str, status: int) -> None:
    """What is known of a request in the end."""
    if (recorded := here.span) is None:
        return
    recorded.rename(f"{method} {route}")
    recorded.set({"http.request.method": method, "http.route": route, "http.response.status_code": status})
    if here.subject is not None:
        recorded.set({"enduser.id": here.subject})
    if here.session is not None:
        recorded.set({"stt.session.id": here.session})
    if status >= 500:
        recorded.fail(str(status))
    recorded.end()
