from __future__ import annotations

import json
from pathlib import Path

import pytest

from bridge.cli import main
from bridge.commands import demo
from bridge.commands.exits import Exit
from tests.commands.conftest import write_wav


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_wav(tmp_path / "a.wav", 1.7)
    manifest = {"samples": [{"file": "b.wav", "transcript": "no"}, {"file": "a.wav", "transcript": "One two, four."}]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert main(["demo", str(path), "--backend", "scripted"]) == Exit.OK
    out, err = capsys.readouterr()
    assert out == "one two three\n"
    assert "word error rate   33.3% (1 of 3 words)" in err
    assert "partial latency" in err
    assert "final latency" in err


def test_fast_demo_of_an_unknown_recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["demo", str(write_wav(tmp_path / "a.wav", 3.5)), "--backend", "scripted", "--fast"]
    assert main(argv) == Exit.OK
    out, err = capsys.readouterr()
    assert out == "one two three four five six\none\n"
    assert "error rate" not in err
    assert "latency" not in err


def test_settings_of_the_real_server_do_not_matter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STT_BACKEND", "scripted")
    monkeypatch.setenv("STT_PORT", "1")
    monkeypatch.setenv("STT_API_KEYS", "sesame")
    monkeypatch.setenv("STT_HOST", "0.0.0.0")
    assert main(["demo", str(write_wav(tmp_path / "a.wav", 1.0)), "--fast"]) == Exit.OK
    assert capsys.readouterr().out == "one two\n"


def test_failures(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["demo", "missing.wav", "--backend", "scripted"]) == Exit.UNREADABLE
    path = str(write_wav(tmp_path / "a.wav", 1.0))
    assert main(["demo", path, "--backend", "nonsense"]) == Exit.USAGE
    script = tmp_path / "script.json"
    script.write_text(json.dumps({"faults": [{"at": 0.5, "kind": "fail", "retryable": False}]}))
    monkeypatch.setenv("STT_SCRIPTED_SCRIPT", str(script))
    assert main(["demo", path, "--backend", "scripted", "--fast"]) == Exit.FAILED
    monkeypatch.setattr(demo, "SAMPLES", tmp_path / "nowhere")
    assert main(["demo"]) == Exit.UNREADABLE
    assert all(line for line in capsys.readouterr().err.splitlines())


def test_known_transcript(tmp_path: Path) -> None:
    assert demo.known_transcript(tmp_path / "a.wav") is None
    (tmp_path / "manifest.json").write_text("{")
    assert demo.known_transcript(tmp_path / "a.wav") is None
    (tmp_path / "manifest.json").write_text('{"samples": [{"file": "a.wav", "transcript": "hello"}]}')
    assert demo.known_transcript(tmp_path / "a.wav") == "hello"
    assert demo.known_transcript(tmp_path / "b.wav") is None
