"""What `bench.http` compares the bridge with: FastAPI that only reads the body, on uvicorn as it comes.

With uvloop and httptools, as the bridge, and without an access log.
"""

from __future__ import annotations

import sys

import uvicorn
from fastapi import FastAPI, Request

from bridge.commands.loop import run_loop
from bridge.transports.server import listen

app = FastAPI()


@app.post("/bare")
async def bare(request: Request) -> dict[str, str]:
    """As short an answer as a short transcript is."""
    await request.body()
    return {"text": "one two three four five six one two three four"}


async def serve() -> int:
    """Until SIGTERM."""
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, http="httptools", ws="none", log_level="warning", access_log=False))
    sys.stderr.write(f"  http      http://127.0.0.1:{listener.getsockname()[1]}\n")
    sys.stderr.flush()
    await server.serve([listener])
    return 0


if __name__ == "__main__":
    sys.exit(run_loop(serve()))
