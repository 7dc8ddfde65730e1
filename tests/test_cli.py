from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import bridge
from bridge.cli import main
from bridge.commands.exits import Exit

COMMANDS = ["serve", "worker", "stream", "transcribe", "backends", "demo", "bench"]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"stt-bridge {bridge.__version__}\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"    {command}" in shown for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert f"stt-bridge {command}" in shown
    if command not in {"serve", "backends"}:
        assert "exit codes:" in shown


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["sing"],
        ["stream"],
        ["stream", "a.wav", "--chunk-ms", "0"],
        ["stream", "a.wav", "--chunk-ms", "x"],
        ["transcribe"],
        ["transcribe", "a.wav", "--format", "doc"],
        ["backends", "--loud"],
    ],
)
def test_wrong_usage_is_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == Exit.USAGE
    assert "usage: stt-bridge" in capsys.readouterr().err


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from bridge.cli import make_parser; make_parser().format_help();"
        "print([m for m in ('av', 'numpy', 'rich', 'websockets', 'fastapi', 'pydantic', 'msgspec')"
        " if m in sys.modules])"
    )
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, cwd=root, check=True
    )
    assert done.stdout == "[]\n"


def test_python_dash_m_bridge() -> None:
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "bridge", "--version"], capture_output=True, text=True, timeout=30, cwd=root, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"stt-bridge {bridge.__version__}\n")
