"""What a session came to: its state, its transcript, and how it is forgotten. `Gatekeeper` and `Rights` say to whom."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel

from bridge.api.refusals import refusals
from bridge.errors import BridgeError
from bridge.security.auth import Gatekeeper
from bridge.security.rights import Rights
from bridge.session.directory import SessionDirectory, SessionState, can_be_session
from bridge.transcript import FORMATS, Segment, SpokenText

PATH: Final = "/v1/sessions/{session_id}"
WRITERS: Final = 2
"""Transcripts that are written out at once. One of eight hours takes 0.4 s, so it is no work for the event loop."""

# Transcripts are personal data: nothing on the way keeps one, and no browser guesses what it may be.
_HEADERS: Final = {"cache-control": "no-store", "x-content-type-options": "nosniff"}

_TYPES: Final = {
    "json": "application/json",
    "text": "text/plain; charset=utf-8",
    "srt": "application/x-subrip; charset=utf-8",
    "vtt": "text/vtt; charset=utf-8",
}
_NAMES: Final = {"json": "json", "txt": "text", "text": "text", "srt": "srt", "vtt": "vtt"}
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


class SessionDescription(BaseModel):
    """How a session stands. `received` and `finalized` are seconds of audio, `seq` is its last event.

    `state`: whether its sender has yet to come (`waiting`), is there (`live`), is expected back (`held`), or is done
    (`ended`). `code`: why it ended. `stored`: whether the event log keeps it.
    """

    session_id: str
    state: Literal["waiting", "live", "held", "ended"]
    code: str | None
    backend: str
    language: str
    protocol: str
    created: str
    ended: str | None
    seq: int
    received: float
    finalized: float
    receivers: int
    stored: bool


def router(directory: SessionDirectory, gatekeeper: Gatekeeper) -> APIRouter:
    """`/v1/sessions`."""

    def admitted(request: Request) -> Rights:
        return gatekeeper.admit_reader(request.headers, request.query_params).rights

    writers = asyncio.Semaphore(WRITERS)
    routes = APIRouter(tags=["sessions"], responses=refusals("unknown_session", "log_unavailable"))

    @routes.get(PATH)
    async def show(session_id: str, request: Request, response: Response) -> SessionDescription:
        """How the session stands; for whoever may receive or administer it."""
        rights = admitted(request)
        if not rights.allows("receive", session_id):
            rights.require("admin", session_id)
        response.headers.update(_HEADERS)
        return _description(await _known(directory, session_id))

    @routes.get(
        PATH + "/transcript",
        response_class=Response,
        responses={200: {"content": {kind.partition(";")[0]: {} for kind in _TYPES.values()}}},
    )
    async def transcript(
        request: Request,
        session_id: str,
        format_: Annotated[
            str | None, Query(alias="format", description="How it is written.", json_schema_extra={"enum": [*_NAMES]})
        ] = None,
    ) -> Response:
        """What was said so far; `format` decides how it is written, or else the header `Accept`."""
        admitted(request).require("receive", session_id)
        kind = _accepted(request.headers.getlist("accept")) if format_ is None else _NAMES.get(format_)
        if kind is None:
            raise BridgeError("bad_message", f"`format` should be one of {', '.join(_NAMES)}")
        await _known(directory, session_id)
        async with writers:
            document = await asyncio.to_thread(_written, await directory.finals(session_id), kind)
        return Response(document, media_type=_TYPES[kind], headers=_HEADERS)

    @routes.delete(PATH, status_code=204)
    async def delete(session_id: str, request: Request) -> None:
        """Forget the session and all it said, at once; one that goes on ends. Everybody in it hears `deleted`."""
        admitted(request).require("admin", session_id)
        if not can_be_session(session_id) or not await directory.delete(session_id):
            raise BridgeError("unknown_session")

    return routes


async def _known(directory: SessionDirectory, session_id: str) -> SessionState:
    state = await directory.describe(session_id) if can_be_session(session_id) else None
    if state is None:
        raise BridgeError("unknown_session")
    return state


def _written(finals: Sequence[SpokenText], kind: str) -> str:
    return FORMATS[kind]([Segment.of(final) for final in finals])


def _description(state: SessionState) -> SessionDescription:
    return SessionDescription(
        session_id=state.session_id,
        state=state.state,
        code=state.code,
        backend=state.backend,
        language=state.language,
        protocol=state.protocol,
        created=_iso(state.created),
        ended=None if state.ended is None else _iso(state.ended),
        seq=state.seq,
        received=round(state.received, 3),
        finalized=round(state.finalized, 3),
        receivers=state.receivers,
        stored=state.stored,
    )


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _accepted(headers: Iterable[str]) -> str:
    """The format that `Accept` likes best, the first one of several; JSON where it likes none (RFC 9110, 12.5.1)."""
    best, chosen = 0.0, "json"
    for part in ",".join(headers).split(","):
        kind, *parameters = (piece.strip() for piece in part.split(";"))
        found = [float(match[1]) for piece in parameters if (match := _QUALITY.fullmatch(piece))]
        quality = found[0] if found else 1.0
        name = _ACCEPTED.get(kind.lower())
        if name is not None and quality > best:
            best, chosen = quality, name
    return chosen
