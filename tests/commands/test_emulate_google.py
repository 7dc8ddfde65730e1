from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import logging
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from backends.scripted import marker_audio
from bridge.cli import main, make_parser
from bridge.commands.exits import Exit
from bridge.emulator.faults import Faults, read_plan
from bridge.emulator.server import EmulatorConfig, emulating
from tests.commands.conftest import clean_environment
from tests.docs import blocks, code, page, section, tables
from tests.emulator.harness import V1, V2, Call, Client, open_channel

AUDIO = marker_audio(3)
WORDS = ["w0", "w1", "w2"]


@pytest.fixture(autouse=True)
def same_logging() -> Iterator[None]:
    """A command that runs in this process sets up the log."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


class Process:
    """The command in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.banner = ""
        assert process.stderr is not None
        while "connect" not in self.banner:
            line = process.stderr.readline()
            assert line, f"it did not start: {self.banner}"
            self.banner += line
        found = re.search(r"^  endpoint  (\S+)$", self.banner, re.MULTILINE)
        assert found, self.banner
        self.address = found[1]

    def end(self, number: signal.Signals) -> str:
        """Send it a signal; what else it said until its end, which must be an orderly one."""
        self.process.send_signal(number)
        _, rest = self.process.communicate(timeout=20)
        assert self.process.returncode == 0, rest
        return rest


@contextlib.contextmanager
def started(*args: str) -> Iterator[Process]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bridge", "emulate-google", "--port", "0", *args],
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )
    try:
        yield Process(process)
    finally:
        process.kill()
        process.communicate()


@contextlib.asynccontextmanager
async def calling(client: Client, address: str) -> AsyncIterator[Call]:
    channel = open_channel(address)
    try:
        async with client.call(channel) as call:
            yield call
    finally:
        await channel.close()


async def test_both_apis_until_a_signal() -> None:
    with started("--mode", "words", "--pace-seconds", "0") as server:
        assert f"STT_BACKEND=google STT_GOOGLE_ENDPOINT=http://{server.address} stt-bridge serve" in server.banner
        for client in (V1, V2):
            heard = await client.converse(server.address, [client.config(), *client.audio(AUDIO)])
            assert heard.words == WORDS
        log = await asyncio.to_thread(server.end, signal.SIGTERM)
    lines = [line for line in log.splitlines() if "ended" in line]
    assert [re.sub(r"^\S+ ", "", line) for line in lines] == [
        f"INFO    stream {number} (v{number + 1}) ended: OK, 1.8 s of audio" for number in range(2)
    ]
    assert "w0" not in log
    assert "Traceback" not in log


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_open_streams_at_once(number: signal.Signals) -> None:
    with started("--mode", "words") as server:
        async with calling(V1, server.address) as call:
            await call.send(V1.config(), *V1.audio(AUDIO))
            assert await call.read()
            began = time.monotonic()
            log = await asyncio.to_thread(server.end, number)
            assert time.monotonic() - began < 5  # the stream itself would wait for audio much longer
            assert (await call.rest()).code.name == "UNAVAILABLE"
        assert "Traceback" not in log


async def test_options_reach_the_server(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text('[{"refuse": "ABORTED"}, {}]')
    options = [
        "--mode",
        "echo",
        "--abort-at",
        "0.5:internal",
        "--message",
        "no",
        "--location",
        "eu",
        "--message-bytes",
        "3200",
    ]
    with started(*options, "--plan", str(plan)) as server:
        code, text = await V1.refused(server.address, V1.config())
        assert (code, text) == ("ABORTED", "The operation was aborted.")
        code, text = await V1.refused(server.address, V1.config(), *V1.audio(bytes(4_000), 4_000))
        assert "a maximum of 3200 bytes" in text
        messages = V1.audio(bytes(19_200))
        assert await V1.refused(server.address, V1.config(), *messages) == ("INTERNAL", "no")
        code, text = await V2.refused(server.address, V2.config())
        assert text == "Expected resource location to be eu, but found global in resource name."


WRONG = {
    "--host 0.0.0.0": "--insecure",
    "--host 192.0.2.1 --mode words": "--insecure",
    "--tls-cert a.pem": "belong together",
    "--tls-cert a.pem --tls-key b.pem": "PEM",
    "--backend nonsense": "'nonsense' is not one of ",
    "--backend scripted --mode words": "--backend belongs to --mode speech",
    "--abort-at soon": "SECONDS:STATUS",
    "--abort-at nan": "from 0 on",
    "--abort-at 3:NONSENSE": "is not one of OK, CANCELLED",
    "--refuse NONSENSE": "is not one of OK, CANCELLED",
    "--refuse ABORTED:few": "STATUS:COUNT",
    "--plan missing.json": "missing.json cannot be read",
}


@pytest.mark.parametrize("options", WRONG)
def test_wrong_options(options: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["emulate-google", "--port", "0", *options.split()]) == Exit.USAGE
    error = capsys.readouterr().err
    assert WRONG[options] in error
    assert error.startswith("stt-bridge: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "options", ["--nonsense", "--mode no", "--speed 0", "--lag -1", "--max-streams 0.5", "--port 70000", "--seed x"]
)
def test_wrong_usage(options: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["emulate-google", *options.split()])
    assert caught.value.code == Exit.USAGE
    assert options.split(maxsplit=1)[0] in capsys.readouterr().err


def test_settings_of_the_backend_that_are_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STT_SCRIPTED_MODE", "nonsense")
    assert main(["emulate-google", "--port", "0", "--backend", "scripted"]) == Exit.USAGE
    assert "STT_SCRIPTED_MODE" in capsys.readouterr().err
    monkeypatch.setenv("STT_SCRIPTED_MODE", "script")
    monkeypatch.setenv("STT_SCRIPTED_SCRIPT", "missing.json")
    assert main(["emulate-google", "--port", "0", "--backend", "scripted"]) == Exit.FAILED
    assert "missing.json" in capsys.readouterr().err


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["emulate-google", "--mode", "echo", "--port", str(port)]) == Exit.FAILED
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


def run_python(source: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", source]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=clean_environment())


def test_without_the_package() -> None:
    source = "import sys; sys.modules.update({'grpc': None, 'google.cloud': None}); from bridge.cli import main; "
    done = run_python(source + "sys.exit(main(['emulate-google']))")
    assert done.returncode == Exit.FAILED
    assert done.stderr == (
        "stt-bridge: the emulator needs the package google-cloud-speech; "
        "install it with: pip install 'stt-bridge[google]'\n"
    )


def test_help_loads_no_package_of_google() -> None:
    source = "import sys; from bridge.cli import make_parser; make_parser().format_help(); "
    done = run_python(source + "print({'grpc', 'google.cloud', 'bridge.emulator'} & set(sys.modules))")
    assert done.stdout == "set()\n"


# docs/emulator.md


def options() -> dict[str, argparse.Action]:
    subparsers = next(a for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction))
    parser: argparse.ArgumentParser = subparsers.choices["emulate-google"]
    return {action.option_strings[-1]: action for action in parser._actions if action.dest != "help"}


def test_every_option_is_listed() -> None:
    (rows,) = tables(section(page("emulator.md"), "Options"))
    actions = options()
    assert [code(row["Option"]) for row in rows] == list(actions)
    for row in rows:
        default = actions[code(row["Option"])].default
        assert row["Default"] == ("" if default is None or default is False else f"`{default}`"), row
    (modes,) = tables(section(page("emulator.md"), "What it hears"))
    assert [code(row["Mode"]) for row in modes] == list(actions["--mode"].choices or ())


def test_commands_of_the_page_are_understood() -> None:
    found = re.findall(r"^    stt-bridge (emulate-google.*)$", page("emulator.md"), re.MULTILINE)
    assert len(found) == 4
    for line in found:
        make_parser().parse_args(line.split())


def test_the_plan_s_format(tmp_path: Path) -> None:
    text = section(page("emulator.md"), "Plan")
    (rows,) = tables(text)
    fields = {field.name: field.default for field in dataclasses.fields(Faults)}
    assert {code(row["Field"]): json.loads(code(row["Default"])) for row in rows} == fields
    path = tmp_path / "plan.json"
    path.write_text(blocks(text, "json")[0])
    assert [faults.refuse for faults in read_plan(path)] == [None, None, "UNAVAILABLE", None]


async def test_the_examples_run() -> None:
    client, in_tests = blocks(page("emulator.md"), "python")
    names: dict[str, Any] = {}
    exec(client, names)
    exec(in_tests, names)
    async with emulating(EmulatorConfig(mode="words")) as emulator:
        assert await asyncio.to_thread(names["recognize"], emulator.address, AUDIO) == WORDS

    async def converse(address: str) -> None:
        await V1.refused(address, V1.config(), *V1.audio(bytes(163_200), 20_400))

    assert await names["try_it"](converse) == ["UNAVAILABLE"]
