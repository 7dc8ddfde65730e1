"""`/metrics` for Prometheus."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from bridge.api.door import Door
from bridge.observe.metrics import Metrics
from bridge.session.keeper import Keeper


def exposition(metrics: Metrics, keeper: Keeper) -> bytes:
    """Every metric of this process, in Prometheus' text format."""
    metrics.ready.set(keeper.refusal() is None)
    return generate_latest(metrics.registry)


def router(
    metrics: Metrics, keeper: Keeper, door: Door, gather: Callable[[], Awaitable[bytes]] | None = None
) -> APIRouter:
    """`/metrics`; where the server has keys, for those that may administer every session.

    `gather`: the expositions of all processes of this server, where there are several.
    """

    async def admitted(request: Request) -> None:
        (await door.inspect(request)).require("admin", None)

    routes = APIRouter(tags=["operations"])

    @routes.get("/metrics", dependencies=[Depends(admitted)], response_class=Response)
    async def show() -> Response:
        """Every metric, in Prometheus' text format."""
        text = exposition(metrics, keeper) if gather is None else await gather()
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    return routes
