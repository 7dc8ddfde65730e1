"""The process side of the engine `pocketsphinx`: a zygote that loads the model, and a forked child for each stream.

pocketsphinx holds Python's interpreter lock while it decodes, so streams in threads would take turns on one core and
stall the server's event loop. Here every stream decodes in a process of its own. Children are forked from a zygote
that has loaded the model, which shares its pages with them: a stream costs about 30 MB instead of 100.

    server ──control socket──► zygote          SPAWN id (with the stream's socket), KILL id; READY or an ERROR back
    server ◄──stream socket──► child           frames: CONFIG (AUDIO | FLUSH)* END; READY RESULT* DONE, or ERROR

A process ends when its socket does, so none outlives the server, however that died.

`Recognizer` is the engine proper and knows nothing of processes: 16 kHz audio in, results out.
"""

from __future__ import annotations

import array
import contextlib
import gc
import json
import math
import os
import re
import selectors
import signal
import socket
import struct
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final, NoReturn

from backends.base import Result, Word
from backends.endpointing import Endpoint, Endpointer

SAMPLE_RATE: Final = 16_000

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


# --- The engine ---

FRAME_SAMPLES: Final = 480  # 30 ms, the longest frame that the detector takes
FRAME_BYTES: Final = FRAME_SAMPLES * 2
FRAMES_PER_SECOND: Final = SAMPLE_RATE / FRAME_SAMPLES
VECTORS_PER_FRAME: Final = 3  # the decoder computes a cepstral vector every 10 ms

# An empty final this often in silence, so that no audio piles up. It stays this far behind, because a segment that
# starts a moment later begins up to 0.6 s in the past.
SILENCE_SAMPLES: Final = 5 * SAMPLE_RATE
SILENCE_MARGIN: Final = 24  # frames

# The language model's search grows no worse with length, but the second pass at the end does: after 25 s it takes
# about 0.6 s, and the bridge has to keep all of that audio for a replay.
LONGEST_FRAMES: Final = round(25 * FRAMES_PER_SECOND)
CUT_SEARCH_FRAMES: Final = round(4 * FRAMES_PER_SECOND)

# pocketsphinx normalizes each cepstral vector by the mean that it knows at that moment, and starts with one that fits
# its training data. Most of what live decoding loses against decoding a whole file is that first mean; with the right
# one the results are the same. Hence: one mean for the session, and another try at the utterance when it was wrong.
FIRST_TRIES: Final = tuple(round((0.3 + s) * FRAMES_PER_SECOND) for s in (0.5, 1.0, 2.0))  # 0.3 s is the pre-roll
PAUSE_FRAMES: Final = 5  # 150 ms: probably the utterance's end, and work done now need not be done after it
RETRY_LONGEST_FRAMES: Final = round(4 * FRAMES_PER_SECOND)  # a try costs 0.15 to 0.25 times the length: final waits
# Euclidean. A new voice or microphone is 10 to 50 away. One utterance lies 2 to 8 from the next, and to try again for
# that made finals a second later and no word better.
RETRY_SHIFT: Final = 10.0
PADDING: Final = bytes(SAMPLE_RATE * 2 // 5)  # 0.2 s: the search ends better in silence than inside a word
HISTORY_VECTORS: Final = 2_000  # 20 s: a new speaker, or the same one farther off, is learnt within an utterance
MEASURE_FRAMES: Final = 64  # below the 300 vectors after which pocketsphinx would move the mean by itself
PRIOR_VECTORS: Final = 500  # the weight that pocketsphinx gives to the mean that it was set to

# How much worse, in log likelihood per vector, a sequence of the phrases may fit than free speech and still win.
# Measured on cards, digits and read prose: phrases that were said fit better by 0.05 to 1.3, others worse by 0.6
# to 2.4.
PREFER_MARGIN: Final = 0.2

# The most states that the search follows at once. The package's 30,000 cost a quarter more work and gain 0 to 2 points
# of word error rate; 3,000 save more, and lose 5 points in a session's first utterance, whose mean is still a guess.
ACTIVE_STATES: Final = 5_000

_VARIANT: Final = re.compile(r"\(\d+\)$")
_NOT_WORD: Final = re.compile(r"[^\w']+|_")


@dataclass(frozen=True, slots=True)
class Cepstra:
    """A sum of cepstral vectors and how many they were: the mean of some stretch of speech."""

    total: tuple[float, ...] = ()
    count: float = 0.0

    def __add__(self, other: Cepstra) -> Cepstra:
        if not self.total or not other.total:
            return self if self.total else other
        total = tuple(a + b for a, b in zip(self.total, other.total, strict=True))
        return Cepstra(total, self.count + other.count)

    def at_most(self, count: float) -> Cepstra:
        """The same mean, weighing no more than `count` vectors."""
        if self.count <= count:
            return self
        return Cepstra(tuple(value * count / self.count for value in self.total), count)

    @property
    def mean(self) -> tuple[float, ...]:
        """Empty while nothing is known."""
        return tuple(value / self.count for value in self.total)


def distance(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """How far two means lie apart; 0 where one is not known."""
    return math.dist(one, other) if one and other else 0.0


class Utterance:
    """One utterance in the decoder from its first sample on; it keeps its audio for another try."""

    def __init__(self, decoder: Any, known: Cepstra, *, begin: int) -> None:
        self.begin = begin  # sample of the stream
        self.audio = bytearray()
        self.spoken = Cepstra()  # what this utterance adds to the known
        self._decoder = decoder
        self._known = known
        self._start()

    @property
    def frames(self) -> int:
        """Its whole frames so far."""
        return len(self.audio) // FRAME_BYTES

    def feed(self, audio: bytes) -> None:
        """Decode what follows: whole frames, or the last piece of the utterance."""
        self.audio += audio
        for at in range(0, len(audio), FRAME_BYTES):
            self._decode(audio[at : at + FRAME_BYTES])

    def text(self) -> str:
        """The words so far."""
        hypothesis = self._decoder.hyp()
        return hypothesis.hypstr if hypothesis else ""

    def shift(self) -> float:
        """How far the mean in use lies from the best one known by now."""
        self._measure()
        return distance(self._mean, (self._known + self.spoken).mean)

    def retry(self) -> None:
        """Decode all of it again, with the best mean known."""
        self._measure()
        self._decoder.end_utt()
        self._start()
        audio, self.audio = bytes(self.audio), bytearray()
        self.feed(audio)

    def finish(self) -> None:
        """No more audio comes: make the final pass."""
        self._measure()
        self._decoder.end_utt()

    def words(self, end: int) -> list[Word]:
        """What was said, when finished; times in the stream, none beyond its sample `end`."""
        begin, last = self.begin / SAMPLE_RATE, end / SAMPLE_RATE
        return [
            Word(
                text=_VARIANT.sub("", segment.word),
                start=min(last, round(begin + segment.start_frame / 100, 3)),
                end=min(last, round(begin + (segment.end_frame + 1) / 100, 3)),
                confidence=min(1.0, max(0.0, segment.prob)),
            )
            for segment in self._decoder.seg() or ()
            if not segment.word.startswith(("<", "[", "++"))
        ]

    def fit(self) -> float:
        """How well the words fit the sound, when finished: log likelihood per vector, without any grammar's part."""
        segments = list(self._decoder.seg() or ())
        if not segments:
            return -math.inf
        likelihood: float = sum(math.log(max(segment.ascore, sys.float_info.min)) for segment in segments)
        return likelihood / int(segments[-1].end_frame + 1)

    def _start(self) -> None:
        best = (self._known + self.spoken).mean
        self._use(best or tuple(float(n) for n in self._decoder.get_cmn(False).split(",")))
        self.spoken = Cepstra()
        self._decoder.start_utt()

    def _use(self, mean: tuple[float, ...]) -> None:
        self._decoder.set_cmn(",".join(f"{n:.6g}" for n in mean))
        self._mean = mean
        self._frames_unmeasured = self._vectors_unmeasured = 0

    def _decode(self, frame: bytes) -> None:
        self._decoder.process_raw(frame)
        self._frames_unmeasured += 1
        if any(frame):  # pocketsphinx leaves digital silence out of its mean
            self._vectors_unmeasured += VECTORS_PER_FRAME
        if self._frames_unmeasured >= MEASURE_FRAMES:
            self._measure()

    def _measure(self) -> None:
        """Take the sum of the latest vectors out of the decoder's own running mean.

        The decoder mixes them with the mean that it was given, at a known weight. To undo that costs nothing;
        a second pass over the audio would cost the front end's work again.
        """
        count = self._vectors_unmeasured
        if count:
            mixed = (float(n) for n in self._decoder.get_cmn(True).split(","))
            weighed = zip(mixed, self._mean, strict=True)
            total = tuple(m * (PRIOR_VECTORS + count) - given * PRIOR_VECTORS for m, given in weighed)
            self.spoken += Cepstra(total, count)
            self._use(self._mean)  # and it goes on with the mean it had: moving it in mid-utterance cost accuracy


class Recognizer:
    """Audio in, results out, for one stream. What comes out depends on the audio, not on how it was chunked.

    Positions are samples of the stream. Frames are counted from `_origin`, which only a flush moves: the piece
    of a frame that is left then is decoded, and a new row of frames begins.
    """

    def __init__(self, decoder: Any, vad: Any, *, partials: bool = True, prefer: str = "") -> None:
        self._decoder = decoder
        self._vad = vad
        self._partials = partials
        self._prefer = prefer  # a search that wins where it fits as well as the one in use
        self._known = Cepstra()
        self._ends = Endpointer()
        self._origin = 0
        self._final_until = 0
        self._rest = bytearray()  # less than a frame
        self._kept: deque[bytes] = deque(maxlen=self._ends.rules.look_back)
        self._utterance: Utterance | None = None
        self._shown = ""

    def feed(self, pcm: bytes) -> Iterator[Result]:
        """Take in audio."""
        self._rest += pcm
        whole = len(self._rest) - len(self._rest) % FRAME_BYTES
        frames = bytes(self._rest[:whole])
        del self._rest[:whole]
        for at in range(0, whole, FRAME_BYTES):
            yield from self._frame(frames[at : at + FRAME_BYTES])

    def flush(self) -> Iterator[Result]:
        """Finalize everything so far, and answer with a final that reaches up to here."""
        if self._ends.force_start():
            self._open()
        now = self._sample(self._ends.position) + len(self._rest) // 2
        if self._utterance:
            self._utterance.feed(bytes(self._rest))
            self._utterance.feed(PADDING)
            yield self._finish(self._utterance, now)
        else:
            yield self._final([], self._final_until, now)
        self._ends = Endpointer(self._ends.rules)
        self._kept.clear()
        self._rest.clear()
        self._origin = now

    def end(self) -> Iterator[Result]:
        """Finalize what is left."""
        if self._utterance or self._sample(self._ends.position) + len(self._rest) // 2 > self._final_until:
            yield from self.flush()

    def _frame(self, frame: bytes) -> Iterator[Result]:
        self._kept.append(frame)
        change = self._ends.push(self._vad.is_speech(frame))
        now = self._sample(self._ends.position)
        if change is Endpoint.STARTED:
            utterance = self._open()
            if self._partials:
                yield Result("", is_final=False, start=utterance.begin / SAMPLE_RATE, end=now / SAMPLE_RATE)
        elif self._utterance:
            self._utterance.feed(frame)
        if self._utterance is None:
            if now - self._final_until >= SILENCE_SAMPLES:
                self._ends.keep_from(self._ends.position - SILENCE_MARGIN)
                yield self._final([], self._final_until, now - SILENCE_MARGIN * FRAME_SAMPLES)
        elif change is Endpoint.ENDED:
            yield self._finish(self._utterance, now)
        elif self._utterance.frames >= LONGEST_FRAMES:
            yield self._split(self._utterance, now)
        else:
            if self._should_retry(self._utterance):
                self._utterance.retry()
            if self._partials and (text := self._utterance.text()) != self._shown:
                self._shown = text
                begin = self._utterance.begin
                yield Result(text, is_final=False, start=begin / SAMPLE_RATE, end=now / SAMPLE_RATE)

    def _should_retry(self, utterance: Utterance) -> bool:
        if not self._known.count and utterance.frames in FIRST_TRIES:
            return True
        return (
            self._ends.quiet == PAUSE_FRAMES
            and utterance.frames <= RETRY_LONGEST_FRAMES
            and utterance.shift() > RETRY_SHIFT
        )

    def _open(self) -> Utterance:
        start, position = self._ends.start, self._ends.position
        return self._begin(self._sample(start), b"".join(list(self._kept)[start - position :]))

    def _begin(self, begin: int, audio: bytes) -> Utterance:
        self._shown = ""
        self._utterance = utterance = Utterance(self._decoder, self._known, begin=begin)
        utterance.feed(audio)
        return utterance

    def _finish(self, utterance: Utterance, end: int) -> Result:
        words = self._end(utterance, end)
        if self._prefer:
            words = self._preferred(utterance, end) or words
        return self._final(words, utterance.begin, end)

    def _end(self, utterance: Utterance, end: int) -> list[Word]:
        utterance.finish()
        self._utterance = None
        self._known = (self._known + utterance.spoken).at_most(HISTORY_VECTORS)
        return utterance.words(end)

    def _preferred(self, utterance: Utterance, end: int) -> list[Word]:
        """The words of the preferred search, if what they were heard as fits the sound no better."""
        usual, fit = self._decoder.current_search(), utterance.fit()
        self._decoder.activate_search(self._prefer)
        again = Utterance(self._decoder, self._known, begin=utterance.begin)
        again.feed(bytes(utterance.audio))
        again.finish()
        words = again.words(end) if again.fit() >= fit - PREFER_MARGIN else []
        self._decoder.activate_search(usual)
        return words

    def _split(self, utterance: Utterance, now: int) -> Result:
        """End an utterance that grew too long in its quietest place of late, and begin the next one there.

        A grammar hears nothing in what does not end with a phrase: 25 s without a pause are no row of commands.
        """
        words = self._end(utterance, now)
        late = now - CUT_SEARCH_FRAMES * FRAME_SAMPLES
        cut = late + quietest(bytes(utterance.audio[(late - utterance.begin) * 2 :])) * FRAME_SAMPLES
        cut = self._outside(cut, words, late, now)
        self._ends.split((cut - self._origin) // FRAME_SAMPLES)
        before = [word for word in words if (word.start + word.end) / 2 < cut / SAMPLE_RATE]
        final = self._final(before, utterance.begin, cut)
        self._begin(cut, bytes(utterance.audio[(cut - utterance.begin) * 2 :]))
        return final

    def _outside(self, cut: int, words: list[Word], first: int, last: int) -> int:
        """A cut at a whole frame that does not lie inside a word, if one of the word's ends lies in reach."""
        for word in words:
            if word.start < cut / SAMPLE_RATE < word.end:
                edge = min(word.start, word.end, key=lambda time: abs(time - cut / SAMPLE_RATE))
                frame = round((edge * SAMPLE_RATE - self._origin) / FRAME_SAMPLES)
                return self._sample(frame) if first < self._sample(frame) < last else cut
        return cut

    def _final(self, words: list[Word], begin: int, end: int) -> Result:
        self._final_until = end
        known = [word.confidence for word in words if word.confidence is not None]
        return Result(
            text=" ".join(word.text for word in words),
            is_final=True,
            start=begin / SAMPLE_RATE,
            end=end / SAMPLE_RATE,
            words=tuple(words),
            confidence=sum(known) / len(known) if known else None,
        )

    def _sample(self, frame: int) -> int:
        return self._origin + frame * FRAME_SAMPLES


def quietest(audio: bytes) -> int:
    """The frame in the middle of the quietest 90 ms: shorter finds the closure of a plosive."""
    samples = array.array("h", audio[: len(audio) // FRAME_BYTES * FRAME_BYTES])
    loud = [
        sum(sample * sample for sample in samples[at : at + FRAME_SAMPLES])
        for at in range(0, len(samples), FRAME_SAMPLES)
    ]
    return min(range(1, len(loud) - 1), key=lambda n: sum(loud[n - 1 : n + 2]))


def add_phrases(decoder: Any, name: str, phrases: Iterable[str]) -> int:
    """Add a search for any sequence of the phrases; returns how many hold a word that is not in the dictionary.

    Adds nothing if none is left. The grammar is built from words, not written as JSGF: phrases are the client's
    text and need no quoting this way.
    """
    known, unknown = [], 0
    for phrase in phrases:
        words = _NOT_WORD.sub(" ", phrase.lower()).split()
        if words and all(decoder.lookup_word(word) for word in words):
            known.append(words)
        else:
            unknown += 1
    if known:
        # State 0 begins and ends every phrase, so that they may follow each other.
        transitions: list[tuple[int, int, float, str]] = []
        states = 1
        for words in known:
            at = 0
            for n, word in enumerate(words):
                to = 0 if n == len(words) - 1 else states
                states += to > 0
                transitions.append((at, to, 1.0 / len(known) if at == 0 else 1.0, word))
                at = to
        decoder.add_fsg(name, decoder.create_fsg(name, 0, 0, transitions))
    return unknown


# --- The processes ---


def load(options: dict[str, str | None]) -> Any:
    """The decoder, with the bundled models where options name no other."""
    import pocketsphinx  # noqa: PLC0415 - the server imports this module for the wire, not for the engine

    given = {name: value for name, value in options.items() if value}
    return pocketsphinx.Decoder(loglevel="FATAL", maxhmmpf=ACTIVE_STATES, **given)


def serve_stream(sock: socket.socket, decoder: Any) -> None:
    """One stream, from CONFIG to DONE; returns early when the other end is gone."""
    import pocketsphinx  # noqa: PLC0415

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
        pocketsphinx.Vad(pocketsphinx.Vad.LOOSE, SAMPLE_RATE, FRAME_SAMPLES / SAMPLE_RATE),
        partials=config["partials"],
        prefer="phrases" if usable and mode == "bias" else "",
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
