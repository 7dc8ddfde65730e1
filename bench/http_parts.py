"""`stt-bridge` with a look at what its thread does every few milliseconds of CPU time: where `bench.http` says it goes.

`python -m bench.http_parts OUT COMMAND…` runs the command and writes what share each part had to the file OUT, as JSON;
it looks from a SIGUSR1 on, when the server has loaded. A moment counts for the innermost function that belongs to a
part.
"""

from __future__ import annotations

import json
import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Final

from bridge.cli import main

EVERY_SECONDS: Final = 0.001
"""Of CPU time; the kernel's clock may be coarser."""
PARTS: Final = (
    ("uvicorn", ("/uvicorn/", "/bridge/transports/")),
    ("FastAPI, Starlette", ("/fastapi/", "/starlette/", "/pydantic/", "/anyio/")),
    ("the engine", ("/backends/",)),
    ("body: read, spooled, taken apart", ("/bridge/api/bodies.py", "/bridge/api/forms.py", "/python_multipart/")),
    ("door: key, origin, rates, headers", ("/bridge/api/door.py", "/bridge/security/", "/limits/")),
    ("traces, metrics, logs", ("/bridge/observe/", "/prometheus_client/", "/logging/")),
    ("media: decoder's process, samples", ("/bridge/audio/media", "/bridge/audio/plain.py")),
    ("session: audio", ("/bridge/audio/",)),
    ("session: places, streams, events", ("/bridge/session/",)),
    ("route, answer", ("/bridge/", "/msgspec/")),
)
OUTERMOST: Final = (
    "/bridge/__main__.py",
    "/bridge/cli.py",
    "/bridge/app.py",
    "/commands/loop.py",
    "/commands/serve.py",
)
OTHERS: Final = "event loop, sockets"


class Sampler:
    """Counts moments, by part."""

    def __init__(self) -> None:
        self.moments: Counter[str] = Counter()
        self._known: dict[str, str | None] = {}

    def look(self, _: int, frame: FrameType | None) -> None:
        """A signal handler."""
        while frame is not None:
            part = self._part(frame.f_code.co_filename)
            if part is not None:
                self.moments[part] += 1
                return
            frame = frame.f_back
        self.moments[OTHERS] += 1

    def _part(self, file: str) -> str | None:
        if file not in self._known:
            found = (part for part, places in PARTS if any(place in file for place in places))
            # The outermost frames: what is done in C between two of Python's functions is told to them.
            self._known[file] = None if file.endswith(OUTERMOST) else next(found, None)
        return self._known[file]

    def report(self) -> dict[str, float]:
        """Percent of each part, the largest first."""
        total = max(1, self.moments.total())
        return {part: round(100 * count / total, 1) for part, count in self.moments.most_common()}


def run(out: Path, command: list[str]) -> int:
    """Run the command. Returns its exit code."""
    sampler = Sampler()
    signal.signal(signal.SIGPROF, sampler.look)
    signal.signal(signal.SIGUSR1, lambda *_: signal.setitimer(signal.ITIMER_PROF, EVERY_SECONDS, EVERY_SECONDS))
    try:
        return main(command)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        out.write_text(json.dumps(sampler.report()))


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), sys.argv[2:]))
