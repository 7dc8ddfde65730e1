"""A client of the native protocol (`/v1/stream`) on asyncio, whose sessions outlive their connections.

    async with connect("ws://127.0.0.1:8000/v1/stream", StartMessage(encoding="pcm_s16le")) as client:
        await client.send(audio)      # from any task
        await client.stop()
        async for message in client:  # until the server says `closed`
            ...

Send from one task and receive in another: both directions push back on their own. `receive` is for who listens to
somebody else's session. The exceptions stand in `bridge.client.errors`.
"""

from bridge.client.backoff import Reconnect
from bridge.client.errors import ClientError, ConnectError, ConnectionLost, SessionError
from bridge.client.lifeline import Interrupted, OnReconnect, Resumed
from bridge.client.receiver import Receiver, receive
from bridge.client.sender import Client, connect

__all__ = [
    "Client",
    "ClientError",
    "ConnectError",
    "ConnectionLost",
    "Interrupted",
    "OnReconnect",
    "Receiver",
    "Reconnect",
    "Resumed",
    "SessionError",
    "connect",
    "receive",
]
