"""Routes whose endpoint is given the request and gives the response itself."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute


class PlainRoute(APIRoute):
    """For `APIRouter(route_class=…)`: the framework has nothing to take apart or to check in between.

    Otherwise it does so at every request, whether or not there are parameters. In the document it is as any other.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The endpoint: it takes the request and nothing else."""
        return self.endpoint
