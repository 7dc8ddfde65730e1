"""The forms in which a transcript is answered, and which one a request asks for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from fastapi import Request

from bridge.errors import BridgeError

PRIVATE: Final = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
"""Headers of what somebody said: nothing on the way keeps it, and no browser guesses what it may be."""

TYPES: Final = {
    "json": "application/json",
    "text": "text/plain; charset=utf-8",
    "srt": "application/x-subrip; charset=utf-8",
    "vtt": "text/vtt; charset=utf-8",
}
"""Media types, by the names of `bridge.transcript.FORMATS`."""
NAMES: Final = {"json": "json", "txt": "text", "text": "text", "srt": "srt", "vtt": "vtt"}
"""Those names, by what a request may call them."""
_ACCEPTED: Final = {
    "application/json": "json",
    "text/plain": "text",
    "application/x-subrip": "srt",
    "text/srt": "srt",
    "text/vtt": "vtt",
    "application/*": "json",
    "text/*": "text",
    "*/*": "json",
}
_QUALITY: Final = re.compile(r"q\s*=\s*([01](?:\.\d{0,3})?)\s*", re.IGNORECASE)

CONTENT: Final[dict[str, Any]] = {kind.partition(";")[0]: {} for kind in TYPES.values()}
"""For the API's description: an answer in any of them."""


def chosen(request: Request, named: str | None) -> str:
    """The format that `named` (a parameter, if it is there) or else the header `Accept` asks for.

    Raises:
        BridgeError: `bad_message`: there is no such format.
    """
    kind = _accepted(request.headers.getlist("accept")) if named is None else NAMES.get(named)
    if kind is None:
        raise BridgeError("bad_message", f"`format` should be one of {', '.join(NAMES)}")
    return kind


def _accepted(headers: Iterable[str]) -> str:
    """The format that `Accept` likes best, the first one of several; JSON where it likes none (RFC 9110, 12.5.1)."""
    best, kind = 0.0, "json"
    for part in ",".join(headers).split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        found = [float(match[1]) for piece in parameters if (match := _QUALITY.fullmatch(piece))]
        quality = found[0] if found else 1.0
        accepted = _ACCEPTED.get(name.lower())
        if accepted is not None and quality > best:
            best, kind = quality, accepted
    return kind
