"""The audio that a client may have to send again."""

from __future__ import annotations

from bisect import bisect_right


class Ring:
    """A stretch of the session's audio, in positions counted in bytes from its first one.

    `packets`: each piece that was appended goes out as it is, never cut and never joined to another (`opus`). All other
    audio may be cut anywhere. It grows without a limit of its own: who appends asks `held` first.
    """

    def __init__(self, *, packets: bool = False) -> None:
        self.start = 0
        """The first byte that is kept."""
        self._data = bytearray()  # removes at its front without moving the rest
        self._packets: list[int] | None = [] if packets else None  # where they begin

    @property
    def end(self) -> int:
        """Behind the last byte."""
        return self.start + len(self._data)

    @property
    def held(self) -> int:
        """Bytes that are kept."""
        return len(self._data)

    def append(self, audio: bytes) -> None:
        """Keep more audio."""
        if self._packets is not None and audio:
            self._packets.append(self.end)
        self._data += audio

    def piece(self, at: int, most: int) -> bytes:
        """Audio from this position on, at most so much; where packets count, the rest of one, whatever its size.

        Raises:
            ValueError: the position is not kept.
        """
        if not self.start <= at < self.end:
            raise ValueError(f"{at} is outside {self.start} to {self.end}")
        end = at + most
        if self._packets is not None:
            following = bisect_right(self._packets, at)
            end = self._packets[following] if following < len(self._packets) else self.end
        return bytes(memoryview(self._data)[at - self.start : end - self.start])

    def whole(self, at: int) -> int:
        """Where the packet begins that this position lies in; the position itself where packets do not count."""
        if not self._packets or at >= self.end:
            return at
        return self._packets[max(bisect_right(self._packets, at) - 1, 0)]

    def forget(self, before: int) -> None:
        """Let go of what lies before this position, whole packets only."""
        before = self.whole(min(before, self.end))
        if before <= self.start:
            return
        del self._data[: before - self.start]
        self.start = before
        if self._packets is not None:
            del self._packets[: bisect_right(self._packets, before - 1)]
