"""What a decoding process may do, seen from inside one."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from typing import Any

import pytest

from bridge.audio import media_worker as worker

PROBE = """
import json, os, resource, socket, sys, time
from bridge.audio import media_worker as worker

def tried(work):
    try:
        work()
    except BaseException as exc:
        return type(exc).__name__
    return "done"

ours, theirs = socket.socketpair()
worker._rehearse()
worker.confine()
job = worker.wire.Job("a", 10.0)
with open("/dev/null", "rb") as file:
    socket.send_fds(ours, [worker.wire.encode_frame(0, job)], [file.fileno()])
received = worker._receive(theirs)
found = {
    "job": received[0].name,
    "file": tried(lambda: open("/etc/hostname")),
    "socket": tried(socket.socket),
    "pipe": tried(os.pipe),
    "program": tried(lambda: os.posix_spawn("/bin/true", ["true"], {})),
    "memory": tried(lambda: bytearray(worker.MEMORY + 2**20)),
    "some memory": tried(lambda: bytearray(worker.MEMORY // 4)),
    "niceness": os.nice(0),
    "user": os.getuid(),
    "core": resource.getrlimit(resource.RLIMIT_CORE),
}
budget = worker._Budget(0)
found["cpu"] = resource.getrlimit(resource.RLIMIT_CPU)[0]
budget.extend(1000.0)
found["more cpu"] = resource.getrlimit(resource.RLIMIT_CPU)[0]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    if sys.platform != "linux":
        pytest.skip("limits of memory are Linux's")
    environ = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", PROBE], check=True, capture_output=True, timeout=30, env=environ)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_nothing_can_be_opened_while_a_file_is_decoded(found: dict[str, Any]) -> None:
    assert found["job"] == "a"
    assert [found[what] for what in ("file", "socket", "pipe")] == ["OSError"] * 3
    assert found["program"] == "BlockingIOError"


def test_memory_is_bounded(found: dict[str, Any]) -> None:
    assert found["memory"] == "MemoryError"
    assert found["some memory"] == "done"


def test_processor_time_grows_with_the_sound_that_was_given(found: dict[str, Any]) -> None:
    assert worker.CPU_SECONDS <= found["cpu"] <= worker.CPU_SECONDS + 10
    assert found["more cpu"] - found["cpu"] == pytest.approx(1_000 * worker.CPU_PER_SECOND, abs=1)


def test_it_is_nobody_and_gives_way(found: dict[str, Any]) -> None:
    assert found["niceness"] >= worker.NICENESS
    assert found["user"] != 0
    assert found["core"] == [0, 0]


def test_a_file_keeps_its_own_position(tmp_path: Any) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    with (tmp_path / "a").open("rb") as opened:
        one, two = worker._File(opened.fileno()), worker._File(opened.fileno())
        assert (one.read(4), two.read(2), one.read(2)) == (b"0123", b"01", b"45")
        assert one.seek(-1, os.SEEK_END) == 9
        assert (one.read(5), one.read(5), one.tell()) == (b"9", b"", 10)
        assert (two.seek(1, os.SEEK_CUR), two.read(1)) == (3, b"3")
        assert (two.seek(-9), two.tell()) == (0, 0)
        assert opened.tell() == 0


def test_no_limit_is_left_behind_here() -> None:
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > worker.FILES
