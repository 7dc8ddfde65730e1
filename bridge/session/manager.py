"""Every session of this server: who gets in, who is open, and how all of them end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Collection
from typing import Final

from backends.base import DETECT, BackendError, Capabilities, Fault
from bridge.audio.suspicion import Budget
from bridge.audio.vad.detector import VoiceDetectionError
from bridge.errors import BridgeError
from bridge.observe.metrics import Metrics
from bridge.protocols.events import Start
from bridge.session.engine import Engine
from bridge.session.limits import SessionLimits
from bridge.session.models import ModelSwitch
from bridge.session.session import Session
from bridge.session.voice import VoicePolicy

log = logging.getLogger(__name__)

FORMAT_BLOCKS: Final = 40
"""Stretches of audio a second whose format is doubted, of all sessions together: 50 ms of work, four to a session."""
DETECTING: Final = (DETECT, "und")
"""What asks an engine to detect the language: our own word, and BCP 47's for an undetermined one."""
LAST_SECONDS: Final = 0.5
"""For sessions that are abandoned to say so to their clients."""


class SessionManager:
    """Opens sessions on one engine within `max_sessions`, and ends them in order."""

    def __init__(
        self,
        engine: Engine,
        limits: SessionLimits,
        metrics: Metrics,
        *,
        max_sessions: int,
        language: str,
        voice: VoicePolicy = VoicePolicy(),
        denoise: bool = False,
    ) -> None:
        self.engine = engine
        self.models = ModelSwitch(engine)
        self.voice = voice
        self._denoise = denoise
        self._format_budget = Budget(FORMAT_BLOCKS)
        self.limits = limits
        self.metrics = metrics
        self._max_sessions = max_sessions
        self._language = language
        self._open: set[Session] = set()
        self._loaded = voice.detection is None  # the engine says for itself whether it is
        self._draining = False
        self._drained = asyncio.Event()
        self._drained.set()

    async def load(self) -> None:
        """Load the engine and the voice detector, once, before the first session.

        Raises:
            BackendError: one of them cannot be loaded; the text says what would help.
        """
        await self.engine.load()
        if self.voice.detection is not None:
            try:
                await self.voice.detection.load()
            except VoiceDetectionError as exc:
                raise BackendError(str(exc), code="unavailable", fault=Fault.OPERATOR) from exc
        self._loaded = True

    async def close(self) -> None:
        """Release both. To be called when no session is open."""
        await self.models.close()
        await self.engine.close()
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
        if self.engine.state != "ready" or not self._loaded:
            return BridgeError("not_ready")
        if self.engine.full or len(self._open) >= self._max_sessions:
            return BridgeError("at_capacity")
        return None

    @contextlib.asynccontextmanager
    async def session(self, start: Start, protocol: str) -> AsyncIterator[Session]:
        """A new session, open for as long as the context lasts. The caller runs it.

        Raises:
            BridgeError: `at_capacity`, `not_ready`, `shutting_down` or `unsupported_language`.
        """
        if refusal := self.refusal():
            raise refusal
        language = wanted_language(self.engine, start.language or self._language)
        began = time.monotonic()
        observer = self.metrics.session(protocol, self.engine.name)
        try:
            with self.engine.lease(start.lanes):
                session = Session(
                    # 128 random bits: an identifier that nobody can guess
                    secrets.token_urlsafe(16),
                    start,
                    self.engine,
                    self.limits,
                    observer=observer,
                    language=language,
                    voice=self.voice,
                    denoise=self._denoise,
                    format_budget=self._format_budget,
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
        log.info("session opened", extra={"session": session.id, "backend": self.engine.name})

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
            session.stop("shutting_down")
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
        self.metrics.backend_streams.labels(self.engine.name).set(self.engine.streams)


def wanted_language(engine: Engine, wanted: str) -> str:
    """What the engine is asked for: the BCP 47 tag as it was given, or `DETECT` however that was said.

    Raises:
        BridgeError: `unsupported_language`, with what the engine takes.
    """
    can = engine.capabilities
    if wanted.lower() in DETECTING:
        if can.detects_language:
            return DETECT
        raise BridgeError("unsupported_language", f"the backend {engine.name} detects no language: name one")
    if not speaks(can.languages, wanted):
        raise BridgeError("unsupported_language", f"the backend {engine.name} knows {', '.join(taken(can))}")
    return wanted


def taken(can: Capabilities) -> tuple[str, ...]:
    """The languages that a backend lists, as a session may name them; empty for any."""
    return (*can.languages, DETECT) if can.languages and can.detects_language else can.languages


def speaks(languages: Collection[str], wanted: str) -> bool:
    """Whether a backend that lists these BCP 47 tags takes the wanted one; a bare `en` covers every English."""
    if not languages:
        return True
    tag = wanted.lower()
    known = {language.lower() for language in languages}
    primary = tag.partition("-")[0]
    return tag in known or primary in known or (tag == primary and any(k.startswith(f"{tag}-") for k in known))
