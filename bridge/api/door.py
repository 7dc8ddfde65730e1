"""Who comes in by HTTP, and how often. Asked before a body is read."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastapi import Request

from bridge.observe import trace
from bridge.security.auth import Admission
from bridge.security.entrance import Arrival, Entrance
from bridge.security.quotas import Quotas
from bridge.security.rights import Rights, Scope
from bridge.session.account import Account


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request. What it makes (uploads, jobs) belongs to its `subject`."""

    subject: str
    rights: Rights
    address: str
    credential: str | None = field(default=None, repr=False)
    """Its key or token, for a backend that stands behind another server; never logged."""

    @property
    def account(self) -> Account:
        """On whose behalf its sessions run."""
        return Account(self.subject, self.credential)

    def owns(self, owner: str) -> bool:
        """Whether it may see and end what this subject made."""
        return self.subject == owner or self.rights.allows("admin", None)


class Door:
    """One server's. All of it raises `BridgeError`: `unauthorized`, `forbidden_origin`, `rate_limited`, `not_ready`."""

    def __init__(self, entrance: Entrance, quotas: Quotas | None = None) -> None:
        self._entrance = entrance
        self._quotas = quotas

    async def enter(self, request: Request, scope: Scope = "files") -> Caller:
        """Let a request in that has to do with files. One that brings something (POST) needs minutes to be left.

        Raises:
            BridgeError: as above, `forbidden` or `quota_exceeded`.
        """
        arrival = Arrival.of(request.scope)
        admission = await self._entrance.admit_reader(arrival)
        trace.identify(admission.subject)
        admission.rights.require(scope, None)
        if self._quotas is not None and request.method == "POST":
            await self._quotas.check(admission.subject)
        return Caller(admission.subject, admission.rights, self._entrance.address(arrival), admission.credential)

    async def read(self, request: Request) -> Rights:
        """Let a request for what somebody said in; what it may see is to be asked of its rights."""
        return _identified(await self._entrance.admit_reader(Arrival.of(request.scope)))

    async def inspect(self, request: Request) -> Rights:
        """Let a request for figures in, which are no transcripts."""
        return _identified(await self._entrance.admit(Arrival.of(request.scope)))

    async def administer(self, request: Request) -> None:
        """Let a request to change the server in.

        Raises:
            BridgeError: as above, `forbidden`, or `not_found` where nobody may.
        """
        await self._entrance.admit_admin(Arrival.of(request.scope))


def _identified(admission: Admission) -> Rights:
    trace.identify(admission.subject)
    return admission.rights
