"""`/metrics` for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from bridge.api.door import Door
from bridge.observe.metrics import Metrics
from bridge.session.keeper import Keeper


def router(metrics: Metrics, keeper: Keeper, door: Door) -> APIRouter:
    """`/metrics`; where the server has keys, for those that may administer every session."""

    async def admitted(request: Request) -> None:
        (await door.inspect(request)).require("admin", None)

    routes = APIRouter(tags=["operations"])

    @routes.get("/metrics", dependencies=[Depends(admitted)], response_class=Response)
    async def show() -> Response:
        """Every metric, in Prometheus' text format."""
        metrics.ready.set(keeper.refusal() is None)
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return routes
