"""A scrape of several processes, one of which says nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from bridge.processes import figures
from bridge.processes.figures import Figures
from tests.wire import metric

OWN = b"# HELP stt_x X.\n# TYPE stt_x gauge\nstt_x 1.0\n"


class Member:
    """One of three processes; `answers`: what the others say to it."""

    number = 2
    processes = 3
    siblings = frozenset({1, 3})

    def __init__(self, answers: dict[int, bytes]) -> None:
        self.posted: list[tuple[str, bytes, int]] = []
        self._handlers: dict[str, Callable[[int, bytes], None]] = {}
        self._answers = answers

    def on(self, topic: str, handler: Callable[[int, bytes], None]) -> None:
        self._handlers[topic] = handler

    def post(self, topic: str, body: bytes, to: int = 0) -> None:
        self.posted.append((topic, body, to))
        for number, answer in self._answers.items():
            asyncio.get_running_loop().call_soon(self.hear, "figures", number, body + answer)

    def hear(self, topic: str, sender: int, body: bytes) -> None:
        self._handlers[topic](sender, body)


def answer(number: int) -> bytes:
    return OWN.replace(b"stt_x 1", b'stt_x{process="%d"} 1' % number)


def made(answers: dict[int, bytes]) -> tuple[Figures, Any]:
    member: Any = Member(answers)
    return Figures(member, lambda: OWN), member


async def test_all_answer() -> None:
    text = await made({1: answer(1), 3: answer(3)})[0].all()
    assert metric(text, "stt_x") == metric(text, "stt_process_up") == 3


async def test_who_says_nothing_is_not_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "ANSWER_SECONDS", 0.05)
    shown, member = made({3: answer(3)})
    text = await shown.all()
    assert [metric(text, "stt_x", process=number) for number in "123"] == [0, 1, 1]
    assert [metric(text, "stt_process_up", process=number) for number in "123"] == [0, 1, 1]
    (asked,) = member.posted
    member.hear("figures", 1, asked[1] + answer(1))  # too late


async def test_it_answers_for_itself() -> None:
    _, member = made({})
    member.hear("figures?", 3, b"question")
    assert member.posted == [("figures", b"question" + answer(2), 3)]
