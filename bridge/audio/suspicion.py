"""Is raw audio what it was declared to be? Its encoding and its channels, judged by the first seconds of sound.

Every encoding's reading of the same bytes is costed (`readings.py`). Suspicion falls on the declared one only if
another explains the bytes much better, explains them well, and no third one nearly as well: a false alarm costs a
developer's trust in all warnings.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Final

import numpy as np
import numpy.typing as npt

from bridge.audio.formats import AudioFormat, Encoding
from bridge.audio.readings import ALIGNMENT, READABLE, Values, bits_per_byte, read

Finding = tuple[str, str]
"""A warning's code and its sentence."""

_BLOCK_SECONDS: Final = 0.15
_BLOCK_BYTES: Final = (96 * ALIGNMENT, 384 * ALIGNMENT)
"""Least and most bytes that are judged at once: some hundred samples of any encoding, and a millisecond of work."""
_SPACING_SECONDS: Final = 0.25
"""From one block to the next: four a second show several vowels and consonants in the time that they need."""
_PATIENCE: Final = 120
"""Quiet blocks after which they become sparse: nobody speaks yet, and looking costs something, too."""
_SPARSE: Final = 8
_PER_MESSAGE: Final = 4
"""Most blocks of one message: whoever sends a minute at once must not hold up the others."""

_LOUD: Final = 0.003
"""Level (-50 dBFS) from which audio says something about its format."""
_FAINT: Final = 1e-4
"""Level (-80 dBFS) of samples that only seem to be some: bits that change in the lowest places of a wide one."""
_SURE: Final = 4
"""Loud blocks that are enough for a large difference."""
_ENOUGH: Final = 8
"""Loud blocks that are enough for any."""
_MOST: Final = 24
"""Loud blocks after which what is not clear stays unsaid."""

_CLEARLY: Final = 0.4
"""Bits a byte by which another reading must be cheaper."""
_LARGELY: Final = 1.0
_HOPELESS: Final = 2.0
"""Bits a byte by which a reading is dearer than the declared one, so that it need not be looked at again."""
_UNRIVALLED: Final = 0.2
"""Bits a byte by which it must be cheaper than every third reading, too."""
_TIE: Final = 0.05
_EXPLAINED: Final = 7.2
"""Bits a byte that audio costs at most; chance costs 8."""
_MOSTLY: Final = 0.8
"""Share of the blocks that must agree."""
_IMPOSSIBLE: Final = 99.0
"""Cost of a reading that is no audio."""
_NO_AUDIO: Final = 9.0
"""The same for the declared one: a few bytes that are no floats must not decide."""

_CHANCE: Final = 7.9
_CHANCE_ENTROPY: Final = 7.97
"""Bits a byte from which on bytes are as good as random."""

_SAME: Final = 0.7
"""Samples of a pair differ by less than this share of what pairs differ by: one moment in two channels."""
_SMOOTH: Final = 1.2
"""Audio changes from sample to sample by less than this share of its mean size. A tone of a quarter of the rate has
pairs, too, but is not smooth."""
_APART: Final = 0.4
"""What two channels each change from frame to frame, as a share of what they differ by."""
_HALFWAY: Final = 0.85
"""A sample between two others differs from each by less than this share of what those differ by."""
_EVEN: Final = 0.9


class Budget:
    """How many blocks may be judged in a second, by all streams that share this: a thousand that begin together wait.

    A token bucket (J. Turner, 1986) that holds a second's worth.
    """

    def __init__(self, blocks_per_second: float) -> None:
        self._rate = blocks_per_second
        self._left = blocks_per_second
        self._at = -math.inf

    def has(self, now: float) -> bool:
        """Whether one may be judged now, in seconds of any steady clock."""
        self._left = min(self._rate, self._left + self._rate * max(0.0, now - self._at))
        self._at = now
        return self._left >= 1

    def take(self, now: float) -> bool:
        """The same; that one is counted."""
        if not self.has(now):
            return False
        self._left -= 1
        return True


class FormatSuspicion:
    """Judges one stream of raw audio. `done` once there is nothing more to find out."""

    __slots__ = (
        "_budget",
        "_bytes",
        "_channels",
        "_costs",
        "_declared",
        "_disguised",
        "_excerpts",
        "_hopeless",
        "_interleaving",
        "_lags",
        "_rivals",
        "done",
    )

    def __init__(self, audio: AudioFormat, budget: Budget | None = None) -> None:
        self._budget = budget
        declared = Encoding.PCM_S16LE if audio.encoding is Encoding.AUTO else audio.encoding
        self.done = declared.width is None
        self._declared = declared
        self._channels = audio.channels
        self._lags = sorted({1, 2, audio.channels})
        self._excerpts = _Excerpts((declared.width or 1) * audio.sample_rate * audio.channels, audio.channels)
        self._costs: list[dict[Encoding, float]] = []
        self._rivals = [encoding for encoding in READABLE if encoding is not declared]
        self._hopeless: dict[Encoding, float] = {}  # those that are no rivals any more, with what they cost
        self._disguised: Counter[Encoding] = Counter()
        self._bytes: npt.NDArray[np.int64] | None = None  # how often each value; a session that waits needs no room
        self._interleaving = _Interleaving()

    def push(self, data: bytes, now: float = 0.0) -> Finding | None:
        """Take in the next bytes, at so many seconds of the budget's clock; what is wrong, once."""
        if self.done:
            return None
        if self._budget is not None and not self._budget.has(now):
            self._excerpts.skip(len(data))
            return None
        for block in self._excerpts.push(data):
            if self._budget is not None and not self._budget.take(now):
                continue
            if not self._take(block):
                self._excerpts.uneventful()
            elif (finding := self._verdict()) is not None:
                self.done = True
                return finding
            elif self.done or len(self._costs) >= _MOST:
                self.done = True
                break
        return None

    def _take(self, block: bytes) -> bool:
        """Whether this block says something."""
        declared = read(self._declared, block)
        if block.count(block[:1]) == len(block):
            return False
        if declared is not None and (declared.level < _LOUD or declared.repeats):
            return False
        readings = [declared, *(read(encoding, block) for encoding in self._rivals)]
        audio = [reading for reading in readings if reading is not None and reading.level > _FAINT]
        costs = dict.fromkeys(READABLE, _IMPOSSIBLE) | self._hopeless | {self._declared: _NO_AUDIO}
        for reading in audio:
            known = reading.encoding is self._declared
            costs[reading.encoding] = bits_per_byte(reading, self._lags, self._channels if known else 1)
        if audio and min(audio, key=lambda reading: costs[reading.encoding]).level < _LOUD:
            return False
        self._costs.append(costs)
        if declared is not None:
            dear = costs[self._declared] + _HOPELESS
            self._hopeless |= {encoding: costs[encoding] for encoding in self._rivals if costs[encoding] >= dear}
            self._rivals = [encoding for encoding in self._rivals if encoding not in self._hopeless]
        self._disguised.update(reading.encoding for reading in audio if reading.disguised)
        counts = np.bincount(np.frombuffer(block, np.uint8), minlength=256)
        self._bytes = counts if self._bytes is None else self._bytes + counts
        if declared is not None:
            self._interleaving.take(declared.values)
        return True

    def _verdict(self) -> Finding | None:
        blocks = len(self._costs)
        if blocks < _SURE:
            return None
        mean = {encoding: sum(costs[encoding] for costs in self._costs) / blocks for encoding in READABLE}
        own = mean.pop(self._declared)
        best, second = sorted(mean, key=lambda encoding: mean[encoding])[:2]
        gain = own - mean[best]
        agreeing = sum(costs[best] < costs[self._declared] for costs in self._costs)
        if (
            gain >= (_LARGELY if blocks < _ENOUGH else _CLEARLY)
            and mean[best] <= _EXPLAINED
            and mean[second] - mean[best] >= _UNRIVALLED
            and agreeing >= _MOSTLY * blocks
        ):
            return "wrong_encoding", self._looks_like(best)
        if blocks < _ENOUGH and gain > -_CLEARLY:
            return None
        # Right, or such that no reading explains it: more of it would cost as much and say no more.
        self.done = gain <= _TIE or min(own, mean[best]) >= _CHANCE
        return self._other_faults(own, mean[best])

    def _other_faults(self, own: float, best: float) -> Finding | None:
        blocks = len(self._costs)
        name = self._declared.value
        if self._disguised[self._declared] >= _MOSTLY * blocks:
            return "wrong_encoding", (
                f"the samples are floats far beyond 1.0, which is full scale in {name}: divide what came from 16-bit "
                "integers by 32768"
            )
        entropy = 0.0 if self._bytes is None else _entropy(self._bytes)
        if min(own, best) >= _CHANCE and entropy >= _CHANCE_ENTROPY:
            return "wrong_encoding", (
                f"the bytes look compressed or encrypted, not like samples in {name}: declare the codec or the "
                "container that they are in, or send samples"
            )
        if sum(costs[self._declared] == _NO_AUDIO for costs in self._costs) >= _MOSTLY * blocks:
            return "wrong_encoding", f"the bytes are no samples in {name}: check how the samples are written"
        return self._interleaving.finding(self._channels) if own < best + _TIE else None

    def _looks_like(self, found: Encoding) -> str:
        declared = self._declared
        if _order(found) and _order(declared) and found.value[:-2] == declared.value[:-2]:
            seen = f"the bytes of the samples come in the other order than {declared.value} says"
            else_ = ", swap them, or look for a byte lost or added in front of the audio"
        else:
            seen = f"the samples look like {_ABOUT[found]}, not like the declared {declared.value}"
            else_ = ", or convert them"
        if self._disguised[found]:
            else_ = ", and divide them by 32768, since full scale is 1.0" + else_
        return f"{seen}: declare encoding {found.value}{else_}"


class _Excerpts:
    """Cuts blocks out of a stream of bytes, each of which begins with a frame."""

    __slots__ = (
        "_held",
        "_next",
        "_patience",
        "_position",
        "_size",
        "_spacing",
        "_unit",
    )

    def __init__(self, second: int, channels: int) -> None:
        self._unit = ALIGNMENT * channels
        least, most = _BLOCK_BYTES
        self._size = self._aligned(min(max(_BLOCK_SECONDS * second, least), most))
        self._spacing = self._aligned(min(max(_SPACING_SECONDS * second, self._size), 2 * most))
        self._position = 0
        self._next = 0  # where the block begins that is held in part, or comes next
        self._held = bytearray()
        self._patience = _PATIENCE

    def push(self, data: bytes) -> list[bytes]:
        """The blocks that these bytes complete."""
        start = self._position
        self._position += len(data)
        blocks: list[bytes] = []
        while (at := self._next + len(self._held) - start) < len(data):
            self._held += data[at : at + self._size - len(self._held)]
            if len(self._held) == self._size:
                blocks.append(bytes(self._held))
                self._held.clear()
                self._next += self._spacing
                if len(blocks) == _PER_MESSAGE:
                    self._next = max(self._next, self._aligned(self._position))
        return blocks

    def skip(self, size: int) -> None:
        """Let so many bytes pass; the next block lies behind them."""
        self._position += size
        self._held.clear()
        self._next = max(self._next, self._aligned(self._position))

    def uneventful(self) -> None:
        """A block said nothing; after many of those, fewer are cut."""
        self._patience -= 1
        if self._patience == 0:
            self._spacing *= _SPARSE

    def _aligned(self, size: float) -> int:
        return math.ceil(size / self._unit) * self._unit


class _Interleaving:
    """How samples at even places, those at odd places, and both together go on: one channel or two?"""

    __slots__ = (
        "_across",
        "_even",
        "_odd",
        "_product",
        "_size",
        "_step",
        "_within",
    )

    def __init__(self) -> None:
        self._within = self._across = self._step = 0.0
        self._even = self._odd = self._product = self._size = 0.0

    def take(self, values: Values) -> None:
        """Samples that begin with a frame."""
        even, odd = values[: len(values) // 2 * 2].reshape(-1, 2).T
        self._within += float(np.abs(odd - even).mean())
        self._across += float(np.abs(even[1:] - odd[:-1]).mean())
        self._step += float(np.abs(np.diff(even)).mean() + np.abs(np.diff(odd)).mean()) / 2
        self._size += float(np.abs(even - even.mean()).mean() + np.abs(odd - odd.mean()).mean()) / 2
        self._even += float(even @ even)
        self._odd += float(odd @ odd)
        self._product += float(even @ odd)

    def finding(self, channels: int) -> Finding | None:
        """What contradicts this number of channels."""
        within, across, step = self._within, self._across, self._step
        if channels == 1 and within < _SAME * across and step < _SMOOTH * self._size:
            return "wrong_channels", (
                "the samples come in pairs that are nearly the same: declare channels 2, or, if each is sent twice "
                "to reach the rate, half the sample_rate"
            )
        alike = abs(self._product) > 0.5 * math.sqrt(self._even * self._odd)
        if channels == 1 and step < _APART * min(within, across) and not alike:
            empty = " or, since it is silent, an encoding twice as wide" if not self._even or not self._odd else ""
            return "wrong_channels", f"every other sample belongs to another sound: declare channels 2{empty}"
        if channels == 2 and max(within, across) < _HALFWAY * step and within > _EVEN * across > _EVEN**2 * within:
            return "wrong_channels", (
                "the two channels are one, each sample of the second lying between two of the first: declare channels 1"
            )
        return None


def _entropy(counts: npt.NDArray[np.int64]) -> float:
    """Of bytes, in bits."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum())


def _order(encoding: Encoding) -> str:
    return encoding.value[-2:] if encoding.value[-2:] in {"le", "be"} else ""


_ABOUT: Final = {
    Encoding.PCM_S8: "signed 8-bit integers",
    Encoding.PCM_U8: "unsigned 8-bit integers",
    Encoding.PCM_S16LE: "16-bit integers",
    Encoding.PCM_S16BE: "16-bit integers, big-endian",
    Encoding.PCM_S24LE: "24-bit integers",
    Encoding.PCM_S24BE: "24-bit integers, big-endian",
    Encoding.PCM_S32LE: "32-bit integers",
    Encoding.PCM_S32BE: "32-bit integers, big-endian",
    Encoding.PCM_F32LE: "32-bit floats",
    Encoding.PCM_F32BE: "32-bit floats, big-endian",
    Encoding.PCM_F64LE: "64-bit floats",
    Encoding.PCM_F64BE: "64-bit floats, big-endian",
    Encoding.MULAW: "G.711 \N{GREEK SMALL LETTER MU}-law",
    Encoding.ALAW: "G.711 A-law",
}
