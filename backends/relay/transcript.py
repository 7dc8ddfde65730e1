"""The other server's messages as results of one stream. Counts samples; does no I/O.

The native protocol says with `ack` how far everything is final, also where nobody spoke; an engine says so with a final
without text. A server puts `ack` behind the finals that it covers, so no words are still to come before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from backends.base import Result, Word
from bridge.protocols.native import (
    AckMessage,
    FinalMessage,
    PartialMessage,
    ServerMessage,
    SpeechEndedMessage,
    SpeechStartedMessage,
    WordObject,
)

ROUNDED: Final = 0.001
"""Seconds by which times are off: a server rounds them to milliseconds, and `finalized` to its engine's rate."""


class Transcript:
    """One session of the other server, which is one stream of audio at this rate (Hz)."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._slack = max(1, round(ROUNDED * rate))
        self._sent = 0  # samples
        self._flushes: list[int] = []  # positions that are not answered, ascending
        self._covered = 0.0  # seconds that finals cover
        self._speaking = False

    def sent(self, pcm: bytes) -> None:
        """So much audio goes to the server."""
        self._sent += len(pcm) // 2

    def flushed(self) -> None:
        """A final of everything up to here was asked for."""
        self._flushes.append(self._sent)

    def take(self, message: ServerMessage) -> Iterator[Result]:
        """What a message says."""
        match message:
            case PartialMessage():
                self._speaking = True
                yield Result(
                    message.text,
                    False,
                    message.start,
                    message.end,
                    _words(message.words),
                    stability=message.stability,
                    committed=message.committed,
                )
            case FinalMessage():
                self._speaking = False
                self._covered = max(self._covered, message.end)
                yield Result(
                    message.text,
                    True,
                    message.start,
                    message.end,
                    _words(message.words),
                    confidence=message.confidence,
                    language=message.language,
                )
            case AckMessage():
                yield from self._finalized(min(message.finalized, self._sent))
            case SpeechStartedMessage():
                self._speaking = True
                yield Result("", False, message.start, message.start)
            case SpeechEndedMessage():
                self._speaking = False

    def rest(self) -> Iterator[Result]:
        """The server has said that everything is final."""
        yield from self._cover(self._sent / self._rate)

    def _finalized(self, position: int) -> Iterator[Result]:
        """All before this sample is final."""
        answered = False
        while self._flushes and self._flushes[0] <= position + self._slack:
            position = max(position, self._flushes.pop(0))
            answered = True
        # While somebody speaks, a final without text would end their speech here.
        seconds = position / self._rate
        if answered or (not self._speaking and seconds > self._covered + ROUNDED):
            yield from self._cover(seconds)

    def _cover(self, seconds: float) -> Iterator[Result]:
        if seconds > self._covered:
            start, self._covered = self._covered, seconds
            yield Result("", True, start, seconds)


def _words(words: tuple[WordObject, ...]) -> tuple[Word, ...]:
    return tuple(Word(w.text, w.start, w.end, w.confidence, w.speaker) for w in words)
