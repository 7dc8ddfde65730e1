"""What a session came to: its state, its transcript, and how it is forgotten. `Door` and `Rights` say to whom."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel

from bridge.api import formats
from bridge.api.door import Door
from bridge.api.refusals import refusals
from bridge.errors import BridgeError
from bridge.session.directory import SessionDirectory, SessionState, can_be_session
from bridge.transcript import FORMATS, Segment, SpokenText

PATH: Final = "/v1/sessions/{session_id}"
WRITERS: Final = 2
"""Transcripts that are written out at once. One of eight hours takes 0.4 s, so it is no work for the event loop."""


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


def router(directory: SessionDirectory, door: Door) -> APIRouter:
    """`/v1/sessions`."""

    writers = asyncio.Semaphore(WRITERS)
    routes = APIRouter(tags=["sessions"], responses=refusals("unknown_session", "log_unavailable"))

    @routes.get(PATH)
    async def show(session_id: str, request: Request, response: Response) -> SessionDescription:
        """How the session stands; for whoever may receive or administer it."""
        rights = await door.read(request)
        if not rights.allows("receive", session_id):
            rights.require("admin", session_id)
        response.headers.update(formats.PRIVATE)
        return _description(await _known(directory, session_id))

    @routes.get(
        PATH + "/transcript",
        response_class=Response,
        responses={200: {"content": formats.CONTENT}},
    )
    async def transcript(
        request: Request,
        session_id: str,
        format_: Annotated[
            str | None,
            Query(alias="format", description="How it is written.", json_schema_extra={"enum": [*formats.NAMES]}),
        ] = None,
    ) -> Response:
        """What was said so far; `format` decides how it is written, or else the header `Accept`."""
        (await door.read(request)).require("receive", session_id)
        kind = formats.chosen(request, format_)
        await _known(directory, session_id)
        async with writers:
            document = await asyncio.to_thread(_written, await directory.finals(session_id), kind)
        return Response(document, media_type=formats.TYPES[kind], headers=formats.PRIVATE)

    @routes.delete(PATH, status_code=204)
    async def delete(session_id: str, request: Request) -> None:
        """Forget the session and all it said, at once; one that goes on ends. Everybody in it hears `deleted`."""
        (await door.read(request)).require("admin", session_id)
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
