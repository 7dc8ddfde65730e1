"""What the engine shows Prometheus."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, Final

from prometheus_client import Counter, Gauge, Histogram, Info
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from backends.whisper.window import Kind

log = logging.getLogger(__name__)

LABELS: Final = {kind: kind.name.lower() for kind in Kind}
"""The value of the label `kind`."""
FACTOR_SECONDS: Final = 60.0
"""What the real-time factor looks back on."""

_SIZES: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_WAITS: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0)
_DECODES: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0, 60.0)


class WhisperMetrics:
    """Every metric of the engine; `collectors` is what a registry is given. For the event loop's thread.

    It outlives the model: where one is switched for another, its scheduler reports to the same metrics. The kind of a
    batch is that of the request that it was made for. `clock` gives seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._batch_size = Histogram(
            "stt_whisper_batch_size", "Windows decoded together.", ["kind"], buckets=_SIZES, registry=None
        )
        self._queue_wait = Histogram(
            "stt_whisper_queue_wait_seconds",
            "From the request for a window to the beginning of its batch, the making of features included.",
            ["kind"],
            buckets=_WAITS,
            registry=None,
        )
        self._decode = Histogram(
            "stt_whisper_decode_seconds", "Time that a batch took.", ["kind"], buckets=_DECODES, registry=None
        )
        self._audio = Counter(
            "stt_whisper_decoded_audio_seconds", "Audio in the windows that were decoded.", ["kind"], registry=None
        )
        self._factor = RealTimeFactor(clock)
        self._dropped = Counter(
            "stt_whisper_dropped_partials", "Partials given up for something newer before they began.", registry=None
        )
        self._rejected = Counter(
            "stt_whisper_rejected_hypotheses",
            "Hypotheses that were not believed, by reason.",
            ["reason", "kind"],
            registry=None,
        )
        self._deaths = Counter("stt_whisper_worker_deaths", "Threads that died and were replaced.", registry=None)
        self._failed = Counter(
            "stt_whisper_failed_windows", "Windows that could not be decoded, by code.", ["code", "kind"], registry=None
        )
        self._stretch: Callable[[], float] = lambda: 1.0
        stretch = Gauge(
            "stt_whisper_partial_stretch",
            "Factor on the time between two partials: more than 1 under pressure.",
            registry=None,
        )
        stretch.set_function(lambda: self._stretch())  # noqa: PLW0108 - another one after a switch
        self._model = Info("stt_whisper_model", "The model that serves.", registry=None)
        self._plan = Info("stt_whisper_plan", "How windows are put to the model, and why so.", registry=None)
        for label in LABELS.values():
            for family in (self._batch_size, self._queue_wait, self._decode, self._audio):
                family.labels(label)  # shown from the beginning: a rate needs the zero before the first
        self.collectors: Sequence[Collector] = (
            self._batch_size,
            self._queue_wait,
            self._decode,
            self._audio,
            self._factor,
            self._dropped,
            self._rejected,
            self._failed,
            self._deaths,
            stretch,
            self._model,
            self._plan,
            Gpus(),
        )

    def waited(self, kind: Kind, seconds: float) -> None:
        """A request was taken up for the first time, so long after it was made."""
        self._queue_wait.labels(LABELS[kind]).observe(seconds)

    def decoded(self, kind: Kind, size: int, seconds: float, audio_seconds: float) -> None:
        """A batch of so many windows with so much audio was decoded."""
        label = LABELS[kind]
        self._batch_size.labels(label).observe(size)
        self._decode.labels(label).observe(seconds)
        self._audio.labels(label).inc(audio_seconds)
        self._factor.add(seconds, audio_seconds)

    def dropped(self) -> None:
        """A partial was replaced before it began."""
        self._dropped.inc()

    def rejected(self, reason: str, kind: Kind) -> None:
        """A hypothesis was not believed; the reason is a short, stable name."""
        self._rejected.labels(reason, LABELS[kind]).inc()

    def failed(self, code: str, kind: Kind) -> None:
        """A window could not be decoded; the error's code."""
        self._failed.labels(code, LABELS[kind]).inc()

    def died(self) -> None:
        """A thread died."""
        self._deaths.inc()

    def model(self, name: str, device: str, compute_type: str) -> None:
        """What serves from now on."""
        self._model.info({"name": name, "device": device, "compute_type": compute_type})

    def plan(self, facts: Mapping[str, object], stretch: Callable[[], float]) -> None:
        """How windows are put to the model from now on, and where the stretch of partials can be read."""
        self._plan.info({name: str(value) for name, value in facts.items()})
        self._stretch = stretch


class RealTimeFactor(Collector):
    """Decode time per second of audio, lately: how many workers one stream of such windows would keep busy."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seconds: deque[tuple[int, float, float]] = deque()  # of each second: which, decode time, audio

    def add(self, decode_seconds: float, audio_seconds: float) -> None:
        """A batch was decoded."""
        second = int(self._clock())
        if self._seconds and self._seconds[-1][0] == second:
            _, decode, audio = self._seconds.pop()
            decode_seconds += decode
            audio_seconds += audio
        self._seconds.append((second, decode_seconds, audio_seconds))
        self._forget()

    def collect(self) -> Iterator[Metric]:
        """One gauge; without a value while nothing was decoded."""
        family = GaugeMetricFamily(
            "stt_whisper_real_time_factor", "Decode time per second of audio decoded, in the last minute."
        )
        self._forget()
        if audio := sum(audio for _, _, audio in self._seconds):
            family.add_metric([], sum(decode for _, decode, _ in self._seconds) / audio)
        yield family

    def _forget(self) -> None:
        since = self._clock() - FACTOR_SECONDS
        while self._seconds and self._seconds[0][0] < since:
            self._seconds.popleft()


class Gpus(Collector):
    """Memory and utilization of the GPUs of this machine by NVML, read when asked for; nothing where there is none.

    `load` imports pynvml (package nvidia-ml-py). What it raises never leaves this class: a scrape shows the rest.
    """

    def __init__(self, load: Callable[[], Any] = lambda: import_module("pynvml")) -> None:
        self._load = load
        self._nvml: Any = None
        self._absent = False

    def describe(self) -> Iterable[Metric]:
        """The names, without a look at the hardware."""
        return self._families()

    def collect(self) -> Iterable[Metric]:
        """The gauges of every GPU that answers."""
        families = used, size, utilization = self._families()
        for labels, handle in self._handles():
            try:
                memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
                used.add_metric(labels, float(memory.used))
                size.add_metric(labels, float(memory.total))
                utilization.add_metric(labels, self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100)
            except Exception as exc:  # noqa: BLE001 - a part of a GPU (MIG) has no utilization; a lost one has nothing
                log.debug("NVML tells nothing of GPU %s: %s", labels[0], exc)
        return families

    @staticmethod
    def _families() -> tuple[GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily]:
        labels = ["gpu", "name"]
        return (
            GaugeMetricFamily(
                "stt_whisper_gpu_memory_used_bytes", "Memory of the GPU that anybody uses.", labels=labels
            ),
            GaugeMetricFamily("stt_whisper_gpu_memory_size_bytes", "Memory that the GPU has.", labels=labels),
            GaugeMetricFamily(
                "stt_whisper_gpu_utilization_ratio",
                "Share of the time in which the GPU computed, 0 to 1.",
                labels=labels,
            ),
        )

    def _handles(self) -> list[tuple[list[str], Any]]:
        if self._absent:
            return []
        try:
            if self._nvml is None:
                nvml = self._load()
                nvml.nvmlInit()
                self._nvml = nvml
            found = []
            for index in range(self._nvml.nvmlDeviceGetCount()):
                handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
                name = self._nvml.nvmlDeviceGetName(handle)
                found.append(([str(index), name.decode() if isinstance(name, bytes) else str(name)], handle))
        except Exception as exc:  # noqa: BLE001 - no package, no driver, no GPU: each is usual
            self._absent = self._nvml is None  # what was there once may be there again
            log.debug("no GPU metrics: %s", exc)
            return []
        return found
