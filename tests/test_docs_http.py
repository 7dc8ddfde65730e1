"""docs/http.md against the code: every command is run on a real server, every table is complete."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import srt

from bridge.api import transcriptions
from bridge.api.job_descriptions import OPTIONS
from bridge.api.openai import PATH as OPENAI_PATH
from bridge.api.upload_states import FIELDS
from bridge.errors import ERRORS
from bridge.jobs.models import State
from bridge.jobs.webhooks import WebhookSecret
from bridge.settings import Settings
from tests.docs import ROOT, blocks, code, page, section, tables
from tests.wire import Json, get, spawned

HTTP = page("http.md")
COMMANDS = blocks(HTTP, "sh")
ADDRESS = "http://127.0.0.1:8000"
SAID = "hello there it is good to hear your voice today"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What `make run` starts."""
    with spawned(tmp_path_factory.mktemp("http"), {"STT_BACKEND": "pocketsphinx"}) as running:
        yield running.url
        running.assert_no_traceback()


async def shell(script: str, url: str) -> str:
    """What the commands write, run where the repository lies; they must succeed."""
    for program in ("bash", "curl", "ffmpeg", "split"):
        if program in script and shutil.which(program) is None:
            pytest.skip(f"there is no {program}")
    process = await asyncio.create_subprocess_exec(
        *("bash", "-euo", "pipefail", "-c", script.replace(ADDRESS, url)),
        cwd=ROOT,
        env=os.environ | {"TMPDIR": os.environ["XDG_STATE_HOME"]},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(40):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode()


def block(word: str) -> str:
    (found,) = (text for text in COMMANDS if word in text)
    return found


def names(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


def test_every_command_is_run_by_a_test_here() -> None:
    assert len(COMMANDS) == 8


# Commands


async def test_one_call(server: str) -> None:
    answer, *_ = blocks(section(HTTP, "One call"), "text")
    assert await shell(block("format=text"), server) == answer == f"{SAID}\n"
    document = json.loads(await shell(block("words=false"), server))
    assert (document["text"], document["backend"]) == (SAID, "pocketsphinx")
    assert not document["segments"][0]["words"]


async def test_raw_samples(server: str) -> None:
    assert (await shell(block("ffmpeg"), server)).startswith("WEBVTT\n\n00:00:00.")


async def test_a_stream(server: str) -> None:
    events = (await shell(block("stream=true"), server)).strip().split("\n\n")
    assert events[0].startswith("event: final\ndata: {")
    assert events[-1].startswith("event: done\ndata: {")
    assert SAID in events[-1]


async def test_as_openai_has_it(server: str) -> None:
    cues, _, models = (await shell(block("whisper-1"), server)).partition('{"object"')
    assert " ".join(cue.content.replace("\n", " ") for cue in srt.parse(cues)) == SAID
    assert "pocketsphinx" in models


async def test_openai_s_client(server: str) -> None:
    example = next(text for text in blocks(HTTP, "python") if "OpenAI(" in text)
    output = io.StringIO()

    def run() -> None:
        with contextlib.redirect_stdout(output), contextlib.chdir(ROOT):
            exec(compile(example.replace(ADDRESS, server), "docs/http.md", "exec"), {})

    await asyncio.to_thread(run)
    assert output.getvalue().strip() == SAID


async def test_a_job(server: str) -> None:
    output = await shell(block("/v1/jobs/$job/events"), server)
    assert "event: succeeded" in output
    assert f'"result":{{"text":"{SAID}"' in output.replace(": ", ":")
    assert "00:00:00," in output
    assert (await get(f"{server}/v1/jobs?state=succeeded")).json["jobs"] == []  # deleted by the last line


async def test_chunks(server: str) -> None:
    """The last one but two says what is missing, the last one makes a job of it."""
    first, last, third, second, state = await documents(block("split"), server)
    assert (first["received"], first["complete"]) == (1, False)
    assert (last["error"]["code"], last["missing"]) == ("upload_incomplete", [1, 2])
    assert third["missing"] == [2]
    assert second["complete"]
    assert state["task_id"] == state["job"]["id"]
    assert state["bytes"] == (ROOT / "samples/hello.flac").stat().st_size


async def test_tus(server: str) -> None:
    (state,) = await documents(block("Upload-Length"), server)
    assert state["complete"]
    job = (await get(f"{server}{state['job']['url']}")).json
    assert job["source"]["name"] == "hello.flac"


async def documents(script: str, url: str) -> list[Json]:
    """The JSON documents that it writes, one behind the other."""
    text = (await shell(script, url)).strip()
    found: list[Json] = []
    while text:
        document, end = json.JSONDecoder().raw_decode(text)
        found.append(document)
        text = text[end:].lstrip()
    return found


def test_a_signature() -> None:
    example = next(text for text in blocks(HTTP, "python") if "webhook-signature" in text)
    space: dict[str, object] = {}
    exec(compile(example, "docs/http.md", "exec"), space)
    genuine = space["genuine"]
    assert callable(genuine)
    for text in ("whsec_c2VzYW1lc2VzYW1lc2VzYW1lc2VzYW1l", "any text that is long enough"):
        now, body = int(time.time()), b'{"type":"job.succeeded"}'
        signed = {"webhook-id": "msg_1", "webhook-timestamp": str(now)}
        signed["webhook-signature"] = WebhookSecret(text).sign("msg_1", now, body)
        assert genuine(text, signed, body)
        assert not genuine(text, signed, body + b" ")
        old = signed | {"webhook-timestamp": str(now - 1_000)}
        assert not genuine(
            text, old | {"webhook-signature": WebhookSecret(text).sign("msg_1", now - 1_000, body)}, body
        )


# Tables


def test_query_of_one_call() -> None:
    (rows,) = tables(section(HTTP, "One call"))
    named = set[str]().union(*(names(row["Query"]) for row in rows))
    assert named == {parameter["name"] for parameter in transcriptions._PARAMETERS}


def test_fields_of_jobs_and_chunks() -> None:
    requests, fields = tables(section(HTTP, "Jobs"))[:2]
    assert "cancelled" in " ".join(row["Does"] for row in requests)
    assert set[str]().union(*(names(row["Field"]) for row in fields)) == {*OPTIONS, "file"}
    text = section(HTTP, "Jobs")
    assert all(f"`{state}`" in text for state in State)
    (chunk,) = tables(section(HTTP, "Chunks"))
    named = set[str]().union(*(names(row["Field"]) for row in chunk))
    assert named == {"session_id", "seq", "is_last", "chunk", *FIELDS} - {"first_seq"}


async def test_fields_of_openai(server: str) -> None:
    (rows,) = tables(section(HTTP, "OpenAI's clients"))
    schema = (await get(f"{server}/openapi.json")).json["paths"][OPENAI_PATH]["post"]
    known = set(schema["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"])
    ignored = names(rows[-1]["Field"])
    assert set[str]().union(*(names(row["Field"]) for row in rows[:-1])) <= known
    assert "temperature" in ignored & known


def test_limits() -> None:
    (rows,) = tables(section(HTTP, "Refusals"))
    shown = {"2 GiB": 2 << 30, "4 hours": 14_400.0, "256": 256}
    for row in rows:
        if row["Variable"]:
            name = code(row["Variable"]).removeprefix("STT_").lower()
            assert shown[row["Default"]] == Settings.model_fields[name].default
        if row["Beyond it"]:
            name, _, status = row["Beyond it"].partition(" ")
            assert ERRORS[code(name)].status == int(status.strip("()"))


def test_the_page_names_what_there_is() -> None:
    assert Path(ROOT / "samples/hello.flac").is_file()
    for variable in ("job_retention_seconds", "upload_seconds", "job_workers", "webhook_secret", "webhook_hosts"):
        assert variable in Settings.model_fields
        assert f"STT_{variable.upper()}" in HTTP
