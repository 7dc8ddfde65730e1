"""`stt-bridge` that tells how many tasks its event loop has, when it is asked: for `bench.soak` and `bench.churn`.

`python -m bench.counted FIFO COMMAND…` runs the command; upon SIGUSR1 it writes the number as a line to the FIFO.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
from pathlib import Path
from typing import Final

from bridge.cli import main

ANSWER_SECONDS: Final = 10.0


class Counter:
    """The asking side. Make it before the server is started; `path` is the server's FIFO."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "tasks"
        os.mkfifo(self.path)
        self._fifo = os.open(self.path, os.O_RDWR | os.O_NONBLOCK)

    def ask(self, pid: int) -> int:
        """How many tasks there are now.

        Raises:
            TimeoutError: the server did not say so.
        """
        os.kill(pid, signal.SIGUSR1)
        if not select.select([self._fifo], [], [], ANSWER_SECONDS)[0]:
            raise TimeoutError(f"the server did not tell its tasks within {ANSWER_SECONDS:.0f} s")
        return int(os.read(self._fifo, 64))

    def close(self) -> None:
        """No more questions."""
        os.close(self._fifo)
        self.path.unlink()


def run(path: str, command: list[str]) -> int:
    """Run the command. Returns its exit code."""
    fifo = os.open(path, os.O_WRONLY)

    def tell(*_: object) -> None:
        # Python runs it in the thread of the event loop, in the middle of a turn of it.
        os.write(fifo, f"{len(asyncio.all_tasks())}\n".encode())

    signal.signal(signal.SIGUSR1, tell)
    return main(command)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], sys.argv[2:]))
