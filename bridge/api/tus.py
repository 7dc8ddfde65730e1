"""`/v1/uploads`: resumable uploads as tus 1.0.0 has them (https://tus.io/protocols/resumable-upload).

Its extensions creation, creation-with-upload, creation-defer-length, expiration, checksum and termination. Who asks
with GET, which tus leaves free, is told how the upload stands as JSON.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
from collections.abc import AsyncGenerator
from email.utils import formatdate
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from bridge.api.bodies import Bodies
from bridge.api.door import Caller, Door
from bridge.api.refusals import refusals
from bridge.api.upload_states import EXAMPLE, FIELDS, UploadDescription, describe, example
from bridge.errors import BridgeError
from bridge.security.entrance import HEADERS
from bridge.uploads.blobs import BLOCK_BYTES, SeekableFile
from bridge.uploads.desk import UploadDesk
from bridge.uploads.models import Status

PATH: Final = "/v1/uploads"
VERSION: Final = "1.0.0"
BODY_TYPE: Final = "application/offset+octet-stream"
PLAIN_TYPE: Final = "application/octet-stream"
"""Is taken, too: tools that read the OpenAPI document know no other type for bytes."""
EXTENSIONS: Final = "creation,creation-with-upload,creation-defer-length,expiration,checksum,termination"
ALGORITHMS: Final = ("sha1", "sha256", "md5")
"""For checksums of what one request carries; the first is the one that tus asks for."""
METADATA: Final = "upload-metadata"
"""The field that keeps the header as it came: tus gives it back."""
_OVERRIDE: Final = "x-http-method-override"
_KEYS: Final = {**{name: name for name in FIELDS}, "name": "filename"}
"""What is understood of the metadata, and as which option."""

_LENGTH: Final[dict[str, Any]] = {"type": "integer", "minimum": 0}


def _header(name: str, schema: dict[str, Any], description: str, *, required: bool = False) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": required, "schema": schema, "description": description}


_ID: Final = {"name": "upload_id", "in": "path", "required": True, "schema": {"type": "string"}}
_VERSION: Final = _header("Tus-Resumable", {"type": "string", "enum": [VERSION]}, "The protocol.", required=True)
_CREATION: Final = (
    _VERSION,
    _header("Upload-Length", _LENGTH, "Bytes of the file."),
    _header("Upload-Defer-Length", {"type": "string", "enum": ["1"]}, "Instead: the length is said later."),
    _header("Upload-Metadata", {"type": "string"}, f"Keys with values in base64: {', '.join(FIELDS)}."),
)
_APPEND: Final = (
    _ID,
    _VERSION,
    _header("Upload-Offset", _LENGTH, "Where the body belongs: where the upload stands.", required=True),
    _header("Upload-Length", _LENGTH, "Bytes of the file, where that was not said before."),
    _header("Upload-Checksum", {"type": "string"}, "Of the body: sha1, sha256 or md5, a space, and base64."),
)
_BYTES: Final = {
    "description": f"Bytes of the file, as `{BODY_TYPE}`.",
    "content": {PLAIN_TYPE: {"schema": {"type": "string", "format": "binary"}}},
}
_TAKING: Final = (
    "bad_request",
    "unknown_upload",
    "upload_conflict",
    "unsupported_version",
    "unsupported_type",
    "checksum_mismatch",
    "too_large",
    "audio_too_long",
    "body_timeout",
    "unsupported_audio",
    "undecodable_audio",
    "store_unavailable",
)


def router(door: Door, bodies: Bodies, desk: UploadDesk) -> APIRouter:
    """`/v1/uploads`."""
    routes = APIRouter(tags=["uploads"])
    uploads = Tus(bodies, desk)

    @routes.options(PATH, status_code=204)
    @routes.options(PATH + "/{upload_id}", status_code=204, openapi_extra={"parameters": (_ID,)})
    async def discover() -> Response:
        """What of tus this server speaks."""
        return uploads.abilities()

    @routes.post(
        PATH,
        status_code=201,
        response_class=Response,
        openapi_extra={"parameters": _CREATION, "requestBody": _BYTES},
        responses=refusals(*_TAKING, "quota_exceeded"),
    )
    async def create(request: Request) -> Response:
        """Begin an upload; its address is in `Location`. The body may be how the file begins."""
        caller = await _entered(door, request)
        return await uploads.create(request, caller)

    @routes.head(
        PATH + "/{upload_id}",
        response_class=Response,
        openapi_extra={"parameters": (_ID, _VERSION)},
        responses=refusals("unknown_upload", "unsupported_version", "store_unavailable"),
    )
    async def stands(upload_id: str, request: Request) -> Response:
        """Where the upload stands (`Upload-Offset`): what the next PATCH begins with."""
        caller = await _entered(door, request)
        return _told(await desk.growing.status(caller.subject, upload_id, exact=True), 200)

    @routes.patch(
        PATH + "/{upload_id}",
        status_code=204,
        openapi_extra={"parameters": _APPEND, "requestBody": {**_BYTES, "required": True}},
        responses=refusals(*_TAKING),
    )
    async def append(upload_id: str, request: Request) -> Response:
        """Go on with the file. What comes is kept even if the request breaks off."""
        caller = await _entered(door, request)
        return await uploads.append(request, caller, upload_id)

    @routes.post(
        PATH + "/{upload_id}",
        status_code=204,
        openapi_extra={
            "parameters": (
                _header("X-HTTP-Method-Override", {"enum": ["PATCH", "DELETE"]}, "", required=True),
                *_APPEND,
            ),
            "requestBody": _BYTES,
        },
        responses=refusals(*_TAKING),
    )
    async def override(upload_id: str, request: Request) -> Response:
        """PATCH or DELETE, for those who cannot send these methods."""
        caller = await _entered(door, request)
        match request.headers.get(_OVERRIDE, "").upper():
            case "PATCH":
                return await uploads.append(request, caller, upload_id)
            case "DELETE":
                await desk.drop("tus", caller.subject, upload_id)
                return Response(status_code=204)
            case _:
                raise BridgeError("bad_request", "X-HTTP-Method-Override: should be PATCH or DELETE")

    @routes.get(PATH + "/{upload_id}", responses=example(EXAMPLE) | refusals("unknown_upload", "store_unavailable"))
    async def show(upload_id: str, request: Request) -> UploadDescription:
        """How the upload stands, and which job it became."""
        caller = await door.enter(request)
        return describe(await desk.growing.status(caller.subject, upload_id, exact=False))

    @routes.delete(
        PATH + "/{upload_id}",
        status_code=204,
        openapi_extra={"parameters": (_ID, _VERSION)},
        responses=refusals("unknown_upload", "unsupported_version", "store_unavailable"),
    )
    async def drop(upload_id: str, request: Request) -> None:
        """Give the upload up, or forget it. A job that was made of it goes on."""
        caller = await _entered(door, request)
        await desk.drop("tus", caller.subject, upload_id)

    return routes


class Tus:
    """What the routes do, once the caller is known."""

    def __init__(self, bodies: Bodies, desk: UploadDesk) -> None:
        self._bodies = bodies
        self._desk = desk

    def abilities(self) -> Response:
        """The answer to OPTIONS."""
        headers = {
            "tus-resumable": VERSION,
            "tus-version": VERSION,
            "tus-extension": EXTENSIONS,
            "tus-max-size": str(self._desk.growing.max_bytes),
            "tus-checksum-algorithm": ",".join(ALGORITHMS),
        }
        return Response(status_code=204, headers=headers)

    async def create(self, request: Request, caller: Caller) -> Response:
        """Begin an upload, and take the body for its beginning."""
        deferred = request.headers.get("upload-defer-length")
        length = _number(request, "upload-length")
        if deferred is not None and deferred != "1":
            raise BridgeError("bad_request", "Upload-Defer-Length: should be 1")
        if (deferred is None) == (length is None):
            raise BridgeError("bad_request", "send either Upload-Length or Upload-Defer-Length: 1")
        fields = read_metadata(request.headers.get(METADATA, ""))
        if has_body := _has_body(request):
            _check_type(request)
        status = await self._desk.growing.create(caller.subject, length, fields)
        if has_body or length == 0:
            status = await self._take(request, caller, status.name, 0, None)
        return _told(status, 201, {"location": f"{PATH}/{status.name}"})

    async def append(self, request: Request, caller: Caller, upload_id: str) -> Response:
        """Take the body for what follows."""
        _check_type(request)
        offset = _number(request, "upload-offset")
        if offset is None:
            raise BridgeError("bad_request", "Upload-Offset: is missing")
        return _told(await self._take(request, caller, upload_id, offset, _number(request, "upload-length")), 204)

    async def _take(self, request: Request, caller: Caller, upload_id: str, offset: int, length: int | None) -> Status:
        growing = self._desk.growing
        room = await growing.room(caller.subject, upload_id, offset, length)
        checksum = request.headers.get("upload-checksum")
        if checksum is None:
            async with self._bodies.stream(request, room) as chunks:
                return await growing.append(caller.subject, upload_id, offset, chunks, length=length)
        algorithm, expected = _read_checksum(checksum)
        async with self._bodies.file(request) as spooled:  # nothing of it counts before all of it is right
            if await self._bodies.on_disk(lambda: _digest(spooled.file, algorithm)) != expected:
                raise BridgeError("checksum_mismatch")
            async with contextlib.aclosing(self._read(spooled.file)) as chunks:
                return await growing.append(caller.subject, upload_id, offset, chunks, length=length)

    async def _read(self, file: SeekableFile) -> AsyncGenerator[bytes]:
        await self._bodies.on_disk(lambda: file.seek(0))
        while block := await self._bodies.on_disk(lambda: file.read(BLOCK_BYTES)):
            yield block


async def _entered(door: Door, request: Request) -> Caller:
    """Whoever asks, in the protocol's version; whatever is answered names it."""
    told = request.scope.get(HEADERS)
    if told is not None:
        told.append((b"tus-resumable", VERSION.encode()))
    caller = await door.enter(request)
    if request.headers.get("tus-resumable") != VERSION:
        if told is not None:
            told.append((b"tus-version", VERSION.encode()))
        raise BridgeError("unsupported_version", f"Tus-Resumable: should be {VERSION}")
    return caller


def _told(status: Status, code: int, more: dict[str, str] | None = None) -> Response:
    """How it stands, in headers."""
    headers = {"upload-offset": str(status.size), "cache-control": "no-store", **(more or {})}
    if status.length is None:
        headers["upload-defer-length"] = "1"
    else:
        headers["upload-length"] = str(status.length)
    if status.state == "open":
        headers["upload-expires"] = formatdate(status.expires, usegmt=True)
    if status.job is not None:
        headers["upload-job"] = status.job
    if code == 200 and status.fields.get(METADATA):
        headers[METADATA] = status.fields[METADATA]
    return Response(status_code=code, headers=headers)


def read_metadata(header: str) -> dict[str, str]:
    """The options in an `Upload-Metadata` header, and the header itself.

    Raises:
        BridgeError: `bad_request`.
    """
    if not header.strip():
        return {}
    fields = {METADATA: header}
    keys = set()
    for pair in header.split(","):
        key, _, value = pair.strip().partition(" ")
        if not key or key in keys:
            raise BridgeError("bad_request", "Upload-Metadata: should be different keys, each with a value in base64")
        keys.add(key)
        try:
            text = base64.b64decode(value.strip(), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            if key not in _KEYS:
                continue  # somebody else's, which may be anything
            raise BridgeError("bad_request", f"Upload-Metadata: {key[:80]!r} should be UTF-8 in base64") from None
        if key in _KEYS:
            fields[_KEYS[key]] = text
    return fields


def _number(request: Request, name: str) -> int | None:
    value = request.headers.get(name)
    if value is None:
        return None
    if not (value.isascii() and value.isdecimal() and len(value) < 19):
        raise BridgeError("bad_request", f"{name.title()}: should be a number of bytes")
    return int(value)


def _has_body(request: Request) -> bool:
    return request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers


def _check_type(request: Request) -> None:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() not in {BODY_TYPE, PLAIN_TYPE}:
        raise BridgeError("unsupported_type", f"Content-Type: should be {BODY_TYPE}")


def _read_checksum(header: str) -> tuple[str, bytes]:
    algorithm, _, value = header.strip().partition(" ")
    try:
        expected = base64.b64decode(value.strip(), validate=True)
    except binascii.Error:
        expected = b""
    if algorithm not in ALGORITHMS or not expected:
        raise BridgeError(
            "bad_request", f"Upload-Checksum: should be {', '.join(ALGORITHMS)}, a space, and the digest in base64"
        )
    return algorithm, expected


def _digest(file: SeekableFile, algorithm: str) -> bytes:
    file.seek(0)
    digest = hashlib.new(algorithm, usedforsecurity=False)
    while block := file.read(BLOCK_BYTES):
        digest.update(block)
    return digest.digest()
