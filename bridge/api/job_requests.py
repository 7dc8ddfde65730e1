"""How a job is handed in: a file in a form, or the name of an upload; what is asked for; what may be repeated."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
from fastapi import Request

from bridge.api.bodies import Bodies, Spooled
from bridge.api.door import Caller
from bridge.api.forms import Form
from bridge.api.job_descriptions import OPTIONS
from bridge.api.models import Models
from bridge.audio.media import MediaDecoder
from bridge.errors import BridgeError
from bridge.jobs.desk import JobDesk
from bridge.jobs.models import Job, JobOptions, NewJob
from bridge.uploads.blobs import BlobStore, NoBlobError
from bridge.uploads.desk import UploadDesk
from bridge.uploads.models import Whole

KEY_CHARS: Final = 255


class Submissions:
    """Makes jobs of requests. `check_webhook` refuses an address that no webhook may go to."""

    def __init__(
        self,
        desk: JobDesk,
        blobs: BlobStore,
        uploads: UploadDesk,
        bodies: Bodies,
        media: MediaDecoder,
        models: Models,
        check_webhook: Callable[[str], object],
    ) -> None:
        self._desk = desk
        self._blobs = blobs
        self._uploads = uploads
        self._bodies = bodies
        self._media = media
        self._models = models
        self._check_webhook = check_webhook

    async def take(self, request: Request, caller: Caller) -> Job:
        """The job that the request's body asks for; the same one again where its `Idempotency-Key` has come before.

        Raises:
            BridgeError: as the body's reading, `JobOptions.parse`, `MediaDecoder.probe`, `UploadDesk.completed` and
                `JobDesk.submit` do.
        """
        key = _key(request, caller)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json":
            return await self._upload(_strings(await self._bodies.read(request)), caller)
        async with self._bodies.form(request) as form:
            fields = _fields(form)
            file = form.file("file")
            if file is None:
                return await self._upload(fields, caller)
            if "upload" in fields:
                raise BridgeError("bad_request", "upload: either this or `file`")
            return await self._file(file, fields, caller, key)

    async def _file(self, file: Spooled, fields: Mapping[str, str], caller: Caller, key: str | None) -> Job:
        options, webhook = self._asked(fields)
        await self._probe(file, options)
        file.file.seek(0)
        blob = await self._blobs.put(f"files/{secrets.token_hex(16)}", file.file)
        new = NewJob(
            owner=caller.subject,
            blob=blob.name,
            size=blob.size,
            sha256=blob.sha256,
            name=file.name,
            options=options,
            webhook=webhook,
            id=key,
            fingerprint="" if key is None else _fingerprint(blob.sha256, options, webhook),
        )
        try:
            job = await self._desk.submit(new)
        except BridgeError as exc:
            if exc.code != "store_unavailable":  # then it may be a job's all the same; the sweeper asks
                await self._blobs.delete(blob.name)
            raise
        if job.order.blob != blob.name:
            await self._blobs.delete(blob.name)
        return job

    async def _upload(self, fields: Mapping[str, str], caller: Caller) -> Job:
        """An upload is one job at most, which it may be already: then what is asked for has to be the same."""
        name = fields.get("upload", "").strip()
        if not name:
            raise BridgeError("bad_request", "send a `file`, or the name of a completed upload as `upload`")
        self._asked(fields)
        whole = await self._uploads.completed(caller.subject, name)
        options, webhook = self._asked({**whole.fields, **fields})
        await self._look_for(whole)
        job = await self._desk.submit(
            NewJob(
                owner=whole.owner,
                blob=whole.blob,
                size=whole.size,
                sha256=whole.sha256,
                name=whole.name,
                options=options,
                webhook=webhook,
                id=whole.job_id,
            )
        )
        if (job.order.options, job.order.webhook) != (options, webhook):
            raise BridgeError("upload_conflict", f"the upload is job {job.id} already, with other options")
        return job

    async def _look_for(self, whole: Whole) -> None:
        """Refuse an upload whose job has ended and was deleted: its file went with the job."""
        try:
            await self._desk.get(whole.job_id)
        except BridgeError as exc:
            if exc.code != "unknown_job":
                raise
            try:
                await self._blobs.read(whole.blob, 1)
            except NoBlobError:
                raise BridgeError("unknown_upload", "the upload's job was deleted, and its file with it") from None

    def _asked(self, fields: Mapping[str, str]) -> tuple[JobOptions, str | None]:
        options = JobOptions.parse(fields)
        self._models.backend(options.model)
        webhook = fields.get("webhook", "").strip() or None
        if webhook is not None:
            self._check_webhook(webhook)
        return options, webhook

    async def _probe(self, file: Spooled, options: JobOptions) -> None:
        """Look whether it is audio, before anybody waits for it."""
        if options.audio is None:
            await self._media.probe(file.file, file.name)
        else:
            async with self._media.read(file.file, file.name, raw=options.audio):
                pass


def _key(request: Request, caller: Caller) -> str | None:
    """The name of the job that this caller's `Idempotency-Key` stands for."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not 1 <= len(key) <= KEY_CHARS:
        raise BridgeError("bad_request", f"Idempotency-Key: should be 1 to {KEY_CHARS} characters")
    return hashlib.sha256(f"idempotency\0{caller.subject}\0{key}".encode("utf-8", "replace")).hexdigest()[:32]


def _fingerprint(sha256: str, options: JobOptions, webhook: str | None) -> str:
    asked = msgspec.json.encode((sha256, options, webhook))
    return hashlib.sha256(asked).hexdigest()[:32]


def _fields(form: Form) -> dict[str, str]:
    return {name: "\n".join(values) for name in OPTIONS if (values := form.all(name))}


def _strings(body: bytes) -> dict[str, str]:
    """The options of a JSON object, as a form would have them; a list's values as lines."""
    try:
        found: Any = json.loads(body)
        json.dumps(found, ensure_ascii=False).encode()  # half a character (`\\ud800`) could be kept nowhere
    except (ValueError, RecursionError):
        raise BridgeError("bad_request", "the body is not JSON that can be read") from None
    if not isinstance(found, dict):
        raise BridgeError("bad_request", "the body should be an object")
    fields: dict[str, str] = {}
    for name in OPTIONS:
        value = found.get(name)
        match value:
            case None:
                continue
            case bool():
                fields[name] = str(value).lower()
            case str() | int():
                fields[name] = str(value)
            case list() if all(isinstance(item, str) for item in value):
                fields[name] = "\n".join(value)
            case _:
                raise BridgeError("bad_request", f"{name}: should be text")
    return fields
