"""Recognition: audio in, responses as Google's out. By a backend of the bridge, or an echo for benchmarks."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any, Final, Protocol

from backends.base import RecognitionConfig, Result, Word
from bridge.audio.decode import StreamDecoder
from bridge.audio.formats import AudioFormat, Encoding
from bridge.emulator.api import Api, Asked
from bridge.emulator.statuses import EXHAUSTED, StreamEnded, invalid
from bridge.session.engine import Engine
from bridge.session.languages import speaks

log = logging.getLogger(__name__)

HEAD_STABILITY: Final = 0.9
TAIL_STABILITY: Final = 0.01
"""Google gives an interim in two parts: what will hardly change, and its last word."""


class Recognizer(Protocol):
    """Makes the responses of one stream."""

    def __call__(self, api: Api, asked: Asked, audio: AsyncGenerator[bytes, None]) -> AsyncGenerator[Any, None]:
        """Responses for the audio (PCM16 mono at `asked.sample_rate`), the last of them after its end."""


async def echo(api: Api, asked: Asked, audio: AsyncGenerator[bytes, None]) -> AsyncGenerator[Any, None]:
    """Answers every message with the number of audio bytes received so far; the last of them, final, at the end."""
    code = api.language_code(asked.language)
    received = 0
    async for chunk in audio:
        received += len(chunk)
        response = api.response()
        result = response.results.add()
        result.alternatives.add().transcript = str(received)
        result.stability = HEAD_STABILITY
        result.language_code = code
        _set_time(getattr(result, api.result_end), received / 2 / asked.sample_rate)
        yield response
    response = api.response()
    result = response.results.add(is_final=True, language_code=code)
    result.alternatives.add(transcript=str(received), confidence=1.0)
    _set_time(getattr(result, api.result_end), received / 2 / asked.sample_rate)
    yield response


class EngineRecognizer:
    """Recognition by a loaded engine. `resample`: to the engine's rate; else it is given the client's, whatever it is.

    Audio goes to the engine as it asks for it, so that a slow one makes gRPC's flow control slow the client.
    """

    def __init__(self, engine: Engine, *, resample: bool) -> None:
        self._engine = engine
        self._resample = resample

    async def __call__(self, api: Api, asked: Asked, audio: AsyncGenerator[bytes, None]) -> AsyncGenerator[Any, None]:
        """One stream of the engine."""
        if not speaks(self._engine.capabilities.languages, asked.language):
            raise StreamEnded(invalid("Invalid recognition 'config': bad language code."))
        if self._engine.full:
            log.warning("the backend %s carries no more streams", self._engine.name)
            raise StreamEnded(EXHAUSTED)
        rate = self._rate(asked.sample_rate)
        config = RecognitionConfig(
            sample_rate=rate,
            language=asked.language,
            partials=asked.interim or asked.activity_events,
            phrases=asked.phrases,
        )
        # A message may end inside of a sample: the decoder puts the halves together.
        whole = _decoded(audio, StreamDecoder(AudioFormat(Encoding.PCM_S16LE, asked.sample_rate), rate))
        writer = ResponseWriter(api, asked)
        with self._engine.lease():
            async with contextlib.aclosing(self._engine.recognize(config, whole)) as results:
                async for result in results:
                    for response in writer.say(result):
                        yield response

    def _rate(self, given: int) -> int:
        rates = self._engine.capabilities.sample_rates
        return given if not self._resample or given in rates else rates[0]


async def _decoded(audio: AsyncIterator[bytes], decoder: StreamDecoder) -> AsyncIterator[bytes]:
    async for chunk in audio:
        decoder.push(chunk)
        for pcm in _read(decoder):
            yield pcm
    decoder.finish()
    for pcm in _read(decoder):
        yield pcm


def _read(decoder: StreamDecoder) -> Iterator[bytes]:
    """What can be decoded now; nothing empty, which would be a flush."""
    while lanes := decoder.read():
        if lanes[0]:
            yield lanes[0]


class ResponseWriter:
    """One stream's results as responses."""

    def __init__(self, api: Api, asked: Asked) -> None:
        self._api = api
        self._asked = asked
        self._code = api.language_code(asked.language)
        self._spoken = False  # a final with text has been said
        self._active = False  # speech has begun, no final has ended it
        self._over = False  # the single utterance has been said: what still comes is not answered

    def say(self, result: Result) -> list[Any]:
        """The responses for one result of the engine; often none, as Google says nothing about silence."""
        if self._over:
            return []
        responses = []
        if self._asked.activity_events:
            responses += self._activity(result)
        if result.text and result.is_final:
            if self._asked.single_utterance:
                responses.append(self._event(self._api.end_of_utterance, result.end))
                self._over = True
            responses.append(self._final(result))
            self._spoken = True
        elif result.text and self._asked.interim:
            responses.append(self._interim(result))
        return responses

    def _activity(self, result: Result) -> list[Any]:
        events = []
        if not self._active and (result.text or not result.is_final):
            self._active = True
            events.append(self._event(self._api.activity_begin, result.start))
        if self._active and result.is_final:
            self._active = False
            events.append(self._event(self._api.activity_end, result.end))
        return events

    def _event(self, number: int, seconds: float) -> Any:
        response = self._api.response(speech_event_type=number)
        _set_time(getattr(response, self._api.event_time), seconds)
        return response

    def _final(self, result: Result) -> Any:
        response = self._api.response()
        said = self._add(response, result.text, result.end, first=True)
        said.is_final = True
        alternative = said.alternatives[0]
        confidence = _confidence(result)
        if confidence is not None:
            alternative.confidence = confidence
        if self._asked.word_times or self._asked.word_confidence:
            for word in result.words:
                self._add_word(alternative, word)
        return response

    def _interim(self, result: Result) -> Any:
        response = self._api.response()
        head, space, tail = result.text.rpartition(" ")
        if not head:
            self._add(response, tail, result.end, first=True).stability = TAIL_STABILITY
            return response
        end = result.words[-2].end if len(result.words) > 1 else result.end
        self._add(response, head, end, first=True).stability = HEAD_STABILITY
        self._add(response, space + tail, result.end, first=False).stability = TAIL_STABILITY
        return response

    def _add(self, response: Any, text: str, end: float, *, first: bool) -> Any:
        said = response.results.add(language_code=self._code)
        lead = " " if first and self._spoken and self._api.leading_spaces else ""
        said.alternatives.add(transcript=lead + text)
        _set_time(getattr(said, self._api.result_end), end)
        return said

    def _add_word(self, alternative: Any, word: Word) -> None:
        added = alternative.words.add(word=word.text)
        if self._asked.word_times:
            _set_time(getattr(added, self._api.word_start), word.start)
            _set_time(getattr(added, self._api.word_end), word.end)
        if self._asked.word_confidence and word.confidence is not None:
            added.confidence = word.confidence


def _confidence(result: Result) -> float | None:
    if result.confidence is not None:
        return result.confidence
    known = [word.confidence for word in result.words if word.confidence is not None]
    return sum(known) / len(known) if known else None


def _set_time(duration: Any, seconds: float) -> None:
    """Google gives times in steps of 10 ms."""
    hundredths = round(seconds * 100)
    duration.seconds = hundredths // 100
    duration.nanos = hundredths % 100 * 10_000_000
