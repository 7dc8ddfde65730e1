"""Which backends a client may choose between, and what each can do: what a page needs before it opens a session."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Request
from pydantic import BaseModel

from bridge.api.door import Door
from bridge.session.manager import SessionManager

PATH: Final = "/v1/backends"


class BackendDescription(BaseModel):
    """One backend. `languages` are BCP 47 tags, empty for any; `state`: whether it takes sessions (`ready`)."""

    name: str
    state: str
    languages: list[str]
    detects_language: bool
    partials: bool
    confidences: bool


class BackendList(BaseModel):
    """All of them, the preferred first. `language`: what a session has that names none."""

    language: str
    backends: list[BackendDescription]


_EXAMPLE: Final[dict[str, Any]] = {
    "language": "en-US",
    "backends": [
        {
            "name": "pocketsphinx",
            "state": "ready",
            "languages": ["en-US"],
            "detects_language": False,
            "partials": True,
            "confidences": True,
        }
    ],
}


def router(manager: SessionManager, door: Door) -> APIRouter:
    """`/v1/backends`."""
    routes = APIRouter(tags=["sessions"])

    @routes.get(PATH, responses={200: {"content": {"application/json": {"example": _EXAMPLE}}}})
    async def listed(request: Request) -> BackendList:
        """The backends of this server, for whoever has any key. A session names one in `start`."""
        await door.read(request)
        return BackendList(
            language=manager.language,
            backends=[
                BackendDescription(
                    name=engine.name,
                    state=engine.state,
                    languages=list(engine.capabilities.languages),
                    detects_language=engine.capabilities.detects_language,
                    partials=engine.capabilities.partials,
                    confidences=engine.capabilities.confidences,
                )
                for engine in manager.engines.engines
            ],
        )

    return routes
