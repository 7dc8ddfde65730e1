"""The chaos run of uploads in short: `python -m bench.chaos_uploads` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.chaos_uploads import chaos


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_every_file_arrives_bit_for_bit(tmp_path: Path) -> None:
    run = await chaos(tmp_path, files=6, kills=1, seed=7, largest=200_000)
    assert run.differences == []
    assert run.counts["kills"] == 1
    assert run.counts["jobs"] == 6
    for what in ("chunks dropped", "chunks repeated", "chunks out of order", "requests cut", "chunks named as missing"):
        assert run.counts[what] > 0, what
