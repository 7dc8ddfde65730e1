"""`stt-bridge transcribe`: files to transcripts, with the engine in this process and no server."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bridge.commands.exits import Exit, complain, epilog
from bridge.commands.stream import add_raw_options, phrases, raw_format

if TYPE_CHECKING:
    from bridge.audio.files import AudioFileError, AudioSource
    from bridge.audio.formats import AudioFormat
    from bridge.protocols.events import Start
    from bridge.session.manager import SessionManager
    from bridge.settings import Settings
    from bridge.transcript import Segment

FORMATS: Final = ("text", "json", "srt", "vtt")
CHUNK_MS: Final = 200

_EPILOG: Final = f"""\
A file that cannot be read is reported, and the others are transcribed all the same.

{epilog(Exit.OK, Exit.FAILED, Exit.USAGE, Exit.UNREADABLE, Exit.INTERRUPTED)}

examples:
  stt-bridge transcribe talk.mp3 > talk.txt
  stt-bridge transcribe --format vtt --output subtitles *.mkv
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = subparsers.add_parser(
        "transcribe",
        help="transcribe files, without a server",
        description="Transcribe audio files with an engine in this process.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="audio file of any format; - for standard input")
    parser.add_argument("--backend", metavar="NAME", help="the engine (STT_BACKEND)")
    parser.add_argument("--format", choices=FORMATS, default="text", help="of the transcript (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write one file per input there, not to stdout")
    parser.add_argument("--language", metavar="TAG", help="language of the speech, or auto (STT_LANGUAGE)")
    parser.add_argument("--phrases", type=phrases, default=(), metavar="A,B,…", help="phrases that are likely")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    add_raw_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Transcribe. Returns the exit code."""
    from backends.base import BackendError
    from bridge.errors import BridgeError
    from bridge.settings import Settings, SettingsError

    if args.output is None and args.format != "text" and len(args.files) > 1:
        complain(f"several files as {args.format} need --output DIR")
        return Exit.USAGE
    try:
        targets = output_paths(args.files, args.output, args.format)
        settings = Settings.load(backend=args.backend, language=args.language)
        return asyncio.run(_transcribe(args, settings, targets, raw_format(args)))
    except (BridgeError, SettingsError) as exc:
        complain(exc)
        return Exit.USAGE
    except BackendError as exc:
        complain(f"backend {settings.backend}: {exc}")
        return Exit.FAILED
    except BrokenPipeError:
        raise
    except OSError as exc:
        complain(exc)
        return Exit.FAILED


def output_paths(files: list[str], output: Path | None, format_: str) -> list[Path | None]:
    """Where each transcript goes, None for standard output; inputs that differ only in directory or ending too.

    Raises:
        BridgeError: two inputs would be written to one file.
    """
    from bridge.errors import BridgeError
    from bridge.transcript import EXTENSIONS

    if output is None:
        return [None] * len(files)
    paths = [Path("stdin" if name == "-" else name) for name in files]
    stems = Counter(path.stem for path in paths)
    names = [path.stem if stems[path.stem] == 1 else path.name for path in paths]
    for name, count in Counter(names).items():
        if count > 1:
            raise BridgeError(
                "bad_start", f"{count} inputs are called {name}: their transcripts would overwrite each other"
            )
    return [output / f"{name}.{EXTENSIONS[format_]}" for name in names]


async def _transcribe(
    args: argparse.Namespace, settings: Settings, targets: list[Path | None], raw: AudioFormat | None
) -> int:
    from bridge.app import open_manager, session_limits
    from bridge.audio.files import AudioFileError, open_audio
    from bridge.protocols.events import Start
    from bridge.session.batch import without_clock
    from bridge.transcript import FORMATS as WRITERS

    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
    unreadable = failed = 0
    async with open_manager(settings, limits=without_clock(session_limits(settings))) as manager:
        for name, target in zip(args.files, targets, strict=True):
            try:
                source = open_audio(name, raw)
                start = Start(source.format, partials=False, phrases=args.phrases)
                with _progress(name, source, quiet=args.quiet) as progress:
                    segments, broken = await transcribe(manager, start, source, progress)
            except AudioFileError as exc:
                segments, broken = [], exc
            except SessionFailed as exc:
                complain(f"{name}: {exc}")
                failed += 1
                continue
            if broken is not None:
                complain(broken)
                unreadable += 1
                if not segments:
                    continue
            document = WRITERS[args.format](segments)
            if target is None:
                title = f"==> {name} <==\n" if len(args.files) > 1 else ""
                sys.stdout.write(title + document)
                sys.stdout.flush()
            else:
                target.write_text(document, encoding="utf-8")
    if failed:
        return Exit.FAILED
    return Exit.UNREADABLE if unreadable else Exit.OK


class SessionFailed(Exception):  # noqa: N818 - it says what happened
    """The engine did not get to the end of the audio."""


async def transcribe(
    manager: SessionManager, start: Start, source: AudioSource, progress: Callable[[float], None]
) -> tuple[list[Segment], AudioFileError | None]:
    """The finals of one source, fed as fast as a session takes it, and why the audio broke off, if it did.

    `progress` is told the seconds that were taken in; the source is closed.

    Raises:
        BridgeError: there can be no such session.
        SessionFailed: the session did not end well.
    """
    from bridge.audio.files import AudioFileError, read_ahead
    from bridge.errors import BridgeError
    from bridge.session.batch import Run
    from bridge.transcript import Segment

    segments: list[Segment] = []
    async with contextlib.AsyncExitStack() as stack:
        with contextlib.ExitStack() as unread:
            unread.enter_context(source)
            session = await stack.enter_async_context(manager.session(start, "file"))
            unread.pop_all()  # from here on the source belongs to the thread that reads it
        chunks = await stack.enter_async_context(contextlib.aclosing(read_ahead(source, CHUNK_MS)))
        run = Run(session, source.format, chunks, progress=lambda seconds, _: progress(seconds))
        stack.push_async_callback(run.close)
        try:
            async for final in run.finals():
                segments.append(Segment.of(final))  # noqa: PERF401 - what came before a failure is kept
        except AudioFileError as exc:
            return segments, exc
        except BridgeError as exc:
            if exc.row.fault == "client":  # raw audio that begins with the header of another format
                return segments, AudioFileError(f"{source.name}: {exc}")
            raise SessionFailed(f"{exc} ({exc.code})") from exc
    return segments, None


@contextlib.contextmanager
def _progress(name: str, source: AudioSource, *, quiet: bool) -> Iterator[Callable[[float], None]]:
    """A bar on standard error while the context lasts; yields what is to be told the seconds done."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[done]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as bar:
        task = bar.add_task(escape(Path(name).name), total=source.duration, done="")

        def advance(seconds: float) -> None:
            bar.update(task, completed=seconds, done=_length(seconds))

        yield advance


def _length(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02}"
