"""Tells owners that their jobs have ended: a signed POST, at least once, tried again where nobody takes it.

Signed as Standard Webhooks (standardwebhooks.com) has it: `webhook-signature` is `v1,` and the base64 of HMAC-SHA256
over `ID.TIMESTAMP.BODY`. `webhook-id` is the same at every try, so that a receiver knows what it has heard already.
What is to be told stands in the store: a try that was cut off by the death of this process is made again.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
import json
import logging
import random
import time
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

import bridge
from bridge.background import for_ever
from bridge.errors import BridgeError
from bridge.jobs.addresses import ForbiddenHostError, WebhookHosts
from bridge.jobs.description import describe, iso
from bridge.jobs.models import Job, State
from bridge.jobs.store import JobStore, StoreUnavailableError
from bridge.observe.metrics import JobMetrics
from bridge.observe.trace import Tracing

log = logging.getLogger(__name__)

TRY_SECONDS: Final = 15.0
"""For one try, all of it."""
CLAIM_SECONDS: Final = 20.0
"""After which a try that nobody says anything of is taken for lost."""
RETRY_SECONDS: Final = (5.0, 30.0, 120.0, 600.0, 3_600.0, 14_400.0, 43_200.0)
"""Before each further try; after the last it is given up. 17 hours in all."""
AT_ONCE: Final = 8
LOOK_SECONDS: Final = 5.0
AWAY_SECONDS: Final = 1.0
LEAST_SECONDS: Final = 0.05
_PREFIX: Final = "whsec_"


class WebhookSecret:
    """What webhooks are signed with: any text, or `whsec_` and base64, as Standard Webhooks writes it."""

    def __init__(self, secret: str) -> None:
        self._key = secret.encode()
        if secret.startswith(_PREFIX):
            with contextlib.suppress(binascii.Error, ValueError):
                self._key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)

    def sign(self, name: str, timestamp: int, body: bytes) -> str:
        """The value of `webhook-signature`."""
        signed = f"{name}.{timestamp}.".encode() + body
        return "v1," + base64.b64encode(hmac.new(self._key, signed, hashlib.sha256).digest()).decode()


class Webhooks:
    """One process's. Several share what is to be told: each notice is one's at a time."""

    def __init__(
        self, store: JobStore, secret: WebhookSecret | None, hosts: WebhookHosts, reports: JobMetrics, tracing: Tracing
    ) -> None:
        self._store = store
        self._secret = secret
        self._hosts = hosts
        self._reports = reports
        self._tracing = tracing
        self._client: httpx.AsyncClient | None = None
        self._running: asyncio.Task[None] | None = None
        self._room = asyncio.Semaphore(AT_ONCE)
        self._tries: set[asyncio.Task[None]] = set()

    def check(self, url: str) -> str:
        """The same URL, if a job may have it for its webhook.

        Raises:
            BridgeError: `bad_request`.
        """
        if self._secret is None:
            raise BridgeError("bad_request", "webhook: this server sends none (it has no STT_WEBHOOK_SECRET)")
        return self._hosts.check(url)

    def start(self) -> None:
        """Begin to tell. To be called once; without a secret nobody is told."""
        if self._secret is not None:
            secret, client = (
                self._secret,
                httpx.AsyncClient(
                    timeout=TRY_SECONDS,
                    follow_redirects=False,  # to wherever; nobody has checked that
                    trust_env=False,  # a proxy would resolve the name again
                    limits=httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=0),
                    headers={"user-agent": f"stt-bridge/{bridge.__version__}", "content-type": "application/json"},
                ),
            )
            self._client = client
            self._running = for_ever(lambda: self._tell_all(secret, client), "webhooks")

    async def stop(self) -> None:
        """Tell nobody any more; what was begun is tried again by whoever is there then."""
        if self._running is not None and self._client is not None:
            tasks = {self._running, *self._tries}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._client.aclose()

    async def _tell_all(self, secret: WebhookSecret, client: httpx.AsyncClient) -> None:
        while True:
            await self._room.acquire()
            try:
                job = await self._next()
            except BaseException:
                self._room.release()
                raise
            task = asyncio.create_task(self._tell(job, secret, client), name=f"webhook-{job.id}")
            self._tries.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tries.discard(task)
        self._room.release()
        if not task.cancelled() and (exc := task.exception()) is not None:
            log.error("a webhook was left to be tried again", exc_info=exc)

    async def _next(self) -> Job:
        away = False
        while True:
            try:
                job = await self._store.claim_notice(CLAIM_SECONDS)
                wait = await self._store.next_notice() if job is None else 0.0
            except StoreUnavailableError as exc:
                if not away:
                    log.warning("jobs: %s", exc)
                away, job, wait = True, None, AWAY_SECONDS
            else:
                away = False
            if job is not None:
                return job
            wait = max(LEAST_SECONDS, min(LOOK_SECONDS, LOOK_SECONDS if wait is None else wait))
            await self._store.changes.notice(wait)

    async def _tell(self, job: Job, secret: WebhookSecret, client: httpx.AsyncClient) -> None:
        with self._tracing.scope("webhook", parent=job.terms.traceparent, subject=job.owner):
            try:
                body = await self._body(job)
                status = await self._post(job, body, secret, client)
                problem = None if 200 <= status < 300 else f"it answers {status}"
                final = status == httpx.codes.GONE  # whoever says so wants nothing more
            except (ForbiddenHostError, BridgeError) as exc:
                problem, final = str(exc), isinstance(exc, BridgeError)
            except (httpx.HTTPError, httpx.InvalidURL, OSError) as exc:  # a TimeoutError is an OSError
                problem, final = type(exc).__name__, False  # its text may hold the URL
            retry = None
            if problem is not None and not final and job.notices <= len(RETRY_SECONDS):
                retry = RETRY_SECONDS[job.notices - 1] * random.uniform(0.8, 1.2)  # noqa: S311 - it need not be secret
            outcome = "delivered" if problem is None else "given_up" if retry is None else "failed"
            await self._store.settle_notice(job, delivered=problem is None, retry=retry)
            self._store.changes.offer_notice()  # the next may be due sooner than whoever waits believes
            self._reports.told(outcome)
            extra = {"job": job.id, "attempt": job.notices}
            if problem is None:
                log.info("webhook delivered", extra=extra)
            else:
                log.warning("webhook %s: %s", outcome.replace("_", " "), problem, extra=extra)

    async def _body(self, job: Job) -> bytes:
        result = None
        if job.order.options.webhook_result and job.state is State.SUCCEEDED:
            result = await self._store.result(job.id)
        return await asyncio.to_thread(_encoded, job, result)

    async def _post(self, job: Job, body: bytes, secret: WebhookSecret, client: httpx.AsyncClient) -> int:
        """The status of the answer; nothing of it is read."""
        url = job.order.webhook or ""
        async with asyncio.timeout(TRY_SECONDS):
            address = await self._hosts.resolve(url, loopback=job.terms.loopback)
            name, timestamp = f"msg_{job.id}", int(time.time())
            parts = urlsplit(url)
            headers = {
                "host": parts.netloc,
                "webhook-id": name,
                "webhook-timestamp": str(timestamp),
                "webhook-signature": secret.sign(name, timestamp, body),
            }
            # To the address that was checked; the name stands in the header, and is what the certificate must show.
            request = client.build_request(
                "POST",
                httpx.URL(url).copy_with(host=address, fragment=None),
                content=body,
                headers=headers,
                extensions={"sni_hostname": parts.hostname or ""},
            )
            answer = await client.send(request, stream=True)
            await answer.aclose()
            return answer.status_code


def _encoded(job: Job, result: bytes | None) -> bytes:
    ended = job.terms.created if job.finished is None else job.finished
    event: dict[str, Any] = {"type": f"job.{job.state}", "timestamp": iso(ended), "data": describe(job, result)}
    return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()
