"""Credentials and clients: what is looked for where, what is said if there is none, and where tokens never go."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.auth.credentials import AnonymousCredentials

from backends.base import BackendError, Fault
from backends.google import clients
from backends.google.api import API
from backends.google.clients import Account
from backends.google.options import GoogleOptions
from bridge.emulator.server import EmulatorConfig, emulating

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without any credentials, that is not one of Google's."""
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)


@pytest.fixture
def user(tmp_path: Path) -> Path:
    """Credentials of a user, as `gcloud auth application-default login` writes them: they name no project."""
    path = tmp_path / "user.json"
    path.write_text(
        json.dumps({"type": "authorized_user", "client_id": "i", "client_secret": "s", "refresh_token": "t"})
    )
    return path


def refused(options: GoogleOptions) -> str:
    with pytest.raises(BackendError) as caught:
        Account(options)
    assert (caught.value.fault, caught.value.retryable) == (Fault.OPERATOR, False)
    return f"{caught.value.code}: {caught.value}"


def test_no_credentials() -> None:
    sentence = refused(GoogleOptions())
    assert sentence.startswith("unauthenticated: no Google credentials were found: run `gcloud auth")
    for help_ in ("GOOGLE_APPLICATION_CREDENTIALS", "STT_GOOGLE_CREDENTIALS", "stt-bridge emulate-google"):
        assert help_ in sentence


@pytest.mark.parametrize("content", [None, "not json", '{"type": "mystery"}', '{"type": "service_account"}'])
def test_a_bad_credentials_file(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "key.json"
    if content is not None:
        path.write_text(content)
    sentence = refused(GoogleOptions(credentials=path))
    assert sentence.startswith("unauthenticated: STT_GOOGLE_CREDENTIALS: ")
    assert "key.json" in sentence


def test_a_credentials_file(user: Path) -> None:
    account = Account(GoogleOptions(credentials=user))
    assert account.credentials.refresh_token == "t"
    assert account.project == ""


def test_application_default_credentials(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(user))
    assert Account(GoogleOptions()).credentials.refresh_token == "t"


def test_v2_needs_a_project(user: Path) -> None:
    assert "set STT_GOOGLE_PROJECT" in refused(GoogleOptions(api="v2", credentials=user))
    assert Account(GoogleOptions(api="v2", credentials=user, project="p")).project == "p"
    named = "projects/q/locations/global/recognizers/r"
    assert Account(GoogleOptions(api="v2", credentials=user, recognizer=named)).project == "q"


@pytest.mark.parametrize("endpoint", ["localhost:1", "http://127.0.0.1:1", "https://localhost:1"])
def test_this_machine_is_given_no_credentials(user: Path, endpoint: str) -> None:
    account = Account(GoogleOptions(api="v2", endpoint=endpoint, credentials=user))
    assert isinstance(account.credentials, AnonymousCredentials)
    assert account.project == "local"


@pytest.mark.parametrize("make", [clients.async_client, clients.blocking_client])
async def test_the_channel_that_google_would_be_called_on(
    make: Any, user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Google's own address, over TLS, with the credentials, and the pool's arguments beside the client's."""
    options = GoogleOptions(credentials=user, location="eu")
    account = Account(options)
    transport = API["v1"].async_transport if make is clients.async_client else API["v1"].transport
    seen: dict[str, Any] = {}
    create = transport.create_channel

    def spy(host: str, **arguments: Any) -> Any:
        seen.update(arguments, host=host)
        return create(host, **arguments)

    monkeypatch.setattr(transport, "create_channel", spy)
    client = make(options, account, 7)
    assert seen["host"] == "eu-speech.googleapis.com:443"
    assert seen["credentials"] is account.credentials
    assert ("app.pool_index", 7) in seen["options"]
    assert ("grpc.max_receive_message_length", -1) in seen["options"]
    closing = client.transport.close()
    if closing is not None:
        await closing


HEAR = """
import asyncio, sys
from backends import registry
from backends.base import RecognitionConfig
from backends.scripted import marker_audio
from bridge.session.engine import Engine

async def main():
    for name in ("google", "google-threads"):
        backend = registry.load_class(name)
        engine = Engine(backend(backend.Options(api="v2", endpoint=sys.argv[1], replay_speed=0)))
        await engine.load()

        async def audio():
            yield marker_audio(2)

        said = [r.text async for r in engine.recognize(RecognitionConfig(), audio()) if r.is_final and r.text]
        print(name, *said)
        await engine.close()

asyncio.run(main())
"""


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for this machine, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl, which makes the test's certificate, is not installed")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    making = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    making += ["-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*making, "-out", str(cert), "-keyout", str(key)], check=True, capture_output=True)
    return cert, key


async def test_tls(certificate: tuple[Path, Path]) -> None:
    """In a process of its own: gRPC reads the trusted roots once."""
    cert, key = certificate
    async with emulating(EmulatorConfig(tls_cert=cert, tls_key=key)) as emulator:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            HEAR,
            f"https://localhost:{emulator.port}",
            cwd=ROOT,
            env=os.environ | {"GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(cert), "PYTHONPATH": str(ROOT)},
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await asyncio.wait_for(process.communicate(), 20)
    assert out.decode().splitlines() == ["google w0 w1", "google-threads w0 w1"]
