"""`POST /v1/audio/transcriptions`, as OpenAI has it: its clients need nothing but another `base_url`."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from bridge.api.bodies import Spooled
from bridge.api.door import Door
from bridge.api.formats import PRIVATE
from bridge.api.forms import Form
from bridge.api.hearing import REFUSALS, Hearing, Wanted
from bridge.api.language_names import language_tag
from bridge.api.models import Models
from bridge.api.openai_errors import BadFieldError, openai_refusals
from bridge.api.openai_formats import FORMATS, OpenAINarrator, stream_failed, written
from bridge.api.plain_route import PlainRoute
from bridge.api.sse import EventStream
from bridge.protocols.events import Start

PATH: Final = "/v1/audio/transcriptions"
PROTOCOL: Final = "openai"

PHRASES: Final = 100
PHRASE_CHARS: Final = 100
PHRASE_WORDS: Final = 6
"""More words between two separators are prose, which is no list of what may be said."""
_SEPARATORS: Final = re.compile(r"[,;\n\r]+|\.\s")
_TRUE: Final = {"true": True, "1": True, "false": False, "0": False, "": False}
_TIMED: Final = ("srt", "vtt", "diarized_json")


@dataclass(frozen=True, slots=True)
class Asked:
    """The fields of a request."""

    file: Spooled
    wanted: Wanted
    response_format: str
    temperature: float
    words: bool
    stream: bool


def router(hearing: Hearing, models: Models, door: Door) -> APIRouter:
    """The one route."""
    routes = APIRouter(tags=["transcriptions"], route_class=PlainRoute)

    @routes.post(
        PATH,
        response_class=Response,
        openapi_extra={"requestBody": _REQUEST_BODY},
        responses={
            200: {"description": "The transcript, in the format that was asked for.", "content": _ANSWERS},
            **openai_refusals(*REFUSALS),
        },
    )
    async def transcriptions(request: Request) -> Response:
        """Transcribe a file, as OpenAI's API does."""
        caller = await door.enter(request)
        async with contextlib.AsyncExitStack() as stack:
            form = await stack.enter_async_context(hearing.bodies.form(request))
            asked = parse(form, models)
            if not asked.stream:
                heard = await hearing.whole(request, asked.file, asked.wanted, caller, PROTOCOL)
                document = await hearing.written(
                    heard,
                    lambda: written(heard, asked.response_format, words=asked.words, temperature=asked.temperature),
                )
                return Response(document, media_type=FORMATS[asked.response_format], headers=PRIVATE)
            kept = stack.pop_all()
        narrator = OpenAINarrator(diarized=asked.response_format == "diarized_json")
        source = _kept(kept, asked.file)
        return EventStream(hearing.events(request, source, asked.wanted, caller, PROTOCOL, narrator), stream_failed)

    @routes.api_route(PATH, methods=["GET", "DELETE"], include_in_schema=False)
    async def nothing_else(_: Request) -> Response:
        """Else it would be taken for an upload of this name: `/v1/audio/{session_id}`."""
        raise HTTPException(405)

    return routes


@contextlib.asynccontextmanager
async def _kept(stack: contextlib.AsyncExitStack, file: Spooled) -> AsyncIterator[Spooled]:
    async with stack:
        yield file


def parse(form: Form, models: Models) -> Asked:
    """What a form asks for. Fields that mean nothing to this server are ignored.

    Raises:
        BridgeError: `bad_request` or `unknown_backend`.
    """
    file = form.file("file")
    if file is None:
        raise BadFieldError("file", "send the audio as the field `file`, with a file name")
    response_format = form.get("response_format") or "json"
    if response_format not in FORMATS:
        raise BadFieldError("response_format", f"`response_format` should be one of {', '.join(FORMATS)}")
    granularities = form.all("timestamp_granularities")
    if not {*granularities} <= {"word", "segment"}:
        raise BadFieldError("timestamp_granularities", "`timestamp_granularities` should be `word` or `segment`")
    words = "word" in granularities and response_format == "verbose_json"
    start = Start(
        language=_language(form),
        partials=False,
        words=words or response_format in _TIMED,
        phrases=_phrases(form),
    )
    return Asked(
        file,
        Wanted(start, backend=models.backend(form.get("model"))),
        response_format,
        _temperature(form.get("temperature")),
        words,
        _flag("stream", form.get("stream")),
    )


def _language(form: Form) -> str | None:
    hints = form.all("languages")
    given = form.get("language") or (hints[0] if len(hints) == 1 else "")
    return language_tag(given) or None


def _temperature(given: str | None) -> float:
    try:
        value = float(given or 0)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise BadFieldError("temperature", "`temperature` should be a number from 0 to 1")
    return value


def _flag(name: str, given: str | None) -> bool:
    try:
        return _TRUE[(given or "").strip().lower()]
    except KeyError:
        raise BadFieldError(name, f"`{name}` should be true or false") from None


def _phrases(form: Form) -> tuple[str, ...]:
    """The prompt's hints: what stands between commas, semicolons, line and sentence ends, if it is short.

    `keywords` are hints as they are.
    """
    listed = [*form.all("keywords"), *_SEPARATORS.split(form.get("prompt") or "")]
    phrases = (" ".join(part.strip(" \t.!?\"'").split()) for part in listed)
    short = (p for p in phrases if p and len(p) <= PHRASE_CHARS and len(p.split()) <= PHRASE_WORDS)
    return tuple(dict.fromkeys(short))[:PHRASES]


_ANSWERS: Final[dict[str, Any]] = {
    "application/json": {
        "examples": {
            "json": {"value": {"text": "hello", "usage": {"type": "duration", "seconds": 2}}},
            "verbose_json": {
                "value": {
                    "task": "transcribe",
                    "language": "english",
                    "duration": 1.46,
                    "text": "hello",
                    "segments": [
                        {
                            "id": 0,
                            "seek": 0,
                            "start": 0.0,
                            "end": 1.2,
                            "text": "hello",
                            "tokens": [],
                            "temperature": 0.0,
                            "avg_logprob": -0.1,
                            "compression_ratio": 0.38,
                            "no_speech_prob": 0.0,
                        }
                    ],
                    "words": [{"word": "hello", "start": 0.3, "end": 0.9}],
                    "usage": {"type": "duration", "seconds": 2},
                }
            },
        }
    },
    "text/plain": {"example": "hello\n"},
    "application/x-subrip": {"example": "1\n00:00:00,000 --> 00:00:01,200\nhello\n"},
    "text/vtt": {"example": "WEBVTT\n\n00:00:00.000 --> 00:00:01.200\nhello\n"},
    "text/event-stream": {
        "example": 'data: {"type":"transcript.text.delta","delta":"hello"}\n\n'
        'data: {"type":"transcript.text.done","text":"hello","usage":{"type":"tokens","input_tokens":15,'
        '"output_tokens":1,"total_tokens":16,"seconds":2}}\n\ndata: [DONE]\n\n'
    },
}
_REQUEST_BODY: Final[dict[str, Any]] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {
                    "file": {"type": "string", "format": "binary", "description": "Audio or video of any format."},
                    "model": {
                        "type": "string",
                        "default": "whisper-1",
                        "description": "A name that `/v1/models` lists; OpenAI's own stand for the server's default.",
                    },
                    "language": {"type": "string", "description": "BCP 47 tag; unset: the server's default."},
                    "prompt": {
                        "type": "string",
                        "description": "Short phrases that are likely to be said, separated by commas or lines.",
                    },
                    "response_format": {"type": "string", "enum": [*FORMATS], "default": "json"},
                    "temperature": {"type": "number", "minimum": 0, "maximum": 1, "default": 0},
                    "timestamp_granularities[]": {
                        "type": "array",
                        "items": {"type": "string", "enum": ["word", "segment"]},
                        "description": "`word`: with `verbose_json`, the times of words, too.",
                    },
                    "stream": {"type": "boolean", "default": False, "description": "Answer with server-sent events."},
                },
            },
            "encoding": {"file": {"contentType": "application/octet-stream"}},
        }
    },
}
