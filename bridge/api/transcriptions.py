"""`POST /v1/transcribe`: the body is the audio, the answer its transcript. For curl."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response

from bridge.api import formats
from bridge.api.bodies import Bodies, Spooled
from bridge.api.door import Door
from bridge.api.hearing import REFUSALS, Heard, Hearing, Narrator, Wanted
from bridge.api.models import Models
from bridge.api.plain_route import PlainRoute
from bridge.api.refusals import refusals
from bridge.api.sse import Event, EventStream
from bridge.audio.formats import Encoding
from bridge.errors import BridgeError
from bridge.protocols.events import Start
from bridge.protocols.native import NativeCodec
from bridge.transcript import FORMATS, Segment, segment_object, to_object

PATH: Final = "/v1/transcribe"
PROTOCOL: Final = "http"
_START_FIELDS: Final = ("language", "phrases", "words", "encoding", "sample_rate", "channels", "denoise")
_USUAL: Final = Start(partials=False)
_RAW_FIELDS: Final = ("encoding", "sample_rate", "channels")


def router(hearing: Hearing, models: Models, door: Door) -> APIRouter:
    """The one route."""
    routes = APIRouter(tags=["transcriptions"], route_class=PlainRoute)

    @routes.post(
        PATH,
        response_class=Response,
        openapi_extra={"requestBody": _REQUEST_BODY, "parameters": _PARAMETERS},
        responses={
            200: {"description": "The transcript, in the format that was asked for.", "content": _ANSWERS},
            **refusals(*REFUSALS),
        },
    )
    async def transcribe(request: Request) -> Response:
        """Transcribe the body: `curl --data-binary @talk.mp3 http://127.0.0.1:8000/v1/transcribe?format=text`."""
        caller = await door.enter(request)
        query = dict(parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True))
        wanted = parse(query, models)
        kind = formats.chosen(request, query.get("format"))
        source = _audio(request, hearing.bodies)
        if query.get("stream", "false").lower() in {"true", "1"}:
            return EventStream(hearing.events(request, source, wanted, caller, PROTOCOL, _Story()), failed)
        async with source as audio:
            heard = await hearing.whole(request, audio, wanted, caller, PROTOCOL)
        document = await hearing.written(heard, lambda: written(heard, kind))
        return Response(document, media_type=formats.TYPES[kind], headers=formats.PRIVATE)

    return routes


def parse(query: Mapping[str, str], models: Models) -> Wanted:
    """How the query string wants the audio to be heard; what it says of sound means raw samples, as for `/v1/stream`.

    Raises:
        BridgeError: `bad_request`, `unsupported_audio` or `unknown_backend`.
    """
    backend = models.backend(query.get("model"))
    fields = {name: query[name] for name in _START_FIELDS if name in query}
    if not fields:
        return Wanted(_USUAL, backend=backend)
    try:
        start = NativeCodec(fields).opening()
    except BridgeError as exc:
        if exc.code == "bad_start":
            raise BridgeError("bad_request", str(exc)) from None
        raise
    if not isinstance(start, Start):
        start = _USUAL
    raw = start.audio if any(name in fields for name in _RAW_FIELDS) else None
    return Wanted(start, None if raw and raw.encoding is Encoding.AUTO else raw, backend)


def _audio(request: Request, bodies: Bodies) -> AbstractAsyncContextManager[Spooled]:
    """The body, or the `file` of a form that was sent all the same."""
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return _of_form(request, bodies)
    return bodies.file(request)


@contextlib.asynccontextmanager
async def _of_form(request: Request, bodies: Bodies) -> AsyncIterator[Spooled]:
    async with bodies.form(request) as form:
        file = form.file("file")
        if file is None:
            raise BridgeError("bad_request", "send the audio as the body, or as the field `file` of a form")
        yield file


def written(heard: Heard, kind: str) -> str:
    """The answer in a format of `bridge.transcript.FORMATS`; as JSON with what else is known."""
    if kind != "json":
        return FORMATS[kind](heard.segments)
    return msgspec.json.encode(to_object(heard.segments) | _about(heard)).decode() + "\n"


def _about(heard: Heard) -> dict[str, Any]:
    return {"language": heard.language, "duration": round(heard.seconds, 3), "backend": heard.backend}


class _Story(Narrator):
    """A `final` for each, then `done` with the whole text."""

    def final(self, segment: Segment) -> Sequence[Event]:
        """See `Narrator`."""
        if not segment.text.strip():
            return ()
        return [_event("final", segment_object(segment))]

    def done(self, heard: Heard) -> Sequence[Event]:
        """See `Narrator`."""
        text = " ".join(" ".join(segment.text.split()) for segment in heard.segments if segment.text.strip())
        return [_event("done", {"text": text} | _about(heard))]


def failed(error: BridgeError) -> Event:
    """The last event of a stream that broke off."""
    return _event("error", {"code": error.code, "message": str(error)})


def _event(name: str, data: dict[str, Any]) -> Event:
    return Event(json.dumps(data, ensure_ascii=False, separators=(",", ":")), name)


_EXAMPLE: Final = {
    "text": "hello",
    "segments": [
        {"text": "hello", "start": 0.0, "end": 1.2, "words": [{"text": "hello", "start": 0.3, "end": 0.9}]},
    ],
    "language": "en-US",
    "duration": 1.46,
    "backend": "pocketsphinx",
}
_ANSWERS: Final[dict[str, Any]] = {
    "application/json": {"example": _EXAMPLE},
    "text/plain": {"example": "hello\n"},
    "application/x-subrip": {"example": "1\n00:00:00,000 --> 00:00:01,200\nhello\n"},
    "text/vtt": {"example": "WEBVTT\n\n00:00:00.000 --> 00:00:01.200\nhello\n"},
    "text/event-stream": {
        "example": 'event: final\ndata: {"text":"hello","start":0.0,"end":1.2,"words":[]}\n\n'
        'event: done\ndata: {"text":"hello","language":"en-US","duration":1.46,"backend":"pocketsphinx"}\n\n'
    },
}
_REQUEST_BODY: Final[dict[str, Any]] = {
    "required": True,
    "description": "A file of any format, or raw samples as the query string describes them.",
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
}


def _parameter(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": description}


_PARAMETERS: Final = [
    _parameter("format", {"type": "string", "enum": [*formats.NAMES]}, "How it is written; else `Accept` decides."),
    _parameter("language", {"type": "string"}, "BCP 47 tag, or `auto`; unset: the server's default."),
    _parameter("model", {"type": "string"}, "A name that `/v1/models` lists; unset: the server's default."),
    _parameter("phrases", {"type": "string"}, "Likely phrases, separated by commas."),
    _parameter("words", {"type": "boolean", "default": True}, "Whether each word is listed with its times."),
    _parameter("denoise", {"type": "boolean"}, "Suppress noise, where the server can."),
    _parameter("stream", {"type": "boolean", "default": False}, "Answer with server-sent events."),
    _parameter("encoding", {"type": "string"}, "Of raw samples, as for `/v1/stream`: `pcm_s16le`, `mulaw` …"),
    _parameter("sample_rate", {"type": "integer"}, "Of raw samples, in Hz."),
    _parameter("channels", {"type": "integer"}, "Of raw samples."),
]
