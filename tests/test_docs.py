"""The documentation against the code: links, examples that run, tables that are complete."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args
from urllib.parse import unquote

import pytest

from backends import pocketsphinx_backend, pocketsphinx_recognizer, registry
from backends.endpointing import EndpointRules
from backends.registry import GROUP
from backends.scripted import MARKER, MARKER_PAUSE, MARKER_SECONDS, Script, Scripted, ScriptedFault
from bridge.api.admin import PATH, WAIT_SECONDS, ModelRequest, ModelState
from bridge.api.health import Readiness
from bridge.app import serving
from bridge.client import SessionError, connect
from bridge.errors import ERRORS
from bridge.observe import logs
from bridge.observe.metrics import Metrics
from bridge.processes.figures import ANSWER_SECONDS, UP
from bridge.processes.parent import FIRST_PAUSE, LONGEST_PAUSE, MOST_FAILURES
from bridge.protocols.native import ClosedMessage, FinalMessage, StartMessage
from bridge.settings import Settings, option_prefix
from bridge.transports.websocket_protocol import SMALL_MESSAGE, WAITING_MESSAGES, WRITE_HIGH_WATER
from tests import render_configuration
from tests.docs import ROOT, blocks, code, page, section, tables

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


async def transcript(env: dict[str, str], audio: bytes) -> list[FinalMessage]:
    """The finals of one session on a server of its own."""
    async with (
        serving(Settings.load(env, env_file=None, port=0), env) as url,
        connect(url.replace("http", "ws") + "/v1/stream", StartMessage()) as client,
    ):
        await client.send(audio)
        await client.stop()
        messages = [message async for message in client]
    assert isinstance(messages[-1], ClosedMessage)
    assert messages[-1].code == "stopped"
    return [message for message in messages if isinstance(message, FinalMessage)]


# Links


def anchors(text: str) -> set[str]:
    """The names that GitHub gives headings."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.name))
def test_links_resolve(path: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = unquote(link).partition("#")
        target = path.parent / name if name else path
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.name))
def test_files_named_exist(path: Path) -> None:
    """Paths in code spans and commands, of the folders that the project has."""
    pattern = r"(?<![\w/.])((?:bridge|backends|docs|tests|samples|bench)/[\w/.-]*[\w/])"
    for name in re.findall(pattern, path.read_text()):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.name))
def test_variables_named_exist(path: Path) -> None:
    known = {f"STT_{name.upper()}" for name in Settings.model_fields} | {"STT_API_KEY", "STT_LOUDNESS_THRESHOLD"}
    for engine in map(registry.load_class, render_configuration.CLASSES):
        prefix = option_prefix(engine.settings_name())
        options: Any = engine.Options
        known |= {prefix, *(prefix + field.name.upper() for field in dataclasses.fields(options))}
    named = set(re.findall(r"STT_[A-Z_]+", path.read_text())) - {"STT_", "STT_POCKETSPHINX_STREEMS"}
    assert named <= known


def test_every_page_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    assert {path.name for path in (ROOT / "docs").glob("*.md")} <= set(re.findall(r"\]\(docs/([\w.]+)\)", readme))


# docs/backends.md


@pytest.fixture
def loudness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example of docs/backends.md, installed as pip would."""
    text = page("backends.md")
    (module,) = blocks(text, "python")
    project = tomllib.loads(blocks(text, "toml")[0])["project"]
    (tmp_path / "loudness.py").write_text(module)
    info = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = "\n".join(f"{name} = {target}" for name, target in project["entry-points"][GROUP].items())
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{points}\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("loudness", None)


@pytest.mark.usefixtures("loudness")
async def test_the_third_party_backend_runs() -> None:
    assert registry.names()[-1] == "loudness"
    assert registry.probe("loudness").available
    loud, quiet = b"\xe8\x03" * 16_000, bytes(32_000)  # 1000 and 0
    finals = await transcript({"STT_BACKEND": "loudness"}, loud + quiet + loud[:16_000])
    assert [(f.text, f.start, f.end) for f in finals] == [("loud", 0, 1), ("quiet", 1, 2), ("loud", 2, 2.5)]
    finals = await transcript({"STT_BACKEND": "loudness", "STT_LOUDNESS_THRESHOLD": "1001"}, loud)
    assert [f.text for f in finals] == ["quiet"]


def test_the_third_party_backend_is_small() -> None:
    (module,) = blocks(page("backends.md"), "python")
    assert len([line for line in module.splitlines() if line.strip()]) <= 25


def test_every_backend_is_listed() -> None:
    rows = tables(page("backends.md"))[0]
    assert [code(row["Name"]) for row in rows] == list(registry._BUILT_IN)


def test_the_script_s_format() -> None:
    text = section(page("backends.md"), "The script")
    results, faults, kinds = tables(text)
    optional = {"is_final": "final"}
    assert [code(row["Field of a result"]) for row in results] == [
        "at",
        "text",
        *(optional.get(f.name, f.name) for f in dataclasses.fields(Scripted) if f.name not in ("at", "text")),
    ]
    assert [code(row["Field of a fault"]) for row in faults] == [f.name for f in dataclasses.fields(ScriptedFault)]
    for row, field in zip(faults, dataclasses.fields(ScriptedFault), strict=True):
        if row["Default"] != "required":
            assert json.loads(code(row["Default"])) == field.default
    allowed = re.search(r"Literal\[(.*?)\]", str(ScriptedFault.__annotations__["kind"]))
    assert allowed
    assert [code(row["Kind"]) for row in kinds] == re.findall(r"\w+", allowed[1])
    assert Script.parse({"results": [{"at": 1, "text": "a"}]}).results == (Scripted(1, "a", False, 0.0, 1),)


async def test_the_example_script_runs(tmp_path: Path) -> None:
    (example,) = blocks(page("backends.md"), "json")
    script = tmp_path / "script.json"
    script.write_text(example)
    finals = await transcript({"STT_BACKEND": "scripted", "STT_SCRIPTED_SCRIPT": str(script)}, bytes(3 * 32_000))
    assert [f.text for f in finals] == ["turn on the light", "thank you"]


async def test_a_script_that_rejects(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text('{"faults": [{"at": 9, "kind": "reject"}]}')
    env = {"STT_BACKEND": "scripted", "STT_SCRIPTED_SCRIPT": str(script)}
    async with (
        serving(Settings.load(env, env_file=None, port=0), env) as url,
        connect(url.replace("http", "ws") + "/v1/stream") as client,
    ):
        with pytest.raises(SessionError) as caught:
            [message async for message in client]
    assert caught.value.code == "backend_rejected"


def test_numbers_of_pocketsphinx() -> None:
    text = section(page("backends.md"), "`pocketsphinx`")
    rules = EndpointRules()
    assert f"{pocketsphinx_backend.STREAMS_PER_CORE} streams for each core" in text
    assert f"{rules.hangover_window * 0.03:.2f} s of silence" in text
    assert f"after {pocketsphinx_recognizer.LONGEST_FRAMES * 0.03:.0f} s" in text


def test_numbers_of_markers() -> None:
    text = section(page("backends.md"), "Markers")
    assert f"value {MARKER} + i" in text
    assert f"{MARKER_SECONDS} s" in text
    assert f"{MARKER_PAUSE} s" in text


# docs/operations.md


def test_every_metric_is_listed() -> None:
    (rows,) = tables(section(page("operations.md"), "Metrics"))
    listed = {code(row["Metric"]): (row["Type"], re.findall(r"`(\w+)`", row["Labels"])) for row in rows}
    made = {}
    for collector in Metrics().registry._collector_to_names:
        for family in collector.collect():
            name = family.name + ("_total" if family.type == "counter" else "")
            made[name] = (family.type, list(getattr(collector, "_labelnames", ())))
    assert listed == made


def test_every_metric_of_whisper_is_listed() -> None:
    metrics = pytest.importorskip("backends.whisper.metrics").WhisperMetrics()
    (rows,) = [rows for rows in tables(section(page("backends.md"), "Many sessions")) if "Metric" in rows[0]]
    listed = {code(row["Metric"]): row["Type"] for row in rows}
    made = {}
    for collector in metrics.collectors:
        for family in collector.describe() if hasattr(collector, "describe") else collector.collect():
            made[family.name + ("_total" if family.type == "counter" else "")] = family.type
    assert listed == made
    assert set(re.findall(r"`(stt_whisper_\w+)`", page("backends.md"))) == set(made)


def test_metrics_named_exist() -> None:
    text = page("operations.md")
    known = {code(row["Metric"]) for row in tables(section(text, "Metrics"))[0]}
    assert set(re.findall(r"`(stt_\w+)`", text)) == known | {UP}


def test_numbers_of_several_processes() -> None:
    text = section(page("operations.md"), "On several cores")
    assert ANSWER_SECONDS == 2
    assert MOST_FAILURES == 5
    for sentence in ("within two seconds", f"{FIRST_PAUSE:g} s", f"up to {LONGEST_PAUSE:g} s", "five starts"):
        assert sentence in text.replace("\n", " ")


def test_readiness_is_described() -> None:
    text = section(page("operations.md"), "Health")
    assert [code(row["Field"]) for row in tables(text)[1]] == list(Readiness.model_fields)
    Readiness.model_validate_json(blocks(text, "json")[0], strict=True)


def test_changing_the_model_is_described() -> None:
    text = section(page("operations.md"), "Change the model")
    fields, answers = tables(text)
    assert [code(row["Field"]) for row in fields] == list(ModelState.model_fields)
    states = get_args(ModelState.model_fields["state"].annotation)
    (state,) = (row["Meaning"] for row in fields if row["Field"] == "`state`")
    assert tuple(re.findall(r"`(\w+)`", state)) == states
    ModelState.model_validate_json(blocks(text, "json")[0], strict=True)
    asked = re.search(r"-d '(.*?)'.*:8000(/\S+)$", text, re.MULTILINE)
    assert asked
    ModelRequest.model_validate_json(asked[1])
    assert asked[2] == PATH
    assert f"after {WAIT_SECONDS:.0f} s" in text
    for row in answers:
        for name in re.findall(r"`(\w+)`", row["Code"]):
            assert str(ERRORS[name].status) == row["HTTP status"], name


def test_log_fields_are_those_of_the_formatter() -> None:
    rows = tables(section(page("operations.md"), "Logs"))[0]
    handler_fields = {"time", "level", "logger", "message", "exc_info", "process"}
    named = {code(row["Field"]) for row in rows}
    assert named - handler_fields <= set(logs._EXTRAS)
    root = logging.getLogger()
    kept, level = root.handlers[:], root.level
    quieted = {name: logging.getLogger(name).level for name in ("uvicorn.error", "uvicorn.access", "websockets")}
    try:
        logs.configure("info", "json")
        record = logging.makeLogRecord({"msg": "session closed", "levelname": "INFO", "name": "bridge", "session": "s"})
        line = json.loads(root.handlers[0].format(record))
    finally:
        root.handlers[:] = kept
        root.setLevel(level)
        for name, before in quieted.items():
            logging.getLogger(name).setLevel(before)
    assert set(line) - {"taskName"} == {"time", "level", "logger", "message", "session"}


def test_the_memory_of_a_session() -> None:
    rows = tables(section(page("operations.md"), "Memory"))[0]
    bounds = [row["Bound"] for row in rows]
    settings = Settings.load({}, None)
    message = settings.max_message_bytes
    assert bounds == [
        f"{settings.replay_seconds * 32_000 / 1e6:.1f} MB",
        f"{message * 4 / 1e6:.1f} MB",
        f"{(2 * message + WAITING_MESSAGES * SMALL_MESSAGE) / 1e6:.1f} MB",
        "256 kB",
        f"{WRITE_HIGH_WATER // 1024} kB",
        f"{settings.outbox_events} messages",
    ]
