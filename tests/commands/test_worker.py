"""`stt-bridge worker`: in a process of its own, on what a server has taken."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import wave
from pathlib import Path
from typing import Final

import httpx

from backends.markers import marker_audio
from tests.conftest import Spawn
from tests.wire import ROOT, engine_env, http_get, poll

LIMIT: Final = 60.0
"""For a process to start, on a busy machine."""


def recording(words: int) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16_000)
        out.writeframes(marker_audio(words))
    return file.getvalue()


def work(tmp_path: Path, env: dict[str, str], *args: str) -> subprocess.Popen[bytes]:
    with (tmp_path / "worker.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "bridge", "worker", *args],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(tmp_path), "STT_BACKEND": "scripted"} | env,
            stderr=log,
        )


def test_it_does_what_a_server_has_taken(spawn: Spawn, tmp_path: Path) -> None:
    env = engine_env() | {"STT_VAD": "off"}
    server = spawn(env | {"STT_JOB_WORKERS": "0"})
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        job = client.post("/v1/jobs", files={"file": ("a.wav", recording(4))}).json()
        process = work(tmp_path, env, "--health-port", "0")
        log = tmp_path / "worker.log"
        try:
            poll(lambda: client.get(f"/v1/jobs/{job['id']}").json()["state"] == "succeeded", LIMIT)
            poll(lambda: "health" in log.read_text(), LIMIT)
            health = next(line.split()[1] for line in log.read_text().splitlines() if "health" in line)
            assert http_get(health).status == 200
            figures = http_get(health.replace("/readyz", "/metrics")).body
            assert b'stt_job_attempts_total{why="first"} 1.0' in figures
            assert http_get(health.replace("/readyz", "/v1/jobs")).status == 404
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(LIMIT) == 0
        assert client.get(f"/v1/jobs/{job['id']}").json()["result"]["text"] == "w0 w1 w2 w3"
    assert "Traceback" not in log.read_text()


def test_what_it_needs(tmp_path: Path) -> None:
    process = work(tmp_path, {}, "--jobs", "0")
    assert process.wait(LIMIT) == 2
    assert "STT_JOB_WORKERS" in (tmp_path / "worker.log").read_text()
    process = work(tmp_path, {"STT_STORE": "redis://127.0.0.1:1"})
    assert process.wait(LIMIT) == 1
    assert "STT_STORE" in (tmp_path / "worker.log").read_text()
