"""The model that is in use, and how another takes its place while streams go on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from backends.base import BackendError, Fault
from backends.whisper import hardware, store
from backends.whisper.metrics import WhisperMetrics
from backends.whisper.model import Model, Prepared, Request
from backends.whisper.options import WhisperOptions
from backends.whisper.scheduler import Lane, Scheduler, closed, out_of_memory
from backends.whisper.window import RATE, Hypothesis, Kind

log = logging.getLogger(__name__)

HANDOVER_SECONDS: Final = 30.0
"""For streams to come to the end of an utterance, where the old model must go before the new one fits."""
SPARE: Final = 1.5
"""Memory that a model needs, in multiples of its file: its numbers, and room to decode a batch."""
WARM_SECONDS: Final = 1.0


class Loaded:
    """A model with its scheduler, and how many streams are using it."""

    def __init__(self, model: Model, scheduler: Scheduler[Request, Prepared, Hypothesis]) -> None:
        self.model = model
        self.scheduler = scheduler
        self.idle = asyncio.Event()
        self.idle.set()
        self._users: dict[Callable[[], None], None] = {}

    @contextlib.contextmanager
    def lease(self, leave: Callable[[], None]) -> Iterator[Lane]:
        """Use it: it is not closed before the context has ended. `leave` asks for that, once there is another model."""
        self._users[leave] = None
        self.idle.clear()
        try:
            with self.scheduler.lane() as lane:
                yield lane
        finally:
            del self._users[leave]
            if not self._users:
                self.idle.set()

    def retire(self) -> None:
        """Ask every stream to leave: those between two utterances do it now, the others when theirs is over."""
        for leave in list(self._users):
            leave()

    async def close(self) -> None:
        """Give everything back; but the memory of a model in which a thread hangs is left to the end of the process."""
        if await self.scheduler.close():
            await asyncio.to_thread(self.model.close)


class Models:
    """Loads models and hands the one in use to streams, who ask anew for each utterance."""

    def __init__(self, options: WhisperOptions, metrics: WhisperMetrics) -> None:
        self.progress: str | None = None
        """What is being loaded and how far that is; None: nothing."""
        self._options = options
        self._metrics = metrics
        self._loaded: Loaded | None = None
        self._available = asyncio.Event()
        self._switching = asyncio.Lock()
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._retired: list[Loaded] = []  # still used by streams that have not come to the end of an utterance

    @property
    def loaded(self) -> Loaded | None:
        """What new utterances get; None while it must be waited for."""
        return self._loaded

    async def current(self) -> Loaded:
        """What a new utterance gets.

        Raises:
            BackendError: `unavailable`; the engine was closed.
        """
        while self._loaded is None:
            if self._closed:
                raise closed()
            await self._available.wait()
        return self._loaded

    async def use(self, name: str) -> None:
        """Load a model, and give it to every utterance that begins from then on.

        It is loaded beside the old one where the memory allows, else after it; utterances wait in between. If it
        cannot be loaded, the old one stays, or is loaded again.

        Raises:
            BackendError: it cannot be had or loaded.
        """
        async with self._switching:
            if self._loaded is not None and self._loaded.model.name == name:
                return
            try:
                folder = await asyncio.to_thread(
                    store.find, name, self._options.download_folder, self._say, offline=self._options.offline
                )
                old = self._loaded
                if old is None or fits(store.size(folder), old.model.hardware):
                    self._install(await self._load(name, folder))
                    if old is not None:
                        self._retire(old)
                else:
                    await self._replace(old, name, folder)
            finally:
                self.progress = None

    async def close(self) -> None:
        """Release every model. No stream is open any more; one that is all the same gets no other."""
        self._closed = True
        self._available.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        loaded, self._loaded = self._loaded, None
        for each in [*self._retired, *([] if loaded is None else [loaded])]:
            await each.close()

    def _install(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._available.set()
        chosen = loaded.model.hardware
        self._metrics.model(loaded.model.name, chosen.device, chosen.compute_type)

    def _retire(self, old: Loaded) -> None:
        old.retire()
        self._retired.append(old)
        self._own(self._close_when_idle(old), "whisper-retire")

    async def _close_when_idle(self, old: Loaded) -> None:
        await old.idle.wait()
        await old.close()
        self._retired.remove(old)
        log.info("whisper: the model %s is no longer used and was released", old.model.name)

    def _own(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _replace(self, old: Loaded, name: str, folder: Path) -> None:
        """There is no room for both."""
        log.info("whisper: no room for the model %s beside %s, so that one goes first", name, old.model.name)
        self._loaded = None
        self._available.clear()
        old.retire()
        try:
            async with asyncio.timeout(HANDOVER_SECONDS):
                await old.idle.wait()
        except BaseException as exc:
            self._install(old)
            if isinstance(exc, TimeoutError):
                raise BackendError(
                    f"the model {name} does not fit beside {old.model.name}, which some utterance still needs after "
                    f"{HANDOVER_SECONDS:g} s",
                    code="no_memory",
                    retryable=True,
                ) from None
            raise
        await old.close()
        try:
            self._install(await self._load(name, folder))
        except BaseException as exc:
            back = self._own(self._restore(old), "whisper-restore")
            if not isinstance(exc, asyncio.CancelledError):
                await back
            raise

    async def _restore(self, old: Loaded) -> None:
        self._install(await self._load(old.model.name, old.model.folder))

    async def _load(self, name: str, folder: Path) -> Loaded:
        options = self._options
        chosen = hardware.choose(options)
        hardware.spare_cores()
        if chosen.device == "cpu":
            hardware.keep_memory()
        size = store.size(folder)
        plan = hardware.plan(options, chosen, size)
        self._say(f"loading the model {name} ({size / 1e6:.0f} MB) for the {chosen.device}")
        began = time.monotonic()
        model = await asyncio.to_thread(self._make, name, folder, chosen, plan.workers)
        scheduler: Scheduler[Request, Prepared, Hypothesis] = Scheduler(
            model,
            plan,
            metrics=self._metrics,
            final_seconds=options.final_seconds,
            decode_limit_seconds=options.decode_limit_seconds,
        )
        await scheduler.start()
        log.info("whisper: the model %s was loaded in %.1f s; %s", name, time.monotonic() - began, chosen.reason)
        return Loaded(model, scheduler)

    def _make(self, name: str, folder: Path, chosen: hardware.Hardware, workers: int) -> Model:
        """Load and try it: a model that cannot decode must not be found out by the first session."""
        options = self._options
        try:
            model = Model(
                name,
                folder,
                chosen,
                workers=1 if chosen.device == "cuda" else workers,
                threads=hardware.cpu_threads(options, store.size(folder)),
                task=options.task,
                beam_size=options.beam_size,
            )
            language = None if model.multilingual else model.languages[0]
            quiet = np.zeros(round(WARM_SECONDS * RATE), np.float32)
            for kind in Kind:
                model.decode([model.prepare(Request(kind, quiet, language))])
            model.try_alignment()
        except Exception as exc:
            if out_of_memory(exc):
                raise BackendError(f"the model {name} does not fit into the memory", code="no_memory") from exc
            why = next(iter(str(exc).splitlines()), type(exc).__name__)
            raise BackendError(
                f"the model {name} in {folder} cannot be used: {why}", code="bad_model", fault=Fault.OPERATOR
            ) from exc
        return model

    def _say(self, sentence: str) -> None:
        self.progress = sentence


def fits(model_bytes: int, chosen: hardware.Hardware) -> bool:
    """Whether a model can be loaded beside what is loaded; where that cannot be told, it is tried."""
    free = hardware.free_memory(chosen)
    return free is None or free > SPARE * model_bytes
