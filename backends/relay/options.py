"""The settings of the relay, and where its address leads."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import SplitResult, urlsplit

from backends.base import BackendError, Fault

_NAME: Final = "STT_RELAY_URL"
_SCHEMES: Final = {"ws": False, "http": False, "wss": True, "https": True}  # whether it is encrypted
_STREAM: Final = "/v1/stream"


@dataclass(frozen=True, slots=True)
class Address:
    """`stream`: where sessions are opened; `readyz`: where the server says whether it takes any (None: unknown)."""

    stream: str
    readyz: str | None
    host: str
    loopback: bool
    encrypted: bool

    @classmethod
    def parse(cls, url: str) -> Address:
        """From `ws://HOST[:PORT][/PATH]`, or with `wss`, `http`, `https`; without a path, `/v1/stream` is meant.

        Raises:
            ValueError: a sentence that names the variable and never the value, which may hold a key.
        """
        try:
            parts = urlsplit(url)
            port = parts.port  # raises where it is none
        except ValueError:
            raise ValueError(f"{_NAME}: the value given is not allowed: it should be a URL") from None
        _check(parts)
        encrypted, host = _SCHEMES[parts.scheme], parts.hostname or ""
        place = (f"[{host}]" if ":" in host else host) + (f":{port}" if port is not None else "")
        path = _STREAM if parts.path in ("", "/") else parts.path
        readyz = None
        if path.endswith(_STREAM):  # also behind a proxy that puts something in front of it
            readyz = f"{'https' if encrypted else 'http'}://{place}{path.removesuffix(_STREAM)}/readyz"
        return cls(f"{'wss' if encrypted else 'ws'}://{place}{path}", readyz, place, _is_loopback(host), encrypted)


@dataclass(frozen=True, slots=True)
class RelayOptions:
    """Settings of `relay`. Durations in seconds.

    Raises:
        ValueError: an address that cannot be meant.
    """

    url: str | None = field(
        default=None,
        metadata={"help": "The server behind, as `ws://gpu:8000` or `wss://stt.example/v1/stream`; required."},
    )
    api_key: str | None = field(default=None, metadata={"help": "Key or token for that server.", "secret": True})
    pass_authorization: bool = field(
        default=False,
        metadata={"help": "Show that server the caller's own key or token, where there is one, instead of that key."},
    )
    max_streams: int | None = field(
        default=None, metadata={"help": "Streams at once; unset: as many as that server says it carries.", "min": 1}
    )
    connect_seconds: float = field(
        default=5.0, metadata={"help": "Longest wait for a connection, and again for the first answer.", "min": 0.1}
    )
    retry_seconds: float = field(
        default=5.0,
        metadata={"help": "Time for which a session is tried to be opened, before any audio was sent.", "min": 0},
    )
    resume_seconds: float = field(
        default=20.0, metadata={"help": "Time for which a session whose connection broke is tried to be resumed."}
    )
    heartbeat_seconds: float = field(
        default=10.0, metadata={"help": "A server that answers neither audio nor pings for so long is gone.", "min": 1}
    )
    timeout_seconds: float | None = field(
        default=None, metadata={"help": "Longest that one stream may take, from end to end; unset: any time.", "min": 1}
    )
    load_seconds: float = field(
        default=30.0, metadata={"help": "How long starting waits for that server to be ready.", "min": 0}
    )
    health_seconds: float = field(
        default=5.0, metadata={"help": "Time between two questions whether it is ready, at `/readyz`.", "min": 0.1}
    )

    def __post_init__(self) -> None:
        if self.url is not None:
            Address.parse(self.url)

    @property
    def address(self) -> Address:
        """Where `url` leads.

        Raises:
            BackendError: there is none.
        """
        if self.url is None:
            text = f"{_NAME} is needed by the backend relay: the address of the server behind it"
            raise BackendError(text, code="misconfigured", fault=Fault.OPERATOR)
        return Address.parse(self.url)


def _check(parts: SplitResult) -> None:
    wrong = (
        "have one of the schemes ws, wss, http, https"
        if parts.scheme not in _SCHEMES
        else "name a host"
        if not parts.hostname
        else "hold no key: that belongs into STT_RELAY_API_KEY"
        if parts.username is not None or parts.password is not None
        else "have no query: what a session is asked for is the caller's"
        if parts.query or parts.fragment
        else None
    )
    if wrong is not None:
        raise ValueError(f"{_NAME}: the value given is not allowed: it should {wrong}")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
