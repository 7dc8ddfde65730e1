"""Shares: what streams have used fades, and tells files from microphones."""

from __future__ import annotations

import math

import pytest

from backends.whisper.fairness import HEARD_SECONDS, LIVE_SPEED, PENALTY, USED_SECONDS, Account, Share


def test_an_account_fades() -> None:
    account = Account(10.0)
    account.add(1.0, 5.0)
    account.add(2.0, 5.0)
    assert account.at(5.0) == 3.0
    assert account.at(15.0) == pytest.approx(3 / math.e)
    account.add(1.0, 15.0)
    assert account.at(25.0) == pytest.approx((3 / math.e + 1) / math.e)
    assert account.at(1_000_000.0) == 0.0


def test_a_steady_user_is_measured_by_its_rate() -> None:
    share = Share(0.0, 0.0)
    for tenth in range(1, 1_000):
        share.use(0.05, tenth / 10)
    assert share.used(99.9) == pytest.approx(0.5 * USED_SECONDS, rel=0.01)
    assert share.penalty(99.9) == PENALTY * share.used(99.9)


def test_a_new_one_begins_where_it_is_told() -> None:
    share = Share(2.0, 100.0)
    assert share.used(100.0) == 2.0
    assert share.used(100.0 + USED_SECONDS) == pytest.approx(2 / math.e)


@pytest.mark.parametrize("seconds", [0.5, 5.0, 29.9])
def test_a_microphone_is_live_whatever_its_windows(seconds: float) -> None:
    share, now = Share(0.0, 0.0), 0.0
    while now < 600:
        now += seconds
        share.hear(seconds, now)
        assert share.live(now)


@pytest.mark.parametrize("speed", [3.0, 10.0, 100.0])
def test_a_file_is_not_live_before_long(speed: float) -> None:
    share, now = Share(0.0, 0.0), 0.0
    while share.live(now):
        now += 10.0 / speed
        share.hear(10.0, now)
        assert now < 2 * HEARD_SECONDS
    assert now * speed > LIVE_SPEED * HEARD_SECONDS
    assert share.live(now + 10 * HEARD_SECONDS)  # once it has become one
