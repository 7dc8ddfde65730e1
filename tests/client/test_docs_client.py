"""docs/client.md: its examples run, its tables are complete."""

from __future__ import annotations

import asyncio
import dataclasses
import subprocess
import sys
import wave
from pathlib import Path

import pytest

from backends.markers import marker_audio
from bridge.client import Reconnect
from bridge.errors import ERRORS
from tests import wire
from tests.client.test_resume_live import ws
from tests.commands.conftest import clean_environment
from tests.docs import blocks, code, page, section, tables

TEXT = page("client.md")


async def run(example: str, *argv: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", example, *argv, stdout=subprocess.PIPE, env=clean_environment()
    )
    async with asyncio.timeout(30):
        out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()


async def test_the_examples(tmp_path: Path) -> None:
    sending, receiving = blocks(TEXT, "python")
    wav = tmp_path / "a.wav"
    with wave.open(str(wav), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(marker_audio(4))
    name = "session-of-the-example"
    named = sending.replace('encoding="pcm_s16le",', f'encoding="pcm_s16le", session_id="{name}",')
    async with wire.serve(event_log=f"sqlite:{tmp_path / 'log.db'}") as url:
        listening = asyncio.create_task(run(receiving, ws(url), name))
        spoken = await run(named, ws(url), str(wav))
        heard = await listening
    assert spoken.split() == wire.markers(4)
    assert heard == spoken


def test_every_choice_is_listed() -> None:
    (rows,) = tables(section(TEXT, "In Python"))
    listed = {code(row["Field"]): code(row["Default"]) for row in rows}
    assert listed == {field.name: str(field.default) for field in dataclasses.fields(Reconnect)}


@pytest.mark.parametrize("name", ["shutting_down", "slow_receiver", "taken_over", "session_taken"])
def test_codes_that_are_named_exist(name: str) -> None:
    assert f"`{name}`" in TEXT
    assert ERRORS[name].retryable == (name in {"shutting_down", "slow_receiver"})


def test_duties_are_numbered() -> None:
    """They refer to each other."""
    duties = section(TEXT, "What a client owes")
    numbers = [int(line.split(".")[0]) for line in duties.splitlines() if line[:2].strip(". ").isdigit()]
    assert numbers == list(range(1, len(numbers) + 1))
