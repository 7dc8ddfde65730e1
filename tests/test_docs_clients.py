"""docs/clients.md: what it has for Python and the shell, run on a real server. The browser's part: tests/browser."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from bridge.protocols.native import AudioMessage, StartMessage, StopMessage
from tests.docs import ROOT, blocks, page, section
from tests.speech import SAMPLES, pcm
from tests.wire import Wire, spawned

PAGE = page("clients.md")
SAID = "hello there it is good to hear your voice today"


async def output(*command: str, **env: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, env=os.environ | env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(40):
        said, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return said.decode()


async def test_python(tmp_path: Path) -> None:
    """A program in the recorder's place plays a sample."""
    (program,) = blocks(section(PAGE, "In Python"), "python")
    (tmp_path / "hello.raw").write_bytes(pcm(SAMPLES / "hello.flac"))
    recorder = tmp_path / "arecord"
    recorder.write_text(f"#!/bin/sh\ncat {tmp_path}/hello.raw\n")
    recorder.chmod(0o755)
    with spawned(tmp_path, {"STT_BACKEND": "pocketsphinx"}) as server:
        program = program.replace("http://127.0.0.1:8000", server.url).replace(
            "ws://127.0.0.1:8000", server.url.replace("http", "ws", 1)
        )
        paths = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
        said = await output(sys.executable, "-c", program, PATH=paths, PYTHONPATH=str(ROOT))
    *partials, final = [line for line in said.replace("\r", "\n").splitlines() if line]
    assert final == SAID
    assert any(SAID.startswith(partial) for partial in partials)


async def test_websocat(plain: str) -> None:
    """What it would send, line by line; the program itself is not at hand."""
    (script,) = blocks(section(PAGE, "On a command line"), "sh")
    for program in ("bash", "ffmpeg", "base64", "sed"):
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program}")
    sender, _, websocat = script.strip().rpartition(" | ")
    assert re.fullmatch(r"websocat --no-close ws://127\.0\.0\.1:8000/v1/stream", websocat)
    lines = (await output("bash", "-euo", "pipefail", "-c", sender.replace(" -re ", " "))).splitlines()
    audio = [AudioMessage(data=line["data"]) for line in map(json.loads, lines[1:-1])]
    assert audio
    assert max(map(len, lines)) < 65_536  # a line of websocat's
    assert {json.loads(lines[0])["type"], json.loads(lines[-1])["type"]} == {
        StartMessage.__struct_config__.tag,
        StopMessage.__struct_config__.tag,
    }
    async with Wire.stream(plain) as wire:
        for line in lines:
            await wire.say(json.loads(line))
        outcome = await wire.finish()
    assert outcome.codes == []
    assert outcome.of("closed")[0]["received"] == len(pcm(SAMPLES / "hello.flac")) // 2
