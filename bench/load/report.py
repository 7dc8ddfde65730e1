"""What a run is told of: the three numbers (how many, how late, how wrong), with what keeps them honest beside them."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import bridge
from bench.load.plan import FRAME_SECONDS, Plan
from bench.load.results import Seen

Report = dict[str, Any]
ROOT: Final = Path(__file__).resolve().parent.parent.parent
PACKAGES: Final = ("websockets", "uvicorn", "uvloop", "msgspec", "numpy", "pocketsphinx", "faster-whisper")


def report(plan: Plan, seen: Seen) -> Report:
    """Latencies in milliseconds, on the audio's own clock.

    `latency_ms`: from sending audio to the first partial that covers it. `final_latency_ms`: to the final that ends
    there. `speech_end_ms`: from the end of an utterance, as the recording has it, to the final that holds it.
    `word_error_rate` is None where no backend listened.
    """
    audio = seen.frames * FRAME_SECONDS or 1
    heard = seen.words_said > 0
    return {
        "sessions": plan.sessions,
        "seconds": plan.seconds,
        "ramp": plan.ramp,
        "jitter": plan.jitter,
        "think": plan.think,
        "hold": plan.hold,
        "lasting": plan.lasting,
        "protocol": plan.dialect,
        "backends": seen.backends,
        "completed": seen.completed,
        "refused": seen.refused,
        "dropped": seen.dropped,
        "failures": seen.failures,
        "frames": seen.frames,
        "lost_frames": seen.lost_frames,
        "latency_ms": seen.partial.milliseconds(),
        "final_latency_ms": seen.final.milliseconds(),
        "speech_end_ms": seen.speech_end.milliseconds() if heard else {},
        "word_error_rate": round(seen.word_errors / seen.words_said, 4) if heard else None,
        "words": seen.words_said,
        "partials": seen.partials,
        "finals": seen.finals,
        "partials_per_second": round(seen.partials / audio, 2),
        "flicker": round(seen.words_changed / seen.words_shown, 4) if seen.words_shown else None,
        "opening_ms": seen.opening.milliseconds(),
        "generator_lag_ms": seen.lag.milliseconds(),
        "generator_cpu_seconds": round(seen.cpu_seconds, 2),
    }


def machine() -> Report:
    """Where the figures come from."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "versions": {"stt-bridge": bridge.__version__} | {name: v for name in PACKAGES if (v := _version(name))},
        "commit": _commit(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def _commit() -> str | None:
    """Of the checkout this runs from; None where there is none. A tree that was changed is marked."""
    if not (ROOT / ".git").exists():  # installed, perhaps into somebody else's checkout
        return None
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],  # noqa: S607 - git as it is found
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
