"""The circuit breaker on a clock of its own: when it opens, whom it lets try, when it closes."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from bridge.session.breaker import BUCKETS, Breaker, BreakerRules, BreakerState, Trial

RULES = BreakerRules()


@dataclass
class Watched:
    """A breaker, its clock, and what it told."""

    rules: BreakerRules = RULES
    now: float = 1_000.0
    told: list[BreakerState] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.breaker = Breaker(self.rules, lambda: self.now, self.told.append)

    def state(self) -> BreakerState:
        """A method: a type checker would take a property for settled."""
        return self.breaker.state

    def admits(self) -> bool:
        """Likewise."""
        return self.breaker.admits

    def stream(self, failed: bool) -> None:
        """One that begins and ends now."""
        trial = self.breaker.begin()
        if failed:
            trial.failed()
        else:
            trial.succeeded()

    def opened(self) -> Watched:
        """The same with the breaker open."""
        for _ in range(self.rules.failures):
            self.stream(failed=True)
        assert self.state() == "open"
        return self


def test_failures_in_a_row_open_it() -> None:
    watched = Watched()
    for _ in range(4):
        watched.stream(failed=True)
        assert (watched.state(), watched.admits()) == ("closed", True)
    watched.stream(failed=True)
    assert (watched.state(), watched.admits()) == ("open", False)
    assert watched.told == ["open"]


def test_failures_in_a_row_count_however_far_apart() -> None:
    watched = Watched()
    for _ in range(5):
        watched.now += 600
        watched.stream(failed=True)
    assert watched.state() == "open"


@pytest.mark.parametrize("sign", ["success", "final"])
def test_a_sign_of_life_begins_the_row_again(sign: str) -> None:
    """A final of a stream that goes on is one."""
    watched = Watched()
    long = watched.breaker.begin()
    for _ in range(3):
        for _ in range(4):
            watched.stream(failed=True)
        if sign == "success":
            watched.stream(failed=False)
        else:
            long.result(final=True)
    assert watched.state() == "closed"


def test_partials_are_no_sign_of_life() -> None:
    watched = Watched()
    long = watched.breaker.begin()
    for _ in range(5):
        long.result(final=False)
        watched.stream(failed=True)
    assert watched.state() == "open"


@pytest.mark.parametrize(("streams", "failed", "state"), [(20, 1, "open"), (19, 1, "closed"), (21, 1, "closed")])
def test_the_share_that_opens_it(streams: int, failed: int, state: str) -> None:
    """Five per cent, of at least twenty streams."""
    watched = Watched()
    for _ in range(streams - failed):
        watched.stream(failed=False)
    for _ in range(failed):
        watched.stream(failed=True)
    assert watched.state() == state


def test_a_success_never_opens_it() -> None:
    """One failure of nineteen tells nothing yet; the twentieth stream is a good one."""
    watched = Watched()
    watched.stream(failed=True)
    for _ in range(40):
        watched.stream(failed=False)
        assert watched.state() == "closed"


def test_what_is_older_than_the_window_does_not_count() -> None:
    """Neither the failures of before, nor the good streams among which one would be few."""
    watched = Watched(BreakerRules(share=0.5, streams=4))
    watched.stream(failed=True)
    watched.stream(failed=True)
    watched.stream(failed=False)
    watched.now += watched.rules.window_seconds + 1
    watched.stream(failed=True)  # else the fourth, and the third that failed
    assert watched.state() == "closed"
    for _ in range(100):
        watched.stream(failed=False)
    watched.now += watched.rules.window_seconds + 1
    for failed in (False, False, True, True):
        watched.stream(failed)
    assert watched.state() == "open"


def test_the_window_takes_no_memory() -> None:
    watched = Watched(BreakerRules(share=1.0, failures=10_000))
    for _ in range(100_000):
        watched.now += 0.01
        watched.stream(failed=bool(random.getrandbits(1)))
    assert len(watched.breaker._buckets) <= BUCKETS


def test_after_a_while_one_stream_may_try() -> None:
    watched = Watched().opened()
    watched.now += RULES.open_seconds - 0.1
    assert (watched.state(), watched.admits()) == ("open", False)
    watched.now += 0.2
    assert (watched.state(), watched.admits()) == ("half_open", True)
    watched.breaker.begin()
    assert (watched.state(), watched.admits()) == ("half_open", False)


def half_open() -> tuple[Watched, Trial]:
    """And its probe."""
    watched = Watched().opened()
    watched.now += RULES.open_seconds
    return watched, watched.breaker.begin()


def test_the_probe_that_ends_well_closes_it() -> None:
    watched, probe = half_open()
    probe.succeeded()
    assert (watched.state(), watched.admits()) == ("closed", True)
    assert watched.told == ["open", "closed"]
    for _ in range(4):  # and what was before is forgotten
        watched.stream(failed=True)
    assert watched.state() == "closed"


def test_the_probe_s_first_final_closes_it() -> None:
    """The stream may go on for hours."""
    watched, probe = half_open()
    probe.result(final=False)
    assert watched.state() == "half_open"
    probe.result(final=True)
    assert watched.state() == "closed"
    probe.failed()  # later: one failure of many
    assert watched.state() == "closed"


def test_the_probe_that_fails_opens_it_for_as_long_again() -> None:
    watched, probe = half_open()
    watched.now += 5
    probe.failed()
    assert watched.state() == "open"
    watched.now += RULES.open_seconds - 0.1
    assert not watched.admits()
    watched.now += 0.2
    assert watched.admits()
    assert watched.told == ["open"]


@pytest.mark.parametrize("answered", [False, True])
def test_a_probe_that_is_given_up_makes_room_for_another(answered: bool) -> None:
    """Unless it had an answer: then it has told enough."""
    watched, probe = half_open()
    if answered:
        probe.result(final=False)
    probe.closed()
    assert watched.state() == ("closed" if answered else "half_open")
    assert watched.admits()


def test_a_probe_that_tells_nothing_keeps_no_other_back() -> None:
    watched, silent = half_open()
    watched.now += RULES.open_seconds
    assert watched.admits()
    second = watched.breaker.begin()
    assert not watched.admits()
    silent.failed()  # its time is over
    assert watched.state() == "half_open"
    second.succeeded()
    assert watched.state() == "closed"


def test_streams_from_before_decide_nothing_while_it_is_open() -> None:
    watched = Watched()
    old = [watched.breaker.begin() for _ in range(4)]
    watched.opened()
    old[0].succeeded()
    old[1].result(final=True)
    assert watched.state() == "open"
    watched.now += RULES.open_seconds
    probe = watched.breaker.begin()
    old[2].failed()
    old[3].succeeded()
    assert watched.state() == "half_open"
    probe.succeeded()
    assert watched.state() == "closed"


def test_a_stream_that_has_nowhere_else_to_go_is_the_probe_at_once() -> None:
    """With one backend, every stream goes to it: the first that works closes its breaker."""
    watched = Watched().opened()
    forced = watched.breaker.begin()
    forced.result(final=True)
    assert watched.state() == "closed"


def test_only_the_first_end_counts() -> None:
    watched = Watched(BreakerRules(failures=2))
    trial = watched.breaker.begin()
    trial.failed()
    trial.failed()
    trial.closed()
    assert watched.state() == "closed"


def final(trial: Trial) -> None:
    """A final came."""
    trial.result(final=True)


@pytest.mark.parametrize("seed", range(20))
def test_it_always_comes_back(seed: int) -> None:
    """Whatever streams do, at any time there is at most one probe, and a backend that is well again is used again."""
    chance = random.Random(seed)
    watched = Watched(BreakerRules(share=0.3, window_seconds=5, streams=4, failures=3, open_seconds=7))
    running: list[Trial] = []
    for _ in range(2_000):
        watched.now += chance.expovariate(2)
        roll = chance.random()
        if roll < 0.5:
            if watched.admits():
                half = watched.state() == "half_open"
                running.append(watched.breaker.begin())
                assert not (half and watched.admits())
        elif running:
            trial = running.pop(chance.randrange(len(running)))
            chance.choice([Trial.succeeded, Trial.failed, Trial.closed, final])(trial)
    watched.now += 8
    assert watched.admits()
    watched.stream(failed=False)
    assert watched.state() == "closed"
