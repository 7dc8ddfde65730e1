"""Copies of remote files: nothing of a process that was killed lies there for ever."""

from __future__ import annotations

import asyncio
import io
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.uploads.copies import make_copy, sweep_copies
from bridge.uploads.urls import open_blobs

HOLD = "import time; from bridge.uploads.copies import make_copy; copy = make_copy(); print(flush=True); time.sleep(60)"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """That of temporary files, in this process and others."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield tmp_path
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_of_a_process_that_was_killed(folder: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert len(list(folder.iterdir())) == 1
        assert sweep_copies() == 0  # it is in use
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert len(list(folder.iterdir())) == 1
    asyncio.run(_used())
    assert list(folder.iterdir()) == []


async def _used() -> None:
    """A store's life: what it holds itself stays."""
    store = open_blobs(f"memory://{secrets.token_hex(8)}")
    await store.open()
    await store.put("files/a", io.BytesIO(b"here"))
    async with store.fetch("files/a") as path:
        assert await store.sweep(0) == 0
        assert path.read_bytes() == b"here"
    await store.close()


def test_what_is_no_copy_stays(folder: Path) -> None:
    os.mkfifo(folder / "stt-bridge-copy-pipe")  # nobody waits for its writer
    (folder / "target").touch()
    (folder / "stt-bridge-copy-link").symlink_to(folder / "target")
    (folder / "another").touch()
    with make_copy():
        sweep_copies()
        assert (folder / "target").exists()
        assert (folder / "another").exists()
        assert (folder / "stt-bridge-copy-link").is_symlink()
