"""`/v1/jobs`: files that are transcribed when there is time, and what came of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Annotated, Any, Final, ParamSpec, TypeVar

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from bridge.api import formats
from bridge.api.door import Door
from bridge.api.hearing import Heard
from bridge.api.job_descriptions import BODY, DONE, EXAMPLE, KEY, JobDescription, JobPage
from bridge.api.job_requests import Submissions
from bridge.api.openai_formats import written as written_for_openai
from bridge.api.refusals import refusals
from bridge.api.sse import Event, EventStream
from bridge.api.transcriptions import failed
from bridge.errors import BridgeError
from bridge.jobs.description import describe
from bridge.jobs.desk import JobDesk
from bridge.jobs.models import Job, State, decode_segments
from bridge.transcript import FORMATS

PATH: Final = "/v1/jobs"
MOST: Final = 100
"""Jobs of one page."""
WRITERS: Final = 2
"""Transcripts that are written out at once, in threads."""
VERBOSE: Final = "verbose_json"

_EVENT: Final = f"id: 7\nevent: progress\ndata: {json.dumps(EXAMPLE)}\n\n"
P = ParamSpec("P")
T = TypeVar("T")

_SUBMISSION: Final = (
    "bad_request",
    "unknown_backend",
    "unknown_upload",
    "upload_conflict",
    "upload_incomplete",
    "unsupported_audio",
    "undecodable_audio",
    "audio_too_long",
    "too_large",
    "body_timeout",
    "quota_exceeded",
    "store_unavailable",
)


def router(door: Door, desk: JobDesk, submissions: Submissions) -> APIRouter:
    """`/v1/jobs`, and `/v1/task` for those who know it by that name."""
    answers = _Answers(door, desk)
    routes = APIRouter(tags=["jobs"])

    @routes.post(
        PATH,
        status_code=202,
        response_model=JobDescription,
        openapi_extra={"requestBody": BODY, "parameters": [KEY]},
        responses={
            202: {
                "content": {"application/json": {"example": EXAMPLE | {"state": "queued", "started": None}}},
                "headers": {"Location": {"schema": {"type": "string"}, "description": "The job."}},
            },
            **refusals(*_SUBMISSION),
        },
    )
    async def submit(request: Request) -> Response:
        """Hand in a file: `curl -F file=@talk.mp3 -F language=en-US http://127.0.0.1:8000/v1/jobs`.

        Or a completed upload by its name, in a form or as JSON. Once this is answered, the job is not lost, whatever
        happens to the server. `webhook` is told when it has ended.
        """
        caller = await door.enter(request)
        job = await submissions.take(request, caller)
        headers = formats.PRIVATE | {"location": f"{PATH}/{job.id}"}
        return JSONResponse(describe(job), 202, headers)

    @routes.get(
        PATH,
        response_model=JobPage,
        responses={
            200: {"content": {"application/json": {"example": {"jobs": [EXAMPLE], "next": None}}}},
            **refusals("bad_request", "store_unavailable"),
        },
    )
    async def listed(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=MOST)] = 20,
        after: Annotated[str | None, Query(description="`next` of the page before.")] = None,
        state: Annotated[State | None, Query(description="Only jobs in this state.")] = None,
    ) -> Response:
        """The caller's jobs, the newest first, without their results."""
        caller = await door.enter(request)
        return _page(await desk.page(caller.subject, state, after, limit + 1), limit)

    async def show(
        request: Request,
        job_id: str,
        result: Annotated[bool, Query(description="Whether the transcript is shown.")] = True,
    ) -> Response:
        """How the job stands; once it has succeeded, with its transcript."""
        return await answers.show(await answers.own(request, job_id), result=result)

    for path, summary in ((PATH + "/{job_id}", "Show"), ("/v1/task/{job_id}", "Show, by another name")):
        routes.get(
            path,
            response_model=JobDescription,
            summary=summary,
            responses={
                200: {"content": {"application/json": {"example": DONE}}},
                **refusals("bad_request", "unknown_job", "store_unavailable"),
            },
        )(show)

    @routes.get(
        PATH + "/{job_id}/transcript",
        response_class=Response,
        responses={
            200: {"description": "The transcript, in the format that was asked for.", "content": formats.CONTENT},
            **refusals("unknown_job", "job_unfinished", "job_failed", "cancelled", "store_unavailable"),
        },
    )
    async def transcript(
        request: Request,
        job_id: str,
        format_: Annotated[
            str | None, Query(alias="format", description="json, txt, srt, vtt or verbose_json (as OpenAI has it)")
        ] = None,
    ) -> Response:
        """What was said; `format` decides how it is written, or else the header `Accept`."""
        kind = VERBOSE if format_ == VERBOSE else formats.chosen(request, format_)
        return await answers.transcript(await answers.own(request, job_id), kind)

    @routes.get(
        PATH + "/{job_id}/events",
        response_class=Response,
        responses={
            200: {
                "description": "`progress` until it has ended, then `succeeded`, `failed` or `cancelled`, each with "
                "the job; `id` is its version.",
                "content": {"text/event-stream": {"example": _EVENT}},
            },
            204: {"description": "The job has ended, and the client has heard of it (`Last-Event-ID`)."},
            **refusals("unknown_job", "store_unavailable"),
        },
    )
    async def events(request: Request, job_id: str) -> Response:
        """The job at each change, about every second while it runs, until it has ended (server-sent events)."""
        return await answers.events(await answers.own(request, job_id), _last_id(request))

    @routes.delete(
        PATH + "/{job_id}",
        response_model=JobDescription,
        responses={
            200: {"content": {"application/json": {"example": EXAMPLE | {"state": "cancelled"}}}},
            204: {"description": "The job had ended; it and its result are deleted."},
            **refusals("unknown_job", "store_unavailable"),
        },
    )
    async def delete(request: Request, job_id: str) -> Response:
        """Call the job off; what has begun is stopped. One that has ended is deleted, with its result (204)."""
        return await answers.delete(await answers.own(request, job_id))

    return routes


class _Answers:
    """What is done for whoever asks for one job."""

    def __init__(self, door: Door, desk: JobDesk) -> None:
        self._door = door
        self._desk = desk
        self._writers = asyncio.Semaphore(WRITERS)

    async def own(self, request: Request, job_id: str) -> Job:
        """A job of the caller's; of others', it is not said that there are any."""
        caller = await self._door.enter(request)
        job = await self._desk.get(job_id)
        if not caller.owns(job.owner):
            raise BridgeError("unknown_job")
        return job

    async def show(self, job: Job, *, result: bool) -> Response:
        if not result or job.state is not State.SUCCEEDED:
            return JSONResponse(describe(job), headers=formats.PRIVATE)
        document = await self._write(_written, job, await self._desk.result(job))
        return Response(document, media_type="application/json", headers=formats.PRIVATE)

    async def transcript(self, job: Job, kind: str) -> Response:
        document = await self._write(_transcript, job, await self._desk.result(job), kind)
        media_type = "application/json" if kind == VERBOSE else formats.TYPES[kind]
        return Response(document, media_type=media_type, headers=formats.PRIVATE)

    async def events(self, job: Job, heard: int) -> Response:
        if job.state.ended and heard >= job.version:
            return Response(status_code=204)
        return EventStream(_events(self._desk, job.id, heard), failed)

    async def delete(self, job: Job) -> Response:
        ended = await self._desk.cancel(job)
        if ended is None:
            return Response(status_code=204)
        return JSONResponse(describe(ended), headers=formats.PRIVATE)

    async def _write(self, write: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        async with self._writers:
            return await asyncio.to_thread(write, *args, **kwargs)


def _page(jobs: list[Job], limit: int) -> Response:
    """`jobs` are one more than the page holds, if there are any behind it."""
    more = jobs[limit - 1].id if len(jobs) > limit else None
    page = {"jobs": [describe(job) for job in jobs[:limit]], "next": more}
    return JSONResponse(page, headers=formats.PRIVATE)


async def _events(desk: JobDesk, job_id: str, heard: int) -> AsyncGenerator[Event]:
    async for job in desk.watch(job_id):
        if job.version <= heard and not job.state.ended:
            continue
        name = job.state.value if job.state.ended else "progress"
        yield Event(json.dumps(describe(job), ensure_ascii=False, separators=(",", ":")), name, str(job.version))


def _last_id(request: Request) -> int:
    value = request.headers.get("last-event-id", "").strip()
    return int(value) if value.isascii() and value.isdecimal() and len(value) < 16 else 0


def _written(job: Job, result: bytes) -> bytes:
    body: dict[str, Any] = describe(job, result)
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _transcript(job: Job, result: bytes, kind: str) -> str:
    segments = decode_segments(result)
    if kind != VERBOSE:
        return FORMATS[kind](segments)
    heard = Heard(segments, job.seconds, job.language or "", job.engine or "")
    return written_for_openai(heard, kind, words=True, temperature=0.0)
