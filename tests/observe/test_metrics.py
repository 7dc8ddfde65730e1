"""An engine's own metrics beside the bridge's: shown, and harmless if something is wrong with them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from bridge.observe.collectors import LoopCounter
from bridge.observe.metrics import Metrics


class Collector:
    """Whatever a test has it give."""

    def __init__(self, *families: Any) -> None:
        self._families = families

    def collect(self) -> Iterator[Any]:
        for family in self._families:
            if isinstance(family, Exception):
                raise family
            yield family


def shown(metrics: Metrics) -> list[str]:
    """The samples that a scrape has, `name{labels} value`."""
    return [line for line in generate_latest(metrics.registry).decode().splitlines() if not line.startswith("#")]


def test_the_engine_s_metrics_are_shown_beside_the_bridge_s() -> None:
    metrics = Metrics()
    counter = Counter("stt_whisper_dropped", "Dropped.", ["kind"], registry=None)
    histogram = Histogram("stt_whisper_batch_size", "Sizes.", buckets=[1, 2], registry=None)
    metrics.show([counter, histogram])
    counter.labels("partial").inc(3)
    histogram.observe(2)
    lines = shown(metrics)
    assert 'stt_whisper_dropped_total{kind="partial"} 3.0' in lines
    assert 'stt_whisper_batch_size_bucket{le="2.0"} 1.0' in lines
    assert "stt_sessions_open 0.0" in lines
    assert "stt_event_log_up 1.0" in lines  # where there is none, none is away


@pytest.mark.parametrize(
    "wrong",
    [
        RuntimeError("the GPU is gone"),
        "no metric",
        None,
        GaugeMetricFamily("stt_whisper_bad", "No number.", value="x"),  # type: ignore[arg-type]
        GaugeMetricFamily("stt_sessions_open", "Taken.", value=1),
        GaugeMetricFamily("stt_sessions_total", "Taken by a counter's series.", value=1),
        GaugeMetricFamily("stt_final_latency_seconds_sum", "Taken by a histogram's series.", value=1),
        GaugeMetricFamily("stt_whisper_fine", "Taken by the one before.", value=2),
    ],
)
def test_what_is_wrong_costs_no_other_metric_and_is_told_once(wrong: Any, caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()
    before = shown(metrics)
    fine, last = (Gauge(f"stt_whisper_{name}", "Fine.", registry=None) for name in ("fine", "last"))
    metrics.show([fine, Collector(wrong), last])
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            lines = shown(metrics)
            assert sorted(lines) == sorted([*before, "stt_whisper_fine 0.0", "stt_whisper_last 0.0"])
    assert len(caplog.records) == 1
    assert "left out" in caplog.text


def test_one_that_fails_now_and_then_is_shown_again() -> None:
    metrics = Metrics()
    failing = True

    def read() -> float:
        if failing:
            raise OSError
        return 7.0

    gauge = Gauge("stt_whisper_gpu_bytes", "Memory.", registry=None)
    gauge.set_function(read)
    metrics.show([gauge])
    assert "stt_whisper_gpu_bytes 7.0" not in shown(metrics)
    failing = False
    assert "stt_whisper_gpu_bytes 7.0" in shown(metrics)


def test_a_name_is_no_matter_of_the_order_of_scrapes() -> None:
    """The first of two with one name is shown, at every scrape."""
    metrics = Metrics()
    metrics.show([Collector(*(Metric(name, "M.", "gauge") for name in ("stt_x", "stt_x")))])
    for _ in range(2):
        assert [f.name for f in metrics.registry.collect()].count("stt_x") == 1


def test_counts_without_locks_read_as_the_library_s_own() -> None:
    """The same lines, so that nobody's dashboard notices which of both it is."""
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    library = Counter("stt_a", "Text.", ["x", "y"], registry=theirs)
    counter = LoopCounter("stt_a", "Text.", ["x", "y"])
    ours.register(counter)
    for labels in (library.labels, counter.labels):
        labels("1", 'a"b').inc()
        labels("1", 'a"b').inc(2.5)
        labels("2", "c")
    shown = [line for line in generate_latest(theirs).decode().splitlines() if "_created" not in line]
    assert generate_latest(ours).decode().splitlines() == shown
