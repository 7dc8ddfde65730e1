"""Connections to the API: one client for each, at most so many streams on one.

A server lets about 100 streams share a connection; the 101st waits without a word until another ends. So streams are
spread over channels, and each channel has an argument of its own: channels with the same arguments share a connection.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from backends.base import BackendError

Client = TypeVar("Client")

ChannelOptions = list[tuple[str, int]]

KEEPALIVE_MS: Final = 10_000
KEEPALIVE_TIMEOUT_MS: Final = 5_000
"""A dead connection is noticed within their sum; idle ones are not pinged, which servers would punish."""
RECONNECT_MS: Final = (200, 2_000)
"""First and longest pause between attempts to connect: an outage ends within two seconds of the server's return."""
CONNECT_MS: Final = 4_000
"""One attempt to connect; gRPC calls it the least backoff. Its 20 s would outlast the return of a silent host."""


def channel_options(index: int, *, loopback: bool) -> ChannelOptions:
    """The arguments of one channel of the pool."""
    options = [
        ("app.pool_index", index),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", RECONNECT_MS[0]),
        ("grpc.max_reconnect_backoff_ms", RECONNECT_MS[1]),
        ("grpc.min_reconnect_backoff_ms", CONNECT_MS),
        ("grpc.enable_retries", 0),  # a stream's audio cannot be sent again by gRPC: the session replays it
    ]
    return [*options, ("grpc.enable_http_proxy", 0)] if loopback else options


@dataclass(slots=True)
class _Connection(Generic[Client]):
    client: Client
    streams: int = 0


class Pool(Generic[Client]):
    """Clients, made by `make` (given the index of the channel) when they are needed. Safe to use from threads."""

    def __init__(self, make: Callable[[int], Client], *, streams_per_connection: int, max_streams: int) -> None:
        self._make = make
        self._per_connection = streams_per_connection
        self._most = -(-max_streams // streams_per_connection)
        self._connections: list[_Connection[Client]] = []
        self._lock = threading.Lock()

    @property
    def clients(self) -> list[Client]:
        """The clients made so far."""
        return [connection.client for connection in self._connections]

    def grow(self) -> None:
        """Make the first client, so that what is wrong with it shows early."""
        with self._lock:
            if not self._connections:
                self._add()

    @contextlib.contextmanager
    def lease(self) -> Iterator[Client]:
        """A client for one stream, on the fullest connection that has room.

        Raises:
            BackendError: `overloaded`; as many streams are open as connections may carry.
        """
        with self._lock:
            connection = self._with_room()
            connection.streams += 1
        try:
            yield connection.client
        finally:
            with self._lock:
                connection.streams -= 1

    def empty(self) -> list[Client]:
        """Take all clients out, to be closed by the caller."""
        with self._lock:
            clients = self.clients
            self._connections = []
            return clients

    def _with_room(self) -> _Connection[Client]:
        open_ones = [c for c in self._connections if c.streams < self._per_connection]
        if open_ones:
            return max(open_ones, key=lambda c: c.streams)  # others fall idle, and gRPC closes them
        if len(self._connections) >= self._most:
            raise BackendError("every connection is full", code="overloaded", retryable=True)
        return self._add()

    def _add(self) -> _Connection[Client]:
        connection = _Connection(self._make(len(self._connections)))
        self._connections.append(connection)
        return connection
