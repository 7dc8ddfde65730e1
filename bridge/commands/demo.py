"""`stt-bridge demo`: a server of its own, a recording streamed to it in real time, and how well that went."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bridge.commands.exits import Exit, complain, epilog, exit_code
from bridge.commands.stream import Interrupts, Sender, converse, show_message, stream_url

if TYPE_CHECKING:
    from bridge.commands.latency import Latencies
    from bridge.protocols.native import ServerMessage
    from bridge.settings import Settings

SAMPLES: Final = Path(__file__).resolve().parents[2] / "samples"
CHUNK_MS: Final = 100


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = subparsers.add_parser(
        "demo",
        help="start a server, stream a recording to it, show the captions",
        description="Start a server, stream a recording to it in real time, show partials turning into finals.",
        epilog=epilog(Exit.OK, Exit.FAILED, Exit.USAGE, Exit.NO_CONNECTION, Exit.UNREADABLE, Exit.INTERRUPTED),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", nargs="?", metavar="FILE", help="audio file (default: the project's demo recording)")
    parser.add_argument("--backend", metavar="NAME", help="the engine (STT_BACKEND)")
    parser.add_argument("--fast", action="store_true", help="as fast as the server accepts; measures no latency")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show it. Returns the exit code."""
    path = Path(args.file) if args.file else SAMPLES / "demo.flac"
    if not args.file and not path.exists():
        complain("the project's recordings are not installed; name one: stt-bridge demo FILE")
        return Exit.UNREADABLE
    return exit_code(lambda: _run(args, path))


def _run(args: argparse.Namespace, path: Path) -> None:
    from bridge.audio.files import open_audio
    from bridge.observe import logs

    logs.configure("error", "text")
    open_audio(str(path)).close()  # what is no audio is to be refused before the server starts
    asyncio.run(_demo(args, _settings(args.backend), path))


def _settings(backend: str | None) -> Settings:
    """The engine's settings from the environment, and nothing of how the real server is reached."""
    from bridge.settings import Settings, environment

    env = {name: value for name, value in environment().items() if name in {"STT_BACKEND", "STT_LANGUAGE"}}
    return Settings.load(env, None, backend=backend, host="127.0.0.1", port=0)


async def _demo(args: argparse.Namespace, settings: Settings, path: Path) -> None:
    from bridge.app import serving
    from bridge.audio.files import AudioFileError
    from bridge.client import ClientError

    _say(f"loading the backend {settings.backend}")
    failure: Exception | None = None
    try:
        async with serving(settings) as url:
            _say(f"streaming {path.name} to {url}" + ("" if args.fast else " in real time"))
            try:
                await _watch(stream_url(url), path, paced=not args.fast)
            except (AudioFileError, ClientError) as exc:
                failure = exc  # raised here, it would cancel the server instead of stopping it
    except BaseExceptionGroup as group:
        raise _first(group) from None  # the server runs in a task group
    if failure is not None:
        raise failure


async def _watch(url: str, path: Path, *, paced: bool) -> None:
    from bridge.audio.files import open_audio
    from bridge.client import connect
    from bridge.commands.display import Captions
    from bridge.commands.latency import Latencies
    from bridge.protocols.native import FinalMessage, StartMessage

    finals: list[str] = []
    latencies = Latencies()
    with contextlib.ExitStack() as unread, Captions(live=True) as captions, Interrupts() as interrupts:
        source = unread.enter_context(open_audio(str(path)))
        start = StartMessage(sample_rate=source.format.sample_rate)
        async with connect(url, start) as client:
            unread.pop_all()  # from here on the source belongs to the thread that reads it
            sender = Sender(client, source, milliseconds=CHUNK_MS, paced=paced)

            def show(message: ServerMessage) -> None:
                if sender.origin is not None:
                    latencies.take(message, asyncio.get_running_loop().time() - sender.origin)
                if isinstance(message, FinalMessage):
                    finals.append(message.text)
                show_message(captions, message)

            with interrupts.call_first(sender.interrupt):
                await converse(client, sender, show)
    if sender.unreadable is not None:
        raise sender.unreadable
    _report(path, " ".join(finals), latencies if paced else None, whole=not sender.interrupted)


def _report(path: Path, heard: str, latencies: Latencies | None, *, whole: bool) -> None:
    from bridge.transcript import word_errors

    reference = known_transcript(path) if whole else None
    if reference is not None:
        errors, words = word_errors(reference, heard)
        rate = f"{errors / words:.1%}" if words else "-"
        _say(f"word error rate   {rate} ({errors} of {words} words)")
    if latencies is not None:
        for title, values in (("partial", latencies.partials), ("final", latencies.finals)):
            if values:
                median, most = statistics.median(values) * 1000, max(values) * 1000
                _say(f"{title} latency".ljust(18) + f"{median:.0f} ms after the word (median; longest {most:.0f} ms)")


def known_transcript(path: Path) -> str | None:
    """What is said in a recording of the project, if the manifest beside it tells."""
    try:
        samples = json.loads((path.parent / "manifest.json").read_text(encoding="utf-8"))["samples"]
        return next((str(s["transcript"]) for s in samples if s["file"] == path.name), None)
    except (OSError, ValueError, KeyError, TypeError):  # another folder's file of that name is none of ours
        return None


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
