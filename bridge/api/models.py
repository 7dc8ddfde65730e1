"""Which models a client may name: the backends of this server, and what they have loaded."""

from __future__ import annotations

import re
from typing import Any, Final

from fastapi import APIRouter, Request
from pydantic import BaseModel

from bridge.api.door import Door
from bridge.api.openai_errors import openai_refusals
from bridge.errors import BridgeError
from bridge.session.failover import EnginePool

_WELL_KNOWN: Final = re.compile(r"whisper-1|gpt(-4o)?(-mini)?-transcribe(-diarize)?(-\d{4}-\d{2}-\d{2})?|default")
"""OpenAI's own names: whoever asks for one of these means what this server has."""
OWNER: Final = "stt-bridge"


class Model(BaseModel):
    """One model, as OpenAI describes it. `created` is not known."""

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = OWNER


class ModelList(BaseModel):
    """All of them."""

    object: str = "list"
    data: list[Model]


class Models:
    """What a name stands for."""

    def __init__(self, engines: EnginePool) -> None:
        self._engines = engines

    def names(self) -> dict[str, str]:
        """Every name that is listed, and the backend behind it: backends by their own, then what they have loaded."""
        names = {engine.name: engine.name for engine in self._engines.engines}
        for engine in self._engines.engines:
            if engine.model is not None:
                names.setdefault(engine.model, engine.name)
        return names

    def backend(self, name: str | None) -> str | None:
        """The backend that this name asks for; None: the best that is well.

        Raises:
            BridgeError: `unknown_backend`.
        """
        if not name or _WELL_KNOWN.fullmatch(name):
            return None
        try:
            return self.names()[name]
        except KeyError:
            raise BridgeError("unknown_backend", f"the model {name[:80]!r} does not exist; see /v1/models") from None


def router(models: Models, door: Door) -> APIRouter:
    """`/v1/models`, as OpenAI has it."""
    routes = APIRouter(tags=["transcriptions"])
    example: dict[str, Any] = {"id": "pocketsphinx", "object": "model", "created": 0, "owned_by": OWNER}

    @routes.get(
        "/v1/models",
        responses={
            200: {"content": {"application/json": {"example": {"object": "list", "data": [example]}}}},
            **openai_refusals(),
        },
    )
    async def listed(request: Request) -> ModelList:
        """The models of this server: its backends, and the models that they have loaded."""
        await door.enter(request)
        return ModelList(data=[Model(id=name) for name in models.names()])

    @routes.get(
        "/v1/models/{model:path}",  # names of models hold slashes
        responses={200: {"content": {"application/json": {"example": example}}}, **openai_refusals("unknown_backend")},
    )
    async def shown(request: Request, model: str) -> Model:
        """One of them; OpenAI's own names stand for the server's default."""
        await door.enter(request)
        models.backend(model)
        return Model(id=model)

    return routes
