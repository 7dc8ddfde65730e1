"""`make run BACKEND=…` installs what the backend needs before it serves."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from backends.registry import _BUILT_IN
from tests.docs import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def planned(tmp_path: Path, *arguments: str, gpu: bool = False, **env: str) -> list[str]:
    """The commands of `make run` in a new environment, on a machine with or without NVIDIA's driver."""
    tools = tmp_path / "bin"
    tools.mkdir(exist_ok=True)
    for name in ("make", "sh", *(["nvidia-smi"] if gpu else [])):
        found = shutil.which(name) or shutil.which("true")
        assert found
        (tools / name).unlink(missing_ok=True)
        (tools / name).symlink_to(found)
    done = subprocess.run(
        ["make", "--dry-run", "run", f"VENV={tmp_path / 'venv'}", "PYTHON=python3", *arguments],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if not key.startswith(("STT_", "MAKE", "BACKEND"))}
        | {"PATH": str(tools)}
        | env,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.splitlines()


def extras(commands: list[str]) -> list[str]:
    """What is installed beside the base; the last command serves."""
    assert re.search(r"/stt-bridge serve\b", commands[-1])
    return [name for line in commands[:-1] for name in re.findall(r"pip install .*'\.\[(\w+)\]'", line)]


@pytest.mark.parametrize("backend", _BUILT_IN)
def test_the_backend_s_extra_is_installed_before_it_serves(tmp_path: Path, backend: str) -> None:
    wanted = _BUILT_IN[backend].extra
    commands = planned(tmp_path, f"BACKEND={backend}")
    assert extras(commands) == ([wanted] if wanted else [])
    assert commands[-1].endswith(f"--backend {backend}")
    assert extras(planned(tmp_path, STT_BACKEND=backend)) == ([wanted] if wanted else [])


def test_without_a_backend_nothing_more_is_installed(tmp_path: Path) -> None:
    assert extras(planned(tmp_path)) == []


def test_where_there_is_a_gpu_whisper_gets_what_it_needs_for_it(tmp_path: Path) -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    chosen = extras(planned(tmp_path, "BACKEND=whisper", gpu=True))
    assert chosen == ["whisper", "cuda"]
    assert set(chosen) <= set(known)


def test_what_is_installed_is_not_installed_again(tmp_path: Path) -> None:
    stamps = tmp_path / "venv"
    (stamps / "bin").mkdir(parents=True)
    for name in ("bin/python", "run.stamp", "extra-whisper.stamp"):
        (stamps / name).touch()
    assert len(planned(tmp_path, "BACKEND=whisper")) == 1
    os.utime(stamps / "extra-whisper.stamp", (0, 0))  # older than what it was made from
    assert extras(planned(tmp_path, "BACKEND=whisper")) == ["whisper"]
