"""The chaos run in short, with known words: `python -m bench.chaos` is the long one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.chaos import faulty, proxy
from bench.chaos.nodes import serving
from bench.chaos.recordings import marker_recordings
from bench.chaos.run import Chaos, Plan, counted

FAULTS = 24
MEMORY = Path("/dev/shm")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory, where there is such a place, which outlives a killed server as a disk does.

    A disk that other tests keep busy may stand still for a second. The event log is away then, and says so: a fault
    that this run has not struck.
    """
    if not os.access(MEMORY, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        yield Path(name)


@pytest.mark.slow
@pytest.mark.timeout(150)
async def test_no_word_is_lost_whatever_breaks(folder: Path) -> None:
    recordings = marker_recordings(4, 9, seed=5)
    async with serving("scripted", folder, {"STT_LOG_LEVEL": "info"}) as nodes:
        plan = Plan(FAULTS, seed=5, client_seconds=2.5, server_seconds=3)
        chaos = Chaos(nodes, plan, recordings, {r.name: r.expected or "" for r in recordings})
        await chaos.run(3)
        assert chaos.differences() == []
        figures = counted(chaos)
    assert figures["faults"] >= FAULTS
    assert figures["resumes"] >= 3
    assert figures["words"] > 50
    kinds = {s.kind.removeprefix("receiver_") for s in chaos.struck}
    assert len(kinds & {*proxy.KINDS, *faulty.KINDS}) >= 6
    assert kinds & {"kill", "terminate"}
