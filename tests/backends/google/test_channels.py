"""The pool of connections, with clients that are numbers."""

from __future__ import annotations

import contextlib

import pytest

from backends.base import BackendError
from backends.google.channels import Pool, channel_options


def test_the_81st_stream_opens_a_second_channel() -> None:
    made: list[int] = []

    def make(index: int) -> int:
        made.append(index)
        return index

    pool = Pool(make, streams_per_connection=80, max_streams=300)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(pool.lease()) for _ in range(80)]
        assert set(clients) == {0}
        assert stack.enter_context(pool.lease()) == 1
        assert made == [0, 1]


def test_the_fullest_with_room_is_taken() -> None:
    """So that connections fall idle when there is less to do."""
    pool = Pool(lambda i: i, streams_per_connection=2, max_streams=6)
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(pool.lease())
        lone = stack.pop_all()
        with lone, pool.lease() as fourth:
            assert fourth == 1
    with pool.lease() as first, pool.lease() as second:
        assert first == second


def test_no_more_than_its_share_of_connections() -> None:
    pool = Pool(lambda i: i, streams_per_connection=80, max_streams=100)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(pool.lease()) for _ in range(160)]
        assert set(clients) == {0, 1}
        with pytest.raises(BackendError) as caught:
            stack.enter_context(pool.lease())
        assert (caught.value.code, caught.value.retryable) == ("overloaded", True)
    with pool.lease():
        pass


def test_a_stream_that_fails_gives_its_place_back() -> None:
    pool = Pool(lambda i: i, streams_per_connection=1, max_streams=1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), pool.lease():
            raise ZeroDivisionError


def test_emptied_for_closing() -> None:
    pool = Pool(lambda i: i, streams_per_connection=1, max_streams=2)
    pool.grow()
    pool.grow()
    assert pool.clients == [0]
    assert pool.empty() == [0]
    assert pool.clients == []


def test_every_channel_has_an_argument_of_its_own() -> None:
    """Channels with the same arguments share a connection."""
    first, second = (channel_options(i, loopback=False) for i in range(2))
    assert set(first) ^ set(second) == {("app.pool_index", 0), ("app.pool_index", 1)}
    assert ("grpc.enable_http_proxy", 0) in channel_options(0, loopback=True)
