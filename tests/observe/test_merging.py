"""Several expositions as one: what Prometheus reads is the samples of all, each with its label."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from bridge.observe.merging import labelled, merged

ODD = 'a "b" {c} d\\e\nf'


def exposition(number: int) -> bytes:
    registry = CollectorRegistry()
    Gauge("stt_open", "Open now, or\nlater.", registry=registry).set(number)
    Gauge("stt_nobody", "No series yet.", ["kind"], registry=registry)
    counter = Counter("stt_ended", "Ended.", ["code"], registry=registry)
    counter.labels(ODD).inc(10 * number)
    histogram = Histogram("stt_seconds", "Time.", ["route"], buckets=[1, 2], registry=registry)
    histogram.labels("/x").observe(number)
    if number == 2:
        Gauge("stt_only_here", "In one process.", registry=registry).set(5)
    return generate_latest(registry)


def test_what_prometheus_reads() -> None:
    text = merged(labelled(exposition(number), b"process", b"%d" % number) for number in (1, 2))
    families = {family.name: family for family in text_string_to_metric_families(text.decode())}
    alone = {family.name: family for family in text_string_to_metric_families(exposition(2).decode())}
    assert families.keys() == alone.keys()
    for name, family in families.items():
        assert (family.type, family.documentation) == (alone[name].type, alone[name].documentation)
        assert text.count(f"# TYPE {name} ".encode()) + text.count(f"# TYPE {name}_total ".encode()) == 1
        of_second = [s for s in family.samples if s.labels["process"] == "2"]
        assert [
            (s.name, {k: v for k, v in s.labels.items() if k != "process"}, s.value)
            for s in of_second
            if not s.name.endswith("_created")
        ] == [(s.name, s.labels, s.value) for s in alone[name].samples if not s.name.endswith("_created")]
    assert {s.labels["process"]: s.value for s in families["stt_open"].samples} == {"1": 1, "2": 2}
    assert {s.labels["process"] for s in families["stt_only_here"].samples} == {"2"}


def test_nothing() -> None:
    assert merged([]) == merged([b""]) == b""
    assert labelled(b"", b"process", b"1") == b""
