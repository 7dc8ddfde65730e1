"""What both logs write besides events: how a session started, how far it is, and what passes between servers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from bridge.errors import BridgeError
from bridge.protocols.events import Ack, LastingEvent, Partial, ServerEvent, Start
from bridge.session.eventlog.base import LogUnavailableError, Progress, decode_event, encode_event

_encoder: Final = msgspec.json.Encoder()
_start: Final = msgspec.json.Decoder(Start)
_progress: Final = msgspec.json.Decoder(Progress)
_PASSING: Final[dict[str, type[Partial | Ack]]] = {"partial": Partial, "ack": Ack}
_NAMES: Final = {kind: name for name, kind in _PASSING.items()}
_passing: Final[dict[str, msgspec.json.Decoder[Any]]] = {n: msgspec.json.Decoder(t) for n, t in _PASSING.items()}


def encode(value: Start | Progress) -> bytes:
    """As JSON."""
    return _encoder.encode(value)


def decode_start(data: bytes) -> Start:
    """How a session started.

    Raises:
        LogUnavailableError: the log holds something else; so do all of these.
    """
    try:
        return _start.decode(data)
    except (msgspec.MsgspecError, BridgeError) as exc:
        raise LogUnavailableError(f"the start of a session in the log cannot be understood: {exc}") from exc


def decode_progress(data: bytes) -> Progress:
    """How far it is."""
    try:
        return _progress.decode(data)
    except msgspec.MsgspecError as exc:
        raise LogUnavailableError(f"the progress of a session in the log cannot be understood: {exc}") from exc


def encode_lines(events: Iterable[ServerEvent]) -> bytes:
    """Events for other servers, two lines each: the kind, and the JSON, which has no line break of its own.

    `Ready` and `Joined` are one connection's, and left out.
    """
    lines: list[bytes] = []
    for event in events:
        if isinstance(event, Partial | Ack):
            lines += [_NAMES[type(event)].encode(), _encoder.encode(event)]
        elif isinstance(event, LastingEvent):
            kind, data = encode_event(event)
            lines += [kind.encode(), data]
    return b"".join(line + b"\n" for line in lines)


def decode_lines(data: bytes) -> list[ServerEvent]:
    """The events that `encode_lines` wrote."""
    lines = data.split(b"\n")
    return [_event(kind.decode(), body) for kind, body in zip(lines[0:-1:2], lines[1::2], strict=True)]


def _event(kind: str, data: bytes) -> ServerEvent:
    decoder = _passing.get(kind)
    if decoder is None:
        return decode_event(kind, data)
    try:
        event: Partial | Ack = decoder.decode(data)
    except msgspec.MsgspecError as exc:
        raise LogUnavailableError(f"an event from another server cannot be understood: {exc}") from exc
    return event
