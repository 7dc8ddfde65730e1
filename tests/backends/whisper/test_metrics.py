"""The engine's metrics, as Prometheus reads them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from backends.whisper.metrics import Gpus, WhisperMetrics
from backends.whisper.window import Kind

FINAL, PARTIAL = Kind.FINAL, Kind.PARTIAL


class Page:
    """A registry with the engine's collectors."""

    def __init__(self, *collectors: Any) -> None:
        self.registry = CollectorRegistry()
        for collector in collectors:
            self.registry.register(collector)

    def __call__(self, sample: str, /, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"stt_whisper_{sample}", labels)


@pytest.fixture
def now() -> list[float]:
    return [0.0]


@pytest.fixture
def metrics(now: list[float]) -> WhisperMetrics:
    return WhisperMetrics(clock=lambda: now[0])


@pytest.fixture
def page(metrics: WhisperMetrics) -> Page:
    return Page(*metrics.collectors)


def test_batches(metrics: WhisperMetrics, page: Page) -> None:
    metrics.decoded(PARTIAL, 3, 0.3, 12.0)
    metrics.decoded(PARTIAL, 1, 0.1, 4.0)
    metrics.decoded(FINAL, 2, 0.5, 20.0)
    assert page("batch_size_sum", kind="partial") == 4
    assert page("batch_size_bucket", kind="partial", le="2.0") == 1
    assert page("decode_seconds_sum", kind="partial") == pytest.approx(0.4)
    assert page("decode_seconds_count", kind="final") == 1
    assert page("decoded_audio_seconds_total", kind="partial") == 16
    assert page("decoded_audio_seconds_total", kind="final") == 20


def test_waits_and_ends(metrics: WhisperMetrics, page: Page) -> None:
    metrics.waited(FINAL, 0.3)
    metrics.dropped()
    metrics.dropped()
    metrics.rejected("no_speech", FINAL)
    metrics.rejected("loop", PARTIAL)
    metrics.rejected("loop", PARTIAL)
    metrics.failed("overloaded", PARTIAL)
    metrics.died()
    assert page("queue_wait_seconds_sum", kind="final") == pytest.approx(0.3)
    assert page("dropped_partials_total") == 2
    assert page("rejected_hypotheses_total", reason="loop", kind="partial") == 2
    assert page("rejected_hypotheses_total", reason="no_speech", kind="final") == 1
    assert page("failed_windows_total", code="overloaded", kind="partial") == 1
    assert page("worker_deaths_total") == 1


def test_what_is_there_from_the_beginning(page: Page) -> None:
    for kind in ("final", "partial"):
        assert page("decode_seconds_count", kind=kind) == 0
        assert page("decoded_audio_seconds_total", kind=kind) == 0
        assert page("queue_wait_seconds_count", kind=kind) == 0
    assert page("dropped_partials_total") == 0
    assert page("partial_stretch") == 1
    assert page("real_time_factor") is None


def test_the_real_time_factor_looks_back_a_minute(metrics: WhisperMetrics, page: Page, now: list[float]) -> None:
    metrics.decoded(FINAL, 1, 3.0, 10.0)
    now[0] = 0.5
    metrics.decoded(PARTIAL, 4, 1.0, 10.0)
    assert page("real_time_factor") == pytest.approx(0.2)
    now[0] = 50.0
    metrics.decoded(FINAL, 1, 1.0, 20.0)
    assert page("real_time_factor") == pytest.approx(0.125)
    now[0] = 60.5
    assert page("real_time_factor") == pytest.approx(0.05)
    now[0] = 200.0
    assert page("real_time_factor") is None
    for second in range(1_000):
        now[0] = 200.0 + second / 4
        metrics.decoded(FINAL, 1, 0.1, 1.0)
    assert len(metrics._factor._seconds) <= 61


def test_the_model_and_the_plan_are_those_of_now(metrics: WhisperMetrics, page: Page) -> None:
    metrics.model("small", "cpu", "int8")
    metrics.model("large-v3-turbo", "cuda", "float16")
    assert page("model_info", name="large-v3-turbo", device="cuda", compute_type="float16") == 1
    assert page("model_info", name="small", device="cpu", compute_type="int8") is None
    metrics.plan({"workers": 1, "reason": "old"}, lambda: 2.0)
    metrics.plan({"workers": 2, "reason": "two cores"}, lambda: 4.0)
    assert page("plan_info", workers="2", reason="two cores") == 1
    assert page("partial_stretch") == 4


def nvml(**parts: Any) -> SimpleNamespace:
    """What pynvml looks like, with two GPUs."""
    functions: dict[str, Any] = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": lambda handle: [b"NVIDIA Old", "NVIDIA New"][handle],
        "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(used=(handle + 1) * 2**30, total=80 * 2**30),
        "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=25 * (handle + 1), memory=3),
    }
    return SimpleNamespace(**functions | parts)


def test_gpus() -> None:
    page = Page(Gpus(nvml))
    assert page("gpu_memory_used_bytes", gpu="0", name="NVIDIA Old") == 2**30
    assert page("gpu_memory_size_bytes", gpu="1", name="NVIDIA New") == 80 * 2**30
    assert page("gpu_utilization_ratio", gpu="1", name="NVIDIA New") == 0.5


def raises(*_: Any) -> Any:
    raise OSError("NVML is not in the mood")


@pytest.mark.parametrize("load", [raises, lambda: nvml(nvmlInit=raises), SimpleNamespace])
def test_without_a_gpu_it_is_not_asked_again(load: Any) -> None:
    tries = []

    def counted() -> Any:
        tries.append(1)
        return load()

    page = Page(Gpus(counted))
    for _ in range(3):
        generate_latest(page.registry)
        assert page("gpu_memory_used_bytes", gpu="0", name="NVIDIA Old") is None
    assert len(tries) == 1


def test_a_part_of_a_gpu_has_memory_and_no_utilization() -> None:
    page = Page(Gpus(lambda: nvml(nvmlDeviceGetUtilizationRates=raises)))
    assert page("gpu_memory_used_bytes", gpu="0", name="NVIDIA Old") == 2**30
    assert page("gpu_utilization_ratio", gpu="0", name="NVIDIA Old") is None


def test_a_gpu_that_is_lost_for_a_while() -> None:
    library = nvml()
    page = Page(Gpus(lambda: library))
    count = library.nvmlDeviceGetCount
    library.nvmlDeviceGetCount = raises
    assert page("gpu_memory_used_bytes", gpu="0", name="NVIDIA Old") is None
    library.nvmlDeviceGetCount = count
    assert page("gpu_memory_used_bytes", gpu="0", name="NVIDIA Old") == 2**30


def test_registering_looks_at_no_hardware() -> None:
    looked = []
    CollectorRegistry(auto_describe=True).register(Gpus(lambda: looked.append(1)))
    assert not looked


def test_everything_can_be_shown(metrics: WhisperMetrics, page: Page) -> None:
    metrics.decoded(FINAL, 1, 0.1, 1.0)
    text = generate_latest(page.registry).decode()
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")}
    assert all(name.startswith("stt_whisper_") for name in names)
    assert "stt_whisper_real_time_factor" in names
