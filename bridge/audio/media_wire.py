"""What the server and its decoding processes say to each other: `media_pool` on one side, `media_worker` on the other.

    server ──control socket──► zygote          SPAWN id (with the child's socket), KILL id; READY back
    server ──child's socket──► child           a job with the file's descriptor, after the one before was answered
    server ◄──child's socket── child           HELLO once, then for each job: INFO PCM* DONE, or REFUSAL on the way

Both ends are one build: no versions, no compatibility. But a child may have become a stranger's, so the server checks
what it is told: kinds, sizes, types, ranges.
"""

from __future__ import annotations

import struct
from typing import Annotated, Any, Final, Literal

import msgspec

HEADER: Final = struct.Struct("!BI")  # kind of frame, bytes in its body
CONTROL: Final = struct.Struct("!BQ")  # SPAWN or KILL, id of the child
SPAWN, KILL = 1, 2
READY, HELLO, INFO, PCM, DONE, REFUSAL = 1, 2, 3, 4, 5, 6

CHUNK_MS: Final = 2_000
"""Of sound in one frame."""
MAX_PCM: Final = 2 * 48_000 * CHUNK_MS // 1_000
MAX_BODY: Final = 16_384
"""Of every other frame, jobs included: a name and a few numbers."""

_Name = Annotated[str, msgspec.Meta(max_length=400)]


class Job(msgspec.Struct):
    """One file, whose descriptor comes with it."""

    name: _Name
    longest: float
    """Seconds of audio that it may hold."""
    demuxer: _Name | None = None
    """FFmpeg's name of it, where the content does not tell."""
    probe: bool = False
    """Only look at it: INFO and DONE, once there was some sound."""


class Info(msgspec.Struct):
    """What the file is; names are FFmpeg's."""

    rate: Annotated[int, msgspec.Meta(ge=8_000, le=48_000)]
    """Of the sound that follows."""
    duration: Annotated[float, msgspec.Meta(gt=0)] | None
    container: _Name
    codec: _Name
    sample_rate: Annotated[int, msgspec.Meta(gt=0)]
    channels: Annotated[int, msgspec.Meta(gt=0)]


class Refusal(msgspec.Struct):
    """Why there is no more of it."""

    code: Literal["audio_too_long", "undecodable_audio", "unsupported_audio"]
    message: Annotated[str, msgspec.Meta(max_length=4_000)]


def encode_frame(kind: int, body: Any = b"") -> bytes:
    """One frame; a body that is no bytes becomes JSON."""
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return HEADER.pack(kind, len(data)) + data


def too_long(name: str, longest: float) -> str:
    """The sentence of `audio_too_long`."""
    return f"{name}: longer than the {longest:g} s of audio that a file may hold"
