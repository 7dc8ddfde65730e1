"""Every session of this server: who gets in, who is open, and how all of them end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator
from typing import Final

from backends.base import BackendError, Fault
from bridge.audio.suspicion import Budget
from bridge.audio.vad.detector import VoiceDetectionError
from bridge.errors import BridgeError
from bridge.observe.metrics import Metrics
from bridge.protocols.events import Start
from bridge.session import languages
from bridge.session.account import NOBODY, Account, Quotas
from bridge.session.failover import EnginePool
from bridge.session.limits import SessionLimits
from bridge.session.models import ModelSwitch
from bridge.session.origin import Origin
from bridge.session.publisher import Publisher
from bridge.session.session import Session
from bridge.session.voice import VoicePolicy

log = logging.getLogger(__name__)

FORMAT_BLOCKS: Final = 40
"""Stretches of audio a second whose format is doubted, of all sessions together: 50 ms of work, four to a session."""
LAST_SECONDS: Final = 0.5
"""For sessions that are abandoned to say so to their clients."""


class SessionManager:
    """Opens sessions on the engines within `max_sessions`, and ends them in order."""

    def __init__(
        self,
        engines: EnginePool,
        limits: SessionLimits,
        metrics: Metrics,
        *,
        max_sessions: int,
        language: str,
        voice: VoicePolicy = VoicePolicy(),
        denoise: bool = False,
        quotas: Quotas | None = None,
    ) -> None:
        self._quotas = quotas
        self.engines = engines
        self.models = ModelSwitch(engines.with_models)
        self.voice = voice
        self._denoise = denoise
        self._format_budget = Budget(FORMAT_BLOCKS)
        self.limits = limits
        self.metrics = metrics
        self._max_sessions = max_sessions
        self._language = language
        self._open: set[Session] = set()
        self._loaded = voice.detection is None  # the engines say for themselves whether they are
        self._draining = False
        self._drained = asyncio.Event()
        self._drained.set()
        for member in engines.members:
            metrics.follow_backend(member.engine.name, member.streams, member.openness)

    async def load(self) -> None:
        """Load the engines and the voice detector, once, before the first session.

        Raises:
            BackendError: no engine can be loaded, or not the detector; the text says what would help.
        """
        detecting = asyncio.create_task(self._load_detection(), name="load-detection")
        try:
            await self.engines.load()
            await detecting
        finally:
            detecting.cancel()

    async def _load_detection(self) -> None:
        if self.voice.detection is not None:
            try:
                await self.voice.detection.load()
            except VoiceDetectionError as exc:
                raise BackendError(str(exc), code="unavailable", fault=Fault.OPERATOR) from exc
        self._loaded = True

    async def close(self) -> None:
        """Release all of them. To be called when no session is open."""
        await self.models.close()
        await self.engines.close()
        if self.voice.detection is not None:
            await self.voice.detection.close()

    @property
    def count(self) -> int:
        """Sessions open now."""
        return len(self._open)

    def refusal(self) -> BridgeError | None:
        """Why a new session would be refused now; None if it would be taken."""
        if self._draining:
            return BridgeError("shutting_down")
        if self.engines.state != "ready" or not self._loaded:
            return BridgeError("not_ready")
        if self.engines.full or len(self._open) >= self._max_sessions:
            return BridgeError("at_capacity")
        return None

    @contextlib.asynccontextmanager
    async def session(
        self,
        start: Start,
        protocol: str,
        *,
        session_id: str | None = None,
        publisher: Publisher | None = None,
        origin: Origin = Origin(),
        account: Account = NOBODY,
        checked: bool = True,
    ) -> AsyncIterator[Session]:
        """A session, open for as long as the context lasts. The caller runs it.

        It has a name of its own, its own receivers and begins at its first sample, unless these say otherwise.
        `checked`: whether the account's quotas may refuse it. What goes on here is only counted.

        Raises:
            BridgeError: `at_capacity`, `not_ready`, `shutting_down`, `unsupported_language` or `quota_exceeded`.
        """
        quota = self._quotas.session(account.subject, checked=checked) if self._quotas else contextlib.nullcontext()
        async with quota as spend:
            if refusal := self.refusal():
                raise refusal
            language = languages.asked(start.language or self._language)
            began = time.monotonic()
            observer = self.metrics.session(protocol, spend)
            try:
                with self.engines.seats(language, start.lanes) as seats:
                    session = Session(
                        session_id or new_session_id(),
                        start,
                        seats,
                        self.limits,
                        observer=observer,
                        language=language,
                        voice=self.voice,
                        denoise=self._denoise,
                        format_budget=self._format_budget,
                        publisher=publisher,
                        origin=origin,
                        account=account,
                    )
                    self._opened(session)
                    try:
                        yield session
                    finally:
                        observer.report()
                        self._closed(session, time.monotonic() - began)
            finally:
                self._count()

    def _opened(self, session: Session) -> None:
        self._open.add(session)
        self._drained.clear()
        self._count()
        log.info("session opened", extra={"session": session.id, "backend": session.backend})

    def _closed(self, session: Session, seconds: float) -> None:
        self._open.discard(session)
        if not self._open:
            self._drained.set()
        code = session.end_code or "client_gone"
        self.metrics.sessions.labels(code).inc()
        log.info(
            "session closed",
            extra={
                "session": session.id,
                "code": code,
                "seconds": round(seconds, 3),
                "audio_seconds": round(session.audio_seconds, 3),
            },
        )

    async def drain(self, seconds: float) -> bool:
        """Take no new session, let every open one finalize what it has, and wait so long for that.

        What is not final then stays so; the clients are told how far it is. Returns whether all ended in time.
        """
        self._draining = True
        self.models.stop()  # what loads takes time from what has to end
        for session in tuple(self._open):
            session.shut_down()
        try:
            async with asyncio.timeout(seconds):
                await self._drained.wait()
        except TimeoutError:
            log.warning("%d sessions did not end within %.1f s", len(self._open), seconds)
        else:
            return True
        for session in tuple(self._open):
            session.abandon()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_SECONDS):
                await self._drained.wait()
        return False

    def _count(self) -> None:
        self.metrics.sessions_open.set(len(self._open))


def new_session_id() -> str:
    """128 random bits: a name that nobody can guess."""
    return secrets.token_urlsafe(16)
