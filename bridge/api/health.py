"""Whether the server lives and whether it takes new sessions."""

from __future__ import annotations

from fastapi import APIRouter, Response
from pydantic import BaseModel

from bridge.session.keeper import Keeper


class Health(BaseModel):
    """The process answers."""

    status: str = "ok"


class BackendHealth(BaseModel):
    """One backend: whether it is loaded, whether its circuit breaker lets new sessions in, and what it carries."""

    name: str
    state: str
    breaker: str
    streams: int
    capacity: int | None


class Readiness(BaseModel):
    """Whether a new session would be taken, and if not, the code of the refusal.

    `backend` is the one that would take it; `backends` are all, the preferred first. `capacity` is that of all.
    """

    ready: bool
    code: str | None
    backend: str
    backend_state: str
    sessions: int
    capacity: int | None
    progress: str | None
    backends: list[BackendHealth]


def router(keeper: Keeper) -> APIRouter:
    """`/healthz` and `/readyz`."""
    manager = keeper.manager
    routes = APIRouter(tags=["health"])

    @routes.get("/healthz")
    async def healthz() -> Health:
        """200 as long as the process answers."""
        return Health()

    @routes.get("/readyz", responses={503: {"model": Readiness}})
    async def readyz(response: Response) -> Readiness:
        """200 while new sessions are taken; 503 while the backend loads, at capacity and during shutdown."""
        refusal = keeper.refusal()
        if refusal is not None:
            response.status_code = 503
        engines = manager.engines
        return Readiness(
            ready=refusal is None,
            code=refusal.code if refusal else None,
            backend=engines.current.name,
            backend_state=engines.current.state,
            sessions=manager.count,
            capacity=engines.capacity,
            progress=engines.progress,
            backends=[
                BackendHealth(
                    name=member.engine.name,
                    state=member.engine.state,
                    breaker=member.breaker.state,
                    streams=member.engine.streams,
                    capacity=member.engine.capacity,
                )
                for member in engines.members
            ],
        )

    return routes
