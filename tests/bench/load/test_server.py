"""The server that a run starts, and its cost."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.load.server import Cost, settings
from bridge.settings import Settings, SettingsError

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux tells")


pytestmark = pytest.mark.usefixtures("no_settings")


def loaded(variables: dict[str, str]) -> Settings:
    return Settings.load({name: value for name, value in variables.items() if value}, None)


def test_engines_are_the_user_s_and_the_rest_as_it_comes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("STT_API_KEYS=secret\nSTT_WHISPER_MODEL=tiny\nSTT_EVENT_LOG=off\n")
    monkeypatch.setenv("STT_BACKEND", "whisper")
    monkeypatch.setenv("STT_API_KEY", "secret")
    variables = settings(10, 0, 20, None)
    assert variables["STT_API_KEYS"] == variables["STT_EVENT_LOG"] == ""  # empty: `.env` does not fill it
    assert variables["STT_WHISPER_MODEL"] == "tiny"
    assert "STT_API_KEY" not in variables
    assert loaded(variables).backend == "whisper"
    assert loaded(variables).max_sessions == Settings.load({}, None).max_sessions


def test_it_takes_what_is_played() -> None:
    made = loaded(settings(20_000, 300, 20_000, "scripted"))
    assert made.backend == "scripted"
    assert made.max_sessions > 20_000
    assert made.max_connections > 20_000
    assert made.idle_seconds > 300
    assert made.max_session_seconds > 20_300


def test_wrong_settings_are_refused_before_a_server_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STT_VAD", "loud")
    with pytest.raises(SettingsError, match="STT_VAD"):
        settings(1, 0, 1, None)


PARENT = """
import subprocess, sys
input()
subprocess.run([sys.executable, "-c", "for _ in range(3_000_000): pass"])
child = subprocess.Popen([sys.executable, "-c", "b = bytearray(b'x') * 50_000_000; print('!', flush=True); input()"])
child.wait()
"""


@pytest.fixture
def family() -> Iterator[subprocess.Popen[str]]:
    """A process that, told so, has a child that computes and one that fills memory and says so."""
    process = subprocess.Popen([sys.executable, "-c", PARENT], stdin=-1, stdout=-1, text=True)
    with process:
        yield process


@linux
def test_children_count(family: subprocess.Popen[str]) -> None:
    assert family.stdin is not None
    assert family.stdout is not None
    cost = Cost.of(family.pid)
    assert cost is not None
    family.stdin.write("\n")
    family.stdin.flush()
    assert family.stdout.readline() == "!\n"
    told = cost.told(frames=1_000, sessions=10)
    assert told["cpu_seconds"] >= 0.05
    assert told["cpu_us_per_frame"] == pytest.approx(1_000 * told["cpu_seconds"], rel=0.2)
    assert told["peak_mb"] >= 50
    assert told["kb_per_session"] >= 4_000
    family.stdin.close()
    family.wait()
    assert cost.told(frames=0, sessions=0)["peak_mb"] >= 50  # it has ended: what was seen stays


@linux
def test_nobody_is_there() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert Cost.of(process.pid) is None
