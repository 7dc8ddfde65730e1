"""Whether the server lives and whether it takes new sessions."""

from __future__ import annotations

from fastapi import APIRouter, Response
from pydantic import BaseModel

from bridge.session.manager import SessionManager


class Health(BaseModel):
    """The process answers."""

    status: str = "ok"


class Readiness(BaseModel):
    """Whether a new session would be taken, and if not, the code of the refusal."""

    ready: bool
    code: str | None
    backend: str
    backend_state: str
    sessions: int
    capacity: int | None
    progress: str | None


def router(manager: SessionManager) -> APIRouter:
    """`/healthz` and `/readyz`."""
    routes = APIRouter(tags=["health"])

    @routes.get("/healthz")
    async def healthz() -> Health:
        """200 as long as the process answers."""
        return Health()

    @routes.get("/readyz", responses={503: {"model": Readiness}})
    async def readyz(response: Response) -> Readiness:
        """200 while new sessions are taken; 503 while the backend loads, at capacity and during shutdown."""
        refusal = manager.refusal()
        if refusal is not None:
            response.status_code = 503
        return Readiness(
            ready=refusal is None,
            code=refusal.code if refusal else None,
            backend=manager.engine.name,
            backend_state=manager.engine.state,
            sessions=manager.count,
            capacity=manager.engine.capacity,
            progress=manager.engine.progress,
        )

    return routes
