"""The least that a server can do: `websockets` on uvloop reads messages, decodes base64 if there is some, drops them.

`python -m bench.targets.bare [--base64]` serves until it is told to stop, on a free port of the loopback.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import signal
import sys

import uvloop
from websockets.asyncio.server import ServerConnection, serve


async def read(connection: ServerConnection) -> None:
    """Binary messages."""
    async for _ in connection:
        pass


async def decode(connection: ServerConnection) -> None:
    """Messages of JSON with base64."""
    async for message in connection:
        base64.b64decode(json.loads(message)["data"])


async def run(*, coded: bool) -> None:
    """Until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with serve(decode if coded else read, "127.0.0.1", 0, compression=None, backlog=1_024) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        sys.stderr.write(f"  stream    ws://127.0.0.1:{port}/\n")
        sys.stderr.flush()
        await stop.wait()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m bench.targets.bare", description=__doc__)
    parser.add_argument("--base64", action="store_true", help="messages are JSON with audio in base64")
    uvloop.run(run(coded=parser.parse_args().base64))


if __name__ == "__main__":
    main()
