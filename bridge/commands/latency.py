"""How long after a word was spoken it was shown: measured on the audio's own clock."""

from __future__ import annotations

from bridge.protocols.native import FinalMessage, PartialMessage, ServerMessage


class Latencies:
    """Seconds from the end of a word to the first message that shows it in its place.

    A word counts from the first partial that has it, and every word before it, as the utterance's final has them:
    a word shown early and wrong gains nothing. Word ends are those of the final.
    """

    def __init__(self) -> None:
        self.partials: list[float] = []
        """For each word of a final that a partial had shown before."""
        self.finals: list[float] = []
        """For each final, from the end of its last word."""
        self.unseen = 0
        """Words that no partial showed before their final."""
        self._shown: list[tuple[float, list[str]]] = []

    def take(self, message: ServerMessage, now: float) -> None:
        """A message that came at `now`, in seconds from when the first sample was spoken."""
        match message:
            case PartialMessage():
                self._shown.append((now, message.text.split()))
            case FinalMessage() if message.text:
                self._settle(message, now)
            case _:
                pass

    def _settle(self, final: FinalMessage, now: float) -> None:
        self.finals.append(now - (final.words[-1].end if final.words else final.end))
        words = [word.text for word in final.words]
        for count, word in enumerate(final.words, 1):
            first = next((at for at, shown in self._shown if shown[:count] == words[:count]), None)
            if first is None:
                self.unseen += 1
            else:
                self.partials.append(first - word.end)
        self._shown.clear()
