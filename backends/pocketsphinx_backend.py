"""The engine `pocketsphinx`: live English on a plain CPU, with a model that comes in its package.

Each stream decodes in a process of its own, forked from one that has loaded the model; see `pocketsphinx_worker`.
This file is the server's side: it starts and restarts that process, opens streams, and carries audio and results
between the event loop and a stream's socket. Nothing here blocks the loop.

Phrases: this engine cannot weigh single words of its language model, so `PocketSphinxOptions.phrases` offers what
it can do well. `bias`, the default: when a whole utterance fits a sequence of the given phrases as well as it fits
free speech, the phrases win ("ten of clubs", not "tend of clubs"), and any other utterance stays free speech; costs
about 0.03 s a second of speech at the end of each utterance. `grammar`: nothing but sequences of the phrases is
ever heard, which suits a command application and costs less than free speech. `off`: phrases are ignored. A phrase
with a word that the dictionary lacks is left out; if none is left, speech is free.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib.util
import itertools
import json
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final, Literal

from backends import pocketsphinx_worker as worker
from backends.base import (
    AsyncBackend,
    BackendError,
    Capabilities,
    Fault,
    RecognitionConfig,
    Result,
)
from backends.pocketsphinx_recognizer import SAMPLE_RATE

logger = logging.getLogger(__name__)

_ROOT: Final = str(Path(__file__).resolve().parent.parent)  # where the package `backends` lies

LOAD_SECONDS: Final = 60.0  # loading takes 0.3 s, and seconds from a cold disk; past this it hangs
OPEN_SECONDS: Final = 10.0  # a fork takes milliseconds; past this the machine is overloaded or the zygote hangs
EXIT_SECONDS: Final = 2.0  # the zygote has nothing to save
AUDIO_BYTES: Final = 32_000  # 1 s in one frame to the child: a longer chunk would hold memory twice and hide its pace
SOCKET_BYTES: Final = 65_536  # about 2 s of audio on its way to the child, then the audio iterator waits
STREAMS_PER_CORE: Final = 4  # measured with bench.accuracy --streams: eight on two cores keep up, without much to spare


@dataclass(frozen=True, slots=True)
class PocketSphinxOptions:
    """Settings of the engine `pocketsphinx`."""

    model: Path | None = field(
        default=None, metadata={"help": "Directory of an acoustic model for 16 kHz; unset: the bundled en-us."}
    )
    lm: Path | None = field(default=None, metadata={"help": "Language model; unset: the bundled en-us."})
    dictionary: Path | None = field(
        default=None, metadata={"help": "Pronunciation dictionary; unset: the bundled one for en-us."}
    )
    streams: int | None = field(
        default=None,
        metadata={"help": "Streams carried at once; unset: four for each core that the server may use.", "min": 1},
    )
    phrases: Literal["bias", "grammar", "off"] = field(
        default="bias",
        metadata={
            "help": "A client's phrases: `bias` prefers them for utterances made of them, `grammar` hears nothing else."
        },
    )


class PocketSphinxBackend(AsyncBackend):
    """CMU PocketSphinx 5 with one process per stream.

    `recognize` may be closed or cancelled at any moment: the stream's process is killed, others do not notice.
    """

    name: ClassVar[str] = "pocketsphinx"
    Options = PocketSphinxOptions

    def __init__(self, options: PocketSphinxOptions | None = None) -> None:
        super().__init__(options or PocketSphinxOptions())
        self._settings: PocketSphinxOptions = self.options
        self._zygote: _Zygote | None = None
        self._starting = asyncio.Lock()
        streams = self._settings.streams
        self._capabilities = Capabilities(
            partials=True,
            word_times=True,
            confidences=True,
            phrases=self._settings.phrases != "off",
            flush=True,
            languages=() if self._settings.model else ("en-US", "en"),
            sample_rates=(SAMPLE_RATE,),
            max_streams=STREAMS_PER_CORE * _cores() if streams is None else streams,
        )

    @property
    def capabilities(self) -> Capabilities:
        """Known before `load`."""
        return self._capabilities

    async def load(self) -> None:
        """Start the process that holds the model. Cancelling it leaves nothing behind."""
        await self._running()

    async def close(self) -> None:
        """End that process."""
        zygote, self._zygote = self._zygote, None
        if zygote:
            await zygote.stop()

    async def recognize(self, config: RecognitionConfig, audio: AsyncIterator[bytes]) -> AsyncIterator[Result]:
        """Recognize one stream."""
        self._check(config)
        stream = await self._open(config)
        sending = asyncio.create_task(stream.send(audio), name=f"pocketsphinx audio {config.session_id}")
        try:
            while result := await stream.next():
                yield result if config.words else dataclasses.replace(result, words=())
        except BackendError:
            # When reading the audio failed, the stream was torn down for that reason: that is the error to tell.
            if sending.done() and not sending.cancelled() and (error := sending.exception()):
                raise error from None
            raise
        finally:
            sending.cancel()
            stream.close()
            await asyncio.wait([sending])
            if not sending.cancelled():
                sending.exception()  # raised above, or too late for anyone to want it

    def _check(self, config: RecognitionConfig) -> None:
        if config.sample_rate != SAMPLE_RATE:
            raise BackendError(
                f"pocketsphinx takes audio at {SAMPLE_RATE} Hz, not {config.sample_rate}",
                code="rejected",
                fault=Fault.CLIENT,
            )
        if not self._settings.model and config.language.replace("_", "-").split("-")[0].lower() != "en":
            raise BackendError(
                f"pocketsphinx has a model for English here, none for {config.language!r}",
                code="rejected",
                fault=Fault.CLIENT,
            )

    async def _open(self, config: RecognitionConfig) -> _Stream:
        zygote = await self._running()
        try:
            return await zygote.open(config, self._settings.phrases)
        except BackendError:
            if zygote.alive:
                raise
        # It died or hung between two streams, and nobody had noticed. Streams that it forked go on without it.
        return await (await self._running()).open(config, self._settings.phrases)

    async def _running(self) -> _Zygote:
        async with self._starting:
            if self._zygote is None or not self._zygote.alive:
                if self._zygote:
                    logger.warning("the pocketsphinx process is gone; starting another")
                    zygote, self._zygote = self._zygote, None
                    await zygote.stop(kill=True)
                self._zygote = await _Zygote.start(self._settings)
            return self._zygote


class _Zygote:
    """The process that has loaded the model; see `pocketsphinx_worker.Zygote`."""

    def __init__(self, process: asyncio.subprocess.Process, control: socket.socket) -> None:
        self._process = process
        self._control = control
        self._ids = itertools.count(1)
        self._broken = False

    @classmethod
    async def start(cls, settings: PocketSphinxOptions) -> _Zygote:
        """Start it and wait until it has loaded the model."""
        if not hasattr(os, "fork"):
            raise BackendError(
                "pocketsphinx needs fork(), which this system lacks: run the server on Linux or macOS, or in WSL",
                code="not_installed",
                fault=Fault.OPERATOR,
            )
        if importlib.util.find_spec("pocketsphinx") is None:
            raise BackendError(
                "the package pocketsphinx is missing: pip install 'pocketsphinx>=5.1,<6'",
                code="not_installed",
                fault=Fault.OPERATOR,
            )
        models = {"hmm": settings.model, "lm": settings.lm, "dict": settings.dictionary}
        options = json.dumps({name: str(path) for name, path in models.items() if path})
        control, theirs = socket.socketpair()
        control.setblocking(False)
        paths = [_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-P",  # the working directory may hold a folder `backends` of someone else's
                    "-m",
                    worker.__name__,
                    str(theirs.fileno()),
                    options,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                )
        except BaseException:
            control.close()
            raise
        zygote = cls(process, control)
        try:
            await zygote._loaded()
        except BaseException:
            await zygote.stop(kill=True)
            raise
        return zygote

    @property
    def alive(self) -> bool:
        """Whether it is worth asking for another stream."""
        return self._process.returncode is None and not self._broken

    async def open(self, config: RecognitionConfig, phrases: str) -> _Stream:
        """Have a child forked for one stream, and wait until it is ready."""
        number = next(self._ids)
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                ours.setblocking(False)
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
                self._tell(worker.SPAWN, number, theirs)
                # `open_unix_connection` takes any connected stream socket, on asyncio's loop and on uvloop's.
                reader, writer = await asyncio.open_unix_connection(sock=ours)
            except BaseException:
                ours.close()
                raise
        stream = _Stream(reader, writer, lambda: self._kill(number))
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                await stream.configure(config, phrases)
        except TimeoutError:
            stream.close()
            self._broken = True  # the next stream starts another
            raise BackendError(
                f"no pocketsphinx process within {OPEN_SECONDS:.0f} s", code="unavailable", retryable=True
            ) from None
        except BaseException:
            stream.close()
            raise
        return stream

    async def stop(self, *, kill: bool = False) -> None:
        """End it. Cancelling this kills it."""
        self._control.close()
        try:
            if not kill:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(EXIT_SECONDS):
                        await self._process.wait()
        finally:
            if self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
                await self._process.wait()

    async def _loaded(self) -> None:
        """Wait for the answer: one frame, read byte for byte because fds never come this way."""
        loop = asyncio.get_running_loop()
        answer = bytearray()
        size = worker.HEADER.size
        try:
            async with asyncio.timeout(LOAD_SECONDS):
                while len(answer) < size or len(answer) < size + worker.HEADER.unpack_from(answer)[1]:
                    data = await loop.sock_recv(self._control, 4096)
                    if not data:
                        status = await self._process.wait()
                        raise _load_error(f"the process ended with status {status}")
                    answer += data
        except TimeoutError:
            raise _load_error(f"no answer within {LOAD_SECONDS:.0f} s") from None
        except OSError as error:
            raise _load_error(str(error)) from error
        if answer[0] == worker.ERROR:
            raise _load_error(answer[size:].decode())

    def _tell(self, kind: int, number: int, sock: socket.socket | None = None) -> None:
        """Send a command; it is a few bytes and the zygote does nothing but read them, so it never waits."""
        message = worker.CONTROL.pack(kind, number)
        try:
            socket.send_fds(self._control, [message], [sock.fileno()] if sock else [])
        except OSError as error:
            self._broken = True
            raise BackendError(
                f"the pocketsphinx process is gone: {error}", code="unavailable", retryable=True
            ) from error

    def _kill(self, number: int) -> None:
        with contextlib.suppress(BackendError):  # without a zygote, the child still ends with its socket
            self._tell(worker.KILL, number)


class _Stream:
    """One child's socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kill: Callable[[], None]) -> None:
        self._reader = reader
        self._writer = writer
        self._kill = kill
        self._done = False

    async def configure(self, config: RecognitionConfig, phrases: str) -> None:
        """Ask for what the configuration asks for, and wait until the child is ready."""
        asked = {
            "partials": config.partials,
            "phrases": config.phrases,
            "mode": phrases,
            "silence_seconds": config.silence_seconds,
        }
        self._writer.write(worker.encode_json(worker.CONFIG, asked))
        _, body = await self._read()
        if unknown := json.loads(body)["unknown"]:
            logger.warning(
                "session %s: %d of %d phrases left out: they hold words that the dictionary lacks",
                config.session_id,
                unknown,
                len(config.phrases),
            )

    async def send(self, audio: AsyncIterator[bytes]) -> None:
        """Carry the audio to the child, at its pace."""
        try:
            async for chunk in audio:
                if not chunk:
                    await self._write(worker.encode_frame(worker.FLUSH))
                for at in range(0, len(chunk), AUDIO_BYTES):
                    await self._write(worker.encode_frame(worker.AUDIO, chunk[at : at + AUDIO_BYTES]))
            await self._write(worker.encode_frame(worker.END))
        except ConnectionError:
            return  # the child is gone; who reads the results says so
        except BaseException:
            self._writer.transport.abort()  # wakes who reads the results
            raise

    async def next(self) -> Result | None:
        """What the child answers; None when it has finalized everything."""
        kind, body = await self._read()
        self._done = kind == worker.DONE
        return None if self._done else worker.decode_result(body)

    def close(self) -> None:
        """End the child now, unless it has ended itself."""
        if not self._done:
            self._kill()
        self._writer.transport.abort()

    async def _read(self) -> tuple[int, bytes]:
        try:
            kind, size = worker.HEADER.unpack(await self._reader.readexactly(worker.HEADER.size))
            body = await self._reader.readexactly(size)
        except (asyncio.IncompleteReadError, OSError) as error:
            raise BackendError("a stream's pocketsphinx process died", retryable=True) from error
        if kind == worker.ERROR:
            raise BackendError(f"pocketsphinx failed: {body.decode()}", retryable=True)
        return kind, body

    async def _write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()


def _load_error(reason: str) -> BackendError:
    return BackendError(f"pocketsphinx does not load: {reason}", code="unavailable", fault=Fault.OPERATOR)


def _cores() -> int:
    """The cores that this process may use; a container's or taskset's limit counts."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
