"""Where an upload becomes a job: real media, a real store of jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge.audio.media import MediaDecoder
from bridge.errors import BridgeError
from bridge.jobs.desk import JobDesk
from bridge.jobs.intake import JobIntake
from bridge.jobs.sqlite_store import SqliteJobStore
from bridge.jobs.store import Rules
from bridge.uploads.models import Whole
from bridge.uploads.urls import open_blobs
from tests.wire import ROOT

HELLO = ROOT / "samples" / "hello.flac"
WHOLE = Whole(
    owner="key-me",
    blob="files/" + "ab" * 16,
    size=3,
    sha256="00",
    name="talk.flac",
    fields={"language": "de-DE", "phrases": "one,two", "webhook": "https://app.example/hook"},
    job_id="ab" * 16,
)


@pytest.fixture
async def intake(tmp_path: Path) -> AsyncIterator[JobIntake]:
    blobs, store = open_blobs(str(tmp_path / "blobs")), SqliteJobStore(None, Rules())
    media = MediaDecoder(max_bytes=1_000_000, max_seconds=100)

    def check_webhook(url: str) -> None:
        if not url.startswith("https://"):
            raise BridgeError("bad_request", "webhook: no")

    await blobs.open()
    await store.open()
    await media.open()
    yield JobIntake(JobDesk(store, blobs, "scripted"), media, check_webhook)
    await media.close()
    await store.close()
    await blobs.close()


async def test_one_upload_is_one_job(intake: JobIntake) -> None:
    assert not await intake.needs(WHOLE.blob)
    assert await intake.take(WHOLE) == WHOLE.job_id
    assert await intake.take(WHOLE) == WHOLE.job_id
    assert await intake.needs(WHOLE.blob)
    assert not await intake.needs("files/" + "cd" * 16)


async def test_only_audio_is_taken(intake: JobIntake, tmp_path: Path) -> None:
    await intake.check(HELLO, "hello.flac", {})
    await intake.check(HELLO, "song.svg", {})  # its name says nothing
    lie = tmp_path / "lie.wav"
    lie.write_bytes(b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    with pytest.raises(BridgeError) as refused:
        await intake.check(lie, "lie.wav", {})
    assert refused.value.row.fault == "client"
    assert not refused.value.row.retryable
    assert str(tmp_path) not in str(refused.value)


async def test_raw_samples_are_what_they_are_said_to_be(intake: JobIntake, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(bytes(16_000 * 2))
    fields = {"encoding": "pcm_s16le", "sample_rate": "16000"}
    await intake.check(raw, "raw", fields)
    with pytest.raises(BridgeError):
        await intake.check(raw, "raw", {})
    raw.write_bytes(bytes(16_000))
    with pytest.raises(BridgeError) as refused:
        await intake.check(raw, "raw", {"encoding": "pcm_s8", "sample_rate": "100"})
    assert refused.value.row.status < 500
    raw.write_bytes(b"")
    with pytest.raises(BridgeError):
        await intake.check(raw, "raw", fields)


@pytest.mark.parametrize(
    "fields",
    [{"job": "perhaps"}, {"first_seq": "2"}, {"webhook": "http://x"}, {"sample_rate": "x", "encoding": "mulaw"}],
)
def test_options_are_looked_at_first(intake: JobIntake, fields: dict[str, str]) -> None:
    intake.check_fields(dict(WHOLE.fields))
    with pytest.raises(BridgeError):
        intake.check_fields(fields)
