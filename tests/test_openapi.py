"""The OpenAPI document: schemathesis asks everything that it allows, and everything it does not."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.conftest import Spawn
from tests.wire import engine_env, get

SECONDS = 50
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "response_headers_conformance,unsupported_method,allow_header_conformance"
)


@pytest.mark.timeout(90)
async def test_no_fault_and_nothing_undocumented(spawn: Spawn, tmp_path: Path) -> None:
    """Answers of 500 and more are faults, and a status that the document does not name for the route is one, too."""
    server = spawn(engine_env() | {"STT_ADMIN_KEYS": "sesame"})
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "--checks", CHECKS),
        *("--max-examples", "20", "--seed", "7", "--generation-database", "none", "--suppress-health-check", "all"),
        *("--header", "X-API-Key: sesame", "--no-color"),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(SECONDS):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, output.decode()[-8_000:]
    server.assert_no_traceback()


async def test_every_refusal_has_an_example(plain: str) -> None:
    """Every operation says how it refuses, with the code; nothing of the framework's own shapes is left."""
    schema = (await get(f"{plain}/openapi.json")).json
    assert "HTTPValidationError" not in schema["components"]["schemas"]
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], (method, path)
            assert operation["description"], (method, path)
            assert {"400", "401", "403", "429", "500", "503"} <= set(operation["responses"]), (method, path)
            for status, answer in operation["responses"].items():
                if int(status) >= 400 and (path, status) != ("/readyz", "503"):  # that one says more
                    assert any("examples" in media for media in answer["content"].values()), (method, path, status)
