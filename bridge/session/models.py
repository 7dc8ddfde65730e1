"""Another model for the engine, while the server runs: one at a time, and the one before serves until it is loaded."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Final

from backends.base import BackendError
from bridge.errors import BridgeError
from bridge.session.engine import Engine

log = logging.getLogger(__name__)

LONGEST_SECONDS: Final = 3_600.0
"""After which a model that is still not loaded is given up: else no other could ever be asked for."""
CLOSE_SECONDS: Final = 2.0
"""For an engine to give up what it loads."""
TOLD: Final = ("not_supported", "unknown_model")
"""Codes of a backend's that are the client's, too."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A model that could not be loaded. `code` is one of `bridge.errors`, `message` the backend's sentence."""

    model: str
    code: str
    message: str


class ModelSwitch:
    """Switches the model of one engine. What was begun goes on if whoever asked for it does not wait."""

    def __init__(self, engine: Engine) -> None:
        self.loading: str | None = None
        """What is being loaded now."""
        self.failure: Failure | None = None
        """The last one, until a model was loaded after it."""
        self._engine = engine
        self._task: asyncio.Task[BridgeError | None] | None = None
        self._stopped = False

    @property
    def model(self) -> str | None:
        """What serves now; None where the engine has none to name."""
        return self._engine.model

    @property
    def progress(self) -> str | None:
        """What loading has come to."""
        return self._engine.progress

    async def use(self, name: str, seconds: float) -> bool:
        """Have the model serve. Waits so long for it; returns whether it serves, or is still being loaded.

        Safe to cancel: loading goes on. Asking again for what is being loaded waits for that.

        Raises:
            BridgeError: `model_loading`, `not_ready`, `shutting_down`; or, with the model before serving on,
                `not_supported`, `unknown_model`, `model_failed`.
        """
        if self._stopped:
            raise BridgeError("shutting_down")
        if self._engine.state != "ready":
            raise BridgeError("not_ready")
        if self._task is None:
            self.loading = name
            self._task = asyncio.create_task(self._load(name), name="use-model")
        elif self.loading != name:
            raise BridgeError("model_loading", f"{self.loading} is loading; ask again when it serves")
        task = self._task
        if not (await asyncio.wait({task}, timeout=seconds))[0]:
            return False
        if task.cancelled():
            raise BridgeError("shutting_down")
        if error := task.result():
            raise error
        return True

    async def _load(self, name: str) -> BridgeError | None:
        """Load it; returns what went wrong."""
        where, began = {"backend": self._engine.name}, time.monotonic()
        log.info("model %s is asked for", name, extra=where)
        try:
            async with asyncio.timeout(LONGEST_SECONDS):
                await self._engine.use_model(name)
        except TimeoutError:
            error = BridgeError("model_failed", f"it was not loaded within {LONGEST_SECONDS:.0f} s")
        except BackendError as exc:
            # Whoever may change the server may read why it does not: the sentence is for the operator.
            error = BridgeError(exc.code if exc.code in TOLD else "model_failed", str(exc))
        else:
            self.failure = None
            log.info("model %s serves after %.2f s", name, time.monotonic() - began, extra=where)
            return None
        finally:
            self._task = self.loading = None
        self.failure = Failure(name, error.code, str(error))
        log.warning("model %s is not used: %s", name, error, extra=where | {"code": error.code})
        return error

    def stop(self) -> None:
        """Give up what is being loaded, and load nothing more."""
        self._stopped = True
        if self._task is not None:
            self._task.cancel()

    async def close(self) -> None:
        """The same, and wait until the engine has given it up."""
        self.stop()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=CLOSE_SECONDS)
