"""WhisperLive's own server with a recognizer that costs nothing: run by path, in the virtual environment of `peers`.

Its receive loop, threads, buffers and messages are the installed package's, untouched: `TranscriptionServer.run` with
the backend `faster_whisper`. In place of what a benchmark of the bridging does not need stand empty modules (torch,
the REST interface, the voice detector); in place of the model stands one that counts to six by the audio's clock, as
this project's scripted engine does: a word every half second, a segment of six words.

What follows from its own rules, and is no fault of the stand-in: it hears nothing before a second of audio waits, and
a segment is final only when the next one begins, half a second later. What no final covers at the end stays a partial.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import sys
import types
from typing import Any, Final, NamedTuple

STEP: Final = 8_000
"""Samples of a word: half a second at 16 kHz."""
WORDS: Final = ("one", "two", "three", "four", "five", "six")
NO_LIMIT: Final = 1_000_000
"""Clients, and seconds of a connection: the server's own limits are not what is measured."""

UNUSED: Final = (
    "ctranslate2",
    "fastapi",
    "fastapi.middleware.cors",
    "fastapi.responses",
    "faster_whisper",
    "huggingface_hub",
    "onnxruntime",
    "starlette.responses",
    "torch",
    "uvicorn",
)


class Unused(types.ModuleType):
    """A package that the server imports and, without its engine and its REST interface, does not use."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return object


class Segment(NamedTuple):
    """What the server reads of faster-whisper's segments; times in seconds from the start of the audio given."""

    start: float
    end: float
    text: str
    no_speech_prob: float = 0.0


class Info(NamedTuple):
    """What it reads of the rest."""

    language: str = "en"
    language_probability: float = 1.0


class WhisperModel:
    """The stand-in for the model."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def transcribe(self, audio: Any, **_: object) -> tuple[tuple[Segment, ...], Info]:
        """What has been said in so much audio."""
        return spoken(len(audio) // STEP), Info()


@functools.lru_cache(256)
def spoken(words: int) -> tuple[Segment, ...]:
    """So many words, in segments of six."""
    segments = []
    for first in range(0, words, len(WORDS)):
        said = WORDS[: words - first]
        segments.append(Segment(first / 2, (first + len(said)) / 2, " " + " ".join(said)))
    return tuple(segments)


def put_in_place() -> None:
    """Put the stand-ins where the server will import from."""
    for name in UNUSED:
        sys.modules[name] = Unused(name)
    vars(sys.modules["torch"])["cuda"] = types.SimpleNamespace(is_available=lambda: False)
    name = "whisper_live.transcriber.transcriber_faster_whisper"
    vars(sys.modules.setdefault(name, types.ModuleType(name)))["WhisperModel"] = WhisperModel


def announced(serve: Any) -> Any:
    """`serve`, saying on stderr where it listens: the server itself tells nobody which free port it got."""

    @functools.wraps(serve)
    def serving(*args: Any, **options: Any) -> Any:
        server = serve(*args, **options)
        print(f"stream  ws://127.0.0.1:{server.socket.getsockname()[1]}", file=sys.stderr, flush=True)
        return server

    return serving


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    port = parser.parse_args().port
    put_in_place()
    server = importlib.import_module("whisper_live.server")
    vars(server)["serve"] = announced(server.serve)
    server.TranscriptionServer().run(
        "127.0.0.1", port=port, backend="faster_whisper", max_clients=NO_LIMIT, max_connection_time=NO_LIMIT
    )


if __name__ == "__main__":
    main()
