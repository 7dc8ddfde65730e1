"""The process side of the engine `pocketsphinx`: a zygote that loads the model, and a forked child for each stream.

pocketsphinx holds Python's interpreter lock while it decodes, so streams in threads would take turns on one core and
stall the server's event loop. Here every stream decodes in a process of its own. Children are forked from a zygote
that has loaded the model, which shares its pages with them: a stream costs about 30 MB instead of 100.

    server ──control socket──► zygote          SPAWN id (with the stream's socket), KILL id; LOADED or an error back
    server ◄──stream socket──► child           frames: CONFIG (AUDIO | FLUSH)* END; READY RESULT* DONE, or ERROR

A process ends when its socket does, so none outlives the server, however that died.

`Recognizer` is the engine proper and knows nothing of processes: 16 kHz audio in, results out.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

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
SILENCE_MARGIN: Final = 24 * FRAME_SAMPLES

# The language model's search grows no worse with length, but the second pass at the end does: after 25 s it takes
# about 0.6 s, and the bridge has to keep all of that audio for a replay.
LONGEST_FRAMES: Final = round(25 * FRAMES_PER_SECOND)
CUT_SEARCH_FRAMES: Final = round(4 * FRAMES_PER_SECOND)
CUT_FRAMES: Final = 3  # 90 ms: shorter finds the closure of a plosive, longer misses pauses of fast speech

# pocketsphinx normalizes each cepstral vector by the mean that it knows at that moment, and starts with one that fits
# its training data. Most of what live decoding loses against decoding a whole file is that first mean; with the right
# one the results are the same. Hence: one mean for the session, and another try at the utterance when it was wrong.
FIRST_TRIES: Final = tuple(round((0.3 + s) * FRAMES_PER_SECOND) for s in (0.5, 1.0, 2.0))  # 0.3 s is the pre-roll
PAUSE_FRAMES: Final = 5  # 150 ms: probably the utterance's end, and work done now need not be done after it
RETRY_LONGEST_FRAMES: Final = round(6 * FRAMES_PER_SECOND)  # a try costs about 0.15 times the utterance's length
RETRY_SHIFT: float = 2.0
MOVE_MEAN = False
PADDING: Final = bytes(SAMPLE_RATE * 2 // 5)
HISTORY_VECTORS: Final = 2_000  # 20 s: a new speaker, or the same one farther off, is learnt within an utterance
MEASURE_FRAMES: Final = 64  # below the 300 vectors after which pocketsphinx would move the mean by itself
PRIOR_VECTORS: Final = 500  # the weight that pocketsphinx gives to the mean that it was set to

_VARIANT: Final = re.compile(r"\(\d+\)$")


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

    def finish(self, end: int) -> list[Word]:
        """The words, with times in the stream; none reaches beyond sample `end`."""
        self._measure()
        self._decoder.end_utt()
        begin, last = self.begin / SAMPLE_RATE, end / SAMPLE_RATE
        return [
            Word(
                text=_VARIANT.sub("", segment.word),
                start=min(last, begin + segment.start_frame / 100),
                end=min(last, begin + (segment.end_frame + 1) / 100),
                confidence=min(1.0, max(0.0, segment.prob)),
            )
            for segment in self._decoder.seg() or ()
            if not segment.word.startswith(("<", "[", "++"))
        ]

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
            self._use((self._known + self.spoken).mean if MOVE_MEAN else self._mean)


class Recognizer:
    """Audio in, results out, for one stream. What comes out depends on the audio, not on how it was chunked.

    Positions are samples of the stream. Frames are counted from `_origin`, which only a flush moves: the piece
    of a frame that is left then is decoded, and a new row of frames begins.
    """

    def __init__(self, decoder: Any, vad: Any, *, partials: bool = True) -> None:
        self._decoder = decoder
        self._vad = vad
        self._partials = partials
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
            yield self._empty(now)
        self._ends = Endpointer(self._ends.rules)
        self._kept.clear()
        self._rest.clear()
        self._origin = now

    def _frame(self, frame: bytes) -> Iterator[Result]:
        self._kept.append(frame)
        change = self._ends.push(self._vad.is_speech(frame))
        now = self._sample(self._ends.position)
        if change is Endpoint.STARTED:
            utterance = self._open()
            if self._partials:
                yield Result(text="", is_final=False, start=utterance.begin / SAMPLE_RATE, end=now / SAMPLE_RATE)
        elif self._utterance:
            self._utterance.feed(frame)
        if change is Endpoint.ENDED and self._utterance:
            yield self._finish(self._utterance, now)
        elif self._utterance:
            yield from self._go_on(self._utterance, now)
        elif now - self._final_until >= SILENCE_SAMPLES:
            yield self._empty(now - SILENCE_MARGIN)

    def _go_on(self, utterance: Utterance, now: int) -> Iterator[Result]:
        if utterance.frames >= LONGEST_FRAMES:
            yield self._split(utterance, now)
        elif self._should_retry(utterance):
            utterance.retry()
        utterance = self._utterance or utterance
        if self._partials and (text := utterance.text()) != self._shown:
            self._shown = text
            yield Result(text, is_final=False, start=utterance.begin / SAMPLE_RATE, end=now / SAMPLE_RATE)

    def _should_retry(self, utterance: Utterance) -> bool:
        if not self._known.count and utterance.frames in FIRST_TRIES:
            return True
        return (
            self._ends.quiet == PAUSE_FRAMES
            and utterance.frames <= RETRY_LONGEST_FRAMES
            and utterance.shift() > RETRY_SHIFT
        )

    def _open(self) -> Utterance:
        ends = self._ends
        self._utterance = Utterance(self._decoder, self._known, begin=self._sample(ends.start))
        for frame in list(self._kept)[ends.start - ends.position :]:
            self._utterance.feed(frame)
        self._shown = ""
        return self._utterance

    def _finish(self, utterance: Utterance, end: int) -> Result:
        self._utterance = None
        words = utterance.finish(end)
        self._known = (self._known + utterance.spoken).at_most(HISTORY_VECTORS)
        return self._final(words, utterance.begin, end)

    def _split(self, utterance: Utterance, now: int) -> Result:
        """End an utterance that grew too long in its quietest place of late, and begin the next one there."""
        self._utterance = None
        words = utterance.finish(now)
        self._known = (self._known + utterance.spoken).at_most(HISTORY_VECTORS)
        cut = self._sample(utterance.frames - CUT_SEARCH_FRAMES + quietest(utterance.audio[-CUT_SEARCH_FRAMES * FRAME_BYTES :]))
        raise NotImplementedError

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

    def _empty(self, end: int) -> Result:
        begin = self._final_until
        self._ends.keep_from((end - self._origin) // FRAME_SAMPLES)
        return self._final([], begin, end)

    def _sample(self, frame: int) -> int:
        return self._origin + frame * FRAME_SAMPLES
