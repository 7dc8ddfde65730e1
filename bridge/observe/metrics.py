"""Prometheus metrics of one server. Label values are bound once, not for each session or frame."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from bridge.observe.collectors import EngineCollector, LoopCounter, LoopHistogram

_LATENCY: Final = (0.025, 0.05, 0.1, 0.2, 0.3, 0.45, 0.5, 0.7, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0)
_REQUEST: Final = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0)
_HANDLING: Final = (2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 5e-3, 2e-2, 1e-1, 1.0)
_LIFETIME: Final = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0)
_JOB: Final = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0)
_REPORTED_SECONDS: Final = 1.0
_QUEUE: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """Every metric; `registry` is what `/metrics` shows."""

    def __init__(self) -> None:
        self._of_backend: dict[str, _BackendLabels] = {}
        self.registry = CollectorRegistry()
        self.sessions_open = Gauge("stt_sessions_open", "Sessions open now.", registry=self.registry)
        self.sessions = LoopCounter("stt_sessions", "Sessions ended, by the code they ended with.", ["code"])
        self.registry.register(self.sessions)
        self.refused = Counter(
            "stt_refused", "Connections and sessions refused, by code.", ["code"], registry=self.registry
        )
        self.connection_seconds = Histogram(
            "stt_connection_seconds", "Lifetime of a streaming connection.", buckets=_LIFETIME, registry=self.registry
        )
        self.audio_seconds = LoopCounter("stt_audio_seconds", "Audio received, in seconds.", ["protocol"])
        self.registry.register(self.audio_seconds)
        self.first_partial_seconds = Histogram(
            "stt_first_partial_latency_seconds",
            "From the arrival of the audio to the utterance's first partial that covers it.",
            ["backend"],
            buckets=_LATENCY,
            registry=self.registry,
        )
        self.partial_seconds = LoopHistogram(
            "stt_partial_latency_seconds",
            "From the arrival of the audio to a partial that covers it.",
            _LATENCY,
            label="backend",
        )
        self.registry.register(self.partial_seconds)
        self.final_seconds = LoopHistogram(
            "stt_final_latency_seconds",
            "From the arrival of a final's last word (of its end, where the backend times no words) to the final.",
            _LATENCY,
            label="backend",
        )
        self.registry.register(self.final_seconds)
        self.chunk_seconds = LoopHistogram(
            "stt_chunk_handling_seconds", "Handling of one message with audio.", _HANDLING
        )
        self.registry.register(self.chunk_seconds)
        self.queue_seconds = LoopHistogram(
            "stt_queue_depth_seconds", "Audio waiting for the backend, seen at each partial.", _QUEUE
        )
        self.registry.register(self.queue_seconds)
        self.backend_errors = Counter(
            "stt_backend_errors", "Backend streams that failed, by code.", ["backend", "code"], registry=self.registry
        )
        self.backend_audio_seconds = LoopCounter(
            "stt_backend_audio_seconds",
            "Audio given to the backend, in seconds, counted when a stream ends; replays count again.",
            ["backend"],
        )
        self.registry.register(self.backend_audio_seconds)
        self.backend_streams = Gauge(
            "stt_backend_sessions", "Sessions on the backend.", ["backend"], registry=self.registry
        )
        self.backend_breaker = Gauge(
            "stt_backend_breaker",
            "The backend's circuit breaker: 0 closed, 1 half open, 2 open.",
            ["backend"],
            registry=self.registry,
        )
        self.backend_moves = Counter(
            "stt_backend_moves",
            "Sessions whose backend failed and another went on, by both.",
            ["from", "to"],
            registry=self.registry,
        )
        self.sessions_held = Gauge(
            "stt_sessions_held", "Open sessions that wait for their sender to come back.", registry=self.registry
        )
        self.resumes = Counter(
            "stt_resumes",
            "Senders that came back: to a session that was held here, or to one that the event log had.",
            ["session"],
            registry=self.registry,
        )
        self.receivers = Gauge("stt_receivers", "Connections that only receive.", registry=self.registry)
        self.event_log_up = Gauge(
            "stt_event_log_up", "1 while the event log can be written, or there is none.", registry=self.registry
        )
        self.event_log_up.set(1)
        self.event_log_backlog = Gauge(
            "stt_event_log_backlog", "Sessions that have events to be written.", registry=self.registry
        )
        self.http = HttpMetrics(self.registry)
        self.rate_limited = Counter(
            "stt_rate_limited",
            "Requests and connections refused for their rate: of a key, of an address, or of an address that fails to "
            "say who it is.",
            ["by"],
            registry=self.registry,
        )
        self.jobs = JobMetrics(self.registry)
        _begin(self.rate_limited, "key", "address", "failures")
        self.ready = Gauge("stt_ready", "1 while new sessions are taken.", registry=self.registry)
        self._engine = EngineCollector(self.registry.collect())
        self.registry.register(self._engine)

    def show(self, collectors: Iterable[Any]) -> None:
        """Show an engine's own collectors, too."""
        self._engine.add(collectors)

    def of_backend(self, backend: str) -> _BackendLabels:
        """What sessions report of one backend."""
        if (labels := self._of_backend.get(backend)) is None:
            labels = self._of_backend[backend] = _BackendLabels(self, backend)
        return labels

    def session(self, protocol: str, spend: Callable[[float], None] | None = None) -> SessionMetrics:
        """What one session reports to; `spend` is told the seconds of audio, too."""
        return SessionMetrics(self, protocol, spend)

    def follow_sessions(
        self,
        held: Callable[[], float],
        receivers: Callable[[], float],
        log_up: Callable[[], float],
        backlog: Callable[[], float],
    ) -> None:
        """Ask these at each scrape."""
        self.sessions_held.set_function(held)
        self.receivers.set_function(receivers)
        self.event_log_up.set_function(log_up)
        self.event_log_backlog.set_function(backlog)

    def follow_backend(self, backend: str, streams: Callable[[], float], breaker: Callable[[], float]) -> None:
        """Ask these at each scrape."""
        self.backend_streams.labels(backend).set_function(streams)
        self.backend_breaker.labels(backend).set_function(breaker)


def _begin(counter: Counter, *values: str) -> None:
    """Show these from the start, at 0: Prometheus takes no notice of a series' first value."""
    for value in values:
        counter.labels(value)


class HttpMetrics:
    """What every request is counted in; `in_flight` are those that are being served. For one event loop's thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.in_flight = 0
        self._requests = LoopCounter(
            "stt_http_requests",
            "HTTP requests and WebSocket openings, by route, method and status.",
            ["route", "method", "status"],
        )
        registry.register(self._requests)
        self._seconds = LoopHistogram(
            "stt_http_request_seconds", "From an HTTP request's head to the end of its answer.", _REQUEST, label="route"
        )
        registry.register(self._seconds)
        gauge = Gauge("stt_http_requests_in_flight", "HTTP requests that are being served.", registry=registry)
        gauge.set_function(lambda: self.in_flight)

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self.count(route, method, status)
        self._seconds.labels(route).observe(seconds)

    def count(self, route: str, method: str, status: int) -> None:
        """Count one, without its time. The caller sees to it that there are few routes and methods."""
        self._requests.labels(route, method, str(status)).inc()


class _BackendLabels:
    """What sessions report of one backend, bound to its name."""

    def __init__(self, metrics: Metrics, backend: str) -> None:
        self.first_partial = metrics.first_partial_seconds.labels(backend)
        self.partial = metrics.partial_seconds.labels(backend)
        self.final = metrics.final_seconds.labels(backend)
        self.given = metrics.backend_audio_seconds.labels(backend)


class JobMetrics:
    """What jobs come to; `bridge.jobs.worker` and `bridge.jobs.webhooks` report."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._jobs = Gauge("stt_jobs", "Jobs in the store, by state.", ["state"], registry=registry)
        self._seconds = Histogram(
            "stt_job_seconds",
            "An attempt at a job, by how it ended: its state, `put_back`, or `gone` to another worker.",
            ["state"],
            buckets=_JOB,
            registry=registry,
        )
        self._attempts = Counter(
            "stt_job_attempts",
            "Attempts begun: the first, again after a failure or a stop, or instead of a worker that was lost.",
            ["why"],
            registry=registry,
        )
        self._webhooks = Counter("stt_webhooks", "Webhooks tried, by outcome.", ["outcome"], registry=registry)
        _begin(self._attempts, "first", "again", "takeover")
        _begin(self._webhooks, "delivered", "failed", "given_up")

    def counted(self, jobs: Mapping[str, int]) -> None:
        """So many jobs are in each state."""
        for state, count in jobs.items():
            self._jobs.labels(state).set(count)

    def began(self, *, attempt: int, lost: int) -> None:
        """An attempt was begun; `lost` of those before it with their worker."""
        self._attempts.labels("first" if attempt == 1 else "takeover" if lost else "again").inc()

    def ended(self, how: str, seconds: float) -> None:
        """It ended: in a state of the job, `put_back`, or `gone`."""
        self._seconds.labels(how).observe(seconds)

    def told(self, outcome: str) -> None:
        """A webhook was tried: `delivered`, `failed` or `given_up`."""
        self._webhooks.labels(outcome).inc()


class SessionMetrics:
    """What one session reports to: a `SessionObserver`.

    Audio is summed here and handed on when it is a second, and at the end, because a counter costs more than a frame.
    """

    __slots__ = (
        "_audio",
        "_metrics",
        "_spend",
        "_unreported",
    )

    def __init__(self, metrics: Metrics, protocol: str, spend: Callable[[float], None] | None = None) -> None:
        self._metrics = metrics
        self._spend = spend
        self._audio = metrics.audio_seconds.labels(protocol)
        self._unreported = 0.0

    def audio(self, seconds: float) -> None:
        """Seconds of audio received."""
        self._unreported += seconds
        if self._unreported >= _REPORTED_SECONDS:
            self.report()

    def given(self, backend: str, seconds: float) -> None:
        """A backend stream ended."""
        self._labels(backend).given.inc(seconds)

    def partial(self, backend: str, latency: float, *, first: bool) -> None:
        """A partial left."""
        labels = self._labels(backend)
        labels.partial.observe(latency)
        if first:
            labels.first_partial.observe(latency)

    def final(self, backend: str, latency: float) -> None:
        """A final left."""
        self._labels(backend).final.observe(latency)

    def backend_error(self, backend: str, code: str) -> None:
        """A backend stream failed."""
        self._metrics.backend_errors.labels(backend, code).inc()

    def moved(self, left: str, taken: str) -> None:
        """Another backend went on."""
        self._metrics.backend_moves.labels(left, taken).inc()

    def queued(self, seconds: float) -> None:
        """So much audio waits for the backend."""
        self._metrics.queue_seconds.observe(seconds)

    def _labels(self, backend: str) -> _BackendLabels:
        return self._metrics.of_backend(backend)

    def report(self) -> None:
        """Hand on what was summed."""
        self._audio.inc(self._unreported)
        if self._spend is not None:
            self._spend(self._unreported)
        self._unreported = 0.0
