"""Who comes in by HTTP, and how often. Asked before a body is read."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastapi import Request

from bridge.security.auth import Gatekeeper
from bridge.security.guards import Guards
from bridge.security.rights import Rights, Scope


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request. What it makes (uploads, jobs) belongs to its `subject`."""

    subject: str
    rights: Rights
    address: str
    credential: str | None = field(default=None, repr=False)
    """Its key or token, for a backend that stands behind another server; never logged."""

    def owns(self, owner: str) -> bool:
        """Whether it may see and end what this subject made."""
        return self.subject == owner or self.rights.allows("admin", None)


class Door:
    """One server's."""

    def __init__(self, gatekeeper: Gatekeeper, guards: Guards) -> None:
        self._gatekeeper = gatekeeper
        self._guards = guards

    async def enter(self, request: Request, scope: Scope = "files") -> Caller:
        """Let a request in.

        Raises:
            BridgeError: `unauthorized`, `forbidden`, `forbidden_origin` or `rate_limited`.
        """
        admission = self._gatekeeper.admit_reader(request.headers, request.query_params)
        address = request.client.host if request.client else ""
        await self._guards.hit(admission.subject, address)
        admission.rights.require(scope, None)
        return Caller(admission.subject, admission.rights, address, admission.credential)
