"""The engine `whisper`: faster-whisper on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Final

from backends.base import AsyncBackend, BackendError, Capabilities, Fault, RecognitionConfig, Result
from backends.whisper.metrics import WhisperMetrics
from backends.whisper.models import Models
from backends.whisper.options import WhisperOptions
from backends.whisper.schedule import Schedule
from backends.whisper.schedule import run as follow
from backends.whisper.speech import Ears
from backends.whisper.stream import Stream
from backends.whisper.window import RATE

ANY_LANGUAGE: Final = frozenset({"auto", "und"})

WHISPERS_OWN: Final = {"nb": "no", "iw": "he", "in": "id", "fil": "tl", "cmn": "zh", "jv": "jw", "mo": "ro"}
"""Languages that Whisper calls otherwise than BCP 47 does."""

EAR_THREADS: Final = 2
ANSWER_SECONDS: Final = 30.0


class WhisperBackend(AsyncBackend):
    """Streams share one model; see the package's modules for who does what."""

    name: ClassVar[str] = "whisper"
    Options: ClassVar[type[Any] | None] = WhisperOptions

    def __init__(self, options: WhisperOptions | None = None) -> None:
        super().__init__(options or WhisperOptions())
        self._options: WhisperOptions = self.options
        self._schedule = Schedule.parse(self._options.schedule, self._options.timezone)
        self._metrics = WhisperMetrics()
        self._models = Models(self._options, self._metrics)
        self._ears = ThreadPoolExecutor(EAR_THREADS, thread_name_prefix="whisper-ears")
        self._following: asyncio.Task[None] | None = None

    @property
    def capabilities(self) -> Capabilities:
        """The languages are the model's."""
        loaded = self._models.loaded
        return Capabilities(
            partials=True,
            word_times=True,
            confidences=True,
            phrases=True,
            flush=True,
            languages=() if loaded is None else (*loaded.model.languages, *_also(loaded.model.languages)),
            sample_rates=(RATE,),
            answer_seconds=ANSWER_SECONDS,
            metered=True,
            detects_language=loaded is None or loaded.model.multilingual,
        )

    @property
    def collectors(self) -> Sequence[Any]:
        """See `WhisperMetrics`."""
        return self._metrics.collectors

    @property
    def progress(self) -> str | None:
        """What is being downloaded or loaded."""
        return self._models.progress

    @property
    def model(self) -> str | None:
        """The name of the model that new utterances get."""
        loaded = self._models.loaded
        return None if loaded is None else loaded.model.name

    def refusal(self) -> str | None:
        """Why another session would break the promise to those that are open."""
        loaded = self._models.loaded
        return None if loaded is None else loaded.scheduler.refusal()

    async def load(self) -> None:
        """Find, download, load and try the model, or the one that the schedule names for this time of day."""
        began = time.time()
        await self._models.use(self._schedule.now() or self._options.model)
        if self._schedule:
            following = follow(self._schedule, self.use_model, loaded_at=began)
            self._following = asyncio.create_task(following, name="whisper-schedule")

    async def use_model(self, model: str) -> None:
        """Give another model to every utterance that begins from now on."""
        await self._models.use(model)

    async def close(self) -> None:
        """Release the model and the threads."""
        if self._following is not None:
            self._following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._following
        await self._models.close()
        self._ears.shutdown(wait=False, cancel_futures=True)

    async def recognize(self, config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        """One stream."""
        if config.sample_rate != RATE:
            raise BackendError(
                f"Whisper hears {RATE:,} samples a second, not {config.sample_rate}",
                code="rejected",
                fault=Fault.CLIENT,
            )
        stream = Stream(
            self._models,
            Ears(self._options.speech_threshold),
            self._ears,
            config,
            self._options,
            self._metrics,
            language=self._language(config.language, (await self._models.current()).model.languages),
        )
        results = stream.results(audio)
        try:
            async for result in results:
                yield result
        finally:
            await results.aclose()

    def _language(self, tag: str, known: Sequence[str]) -> str | None:
        """Whisper's code for a BCP 47 tag; None: to be detected."""
        if tag.lower() in ANY_LANGUAGE:
            return None if len(known) > 1 else known[0]
        primary = tag.partition("-")[0].lower()
        code = WHISPERS_OWN.get(primary, primary)
        if code not in known:
            raise BackendError(f"the model does not know the language {tag}", code="language", fault=Fault.CLIENT)
        return code


def _also(languages: Sequence[str]) -> list[str]:
    """Other names for some of these."""
    return [tag for tag, code in WHISPERS_OWN.items() if code in languages]
