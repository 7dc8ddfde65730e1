"""The process side of the engine `pocketsphinx`: a zygote that loads the model, and a forked child for each stream.

pocketsphinx holds Python's interpreter lock while it decodes, so streams in threads would take turns on one core and
stall the server's event loop. Here every stream decodes in a process of its own. Children are forked from a zygote
that has loaded the model, which shares its pages with them: a stream costs about 30 MB instead of 100.

    server ──control socket──► zygote          SPAWN id (with the stream's socket), KILL id; READY or an ERROR back
    server ◄──stream socket──► child           frames: CONFIG (AUDIO | FLUSH)* END; READY RESULT* DONE, or ERROR

A process ends when its socket does, so none outlives the server, however that died.

What a child does with its audio is `pocketsphinx_recognizer`'s business.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import selectors
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Final, NoReturn

from backends.base import Result, Word
from backends.pocketsphinx_recognizer import Ears, Recognizer, add_phrases, load

# --- The wire. Both ends are this package, forked from one build: no versions, no distrust, no compatibility. ---

HEADER: Final = struct.Struct("!BI")  # kind of frame, bytes in its body
CONTROL: Final = struct.Struct("!BQ")  # SPAWN or KILL, id of the stream
SPAWN, KILL = 1, 2
CONFIG, AUDIO, FLUSH, END = 1, 2, 3, 4
READY, RESULT, DONE, ERROR = 5, 6, 7, 8


def encode_frame(kind: int, body: bytes = b"") -> bytes:
    """One frame of the stream socket."""
    return HEADER.pack(kind, len(body)) + body


def encode_json(kind: int, value: Any) -> bytes:
    """A frame whose body is JSON."""
    return encode_frame(kind, json.dumps(value, separators=(",", ":")).encode())


def decode_result(body: bytes) -> Result:
    """The body of a RESULT frame."""
    fields = json.loads(body)
    return Result(**{**fields, "words": tuple(Word(**word) for word in fields["words"])})


# --- The processes ---


def serve_stream(sock: socket.socket, decoder: Any) -> None:
    """One stream, from CONFIG to DONE; returns early when the other end is gone."""
    frames = _read_frames(sock)
    _, body = next(frames, (CONFIG, b""))
    if not body:
        return
    config = json.loads(body)
    mode, phrases = config["mode"], config["phrases"]
    unknown = add_phrases(decoder, "phrases", phrases) if mode != "off" else 0
    usable = mode != "off" and len(phrases) > unknown
    if usable and mode == "grammar":
        decoder.activate_search("phrases")
    recognizer = Recognizer(
        decoder,
        Ears(),
        partials=config["partials"],
        prefer="phrases" if usable and mode == "bias" else "",
        silence_seconds=config["silence_seconds"],
    )
    sock.sendall(encode_json(READY, {"unknown": unknown}))
    for kind, body in frames:
        answer = {FLUSH: recognizer.flush, END: recognizer.end}.get(kind)
        for result in answer() if answer else recognizer.feed(body):
            sock.sendall(encode_json(RESULT, asdict(result)))
        if kind == END:
            sock.sendall(encode_frame(DONE))
            return


def _read_frames(sock: socket.socket) -> Iterator[tuple[int, bytes]]:
    with sock.makefile("rb") as file:
        while len(header := file.read(HEADER.size)) == HEADER.size:
            kind, size = HEADER.unpack(header)
            body = file.read(size)
            if len(body) < size:
                return
            yield kind, body


def _run_child(sock: socket.socket, decoder: Any) -> NoReturn:
    """The life of a forked child. It never returns into the zygote's loop."""
    status = 1
    try:
        os.nice(1)  # the event loop that serves all streams goes first
        try:
            serve_stream(sock, decoder)
        except OSError:
            pass  # the other end is gone, and with it everyone who could be told
        except Exception as error:  # noqa: BLE001 - becomes the stream's error; there is no one else to see it
            with contextlib.suppress(OSError):
                sock.sendall(encode_frame(ERROR, f"{type(error).__name__}: {error}".encode()))
        else:
            status = 0
        sock.close()
    finally:
        os._exit(status)  # no exit handler of the zygote runs in a child


class Zygote:
    """Forks a child for each stream, kills it when asked to, and reaps it."""

    def __init__(self, control: socket.socket, decoder: Any) -> None:
        self._control = control
        self._decoder = decoder
        self._children: dict[int, int] = {}  # id of the stream: process
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
        message, fds, _, _ = socket.recv_fds(self._control, CONTROL.size, 1)
        if len(message) < CONTROL.size:
            return False
        kind, stream = CONTROL.unpack(message)
        if kind == KILL and stream in self._children:
            # Not reaped yet, so the number is still the child's: only this process reaps.
            os.kill(self._children[stream], signal.SIGKILL)
        elif kind == SPAWN and fds:
            with socket.socket(fileno=fds[0]) as sock, contextlib.suppress(BlockingIOError):
                pid = os.fork()  # a machine out of processes: the stream's socket closes, which tells the server
                if pid == 0:
                    selector.close()
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for inherited in (self._control, self._woken, self._wake):
                        inherited.close()
                    _run_child(sock, self._decoder)
                self._children[stream] = pid
        return True

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) > 0:
                self._children = {stream: child for stream, child in self._children.items() if child != pid}


def main(fd: int, options: str) -> None:
    """The zygote's life."""
    # Ctrl-C and a service manager's stop signal reach the whole group, but open streams are still to be finalized:
    # these processes end when the server closes their sockets, or dies.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=fd) as control:
        try:
            decoder = load(json.loads(options))
        except Exception as error:  # noqa: BLE001 - whatever it is, the server reports it
            control.sendall(encode_frame(ERROR, f"{type(error).__name__}: {error}".encode()))
            return
        gc.collect()
        gc.freeze()  # a collection in a child would touch, and so copy, every page of Python objects
        control.sendall(encode_frame(READY))
        Zygote(control, decoder).run()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
