"""The way from an upload to a job: a file that has come whole is probed and handed in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from bridge.audio.media import MediaDecoder
from bridge.errors import BridgeError
from bridge.jobs.desk import JobDesk
from bridge.jobs.models import JobOptions, NewJob
from bridge.uploads.models import Whole

_FLAGS: Final = {"job": ("true", "false", "1", "0", "yes", "no", "on", "off"), "first_seq": ("0", "1")}


class JobIntake:
    """Takes whole files for one server's jobs (`bridge.uploads.models.Intake`).

    `check_webhook` refuses an address that no webhook may go to.
    """

    def __init__(self, desk: JobDesk, media: MediaDecoder, check_webhook: Callable[[str], object]) -> None:
        self._desk = desk
        self._media = media
        self._check_webhook = check_webhook

    def check_fields(self, fields: Mapping[str, str]) -> None:
        """Look at options before anything is uploaded.

        Raises:
            BridgeError: `bad_request`, naming the field, or `unsupported_audio`.
        """
        JobOptions.parse(fields)
        for name, allowed in _FLAGS.items():
            if fields.get(name, allowed[0]).strip().lower() not in allowed:
                raise BridgeError("bad_request", f"{name}: should be one of {', '.join(allowed)}")
        if webhook := fields.get("webhook"):
            self._check_webhook(webhook)

    async def check(self, path: Path, name: str, fields: Mapping[str, str]) -> None:
        """Look whether a file is audio, by its content; of raw samples, whether there are any, and not too many.

        Raises:
            BridgeError: as `MediaDecoder.probe`.
        """
        raw = JobOptions.parse(fields).audio
        if raw is None:
            await self._media.probe(path, name)
            return
        async with self._media.read(path, name, raw=raw):
            pass

    async def take(self, whole: Whole) -> str:
        """Make a job of it; its name. The same `job_id` again is the same job.

        Raises:
            BridgeError: as `JobDesk.submit`.
        """
        job = await self._desk.submit(
            NewJob(
                owner=whole.owner,
                blob=whole.blob,
                size=whole.size,
                sha256=whole.sha256,
                name=whole.name,
                options=JobOptions.parse(whole.fields),
                webhook=whole.fields.get("webhook") or None,
                id=whole.job_id,
            )
        )
        return job.id

    async def needs(self, blob: str) -> bool:
        """Whether a job that has not ended is about this file.

        Raises:
            BridgeError: `store_unavailable`.
        """
        return await self._desk.needs(blob)
