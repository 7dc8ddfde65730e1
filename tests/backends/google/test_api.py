"""The messages of a stream, for both versions of the API."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import json_format

from backends.base import RecognitionConfig
from backends.google.api import API, LONGEST_MESSAGE, METADATA, messages
from backends.google.options import GoogleOptions


def first(config: RecognitionConfig | None = None, **options: Any) -> dict[str, Any]:
    """The first message as JSON."""
    read = GoogleOptions(**options)
    request = API[read.api].first_request(read, config or RecognitionConfig(), "my-project")
    found: dict[str, Any] = json_format.MessageToDict(type(request).pb(request))
    return found


def test_v1_by_default() -> None:
    assert first() == {
        "streamingConfig": {
            "config": {
                "encoding": "LINEAR16",
                "sampleRateHertz": 16_000,
                "audioChannelCount": 1,
                "languageCode": "en-US",
                "model": "latest_long",
                "enableAutomaticPunctuation": True,
                "enableWordTimeOffsets": True,
            },
            "interimResults": True,
        }
    }


def test_v2_by_default() -> None:
    assert first(api="v2") == {
        "recognizer": "projects/my-project/locations/global/recognizers/_",
        "streamingConfig": {
            "config": {
                "explicitDecodingConfig": {"encoding": "LINEAR16", "sampleRateHertz": 16_000, "audioChannelCount": 1},
                "model": "latest_long",
                "languageCodes": ["en-US"],
                "features": {"enableAutomaticPunctuation": True, "enableWordTimeOffsets": True},
            },
            "streamingFeatures": {"interimResults": True},
        },
    }


def test_v1_with_everything() -> None:
    config = RecognitionConfig(language="de-DE", partials=False, words=False, phrases=("Müggelsee", "ten of clubs"))
    sent = first(
        config,
        model="telephony",
        languages=("en-US", "de-DE"),
        punctuation=False,
        profanity_filter=True,
        word_confidence=True,
        phrase_boost=12.0,
        voice_activity=True,
    )["streamingConfig"]
    assert sent == {
        "config": {
            "encoding": "LINEAR16",
            "sampleRateHertz": 16_000,
            "audioChannelCount": 1,
            "languageCode": "de-DE",
            "alternativeLanguageCodes": ["en-US"],
            "model": "telephony",
            "profanityFilter": True,
            "enableWordTimeOffsets": True,  # though the client wants no words: finals end where the last one does
            "enableWordConfidence": True,
            "adaptation": {
                "phraseSets": [{"phrases": [{"value": "Müggelsee"}, {"value": "ten of clubs"}], "boost": 12.0}]
            },
        },
        "enableVoiceActivityEvents": True,
    }


def test_v2_with_everything() -> None:
    sent = first(
        RecognitionConfig(phrases=("ten of clubs",), partials=False),
        api="v2",
        location="us",
        recognizer="mine",
        model="chirp_3",
        languages=("fr-FR",),
        word_times=False,
        speakers_max=4,
        endpointing="short",
        voice_activity=True,
    )
    assert sent["recognizer"] == "projects/my-project/locations/us/recognizers/mine"
    config = sent["streamingConfig"]["config"]
    assert config["languageCodes"] == ["en-US", "fr-FR"]
    assert config["features"] == {
        "enableAutomaticPunctuation": True,
        "diarizationConfig": {"minSpeakerCount": 1, "maxSpeakerCount": 4},
    }
    assert config["adaptation"] == {"phraseSets": [{"inlinePhraseSet": {"phrases": [{"value": "ten of clubs"}]}}]}
    assert sent["streamingConfig"]["streamingFeatures"] == {
        "enableVoiceActivityEvents": True,
        "endpointingSensitivity": "ENDPOINTING_SENSITIVITY_SHORT",
    }


@pytest.mark.parametrize(("version", "field"), [("v1", "audio_content"), ("v2", "audio")])
def test_an_audio_message_holds_audio_alone(version: str, field: str) -> None:
    request = API[version].audio_request(b"\1\2")
    plain = type(request).pb(request)
    assert [(descriptor.name, value) for descriptor, value in plain.ListFields()] == [(field, b"\1\2")]


@pytest.mark.parametrize("size", [2, LONGEST_MESSAGE, LONGEST_MESSAGE + 2, 100_000])
def test_chunks_are_cut_to_what_google_takes(size: int) -> None:
    chunk = bytes(range(256)) * 400
    pieces = messages(chunk[:size])
    assert b"".join(pieces) == chunk[:size]
    assert max(map(len, pieces)) <= 12_800
    assert all(len(piece) % 2 == 0 for piece in pieces)


def test_an_empty_chunk_is_no_message() -> None:
    assert messages(b"") == []


def test_the_library_names_itself() -> None:
    ((name, value),) = METADATA
    assert name == "x-goog-api-client"
    assert "stt-bridge" in value
