"""What a receipt says of the machine and the code that it comes from."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import bridge

ROOT: Final = Path(__file__).resolve().parent.parent
PACKAGES: Final = ("websockets", "uvicorn", "uvloop", "msgspec", "numpy", "pocketsphinx", "faster-whisper")


def machine(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """Where the figures come from, with the versions of these packages as far as they are installed."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "versions": {"stt-bridge": bridge.__version__} | {name: v for name in packages if (v := _version(name))},
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
