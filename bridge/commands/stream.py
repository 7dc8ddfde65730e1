"""`stt-bridge stream`: a file or standard input through a running server, with live captions."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import urlsplit, urlunsplit

from bridge.commands.exits import Exit, epilog, exit_code

if TYPE_CHECKING:
    from bridge.audio.files import AudioSource
    from bridge.audio.formats import AudioFormat
    from bridge.client import Client, Interrupted, Resumed
    from bridge.commands.display import Captions
    from bridge.protocols.native import ServerMessage

DEFAULT_URL: Final = "ws://127.0.0.1:8000/v1/stream"
STREAM_PATH: Final = "/v1/stream"

_EPILOG: Final = f"""\
The final transcript goes to standard output, one line for each stretch of speech; captions and messages go to
standard error. Ctrl-C ends the audio and waits for the last words, a second one does not wait. When the connection
breaks, the session is resumed over another one.

{epilog(Exit.OK, Exit.FAILED, Exit.USAGE, Exit.NO_CONNECTION, Exit.UNREADABLE, Exit.INTERRUPTED)}

examples:
  stt-bridge stream talk.mp3
  arecord -q -f S16_LE -r 16000 -t raw | stt-bridge stream -
  stt-bridge stream call.ulaw --encoding mulaw --rate 8000 --fast --json
  stt-bridge stream talk.mp3 --session the-name-of-our-meeting
  stt-bridge stream --receive the-name-of-our-meeting
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = subparsers.add_parser(
        "stream",
        help="stream a file or standard input to a server",
        description="Stream audio to a server in real time and show what it hears.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("file", nargs="?", metavar="FILE", help="audio file of any format; - for standard input")
    what.add_argument("--receive", metavar="SESSION", help="show what is said in this session, and send nothing")
    parser.add_argument(
        "--session", metavar="NAME", help="the session's name, 16 to 128 characters that nobody guesses"
    )
    parser.add_argument("--url", default=DEFAULT_URL, help="the server (default: %(default)s)")
    parser.add_argument("--api-key", metavar="KEY", help="API key (default: the variable STT_API_KEY)")
    parser.add_argument("--fast", action="store_true", help="send as fast as the server accepts, not in real time")
    parser.add_argument(
        "--chunk-ms", type=chunk_ms, default=100, metavar="MS", help="audio per message (default: %(default)s)"
    )
    parser.add_argument("--language", metavar="TAG", help="language of the speech, such as en-US, or auto")
    parser.add_argument("--phrases", type=phrases, default=(), metavar="A,B,…", help="phrases that are likely")
    parser.add_argument("--json", action="store_true", help="write the server's messages instead, one per line")
    parser.add_argument("--no-display", action="store_true", help="show no captions")
    parser.add_argument("--verbose", action="store_true", help="name the session, for --receive elsewhere")
    add_raw_options(parser)
    parser.set_defaults(run=run)


def add_raw_options(parser: argparse.ArgumentParser) -> None:
    """The options that describe raw audio, for every command that reads audio."""
    raw = parser.add_argument_group(
        "raw audio",
        "Any of these says that FILE holds samples without a header. Standard input does so anyway, unless it begins "
        "like a file.",
    )
    raw.add_argument("--encoding", metavar="NAME", help="pcm_s16le (default), mulaw or any other of docs/audio.md")
    raw.add_argument("--rate", type=int, metavar="HZ", help="sample rate, 8000 to 192000 (default: 16000)")
    raw.add_argument("--channels", type=int, metavar="N", help="interleaved channels, 1 to 8 (default: 1)")


def raw_format(args: argparse.Namespace) -> AudioFormat | None:
    """The format that these options describe, None if none is given.

    Raises:
        BridgeError: `unsupported_audio`, also for coded audio: FFmpeg reads that by itself.
    """
    from bridge.audio.formats import AudioFormat
    from bridge.errors import BridgeError

    if args.encoding is None and args.rate is None and args.channels is None:
        return None
    rate = 16_000 if args.rate is None else args.rate
    audio = AudioFormat.parse(args.encoding or "pcm_s16le", rate, 1 if args.channels is None else args.channels)
    if audio.encoding.width is None:
        raise BridgeError("unsupported_audio", f"{audio.encoding.value} is not raw audio: leave --encoding away")
    return audio


def chunk_ms(text: str) -> int:
    """The type of `--chunk-ms`."""
    value = int(text)
    if not 5 <= value <= 2_000:
        raise argparse.ArgumentTypeError(f"{value} is outside 5 to 2000 milliseconds")
    return value


def phrases(text: str) -> tuple[str, ...]:
    """The type of `--phrases`."""
    return tuple(phrase for part in text.split(",") if (phrase := part.strip()))


def stream_url(url: str) -> str:
    """The WebSocket's address, also where only the server's is given."""
    parts = urlsplit(url)
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    return urlunsplit(parts._replace(scheme=scheme, path=STREAM_PATH if parts.path in {"", "/"} else parts.path))


def run(args: argparse.Namespace) -> int:
    """Stream. Returns the exit code."""
    return exit_code(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    from bridge.audio.files import open_audio

    if args.receive is not None:
        asyncio.run(_receive(args))
    else:
        asyncio.run(_stream(args, open_audio(args.file, raw_format(args))))


async def _stream(args: argparse.Namespace, source: AudioSource) -> None:
    from bridge.client import connect
    from bridge.commands.display import Captions
    from bridge.protocols.native import StartMessage

    with (
        contextlib.ExitStack() as unread,
        Captions(live=not args.no_display, to_stdout=not args.json) as captions,
        Interrupts() as interrupts,
    ):
        unread.enter_context(source)
        start = StartMessage(
            encoding=source.format.encoding.value,
            sample_rate=source.format.sample_rate,
            channels=source.format.channels,
            language=args.language,
            partials=captions.live or args.json,
            phrases=args.phrases,
            session_id=args.session,
        )
        show = _shows(captions, as_json=args.json)
        async with connect(
            stream_url(args.url), start, api_key=_key(args), on_reconnect=lambda event: note_reconnect(captions, event)
        ) as client:
            show(client.ready)
            if args.verbose:
                captions.note(f"stt-bridge: session {client.ready.session_id}")
            unread.pop_all()  # from here on the source belongs to the thread that reads it
            sender = Sender(client, source, milliseconds=args.chunk_ms, paced=not args.fast)
            with interrupts.call_first(sender.interrupt):
                await converse(client, sender, show)
    if sender.unreadable is not None:
        raise sender.unreadable


async def _receive(args: argparse.Namespace) -> None:
    from bridge.client import receive
    from bridge.commands.display import Captions

    with Captions(live=not args.no_display, to_stdout=not args.json) as captions, Interrupts():
        show = _shows(captions, as_json=args.json)
        async with receive(
            stream_url(args.url),
            args.receive,
            from_seq=1,
            partials=captions.live or args.json,
            api_key=_key(args),
            on_reconnect=lambda event: note_reconnect(captions, event),
        ) as receiver:
            show(receiver.joined)
            if receiver.joined.state == "waiting":
                captions.note("stt-bridge: there is no session of that name yet; waiting for it")
            async for message in receiver:
                show(message)


def _key(args: argparse.Namespace) -> str | None:
    return args.api_key or os.environ.get("STT_API_KEY") or None


def _shows(captions: Captions, *, as_json: bool) -> Callable[[ServerMessage], None]:
    """What to do with each message."""
    import msgspec

    from bridge.protocols.native import ReadyMessage

    def show(message: ServerMessage) -> None:
        if as_json:
            if isinstance(message, ReadyMessage):
                message = msgspec.structs.replace(message, resume_token=None)  # output ends in files
            sys.stdout.write(msgspec.json.encode(message).decode() + "\n")
            sys.stdout.flush()
        show_message(captions, message)

    return show


def note_reconnect(captions: Captions, event: Interrupted | Resumed) -> None:
    """Tell somebody who watches that the connection broke, and when it is back."""
    from bridge.client import Interrupted

    if isinstance(event, Interrupted):
        captions.note(f"stt-bridge: {event.reason}; reconnecting")
    else:
        captions.note(f"stt-bridge: the session goes on, {event.seconds:.1f} s later")


def show_message(captions: Captions, message: ServerMessage) -> None:
    """What a message of the server means to somebody who watches."""
    from bridge.protocols import native

    match message:
        case native.PartialMessage():
            captions.partial(message.text, message.committed or 0)
        case native.FinalMessage():
            captions.final(message.text)
        case native.WarningMessage():
            captions.note(f"stt-bridge: warning: {message.message} ({message.code})")
        case native.ErrorMessage() if not message.fatal:
            captions.note(f"stt-bridge: {message.message} ({message.code})")
        case _:
            pass


async def converse(client: Client, sender: Sender, show: Callable[[ServerMessage], None]) -> None:
    """Send all the audio and show every message, up to the end of the session.

    Raises:
        ClientError: the session did not end well; what came before has been shown.
        BrokenPipeError: whoever read our output has gone.
    """
    from bridge.client import ClientError

    failure: Exception | None = None
    async with asyncio.TaskGroup() as group:
        sending = group.create_task(sender.run(), name="sender")
        try:
            async for message in client:
                show(message)
        except (ClientError, OSError) as exc:
            failure = exc
        finally:
            sending.cancel()
    if failure is not None:
        raise failure


class Sender:
    """Sends a source's audio to the server on the audio's own clock (or as fast as it goes), then `stop`."""

    def __init__(self, client: Client, source: AudioSource, *, milliseconds: int, paced: bool) -> None:
        self.unreadable: Exception | None = None
        """Why the audio broke off, if it did."""
        self.origin: float | None = None
        """The event loop's time at which the first sample was spoken, as far as pacing goes."""
        self.seconds = 0.0
        """Audio sent."""
        self.interrupted = False
        """Whether `interrupt` was called."""
        self._client = client
        self._source = source
        self._milliseconds = milliseconds
        self._paced = paced
        self._reading: asyncio.Task[None] | None = None

    def interrupt(self) -> None:
        """Send no more audio; `stop` follows at once."""
        self.interrupted = True
        if self._reading is not None:
            self._reading.cancel()

    async def run(self) -> None:
        """All of it. When the connection is lost it ends quietly: who receives knows why."""
        from bridge.audio.files import AudioFileError
        from bridge.client import ConnectionLost

        try:
            self._reading = asyncio.create_task(self._send_audio(), name="send-audio")
            try:
                await self._reading
            except AudioFileError as exc:
                self.unreadable = exc
            except asyncio.CancelledError:
                if not self.interrupted or not self._reading.cancelled():
                    raise
            finally:
                self._reading.cancel()
            await self._client.stop()
        except ConnectionLost:
            pass

    async def _send_audio(self) -> None:
        from bridge.audio.files import read_ahead

        clock = asyncio.get_running_loop().time
        per_second = self._source.format.frame_bytes * self._source.format.sample_rate
        async with contextlib.aclosing(read_ahead(self._source, self._milliseconds)) as chunks:
            async for chunk in chunks:
                if self.origin is None:
                    # The first chunk leaves at once, as if it had just been spoken: a live source must not wait.
                    self.origin = clock() - len(chunk) / per_second
                self.seconds += len(chunk) / per_second
                if self._paced:
                    await asyncio.sleep(self.origin + self.seconds - clock())
                await self._client.send(chunk)


class Interrupts:
    """Ctrl-C and SIGTERM: the first calls what `call_first` was given, the next cancels the task that made this."""

    def __init__(self) -> None:
        self._first: Callable[[], None] | None = None
        self._task = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        self._installed: list[signal.Signals] = []

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            # Not on Windows and not outside the main thread: there Ctrl-C ends the program at once.
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                self._loop.add_signal_handler(number, self._handle)
                self._installed.append(number)
        return self

    def __exit__(self, *_: object) -> None:
        for number in self._installed:
            self._loop.remove_signal_handler(number)

    @contextlib.contextmanager
    def call_first(self, action: Callable[[], None]) -> Iterator[None]:
        """While the context lasts, the first signal calls `action`."""
        self._first = action
        try:
            yield
        finally:
            self._first = None

    def _handle(self) -> None:
        if self._first is not None:
            action, self._first = self._first, None
            action()
        elif self._task is not None:
            self._task.cancel()
