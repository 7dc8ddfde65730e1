"""What is known of a process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from bench.process import children_of, cpu_seconds, fds_of, started


def test_cpu_time_is_exact() -> None:
    assert cpu_seconds(os.getpid()) == pytest.approx(time.process_time(), abs=0.005)


def test_descriptors_and_children() -> None:
    before = fds_of(os.getpid())
    with tempfile.TemporaryFile(), subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert fds_of(os.getpid()) == before + 2
        assert child.pid in children_of(os.getpid())


def test_a_server_that_complains_is_not_held_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "grumbler.py").write_text(
        "import sys\nfrom pathlib import Path\n"
        "print('  stream    ws://127.0.0.1:1/', file=sys.stderr, flush=True)\n"
        "sys.stderr.write('no ' * 100_000)\nsys.stderr.flush()\n"
        f"open({str(tmp_path / 'said')!r}, 'w').write('all')\n"
        "sys.stdin.read()\n"
    )
    os.mkfifo(tmp_path / "said")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with started([], "stream", {}, module="grumbler") as (_, address):
        assert address == "ws://127.0.0.1:1/"
        assert (tmp_path / "said").read_text() == "all"  # waits until it has said all that
