"""Which device, which numbers, how many workers: with a GPU, without one, and with one that cannot be used."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ctranslate2
import pytest

from backends.base import BackendError, Fault
from backends.whisper import hardware
from backends.whisper.hardware import Hardware
from backends.whisper.options import WhisperOptions
from backends.whisper.scheduler import out_of_memory

ON_A_GPU = {"float32", "float16", "bfloat16", "int8", "int8_float16", "int8_float32", "int8_bfloat16"}
ON_A_CPU = {"float32", "int8", "int16", "int8_float32"}
TINY, LARGE = 40_000_000, 1_600_000_000

Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """Makes a machine: how many GPUs, where cuBLAS lies (nowhere, the system, pip's folder), how many cores."""

    def make(
        gpus: int = 0, *, cublas: str = "", cores: int = 8, broken: bool = False, on_a_gpu: set[str] = ON_A_GPU
    ) -> None:
        def open_library(name: str, **options: Any) -> object:
            if (name == hardware.CUBLAS and cublas == "system") or (name.startswith(str(tmp_path)) and not broken):
                return object()
            raise OSError(f"{name}: cannot open shared object file")

        def supported(device: str, index: int = 0) -> set[str]:
            return on_a_gpu if device == "cuda" else ON_A_CPU

        library = tmp_path / "cublas" / "lib" / hardware.CUBLAS
        if cublas == "pip":
            library.parent.mkdir(parents=True)
            library.touch()
        found = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)]) if cublas == "pip" else None
        monkeypatch.setattr(ctranslate2, "get_cuda_device_count", lambda: gpus)
        monkeypatch.setattr(ctranslate2, "get_supported_compute_types", supported)
        monkeypatch.setattr(ctypes, "CDLL", open_library)
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: found)
        monkeypatch.setattr(hardware, "_cores", lambda: cores)

    return make


def chosen(**options: Any) -> tuple[str, int, str]:
    choice = hardware.choose(WhisperOptions(**options))
    assert choice.reason
    return choice.device, choice.index, choice.compute_type


def refusal(**options: Any) -> BackendError:
    with pytest.raises(BackendError) as caught:
        hardware.choose(WhisperOptions(**options))
    assert (caught.value.fault, caught.value.retryable) == (Fault.OPERATOR, False)
    return caught.value


# The device


def test_without_a_gpu_the_cpu(machine: Machine) -> None:
    machine()
    assert chosen() == ("cpu", 0, "int8")
    error = refusal(device="cuda")
    assert error.code == "no_gpu"
    assert "0 can be used" in str(error)


def test_a_build_without_cuda_has_no_gpu(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine()

    def count() -> int:
        raise RuntimeError("this build has no CUDA")

    monkeypatch.setattr(ctranslate2, "get_cuda_device_count", count)
    assert chosen() == ("cpu", 0, "int8")


@pytest.mark.parametrize("cublas", ["system", "pip"])
def test_with_a_gpu_that_one(machine: Machine, cublas: str) -> None:
    machine(2, cublas=cublas)
    assert chosen() == ("cuda", 0, "float16")
    assert chosen(device_index=1) == ("cuda", 1, "float16")
    assert chosen(device="cpu") == ("cpu", 0, "int8")
    assert refusal(device="cuda", device_index=2).code == "no_gpu"


def test_a_gpu_that_is_not_there_is_the_cpu(machine: Machine) -> None:
    machine(1, cublas="system")
    assert chosen(device_index=1)[0] == "cpu"


def test_a_gpu_without_cublas(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    """The package that is missing is named: where the GPU was asked for as an error, else as a warning."""
    machine(1)
    error = refusal(device="cuda")
    assert error.code == "cuda_missing"
    assert hardware.INSTALL_CUBLAS in str(error)
    with caplog.at_level(logging.WARNING):
        assert chosen() == ("cpu", 0, "int8")
    assert hardware.INSTALL_CUBLAS in caplog.text


def test_a_cublas_that_cannot_be_loaded(machine: Machine) -> None:
    machine(1, cublas="pip", broken=True)
    error = refusal(device="cuda")
    assert error.code == "cuda_missing"
    assert "cannot be loaded" in str(error)


# The numbers


def test_the_compute_type_that_is_asked_for(machine: Machine) -> None:
    machine(1, cublas="system")
    assert chosen(compute_type="int8_float16") == ("cuda", 0, "int8_float16")
    assert chosen(compute_type="int16", device="cpu") == ("cpu", 0, "int16")


def test_one_that_is_not_supported_names_those_that_are(machine: Machine) -> None:
    machine()
    error = refusal(compute_type="float16")
    assert error.code == "bad_compute_type"
    assert "auto or one of float32, int16, int8, int8_float32" in str(error)


def test_a_gpu_that_is_slow_at_float16(machine: Machine) -> None:
    machine(1, cublas="system", on_a_gpu={"float32", "int8", "int8_float32"})
    assert chosen() == ("cuda", 0, "int8_float32")


# The plan


@pytest.mark.parametrize(
    ("cores", "size", "options", "workers", "threads"),
    [
        (1, TINY, {}, 1, 1),
        (2, TINY, {}, 2, 1),
        (8, TINY, {}, 8, 1),
        (8, LARGE, {}, 2, 4),
        (2, LARGE, {}, 1, 2),
        (8, LARGE, {"threads": 2}, 4, 2),
        (8, TINY, {"workers": 3}, 3, 1),
        (2, TINY, {"threads": 4}, 1, 4),
    ],
)
def test_on_a_cpu_windows_side_by_side(
    machine: Machine, cores: int, size: int, options: dict[str, int], workers: int, threads: int
) -> None:
    machine(cores=cores)
    given = WhisperOptions(**options)  # type: ignore[arg-type]
    plan = hardware.plan(given, hardware.choose(given), size)
    assert hardware.cpu_threads(given, size) == threads
    assert (plan.workers, plan.max_batch, plan.max_wait_seconds) == (workers, 1, 0)
    assert plan.feature_threads >= 1
    assert f"{workers} worker{'s' * (workers > 1)} of {threads} thread{'s' * (threads > 1)}" in plan.reason


def test_batches_on_a_cpu_only_if_asked_for(machine: Machine) -> None:
    machine()
    given = WhisperOptions(batch_size=4, batch_wait_seconds=0.02)
    plan = hardware.plan(given, hardware.choose(given), TINY)
    assert (plan.max_batch, plan.max_wait_seconds) == (4, 0.02)
    assert "batches of 4 were asked for" in plan.reason


def test_on_a_gpu_batches(machine: Machine) -> None:
    machine(1, cublas="system")
    given = WhisperOptions()
    plan = hardware.plan(given, hardware.choose(given), LARGE)
    assert (plan.workers, plan.max_batch, plan.max_wait_seconds) == (2, 16, given.batch_wait_seconds)
    assert "float16" in plan.reason
    alone = WhisperOptions(batch_size=1, workers=1)
    plan = hardware.plan(alone, hardware.choose(alone), LARGE)
    assert (plan.workers, plan.max_batch, plan.max_wait_seconds) == (1, 1, 0)


# Memory


def test_free_memory_of_the_machine() -> None:
    free = hardware.free_memory(Hardware("cpu", 0, "int8", ""))
    assert free is None or 0 < free < 1 << 46


@pytest.mark.parametrize("free", [None, 5_000_000_000])
def test_free_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch, free: int | None) -> None:
    def info(handle: int) -> types.SimpleNamespace:
        if free is None:
            raise OSError("no driver")
        return types.SimpleNamespace(free=free if handle == 1 else 0)

    library = types.SimpleNamespace(
        nvmlInit=lambda: None, nvmlDeviceGetHandleByIndex=lambda index: index, nvmlDeviceGetMemoryInfo=info
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    assert hardware.free_memory(Hardware("cuda", 1, "float16", "")) == free


@pytest.mark.parametrize(
    ("exc", "expected"),
    [
        (RuntimeError("CUDA failed with error out of memory"), True),
        (RuntimeError("cuBLAS failed with status CUBLAS_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("std::bad_alloc"), True),
        (MemoryError(), True),
        (RuntimeError("Invalid input features shape"), False),
    ],
)
def test_out_of_memory(exc: Exception, expected: bool) -> None:
    assert out_of_memory(exc) is expected
