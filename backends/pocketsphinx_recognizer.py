"""The engine `pocketsphinx` proper, for one stream: 16 kHz audio in, results out. Knows nothing of processes.

pocketsphinx decodes a stream worse than a whole file almost only because it does not know the mean of the cepstral
vectors yet, by which it normalizes them. `Utterance` keeps account of that mean and decodes again where it was wrong;
`Recognizer` finds the utterances and decides when that is worth it.
"""

from __future__ import annotations

import array
import math
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from backends.base import Result, Word
from backends.endpointing import Endpoint, Endpointer, EndpointRules

SAMPLE_RATE: Final = 16_000
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
FIRST_TRIES: Final = tuple(round((0.3 + s) * FRAMES_PER_SECOND) for s in (0.5, 2.0))  # 0.3 s is the pre-roll
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

# The most states that the search follows at once; the package's 30,000 cost a third more work. On 13 real recordings
# that gains a word in a hundred, on the project's samples nothing. The second pass (fwdflat) at the end stays on:
# without it a stream costs a quarter less, but clean samples go from 0.4% to 2.3% word error rate.
ACTIVE_STATES: Final = 3_000

# What noise is taken for: the search finds no other end than a word, and stretches it over all of the noise; one word
# in an utterance, 2 to 25 s long. Words of people and of synthesizers keep 0.1 s or more below this length, but for
# one in a thousand, which comes to within 0.1 s of it.
LONGEST_WORD_SECONDS: Final = 0.2
LONGEST_PHONE_SECONDS: Final = 0.2
# Shorter noise is the only word of its utterance. It reaches into the silence by which the utterance ended, where a
# word ends 0.27 s before that; or most of it is no louder than the background, because it is clicks.
SILENCE_AFTER_WORD: Final = 0.15  # seconds
LOUDER_THAN_BACKGROUND: Final = 2.0  # power of the median 10 ms of a word, 3 dB
LEAST_BACKGROUND: Final = 1.0  # mean square of the least dither

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


class Ears:
    """Whether a frame is speech: easily convinced that speech has begun, and as easily that it is over.

    pocketsphinx's detector (WebRTC's) goes on hearing speech for up to 0.2 s after its end when it is loose, and
    misses soft onsets when it is strict; so one of each, asked in turn.
    """

    def __init__(self) -> None:
        from pocketsphinx import Vad  # noqa: PLC0415 - see `load`

        seconds = FRAME_SAMPLES / SAMPLE_RATE
        self._loose, self._strict = (Vad(mode, SAMPLE_RATE, seconds) for mode in (Vad.LOOSE, Vad.MEDIUM_STRICT))

    def is_speech(self, frame: bytes, *, in_speech: bool) -> bool:
        """The answer for the next frame; both hear every frame, because they follow the noise."""
        loose, strict = self._loose.is_speech(frame), self._strict.is_speech(frame)
        return bool(strict if in_speech else loose)


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
        """What was said, when finished; times in the stream, none beyond its sample `end`.

        A word that is too long for its sounds is left out: it is noise.
        """
        begin, last = self.begin / SAMPLE_RATE, end / SAMPLE_RATE
        return [
            Word(
                text=_VARIANT.sub("", segment.word),
                start=min(last, round(begin + segment.start_frame / 100, 3)),
                end=min(last, round(begin + (segment.end_frame + 1) / 100, 3)),
                confidence=min(1.0, max(0.0, segment.prob)),
            )
            for segment in self._decoder.seg() or ()
            if not segment.word.startswith(("<", "[", "++")) and self._is_word(segment)
        ]

    def fit(self) -> float:
        """How well the words fit the sound, when finished: log likelihood per vector, without any grammar's part."""
        segments = list(self._decoder.seg() or ())
        if not segments:
            return -math.inf
        likelihood: float = sum(math.log(max(segment.ascore, sys.float_info.min)) for segment in segments)
        return likelihood / int(segments[-1].end_frame + 1)

    def _is_word(self, segment: Any) -> bool:
        phones = len((self._decoder.lookup_word(segment.word) or "").split())
        seconds = (segment.end_frame + 1 - segment.start_frame) / 100
        return seconds <= LONGEST_WORD_SECONDS + LONGEST_PHONE_SECONDS * phones or not phones

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

    def __init__(
        self,
        decoder: Any,
        ears: Ears,
        *,
        partials: bool = True,
        prefer: str = "",
        silence_seconds: float | None = None,
    ) -> None:
        self._decoder = decoder
        self._ears = ears
        self._partials = partials
        self._prefer = prefer  # a search that wins where it fits as well as the one in use
        self._known = Cepstra()
        self._ends = Endpointer(
            None
            if silence_seconds is None
            else EndpointRules.ending_after(max(1, round(silence_seconds * FRAMES_PER_SECOND)))
        )
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
        change = self._ends.push(self._ears.is_speech(frame, in_speech=self._ends.in_speech))
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
            yield self._finish(self._utterance, now, in_silence=True)
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

    def _finish(self, utterance: Utterance, end: int, *, in_silence: bool = False) -> Result:
        words = self._end(utterance, end)
        if self._prefer:
            words = self._preferred(utterance, end) or words
        if in_silence and len(words) == 1 and not self._stands_alone(words[0], utterance, end):
            words = []
        return self._final(words, utterance.begin, end)

    def _stands_alone(self, word: Word, utterance: Utterance, end: int) -> bool:
        """Whether the only word of an utterance that silence ended at sample `end` is a word, and no short noise."""
        begin = utterance.begin / SAMPLE_RATE
        in_time = word.end <= end / SAMPLE_RATE - SILENCE_AFTER_WORD
        return in_time and stands_out(bytes(utterance.audio), word.start - begin, word.end - begin)

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


def stands_out(audio: bytes, start: float, end: float) -> bool:
    """Whether the sound between two times, in seconds, is for the most part louder than the background."""
    samples = array.array("h", audio)
    size = SAMPLE_RATE // 100
    power = [sum(s * s for s in samples[at : at + size]) / size for at in range(0, len(samples) - size + 1, size)]
    background = sorted(power)[len(power) // 10]
    sound = sorted(power[round(start * 100) : round(end * 100)])
    return bool(sound) and sound[len(sound) // 2] > LOUDER_THAN_BACKGROUND * max(background, LEAST_BACKGROUND)


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


def load(options: dict[str, str | None]) -> Any:
    """The decoder, with the bundled models where options name no other."""
    import pocketsphinx  # noqa: PLC0415 - the server imports this package's modules without loading the engine

    given = {name: value for name, value in options.items() if value}
    return pocketsphinx.Decoder(loglevel="FATAL", maxhmmpf=ACTIVE_STATES, **given)
