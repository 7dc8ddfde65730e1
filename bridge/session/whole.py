"""A recording that is all here, through one channel and in one task.

A session has a client that sends and listens meanwhile: a decoder that may wait, a hub, acks, clocks. Nothing of this
is needed where the audio is whole before it begins and nobody hears of anything before the end. What happens to the
audio is the channel's business here, too: it opens streams again, moves to other backends and finalizes each word once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import Final

from bridge.audio.decode import StreamDecoder
from bridge.audio.formats import AudioFormat, Encoding
from bridge.errors import BridgeError
from bridge.protocols.events import Final as FinalEvent
from bridge.protocols.events import ServerEvent, Start
from bridge.session.account import NOBODY, Account
from bridge.session.channel import Channel
from bridge.session.failover import Seat
from bridge.session.limits import SessionLimits, SessionObserver
from bridge.session.voice import VoicePolicy

log = logging.getLogger(__name__)

_NO_VOICE: Final = VoicePolicy()


class Whole:
    """One recording. For the manager it is a session."""

    def __init__(
        self,
        session_id: str,
        start: Start,
        seats: Sequence[Seat],
        limits: SessionLimits,
        *,
        observer: SessionObserver,
        language: str,
        account: Account = NOBODY,
    ) -> None:
        self.id = session_id
        self.end_code: str | None = None
        self._start = start
        self._seat = seats[0]
        self._rate = self._seat.engine.sample_rate
        self._observer = observer
        self._finals: list[FinalEvent] = []
        self._scope: asyncio.Timeout | None = None
        self._channel = Channel(
            None,
            session_id,
            start,
            language,
            self._seat,
            limits,
            _NO_VOICE,
            out=self,
            observer=observer,
            advanced=_nothing,
            warn=_unheard,
            account=lambda: account,
            whole=True,
        )

    @property
    def backend(self) -> str:
        """The name of the backend that works for it now."""
        return self._seat.engine.name

    @property
    def audio_seconds(self) -> float:
        """Of all its audio."""
        return self._channel.end / self._rate

    async def finals(self, chunks: Iterable[bytes]) -> Sequence[FinalEvent]:
        """What is said in this audio, which is in the format of `start`. To be used once; may be cancelled.

        Raises:
            BridgeError: the backend cannot go on, or the server stops.
        """
        try:
            self._take(chunks)
            async with asyncio.timeout(None) as self._scope:
                await self._channel.run()
        except TimeoutError as exc:
            error = BridgeError("shutting_down")
            error.__cause__ = exc
        except BridgeError as exc:
            error = exc
        except Exception:
            log.exception("session failed", extra={"session": self.id})
            error = BridgeError("internal")
        else:
            self.end_code = "stopped"
            return self._finals
        finally:
            self._channel.abort()
        self.end_code = error.code
        raise error

    def _take(self, chunks: Iterable[bytes]) -> None:
        now = asyncio.get_running_loop().time()
        if self._start.audio == AudioFormat(Encoding.PCM_S16LE, self._rate):
            self._channel.append(b"".join(chunks), now)
        else:
            decoder = StreamDecoder(self._start.audio, self._rate)
            for chunk in chunks:
                decoder.push(chunk)
                while (lanes := decoder.read()) is not None:
                    self._channel.append(lanes[0], now)
            decoder.finish()
            while (lanes := decoder.read()) is not None:
                self._channel.append(lanes[0], now)
        self._channel.close()
        self._observer.audio(self.audio_seconds)

    # What the manager calls

    def shut_down(self) -> None:
        """The server stops: all the audio is here, and is finalized."""

    def abandon(self) -> None:
        """The server waits no longer."""
        if self._scope is not None:
            self._scope.reschedule(asyncio.get_running_loop().time())

    # What the channel calls

    def next_seq(self) -> int:
        """Nobody counts."""
        return 0

    def publish(self, event: ServerEvent) -> None:
        """Keep what is said."""
        if isinstance(event, FinalEvent):
            self._finals.append(event)


def _nothing() -> None:
    """Nobody follows how far it is."""


def _unheard(code: str, sentence: str) -> None:
    """Nobody is told meanwhile."""
