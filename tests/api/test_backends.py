"""`/v1/backends`, and sessions that name one of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from backends.scripted import marker_audio
from bridge.protocols.events import Start
from tests.wire import Wire, engine_env, get, serve

BOTH = "scripted, scripted-threads"
ENV = engine_env() | engine_env(backend="scripted-threads")


async def test_they_are_listed() -> None:
    async with serve(ENV, backend=BOTH, language="de-DE") as url:
        listed = (await get(f"{url}/v1/backends")).json
    assert listed["language"] == "de-DE"
    assert [backend["name"] for backend in listed["backends"]] == ["scripted", "scripted-threads"]
    first = listed["backends"][0]
    assert first["state"] == "ready"
    assert first["languages"] == []
    assert (first["partials"], first["detects_language"]) == (True, False)


async def test_any_key_will_do(keyed: str) -> None:
    assert (await get(f"{keyed}/v1/backends")).json["error"]["code"] == "unauthorized"
    assert (await get(f"{keyed}/v1/backends", {"Authorization": "Bearer sesame"})).status == 200


async def test_not_by_a_name_that_may_be_anybody_s(plain: str) -> None:
    """A page whose own address may not open a session hears it here, where a browser lets it read the reason."""
    refused = await get(f"{plain}/v1/backends", {"Host": "rebound.example"})
    assert (refused.status, refused.json["error"]["code"]) == (403, "forbidden_origin")


async def test_a_session_names_its_backend() -> None:
    async with serve(ENV, backend=BOTH) as url:
        for wanted, got in ((None, "scripted"), ("scripted", "scripted"), ("scripted-threads", "scripted-threads")):
            async with Wire.stream(url, start={} if wanted is None else {"backend": wanted}) as wire:
                assert (await wire.until("ready"))["backend"] == got
                await wire.audio(marker_audio(2))
                await wire.say({"type": "stop"})
                assert (await wire.finish()).words == ["w0", "w1"]
        async with Wire.stream(url, "/v1/stream?backend=scripted-threads") as wire:
            assert (await wire.until("ready"))["backend"] == "scripted-threads"


async def test_a_backend_that_there_is_not() -> None:
    async with serve(ENV, backend=BOTH) as url, Wire.stream(url, start={"backend": "nobody"}) as wire:
        outcome = await wire.finish()
    assert outcome.codes == ["unknown_backend"]
    assert outcome.close == 4404


async def test_a_session_goes_on_where_its_backend_is_not(tmp_path: Path) -> None:
    """Restored by a server without it, a session takes what there is."""
    log = f"sqlite:{tmp_path / 'log.db'}"
    async with serve(ENV, backend=BOTH, event_log=log) as url:
        start = {"backend": "scripted-threads", "encoding": "pcm_s16le", "resume": True}
        async with Wire.stream(url, start=start) as wire:
            ready = await wire.until("ready")
            await wire.audio(marker_audio(2))
            await wire.until("final", 2)
    async with serve(ENV, backend="scripted", event_log=log) as url:
        again = {"session_id": ready["session_id"], "resume_token": ready["resume_token"]}
        async with Wire.stream(url, start=again) as wire:
            assert (await wire.until("ready"))["backend"] == "scripted"
            await wire.say({"type": "stop"})
            assert (await wire.finish()).of("closed")[0]["code"] == "stopped"


def test_older_logs_know_no_backend() -> None:
    assert {field.name: field.default for field in dataclasses.fields(Start)}["backend"] is None
