"""WhisperLiveKit's own server with a recognizer that costs nothing: run by path, in the environment of `peers`.

Its FastAPI application, tasks, queues, LocalAgreement policy and messages are the installed package's, on uvicorn as
its own command runs it: raw PCM in (`--pcm-input`), the backend `faster-whisper`. The voice detector is off (it is a
neural network, not bridging) and an empty module, like torch and the other policy; in place of the model stands one
that counts to six by the audio's clock, as this project's scripted engine does.

What follows from its own rules: a word is final when two passes over the audio agree, 100 ms after it was first heard,
and what a session hears is asked for every 50 ms. Without a pause the transcript is one line, sent whole each time.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.machinery
import socket
import sys
import types
from typing import Any, Final, NamedTuple

STEP: Final = 8_000
"""Samples of a word: half a second at 16 kHz."""
WORDS: Final = ("one", "two", "three", "four", "five", "six")

UNUSED: Final = (
    "huggingface_hub",
    "librosa",
    "soundfile",
    "tiktoken",
    "torch",
    "torchaudio",
    "tqdm",
    "whisperlivekit.silero_vad_iterator",
    "whisperlivekit.simul_whisper",
    "whisperlivekit.whisper",
    "whisperlivekit.whisper.transcribe",
)
OPTIONS: Final = (
    *("--backend", "faster-whisper", "--backend-policy", "localagreement", "--language", "en"),
    *("--pcm-input", "--no-vac", "--warmup-file", ""),
)


class Unused(types.ModuleType):
    """A package that the server imports and, without its engine, does not use."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return object


class Word(NamedTuple):
    """What the server reads of faster-whisper's words; times in seconds from the start of the audio given."""

    start: float
    end: float
    word: str
    probability: float = 0.9


class Segment(NamedTuple):
    """And of its segments."""

    end: float
    words: tuple[Word, ...]
    no_speech_prob: float = 0.0


class WhisperModel:
    """The stand-in for the model."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def transcribe(self, audio: Any, **_: object) -> tuple[tuple[Segment, ...], None]:
        """What has been said in so much audio."""
        return spoken(len(audio) // STEP), None


@functools.lru_cache(256)
def spoken(count: int) -> tuple[Segment, ...]:
    """So many words, in segments of six."""
    words = tuple(Word(i / 2, (i + 1) / 2, " " + WORDS[i % len(WORDS)]) for i in range(count))
    parts = (words[first : first + len(WORDS)] for first in range(0, count, len(WORDS)))
    return tuple(Segment(part[-1].end, part) for part in parts)


def put_in_place() -> None:
    """Put the stand-ins where the server will import from."""
    for name in UNUSED:
        sys.modules[name] = Unused(name)
    whisper = types.ModuleType("faster_whisper")
    whisper.__spec__ = importlib.machinery.ModuleSpec("faster_whisper", None)  # it is asked whether it is installed
    vars(whisper)["WhisperModel"] = WhisperModel
    sys.modules["faster_whisper"] = whisper


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    port = parser.parse_args().port
    put_in_place()
    sys.argv[1:] = OPTIONS  # read when the application is imported
    application = importlib.import_module("whisperlivekit.basic_server").app
    uvicorn: Any = importlib.import_module("uvicorn")

    class Announced(uvicorn.Server):  # type: ignore[misc]  # the class of the peer's environment, not of this one
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            """Listen, and say so."""
            await super().startup(sockets)
            port = self.servers[0].sockets[0].getsockname()[1]
            print(f"stream  ws://127.0.0.1:{port}/asr", file=sys.stderr, flush=True)

    Announced(uvicorn.Config(application, host="127.0.0.1", port=port, log_level="info", lifespan="on")).run()


if __name__ == "__main__":
    main()
