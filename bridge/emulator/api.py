"""What differs between google.cloud.speech v1 and v2: message types, field names, statuses, what a config needs.

The messages are the library's raw protobuf ones: its wrappers would cost more than everything else here.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from google.cloud import speech_v1, speech_v2

from bridge.emulator.statuses import MALORDERED, USUAL_TEXTS, Code, Status, StreamEnded, invalid

MIN_RATE: Final = 8_000
MAX_RATE: Final = 48_000
_MULTI_LANGUAGE: Final = ("eu", "global", "us")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a stream's first message asks for. `sample_rate` in Hz; `location`: the recognizer's, None in v1."""

    language: str
    sample_rate: int
    location: str | None = None
    interim: bool = False
    activity_events: bool = False
    single_utterance: bool = False
    word_times: bool = False
    word_confidence: bool = False
    phrases: tuple[str, ...] = ()


class Api(ABC):
    """One version of the API."""

    name: ClassVar[str]
    service: ClassVar[str]
    request: ClassVar[Any]
    response: ClassVar[Any]

    # Field names
    result_end: ClassVar[str]
    word_start: ClassVar[str]
    word_end: ClassVar[str]
    event_time: ClassVar[str]
    audio_field: ClassVar[str]

    # Event numbers
    end_of_utterance: ClassVar[int]
    activity_begin: ClassVar[int]
    activity_end: ClassVar[int]

    # Limits and their statuses
    stream_seconds: ClassVar[float]
    stream_limit: ClassVar[Status]
    audio_timeout: ClassVar[Status]
    denied: ClassVar[Status]

    leading_spaces: ClassVar[bool]
    """Whether a transcript that follows another begins with a space."""

    def read(self, message: Any, location: str | None) -> Asked:
        """The config of a stream's first message. `location`: the only one served; None: any.

        Raises:
            StreamEnded: there is none, or it is wrong.
        """
        if message.WhichOneof("streaming_request") != "streaming_config":
            raise StreamEnded(MALORDERED)
        asked = self._read(message)
        if location is not None and asked.location not in (None, location):
            raise StreamEnded(
                invalid(f"Expected resource location to be {location}, but found {asked.location} in resource name.")
            )
        return asked

    @abstractmethod
    def _read(self, message: Any) -> Asked: ...

    @abstractmethod
    def language_code(self, language: str) -> str:
        """The language as the API's results name it."""

    @abstractmethod
    def bill(self, response: Any, seconds: int, request_id: int) -> None:
        """Write into the last response what the stream cost."""

    def usual(self, code: Code) -> Status:
        """A status with the text that this API usually gives it."""
        own = {status.code: status for status in (self.audio_timeout, self.stream_limit, self.denied)}
        return own.get(code) or Status(code, USUAL_TEXTS[code])


class V1(Api):
    """google.cloud.speech.v1."""

    name = "v1"
    service = "google.cloud.speech.v1.Speech"
    request = speech_v1.StreamingRecognizeRequest.pb()
    response = speech_v1.StreamingRecognizeResponse.pb()
    result_end = "result_end_time"
    word_start = "start_time"
    word_end = "end_time"
    event_time = "speech_event_time"
    audio_field = "audio_content"
    end_of_utterance = int(speech_v1.StreamingRecognizeResponse.SpeechEventType.END_OF_SINGLE_UTTERANCE)
    activity_begin = int(speech_v1.StreamingRecognizeResponse.SpeechEventType.SPEECH_ACTIVITY_BEGIN)
    activity_end = int(speech_v1.StreamingRecognizeResponse.SpeechEventType.SPEECH_ACTIVITY_END)
    stream_seconds = 305.0
    stream_limit = Status(Code.OUT_OF_RANGE, "Exceeded maximum allowed stream duration of 305 seconds.")
    audio_timeout = Status(
        Code.OUT_OF_RANGE,
        "Audio Timeout Error: Long duration elapsed without audio. Audio should be sent close to real time.",
    )
    denied = Status(Code.PERMISSION_DENIED, "The caller does not have permission")
    leading_spaces = True

    def _read(self, message: Any) -> Asked:
        streaming = message.streaming_config
        config = streaming.config
        if config.encoding != speech_v1.RecognitionConfig.AudioEncoding.LINEAR16:
            raise StreamEnded(invalid("Invalid recognition 'config': bad encoding. The emulator takes LINEAR16 only."))
        _check_audio(config.sample_rate_hertz, config.audio_channel_count)
        if not config.language_code:
            raise StreamEnded(invalid("Invalid recognition 'config': bad language code."))
        phrases = [phrase for context in config.speech_contexts for phrase in context.phrases]
        phrases += [phrase.value for group in config.adaptation.phrase_sets for phrase in group.phrases]
        return Asked(
            language=config.language_code,
            sample_rate=config.sample_rate_hertz,
            interim=streaming.interim_results,
            activity_events=streaming.enable_voice_activity_events,
            single_utterance=streaming.single_utterance,
            word_times=config.enable_word_time_offsets,
            word_confidence=config.enable_word_confidence,
            phrases=tuple(phrases),
        )

    def language_code(self, language: str) -> str:
        """In lower case, as v1 does."""
        return language.lower()

    def bill(self, response: Any, seconds: int, request_id: int) -> None:
        """`total_billed_time` and a number."""
        response.total_billed_time.seconds = seconds
        response.request_id = request_id


class V2(Api):
    """google.cloud.speech.v2."""

    name = "v2"
    service = "google.cloud.speech.v2.Speech"
    request = speech_v2.StreamingRecognizeRequest.pb()
    response = speech_v2.StreamingRecognizeResponse.pb()
    result_end = "result_end_offset"
    word_start = "start_offset"
    word_end = "end_offset"
    event_time = "speech_event_offset"
    audio_field = "audio"
    end_of_utterance = int(speech_v2.StreamingRecognizeResponse.SpeechEventType.END_OF_SINGLE_UTTERANCE)
    activity_begin = int(speech_v2.StreamingRecognizeResponse.SpeechEventType.SPEECH_ACTIVITY_BEGIN)
    activity_end = int(speech_v2.StreamingRecognizeResponse.SpeechEventType.SPEECH_ACTIVITY_END)
    stream_seconds = 300.0
    stream_limit = Status(Code.ABORTED, "Max duration of 5 minutes reached for stream.")
    audio_timeout = Status(Code.ABORTED, "Stream timed out after receiving no more client requests.")
    denied = Status(
        Code.PERMISSION_DENIED,
        "Permission 'speech.recognizers.recognize' denied on resource (or it may not exist).",
    )
    leading_spaces = False

    def _read(self, message: Any) -> Asked:
        named = re.fullmatch(r"projects/[^/]+/locations/([^/]+)/recognizers/([^/]+)", message.recognizer)
        if named is None:
            raise StreamEnded(invalid("Invalid resource field value in the request."))
        place, recognizer = named.groups()
        config = message.streaming_config.config
        # A recognizer with a name has a model and a language of its own; `_` has none.
        if recognizer == "_" and not config.language_codes:
            raise StreamEnded(invalid("Invalid recognition 'config': language_codes must be set."))
        if recognizer == "_" and not config.model:
            raise StreamEnded(invalid("Invalid recognition 'config': model must be set."))
        if len(config.language_codes) > 1 and place not in _MULTI_LANGUAGE:
            raise StreamEnded(
                invalid("Multiple language recognition is only available in the following locations: eu, global, us.")
            )
        decoding = config.explicit_decoding_config
        if decoding.encoding != speech_v2.ExplicitDecodingConfig.AudioEncoding.LINEAR16:
            raise StreamEnded(
                invalid(
                    "Invalid recognition 'config': the emulator takes an explicit_decoding_config with LINEAR16 only."
                )
            )
        _check_audio(decoding.sample_rate_hertz, decoding.audio_channel_count)
        features = message.streaming_config.streaming_features
        phrases = [
            phrase.value for group in config.adaptation.phrase_sets for phrase in group.inline_phrase_set.phrases
        ]
        return Asked(
            language=config.language_codes[0] if config.language_codes else "en-US",
            sample_rate=decoding.sample_rate_hertz,
            location=place,
            interim=features.interim_results,
            activity_events=features.enable_voice_activity_events,
            single_utterance=config.model == "latest_short",
            word_times=config.features.enable_word_time_offsets,
            word_confidence=config.features.enable_word_confidence,
            phrases=tuple(phrases),
        )

    def language_code(self, language: str) -> str:
        """As it was asked for."""
        return language

    def bill(self, response: Any, seconds: int, request_id: int) -> None:
        """The response's metadata."""
        response.metadata.total_billed_duration.seconds = seconds
        response.metadata.request_id = str(request_id)


def _check_audio(rate: int, channels: int) -> None:
    if not MIN_RATE <= rate <= MAX_RATE:
        raise StreamEnded(invalid("Invalid recognition 'config': bad sample rate hertz."))
    if channels > 1:
        raise StreamEnded(invalid("Invalid recognition 'config': the emulator takes one channel only."))


APIS: Final[tuple[Api, ...]] = (V1(), V2())
