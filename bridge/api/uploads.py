"""`/v1/audio`: files in numbered chunks, which may come in any order and more than once."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from bridge.api.bodies import Bodies
from bridge.api.door import Door
from bridge.api.forms import Form
from bridge.api.refusals import refusals
from bridge.api.upload_states import EXAMPLE_CHUNKED, FIELDS, ChunkedDescription, describe_chunked, example
from bridge.errors import BridgeError
from bridge.session.directory import can_be_session
from bridge.uploads.chunks import MAX_PIECES
from bridge.uploads.desk import UploadDesk
from bridge.uploads.models import Status

PATH: Final = "/v1/audio"
_TRUE: Final = frozenset({"true", "1", "yes", "on"})
_FALSE: Final = frozenset({"false", "0", "no", "off", ""})
_NAME: Final[dict[str, Any]] = {"type": "string", "pattern": "^[A-Za-z0-9._~-]{1,128}$"}

_FORM: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["session_id", "seq", "chunk"],
    "properties": {
        "session_id": {**_NAME, "description": "The upload's name, of its sender's choice."},
        "seq": {"type": "integer", "minimum": 0, "maximum": MAX_PIECES - 1, "description": "The chunk's number."},
        "is_last": {"type": "boolean", "default": False, "description": "Whether it is the last one."},
        "chunk": {"type": "string", "format": "binary"},
        **{name: {"type": "string"} for name in FIELDS},
    },
}


def router(door: Door, bodies: Bodies, desk: UploadDesk) -> APIRouter:
    """`/v1/audio`."""
    routes = APIRouter(tags=["uploads"])

    @routes.post(
        PATH,
        response_model=ChunkedDescription,
        openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}},
        responses=example(EXAMPLE_CHUNKED)
        | refusals(
            "bad_request",
            "upload_conflict",
            "upload_incomplete",
            "too_large",
            "audio_too_long",
            "body_timeout",
            "unsupported_audio",
            "undecodable_audio",
            "quota_exceeded",
            "store_unavailable",
        ),
    )
    async def add(request: Request) -> Response:
        """Send one chunk of a file. The same chunk may be sent again, and chunks may come in any order.

        The one with `is_last` says how many there are. Once all are there, they become a file, which is looked at and
        becomes a job; whichever chunk comes last is answered with it. If chunks are missing when the last one has come,
        the answer is `upload_incomplete`, with `missing` and all the rest beside the `error`; what has come is kept.
        """
        caller = await door.enter(request)
        async with bodies.form(request) as form:
            name, number, is_last = _place(form)
            chunk = form.file("chunk") or form.file("file")
            if chunk is None:
                raise BridgeError("bad_request", "chunk: should be a file, as curl's `-F chunk=@FILE` sends it")
            fields = {field: "\n".join(values) for field in FIELDS if (values := form.all(field))}
            status = await desk.chunked.add(caller.subject, name, number, chunk, is_last=is_last, fields=fields)
        return _answer(status, is_last=is_last)

    @routes.get(
        PATH + "/{session_id}",
        responses=example(EXAMPLE_CHUNKED) | refusals("unknown_upload", "store_unavailable"),
    )
    async def show(session_id: str, request: Request) -> ChunkedDescription:
        """How the upload stands, for whoever sends it."""
        caller = await door.enter(request)
        return describe_chunked(await desk.chunked.status(caller.subject, _known(session_id)))

    @routes.delete(PATH + "/{session_id}", status_code=204, responses=refusals("unknown_upload", "store_unavailable"))
    async def drop(session_id: str, request: Request) -> None:
        """Give the upload up, or forget it. A job that was made of it goes on."""
        caller = await door.enter(request)
        await desk.drop("chunks", caller.subject, _known(session_id))

    return routes


def _answer(status: Status, *, is_last: bool) -> Response:
    body = describe_chunked(status).model_dump(mode="json")
    if not is_last or status.state != "open":
        return JSONResponse(body)
    named = ", ".join(map(str, status.missing))
    more = status.missing_count - len(status.missing)
    message = f"missing: [{named}]" + (f" and {more} more" if more else "")
    refusal = BridgeError("upload_incomplete", message)
    return JSONResponse(body | {"error": {"code": refusal.code, "message": message}}, refusal.row.status)


def _place(form: Form) -> tuple[str, int, bool]:
    """Which chunk it is: the upload's name, the number, and whether it is the last."""
    name = form.get("session_id") or ""
    if not can_be_session(name):
        raise BridgeError("bad_request", "session_id: should be 1 to 128 letters, digits, or `.`, `_`, `~`, `-`")
    seq = (form.get("seq") or "").strip()
    if not (seq.isascii() and seq.isdecimal() and len(seq) < 10):
        raise BridgeError("bad_request", f"seq: should be a number from 0 to {MAX_PIECES - 1}")
    last = (form.get("is_last") or "").strip().lower()
    if last not in _TRUE | _FALSE:
        raise BridgeError("bad_request", "is_last: should be true or false")
    return name, int(seq), last in _TRUE


def _known(session_id: str) -> str:
    if not can_be_session(session_id):
        raise BridgeError("unknown_upload")
    return session_id
