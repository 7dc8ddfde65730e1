"""One session: frames on the audio's clock, and when the texts that cover them came."""

from __future__ import annotations

import asyncio
import random
import time
from array import array
from collections.abc import Callable, Sequence
from typing import Final, cast

from bench.load.dialects.base import Dialect, Ended, Opened, Say, Text
from bench.load.plan import FRAME_SAMPLES, FRAME_SECONDS
from bench.load.results import Seen
from bench.load.speech import Utterance
from bench.load.wire import WireError
from bridge.transcript import word_errors

COVERED: Final = 0.3
"""Seconds before the end of an utterance at which a final may end that holds all of it: engines cut silence."""
SLIGHT: Final = 1e-6
DEAF: Final = "scripted"
"""The beginning of the names of backends that say what they are told: their words say nothing about errors."""


class Session(asyncio.Protocol):
    """One client. `frames` are sent as they are; `said` is what they hold. `ended` resolves when all is over.

    Times are those of `time.perf_counter`: the event loop's clock ticks in milliseconds. `later` has `send` called.
    """

    def __init__(
        self,
        dialect: Dialect,
        address: tuple[str, int, str],
        frames: Sequence[bytes],
        said: Sequence[Utterance],
        seen: Callable[[], Seen],
        later: Callable[[float, Session], None],
        *,
        jitter: float,
        hold: float,
        key: str = "",
    ) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._dialect = dialect
        self._address = address
        self._frames = frames
        self._said = said
        self._seen = seen
        self._later = later
        self._jitter = jitter
        self._hold = hold
        self._key = key
        self._began = time.perf_counter()
        self._transport: asyncio.Transport
        self._sent_at = array("d")
        self._base = 0.0  # when the next frame is due but for jitter
        self._due = 0.0
        self._opened = False
        self._ok: bool | None = None
        self._reason = "the connection was closed"
        self._listens = dialect.words
        self._covered = 0.0
        self._final = 0.0  # the end of what is final
        self._unanswered = 0  # of `said`
        self._shown: list[str] = []
        self._finals: list[str] = []

    # The connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name
        self._transport.write(self._dialect.hello(*self._address, self._key))

    def data_received(self, data: bytes) -> None:
        """Take in what the server says."""
        try:
            heard = self._dialect.receive(data)
        except (WireError, ValueError) as exc:
            self._reason = str(exc)[:100]
            self._transport.abort()
            return
        for one in heard:
            if isinstance(one, Text):
                self._text(one)
            elif isinstance(one, Say):
                self._transport.write(one.data)
            elif isinstance(one, Opened):
                self._open(one)
            else:
                self._end(one)

    def connection_lost(self, exc: Exception | None) -> None:
        """Count how it ended."""
        seen = self._seen()
        if not self._opened:
            seen.refused += 1
        else:
            seen.open -= 1
            if self._ok:
                seen.completed += 1
            else:
                seen.dropped += 1
        if not self._ok:
            seen.fail(str(exc) if exc else self._reason)
        self._compare(seen)
        if not self.ended.done():
            self.ended.set_result(None)

    def abort(self, reason: str) -> None:
        """Give up."""
        self._reason = reason
        self._transport.abort()

    # What is sent

    def _open(self, opened: Opened) -> None:
        now = time.perf_counter()
        seen = self._seen()
        self._opened = True
        seen.open += 1
        seen.opening.add(now - self._began)
        if opened.backend and opened.backend not in seen.backends:
            seen.backends.append(opened.backend)
        self._listens = self._listens and not opened.backend.startswith(DEAF)
        self._base = now + self._hold + random.uniform(0, FRAME_SECONDS)  # sessions do not beat together
        self._plan()

    def _plan(self) -> None:
        self._due = self._base + random.uniform(0, self._jitter)
        self._later(self._due, self)

    def send(self) -> None:
        """The frame that is due, or the end."""
        if self._transport.is_closing() or self._ok is not None:
            return
        number = len(self._sent_at)
        if number == len(self._frames):
            self._transport.write(self._dialect.finish())
            return
        seen = self._seen()
        now = time.perf_counter()
        seen.lag.add(max(0.0, now - self._due))
        seen.frames += 1
        self._sent_at.append(now)
        self._transport.write(self._frames[number])
        self._base += FRAME_SECONDS
        self._plan()

    # What is heard

    def _end(self, ended: Ended) -> None:
        if self._ok is not None:
            return
        whole = len(self._sent_at) == len(self._frames)
        self._ok = ended.ok and whole
        if ended.ok and not whole:
            self._reason = "ended before its audio did"
        elif not ended.ok:
            self._reason = ended.reason[:100] or "the server ended it"
        if ended.received is not None:
            self._seen().lost_frames += max(0, len(self._sent_at) - ended.received // FRAME_SAMPLES)
        self._transport.close()

    def _text(self, text: Text) -> None:
        now = time.perf_counter()
        seen = self._seen()
        end = text.end
        if text.final:
            seen.finals += 1
        else:
            seen.partials += 1
        if end is not None:
            self._time(end, text.final, now, seen)
        self._show(text, seen)
        if text.final:
            self._finals.append(text.text)
            self._answer(end, now, seen)

    def _time(self, end: float, final: bool, now: float, seen: Seen) -> None:
        """What a text that covers more than those before it took: partials among all texts, finals among finals."""
        sent = self._sent(end)
        if final and end > self._final + SLIGHT:
            self._final = end
            if sent is not None:
                seen.final.add(max(0.0, now - sent))
        if end > self._covered + SLIGHT:
            self._covered = end
            if sent is not None and not final:
                seen.partial.add(max(0.0, now - sent))

    def _sent(self, seconds: float) -> float | None:
        """When the audio up to this was sent; None if all has been sent: what the end brings is no answer to audio."""
        index = int(seconds / FRAME_SECONDS - SLIGHT)
        return self._sent_at[index] if index < len(self._sent_at) < len(self._frames) else None

    def _answer(self, end: float | None, now: float, seen: Seen) -> None:
        """Utterances that are final now."""
        while self._unanswered < len(self._said):
            until = self._said[self._unanswered].end
            index = int(until / FRAME_SECONDS - SLIGHT)
            if index >= len(self._sent_at) or (end is not None and end < until - COVERED):
                return
            self._unanswered += 1
            seen.speech_end.add(now - self._sent_at[index])

    def _show(self, text: Text, seen: Seen) -> None:
        """Follow what a reader sees. After McGraw and Gruenstein, "Estimating Word-Stability during Incremental Speech
        Recognition" (2012): words of partials that change, by words of finals.
        """
        words = text.text.split()
        kept = 0
        for before, after in zip(self._shown, words, strict=False):
            if before != after:
                break
            kept += 1
        seen.words_changed += len(self._shown) - kept
        if text.final:
            seen.words_shown += len(words)
            self._shown = []
        else:
            self._shown = words

    def _compare(self, seen: Seen) -> None:
        if self._ok and self._said and self._listens:
            errors, words = word_errors(" ".join(u.text for u in self._said), " ".join(self._finals))
            seen.word_errors += errors
            seen.words_said += words
