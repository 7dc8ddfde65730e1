"""Other projects' servers, as they are published: each in a virtual environment of its own, made once.

`started_peer` installs what is missing (exact versions, from the package index that pip is configured for) and runs
the server of the script beside this file there. Nothing of this project is imported by a peer.
"""

from __future__ import annotations

import collections
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from bench.process import announced, environment, stop

_INSTALL_SECONDS: Final = 600
"""Numpy is the largest that is fetched: 17 MB."""
_START_SECONDS: Final = 60
_STOP_SECONDS: Final = 30


class PeerUnavailableError(RuntimeError):
    """A peer cannot be installed here; the message names the command that failed and what it said."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A server of another project."""

    name: str
    version: str
    requirements: tuple[str, ...]
    """What is installed, without dependencies: all that it truly needs to import."""
    script: str
    """Beside this file."""

    @property
    def folder(self) -> Path:
        """Its virtual environment, there or not."""
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(cache) / "stt-bridge-bench" / f"{self.name}-{self.version}"

    @property
    def python(self) -> Path:
        """The interpreter of that environment."""
        return self.folder / "bin" / "python"

    @property
    def installed(self) -> bool:
        """Whether it can be started without installing anything."""
        try:
            return self._receipt.read_text().split() == list(self.requirements)
        except FileNotFoundError:
            return False

    @property
    def _receipt(self) -> Path:
        return self.folder / "installed.txt"

    def install(self) -> None:
        """Make its environment, unless it is there.

        Raises:
            PeerUnavailableError: that failed; nothing of it is left.
        """
        if self.installed:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        try:
            _run(sys.executable, "-m", "venv", str(self.folder))
            _run(str(self.python), "-m", "pip", "install", "--quiet", "--no-deps", *self.requirements)
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        self._receipt.write_text("\n".join(self.requirements))


PEERS: Final = {
    peer.name: peer
    for peer in (
        Peer(
            "whisper-live",
            "0.10.0",
            ("whisper-live==0.10.0", "numpy==2.4.6", "websockets==17.4"),
            "whisper_live_server.py",
        ),
        Peer(
            "wyoming",
            "1.10.2",
            ("wyoming==1.10.2", "wyoming-faster-whisper==3.8.1", "numpy==2.4.6"),
            "wyoming_server.py",
        ),
        Peer(
            "whisperlivekit",
            "0.2.26",
            (
                *("whisperlivekit==0.2.26", "numpy==2.4.6", "fastapi==0.165.0", "starlette==1.10.0"),
                *("uvicorn==0.54.0", "websockets==17.4", "python-multipart==0.0.34", "pydantic==2.14.3"),
                *("pydantic_core==2.50.4", "annotated-types==0.8.0", "annotated-doc==0.0.7", "anyio==4.16.0"),
                *("click==8.5.1", "h11==0.16.0", "idna==3.20", "typing-inspection==0.4.5"),
                *("typing_extensions==4.16.0", "opentelemetry-api==1.45.2"),
            ),
            "whisperlivekit_server.py",
        ),
    )
}


@contextlib.contextmanager
def started_peer(name: str) -> Iterator[tuple[int, str]]:
    """The server of a peer, installed first where it is not: its process id and address; stopped at the end.

    Raises:
        PeerUnavailableError: it cannot be installed.
        RuntimeError: it did not start; the message holds its last lines.
        TimeoutError: it did not listen within a minute.
    """
    peer = PEERS[name]
    peer.install()
    script = Path(__file__).with_name(peer.script)
    # What it writes for its sessions goes when it goes: a peer that is ended by a signal leaves its files behind.
    with tempfile.TemporaryDirectory() as scratch:
        process = subprocess.Popen(
            # Isolated: neither PYTHONPATH nor the folder of the script reach its imports.
            [str(peer.python), "-I", str(script)],
            env=environment({"TMPDIR": scratch}),
            stderr=subprocess.PIPE,
        )
        address: Future[str] = Future()
        reader = threading.Thread(target=_read, args=(process.stderr, address), daemon=True)
        reader.start()
        try:
            yield process.pid, address.result(_START_SECONDS)
        finally:
            stop(process)
            reader.join(_STOP_SECONDS)


def _read(log: IO[bytes], address: Future[str]) -> None:
    """Read all that the server logs, or it would wait for somebody to do so; its address is for the future."""
    last: collections.deque[str] = collections.deque(maxlen=20)
    with log:
        for line in log:
            last.append(line.decode(errors="replace"))
            if found := announced("stream", last[-1]):
                address.set_result(found)
                break
        else:
            address.set_exception(RuntimeError(f"the peer did not start:\n{''.join(last)}"))
        while log.read(65_536):  # some log each frame: not read line by line
            pass


def _run(*command: str) -> None:
    """Run it to its end.

    Raises:
        PeerUnavailableError: it failed, or took too long.
    """
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INSTALL_SECONDS)
    except subprocess.CalledProcessError as exc:
        said = (exc.stderr or exc.stdout).strip()
        raise PeerUnavailableError(f"{' '.join(command)}: exit code {exc.returncode}\n{said}") from exc
    except subprocess.TimeoutExpired as exc:
        raise PeerUnavailableError(f"{' '.join(command)}: not done within {_INSTALL_SECONDS} s") from exc
