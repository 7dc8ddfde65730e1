"""When one backend stream has lasted long enough, and at which sample of the audio it may end.

A stream of an engine with a longest duration ends in one of three ways, the first that is possible:

- past `SOFT` of that duration, at the next final: there a word has just ended (the session does that, see `due`);
- from then on in a pause of `PAUSE` seconds, because without speech no final comes;
- past `HARD`, in the next quiet moment, for which ever less quiet will do; `WAIT` later wherever it stands. Then a
  word may have been cut in two, and `in_speech` tells the session to have the last word heard again.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from bridge.audio.loudness import Loudness

SOFT: Final = 0.8
HARD: Final = 0.9
"""Shares of the longest stream: 240 and 270 s of Google's five minutes."""
JITTER: Final = 0.05
"""Share by which the soft age varies, so that sessions that began together do not end their streams together."""
WAIT: Final = 3.0
WAIT_SHARE: Final = 0.05
"""Seconds that a quiet moment is waited for, and the most of a longest stream that this may take."""
PROBE_WAIT: Final = 1.0
"""The same when the session wants to see whether the stream still answers."""
LEAST: Final = 4.0
"""Seconds that a stream lasts at least before it is ended so: a shorter one might not bring the session forward."""
PAUSE: Final = 0.5
QUIET: Final = (0.2, 0.04)
"""Seconds of quiet asked for at first and at last. The closure of a stop consonant lasts 0.05 to 0.1 s, so that the
shortest is taken only when nothing better comes."""
PIECE: Final = 0.4
PIECE_SHARE: Final = 0.04
"""Seconds of audio in one piece: what is given can still be decided upon, so a huge chunk is not given at once. And
the most of a longest stream in one: `HARD`, the wait and the last piece stay within it, however short it is."""


class StreamEnd:
    """Where one stream ends. It is shown all audio before the stream is given it."""

    def __init__(self, rate: int, max_seconds: float | None, clock: Callable[[], float]) -> None:
        self.in_speech = False
        """Whether the stream was ended where no quiet was found."""
        self.voice = False
        """Whether the last piece of audio may hold speech."""
        self.unanswered_since: float | None = None
        """When the stream was first given what may be speech since its last result; None: it owes no answer."""
        self.unanswered_voice = 0.0
        """Seconds of such audio since."""
        self.piece = round((PIECE if max_seconds is None else min(PIECE, PIECE_SHARE * max_seconds)) * rate)
        self._rate = rate
        self._clock = clock
        self._loudness = Loudness(rate)
        self._began: float | None = None
        self._position = 0
        share = SOFT * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - jitter
        self._soft = None if max_seconds is None else share * max_seconds
        self._hard = None if max_seconds is None else HARD * max_seconds
        self._wait = WAIT if max_seconds is None else min(WAIT, WAIT_SHARE * max_seconds)

    @property
    def age(self) -> float:
        """How long the stream has lasted: seconds of audio, or by the clock since its first, whichever is more."""
        if self._began is None:
            return 0.0
        return max(self._position / self._rate, self._clock() - self._began)

    @property
    def due(self) -> bool:
        """Whether the next final should be the stream's last."""
        return self._soft is not None and self.age >= self._soft

    def ask(self) -> None:
        """End the stream soon, in a quiet moment if one comes in time, whatever its age."""
        soon = max(self.age, LEAST)
        self._hard = soon if self._hard is None else min(soon, self._hard)
        self._wait = min(self._wait, PROBE_WAIT)

    def answered(self) -> None:
        """A result came."""
        self.unanswered_since = None
        self.unanswered_voice = 0.0

    def take(self, pcm: bytes) -> int | None:
        """The stream's next audio. Returns after how many of its samples the stream ends; None: it goes on."""
        if self._began is None:
            self._began = self._clock()
        self._notice(pcm)
        quiet = self._quiet_needed()
        cut = None
        if quiet is not None:
            cut = self._loudness.quiet_at(pcm, quiet or QUIET[-1])
            if cut is None and not quiet:
                cut = 0
                self.in_speech = True
        self._position += len(pcm) // 2 if cut is None else cut
        return cut

    def _notice(self, pcm: bytes) -> None:
        self.voice = self._loudness.hear(pcm)
        if self.voice:
            self.unanswered_voice += len(pcm) / 2 / self._rate
            if self.unanswered_since is None:
                self.unanswered_since = self._clock()

    def _quiet_needed(self) -> float | None:
        """Seconds of quiet at which the stream ends now; None: it does not end; 0: it ends anywhere."""
        age = self.age
        if self._hard is not None and age >= self._hard:
            waited = (age - self._hard) / self._wait
            first, last = QUIET
            return 0.0 if waited >= 1 else first + (last - first) * waited
        if self._soft is not None and age >= self._soft:
            return PAUSE
        return None
