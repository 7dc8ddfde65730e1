"""A publisher and its hub, with a writer that writes when the test says so."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from bridge.protocols.events import Ack, Closed, Final, Partial, ServerEvent, SpeechStarted
from bridge.session.eventlog.base import Entry, Outcome, Progress
from bridge.session.hub import Hub, Outbox
from bridge.session.publisher import BACKLOG, Position, Publisher

RATE = 16_000


@dataclass
class Log:
    """A `Writer`, and the log behind it."""

    down: bool = False
    noted: list[Publisher] = field(default_factory=list)
    announced: list[ServerEvent] = field(default_factory=list)
    events: list[ServerEvent] = field(default_factory=list)
    finalized: int = 0

    def note(self, publisher: Publisher) -> None:
        if publisher not in self.noted:
            self.noted.append(publisher)

    def announce(self, session_id: str, event: Partial | Ack) -> None:
        self.announced.append(event)

    def write(self) -> tuple[Entry, Position] | None:
        """What there is reaches the log; the publisher is not told."""
        for publisher in self.noted:
            taken = publisher.take()
            if taken is not None:
                known = len(self.events)
                self.events += [e for e in taken[0].events if (e.seq or 0) > known]
                self.finalized = taken[1].finalized
            return taken
        return None

    def settle(self) -> None:
        """All that there is is written."""
        for publisher in list(self.noted):
            while (taken := self.write()) is not None:
                publisher.written(*taken)
            self.noted.remove(publisher)


class Speaker:
    """Whose events are published: `say` is what a session does at a final."""

    def __init__(self, seq: int = 0) -> None:
        self.log = Log()
        self.frames = 0
        hub = Hub(1_000, seq=seq)
        self.box: Outbox = hub.subscribe()
        self.publisher = Publisher(hub, session_id="s", seq=seq, writer=self.log)
        self.publisher.position = lambda: Position(Progress((self.frames / RATE,)), self.frames)

    def say(self, text: str = "word") -> None:
        self.publisher.publish(Final(self.publisher.next_seq(), text, 0.0, 1.0))
        self.frames += RATE
        self.publisher.publish(Ack(self.frames, self.frames))

    async def heard(self) -> list[ServerEvent]:
        if not self.box._lasting and not self.box._partials and self.box._ack is None:
            return []
        return await self.box.get()


def partial(text: str, channel: int | None = None) -> Partial:
    return Partial(text, 0.0, 1.0, channel=channel)


async def test_nobody_hears_of_an_event_before_the_log() -> None:
    speaker = Speaker()
    speaker.publisher.publish(partial("wo"))
    assert await speaker.heard() == [partial("wo")]
    speaker.say()
    speaker.publisher.publish(partial("ne"))
    speaker.publisher.publish(partial("next"))
    assert await speaker.heard() == []
    taken = speaker.log.write()
    assert taken is not None
    assert await speaker.heard() == []
    speaker.publisher.written(*taken)
    final, *rest = await speaker.heard()
    assert final == Final(1, "word", 0.0, 1.0)
    assert rest == [partial("next"), Ack(RATE, RATE)]


async def test_an_ack_that_goes_no_further_need_not_wait() -> None:
    speaker = Speaker()
    speaker.publisher.publish(Ack(100, 0))
    assert await speaker.heard() == [Ack(100, 0)]
    speaker.frames = 50
    speaker.publisher.publish(Ack(200, 50))  # silence: final, without an event
    assert await speaker.heard() == []
    speaker.log.settle()
    assert await speaker.heard() == [Ack(200, 50)]
    assert speaker.log.finalized == 50


async def test_what_comes_while_a_batch_is_written_waits_for_the_next() -> None:
    speaker = Speaker()
    speaker.say("one")
    taken = speaker.log.write()
    speaker.say("two")
    assert taken is not None
    speaker.publisher.written(*taken)
    assert await speaker.heard() == [Final(1, "one", 0.0, 1.0), Ack(RATE, RATE)]
    assert speaker.publisher.pending
    speaker.log.settle()
    assert await speaker.heard() == [Final(2, "two", 0.0, 1.0), Ack(2 * RATE, 2 * RATE)]


async def test_a_write_without_an_answer_is_written_once() -> None:
    speaker = Speaker()
    speaker.say("one")
    assert speaker.log.write() is not None  # its answer is lost
    speaker.say("two")
    speaker.log.settle()
    assert [getattr(e, "text", None) for e in speaker.log.events] == ["one", "two"]
    assert speaker.publisher.seq == 2


async def test_while_the_log_is_away_the_session_goes_on_and_clients_keep_their_audio() -> None:
    speaker = Speaker()
    speaker.say("one")
    speaker.log.settle()
    await speaker.heard()
    speaker.say("two")
    speaker.publisher.unavailable()
    assert await speaker.heard() == [Final(2, "two", 0.0, 1.0), Ack(2 * RATE, RATE)]
    backlogged = [speaker.publisher.backlogged]
    speaker.log.down = True
    speaker.say("three")
    assert await speaker.heard() == [Final(3, "three", 0.0, 1.0), Ack(3 * RATE, RATE)]
    speaker.log.down = False
    speaker.log.settle()
    assert await speaker.heard() == [Ack(3 * RATE, 3 * RATE)]
    assert [*backlogged, speaker.publisher.backlogged] == [True, False]
    assert len(speaker.log.events) == 3
    speaker.say("four")
    assert await speaker.heard() == []  # and now it waits again


async def test_of_a_session_that_is_somebody_elses_nothing_is_told() -> None:
    speaker = Speaker()
    outcomes: list[Outcome] = []
    speaker.publisher.lost = outcomes.append
    speaker.say()
    speaker.publisher.refused(Outcome.SUPERSEDED)
    speaker.say()
    speaker.publisher.publish(partial("more"))
    assert await speaker.heard() == []
    assert outcomes == [Outcome.SUPERSEDED]
    assert not speaker.publisher.owned
    assert not speaker.publisher.pending


async def test_of_a_session_that_was_deleted_nothing_is_logged() -> None:
    speaker = Speaker()
    speaker.say()
    speaker.publisher.refused(Outcome.DELETED)
    speaker.publisher.publish(Closed(speaker.publisher.next_seq(), "deleted", 0, 0, 0.0))
    assert [type(e) for e in await speaker.heard()] == [Final, Ack, Closed]
    assert speaker.publisher.take() is None


async def test_a_log_that_is_away_too_long_is_given_up() -> None:
    speaker = Speaker()
    speaker.box = Outbox(2 * BACKLOG)
    speaker.publisher.hub.attach(speaker.box)
    speaker.publisher.unavailable()
    for _ in range(BACKLOG + 10):
        speaker.publisher.publish(SpeechStarted(speaker.publisher.next_seq(), 0.0))
    assert speaker.publisher.take() is None
    assert [e.seq for e in await speaker.heard() if isinstance(e, SpeechStarted)] == list(range(1, BACKLOG + 11))


async def test_what_a_log_has_lost_is_written_again() -> None:
    speaker = Speaker()
    for text in ("one", "two"):
        speaker.say(text)
        speaker.log.settle()
    speaker.say("three")
    speaker.publisher.rewind(speaker.publisher.hub.remembered)
    taken = speaker.publisher.take()
    assert taken is not None
    assert [e.seq for e in taken[0].events] == [1, 2, 3]
    assert speaker.publisher.first_unlogged == 1


@pytest.mark.parametrize("seed", range(50))
async def test_whatever_happens_every_event_is_told_once_and_in_order(seed: int) -> None:
    rng = random.Random(seed)
    speaker = Speaker()
    heard: list[ServerEvent] = []
    told = 0
    for _ in range(300):
        match rng.randrange(8):
            case 0 | 1:
                speaker.say()
            case 2:
                speaker.publisher.publish(partial(str(rng.random()), rng.choice([None, 0, 1])))
            case 3:
                speaker.log.write()
            case 4 | 5:
                speaker.log.down = False
                speaker.log.settle()
            case 6:
                speaker.log.down = True
                speaker.publisher.unavailable()
            case 7:
                heard += await speaker.heard()
        for event in heard[told:]:
            if isinstance(event, Ack):
                assert event.finalized <= speaker.log.finalized
        told = len(heard)
    speaker.log.down = False
    speaker.publisher.publish(Closed(speaker.publisher.next_seq(), "stopped", 0, 0, 0.0))
    speaker.log.settle()
    heard += await speaker.heard()
    numbers = [e.seq for e in heard if isinstance(e, Final | Closed)]
    assert numbers == list(range(1, speaker.publisher.seq + 1))
    assert [e.seq for e in speaker.log.events if isinstance(e, Final | Closed)] == numbers
    finalized = [e.finalized for e in heard if isinstance(e, Ack)]
    assert finalized == sorted(finalized)
    assert speaker.log.finalized == speaker.frames
