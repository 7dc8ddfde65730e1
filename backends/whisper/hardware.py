"""Which device decodes, in which kind of numbers, and how the work is spread over it."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import ctranslate2
from threadpoolctl import threadpool_limits

from backends.base import BackendError, Fault
from backends.whisper.options import WhisperOptions
from backends.whisper.scheduler import Plan

log = logging.getLogger(__name__)

CUBLAS: Final = "libcublas.so.12"
INSTALL_CUBLAS: Final = "pip install nvidia-cublas-cu12"
"""All that CTranslate2 needs beside the driver; cuDNN it has not needed since 4.8."""

SMALL_MODEL_BYTES: Final = 300_000_000
"""Up to here (tiny, base and small in int8) one core decodes a window within a second or so."""
THREADS_OF_LARGE: Final = 4


@dataclass(frozen=True, slots=True)
class Hardware:
    """A device and how a model is loaded onto it; `reason` says why, for people."""

    device: Literal["cpu", "cuda"]
    index: int
    compute_type: str
    reason: str


def choose(options: WhisperOptions) -> Hardware:
    """The device and the compute type.

    Raises:
        BackendError: `no_gpu`, `cuda_missing` or `bad_compute_type`, each with what would help.
    """
    device, why = _device(options)
    supported = ctranslate2.get_supported_compute_types(device, options.device_index)
    wanted: str = options.compute_type
    if wanted != "auto" and wanted not in supported:
        raise BackendError(
            f"{wanted} is not available on this {device}: STT_WHISPER_COMPUTE_TYPE may be auto or one of "
            + ", ".join(sorted(supported)),
            code="bad_compute_type",
            fault=Fault.OPERATOR,
        )
    if wanted == "auto":
        usual = ("float16", "int8_float32", "float32") if device == "cuda" else ("int8", "float32")
        wanted = next(kind for kind in usual if kind in supported)
    return Hardware(device, options.device_index, wanted, why)


def _device(options: WhisperOptions) -> tuple[Literal["cpu", "cuda"], str]:
    if options.device == "cpu":
        return "cpu", "the CPU was asked for"
    count = _gpus()
    missing = None if count == 0 else _missing_cuda()
    if options.device_index < count and missing is None:
        return "cuda", f"GPU {options.device_index} of {count}"
    if options.device == "cuda":
        if missing is not None:
            raise BackendError(missing, code="cuda_missing", fault=Fault.OPERATOR)
        raise BackendError(
            f"there is no GPU {options.device_index}: {count} can be used (is NVIDIA's driver there, and new enough?)",
            code="no_gpu",
            fault=Fault.OPERATOR,
        )
    if missing is not None:
        log.warning("whisper: a GPU is there and cannot be used, so the CPU decodes: %s", missing)
        return "cpu", "the GPU's library is missing"
    return "cpu", "no GPU can be used"


def _gpus() -> int:
    try:
        return int(ctranslate2.get_cuda_device_count())
    except (RuntimeError, ValueError):  # builds without CUDA
        return 0


def _missing_cuda() -> str | None:
    """What is missing to use a GPU; None: nothing. Loads cuBLAS from pip's folder, where `dlopen` does not search."""
    try:
        ctypes.CDLL(CUBLAS)
    except OSError:
        pass
    else:
        return None
    spec = importlib.util.find_spec("nvidia")
    for root in (spec.submodule_search_locations or []) if spec else []:
        library = Path(root, "cublas", "lib", CUBLAS)
        if library.exists():
            try:
                ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
            except OSError as exc:
                return f"{library.name} cannot be loaded: {exc}"
            return None
    return f"{CUBLAS} is not installed: {INSTALL_CUBLAS}"


def plan(options: WhisperOptions, hardware: Hardware, model_bytes: int) -> Plan:
    """How windows are spread over the device.

    On a GPU batches pay, and a second worker prepares the next while the first waits. On a CPU a batch of 8 took 1.2
    to 1.9 times as long as its windows alone, and two workers of one thread carried 1.9 times as much as one.
    """
    cores = _cores()
    feature_threads = max(1, min(4, cores // 2))
    if hardware.device == "cuda":
        workers, batch = options.workers or 2, options.batch_size or 16
        return Plan(
            workers,
            batch,
            options.batch_wait_seconds if batch > 1 else 0.0,
            feature_threads,
            f"GPU, {hardware.compute_type}: batches of up to {batch}, because a GPU decodes many windows in little "
            f"more time than one; {workers} workers, so that the next batch is ready when one ends",
        )
    threads = cpu_threads(options, model_bytes)
    workers, batch = options.workers or max(1, cores // threads), options.batch_size or 1
    return Plan(
        workers,
        batch,
        options.batch_wait_seconds if batch > 1 else 0.0,
        feature_threads,
        f"CPU, {hardware.compute_type}: {workers} worker{'s' * (workers > 1)} of {threads} "
        f"thread{'s' * (threads > 1)} on {cores} core{'s' * (cores > 1)}, because on a CPU windows side by side are "
        + ("faster than batches" if batch == 1 else f"faster than batches; batches of {batch} were asked for"),
    )


def cpu_threads(options: WhisperOptions, model_bytes: int) -> int:
    """Threads of each worker on a CPU: one for small models, which is best for many sessions, more for large ones."""
    return options.threads or (1 if model_bytes <= SMALL_MODEL_BYTES else min(THREADS_OF_LARGE, _cores()))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spare_cores() -> None:
    """Have numpy multiply on one core: features are made by threads of ours, side by side.

    Its BLAS else wakes a thread on every core for a matrix of 80 rows: 15 ms of CPU for a window of 2 s, against 2.6.
    """
    threadpool_limits(1, user_api="blas")


def keep_memory() -> None:
    """Have glibc keep the encoder's large buffers instead of giving each back to the system, a third of its time.

    Measured with the dimensions of tiny and base: 19 % less; with this project's test model 30 %. The memory of a busy
    worker is what it is anyway; a `MALLOC_…` variable in the environment is respected.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mmap_max, trim_threshold, top_pad = -4, -1, -2  # of mallopt(3)
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 1 << 30)
    libc.mallopt(top_pad, 64 << 20)


def free_memory(chosen: Hardware) -> int | None:
    """Bytes that a model may still take on the device; None: nobody knows."""
    if chosen.device == "cuda":
        try:
            import pynvml  # noqa: PLC0415 - optional: nvidia-ml-py

            pynvml.nvmlInit()
            return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(chosen.index)).free)
        except Exception:  # noqa: BLE001 - not installed, or no driver that answers
            return None
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
