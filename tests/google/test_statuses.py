"""Every status that Google is known to send, once: what the client sees of it, and what the operator.

The texts are those of real servers.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import pytest

from backends.scripted import marker_audio
from bridge.emulator.faults import Faults
from tests.google.harness import Heard, Journal, always, in_order, journal, road, spoken
from tests.wire import markers

WORDS = 4
ABORT_AT = 1.5
"""Seconds: inside of the third word."""
HOLD = {"HOLD_SECONDS": "0.05"}
"""More than enough for a refusal to come before the first audio, which could mask its status."""


class Passing(NamedTuple):
    """A status after which another stream may do better. `code`: what the log calls it."""

    api: str
    status: str
    text: str | None
    code: str


class Lasting(NamedTuple):
    """A status that no other stream would escape. `seen`: the code that the client gets."""

    api: str
    status: str
    text: str | None
    code: str
    seen: str


LIMIT_V1 = "Exceeded maximum allowed stream duration of 305 seconds."
LIMIT_V2 = "Max duration of 5 minutes reached for stream."
SILENT_V1 = "Audio Timeout Error: Long duration elapsed without audio. Audio should be sent close to real time."
SILENT_V2 = "Stream timed out after receiving no more client requests."
PACE = "Audio data is being streamed too fast/slow. Please stream audio data approximately at real time."
BUSY = "Resource has been exhausted (e.g. check quota)."
MALORDERED = (
    "Malordered Data Received. Expected audio_content none was set. Send exactly one config, followed by audio data."
)
CHUNK = "Audio chunk can be of a a maximum of 25600 bytes. Received audio of 294400 bytes instead."
DENIED_V1 = "The caller does not have permission"
DENIED_V2 = "Permission 'speech.recognizers.recognize' denied on resource (or it may not exist)."
REGION = "Expected resource location to be global, but found eu in resource name."
SEVERAL = "Multiple language recognition is only available in the following locations: eu, global, us."

PASSING = [
    Passing("v1", "OUT_OF_RANGE", LIMIT_V1, "stream_limit"),
    Passing("v2", "ABORTED", LIMIT_V2, "stream_limit"),
    Passing("v1", "OUT_OF_RANGE", SILENT_V1, "audio_timeout"),
    Passing("v2", "ABORTED", SILENT_V2, "audio_timeout"),
    Passing("v1", "OUT_OF_RANGE", PACE, "pace"),
    Passing("v2", "OUT_OF_RANGE", PACE, "pace"),
    Passing("v1", "RESOURCE_EXHAUSTED", BUSY, "overloaded"),
    Passing("v1", "UNAVAILABLE", "The service is currently unavailable.", "unavailable"),
    Passing("v2", "CANCELLED", "The operation was cancelled.", "cancelled"),
    Passing("v1", "INTERNAL", "Internal error encountered.", "internal"),
    Passing("v1", "INTERNAL", "Internal error from Core", "unknown_status"),
    Passing("v1", "UNKNOWN", None, "unknown"),
    Passing("v1", "DEADLINE_EXCEEDED", None, "deadline"),
    Passing("v1", "DATA_LOSS", None, "data_loss"),
    Passing("v1", "ALREADY_EXISTS", None, "failed"),
]
LASTING = [
    Lasting("v1", "INVALID_ARGUMENT", MALORDERED, "rejected", "backend_rejected"),
    Lasting("v2", "INVALID_ARGUMENT", CHUNK, "rejected", "backend_rejected"),
    Lasting(
        "v1", "INVALID_ARGUMENT", "Invalid recognition 'config': bad language code.", "language", "unsupported_language"
    ),
    Lasting(
        "v2",
        "INVALID_ARGUMENT",
        'The language "xx-XX" is not supported by the model "long" in the location named "global".',
        "language",
        "unsupported_language",
    ),
    Lasting("v2", "INVALID_ARGUMENT", REGION, "misconfigured", "backend_misconfigured"),
    Lasting("v2", "INVALID_ARGUMENT", SEVERAL, "misconfigured", "backend_misconfigured"),
    Lasting("v1", "PERMISSION_DENIED", DENIED_V1, "denied", "backend_misconfigured"),
    Lasting("v2", "PERMISSION_DENIED", DENIED_V2, "denied", "backend_misconfigured"),
    Lasting("v1", "UNAUTHENTICATED", None, "unauthenticated", "backend_misconfigured"),
    Lasting("v2", "NOT_FOUND", None, "misconfigured", "backend_misconfigured"),
    Lasting("v1", "FAILED_PRECONDITION", None, "misconfigured", "backend_misconfigured"),
    Lasting("v1", "UNIMPLEMENTED", None, "misconfigured", "backend_misconfigured"),
]
THREADS_TOO = ("unavailable", "stream_limit", "unknown_status", "rejected", "denied")


def cases(rows: list[Any]) -> list[Any]:
    """The rows for both drivers; the blocking one is given some."""
    return [
        pytest.param(engine, row, id=f"{engine}-{row.api}-{row.status}-{row.code}")
        for engine in ("google", "google-threads")
        for row in rows
        if engine == "google" or (row.code in THREADS_TOO and row.api == "v1")
    ]


def assert_lines(log: Journal, heard: Heard, *codes: tuple[str, ...]) -> None:
    """The operator reads one line for each failure: whose, and one of these codes; not a word of what was said."""
    assert len(log.records) == len(codes)
    for record, allowed in zip(log.records, codes, strict=True):
        assert record.__dict__["session"] == heard.session_id
        assert record.exc_info is None
        assert record.getMessage().split(": ")[1] in allowed
        assert not re.search(r"\bw\d", record.getMessage())


@pytest.fixture(autouse=True)
def soon_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.session.channel.BACKOFF_BASE", 0.01)


@pytest.mark.parametrize(("engine", "row"), cases(PASSING))
async def test_one_that_passes(engine: str, row: Passing) -> None:
    """First it refuses the stream, then it ends the next one in mid-speech."""
    refused = Faults(refuse=row.status, message=row.text)
    aborted = Faults(abort_at=ABORT_AT, status=row.status, message=row.text)
    # A lost status is asked for again by the asynchronous driver: by a stream without audio, that ends well.
    probes = [Faults()] if engine == "google" and row.code == "unknown_status" else []
    with journal() as log:
        async with road(engine, row.api, in_order(refused, *probes, aborted), env=HOLD) as (url, emulator):
            heard = await spoken(url, marker_audio(WORDS))
            # If all audio was given before the first was refused, that counts as a limit met too late: then the second
            # is ended sooner, perhaps before it meets its own.
            early = row.code == "stream_limit" and emulator.stats.opened == 4
            assert early or emulator.stats.opened == 3 + len(probes)
    heard.assert_whole(WORDS)
    # A write that is under way when the stream ends hides the status from the asynchronous driver.
    hidden = ("unknown_status",) if engine == "google" else ()
    lines = ((row.code,), (row.code, *hidden))
    assert_lines(log, heard, *(lines[: len(log.records) or 1] if early else lines))


@pytest.mark.parametrize(("engine", "row"), cases(LASTING))
async def test_one_that_lasts(engine: str, row: Lasting) -> None:
    fault = Faults(refuse=row.status, message=row.text)
    with journal() as log:
        async with road(engine, row.api, always(fault), env=HOLD) as (url, emulator):
            heard = await spoken(url, marker_audio(WORDS))
            assert emulator.stats.opened == 1
    assert heard.codes == [row.seen]
    assert heard.closed.code == row.seen
    assert heard.text == ""
    assert_lines(log, heard, (row.code,))


@pytest.mark.parametrize("engine", ["google", "google-threads"])
async def test_an_end_in_mid_speech_that_lasts(engine: str) -> None:
    """What was final before stands."""
    fault = Faults(abort_at=ABORT_AT, status="PERMISSION_DENIED")
    with journal() as log:
        async with road(engine, "v1", always(fault)) as (url, _):
            heard = await spoken(url, marker_audio(WORDS), speed=4)
    assert heard.codes == ["backend_misconfigured"]
    assert heard.closed.code == "backend_misconfigured"
    # Should a write have hidden the status from the asynchronous driver, the next stream comes a little further.
    *hidden, last = (record.getMessage().split(": ")[1] for record in log.records)
    assert set(hidden) <= {"unknown_status"}
    assert last == "denied"
    said = heard.text.split()
    assert len(said) >= 2
    assert said == markers(len(said))


@pytest.mark.parametrize("engine", ["google", "google-threads"])
async def test_a_status_that_never_passes_is_given_up_in_time(engine: str) -> None:
    fault = Faults(refuse="UNAVAILABLE")
    async with road(engine, "v1", always(fault), reopen_seconds=0.3) as (url, _):
        heard = await spoken(url, marker_audio(WORDS))
    assert heard.codes == ["backend_failed"]
    assert heard.closed.code == "backend_failed"
