"""The bridge as tutorials write it: for each client a `queue.Queue` and a thread that drives a blocking recognizer.

The recognizer is the scripted engine's blocking one, which costs nothing: the same texts at the same times as from
the bridge. Results come back by `run_coroutine_threadsafe`. As in the examples that circulate: the standard library's
json, an unbounded queue, a thread for each client, and the standard event loop.

`python -m bench.targets.naive` serves until it is told to stop, on a free port of the loopback.
"""

from __future__ import annotations

import asyncio
import base64
import json
import queue
import signal
import sys
import threading
from collections.abc import Iterator

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from backends.base import RecognitionConfig
from backends.scripted import ScriptedThreadsBackend


class Client:
    """One connection."""

    def __init__(self, connection: ServerConnection) -> None:
        self.connection = connection
        self.loop = asyncio.get_running_loop()
        self.audio: queue.Queue[bytes | None] = queue.Queue()
        self.worker = threading.Thread(target=self.recognize, daemon=True)

    def chunks(self) -> Iterator[bytes]:
        while (chunk := self.audio.get()) is not None:
            yield chunk

    def recognize(self) -> None:
        config = RecognitionConfig(sample_rate=16_000, language="en-US", words=False)
        for result in ScriptedThreadsBackend().recognize(config, self.chunks()):
            message = {"type": "final" if result.is_final else "partial", "text": result.text, "end": result.end}
            sending = asyncio.run_coroutine_threadsafe(self.connection.send(json.dumps(message)), self.loop)
            try:
                sending.result()
            except ConnectionClosed:
                return

    async def serve(self) -> None:
        received = 0
        self.worker.start()
        try:
            async for message in self.connection:
                if isinstance(message, str):
                    fields = json.loads(message)
                    if fields["type"] == "start":
                        await self.connection.send(json.dumps({"type": "ready", "backend": "scripted-threads"}))
                        continue
                    if fields["type"] == "stop":
                        break
                    chunk = base64.b64decode(fields["data"])
                else:
                    chunk = message
                received += len(chunk) // 2
                self.audio.put(chunk)
        finally:
            self.audio.put(None)
        await asyncio.to_thread(self.worker.join)
        await self.connection.send(json.dumps({"type": "closed", "code": "stopped", "received": received}))


async def handle(connection: ServerConnection) -> None:
    await Client(connection).serve()


async def run() -> None:
    """Until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with serve(handle, "127.0.0.1", 0, compression=None, backlog=1_024) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        sys.stderr.write(f"  stream    ws://127.0.0.1:{port}/\n")
        sys.stderr.flush()
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(run())
