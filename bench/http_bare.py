"""What `bench.http` compares the bridge with: FastAPI that only reads the body, served as the bridge is served."""

from __future__ import annotations

import sys

from fastapi import FastAPI, Request

from bridge.commands.loop import run_loop
from bridge.settings import Settings
from bridge.transports.server import listen, make_server

app = FastAPI()


@app.post("/bare")
async def bare(request: Request) -> dict[str, str]:
    """As short an answer as a short transcript is."""
    await request.body()
    return {"text": "one two three four five six one two three four"}


async def serve() -> int:
    """Until SIGTERM."""
    settings = Settings.load()
    listener = listen("127.0.0.1", 0)

    async def drain() -> None:
        """There is nothing."""

    server = make_server(
        app,
        drain=drain,
        max_connections=settings.max_connections,
        max_message_bytes=settings.max_message_bytes,
        ping_seconds=settings.ping_seconds,
        ping_timeout_seconds=settings.ping_timeout_seconds,
        shutdown_seconds=1,
    )
    sys.stderr.write(f"  http      http://127.0.0.1:{listener.getsockname()[1]}\n")
    sys.stderr.flush()
    await server.serve([listener])
    return 0


if __name__ == "__main__":
    sys.exit(run_loop(serve()))
