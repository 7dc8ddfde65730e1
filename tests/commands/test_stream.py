from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bridge.cli import main
from bridge.commands.exits import Exit
from bridge.commands.stream import stream_url
from tests.client.fake import FakeServer, Plan
from tests.commands.conftest import clean_environment, write_wav

HEARD = "one two three four five six\none\n"
KEY = ["--api-key", "sesame"]


def test_file(server: str, quiet_wav: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stream", str(quiet_wav), "--url", server, "--fast", *KEY]) == Exit.OK
    assert capsys.readouterr() == (HEARD, "")


def test_key_from_the_environment(
    server: str, quiet_wav: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STT_API_KEY", "sesame")
    base = server.replace("ws", "http", 1).removesuffix("/v1/stream")
    assert main(["stream", str(quiet_wav), "--url", base, "--fast"]) == Exit.OK
    assert capsys.readouterr().out == HEARD


def test_json(server: str, quiet_wav: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # In real time: of a file that is sent at once a partial may be overtaken by its final.
    argv = ["stream", str(quiet_wav), "--url", server, "--json", "--language", "en-GB", *KEY]
    assert main(argv) == Exit.OK
    messages = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (messages[0]["type"], messages[0]["language"]) == ("ready", "en-GB")
    assert messages[-1]["type"] == "closed"
    assert [m["text"] for m in messages if m["type"] == "final"] == HEARD.splitlines()
    assert any(m["type"] == "partial" for m in messages)


def test_real_time_is_paced(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    assert main(["stream", str(write_wav(tmp_path / "a.wav", 1.2)), "--url", server, *KEY]) == Exit.OK
    assert 1.05 < time.monotonic() - began < 3
    assert capsys.readouterr().out == "one two\n"


def test_raw_file(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.ulaw"
    path.write_bytes(b"\xff" * 8_000 * 7)
    argv = ["stream", str(path), "--encoding", "mulaw", "--rate", "8000", "--channels", "2", "--url", server, "--fast"]
    assert main([*argv, *KEY]) == Exit.OK
    assert capsys.readouterr().out == HEARD


def test_stdin(server: str, quiet_wav: Path) -> None:
    for data in (quiet_wav.read_bytes(), quiet_wav.read_bytes()[44:]):
        done = stt_bridge("stream", "-", "--url", server, "--fast", *KEY, input=data)
        assert (done.returncode, done.stdout.decode(), done.stderr) == (0, HEARD, b"")


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["{wav}", "--url", "{server}"], Exit.FAILED, "(unauthorized)"),
        (["{wav}", "--url", "{server}", "--api-key", "guess"], Exit.FAILED, "(unauthorized)"),
        (["{wav}", "--url", "{server}", *KEY, "--language", "x" * 40], Exit.FAILED, "(bad_start)"),
        (["{wav}", "--url", "{server}", *KEY, "--rate", "7"], Exit.USAGE, "sample_rate 7"),
        (["{wav}", "--url", "{server}", *KEY, "--encoding", "tape"], Exit.USAGE, "'tape'"),
        (["{wav}", "--url", "ws://127.0.0.1:9/v1/stream"], Exit.NO_CONNECTION, "connection refused"),
        (["{wav}", "--url", "gopher://x"], Exit.NO_CONNECTION, "not the address"),
        (["missing.wav", "--url", "{server}"], Exit.UNREADABLE, "missing.wav: No such file"),
        (["{text}", "--url", "{server}"], Exit.UNREADABLE, "not an audio file"),
    ],
)
def test_failures(
    server: str,
    quiet_wav: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    code: Exit,
    message: str,
) -> None:
    text = tmp_path / "text.wav"
    text.write_text("not sound")
    names = {"wav": quiet_wav, "server": server, "text": text}
    assert main(["stream", *(arg.format(**names) for arg in argv), "--fast"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("stt-bridge: ")
    assert message in err
    assert err.count("\n") == 1


def test_reader_that_leaves_is_no_complaint(server: str, quiet_wav: Path) -> None:
    process = subprocess.Popen(
        command("stream", str(quiet_wav), "--url", server, "--json", *KEY),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=clean_environment(),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(10) == Exit.BROKEN_PIPE


def test_ctrl_c_waits_for_the_last_words(server: str, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command("stream", str(write_wav(tmp_path / "a.wav", 30)), "--url", server, "--json", *KEY),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )
    assert process.stdout is not None
    wait_for_partial(process)
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=10)
    messages = [json.loads(line) for line in rest.splitlines()]
    assert any(m["type"] == "final" and m["text"].startswith("one") for m in messages)
    assert (messages[-1]["type"], messages[-1]["code"]) == ("closed", "stopped")
    assert (process.returncode, err) == (Exit.OK, "")


def test_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text(json.dumps({"results": [], "faults": [{"at": 0.3, "kind": "stall"}]}))
    serving = subprocess.Popen(
        command("serve", "--backend", "scripted", "--port", "0", "--log-level", "error"),
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(STT_SCRIPTED_SCRIPT=str(script), STT_SHUTDOWN_SECONDS="0.5"),
    )
    assert serving.stderr is not None
    try:
        while not (line := serving.stderr.readline()).startswith("  stream"):
            assert line
        process = subprocess.Popen(
            command("stream", str(write_wav(tmp_path / "a.wav", 30)), "--url", line.split()[1], "--json"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment(),
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
        assert (process.returncode, err) == (Exit.INTERRUPTED, "")
    finally:
        serving.terminate()
        serving.communicate(timeout=10)


def test_captions_on_a_terminal(server: str, quiet_wav: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command("stream", str(quiet_wav), "--url", server, "--chunk-ms", "250", *KEY),
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=clean_environment(TERM="xterm", COLUMNS="80"),
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that a terminal was closed
        while data := os.read(ours, 4096):
            shown += data
    os.close(ours)
    out, _ = process.communicate(timeout=10)
    assert (process.returncode, out.decode()) == (0, HEARD)
    text = shown.decode()
    dim, erase = "\x1b[2;3m", "\x1b[2K"
    assert text.index(f"{dim}one two three\x1b") < text.index(f"{dim}one two three four\x1b")
    assert f"{erase}one two three four five six\r\n" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is left hidden"


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("ws://h:1/v1/stream", "ws://h:1/v1/stream"),
        ("wss://h/else?x=1", "wss://h/else?x=1"),
        ("http://h:1", "ws://h:1/v1/stream"),
        ("https://h/", "wss://h/v1/stream"),
    ],
)
def test_stream_url(given: str, used: str) -> None:
    assert stream_url(given) == used


def test_somebody_elses_session(server: str, quiet_wav: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "the-name-of-our-meeting"
    argv = ["stream", str(quiet_wav), "--url", server, "--fast", "--session", name, "--verbose", *KEY]
    assert main(argv) == Exit.OK
    assert capsys.readouterr() == (HEARD, f"stt-bridge: session {name}\n")
    assert main(["stream", "--receive", name, "--url", server, *KEY]) == Exit.OK
    assert capsys.readouterr() == (HEARD, "")
    assert main(["stream", "--receive", name, "--url", server, "--json", *KEY]) == Exit.OK
    messages = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (messages[0]["type"], messages[-1]["type"]) == ("joined", "closed")
    assert [m["seq"] for m in messages[1:]] == list(range(1, messages[0]["last_seq"] + 1))


@pytest.mark.parametrize("argv", [["a.wav", "--receive", "x"], []])
def test_either_a_file_or_a_session(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["stream", *argv])
    assert caught.value.code == Exit.USAGE
    assert "--receive" in capsys.readouterr().err


def test_the_resume_token_is_not_put_out(server: str, quiet_wav: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stream", str(quiet_wav), "--url", server, "--fast", "--json", *KEY]) == Exit.OK
    ready = json.loads(capsys.readouterr().out.splitlines()[0])
    assert ready["session_id"]
    assert ready["resume_token"] is None


async def test_a_connection_that_breaks(quiet_wav: Path) -> None:
    fake = FakeServer(Plan(after_audio=32_000))
    async with fake.serving() as url:
        process = await asyncio.create_subprocess_exec(
            *command("stream", str(quiet_wav), "--url", url, "--fast"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=clean_environment(),
        )
        async with asyncio.timeout(20):
            out, err = await process.communicate()
    assert process.returncode == Exit.OK
    assert out.decode().split() == fake.texts
    assert re.fullmatch(
        r"stt-bridge: the connection broke off; reconnecting\nstt-bridge: the session goes on, [0-9.]+ s later\n",
        err.decode(),
    )


def command(*argv: str) -> list[str]:
    return [sys.executable, "-m", "bridge", *argv]


def stt_bridge(*argv: str, input: bytes) -> subprocess.CompletedProcess[bytes]:  # noqa: A002 - as subprocess names it
    return subprocess.run(
        command(*argv), input=input, capture_output=True, timeout=30, env=clean_environment(), check=False
    )


def wait_for_partial(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["type"] == "partial":
            return
    raise AssertionError("no partial came")
