"""A circuit breaker for one backend: whether new streams should go to it, judged by how its last ones ended.

    closed ── too large a share, or too many in a row, failed ──► open ── `open_seconds` ──► half_open
       ▲                                                           ▲                            │
       └──────────── the probe brought a final, or ended well ─────┼────────────────────────────┤
                                                                   └──── the probe failed ──────┘

It advises: `admits` says where a stream should rather not go, and a stream that has nowhere else goes there all the
same. Such a stream is the probe, too. No I/O, no timers: it looks at the clock when it is asked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

BUCKETS: Final = 30
"""Parts of the window: what was counted is forgotten part by part, however many streams there were."""

BreakerState = Literal["closed", "half_open", "open"]


@dataclass(frozen=True, slots=True)
class BreakerRules:
    """When a breaker opens, and for how long.

    It opens when, of at least `streams` that ended within `window_seconds`, a share of `share` or more had failed; or
    after `failures` in a row, with no final from any stream in between.
    """

    share: float = 0.05
    window_seconds: float = 30.0
    streams: int = 20
    failures: int = 5
    open_seconds: float = 60.0


class Trial:
    """One stream, as the breaker sees it. Tell it what comes; the first of `succeeded`, `failed`, `closed` counts."""

    def __init__(self, breaker: Breaker) -> None:
        self._breaker: Breaker | None = breaker
        self._answered = False

    def result(self, *, final: bool) -> None:
        """The backend answered."""
        self._answered = True
        if final and self._breaker is not None:
            self._breaker._alive(self)  # noqa: SLF001 - the two are one mechanism

    def succeeded(self) -> None:
        """The stream ended as it should."""
        self._end(failed=False)

    def failed(self) -> None:
        """The backend failed, or stalled."""
        self._end(failed=True)

    def closed(self) -> None:
        """The stream was given up for no fault of the backend's: it tells something if there was an answer."""
        self._end(failed=False if self._answered else None)

    def _end(self, failed: bool | None) -> None:
        breaker, self._breaker = self._breaker, None
        if breaker is not None:
            breaker._ended(self, failed)  # noqa: SLF001 - the two are one mechanism


class Breaker:
    """See the module. `clock`: any steady one, in seconds; `changed` is called with every new state but `half_open`."""

    def __init__(
        self,
        rules: BreakerRules,
        clock: Callable[[], float],
        changed: Callable[[BreakerState], None] = lambda _: None,
    ) -> None:
        self._rules = rules
        self._clock = clock
        self._changed = changed
        self._opened: float | None = None  # when; None: it is closed
        self._probe: Trial | None = None
        self._probe_began = 0.0
        self._in_a_row = 0
        self._buckets: deque[tuple[int, int, int]] = deque()  # number of the part, streams ended, of these failed

    @property
    def state(self) -> BreakerState:
        """`half_open` from when a probe is wanted until it has told."""
        if self._opened is None:
            return "closed"
        if self._probe is not None or self._clock() - self._opened >= self._rules.open_seconds:
            return "half_open"
        return "open"

    @property
    def admits(self) -> bool:
        """Whether the next stream is welcome: as one of many, or as the probe."""
        return self._opened is None or (self.state == "half_open" and not self._probing)

    @property
    def _probing(self) -> bool:
        """Whether a probe is under way; one that tells nothing for long keeps no other back."""
        return self._probe is not None and self._clock() - self._probe_began < self._rules.open_seconds

    def begin(self) -> Trial:
        """A stream begins, or will for certain: at once, so that no second one takes itself for the probe."""
        trial = Trial(self)
        if self._opened is not None and not self._probing:
            self._probe, self._probe_began = trial, self._clock()
        return trial

    def _alive(self, trial: Trial) -> None:
        """A final came: the backend works, although the stream may go on for hours."""
        if trial is self._probe:
            self._close()
        elif self._opened is None:
            self._in_a_row = 0

    def _ended(self, trial: Trial, failed: bool | None) -> None:
        """While it is not closed, only the probe tells: streams from before would judge what was."""
        if trial is self._probe:
            self._probe = None
            if failed:
                self._open()
            elif failed is not None:
                self._close()
        elif self._opened is None and failed is not None:
            self._count(failed)

    def _count(self, failed: bool) -> None:
        rules = self._rules
        part = int(self._clock() / (rules.window_seconds / BUCKETS))
        while self._buckets and self._buckets[0][0] <= part - BUCKETS:
            self._buckets.popleft()
        _, ended, bad = self._buckets.pop() if self._buckets and self._buckets[-1][0] == part else (part, 0, 0)
        self._buckets.append((part, ended + 1, bad + failed))
        self._in_a_row = self._in_a_row + 1 if failed else 0
        if not failed:
            return
        streams = sum(bucket[1] for bucket in self._buckets)
        share = sum(bucket[2] for bucket in self._buckets) / streams
        if self._in_a_row >= rules.failures or (streams >= rules.streams and share >= rules.share):
            self._open()

    def _open(self) -> None:
        was_closed = self._opened is None
        self._opened = self._clock()
        if was_closed:
            self._changed("open")

    def _close(self) -> None:
        self._opened = self._probe = None
        self._in_a_row = 0
        self._buckets.clear()
        self._changed("closed")
