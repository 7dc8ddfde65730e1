"""The chaos run in short, with known words: `python -m bench.chaos` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.chaos import faulty, proxy
from bench.chaos.nodes import serving
from bench.chaos.recordings import marker_recordings
from bench.chaos.run import Chaos, Plan, counted

FAULTS = 24


@pytest.mark.slow
@pytest.mark.timeout(150)
async def test_no_word_is_lost_whatever_breaks(tmp_path: Path) -> None:
    recordings = marker_recordings(4, 9, seed=5)
    async with serving("scripted", tmp_path, {"STT_LOG_LEVEL": "info"}) as nodes:
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
