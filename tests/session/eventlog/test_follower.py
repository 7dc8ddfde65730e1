"""What waits for a follower."""

from __future__ import annotations

from bridge.protocols.events import Ack
from bridge.session.eventlog.follower import BACKLOG, Follower
from tests.session.eventlog.samples import final


def test_passing_events_never_push_out_lasting_ones() -> None:
    follower = Follower()
    for seq in range(1, 11):
        follower.put([final(seq)])
    for n in range(2 * BACKLOG):
        follower.put([Ack(n, 0)])
    heard = list(iter(follower.take, None))
    assert len(heard) == BACKLOG
    assert heard[:10] == [[final(seq)] for seq in range(1, 11)]


def test_one_that_missed_something_reads_first() -> None:
    follower = Follower()
    follower.put([final(1)])
    follower.miss()
    follower.put([final(2)])
    assert list(iter(follower.take, None)) == [[]]
    follower.put([final(3)])
    assert list(iter(follower.take, None)) == [[final(3)]]
