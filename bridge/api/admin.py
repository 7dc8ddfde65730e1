"""What an operator may change while the server runs; `Gatekeeper.admit_admin` says who that is."""

from __future__ import annotations

import asyncio
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect

from bridge.api.door import Door
from bridge.api.refusals import refusals
from bridge.errors import BridgeError
from bridge.session.models import ModelSwitch

PATH: Final = "/v1/admin/model"
WAIT_SECONDS: Final = 30.0
"""That an answer waits for a model; a proxy gives up after 60."""
_SWITCHING: Final = ("message_too_large", "unknown_model", "model_loading", "model_failed", "not_supported")
"""Why a model may not be switched."""
BODY_BYTES: Final = 4_096
BODY_SECONDS: Final = 10.0
"""For a request's body."""


def _printable(name: str) -> str:
    if not name.isprintable() or not name.strip():
        raise ValueError("should be printable")  # it goes into the log
    return name


class ModelRequest(BaseModel):
    """Which model shall serve."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, Field(min_length=1, max_length=300), AfterValidator(_printable)]


class ModelFailure(BaseModel):
    """The last model that could not be loaded, unless one was loaded since."""

    model: str
    code: str
    message: str


class ModelState(BaseModel):
    """Which model serves, and what becomes of the one that was asked for."""

    model: str | None
    state: Literal["serving", "loading"]
    loading: str | None
    progress: str | None
    failure: ModelFailure | None


def router(models: ModelSwitch, door: Door) -> APIRouter:
    """`/v1/admin/model`."""

    def state() -> ModelState:
        failure = models.failure
        return ModelState(
            model=models.model,
            state="loading" if models.loading else "serving",
            loading=models.loading,
            progress=models.progress,
            failure=ModelFailure(model=failure.model, code=failure.code, message=failure.message) if failure else None,
        )

    routes = APIRouter(tags=["admin"], dependencies=[Depends(door.administer)], responses=refusals("not_found"))

    @routes.get(PATH)
    async def show() -> ModelState:
        """Which model serves, which is being loaded, and what went wrong last."""
        return state()

    # The body is no parameter: the framework would read it, whole, before it asks who sent it.
    body = {"content": {"application/json": {"schema": ModelRequest.model_json_schema()}}, "required": True}

    @routes.post(
        PATH, openapi_extra={"requestBody": body}, responses=refusals(*_SWITCHING) | {202: {"model": ModelState}}
    )
    async def switch(request: Request, response: Response) -> ModelState:
        """Have another model serve: 200 when it does, 202 if it is still being loaded after 30 s."""
        wanted = await _read(request)
        if not await models.use(wanted.model, WAIT_SECONDS):
            response.status_code = 202
        return state()

    return routes


async def _read(request: Request) -> ModelRequest:
    """The body of a request.

    Raises:
        BridgeError: `bad_message`, `message_too_large` or `start_timeout`.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > BODY_BYTES:
                    raise BridgeError("message_too_large", f"the body is larger than {BODY_BYTES} bytes")
    except ClientDisconnect:
        raise BridgeError("bad_message", "the request's body broke off") from None
    except TimeoutError:
        raise BridgeError("start_timeout", "the request's body did not come in time") from None
    try:
        return ModelRequest.model_validate_json(bytes(body))
    except ValidationError as exc:
        error = exc.errors()[0]
        where = ".".join(map(str, error["loc"])) or "the body"
        raise BridgeError("bad_message", f"{where}: {error['msg']}") from None
