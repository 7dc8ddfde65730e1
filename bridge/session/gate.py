"""Which of a channel's audio is given to the backend: speech with what surrounds it. Pure arithmetic on positions.

    shut at 0 ──open(100)──► open from 100 ──shut(900)──► shut ──open(2000)──► …

Audio inside of an open stretch passes at once. While the gate is shut, audio up to `silent_until` is known to be
silence and passed over; what lies behind is held, because speech that is noticed late begins in the past.
"""

from __future__ import annotations

from collections import deque


class Gate:
    """Open stretches, in samples from the start of the session. It begins shut."""

    def __init__(self) -> None:
        self.silent_until = 0
        """Before this position all that no stretch holds is silence, for good."""
        self.speech_until = 0
        """Where the last speech before `silent_until` ended: a final that reaches so far leaves nothing unanswered."""
        self.passed = 0
        """Up to where audio has passed at most: the gate is shut behind it, not before."""
        self._stretches: deque[tuple[int, int | None]] = deque()

    @property
    def is_open(self) -> bool:
        """Whether all audio that comes passes."""
        return bool(self._stretches) and self._stretches[-1][1] is None

    def open(self, first: int) -> None:
        """Let audio pass from `first` on; what was passed over stays so."""
        if self.is_open:
            return
        first = max(first, self.silent_until)
        if self._stretches and self._stretches[-1][1] == first:
            first = self._stretches.pop()[0]
        self._stretches.append((first, None))

    def shut(self, last: int, speech_until: int) -> None:
        """Let nothing pass from `last` on, or from where audio has passed already, which is `silent_until` then.

        The speech in between ended at `speech_until`.
        """
        if self.is_open:
            first, _ = self._stretches.pop()
            last = max(first, last, self.passed, self.silent_until)
            if first < last:
                self._stretches.append((first, last))
            self.silent_until = last
            self.speech_until = max(self.speech_until, min(speech_until, last))

    def silence(self, until: int) -> None:
        """While shut: no speech will be found before `until`."""
        if not self.is_open:
            self.silent_until = max(self.silent_until, until)

    def next(self, position: int) -> tuple[int, int | None]:
        """From `position` on: where audio passes next, and up to where (None: all that comes).

        Where nothing passes yet, both are the same: what lies before them is silence.
        """
        for first, last in self._stretches:
            if last is None or last > position:
                return max(first, position), last
        silent = max(position, self.silent_until)
        return silent, silent

    def forget(self, position: int) -> None:
        """Nothing before `position` will be asked for again."""
        while self._stretches and (last := self._stretches[0][1]) is not None and last <= position:
            self._stretches.popleft()
