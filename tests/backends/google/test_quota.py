"""Requests a minute, in virtual time."""

from __future__ import annotations

import pytest

from backends.base import BackendError
from backends.google.quota import Quota


def test_new_sessions_leave_a_tenth_to_those_that_are_open() -> None:
    now = [0.0]
    quota = Quota(20, clock=lambda: now[0])
    for i in range(18):
        assert quota.refusal() is None
        now[0] = float(i)
        quota.take()
    assert quota.refusal() == "18 of 20 requests a minute are used up"
    quota.take()
    quota.take()
    with pytest.raises(BackendError, match="20 requests a minute") as caught:
        quota.take()
    assert (caught.value.code, caught.value.retryable) == ("overloaded", True)
    now[0] = 59.9
    assert quota.refusal()
    now[0] = 62.5  # the first three are a minute old
    assert quota.refusal() is None
    quota.take()


def test_what_is_refused_does_not_count() -> None:
    now = [0.0]
    quota = Quota(1, clock=lambda: now[0])
    quota.take()
    for now[0] in (10.0, 20.0, 59.0):
        with pytest.raises(BackendError):
            quota.take()
    now[0] = 60.0
    quota.take()
