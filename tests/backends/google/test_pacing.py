"""The token bucket, in virtual time."""

from __future__ import annotations

import pytest

from backends.google.pacing import Pacer


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def send(speed: float, chunk: float, count: int, every: float) -> tuple[list[float], float]:
    """Send chunks that become available at an interval; the delays, and when the last one was sent."""
    clock = Clock()
    pacer = Pacer(speed, clock=clock)
    delays = []
    for i in range(count):
        clock.now = max(clock.now, i * every)
        delays.append(pacer.delay(chunk))
        clock.now += delays[-1]
    return delays, clock.now


@pytest.mark.parametrize("chunk", [0.01, 0.1, 0.25, 0.5])
def test_live_audio_never_waits(chunk: float) -> None:
    delays, _ = send(2.0, chunk, 200, chunk)
    assert delays == [0.0] * 200


@pytest.mark.parametrize("speed", [1.5, 2.0, 4.0])
def test_a_replay_is_paced(speed: float) -> None:
    delays, took = send(speed, 0.1, 300, 0.0)
    assert delays[:5] == [0.0] * 5
    assert took == pytest.approx((30 - 0.5) / speed)


def test_a_chunk_larger_than_the_bucket_still_goes() -> None:
    delays, took = send(2.0, 0.8, 10, 0.0)
    assert took == pytest.approx((8 - 0.5) / 2)
    assert max(delays) == pytest.approx(0.4)


def test_a_pause_fills_the_bucket_no_further() -> None:
    clock = Clock()
    pacer = Pacer(2.0, clock=clock)
    clock.now = 3_600.0
    assert [pacer.delay(0.5), pacer.delay(0.5)] == [0.0, pytest.approx(0.25)]


def test_zero_is_any_speed() -> None:
    delays, _ = send(0.0, 10.0, 100, 0.0)
    assert delays == [0.0] * 100
