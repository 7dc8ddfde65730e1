"""One session with a server that this file plays: what is counted, and when what was said is timed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import ClassVar

import pytest

from bench.load.dialects.base import Dialect, Ended, Heard, Opened, Say, Text
from bench.load.plan import FRAME_SAMPLES
from bench.load.results import Seen
from bench.load.session import Session
from bench.load.speech import Utterance
from bench.load.wire import WireError


class Told(Dialect):
    """Its server says whatever `say` is given."""

    name: ClassVar[str] = "told"

    def __init__(self) -> None:
        self.next: list[Heard] = []

    def hello(self, host: str, port: int, path: str, key: str = "") -> bytes:
        return f"hello {host} {port} {path} {key}".encode()

    @classmethod
    def audio(cls, pcm: bytes) -> bytes:
        return pcm

    def finish(self) -> bytes:
        return b"finish"

    def receive(self, data: bytes) -> list[Heard]:
        if data == b"garbage":
            raise WireError("it said garbage")
        return self.next


class Line(asyncio.Transport):
    """Takes what is written; a closed one tells its protocol at once."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.protocol: Session
        self.closed = False

    def write(self, data: object) -> None:
        assert isinstance(data, bytes)
        self.written.append(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        if not self.closed:
            self.closed = True
            self.protocol.connection_lost(None)


class Stage:
    """A session, its line, and a clock that only `send` and `wait` move."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, frames: int = 10, said: Sequence[Utterance] = (), backend: str = "b"
    ) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        self.seen = Seen()
        self.dialect = Told()
        self.line = Line()
        self.due: list[float] = []
        self.session = Session(
            self.dialect,
            ("h", 1, "/p"),
            [b"%d" % n for n in range(frames)],
            said,
            lambda: self.seen,
            lambda when, _: self.due.append(when),
            jitter=0,
            hold=0,
            key="k",
        )
        self.line.protocol = self.session
        self.session.connection_made(self.line)
        self.backend = backend

    def say(self, *heard: Heard) -> None:
        self.dialect.next = list(heard)
        self.session.data_received(b"x")

    def open(self) -> None:
        self.now += 0.25
        self.say(Opened(self.backend))

    def send(self, count: int) -> None:
        """So many frames, each exactly when it is due."""
        for _ in range(count):
            self.now = self.due[-1]
            self.session.send()

    def wait(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Stage]:
    return lambda *args, **kwargs: Stage(monkeypatch, *args, **kwargs)


Make = Callable[..., Stage]


async def test_frames_are_sent_when_they_are_due_and_then_the_end(stage: Make) -> None:
    s = stage(3)
    assert s.line.written == [b"hello h 1 /p k"]
    s.open()
    assert s.seen.opening.longest == 0.25
    s.send(4)
    assert s.line.written[1:] == [b"0", b"1", b"2", b"finish"]
    assert [b - a for a, b in zip(s.due, s.due[1:], strict=False)] == pytest.approx([0.1] * 3)
    s.say(Ended(True, 3 * FRAME_SAMPLES))
    assert (s.seen.completed, s.seen.dropped, s.seen.refused, s.seen.open) == (1, 0, 0, 0)
    assert (s.seen.frames, s.seen.lost_frames, s.seen.failures) == (3, 0, {})
    assert s.session.ended.done()


async def test_lag_is_what_this_program_is_late(stage: Make) -> None:
    s = stage()
    s.open()
    s.now = s.due[-1] + 0.03
    s.session.send()
    s.send(1)
    assert (s.seen.lag.count, s.seen.lag.longest) == pytest.approx((2, 0.03))


async def test_what_the_server_did_not_get_is_lost(stage: Make) -> None:
    s = stage(5)
    s.open()
    s.send(6)
    s.say(Ended(True, 3 * FRAME_SAMPLES))
    assert (s.seen.completed, s.seen.lost_frames) == (1, 2)


async def test_an_end_before_the_audio_s_is_no_success(stage: Make) -> None:
    s = stage(5)
    s.open()
    s.send(2)
    s.say(Ended(True))
    assert (s.seen.completed, s.seen.dropped) == (0, 1)
    assert s.seen.failures == {"ended before its audio did": 1}


async def test_a_server_that_ends_it_is_asked_why(stage: Make) -> None:
    s = stage(5)
    s.open()
    s.say(Ended(False, None, "overloaded"))
    assert (s.seen.dropped, s.seen.failures) == (1, {"overloaded": 1})


async def test_a_server_that_does_not_open_refuses(stage: Make) -> None:
    s = stage(5)
    s.say(Ended(False, None, "overloaded"))
    assert (s.seen.refused, s.seen.dropped, s.seen.open, s.seen.failures) == (1, 0, 0, {"overloaded": 1})


async def test_a_server_that_is_not_understood(stage: Make) -> None:
    s = stage(5)
    s.open()
    s.session.data_received(b"garbage")
    assert (s.seen.dropped, s.seen.failures) == (1, {"it said garbage": 1})


async def test_a_broken_connection_says_why(stage: Make) -> None:
    s = stage(5)
    s.open()
    s.session.connection_lost(ConnectionResetError("reset"))
    assert (s.seen.dropped, s.seen.failures) == (1, {"reset": 1})


async def test_an_answer_is_written_at_once(stage: Make) -> None:
    s = stage(5)
    s.say(Say(b"pong"))
    assert s.line.written[-1] == b"pong"


async def test_a_partial_is_timed_from_the_frame_in_which_it_ends(stage: Make) -> None:
    s = stage(20)
    s.open()
    s.send(5)  # up to 0.5 s
    s.wait(0.03)
    s.say(Text("one", 0.5, False))
    s.wait(0.01)
    s.say(Text("one", 0.5, False), Text("one", 0.4, False))  # covers nothing new
    assert (s.seen.partial.count, s.seen.partial.longest) == pytest.approx((1, 0.03))
    s.send(1)
    s.wait(0.02)
    s.say(Text("one two", 0.55, False))
    assert (s.seen.partial.count, s.seen.partial.total) == pytest.approx((2, 0.05))
    assert s.seen.partials == 4


async def test_a_final_is_timed_although_a_partial_covered_it(stage: Make) -> None:
    s = stage(20)
    s.open()
    s.send(5)
    s.say(Text("one", 0.5, False))
    s.wait(0.07)
    s.say(Text("one", 0.5, True))
    assert (s.seen.final.count, s.seen.final.longest) == pytest.approx((1, 0.07))
    assert s.seen.partial.count == 1


async def test_a_text_without_a_time_is_not_timed(stage: Make) -> None:
    s = stage(20)
    s.open()
    s.send(5)
    s.say(Text("one", None, False), Text("one", None, True))
    assert (s.seen.partials, s.seen.finals, s.seen.partial.count, s.seen.final.count) == (1, 1, 0, 0)


async def test_what_the_end_brings_is_no_answer_to_audio(stage: Make) -> None:
    s = stage(5)
    s.open()
    s.send(6)
    s.say(Text("one", 0.5, True))
    assert s.seen.final.count == 0


async def test_an_utterance_is_answered_by_the_final_that_holds_its_end(stage: Make) -> None:
    s = stage(40, [Utterance("one two", 0.95), Utterance("three", 2.0)])
    s.open()
    s.send(15)  # the utterance's last frame, the tenth, left 0.5 s ago
    s.say(Text("one", 0.5, True))  # not all of it
    assert s.seen.speech_end.count == 0
    s.wait(0.04)
    s.say(Text("two", 0.7, True))  # as an engine that cuts the silence
    assert (s.seen.speech_end.count, s.seen.speech_end.longest) == pytest.approx((1, 0.54))
    s.send(10)
    s.wait(0.01)
    s.say(Text("three", 2.1, True))
    assert (s.seen.speech_end.count, s.seen.speech_end.total) == pytest.approx((2, 0.54 + 0.51))


async def test_a_final_before_the_speech_was_sent_answers_nothing(stage: Make) -> None:
    s = stage(40, [Utterance("one", 2.0)])
    s.open()
    s.send(5)
    s.say(Text("one", None, True))
    assert s.seen.speech_end.count == 0


async def test_flicker_is_words_that_went(stage: Make) -> None:
    s = stage(40)
    s.open()
    for text in ("the", "the cat", "the cap is", "the cap is"):
        s.say(Text(text, None, False))
    assert s.seen.words_changed == 1  # cat
    s.say(Text("the cap was red", None, True))
    assert s.seen.words_changed == 2  # is
    s.say(Text("and", None, False), Text("and so", None, True))  # another utterance: nothing went
    assert (s.seen.words_changed, s.seen.words_shown) == (2, 6)


async def test_words_are_compared_when_all_was_heard(stage: Make) -> None:
    s = stage(2, [Utterance("one two", 0.1), Utterance("three", 0.2)])
    s.open()
    s.send(3)
    s.say(Text("one two four", None, True), Ended(True))
    assert (s.seen.word_errors, s.seen.words_said, s.seen.backends) == (1, 3, ["b"])


async def test_words_of_an_engine_that_does_not_listen_are_not_compared(stage: Make) -> None:
    s = stage(2, [Utterance("one two", 0.1)], backend="scripted-threads")
    s.open()
    s.send(3)
    s.say(Text("one", None, True), Ended(True))
    assert (s.seen.completed, s.seen.words_said) == (1, 0)


async def test_nothing_is_sent_after_the_end(stage: Make) -> None:
    s = stage(5)
    s.open()
    s.say(Ended(False))
    before = list(s.line.written)
    s.session.send()
    assert s.line.written == before


async def test_giving_up_has_a_reason(stage: Make) -> None:
    s = stage(5)
    s.open()
    s.session.abort("it did not end in time")
    assert (s.seen.dropped, s.seen.failures) == (1, {"it did not end in time": 1})
    assert s.session.ended.done()
