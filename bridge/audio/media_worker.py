"""The process side of `media`: a zygote that has imported FFmpeg, and forked children that decode strangers' files.

A file may be made to hang, crash or fill whatever reads it. Here that is a process which has nothing: it may open no
file, no socket and no process, it is given one open file at a time, and what memory and processor time it may take is
bounded by the kernel. A child that came to a file's end takes the next one; forking one costs two milliseconds.

A process ends when its socket does, so none outlives the server, however that died.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import os
import resource
import selectors
import signal
import socket
import struct
import sys
import traceback
from pathlib import Path
from typing import Final, NoReturn

import av
import av.logging
import msgspec

from bridge.audio import media_wire as wire
from bridge.audio.decoded import AudioFileError, DecodedSource

MEMORY: Final = 192 * 2**20
"""Bytes of address space that a child may take besides what it was forked with. Measured: two hours of FLAC, MP3, Opus
or AAC and a quarter of an hour of film (MP4, MKV, TS, AVI) take 1 to 10 MB; four hours of film have an index of 70.
"""
CPU_SECONDS: Final = 20.0
"""Processor time until the first sound, and for all that is odd on the way."""
CPU_PER_SECOND: Final = 0.2
"""The same for each second of sound that was given: the slowest good codec takes a fiftieth of that."""
CPU_PER_BYTE: Final = 1 / 50e6
"""A film is read to its end for the sound in it."""
FILES: Final = 16
"""Its socket, the file and what Python has open; while it decodes, it may open none."""
NICENESS: Final = 5
"""The event loop that serves everybody goes first, and so do engines."""

_ESTIMATED: Final = {"aac": 50, "ac3": 4_000, "amr": 50, "eac3": 50, "loas": 50, "mp3": 1_000, "mpeg": 50, "mpegts": 50}
"""Containers that declare no duration: FFmpeg guesses one from the first frames, which may be far off. With the bytes
that a second takes at the least.
"""
_SLACK_SECONDS: Final = 1.0
"""What coders add at both ends is in what is declared or counted, and not all in what comes out."""
_NOBODY: Final = 65_534
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38


class _File:
    """The file that FFmpeg reads. It keeps its own position: the server's descriptor shares the kernel's."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._at = 0
        self.size = os.fstat(fd).st_size

    def read(self, size: int, /) -> bytes:
        data = os.pread(self.fd, size, self._at)
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        """It is the child's to close."""


def serve(sock: socket.socket) -> None:
    """Decode one file after another, until the server is gone or one of them went wrong."""
    sock.sendall(wire.encode_frame(wire.HELLO))
    while (given := _receive(sock)) is not None:
        job, fd = given
        try:
            well = _decode(sock, job, fd)
        finally:
            os.close(fd)
        if not well:
            return


def _receive(sock: socket.socket) -> tuple[wire.Job, int] | None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    data, fds, _, _ = socket.recv_fds(sock, wire.MAX_BODY, 1)
    if not data or not fds:
        return None
    while len(data) < wire.HEADER.size or len(data) < wire.HEADER.size + wire.HEADER.unpack_from(data)[1]:
        more = sock.recv(wire.MAX_BODY)
        if not more:
            return None
        data += more
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, most))  # from here on nothing can be opened
    return msgspec.json.decode(data[wire.HEADER.size :], type=wire.Job), fds[0]


def _decode(sock: socket.socket, job: wire.Job, fd: int) -> bool:
    """One job. Returns whether the process is as good as before."""
    well = True
    try:
        _transmit(sock, job, _File(fd))
        answer = wire.encode_frame(wire.DONE)
    except AudioFileError as exc:
        answer = wire.encode_frame(wire.REFUSAL, {"code": exc.code, "message": str(exc)})
    except OSError:
        raise  # the server is gone
    except Exception as exc:  # noqa: BLE001 - becomes the file's error; there is no one else to see it
        well = False
        why = "it takes more memory than a file may" if isinstance(exc, MemoryError) else type(exc).__name__
        sentence = f"{job.name}: the audio cannot be decoded ({why})"
        answer = wire.encode_frame(wire.REFUSAL, {"code": "undecodable_audio", "message": sentence})
    sock.sendall(answer)
    return well


def _transmit(sock: socket.socket, job: wire.Job, file: _File) -> None:
    """INFO and the sound; of a file that is only looked at, INFO once there was sound."""
    budget = _Budget(file.size)
    with DecodedSource(file, job.name, job.demuxer) as source:
        rate, duration = source.format.sample_rate, source.duration
        if duration is None or source.container_name in _ESTIMATED:
            least = job.longest * _ESTIMATED.get(source.container_name, 0)
            if duration is None or duration > job.longest or file.size > least:
                # Hours of it should not go to an engine before somebody notices.
                duration = _counted(file, job)
        if duration is not None and duration > job.longest + _SLACK_SECONDS:
            raise AudioFileError(wire.too_long(job.name, job.longest), "audio_too_long")
        info = wire.Info(
            rate=rate,
            duration=duration,
            container=source.container_name,
            codec=source.codec_name,
            sample_rate=source.sample_rate,
            channels=source.channels,
        )
        if job.probe:
            next(source.chunks(1))
            sock.sendall(wire.encode_frame(wire.INFO, info))
            return
        sock.sendall(wire.encode_frame(wire.INFO, info))
        given = 0
        for chunk in source.chunks(wire.CHUNK_MS):
            given += len(chunk) // 2
            if given > job.longest * rate:
                raise AudioFileError(wire.too_long(job.name, job.longest), "audio_too_long")
            sock.sendall(wire.encode_frame(wire.PCM, chunk))
            budget.extend(given / rate)


def _counted(file: _File, job: wire.Job) -> float | None:
    other = _File(file.fd)
    with DecodedSource(other, job.name, job.demuxer) as source:
        return source.counted(job.longest + _SLACK_SECONDS)


class _Budget:
    """The processor time that one file may take; the kernel ends a process that has taken more."""

    def __init__(self, size: int) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        self._base = used.ru_utime + used.ru_stime + CPU_SECONDS + size * CPU_PER_BYTE
        _, self._hard = resource.getrlimit(resource.RLIMIT_CPU)
        self._soft = 0
        self.extend(0.0)

    def extend(self, given: float) -> None:
        """So many seconds of sound came out."""
        soft = int(self._base + given * CPU_PER_SECOND) + 1
        if soft != self._soft:
            self._soft = soft
            resource.setrlimit(resource.RLIMIT_CPU, (soft, self._hard))


def confine() -> None:
    """Give up what a decoder does not need. What a system has not got is left out."""
    os.nice(NICENESS)
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    if os.getuid() == 0:
        # In a container that maps no other users, it stays root without rights of its own.
        with contextlib.suppress(OSError):
            os.setgroups([])
            os.setgid(_NOBODY)
            os.setuid(_NOBODY)
    if libc is not None:
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    limits = {"RLIMIT_CORE": 0, "RLIMIT_FSIZE": 0, "RLIMIT_NPROC": 0, "RLIMIT_NOFILE": FILES}
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_bytes().split()[0])
        limits["RLIMIT_AS"] = pages * resource.getpagesize() + MEMORY
    for name, value in limits.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):
            resource.setrlimit(getattr(resource, name), (value, value))


def _run_child(sock: socket.socket) -> NoReturn:
    """The life of a forked child. It never returns into the zygote's loop."""
    status = 1
    try:
        confine()
        with contextlib.suppress(OSError):  # the other end is gone, and with it everyone who could be told
            serve(sock)
            status = 0
    except Exception:  # noqa: BLE001 - the operator is to see it; a child must not go on in the zygote's loop
        traceback.print_exc()
    finally:
        os._exit(status)  # no exit handler of the zygote runs in a child


class Zygote:
    """Forks children, kills them when asked to, and reaps them."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: dict[int, int] = {}  # id of the child: process
        self._woken, self._wake = socket.socketpair()
        self._wake.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # the wakeup needs a handler
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)

    def run(self) -> None:
        """Serve until the control socket ends."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._control, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._woken:
                        self._woken.recv(4096)
                        self._reap()
                    elif not self._obey(selector):
                        signal.set_wakeup_fd(-1)  # a child's end must not be written to a socket that is closed
                        return

    def _obey(self, selector: selectors.BaseSelector) -> bool:
        message, fds, _, _ = socket.recv_fds(self._control, wire.CONTROL.size, 1)
        if len(message) < wire.CONTROL.size:
            return False
        kind, child = wire.CONTROL.unpack(message)
        if kind == wire.KILL and child in self._children:
            # Not reaped yet, so the number is still the child's: only this process reaps.
            os.kill(self._children[child], signal.SIGKILL)
        elif kind == wire.SPAWN and fds:
            with socket.socket(fileno=fds[0]) as sock, contextlib.suppress(BlockingIOError):
                pid = os.fork()  # a machine out of processes: the child's socket closes, which tells the server
                if pid == 0:
                    selector.close()
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for inherited in (self._control, self._woken, self._wake):
                        inherited.close()
                    _run_child(sock)
                self._children[child] = pid
        return True

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) > 0:
                self._children = {child: known for child, known in self._children.items() if known != pid}


def _rehearse() -> None:
    """Decode something, so that whatever is loaded at first use is loaded: a child cannot open it any more."""
    sound = struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", 356, b"WAVE", b"fmt ", 16, 1, 1, 8000, 16000, 2, 16, b"data", 320
    )
    with DecodedSource(io.BytesIO(sound + bytes(320)), "a rehearsal") as source:
        for _ in source.chunks(wire.CHUNK_MS):
            pass
    with contextlib.suppress(AudioFileError):
        DecodedSource(io.BytesIO(b"no audio"), "a rehearsal")


def main(fd: int) -> None:
    """The zygote's life."""
    # Ctrl-C and a service manager's stop signal reach the whole group, but open files are still to be decoded:
    # these processes end when the server closes their sockets, or dies.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    av.logging.set_level(None)  # a file must not write to the server's log
    with socket.socket(fileno=fd) as control:
        _rehearse()
        gc.collect()
        gc.freeze()  # a collection in a child would touch, and so copy, every page of Python objects
        control.sendall(wire.encode_frame(wire.READY))
        Zygote(control).run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
