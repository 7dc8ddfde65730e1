"""docs/protocol.md against the code, in both directions: what either has, the other has too."""

from __future__ import annotations

import ast
import asyncio
import json
import re
import shutil
import subprocess
import sys
import types
import typing
import wave
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from bridge.app import serving
from bridge.audio import formats
from bridge.errors import ERRORS, WARNINGS
from bridge.protocols import native
from bridge.settings import Settings
from tests.docs import ROOT, blocks, code, page, section, tables

PAGE = page("protocol.md")
TAGGED: dict[str, Any] = {
    message.__struct_config__.tag: message
    for message in (*get_args(native.ClientMessage), *get_args(native.ServerMessage))
}
CLIENT = {message.__struct_config__.tag for message in get_args(native.ClientMessage)}
UNTAGGED: dict[str, tuple[Any, int]] = {
    "The shape of the earliest Android clients": (native.LegacyAudioMessage, 0),
    "`ready`": (native.Limits, 1),
    "`final`": (native.WordObject, 1),
}


def rows_of(title: str, index: int = 0) -> list[dict[str, str]]:
    found = tables(section(PAGE, title))
    return found[index] if len(found) > index else []


def json_type(annotation: Any) -> str:
    """How the page names a type."""
    if typing.get_origin(annotation) is typing.Annotated:
        return json_type(get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(json_type(arm) for arm in get_args(annotation) if arm is not types.NoneType))
    if typing.get_origin(annotation) is tuple:
        inner = get_args(annotation)[0]
        return "array of words" if inner is native.WordObject else f"array of {json_type(inner)}s"
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return "object"
    if typing.get_origin(annotation) is typing.Literal:
        return json_type(type(get_args(annotation)[0]))
    names: dict[Any, str] = {str: "string", bytes: "string", int: "integer", float: "number", bool: "boolean"}
    return names[annotation]


def check_fields(message: type[msgspec.Struct], rows: list[dict[str, str]]) -> None:
    fields = msgspec.structs.fields(message)
    hints = typing.get_type_hints(message, include_extras=True)
    assert [code(row["Field"]) for row in rows] == [field.name for field in fields]
    for row, field in zip(rows, fields, strict=True):
        assert row["Type"] == json_type(hints[field.name]), field.name
        assert row["Meaning"].endswith(".")
        if "Default" in row:
            if field.required:
                assert row["Default"] == "required"
            else:
                default = json.loads(code(row["Default"]))
                assert (tuple(default) if isinstance(default, list) else default) == field.default
        else:
            assert (row["Present"] == "always") == field.required, field.name


# Messages


@pytest.mark.parametrize("tag", TAGGED)
def test_message(tag: str) -> None:
    rows = rows_of(f"`{tag}`")
    check_fields(TAGGED[tag], rows)
    if rows:
        assert ("Default" in rows[0]) == (tag in CLIENT)


@pytest.mark.parametrize("title", UNTAGGED)
def test_message_without_a_tag(title: str) -> None:
    message, index = UNTAGGED[title]
    check_fields(message, rows_of(title, index))


def test_no_other_messages() -> None:
    titles = re.findall(r"^### `(\w+)`$", PAGE, re.MULTILINE)
    assert titles == list(TAGGED)
    declared = {
        item.__struct_config__.tag or name
        for name, item in vars(native).items()
        if isinstance(item, type) and issubclass(item, msgspec.Struct)
    }
    assert declared == {*TAGGED, *(message.__name__ for message, _ in UNTAGGED.values())}


def test_order() -> None:
    rows = rows_of("What is allowed when")
    listed = {(code(row["State"]), code(row["Message"])): code(row["State after it"]) for row in rows}
    assert listed == dict(native.TRANSITIONS)


def test_examples_are_messages() -> None:
    """Whatever looks like a message on the page can be decoded."""
    decoder = msgspec.json.Decoder(native.ClientMessage)
    found = re.findall(r'\{"type":"\w+"[^}\n]*\}', PAGE)
    assert found
    for text in found:
        decoder.decode(text)


# Audio


def test_encodings() -> None:
    rows = rows_of("Audio")
    assert [code(row["`encoding`"]) for row in rows] == [encoding.value for encoding in formats.Encoding]
    aliases = {alias: code(row["`encoding`"]) for row in rows for alias in re.findall(r"`(\w+)`", row["Also accepted"])}
    assert aliases == {alias: encoding.value for alias, encoding in formats._ALIASES.items()}


# Codes


def test_errors() -> None:
    said = {"yes": True, "no": False}
    listed = [
        (
            code(row["Code"]),
            int(row["Close code"]),
            int(row["HTTP status"]),
            row["Fault"],
            said[row["Fatal"]],
            said[row["Retryable"]],
            row["Meaning"],
        )
        for row in rows_of("Errors")
    ]
    assert listed == [
        (row.name, row.close, row.status, row.fault, row.fatal, row.retryable, row.meaning) for row in ERRORS.values()
    ]


def test_warnings() -> None:
    assert {code(row["Code"]): row["Meaning"] for row in rows_of("Warnings")} == WARNINGS


def test_every_warning_that_is_made_has_a_row_and_every_row_is_made() -> None:
    made = set()
    for path in [*(ROOT / "bridge" / "audio").rglob("*.py"), *(ROOT / "bridge" / "session").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and node.value in WARNINGS:
                made.add(node.value)
    assert made == set(WARNINGS)


# Limits

FIXED = {
    "sample rate": (f"{formats.MIN_RATE} to {formats.MAX_RATE} Hz"),
    "channels": f"1 to {formats.MAX_CHANNELS}",
    "phrases": str(native.MAX_PHRASES),
    "one phrase": f"1 to {native.MAX_PHRASE_CHARS} characters",
    "`language`": "35 characters",
    "`backend`": "100 characters",
    "`encoding`": "40 characters",
    "`audio_id`": f"{native.MAX_ID_CHARS} characters",
}


def test_limits_that_can_be_set() -> None:
    names = list(Settings.model_fields)
    bounding = [*names[names.index("max_sessions") : names.index("breaker_share")], "threads"]
    listed = {code(row["Variable"]): row["Default"] for row in rows_of("Limits") if row["Variable"]}
    assert set(listed) == {f"STT_{name.upper()}" for name in bounding}
    for name in bounding:
        number = float(listed[f"STT_{name.upper()}"].split()[0])
        assert number == Settings.model_fields[name].default


def test_limits_that_are_fixed() -> None:
    listed = {row["Limit"]: row["Default"] for row in rows_of("Limits") if not row["Variable"]}
    assert listed == FIXED
    for field, most in (("language", 35), ("backend", 100), ("encoding", 40)):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({"type": "start", field: "x" * (most + 1)}, native.StartMessage)
        msgspec.convert({"type": "start", field: "x" * most}, native.StartMessage)


def test_codes_named_on_the_page_exist() -> None:
    named = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", PAGE))
    fields = {field for message in TAGGED.values() for field in message.__struct_fields__}
    fields |= {field for message, _ in UNTAGGED.values() for field in message.__struct_fields__}
    encodings = {*formats._ALIASES, *(encoding.value for encoding in formats.Encoding)}
    assert named - fields - encodings - {"api_key", *TAGGED} <= {*ERRORS, *WARNINGS}


def test_variables_named_on_the_page_exist() -> None:
    named = set(re.findall(r"STT_[A-Z_]+", PAGE))
    assert named <= {f"STT_{name.upper()}" for name in Settings.model_fields}


# The clients


async def test_the_python_client(tmp_path: Path) -> None:
    (client,) = blocks(PAGE, "python")
    program = tmp_path / "client.py"
    program.write_text(client)
    with wave.open(str(tmp_path / "speech.wav"), "wb") as recording:
        recording.setnchannels(2)
        recording.setsampwidth(2)
        recording.setframerate(8_000)
        recording.writeframes(bytes(4 * 8_000 * 4))  # the scripted engine counts to six every three seconds
    env = {"STT_BACKEND": "scripted"}
    async with serving(Settings.load(env, env_file=None, port=0), env) as url:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(program),
            url.replace("http", "ws") + "/v1/stream",
            str(tmp_path / "speech.wav"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), 20)
    assert out.decode().splitlines() == ["   0.00  one two three four five six", "   3.00  one two"]
    assert err.decode().splitlines() == ["closed stopped"]


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_browser_snippet_is_javascript(tmp_path: Path) -> None:
    (snippet,) = blocks(PAGE, "javascript")
    program = tmp_path / "snippet.mjs"
    program.write_text(snippet)
    subprocess.run(["node", "--check", program], check=True, capture_output=True, timeout=20)
