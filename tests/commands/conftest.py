from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


def clean_environment(**variables: str) -> dict[str, str]:
    """This process's environment without settings, and with these."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("STT_")}
    return env | {"PYTHONPATH": str(ROOT)} | variables


@pytest.fixture(autouse=True)
def no_settings_of_the_developers(no_settings: None) -> None:
    """In every test of a command."""


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A command that runs in this process configures logging for the whole of it."""
    names = [None, "uvicorn.error", "uvicorn.access", "websockets"]
    levels = {name: logging.getLogger(name).level for name in names}
    handlers = logging.getLogger().handlers[:]
    yield
    logging.getLogger().handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real server on the scripted backend: it hears `one two … six`, a word every half second."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bridge", "serve", "--backend", "scripted", "--port", "0", "--log-level", "error"],
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(STT_API_KEYS="sesame"),
        cwd=tmp_path_factory.mktemp("server"),
    )
    assert process.stderr is not None
    try:
        seen = ""
        while (found := re.search(r"ws://\S+", seen)) is None or "try" not in seen:
            line = process.stderr.readline()
            assert line, f"the server did not start: {seen}"
            seen += line
        yield found.group()
    finally:
        process.terminate()
        process.communicate(timeout=10)


@pytest.fixture
def quiet_wav(tmp_path: Path) -> Path:
    """3.5 seconds, 16 kHz: the scripted backend hears seven words in it, a final after the sixth."""
    return write_wav(tmp_path / "quiet.wav", 3.5)


def write_wav(path: Path, seconds: float, rate: int = 16_000) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.zeros(round(seconds * rate), np.int16).tobytes())
    return path
