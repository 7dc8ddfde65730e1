"""Another model while the server runs: one at a time, and no failure costs the one before."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import ClassVar

import pytest

from backends.base import AsyncBackend, BackendError, Capabilities, Fault, RecognitionConfig, Result
from backends.scripted import ScriptedBackend, ScriptedThreadsBackend
from bridge.errors import BridgeError
from bridge.session import engine as engine_module
from bridge.session import models as module
from bridge.session.engine import Engine
from bridge.session.models import Failure, ModelSwitch

WAIT = 10.0


class Models(AsyncBackend):
    """An engine with models; each loads when the test lets it, or fails with what the test says."""

    name: ClassVar[str] = "models"

    def __init__(self) -> None:
        super().__init__()
        self.serving = "first"
        self.error: Exception | None = None
        self.loads = asyncio.Event()
        self.asked: list[str] = []
        self.given_up: list[str] = []
        self.news: str | None = None

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities()

    @property
    def model(self) -> str:
        return self.serving

    @property
    def progress(self) -> str | None:
        return self.news

    async def use_model(self, name: str) -> None:
        self.asked.append(name)
        try:
            await self.loads.wait()
        except asyncio.CancelledError:
            self.given_up.append(name)
            raise
        if self.error is not None:
            raise self.error
        self.serving = name

    async def recognize(self, config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        async for _ in audio:
            pass
        yield Result("", True, 0, 0)


@pytest.fixture
def backend() -> Models:
    return Models()


@pytest.fixture
async def switch(backend: Models) -> AsyncIterator[ModelSwitch]:
    engine = Engine(backend)
    await engine.load()
    switch = ModelSwitch(engine)
    yield switch
    await switch.close()


async def refused(switch: ModelSwitch, name: str) -> BridgeError:
    with pytest.raises(BridgeError) as caught:
        await switch.use(name, WAIT)
    return caught.value


async def test_a_model_serves_when_it_is_loaded(switch: ModelSwitch, backend: Models) -> None:
    backend.loads.set()
    assert await switch.use("second", WAIT)
    assert (switch.model, switch.loading, switch.failure) == ("second", None, None)


async def test_who_does_not_wait_so_long_is_told_and_loading_goes_on(switch: ModelSwitch, backend: Models) -> None:
    assert not await switch.use("second", 0.01)
    assert (switch.model, switch.loading) == ("first", "second")
    backend.loads.set()
    assert await switch.use("second", WAIT)  # asked again: it waits for the same
    assert (switch.model, switch.loading) == ("second", None)
    assert backend.asked == ["second"]


async def test_who_goes_away_stops_nothing(switch: ModelSwitch, backend: Models) -> None:
    asking = asyncio.create_task(switch.use("second", WAIT))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    backend.loads.set()
    assert await switch.use("second", WAIT)
    assert backend.asked == ["second"]


async def test_one_at_a_time(switch: ModelSwitch, backend: Models) -> None:
    assert not await switch.use("second", 0)
    error = await refused(switch, "third")
    assert error.code == "model_loading"
    assert "second" in str(error)
    backend.loads.set()
    assert await switch.use("second", WAIT)
    assert await switch.use("third", WAIT)
    assert backend.asked == ["second", "third"]


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (BackendError("no such name", code="unknown_model", fault=Fault.CLIENT), "unknown_model", "no such name"),
        (BackendError("no room", code="overloaded", retryable=True), "model_failed", "no room"),
        (BackendError("one only", code="not_supported", fault=Fault.CLIENT), "not_supported", "one only"),
        (RuntimeError("CUDA"), "model_failed", "RuntimeError left the backend"),
    ],
)
async def test_a_failure_leaves_the_model_before_and_is_kept(
    switch: ModelSwitch, backend: Models, error: Exception, code: str, sentence: str
) -> None:
    backend.loads.set()
    backend.error = error
    refusal = await refused(switch, "second")
    assert (refusal.code, str(refusal)) == (code, sentence)
    assert (switch.model, switch.loading) == ("first", None)
    assert switch.failure == Failure("second", code, sentence)
    backend.error = None
    assert await switch.use("third", WAIT)
    assert switch.failure is None


async def test_everybody_who_waits_is_told(switch: ModelSwitch, backend: Models) -> None:
    backend.error = BackendError("no room")
    waiting = [asyncio.create_task(switch.use("second", WAIT)) for _ in range(3)]
    await asyncio.sleep(0)
    backend.loads.set()
    told = await asyncio.gather(*waiting, return_exceptions=True)
    assert [str(error) for error in told] == ["no room"] * 3


async def test_what_never_loads_is_given_up(
    switch: ModelSwitch, backend: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LONGEST_SECONDS", 0.01)
    assert (await refused(switch, "second")).code == "model_failed"
    assert backend.given_up == ["second"]
    backend.loads.set()
    assert await switch.use("third", WAIT)


async def test_the_end_of_the_server_gives_up_what_is_loading(switch: ModelSwitch, backend: Models) -> None:
    asking = asyncio.create_task(refused(switch, "second"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert backend.asked == ["second"]
    await switch.close()
    assert backend.given_up == ["second"]
    assert (await asking).code == "shutting_down"
    assert (await refused(switch, "third")).code == "shutting_down"
    assert backend.asked == ["second"]


async def test_an_engine_that_does_not_let_go_keeps_nobody(backend: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.01)
    released = asyncio.Event()

    class Stubborn(Models):
        async def use_model(self, name: str) -> None:
            try:
                await super().use_model(name)
            finally:
                await released.wait()

    engine = Engine(Stubborn())
    await engine.load()
    switch = ModelSwitch(engine)
    assert not await switch.use("second", 0.01)
    async with asyncio.timeout(2):
        await switch.close()
    task = switch._task
    assert task is not None
    released.set()
    await asyncio.wait({task})


async def test_before_the_engine_is_loaded() -> None:
    assert (await refused(ModelSwitch(Engine(Models())), "second")).code == "not_ready"


@pytest.mark.parametrize("kind", [ScriptedBackend, ScriptedThreadsBackend])
async def test_an_engine_without_models(kind: type[ScriptedBackend | ScriptedThreadsBackend]) -> None:
    engine = Engine(kind())
    await engine.load()
    switch = ModelSwitch(engine)
    assert switch.model is None
    error = await refused(switch, "second")
    assert error.code == "not_supported"
    assert kind.name in str(error)
    await engine.close()


async def test_the_log_tells_of_progress_when_there_is_news(
    switch: ModelSwitch, backend: Models, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "FIRST_PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr(engine_module, "PROGRESS_SECONDS", 0.005)
    with caplog.at_level(logging.INFO):
        assert not await switch.use("second", 0.05)
        assert "backend models:" not in caplog.text
        for share in (10, 20):
            backend.news = f"downloading second: {share} %"
            assert not await switch.use("second", 0.05)
        backend.loads.set()
        assert await switch.use("second", WAIT)
        backend.news = "downloading nothing: 0 %"
        await asyncio.sleep(0.05)  # nothing loads: nothing is told
    told = [r.getMessage() for r in caplog.records if r.getMessage().startswith("backend models:")]
    assert told == ["backend models: downloading second: 10 %", "backend models: downloading second: 20 %"]
