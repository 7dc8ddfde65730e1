"""Where a session begins: at its first sample, or where another server's finals end."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from bridge.audio.formats import Encoding
from bridge.protocols.events import LastingEvent, SpeechEnded, SpeechStarted, Start
from bridge.session.eventlog.base import SessionRecord


@dataclass(frozen=True, slots=True)
class Origin:
    """What a session has behind it.

    `frames`: the frame, at the client's rate, with which the audio begins that will come; it is `received_bytes` into
    what the client has to send, `header_bytes` of a file's header among them. `finalized`: frames that are final
    already. `final`: for each channel, the seconds of the session before which everything is final. `speaking`: for
    each channel, where speech began that clients were told of and not of its end. `age`: seconds since it was opened.
    """

    frames: int = 0
    received_bytes: int = 0
    header_bytes: int = 0
    finalized: int = 0
    final: tuple[float, ...] = ()
    speaking: tuple[float | None, ...] = ()
    age: float = 0.0

    @classmethod
    def of(cls, record: SessionRecord, told: Iterable[LastingEvent]) -> Self:
        """Of a session that the log knows; `told` are the last of its events.

        Raw samples go on where all channels are final. Coded audio is wanted again from its first byte: no decoder can
        begin in the middle of it.
        """
        progress = record.progress
        audio = record.start.audio
        lanes = record.start.lanes
        final = progress.final or (0.0,) * lanes
        speaking: list[float | None] = [None] * lanes
        for event in told:
            if isinstance(event, SpeechStarted):
                speaking[event.channel or 0] = event.start
            elif isinstance(event, SpeechEnded):
                speaking[event.channel or 0] = None
        frames = record.finalized if record.raw else 0
        return cls(
            frames=frames,
            received_bytes=progress.header_bytes * bool(frames) + frames * audio.frame_bytes if record.raw else 0,
            header_bytes=progress.header_bytes if frames else 0,
            finalized=record.finalized,
            final=final,
            speaking=tuple(speaking),
            age=max(0.0, record.touched - record.created),
        )


def known_format(start: Start, progress_raw: bool) -> Start:
    """The same, where what the first bytes said is needed and they are not sent again."""
    if start.audio.encoding is not Encoding.AUTO or not progress_raw:
        return start
    return dataclasses.replace(start, audio=dataclasses.replace(start.audio, encoding=Encoding.PCM_S16LE))
