"""Transcripts as OpenAI writes them. Pure functions; times in seconds from the start of the audio."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from bridge.api.hearing import Heard, Narrator
from bridge.api.language_names import language_name
from bridge.api.openai_errors import BadFieldError, openai_error
from bridge.api.sse import Event
from bridge.errors import BridgeError
from bridge.transcript import Segment, to_srt, to_vtt

FORMATS: Final = {
    "json": "application/json",
    "text": "text/plain; charset=utf-8",
    "srt": "application/x-subrip; charset=utf-8",
    "vtt": "text/vtt; charset=utf-8",
    "verbose_json": "application/json",
    "diarized_json": "application/json",
}
"""Every `response_format`, and its media type."""
SPEAKERS_MISSING: Final = "this model tells no speakers apart: `diarized_json` is not possible"
TOKENS_A_SECOND: Final = 10
"""Of audio, in the `usage` of a stream, where OpenAI knows tokens only."""


def written(heard: Heard, response_format: str, *, words: bool, temperature: float) -> str:
    """The whole answer.

    Raises:
        BridgeError: `diarized_json` of words whose speakers nobody knows.
    """
    match response_format:
        case "text":
            return whole_text(heard.segments) + "\n"
        case "srt":
            return to_srt(heard.segments)
        case "vtt":
            return to_vtt(heard.segments)
        case "verbose_json":
            return _json(_verbose(heard, words=words, temperature=temperature))
        case "diarized_json":
            return _json(_diarized(heard))
        case _:
            return _json({"text": whole_text(heard.segments), "usage": _usage(heard)})


def whole_text(segments: Iterable[Segment]) -> str:
    """One line with all that was said."""
    return " ".join(text for segment in segments if (text := _line(segment)))


def _line(segment: Segment) -> str:
    return " ".join(segment.text.split())


def _usage(heard: Heard) -> dict[str, Any]:
    return {"type": "duration", "seconds": math.ceil(heard.seconds)}


def _verbose(heard: Heard, *, words: bool, temperature: float) -> dict[str, Any]:
    spoken = [segment for segment in heard.segments if segment.text.strip()]
    document: dict[str, Any] = {
        "task": "transcribe",
        "language": language_name(heard.language),
        "duration": round(heard.seconds, 3),
        "text": whole_text(spoken),
        "segments": [_segment(number, segment, temperature) for number, segment in enumerate(spoken)],
    }
    if words:
        document["words"] = [
            {"word": word.text, "start": word.start, "end": word.end} for segment in spoken for word in segment.words
        ]
    return document | {"usage": _usage(heard)}


def _segment(number: int, segment: Segment, temperature: float) -> dict[str, Any]:
    """With values for what only a Whisper would know: clients compute with them.

    `avg_logprob` is the logarithm of the confidence (of 1 where there is none), `compression_ratio` is real,
    `no_speech_prob` is 0 and `tokens` are none.
    """
    text = _line(segment)
    coded = text.encode()
    confidence = 1.0 if segment.confidence is None else segment.confidence
    return {
        "id": number,
        "seek": round(segment.start * 100),
        "start": segment.start,
        "end": segment.end,
        "text": text,
        "tokens": [],
        "temperature": temperature,
        "avg_logprob": round(math.log(max(1e-6, min(1.0, confidence))), 4),
        "compression_ratio": round(len(coded) / len(zlib.compress(coded)), 4),
        "no_speech_prob": 0.0,
    }


def _diarized(heard: Heard) -> dict[str, Any]:
    turns = [turn for segment in heard.segments for turn in speaker_turns(segment)]
    return {
        "task": "transcribe",
        "duration": round(heard.seconds, 3),
        "text": whole_text(heard.segments),
        "segments": [_turn(number, turn) for number, turn in enumerate(turns)],
        "usage": _usage(heard),
    }


def speaker_turns(segment: Segment) -> list[Segment]:
    """What each speaker says in turn, as segments whose words are all one speaker's.

    Raises:
        BridgeError: nobody knows who says what.
    """
    if not segment.text.strip():
        return []
    if not segment.words or any(word.speaker is None for word in segment.words):
        raise BadFieldError("response_format", SPEAKERS_MISSING)
    turns = [tuple(words) for _, words in itertools.groupby(segment.words, lambda word: word.speaker)]
    if len(turns) == 1:
        return [segment]
    return [Segment(" ".join(word.text for word in words), words[0].start, words[-1].end, words) for words in turns]


def _turn(number: int, turn: Segment) -> dict[str, Any]:
    return {
        "type": "transcript.text.segment",
        "id": f"seg_{number}",
        "start": turn.start,
        "end": turn.end,
        "speaker": turn.words[0].speaker,
        "text": _line(turn),
    }


class OpenAINarrator(Narrator):
    """`stream=true`: deltas that are only ever appended, one for each final; with `diarized`, turns besides."""

    def __init__(self, *, diarized: bool) -> None:
        self._diarized = diarized
        self._turns = 0
        self._begun = False

    def final(self, segment: Segment) -> Sequence[Event]:
        """See `Narrator`."""
        text = _line(segment)
        if not text:
            return ()
        events = []
        for turn in speaker_turns(segment) if self._diarized else ():
            events.append(_event(_turn(self._turns, turn)))
            self._turns += 1
        events.append(_event({"type": "transcript.text.delta", "delta": f" {text}" if self._begun else text}))
        self._begun = True
        return events

    def done(self, heard: Heard) -> Sequence[Event]:
        """See `Narrator`."""
        text = whole_text(heard.segments)
        audio, said = math.ceil(heard.seconds * TOKENS_A_SECOND), len(text.split())
        usage = {
            "type": "tokens",
            "input_tokens": audio,
            "output_tokens": said,
            "total_tokens": audio + said,
            "seconds": math.ceil(heard.seconds),
        }
        return [_event({"type": "transcript.text.done", "text": text, "usage": usage}), Event("[DONE]")]


def stream_failed(error: BridgeError) -> Event:
    """The last event of a stream that broke off: OpenAI's clients raise it."""
    return _event(openai_error(error)[1])


def _event(data: dict[str, Any]) -> Event:
    return Event(_json(data))


def _json(data: dict[str, Any]) -> str:
    return msgspec.json.encode(data).decode()
