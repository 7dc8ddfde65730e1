from __future__ import annotations

import json
from pathlib import Path

import pytest

from bridge.cli import main
from bridge.commands.exits import Exit
from bridge.commands.transcribe import output_paths
from bridge.errors import BridgeError
from tests.commands.conftest import write_wav

HEARD = "one two three four five six\none\n"
SCRIPTED = ["--backend", "scripted"]


def test_text(quiet_wav: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", str(quiet_wav), *SCRIPTED]) == Exit.OK
    assert capsys.readouterr() == (HEARD, "")


def test_backend_of_the_settings(
    quiet_wav: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STT_BACKEND", "scripted-threads")
    assert main(["transcribe", str(quiet_wav)]) == Exit.OK
    assert capsys.readouterr().out == HEARD


@pytest.mark.parametrize("format_", ["json", "srt", "vtt"])
def test_formats(quiet_wav: Path, capsys: pytest.CaptureFixture[str], format_: str) -> None:
    assert main(["transcribe", str(quiet_wav), "--format", format_, *SCRIPTED]) == Exit.OK
    out = capsys.readouterr().out
    if format_ == "json":
        assert json.loads(out)["segments"][0]["words"][5] == {
            "text": "six",
            "start": 2.5,
            "end": 3.0,
            "confidence": 1.0,
        }
    else:
        mark = "," if format_ == "srt" else "."
        assert f"00:00:00{mark}000 --> 00:00:03{mark}000\none two three four five six\n" in out


def test_long_file_is_not_held_to_real_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_wav(tmp_path / "long.wav", 600, 8_000)
    assert main(["transcribe", str(path), *SCRIPTED]) == Exit.OK
    assert capsys.readouterr().out == "one two three four five six\n" * 200


def test_several_files_and_one_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, last = write_wav(tmp_path / "a.wav", 1), write_wav(tmp_path / "b.wav", 2)
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"RIFF")
    assert main(["transcribe", str(first), str(bad), "missing.wav", str(last), *SCRIPTED]) == Exit.UNREADABLE
    out, err = capsys.readouterr()
    assert out == f"==> {first} <==\none two\n==> {last} <==\none two three four\n"
    assert [line.split(": ")[1] for line in err.splitlines()] == [str(bad), "missing.wav"]


def test_output_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(write_wav(tmp_path / name, 1)) for name in ("a.wav", "b.wav")]
    target = tmp_path / "out" / "deep"
    assert main(["transcribe", *files, "--format", "vtt", "--output", str(target), *SCRIPTED]) == Exit.OK
    assert capsys.readouterr() == ("", "")
    assert sorted(path.name for path in target.iterdir()) == ["a.vtt", "b.vtt"]
    assert (target / "a.vtt").read_text() == "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\none two\n"


def test_output_that_cannot_be_written(quiet_wav: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", str(quiet_wav), "--output", str(quiet_wav), *SCRIPTED]) == Exit.FAILED
    assert capsys.readouterr().err.startswith("stt-bridge: ")


def test_output_paths() -> None:
    out = Path("o")
    assert output_paths(["x/a.wav", "y/b.mp3", "-"], out, "text") == [out / "a.txt", out / "b.txt", out / "stdin.txt"]
    assert output_paths(["a.wav", "a.mp3", "b.wav"], out, "srt") == [
        out / "a.wav.srt",
        out / "a.mp3.srt",
        out / "b.srt",
    ]
    assert output_paths(["a.wav", "a.wav"], None, "text") == [None, None]
    with pytest.raises(BridgeError, match=r"2 inputs are called a\.wav"):
        output_paths(["x/a.wav", "y/a.wav"], out, "srt")


def test_session_that_fails(
    quiet_wav: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "script.json"
    script.write_text(json.dumps({"faults": [{"at": 1.0, "kind": "fail", "retryable": False}]}))
    monkeypatch.setenv("STT_SCRIPTED_SCRIPT", str(script))
    assert main(["transcribe", str(quiet_wav), *SCRIPTED]) == Exit.FAILED
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith(f"stt-bridge: {quiet_wav}: ")
    assert err.splitlines()[-1].endswith(")")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["a.wav", "b.wav", "--format", "srt"], "need --output"),
        (["a.wav", "--backend", "nonsense"], "nonsense"),
        (["a.wav", "--rate", "1"], "sample_rate 1"),
    ],
)
def test_wrong_usage(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", *argv]) == Exit.USAGE
    assert message in capsys.readouterr().err


def test_wrong_settings(quiet_wav: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STT_PORT", "many")
    assert main(["transcribe", str(quiet_wav), *SCRIPTED]) == Exit.USAGE
    assert "STT_PORT" in capsys.readouterr().err


def test_file_that_is_not_as_raw_as_declared(quiet_wav: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", str(quiet_wav), "--rate", "8000", *SCRIPTED]) == Exit.UNREADABLE
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"stt-bridge: {quiet_wav}: ")
