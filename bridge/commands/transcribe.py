"""`stt-bridge transcribe`: files to transcripts, with the engine in this process and no server."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bridge.commands.exits import Exit, complain, epilog
from bridge.commands.stream import add_raw_options, phrases, raw_format

if TYPE_CHECKING:
    from bridge.audio.files import AudioSource
    from bridge.audio.formats import AudioFormat
    from bridge.session.engine import Engine
    from bridge.session.session import SessionLimits
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
    parser.add_argument("--language", metavar="TAG", help="language of the speech (STT_LANGUAGE)")
    parser.add_argument("--phrases", type=phrases, default=(), metavar="A,B,…", help="phrases that are likely")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    add_raw_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Transcribe. Returns the exit code."""
    from backends.base import BackendError  # noqa: PLC0415 - heavy: only where it runs
    from bridge.errors import BridgeError  # noqa: PLC0415
    from bridge.settings import Settings, SettingsError  # noqa: PLC0415

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
    from bridge.errors import BridgeError  # noqa: PLC0415 - see `run`
    from bridge.transcript import EXTENSIONS  # noqa: PLC0415

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
    from bridge.app import open_engine  # noqa: PLC0415 - see `run`
    from bridge.audio.files import AudioFileError, open_audio  # noqa: PLC0415
    from bridge.transcript import FORMATS as WRITERS  # noqa: PLC0415

    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
    unreadable = failed = 0
    async with open_engine(settings) as engine:
        for name, target in zip(args.files, targets, strict=True):
            segments: list[Segment] = []
            job = Job(engine, settings, segments.append, phrases=args.phrases)
            try:
                with open_audio(name, raw) as source, _progress(name, source, quiet=args.quiet) as progress:
                    await job.run(source, progress)
            except AudioFileError as exc:
                complain(exc)
                unreadable += 1
                if not segments:
                    continue
            except SessionFailed as exc:
                complain(f"{name}: {exc}")
                failed += 1
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


class Job:
    """One source through one session of the engine, as fast as the session takes it."""

    def __init__(
        self, engine: Engine, settings: Settings, on_final: Callable[[Segment], None], *, phrases: tuple[str, ...] = ()
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._on_final = on_final
        self._phrases = phrases

    async def run(self, source: AudioSource, progress: Callable[[float], None]) -> None:
        """All of it; `progress` is told the seconds that were taken in.

        Raises:
            AudioFileError: the audio breaks off; what came before has been transcribed.
            SessionFailed: the session did not end well.
        """
        from bridge.app import session_limits  # noqa: PLC0415 - see `run` above
        from bridge.audio.files import AudioFileError  # noqa: PLC0415
        from bridge.protocols import events  # noqa: PLC0415
        from bridge.session.session import Session  # noqa: PLC0415
        from bridge.transcript import Segment  # noqa: PLC0415

        start = events.Start(source.format, language=self._settings.language, partials=False, phrases=self._phrases)
        session = Session(
            "transcribe", start, self._engine, without_clock(session_limits(self._settings)), observer=Unobserved()
        )
        outbox = session.subscribe()
        failure: SessionFailed | None = None
        unreadable: AudioFileError | None = None
        async with asyncio.TaskGroup() as group:
            group.create_task(session.run(), name="session")
            feeding = group.create_task(_feed(session, source, progress), name="feed")
            while batch := await outbox.get():
                for event in batch:
                    match event:
                        case events.Final():
                            self._on_final(Segment.of(event))
                        case events.Error():
                            failure = SessionFailed(f"{event.message} ({event.code})")
                        case _:
                            pass
                if isinstance(batch[-1], events.Closed):
                    break
            feeding.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                unreadable = await feeding
        if failure is not None:
            raise failure
        if unreadable is not None:
            raise unreadable


async def _feed(session: Any, source: AudioSource, progress: Callable[[float], None]) -> Any:
    """All the audio, then stop. Returns why the audio broke off, if it did."""
    from bridge.audio.files import AudioFileError, read_ahead  # noqa: PLC0415 - see `run`

    per_second = source.format.frame_bytes * source.format.sample_rate
    fed = 0
    try:
        async with contextlib.aclosing(read_ahead(source, CHUNK_MS)) as chunks:
            async for chunk in chunks:
                if session.stopping:
                    break
                if not session.feed(chunk):
                    await session.room()
                else:
                    await asyncio.sleep(0)  # a source that is always ready must not keep the loop
                fed += len(chunk)
                progress(fed / per_second)
    except AudioFileError as exc:
        return exc
    finally:
        session.stop()
    return None


def without_clock(limits: SessionLimits) -> SessionLimits:
    """Limits for audio from a file: nobody is waiting, so it may take as long as it takes."""
    week = 7 * 86_400
    return dataclasses.replace(limits, session_seconds=week, idle_seconds=week, stop_seconds=week)


class Unobserved:
    """A `SessionObserver` for a process without metrics."""

    def audio(self, seconds: float) -> None:
        """Ignore it."""

    def partial(self, latency: float, *, first: bool) -> None:
        """Ignore it."""

    def final(self, latency: float) -> None:
        """Ignore it."""

    def backend_error(self, backend: str, code: str) -> None:
        """Ignore it: the session logs it."""

    def queued(self, seconds: float) -> None:
        """Ignore it."""


@contextlib.contextmanager
def _progress(name: str, source: AudioSource, *, quiet: bool) -> Iterator[Callable[[float], None]]:
    """A bar on standard error while the context lasts; yields what is to be told the seconds done."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console  # noqa: PLC0415 - see `run`
    from rich.markup import escape  # noqa: PLC0415
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

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
