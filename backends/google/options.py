"""The settings of both Google engines, and the combinations that Google refuses. Imports no SDK.

What only start-up can tell is refused by `GoogleOptions` itself, with a sentence for each variable; what depends on a
session's language is refused by `refused_language`. Names of models that are not known here pass: Google adds models.
"""

from __future__ import annotations

import ipaddress
import re
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

_PREFIX: Final = "STT_GOOGLE_"

V1_MODELS: Final = frozenset({"command_and_search", "phone_call", "video", "default"})
V2_MODELS: Final = frozenset({"long", "short", "chirp_2", "chirp_3"})
CHIRP_LOCATIONS: Final = {
    "chirp_2": ("us-central1", "europe-west4", "asia-southeast1"),
    "chirp_3": ("us", "eu", "asia-southeast1", "asia-northeast1"),
}
MULTI_REGIONS: Final = ("global", "us", "eu")
"""The locations that v1 has, and the only ones where one stream may be in several languages."""
V1_EXTRA_LANGUAGES: Final = 3
MAX_BOOST: Final = 20.0
_RECOGNIZER: Final = re.compile(r"projects/([^/]+)/locations/([^/]+)/recognizers/([^/]+)")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the API is: `target` as gRPC names it (host:port). A loopback endpoint is never given credentials."""

    target: str
    plaintext: bool = False
    loopback: bool = False


@dataclass(frozen=True, slots=True)
class GoogleOptions:
    """Settings of `google` and `google-threads`. Durations in seconds.

    Raises:
        ValueError: a combination that Google refuses; one line for each, naming the variable and what to change.
    """

    api: Literal["v1", "v2"] = field(default="v1", metadata={"help": "Version of the API."})
    project: str | None = field(
        default=None, metadata={"help": "Google Cloud project (v2); unset: the one that the credentials name."}
    )
    location: str = field(default="global", metadata={"help": "Region that recognizes, such as `eu` or `us-central1`."})
    recognizer: str = field(
        default="_", metadata={"help": "Recognizer of v2: its id or full name; `_` is the one without settings."}
    )
    model: str = field(
        default="latest_long", metadata={"help": "Model, such as `latest_long`, `telephony`, `chirp_2`."}
    )
    endpoint: str | None = field(
        default=None,
        metadata={"help": "Server to call instead of Google's: `host:port` or a URL; plaintext only to this machine."},
    )
    credentials: Path | None = field(
        default=None, metadata={"help": "Credentials file (JSON); unset: Application Default Credentials."}
    )
    languages: tuple[str, ...] = field(
        default=(), metadata={"help": "Further languages (BCP 47) that may be spoken beside the session's."}
    )
    punctuation: bool = field(default=True, metadata={"help": "Punctuate and capitalize."})
    profanity_filter: bool = field(default=False, metadata={"help": "Replace swear words by asterisks."})
    word_times: bool = field(default=True, metadata={"help": "Ask for the time of each word."})
    word_confidence: bool = field(default=False, metadata={"help": "Ask for the confidence of each word."})
    phrase_boost: float | None = field(
        default=None,
        metadata={"help": "How much the client's phrases are favoured, 0 to 20; unset: Google decides.", "min": 0},
    )
    speakers_min: int | None = field(
        default=None, metadata={"help": "Tell speakers apart (v2): at least so many.", "min": 1}
    )
    speakers_max: int | None = field(
        default=None, metadata={"help": "Tell speakers apart (v2): at most so many.", "min": 1}
    )
    voice_activity: bool = field(
        default=False, metadata={"help": "Ask for events that tell when speech begins, before its words are known."}
    )
    endpointing: Literal["standard", "short", "supershort"] | None = field(
        default=None, metadata={"help": "How soon an utterance ends (v2); unset: Google's default."}
    )
    stream_seconds: float = field(
        default=300.0, metadata={"help": "Longest stream that Google allows; replaced before that.", "min": 1}
    )
    idle_seconds: float = field(
        default=4.0, metadata={"help": "A stream without audio for so long is closed until there is some.", "min": 0.1}
    )
    answer_seconds: float = field(
        default=8.0, metadata={"help": "A stream that leaves speech unanswered for so long is replaced.", "min": 0.1}
    )
    hold_seconds: float | None = field(
        default=None,
        metadata={
            "help": "Wait for a refusal before the first audio (`google` only); unset: 0.25, or 0.01 to this machine.",
            "min": 0,
        },
    )
    replay_speed: float = field(
        default=2.0, metadata={"help": "Fastest that audio is sent, in multiples of real time; 0: any speed.", "min": 0}
    )
    max_streams: int = field(default=300, metadata={"help": "Quota: streams open at once.", "min": 1})
    requests_per_minute: int = field(
        default=3_000,
        metadata={"help": "Quota: streams opened in a minute; new sessions may use 90 % of it.", "min": 1},
    )
    streams_per_connection: int = field(
        default=80, metadata={"help": "Streams that share one connection; servers allow 100.", "min": 1}
    )

    def __post_init__(self) -> None:
        if refusals := list(_refusals(self)):
            raise ValueError("\n".join(refusals))

    @property
    def address(self) -> Endpoint:
        """The endpoint: the one given, or Google's for the location."""
        if self.endpoint is not None:
            return _endpoint(self.endpoint)
        prefix = "" if self.location == "global" else f"{self.location}-"
        return Endpoint(f"{prefix}speech.googleapis.com:443")

    @property
    def hold(self) -> float:
        """How long a stream waits between its configuration and its first audio."""
        if self.hold_seconds is not None:
            return self.hold_seconds
        return 0.01 if self.address.loopback else 0.25

    @property
    def diarization(self) -> bool:
        """Whether speakers are told apart."""
        return self.speakers_min is not None or self.speakers_max is not None

    def recognizer_name(self, project: str) -> str:
        """The full name of the recognizer that v2 is asked for."""
        if "/" in self.recognizer:
            return self.recognizer
        return f"projects/{project}/locations/{self.location}/recognizers/{self.recognizer}"

    @property
    def recognizer_project(self) -> str | None:
        """The project that the recognizer's full name holds, if it is one."""
        named = _RECOGNIZER.fullmatch(self.recognizer)
        return named[1] if named else None


def refused_language(options: GoogleOptions, language: str) -> str | None:
    """Why the model cannot hear this language; None where it can, or where only Google knows."""
    if options.model.startswith("medical_") and language.lower() != "en-us":
        return f"the model {options.model} knows en-US only, not {language}"
    return None


def _refusals(options: GoogleOptions) -> Iterator[str]:
    """Each thing that is wrong: the variable, what was given, what to change."""
    yield from _refused_model(options)
    yield from _refused_place(options)
    yield from _refused_features(options)
    if options.endpoint is not None:
        try:
            _endpoint(options.endpoint)
        except ValueError as exc:
            yield _sentence("endpoint", options.endpoint, str(exc))


def _refused_model(options: GoogleOptions) -> Iterator[str]:
    model = options.model
    if model == "chirp":
        yield _sentence("model", model, "it does not stream: use chirp_2 or chirp_3 with STT_GOOGLE_API=v2")
    elif options.api == "v1" and model in V2_MODELS:
        yield _sentence("model", model, "only v2 has it: set STT_GOOGLE_API=v2, or use latest_long")
    elif options.api == "v2" and model in V1_MODELS:
        yield _sentence("model", model, "only v1 has it: set STT_GOOGLE_API=v1, or use long, short or telephony")
    elif model in CHIRP_LOCATIONS and options.location not in CHIRP_LOCATIONS[model]:
        yield _sentence(
            "location", options.location, f"{model} is served in {', '.join(CHIRP_LOCATIONS[model])}: choose one"
        )


def _refused_place(options: GoogleOptions) -> Iterator[str]:
    location, recognizer = options.location, options.recognizer
    if not re.fullmatch(r"[a-z][a-z0-9-]*", location):
        yield _sentence("location", location, "it should be a region such as global, eu or us-central1")
    if options.api == "v1":
        if location not in MULTI_REGIONS:
            yield _sentence("location", location, "v1 is served in global, us and eu: set STT_GOOGLE_API=v2")
        if recognizer != "_":
            yield _sentence("recognizer", recognizer, "v1 has none: set STT_GOOGLE_API=v2, or leave it out")
        return
    if "/" not in recognizer:
        return
    named = _RECOGNIZER.fullmatch(recognizer)
    if named is None:
        yield _sentence(
            "recognizer", recognizer, "it should be an id, or projects/PROJECT/locations/LOCATION/recognizers/ID"
        )
        return
    if named[2] != location:
        yield _sentence("recognizer", recognizer, f"it is not in {location}: set STT_GOOGLE_LOCATION={named[2]}")
    if options.project not in (None, named[1]):
        yield _sentence("recognizer", recognizer, f"it is not in {options.project}: set STT_GOOGLE_PROJECT={named[1]}")


def _refused_features(options: GoogleOptions) -> Iterator[str]:
    languages = ",".join(options.languages)
    if languages and options.location not in MULTI_REGIONS:
        yield _sentence("languages", languages, "several languages are heard in global, us and eu only")
    if options.api == "v1" and len(options.languages) > V1_EXTRA_LANGUAGES:
        yield _sentence("languages", languages, f"v1 takes {V1_EXTRA_LANGUAGES} further languages at most")
    if options.api == "v1" and options.endpointing is not None:
        yield _sentence("endpointing", options.endpointing, "only v2 has it: set STT_GOOGLE_API=v2, or leave it out")
    least, most = options.speakers_min, options.speakers_max
    if options.api == "v1" and options.diarization:
        name = "speakers_max" if most is not None else "speakers_min"
        yield _sentence(
            name,
            most if most is not None else least,
            "v1 repeats all words when it tells speakers apart: set STT_GOOGLE_API=v2, or leave it out",
        )
    if least is not None and most is not None and least > most:
        yield _sentence("speakers_min", least, f"it is more than STT_GOOGLE_SPEAKERS_MAX={most}")
    if options.phrase_boost is not None and options.phrase_boost > MAX_BOOST:
        yield _sentence("phrase_boost", options.phrase_boost, f"it should be {MAX_BOOST:g} at most")


def _sentence(name: str, given: object, why: str) -> str:
    return f"{_PREFIX}{name.upper()}: '{given}' is not allowed: {why}"


def _endpoint(text: str) -> Endpoint:
    """Read `host:port`, `http://host:port` or `https://host`; raises ValueError where plaintext would leave here."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "", text
    url = urllib.parse.urlsplit(f"//{rest}")
    if scheme not in ("", "http", "https") or not url.hostname or url.path.strip("/") or url.query or "@" in rest:
        raise ValueError("it should be host:port, or a URL that begins with http:// or https://")
    loopback = _is_loopback(url.hostname)
    plaintext = scheme == "http" or (scheme == "" and loopback)
    if plaintext and not loopback:
        raise ValueError("plaintext may not leave this machine: use https://")
    if plaintext and url.port is None:
        raise ValueError("it should name a port")
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    return Endpoint(f"{host}:{url.port or 443}", plaintext, loopback)


def _is_loopback(host: str) -> bool:
    """As `bridge.security.auth.is_loopback`, which an engine may not import."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
