"""`stt-bridge bench`, end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bridge.cli import main
from bridge.commands.exits import Exit

SHORT = ["--sessions", "2", "--seconds", "1.5", "--ramp", "0.2"]


def test_a_server_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, figure = tmp_path / "run.json", tmp_path / "run.svg"
    argv = ["bench", "--backend", "scripted", *SHORT, "--processes", "2", "--json", str(run), "--plot", str(figure)]
    assert main(argv) == Exit.OK
    shown = capsys.readouterr()
    assert "2 completed, 0 refused, 0 dropped; 2 at once; 30 frames sent, 0 lost" in shown.out
    assert "not measured: the scripted engine does not listen" in shown.out
    assert " sessions open, " in shown.err
    told = json.loads(run.read_text())
    assert (told["completed"], told["frames"], told["backends"]) == (2, 30, ["scripted"])
    assert told["word_error_rate"] is None
    assert told["latency_ms"]["p99"] > 0
    assert told["machine"]["cpus"] >= 1
    if Path("/proc").exists():
        assert told["server"]["cpu_us_per_frame"] > 0
        assert told["server"]["peak_mb"] > 20
    assert "<svg" in figure.read_text()


def test_a_server_that_runs_already(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STT_API_KEY", "sesame")
    run = tmp_path / "run.json"
    address = server.replace("ws://", "http://").removesuffix("/v1/stream")
    assert main(["bench", "--url", address, *SHORT, "--json", str(run)]) == Exit.OK
    told = run.read_text()
    assert json.loads(told)["server"] is None
    shown = capsys.readouterr()
    assert "2 completed" in shown.out
    assert "sesame" not in told + shown.out + shown.err


def test_a_refused_key_is_a_failure(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--url", server, *SHORT, "--api-key", "open-up"]) == Exit.FAILED
    shown = capsys.readouterr()
    assert "0 completed, 2 refused" in shown.out
    assert "open-up" not in shown.out + shown.err


def test_a_server_that_does_not_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--backend", "violin", *SHORT]) == Exit.FAILED
    assert "'violin' is not one of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--sessions", "0"], "sessions: 1 to 20000"),
        (["--processes", "17"], "processes: 1 to 16"),
        (["--url", "ws://192.0.2.1/v1/stream"], "only a server on this machine"),
        (["--url", "wss://127.0.0.1/"], "must be ws://HOST:PORT/PATH"),
        (["--url", "ws://127.0.0.1:9", "--backend", "scripted"], "--backend is for a server of its own"),
        (["--protocol", "wyoming"], "name it by --url"),
        (["--url", "tcp://127.0.0.1:9", "--protocol", "wyoming", "--api-key", "k"], "an API key goes into"),
        (["--plot", "run.pdf"], ".svg or .png"),
        (["--json", "nowhere/run.json"], "there is no folder for"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_said_before_anything_is_started(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *argv]) == Exit.USAGE
    shown = capsys.readouterr()
    assert said in shown.err
    assert "starting a server" not in shown.err
    assert shown.out == ""


def test_a_folder_without_speech(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--audio", str(tmp_path), *SHORT]) == Exit.UNREADABLE
    assert "manifest.json is not there" in capsys.readouterr().err
