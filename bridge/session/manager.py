"""Every session of this server: who gets in, who is open, and how all of them end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from types import TracebackType
from typing import Final

from backends.base import BackendError, Fault
from bridge.audio.formats import AudioFormat
from bridge.audio.suspicion import Budget
from bridge.audio.vad.detector import VoiceDetectionError
from bridge.errors import BridgeError
from bridge.observe import trace
from bridge.observe.metrics import Metrics, SessionMetrics
from bridge.protocols.events import Final as FinalEvent
from bridge.protocols.events import Start
from bridge.session import languages
from bridge.session.account import NOBODY, Account, Quotas
from bridge.session.failover import EnginePool, Seat
from bridge.session.limits import SessionLimits
from bridge.session.models import ModelSwitch
from bridge.session.origin import Origin
from bridge.session.places import KEPT_FOR_LIVE, LIVE, Line, Place, Terms
from bridge.session.publisher import Publisher
from bridge.session.session import Session
from bridge.session.voice import VoicePolicy
from bridge.session.whole import Whole

log = logging.getLogger(__name__)

FORMAT_BLOCKS: Final = 8
"""Stretches of audio a second whose format is doubted, of all sessions together: 10 ms of work. Each needs four."""
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
        self.language = language
        self.kept_for_live = KEPT_FOR_LIVE
        """The share that files leave free; 0 where there are only files."""
        self._line = Line()
        self._open: set[Session | Whole] = set()
        self._places = 0  # taken, by sessions and by files that are still being looked into
        self._loaded = voice.detection is None  # the engines say for themselves whether they are
        self._draining = False
        self._drained = asyncio.Event()
        self._drained.set()
        metrics.sessions_open.set_function(lambda: len(self._open))
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
            self._line.call_all()

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

    def refusal(self, spare: float = 0.0) -> BridgeError | None:
        """Why a new session would be refused now; None if it would be taken. `spare`: the share that stays free."""
        return self._refusal(spare) or (BridgeError("at_capacity") if self.engines.full else None)

    def _refusal(self, spare: float) -> BridgeError | None:
        """The same, but for what the engines themselves say when they are asked for seats."""
        if self._draining:
            return BridgeError("shutting_down")
        if self.engines.state != "ready" or not self._loaded:
            return BridgeError("not_ready")
        if self._places >= max(1, math.floor(self._max_sessions * (1 - spare))):
            return BridgeError("at_capacity")
        return None

    async def check(self, account: Account) -> None:
        """Whether this account may have one more session; before somebody else gives way to it.

        Raises:
            BridgeError: `quota_exceeded`.
        """
        if self._quotas is not None:
            await self._quotas.check(account.subject, place=True)

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
        `checked`: whether the account's quotas may refuse it. What goes on here is only counted, and goes to another
        backend where the one that it began with is not.

        Raises:
            BridgeError: `at_capacity`, `not_ready`, `shutting_down`, `unsupported_language`, `unknown_backend` or
                `quota_exceeded`.
        """
        terms = Terms(backend=start.backend if checked or self.engines.serves(start.backend) else None)
        async with self.place(start.language, start.lanes, account=account, checked=checked, terms=terms) as place:
            with self.seated(
                place, start, protocol, session_id=session_id, publisher=publisher, origin=origin
            ) as opened:
                yield opened

    def place(
        self,
        language: str | None = None,
        lanes: int = 1,
        *,
        account: Account = NOBODY,
        checked: bool = True,
        terms: Terms = LIVE,
    ) -> contextlib.AbstractAsyncContextManager[Place]:
        """A place for a session of this language, taken for as long as the context lasts.

        Raises:
            BridgeError: as `session`, or `unknown_backend`; by the context.
        """
        quota = self._quotas.session(account.subject, checked=checked) if self._quotas else None
        return _Taken(self, languages.asked(language or self.language), lanes, account, terms, quota)

    async def _take_seats(self, language: str, lanes: int, terms: Terms) -> Sequence[Seat]:
        """Seats, as soon as there are any; to be given back by `_leave`."""
        clock = asyncio.get_running_loop().time
        spare = self.kept_for_live if terms.batch else 0.0
        until = clock() + terms.patience
        again = False
        while True:
            try:
                if refusal := self._refusal(spare):
                    raise refusal
                seats = self.engines.take_seats(language, lanes, backend=terms.backend, spare=spare)
            except BridgeError as exc:
                waits = exc.code == "at_capacity" or (exc.code == "not_ready" and math.isinf(terms.patience))
                if not waits or clock() >= until:
                    raise
            else:
                self._places += 1
                if again:
                    self._line.call()  # there may be room for more than one
                return seats
            await self._line.wait(until - clock(), again=again)
            again = True

    def _leave(self, seats: Sequence[Seat]) -> None:
        for seat in seats:
            seat.give_back()
        self._places -= 1

    @contextlib.contextmanager
    def seated(
        self,
        place: Place,
        start: Start,
        protocol: str,
        *,
        session_id: str | None = None,
        publisher: Publisher | None = None,
        origin: Origin = Origin(),
        limits: SessionLimits | None = None,
        watched: bool = True,
    ) -> Iterator[Session]:
        """A session at a place that was taken for it; else as `session`. `limits`: other than the server's.

        `watched`: see `Session`.
        """
        observer = self.metrics.session(protocol, place.spend)
        session = Session(
            session_id or new_session_id(),
            start,
            place.seats,
            limits or self.limits,
            observer=observer,
            language=place.language,
            voice=self.voice,
            denoise=self._denoise,
            format_budget=self._format_budget,
            publisher=publisher,
            origin=origin,
            account=place.account,
            watched=watched,
        )
        with self._carried(session, place, protocol, observer):
            yield session

    def hears_whole(self, place: Place, start: Start) -> bool:
        """Whether a recording needs nothing that only a session has: other channels, silence left out, less noise."""
        denoise = self._denoise if start.denoise is None else start.denoise
        return len(place.seats) == 1 and not denoise and self.voice.wanted(start) is None

    async def whole(
        self,
        place: Place,
        start: Start,
        protocol: str,
        limits: SessionLimits,
        audio: AudioFormat,
        samples: bytes | memoryview,
    ) -> tuple[str, Sequence[FinalEvent]]:
        """Which backend hears what in a recording that is all here; if `hears_whole`. Of `audio`, not of `start`'s.

        Raises:
            BridgeError: as `Whole.finals`.
        """
        observer = self.metrics.session(protocol, place.spend)
        recording = Whole(
            new_session_id(),
            start,
            place.seats[0],
            limits,
            observer=observer,
            language=place.language,
            account=place.account,
        )
        with self._carried(recording, place, protocol, observer):
            finals = await recording.finals(audio, samples)
            return recording.backend, finals

    def _carried(
        self, session: Session | Whole, place: Place, protocol: str, observer: SessionMetrics
    ) -> contextlib.AbstractContextManager[None]:
        """It is one of this server's sessions, for as long as the context lasts."""
        about = {"stt.session.id": session.id, "stt.protocol": protocol, "stt.language": place.language}
        return _Carried(self, session, trace.scope("session", about, session=session.id), observer)

    def _opened(self, session: Session | Whole) -> None:
        self._open.add(session)
        self._drained.clear()
        if self._draining:  # its file was still being looked into when that began
            session.shut_down()
        log.info("session opened", extra={"session": session.id, "backend": session.backend})

    def _closed(self, session: Session | Whole, seconds: float) -> None:
        self._open.discard(session)
        if not self._open:
            self._drained.set()
        code = session.end_code or "client_gone"
        self.metrics.sessions.labels(code).inc()
        trace.say({"stt.code": code, "stt.backend": session.backend, "stt.audio_seconds": session.audio_seconds})
        if log.isEnabledFor(logging.INFO):
            about = {
                "session": session.id,
                "code": code,
                "seconds": round(seconds, 3),
                "audio_seconds": round(session.audio_seconds, 3),
            }
            log.info("session closed", extra=about)

    async def drain(self, seconds: float) -> bool:
        """Take no new session, let every open one finalize what it has, and wait so long for that.

        What is not final then stays so; the clients are told how far it is. Returns whether all ended in time.
        """
        self._draining = True
        self._line.call_all()
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


class _Taken(contextlib.AbstractAsyncContextManager[Place]):
    """A place, while it is taken. Like `_Carried` no generator: a short file would feel what those cost."""

    def __init__(
        self,
        manager: SessionManager,
        language: str,
        lanes: int,
        account: Account,
        terms: Terms,
        quota: contextlib.AbstractAsyncContextManager[Callable[[float], None]] | None,
    ) -> None:
        self._manager = manager
        self._language = language
        self._lanes = lanes
        self._account = account
        self._terms = terms
        self._quota = quota
        self._seats: Sequence[Seat] = ()

    async def __aenter__(self) -> Place:
        spend = None if self._quota is None else await self._quota.__aenter__()
        try:
            self._seats = await self._manager._take_seats(self._language, self._lanes, self._terms)  # noqa: SLF001
        except BaseException as exc:
            await self._left(type(exc), exc, exc.__traceback__)
            raise
        return Place(self._seats, self._language, self._account, spend)

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._manager._leave(self._seats)  # noqa: SLF001 - they are one mechanism
        await self._left(kind, exc, traceback)

    async def _left(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._manager._line.call()  # noqa: SLF001
        if self._quota is not None:
            await self._quota.__aexit__(kind, exc, traceback)


class _Carried(contextlib.AbstractContextManager[None]):
    """A session or recording, while it is one of the server's."""

    def __init__(
        self,
        manager: SessionManager,
        session: Session | Whole,
        scope: contextlib.AbstractContextManager[object],
        observer: SessionMetrics,
    ) -> None:
        self._manager = manager
        self._session = session
        self._scope = scope
        self._observer = observer
        self._began = time.monotonic()

    def __enter__(self) -> None:
        self._scope.__enter__()
        self._manager._opened(self._session)  # noqa: SLF001 - they are one mechanism

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._observer.report()
        self._manager._closed(self._session, time.monotonic() - self._began)  # noqa: SLF001
        self._scope.__exit__(kind, exc, traceback)


def new_session_id() -> str:
    """128 random bits: a name that nobody can guess."""
    return secrets.token_urlsafe(16)
