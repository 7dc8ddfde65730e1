"""The server's life: who may call, TLS, its end and its return, a freeze; several event loops."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import uvloop

from backends.scripted import marker_audio
from bridge.emulator.api import Api, Asked
from bridge.emulator.server import Emulator, EmulatorConfig, check, emulating
from bridge.emulator.speech import Recognizer
from bridge.settings import SettingsError
from tests.emulator.harness import LIMIT, V1, Client, blocking_channel, open_channel

AUDIO = marker_audio(3)
WORDS = ["w0", "w1", "w2"]
DENIED = {
    "v1": "The caller does not have permission",
    "v2": "Permission 'speech.recognizers.recognize' denied on resource (or it may not exist).",
}


@contextlib.asynccontextmanager
async def serving(config: EmulatorConfig, recognizer: Recognizer) -> AsyncIterator[Emulator]:
    """An emulator with a recognizer of the test's own."""
    emulator = Emulator(config, recognizer)
    await emulator.start()
    try:
        yield emulator
    finally:
        await emulator.kill()


async def test_a_token(client: Client) -> None:
    async with emulating(EmulatorConfig(token="sesame")) as emulator:
        wrong = ("UNAUTHENTICATED", "Request had invalid authentication credentials.")
        assert await client.refused(emulator.address) == wrong
        for given in ("Bearer nonsense", "sesame"):
            assert await client.refused(emulator.address, metadata=[("authorization", given)]) == wrong
        heard = await client.converse(emulator.address, [client.config()], [("authorization", "Bearer sesame")])
        assert heard.status == ("OK", "")


async def test_nobody_may(client: Client) -> None:
    async with emulating(EmulatorConfig(deny=True)) as emulator:
        assert await client.refused(emulator.address) == ("PERMISSION_DENIED", DENIED[client.name])


async def test_tls(client: Client, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    credentials = grpc.ssl_channel_credentials(cert.read_bytes())
    messages = [client.config(), *client.audio(AUDIO)]
    async with emulating(EmulatorConfig(tls_cert=cert, tls_key=key)) as emulator:
        async with grpc.aio.secure_channel(emulator.address, credentials) as channel:
            assert (await client.converse(channel, messages)).words == WORDS
        with blocking_channel(emulator.address, credentials) as blocking:
            assert (await asyncio.to_thread(client.blocking, blocking, messages)).words == WORDS


async def test_killed_and_back(client: Client) -> None:
    async with emulating() as emulator:
        address = emulator.address
        channel = open_channel(address)
        try:
            async with client.call(channel) as call:
                await call.send(client.config(), *client.audio(AUDIO))
                assert await call.read()
                await emulator.kill()
                assert (await call.rest()).code is grpc.StatusCode.UNAVAILABLE
            assert emulator.stats.open == 0
        finally:
            await channel.close()
        await emulator.start()
        assert emulator.address == address
        # A number of its own: gRPC makes a connection that was refused wait.
        channel = open_channel(address, 1)
        try:
            assert (await client.converse(channel, [client.config(), *client.audio(AUDIO)])).words == WORDS
        finally:
            await channel.close()
        assert [stream.status for stream in emulator.stats.ended] == ["CANCELLED", "OK"]


async def test_frozen_and_thawed(client: Client) -> None:
    async with emulating() as emulator, client.call(emulator.address) as call:
        await call.send(client.config())
        await emulator.stats.until(lambda stats: len(stats.configs) == 1)
        emulator.freeze()
        await call.send(*client.audio(AUDIO))
        finishing = asyncio.create_task(call.finish())
        other = asyncio.create_task(client.converse(emulator.address, [client.config()]))
        done, _ = await asyncio.wait({finishing, other}, timeout=0.1)
        assert not done
        emulator.thaw()
        assert (await finishing).words == WORDS
        assert (await other).status == ("OK", "")


async def test_frozen_it_ends_nothing_either(client: Client) -> None:
    async with emulating(EmulatorConfig(speed=200)) as emulator, client.call(emulator.address) as call:
        await call.send(client.config())
        await emulator.stats.until(lambda stats: len(stats.configs) == 1)
        emulator.freeze()
        reading = asyncio.create_task(call.rest())
        done, _ = await asyncio.wait({reading}, timeout=0.2)  # the audio timeout: 0.05 s
        assert not done
        emulator.thaw()
        assert (await reading).code.name in ("OUT_OF_RANGE", "ABORTED")


async def test_killed_while_frozen() -> None:
    async with emulating() as emulator, V1.call(emulator.address) as call:
        await call.send(V1.config())
        await emulator.stats.until(lambda stats: len(stats.configs) == 1)
        emulator.freeze()
        await call.send(*V1.audio(AUDIO))
        await emulator.kill()
        assert (await call.rest()).code is grpc.StatusCode.UNAVAILABLE
        await emulator.stats.until(lambda stats: stats.open == 0)


async def test_a_port_that_is_taken() -> None:
    async with emulating() as emulator:
        with pytest.raises(OSError, match="cannot listen on 127"):
            async with emulating(EmulatorConfig(port=emulator.port)):
                pass


async def test_an_engine_serves_several_lives() -> None:
    """A stream of a killed server leaves the engine free."""
    config = EmulatorConfig(mode="speech", backend="scripted", env={"STT_SCRIPTED_MAX_STREAMS": "1"})
    async with emulating(config) as emulator:
        for number in range(3):
            channel = open_channel(emulator.address, number)
            try:
                async with V1.call(channel) as call:
                    await call.send(V1.config(), *V1.audio(bytes(96_000)))
                    assert await call.read()
                    await emulator.kill()
            finally:
                await channel.close()
            await emulator.start()


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_one_event_loop_after_another(client: Client, run: object, caplog: pytest.LogCaptureFixture) -> None:
    assert callable(run)

    async def converse() -> list[str]:
        async with asyncio.timeout(LIMIT), emulating() as emulator:
            return (await client.converse(emulator.address, [client.config(), *client.audio(AUDIO)])).words

    for _ in range(3):
        assert run(converse()) == WORDS
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


# What is refused before it serves


def test_only_this_machine_by_default() -> None:
    with pytest.raises(SettingsError, match=r"--host: '0\.0\.0\.0' .* --insecure"):
        check(EmulatorConfig(host="0.0.0.0"), insecure=False)
    check(EmulatorConfig(host="0.0.0.0"), insecure=True)
    check(EmulatorConfig(host="::1"), insecure=False)


def test_certificates_are_looked_at(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    check(EmulatorConfig(tls_cert=cert, tls_key=key), insecure=False)
    with pytest.raises(SettingsError, match="belong together"):
        check(EmulatorConfig(tls_cert=cert), insecure=False)
    bad = tmp_path / "bad.pem"
    bad.write_text("nonsense")
    for pair in ((cert, bad), (bad, key), (tmp_path / "missing.pem", key)):
        with pytest.raises(SettingsError, match="should hold a certificate chain"):
            check(EmulatorConfig(tls_cert=pair[0], tls_key=pair[1]), insecure=False)


async def test_a_mistake_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    """It is not taken for a client that left."""

    async def broken(api: Api, asked: Asked, audio: AsyncGenerator[bytes, None]) -> AsyncGenerator[Any, None]:
        if asked:
            raise ZeroDivisionError
        yield

    async with serving(EmulatorConfig(), broken) as emulator:
        code, _ = await V1.refused(emulator.address, V1.config())
        assert code == "UNKNOWN"
        await emulator.stats.until(lambda stats: stats.open == 0)
        assert [stream.status for stream in emulator.stats.ended] == ["UNKNOWN"]
    assert "ZeroDivisionError" in caplog.text


async def test_a_slow_recognizer_is_not_taken_for_a_silent_client() -> None:
    async def slow(api: Api, asked: Asked, audio: AsyncGenerator[bytes, None]) -> AsyncGenerator[Any, None]:
        await asyncio.sleep(0.25)
        assert [len(chunk) async for chunk in audio] == [3_200] * 3
        yield api.response()

    async with serving(EmulatorConfig(speed=100), slow) as emulator:  # the audio timeout: 0.1 s
        heard = await V1.converse(emulator.address, [V1.config(), *V1.audio(bytes(9_600))])
        assert heard.status == ("OK", "")
