from __future__ import annotations

import pytest

from bridge.client.backoff import Backoff, Reconnect


def test_the_longest_wait_doubles_up_to_a_limit() -> None:
    backoff = Backoff(0.1, 5, lambda: 1.0)
    assert [round(backoff.next(), 3) for _ in range(8)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5]
    backoff.reset()
    assert backoff.next() == 0.1


def test_full_jitter() -> None:
    waits = [Backoff(1, 5).next() for _ in range(400)]
    assert min(waits) < 0.05
    assert max(waits) > 0.95


def test_it_never_overflows() -> None:
    backoff = Backoff(0.1, 5, lambda: 1.0)
    assert [backoff.next() for _ in range(5_000)][-1] == 5


@pytest.mark.parametrize("field", ["base_seconds", "ring_seconds", "ring_bytes", "window_seconds", "silence_seconds"])
def test_nonsense(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        Reconnect(**{field: 0})
