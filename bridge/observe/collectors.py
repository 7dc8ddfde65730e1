"""Collectors of our own: one that is cheap enough for every frame, and one that shows an engine's."""

from __future__ import annotations

import bisect
import itertools
import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

log = logging.getLogger(__name__)


class _Series:
    """The values of one label of a `LoopHistogram`."""

    __slots__ = (
        "_bounds",
        "counts",
        "sum",
    )

    def __init__(self, bounds: Sequence[float]) -> None:
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self._bounds = bounds

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect.bisect_left(self._bounds, value)] += 1
        self.sum += value


class LoopHistogram(Collector):
    """A histogram for what happens at every frame: without locks, for one event loop's thread; one label at most."""

    def __init__(self, name: str, text: str, bounds: Sequence[float], label: str | None = None) -> None:
        self._name = name
        self._text = text
        self._bounds = bounds
        self._labelnames = [] if label is None else [label]  # called as in the library's own collectors
        self._series: dict[str, _Series] = {}
        if label is None:
            self.observe = self.labels("").observe

    def labels(self, value: str) -> _Series:
        """The series with this value of the label."""
        if (series := self._series.get(value)) is None:
            series = self._series[value] = _Series(self._bounds)
        return series

    def collect(self) -> Iterator[Metric]:
        """What Prometheus is shown: cumulative counts."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labelnames)
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        for value, series in self._series.items():
            buckets = list(zip(bounds, map(float, itertools.accumulate(series.counts)), strict=True))
            family.add_metric([value] if self._labelnames else [], buckets, series.sum)
        yield family


class _Count:
    """One series of a `LoopCounter`."""

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1) -> None:
        """Count so much more."""
        self.value += amount


class LoopCounter(Collector):
    """A counter for what happens at every request, without locks: for one event loop's thread."""

    def __init__(self, name: str, text: str, labels: Sequence[str]) -> None:
        self._name = name
        self._text = text
        self._labelnames = labels  # called as in the library's own collectors
        self._series: dict[tuple[str, ...], _Count] = {}

    def labels(self, *values: str) -> _Count:
        """The series with these values of the labels."""
        if (series := self._series.get(values)) is None:
            series = self._series[values] = _Count()
        return series

    def collect(self) -> Iterator[Metric]:
        """What Prometheus is shown."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labelnames)
        for values, series in self._series.items():
            family.add_metric(values, series.value)
        yield family


class EngineCollector(Collector):
    """Shows an engine's collectors, which are somebody else's code: what is wrong with one costs no other metric.

    A metric is left out if it cannot be rendered, or if one of `others` or one before it in the same scrape has its
    name: Prometheus would throw the whole scrape away. The log says so once for each.
    """

    def __init__(self, others: Iterable[Metric]) -> None:
        self._taken = frozenset(name for family in others for name in _names(family))
        self._collectors: list[Any] = []
        self._told: set[str] = set()

    def add(self, collectors: Iterable[Any]) -> None:
        """Show these from now on."""
        self._collectors += collectors

    def collect(self) -> Iterator[Metric]:
        """Every metric that can be shown."""
        seen = set(self._taken)
        for collector in self._collectors:
            name = type(collector).__name__
            try:
                families = list(collector.collect())
            except Exception as exc:  # noqa: BLE001 - a GPU's driver, a plug-in: no reason to lose the other metrics
                self._tell(name, f"fails: {type(exc).__name__}: {exc}")
                continue
            for family in families:
                if reason := _unusable(family, seen):
                    self._tell(f"{name}: {getattr(family, 'name', family)!s}", reason)
                else:
                    seen |= _names(family)
                    yield family

    def _tell(self, what: str, reason: str) -> None:
        if what not in self._told:
            self._told.add(what)
            log.warning("a metric of the backend is left out: %s %s", what, reason)


class _Alone(Collector):
    """Gives one family."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterator[Metric]:
        """Give it."""
        yield self._family


_SERIES: Final = {
    "counter": ("_total", "_created"),
    "histogram": ("_bucket", "_sum", "_count", "_created"),
    "summary": ("_sum", "_count", "_created"),
    "info": ("_info",),
}


def _names(family: Metric) -> set[str]:
    """Every name that its series may have, and its own."""
    return {family.name, *(family.name + suffix for suffix in _SERIES.get(family.type, ()))}


def _unusable(family: Any, seen: Collection[str]) -> str | None:
    """Why Prometheus cannot be shown it; None if it can."""
    if not isinstance(family, Metric):
        return "is no metric"
    if not _names(family).isdisjoint(seen):
        return "has a name that is taken"
    registry = CollectorRegistry()
    registry.register(_Alone(family))
    try:
        generate_latest(registry)
    except Exception as exc:  # noqa: BLE001 - whatever it stumbles over
        return f"cannot be shown: {type(exc).__name__}: {exc}"
    return None
