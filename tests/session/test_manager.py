"""Who gets a session: the language that it may name. And what the end of the server does to a model that loads."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest

from backends.base import AsyncBackend, RecognitionConfig, Result
from bridge.audio.formats import AudioFormat, Encoding
from bridge.errors import BridgeError
from bridge.observe.metrics import Metrics
from bridge.protocols.events import Final, Start, Warning
from bridge.session.engine import Engine
from bridge.session.failover import EnginePool
from bridge.session.limits import SessionLimits
from bridge.session.manager import SessionManager
from tests.session.harness import FunctionEngine
from tests.session.test_models import Models


async def polyglot(config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
    """Says what it was asked for, in what it takes for Danish."""
    async for _ in audio:
        pass
    yield Result(config.language, True, 0, 0.1, language="da")


def managed(backend: AsyncBackend, language: str = "en-US") -> SessionManager:
    """Sessions on this engine, not loaded yet."""
    return SessionManager(EnginePool(Engine(backend)), SessionLimits(), Metrics(), max_sessions=1, language=language)


async def heard(language: str | None, default: str = "en-US", **capabilities: Any) -> Final:
    """The final of a session that names this language, on an engine that says what it was asked for."""
    manager = managed(FunctionEngine(polyglot, **capabilities), default)
    await manager.load()
    try:
        async with manager.session(Start(language=language), "native") as session:
            outbox = session.subscribe()
            session.feed(bytes(3_200))
            session.stop()
            await session.run()
            (final,) = [event for event in await outbox.get() if isinstance(event, Final)]
            return final
    finally:
        await manager.close()


@pytest.mark.parametrize("said", ["auto", "AUTO", "und", "Und"])
@pytest.mark.parametrize("languages", [(), ("en", "de")])
async def test_an_engine_that_detects_the_language_is_asked_to(said: str, languages: tuple[str, ...]) -> None:
    for final in (
        await heard(said, detects_language=True, languages=languages),
        await heard(None, default=said, detects_language=True, languages=languages),
    ):
        assert final.text == "auto"
        assert final.language == "da"


@pytest.mark.parametrize("said", ["auto", "und"])
@pytest.mark.parametrize("languages", [(), ("en",), ("auto",)])
async def test_other_engines_refuse_to(said: str, languages: tuple[str, ...]) -> None:
    with pytest.raises(BridgeError, match="function detects no language: name one") as caught:
        await heard(said, languages=languages)
    assert caught.value.code == "unsupported_language"


async def test_a_language_that_is_named_is_handed_on_as_it_was() -> None:
    assert (await heard("de-CH", detects_language=True)).text == "de-CH"
    assert (await heard("de-CH", detects_language=True, languages=("de",))).text == "de-CH"


@pytest.mark.parametrize(("detects", "known"), [(False, "knows en, de$"), (True, "knows en, de, auto$")])
async def test_a_refusal_says_what_the_engine_takes(detects: bool, known: str) -> None:
    with pytest.raises(BridgeError, match=known) as caught:
        await heard("fr-FR", detects_language=detects, languages=("en", "de"))
    assert caught.value.code == "unsupported_language"


@pytest.mark.parametrize("drained", [True, False])
async def test_a_model_that_loads_is_given_up_at_the_end(drained: bool) -> None:
    """Before the engine is closed, and at once where sessions have to end."""
    closed: list[list[str]] = []

    class Loading(Models):
        async def close(self) -> None:
            closed.append(self.given_up[:])

    backend = Loading()
    manager = managed(backend)
    await manager.load()
    assert not await manager.models.use("second", 0.01)
    if drained:
        await manager.drain(1)
        await asyncio.sleep(0)  # its task sees that it is cancelled
        with pytest.raises(BridgeError) as caught:
            await manager.models.use("third", 0.01)
        assert caught.value.code == "shutting_down"
        assert backend.given_up == ["second"]
    await manager.close()
    assert closed == [["second"]]


@pytest.mark.parametrize(("watched", "seconds", "warned"), [(True, 0.5, ["wav_header"]), (False, 0.501375, [])])
async def test_what_this_server_has_decoded_is_not_doubted(watched: bool, seconds: float, warned: list[str]) -> None:
    """Samples that happen to look like a WAV header are a header only if a client sent them."""
    manager = managed(FunctionEngine(polyglot))
    await manager.load()
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", 0, b"WAVE", b"fmt ", 16, 1, 1, 16_000, 32_000, 2, 16, b"data", 0
    )
    start = Start(AudioFormat(Encoding.PCM_S16LE))
    async with manager.place() as place:
        with manager.seated(place, start, "file", watched=watched) as session:
            outbox = session.subscribe()
            session.feed(header + bytes(16_000))
            session.stop()
            await session.run()
            assert [e.code for e in await outbox.get() if isinstance(e, Warning)] == warned
            assert session.audio_seconds == pytest.approx(seconds, abs=1e-9)
    await manager.close()
