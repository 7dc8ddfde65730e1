"""Every setting, read once from the environment and `.env` into one frozen object.

A field `max_sessions` is the variable `STT_MAX_SESSIONS`. Variables win over `.env`, an empty value counts as
unset. The engines' own settings (`STT_<ENGINE>_<FIELD>`) are described by each engine's `Options` and read by
`read_options` with the same rules.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import socket
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar

import dotenv
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from bridge.security.addresses import parse_network
from bridge.security.rates import parse_rates
from bridge.security.rights import parse_scoped_key

PREFIX: Final = "STT_"


class SettingsError(Exception):
    """One sentence per bad variable: its name, what was given, what is allowed."""


def _comma_separated(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _printable(keys: tuple[str, ...]) -> tuple[str, ...]:
    if not all(key.isascii() and key.isprintable() and " " not in key for key in keys):
        raise ValueError("should hold printable ASCII without spaces: a header can carry nothing else")
    return keys


def _list_of_names(value: str) -> str:
    listed = names(value)
    if not all(listed) or len(set(listed)) < len(listed):
        raise ValueError("should be a name, or different names separated by commas")
    return value


def names(value: str) -> tuple[str, ...]:
    """What `STT_BACKEND` lists."""
    return tuple(part.strip() for part in value.split(","))


def _scoped(keys: tuple[str, ...]) -> tuple[str, ...]:
    for key in keys:
        parse_scoped_key(key)
    return keys


def _networks(texts: tuple[str, ...]) -> tuple[str, ...]:
    for text in texts:
        parse_network(text)
    return texts


def _rates(text: str) -> str:
    if text != "off":
        parse_rates(text)
    return text


CommaSeparated = Annotated[tuple[str, ...], BeforeValidator(_comma_separated)]
Seconds = Annotated[float, Field(gt=0, le=7 * 86_400, allow_inf_nan=False)]

_SECRET: Final[dict[str, JsonValue]] = {"secret": True}


class Settings(BaseModel):
    """The server's settings. Durations are in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # What serves
    backend: Annotated[str, Field(min_length=1), AfterValidator(_list_of_names)] = Field(
        "pocketsphinx",
        description="The engine: a name that `stt-bridge backends` lists. Or several, separated by commas, the "
        "preferred first: the next one takes over where one fails.",
    )
    language: Annotated[str, Field(min_length=1, max_length=35)] = Field(
        "en-US", description="Language (BCP 47) of sessions that name none; `auto`: the engine detects it, if it can."
    )

    # What it hears
    vad: Literal["auto", "silero", "webrtc", "off"] = Field(
        "auto", description="Voice activity detector; `auto`: Silero's where `stt-bridge[silero]` is installed."
    )
    gate: Literal["auto", "on", "off"] = Field(
        "auto", description="Keep silence from the engine; `auto`: from those that count every second."
    )
    gate_seconds: float = Field(2, ge=0.1, le=60, description="Silence after which the gate shuts.")
    speech_threshold: float = Field(0.2, ge=0, le=1, description="Probability from which sound is speech.")
    endpoint_silence_seconds: float = Field(
        0.8, ge=0.1, le=10, description="Silence that ends an utterance where voice activity decides that."
    )
    speech_padding_seconds: float = Field(
        1, ge=0, le=2, description="Audio before speech that the gate lets through, too."
    )
    denoise: bool = Field(False, description="Suppress noise in sessions that do not choose; it often does harm.")

    # Where it listens
    host: str = Field("127.0.0.1", description="Address to listen on. Anything but loopback needs an API key.")
    port: int = Field(8000, ge=0, le=65_535, description="Port to listen on; 0 picks a free one.")
    processes: int = Field(
        1, ge=1, le=64, description="Processes that serve the port together, for as many cores (Linux)."
    )
    tls_cert: Path | None = Field(None, description="Certificate chain (PEM) to serve https and wss.")
    tls_key: Path | None = Field(None, description="Private key (PEM) of the certificate.")

    # Who may connect
    api_keys: Annotated[CommaSeparated, AfterValidator(_printable)] = Field(
        (), description="Accepted API keys, separated by commas.", json_schema_extra=_SECRET
    )
    admin_keys: Annotated[CommaSeparated, AfterValidator(_printable)] = Field(
        (),
        description="Keys that may change the server (`/v1/admin`); unset: nobody may.",
        json_schema_extra=_SECRET,
    )
    scoped_keys: Annotated[CommaSeparated, AfterValidator(_printable), AfterValidator(_scoped)] = Field(
        (),
        description="Keys for a part of it: `RIGHTS=KEY` or `RIGHTS@SESSION=KEY`, as `send+receive@room-*=KEY`.",
        json_schema_extra=_SECRET,
    )
    jwt_secret: Annotated[str, Field(min_length=32)] | None = Field(
        None, description="Accept tokens (JWT) that this secret signed (HS256).", json_schema_extra=_SECRET
    )
    jwt_key_file: Path | None = Field(
        None, description="Accept tokens (JWT) that the owner of this public key signed (PEM; RSA, ECDSA, Ed25519)."
    )
    jwt_audience: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="This server's name in tokens (`aud`); unset: tokens name none."
    )
    jwt_jwks: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="Accept tokens (JWT) that one of these public keys signed: a JWKS, as a file or an https URL.",
        json_schema_extra=_SECRET,  # it may hold a password
    )
    jwt_issuer: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="Who makes the tokens (`iss`); unset: whoever has the key."
    )
    insecure: bool = Field(False, description="Allow a non-loopback address without an API key.")
    allowed_origins: CommaSeparated = Field(
        (), description="Web origins (https://app.example) that may connect without a key, separated by commas."
    )
    trusted_proxies: Annotated[CommaSeparated, AfterValidator(_networks)] = Field(
        (),
        description="Addresses or networks (`10.0.0.0/8`) of proxies whose `X-Forwarded-For` is believed, separated by "
        "commas.",
    )

    # How much each may use
    rate_limit: Annotated[str, AfterValidator(_rates)] | None = Field(
        None, description="Requests and connections of each key or user: `600/minute`, or `20/second;600/minute`."
    )
    address_rate_limit: Annotated[str, AfterValidator(_rates)] | None = Field(
        None, description="The same of each address (IPv6: of each network of 64 bits), whoever it is."
    )
    failure_rate_limit: Annotated[str, AfterValidator(_rates)] = Field(
        "30/minute",
        description="Wrong keys and tokens of each address, before others of it are not looked at; or `off`.",
    )
    key_sessions: int | None = Field(
        None, ge=1, le=100_000, description="Sessions that each key or user may have open at once, at one server."
    )
    key_uploads: int = Field(
        250, ge=1, le=100_000, description="Uploads that each key or user may have begun and not completed."
    )
    key_audio_minutes: float | None = Field(
        None,
        gt=0,
        le=1e9,
        allow_inf_nan=False,
        description="Minutes of audio that each key or user may send a day (UTC).",
    )

    # Other servers' protocols
    asr_room_encoding: Literal["pcm_f32le", "pcm_s16le"] = Field(
        "pcm_f32le", description="What senders of `/ws/asr/SESSION` send where their address does not say `encoding=`."
    )

    # Limits on clients
    max_sessions: int = Field(2_000, ge=1, le=100_000, description="Sessions open at once.")
    max_connections: int = Field(
        8_192, ge=1, le=1_000_000, description="Streaming connections open at once, with or without a session."
    )
    max_file_bytes: int = Field(
        2_147_483_648, ge=1_024, le=2**50, description="Largest file, or whole upload, that is transcribed."
    )
    max_file_seconds: Seconds = Field(14_400, description="Longest audio of one file.")
    max_files: int = Field(
        256, ge=1, le=100_000, description="HTTP requests with a body that are read or transcribed at once."
    )
    max_uploads: int = Field(1_000, ge=1, le=100_000, description="Uploads that are begun and not complete.")
    max_session_seconds: Seconds = Field(14_400, description="Longest session.")
    idle_seconds: Seconds = Field(60, description="A session without audio or a message for so long ends.")
    start_seconds: Seconds = Field(10, description="Time a connection has to send `start`.")
    max_message_bytes: int = Field(1_048_576, ge=1_024, le=67_108_864, description="Largest WebSocket message.")
    max_bad_messages: int = Field(20, ge=1, le=10_000, description="Bad messages before a connection is closed.")
    ping_seconds: Seconds = Field(30, description="Interval of WebSocket pings.")
    ping_timeout_seconds: Seconds = Field(30, description="A peer that answers no ping for so long is dead.")
    send_seconds: Seconds = Field(10, description="A receiver that takes no event for so long is disconnected.")
    outbox_events: int = Field(
        256, ge=8, le=65_536, description="Events waiting for one receiver before it is disconnected."
    )

    # The session
    queue_seconds: Seconds = Field(
        5, description="Audio waiting for the backend before the client is read more slowly."
    )
    replay_seconds: Seconds = Field(90, description="Audio without a final that is kept for a replay.")
    ack_seconds: Seconds = Field(
        1,
        description="Interval of `ack` messages while audio comes; finals bring one, partials somewhat sooner.",
    )
    stall_seconds: Seconds = Field(
        30, description="A backend that leaves waiting audio untouched for so long has stalled."
    )
    reopen_seconds: Seconds = Field(
        60, description="A session fails when the backend streams it opens have made no progress for so long."
    )
    stop_seconds: Seconds = Field(120, description="Time to finalize what is left after `stop`.")
    resume_seconds: float = Field(
        60,
        ge=0,
        le=86_400,
        description="Time for a sender whose connection broke to come back; 0: its session ends at once.",
    )
    wait_seconds: Seconds = Field(600, description="Time that receivers wait for a session's sender.")
    shutdown_seconds: Seconds = Field(4, description="Time for sessions to finish when the server stops.")
    breaker_share: float = Field(
        0.05, gt=0, le=1, description="Share of a backend's streams whose failure keeps new sessions from it."
    )
    breaker_window_seconds: Seconds = Field(30, description="Time over which that share is taken.")
    breaker_streams: int = Field(20, ge=1, le=100_000, description="Fewer streams that ended in that time are too few.")
    breaker_failures: int = Field(
        5, ge=1, le=10_000, description="Streams that fail in a row, without a final, and do the same."
    )
    breaker_seconds: Seconds = Field(60, description="Time after which one session tries such a backend again.")
    threads: int = Field(64, ge=1, le=4_096, description="Threads for backends that block: one per stream.")

    # What it keeps
    event_log: Annotated[str, Field(min_length=1)] = Field(
        "sqlite:",
        description="Where sessions' events are kept: `sqlite:` (a file in the user's state folder), `sqlite:PATH`, "
        "`sqlite::memory:`, `redis://HOST` (for several servers; also `rediss://`, `unix://`), or `off`.",
        json_schema_extra=_SECRET,  # it may hold a password
    )
    retention_seconds: float = Field(
        3_600,
        ge=60,
        le=604_800,
        description="Time after a session's end, or its last sign of life, until it is forgotten.",
    )

    store: Annotated[str, Field(min_length=1)] = Field(
        "sqlite:",
        description="Where jobs are kept: `sqlite:` (a file in the user's state folder; workers in this process), "
        "`sqlite:PATH`, `sqlite::memory:`, or `redis://HOST` (for any number of servers and workers).",
        json_schema_extra=_SECRET,
    )
    uploads: str | None = Field(
        None,
        description="Where files lie until they are transcribed: a folder (unset: in the user's state folder), or an "
        "address that fsspec knows, as `s3://BUCKET/PREFIX`, which all servers and workers reach.",
    )
    upload_seconds: float = Field(
        86_400, ge=60, le=2_592_000, description="Time after which an upload that nobody goes on with is deleted."
    )
    job_retention_seconds: float = Field(
        604_800, ge=60, le=31_536_000, description="Time for which a finished job and its result are kept."
    )
    job_workers: int = Field(2, ge=0, le=1_024, description="Jobs worked on at once in one process; 0: none.")
    job_attempts: int = Field(
        10, ge=1, le=1_000, description="Times that a job is begun again after its worker died, before it fails."
    )
    job_lease_seconds: float = Field(
        15, ge=1, le=3_600, description="A worker that says nothing for so long is gone, and another takes its jobs."
    )
    max_jobs: int = Field(10_000, ge=1, le=10_000_000, description="Jobs that wait for a worker.")
    webhook_secret: Annotated[str, Field(min_length=24)] | None = Field(
        None,
        description="Signs webhooks, by Standard Webhooks: any text, or `whsec_` and base64. Unset: none are sent.",
        json_schema_extra=_SECRET,
    )
    webhook_hosts: CommaSeparated = Field(
        (), description="Hosts that webhooks may go to though they are not on the public network, separated by commas."
    )

    # What operators see
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level logged.")
    log_format: Literal["json", "text"] = Field("json", description="Log lines for machines or for people.")
    otel_endpoint: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = Field(
        None,
        description="Send traces to this collector (OpenTelemetry, OTLP over HTTP), as `http://127.0.0.1:4318`; unset: "
        "to the one that `OTEL_EXPORTER_OTLP_ENDPOINT` names, if it does.",
        json_schema_extra=_SECRET,  # it may hold a password
    )

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("STT_TLS_CERT and STT_TLS_KEY belong together: set both or neither")
        files = (self.tls_cert, self.tls_key, self.jwt_key_file)
        for name, path in zip(("STT_TLS_CERT", "STT_TLS_KEY", "STT_JWT_KEY_FILE"), files, strict=True):
            if path is not None and not path.is_file():
                raise ValueError(f"{name}: {str(path)!r} is not allowed: it should be a file that exists")
        return self

    @model_validator(mode="after")
    def _admins_have_keys_of_their_own(self) -> Self:
        if not set(self.api_keys).isdisjoint(self.admin_keys):
            raise ValueError(
                "STT_ADMIN_KEYS: a key of STT_API_KEYS is not allowed: whoever may stream could change the server"
            )
        if not {parse_scoped_key(key)[0] for key in self.scoped_keys}.isdisjoint(self.api_keys + self.admin_keys):
            raise ValueError(
                "STT_SCOPED_KEYS: a key of STT_API_KEYS or STT_ADMIN_KEYS is not allowed: it may do more than is said"
            )
        return self

    @model_validator(mode="after")
    def _one_key_signs_tokens(self) -> Self:
        keys = {"STT_JWT_SECRET": self.jwt_secret, "STT_JWT_KEY_FILE": self.jwt_key_file, "STT_JWT_JWKS": self.jwt_jwks}
        given = [name for name, key in keys.items() if key is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other: set one of them")
        for name, claim in (("STT_JWT_AUDIENCE", self.jwt_audience), ("STT_JWT_ISSUER", self.jwt_issuer)):
            if claim is not None and not given:
                raise ValueError(f"{name} needs {', '.join(keys)}".replace(", STT_JWT_JWKS", " or STT_JWT_JWKS"))
        return self

    @model_validator(mode="after")
    def _processes_know_of_each_other(self) -> Self:
        if self.processes == 1:
            return self
        if sys.platform != "linux" or not hasattr(socket, "SO_REUSEPORT"):
            raise ValueError(
                f"STT_PROCESSES: '{self.processes}' is not allowed: it should be 1 where the system does not share out "
                "a port's connections among processes, as Linux does"
            )
        for name, value, what in (
            ("STT_EVENT_LOG", self.event_log, "a sender that comes back to another process is not known there"),
            ("STT_STORE", self.store, "another process does not know of a job"),
        ):
            if value in ("off", "sqlite::memory:"):
                raise ValueError(
                    f"{name}: '{value}' is not allowed: it should be a file or Redis where STT_PROCESSES is above 1, "
                    f"or {what}"
                )
        if self.admin_keys:
            raise ValueError(
                "STT_ADMIN_KEYS: the value given is not allowed: it should be empty where STT_PROCESSES is above 1, or "
                "a model would be changed in one process only"
            )
        return self

    def share(self) -> Self:
        """One process's settings: of what all of them together may have open, its part, rounded up."""
        shared = ("max_sessions", "max_connections", "max_files")
        return self.model_copy(update={name: math.ceil(getattr(self, name) / self.processes) for name in shared})

    @property
    def guarded(self) -> bool:
        """Whether clients need a key or a token."""
        return bool(self.api_keys or self.scoped_keys or self.jwt_secret or self.jwt_key_file or self.jwt_jwks)

    @property
    def backends(self) -> tuple[str, ...]:
        """The engines' names, the preferred first."""
        return names(self.backend)

    @classmethod
    def load(cls, env: Mapping[str, str] | None = None, env_file: str | Path | None = ".env", **overrides: Any) -> Self:
        """Read the settings; `overrides` (by field name, None ignored) win over everything.

        Raises:
            SettingsError: naming every variable that is wrong.
        """
        merged = environment(env, env_file)
        given = {name: merged[PREFIX + name.upper()] for name in cls.model_fields if PREFIX + name.upper() in merged}
        given |= {name: value for name, value in overrides.items() if value is not None}
        secrets = {n for n, f in cls.model_fields.items() if f.json_schema_extra == _SECRET}
        try:
            return cls.model_validate(given)
        except ValidationError as exc:
            raise SettingsError(_sentences(exc, PREFIX, secrets)) from None


def environment(env: Mapping[str, str] | None = None, env_file: str | Path | None = ".env") -> dict[str, str]:
    """The variables of `env_file` and `env` (default: the process's), without those that are empty."""
    from_file = dotenv.dotenv_values(env_file) if env_file is not None else {}
    merged = {**from_file, **(os.environ if env is None else env)}
    return {name: value for name, value in merged.items() if value is not None and value != ""}


T = TypeVar("T")


def read_options(engine: str, options: type[T] | None, env: Mapping[str, str]) -> T | None:
    """An engine's `Options`, from the variables `STT_<ENGINE>_<FIELD>` of `env`.

    Raises:
        SettingsError: naming every variable that is wrong.
    """
    if options is None:
        return None
    prefix = option_prefix(engine)
    fields = dataclasses.fields(options)  # type: ignore[arg-type]
    given: dict[str, object] = {}
    hints = typing.get_type_hints(options)
    for field in fields:
        value = env.get(prefix + field.name.upper())
        if value is not None:
            given[field.name] = _comma_separated(value) if _is_tuple(hints[field.name]) else value
    secrets = {f.name for f in fields if f.metadata.get("secret")}
    try:
        read = TypeAdapter(options).validate_python(given)
    except ValidationError as exc:
        raise SettingsError(_sentences(exc, prefix, secrets)) from None
    for field in fields:
        least, value = field.metadata.get("min"), getattr(read, field.name)
        if least is not None and value is not None and value < least:
            raise SettingsError(
                f"{prefix}{field.name.upper()}: '{value}' is not allowed: it should be at least {least}"
            )
    return read


def option_prefix(engine: str) -> str:
    """What the variables of an engine's own settings begin with."""
    return f"{PREFIX}{engine.upper().replace('-', '_')}_"


def option_variables(engine: str, options: type[Any] | None) -> list[str]:
    """The variables that an engine's `Options` are read from."""
    return [] if options is None else [option_prefix(engine) + f.name.upper() for f in dataclasses.fields(options)]


def unknown_variables(
    env: Mapping[str, str], engine_variables: Iterable[str], unchecked_prefixes: Iterable[str] = ()
) -> list[str]:
    """A sentence for each `STT_` variable that nothing reads: most are misspelled.

    `engine_variables` are the engines' own. Nothing is said of variables that begin with one of
    `unchecked_prefixes`: what those engines read cannot be told.
    """
    known = [PREFIX + name.upper() for name in Settings.model_fields] + list(engine_variables)
    prefixes = tuple(unchecked_prefixes)
    sentences = []
    for name in sorted(env):
        if not name.startswith(PREFIX) or name in known or name.startswith(prefixes) or name in CLIENT_VARIABLES:
            continue
        close = difflib.get_close_matches(name, known, n=1)
        sentences.append(f"{name} is not a setting" + (f"; did you mean {close[0]}?" if close else ""))
    return sentences


CLIENT_VARIABLES: Final = frozenset({"STT_API_KEY"})
"""Variables that the client commands read, not the server."""


def _is_tuple(hint: object) -> bool:
    if isinstance(hint, types.UnionType):
        return any(_is_tuple(arm) for arm in typing.get_args(hint))
    return typing.get_origin(hint) is tuple


def _sentences(exc: ValidationError, prefix: str, secrets: set[str]) -> str:
    lines = []
    for error in exc.errors():
        if not error["loc"]:
            lines.append(error["msg"].removeprefix("Value error, "))
            continue
        name = str(error["loc"][0])
        shown = "the value given" if name in secrets else repr(str(error["input"])[:80])
        _, should, rest = error["msg"].partition("should ")  # "Input should …", "String should …"
        allowed = should + rest or error["msg"].removeprefix("Value error, ")
        lines.append(f"{prefix}{name.upper()}: {shown} is not allowed: it {allowed}")
    return "\n".join(lines)
