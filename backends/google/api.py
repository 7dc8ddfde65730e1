"""The two versions of the API behind one face: clients, the messages of a stream, what its answers call things."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from google.api_core.gapic_v1.client_info import ClientInfo
from google.cloud import speech_v1, speech_v2
from google.cloud.speech_v1.services.speech import transports as transports_v1
from google.cloud.speech_v2.services.speech import transports as transports_v2

from backends.base import RecognitionConfig
from backends.google.options import GoogleOptions

LONGEST_MESSAGE: Final = 12_800
"""Bytes of audio in one message (0.4 s); Google refuses more than 25,600, and its documentation says 15 KB."""

METADATA: Final = (ClientInfo(user_agent="stt-bridge").to_grpc_metadata(),)  # type: ignore[no-untyped-call]
"""What the clients' own methods would send along."""


@dataclass(frozen=True, slots=True)
class Fields:
    """What a version calls the fields of its responses."""

    result_end: str
    word_start: str
    word_end: str
    event_time: str


@dataclass(frozen=True, slots=True)
class Api:
    """One version. `first_request` makes the message that opens a stream; the last argument is the project."""

    client: Any
    async_client: Any
    transport: Any
    async_transport: Any
    first_request: Callable[[GoogleOptions, RecognitionConfig, str], Any]
    fields: Fields
    _request: Any
    _audio_field: str

    def audio_request(self, chunk: bytes) -> Any:
        """The message for a chunk of audio. Wraps a plain message: proto-plus would copy it field by field."""
        return self._request.wrap(self._request.pb()(**{self._audio_field: chunk}))


def _v1_request(options: GoogleOptions, config: RecognitionConfig, _project: str) -> Any:
    recognition = speech_v1.RecognitionConfig(
        encoding=speech_v1.RecognitionConfig.AudioEncoding.LINEAR16,
        sample_rate_hertz=config.sample_rate,
        audio_channel_count=1,
        language_code=config.language,
        alternative_language_codes=_languages(options, config)[1:],
        model=options.model,
        **_features(options),
    )
    if config.phrases:
        phrases = speech_v1.PhraseSet(**_phrases(options, config))
        recognition.adaptation = speech_v1.SpeechAdaptation(phrase_sets=[phrases])
    return speech_v1.StreamingRecognizeRequest(
        streaming_config=speech_v1.StreamingRecognitionConfig(
            config=recognition,
            interim_results=config.partials,
            enable_voice_activity_events=options.voice_activity,
        )
    )


def _v2_request(options: GoogleOptions, config: RecognitionConfig, project: str) -> Any:
    features = speech_v2.RecognitionFeatures(**_features(options))
    if options.diarization:
        features.diarization_config = speech_v2.SpeakerDiarizationConfig(
            min_speaker_count=options.speakers_min or 1,
            max_speaker_count=options.speakers_max or options.speakers_min,
        )
    recognition = speech_v2.RecognitionConfig(
        explicit_decoding_config=speech_v2.ExplicitDecodingConfig(
            encoding=speech_v2.ExplicitDecodingConfig.AudioEncoding.LINEAR16,
            sample_rate_hertz=config.sample_rate,
            audio_channel_count=1,
        ),
        model=options.model,
        language_codes=_languages(options, config),
        features=features,
    )
    if config.phrases:
        phrases = speech_v2.PhraseSet(**_phrases(options, config))
        recognition.adaptation = speech_v2.SpeechAdaptation(
            phrase_sets=[speech_v2.SpeechAdaptation.AdaptationPhraseSet(inline_phrase_set=phrases)]
        )
    streaming = speech_v2.StreamingRecognitionFeatures(
        interim_results=config.partials, enable_voice_activity_events=options.voice_activity
    )
    if options.endpointing is not None:
        sensitivity = speech_v2.StreamingRecognitionFeatures.EndpointingSensitivity
        streaming.endpointing_sensitivity = getattr(
            sensitivity, f"ENDPOINTING_SENSITIVITY_{options.endpointing.upper()}"
        )
    return speech_v2.StreamingRecognizeRequest(
        recognizer=options.recognizer_name(project),
        streaming_config=speech_v2.StreamingRecognitionConfig(config=recognition, streaming_features=streaming),
    )


def _features(options: GoogleOptions) -> dict[str, bool]:
    """What both versions call alike."""
    return {
        "profanity_filter": options.profanity_filter,
        "enable_automatic_punctuation": options.punctuation,
        "enable_word_time_offsets": options.word_times,
        "enable_word_confidence": options.word_confidence,
    }


def _phrases(options: GoogleOptions, config: RecognitionConfig) -> dict[str, Any]:
    """The fields of a set of phrases."""
    boost = {} if options.phrase_boost is None else {"boost": options.phrase_boost}
    return {"phrases": [{"value": phrase} for phrase in config.phrases]} | boost


def _languages(options: GoogleOptions, config: RecognitionConfig) -> list[str]:
    """The session's language first, then the others, each once."""
    return list(dict.fromkeys((config.language, *options.languages)))


API: Final = {
    "v1": Api(
        client=speech_v1.SpeechClient,
        async_client=speech_v1.SpeechAsyncClient,
        transport=transports_v1.SpeechGrpcTransport,
        async_transport=transports_v1.SpeechGrpcAsyncIOTransport,
        first_request=_v1_request,
        fields=Fields("result_end_time", "start_time", "end_time", "speech_event_time"),
        _request=speech_v1.StreamingRecognizeRequest,
        _audio_field="audio_content",
    ),
    "v2": Api(
        client=speech_v2.SpeechClient,
        async_client=speech_v2.SpeechAsyncClient,
        transport=transports_v2.SpeechGrpcTransport,
        async_transport=transports_v2.SpeechGrpcAsyncIOTransport,
        first_request=_v2_request,
        fields=Fields("result_end_offset", "start_offset", "end_offset", "speech_event_offset"),
        _request=speech_v2.StreamingRecognizeRequest,
        _audio_field="audio",
    ),
}


def messages(chunk: bytes) -> list[bytes]:
    """A chunk as pieces that fit into a message each; an empty one gives none, for Google refuses empty messages."""
    if 0 < len(chunk) <= LONGEST_MESSAGE:
        return [chunk]
    return [chunk[i : i + LONGEST_MESSAGE] for i in range(0, len(chunk), LONGEST_MESSAGE)]
