"""Options of the Google engines: endpoints, what is refused at start-up and with which words."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from backends.google.options import Endpoint, GoogleOptions, refused_language
from bridge.settings import SettingsError, read_options


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"api": "v2", "project": "p"},
        {"api": "v2", "model": "chirp_2", "location": "europe-west4"},
        {"api": "v2", "model": "chirp_3", "location": "eu"},
        {"api": "v2", "model": "a-model-of-tomorrow", "location": "mars-north1"},
        {"location": "eu"},
        {"languages": ("de-DE", "fr-FR", "it-IT")},
        {"api": "v2", "location": "us", "languages": ("de-DE", "fr-FR", "it-IT", "es-ES")},
        {"api": "v2", "recognizer": "projects/p/locations/eu/recognizers/r", "location": "eu", "project": "p"},
        {"api": "v2", "speakers_min": 2, "speakers_max": 2, "endpointing": "supershort"},
        {"model": "medical_dictation"},
        {"phrase_boost": 20.0},
    ],
)
def test_allowed(given: dict[str, Any]) -> None:
    GoogleOptions(**given)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"model": "chirp"}, "MODEL: 'chirp' is not allowed: it does not stream: use chirp_2 or chirp_3"),
        ({"model": "chirp_2"}, "MODEL: 'chirp_2' is not allowed: only v2 has it: set STT_GOOGLE_API=v2"),
        ({"model": "long"}, "MODEL: 'long' is not allowed: only v2 has it"),
        ({"api": "v2", "model": "video"}, "MODEL: 'video' is not allowed: only v1 has it: set STT_GOOGLE_API=v1"),
        ({"api": "v2", "model": "chirp_2"}, "LOCATION: 'global' is not allowed: chirp_2 is served in us-central1, "),
        ({"api": "v2", "model": "chirp_3", "location": "us-central1"}, "chirp_3 is served in us, eu, asia-southeast1"),
        ({"location": "us-central1"}, "LOCATION: 'us-central1' is not allowed: v1 is served in global, us and eu"),
        ({"api": "v2", "location": "evil.example/"}, "LOCATION: 'evil.example/' is not allowed: it should be a region"),
        ({"recognizer": "mine"}, "RECOGNIZER: 'mine' is not allowed: v1 has none"),
        ({"api": "v2", "recognizer": "projects/p"}, "it should be an id, or projects/PROJECT/locations/"),
        (
            {"api": "v2", "recognizer": "projects/p/locations/eu/recognizers/r"},
            "it is not in global: set STT_GOOGLE_LOCATION=eu",
        ),
        (
            {"api": "v2", "recognizer": "projects/p/locations/eu/recognizers/r", "location": "eu", "project": "q"},
            "it is not in q: set STT_GOOGLE_PROJECT=p",
        ),
        ({"languages": ("a", "b", "c", "d")}, "LANGUAGES: 'a,b,c,d' is not allowed: v1 takes 3 further languages"),
        ({"api": "v2", "location": "us-east1", "languages": ("de",)}, "heard in global, us and eu only"),
        ({"speakers_max": 2}, "SPEAKERS_MAX: '2' is not allowed: v1 repeats all words"),
        ({"api": "v2", "speakers_min": 3, "speakers_max": 2}, "it is more than STT_GOOGLE_SPEAKERS_MAX=2"),
        ({"endpointing": "short"}, "ENDPOINTING: 'short' is not allowed: only v2 has it"),
        ({"phrase_boost": 20.5}, "PHRASE_BOOST: '20.5' is not allowed: it should be 20 at most"),
        ({"endpoint": "http://speech.example:80"}, "plaintext may not leave this machine: use https://"),
        ({"endpoint": "http://10.0.0.1:80"}, "plaintext may not leave this machine"),
        ({"endpoint": "http://localhost.example:80"}, "plaintext may not leave this machine"),
        ({"endpoint": "localhost"}, "it should name a port"),
        ({"endpoint": "ftp://localhost:1"}, "it should be host:port, or a URL"),
        ({"endpoint": "https://user@host"}, "it should be host:port, or a URL"),
        ({"endpoint": "https://host/v1"}, "it should be host:port, or a URL"),
        ({"endpoint": "localhost:http"}, "ENDPOINT: 'localhost:http' is not allowed"),
    ],
)
def test_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=r"^STT_GOOGLE_") as caught:
        GoogleOptions(**given)
    assert sentence in str(caught.value)


def test_every_mistake_is_named_at_once_and_reaches_the_operator() -> None:
    env = {"STT_GOOGLE_MODEL": "chirp", "STT_GOOGLE_LOCATION": "mars", "STT_GOOGLE_SPEAKERS_MAX": "2"}
    with pytest.raises(SettingsError) as caught:
        read_options("google", GoogleOptions, env)
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == [
        "STT_GOOGLE_MODEL",
        "STT_GOOGLE_LOCATION",
        "STT_GOOGLE_SPEAKERS_MAX",
    ]


@pytest.mark.parametrize(
    ("given", "endpoint"),
    [
        ({}, Endpoint("speech.googleapis.com:443")),
        ({"location": "eu"}, Endpoint("eu-speech.googleapis.com:443")),
        ({"api": "v2", "location": "us-central1"}, Endpoint("us-central1-speech.googleapis.com:443")),
        ({"endpoint": "localhost:8700"}, Endpoint("localhost:8700", plaintext=True, loopback=True)),
        ({"endpoint": "127.0.0.9:1"}, Endpoint("127.0.0.9:1", plaintext=True, loopback=True)),
        ({"endpoint": "http://[::1]:8700/"}, Endpoint("[::1]:8700", plaintext=True, loopback=True)),
        ({"endpoint": "https://localhost:8700"}, Endpoint("localhost:8700", loopback=True)),
        ({"endpoint": "speech.example"}, Endpoint("speech.example:443")),
        ({"endpoint": "https://10.1.2.3:8443"}, Endpoint("10.1.2.3:8443")),
    ],
)
def test_endpoints(given: dict[str, Any], endpoint: Endpoint) -> None:
    assert GoogleOptions(**given).address == endpoint


def test_the_hold_is_short_on_this_machine() -> None:
    assert GoogleOptions().hold == 0.25
    assert GoogleOptions(endpoint="localhost:1").hold == 0.01
    assert GoogleOptions(endpoint="localhost:1", hold_seconds=0).hold == 0


def test_the_recognizer_s_name() -> None:
    assert GoogleOptions(api="v2").recognizer_name("p") == "projects/p/locations/global/recognizers/_"
    full = "projects/p/locations/eu/recognizers/r"
    options = GoogleOptions(api="v2", location="eu", recognizer=full)
    assert options.recognizer_name("") == full
    assert options.recognizer_project == "p"


def test_medical_models_know_one_language() -> None:
    options = GoogleOptions(model="medical_conversation")
    assert refused_language(options, "en-US") is None
    assert "medical_conversation knows en-US only, not de-DE" in str(refused_language(options, "de-DE"))
    assert refused_language(GoogleOptions(), "de-DE") is None


def test_it_needs_no_sdk() -> None:
    code = "import sys; sys.modules.update(google=None, grpc=None); import backends.google.options"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)
