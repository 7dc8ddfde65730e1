"""The metrics of all processes in one answer: whichever is asked asks the others."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Final

from bridge.observe.merging import labelled, merged
from bridge.processes.member import Member

ANSWER_SECONDS: Final = 2.0
"""For which the others are waited for; who says nothing is left out, and shown as not up."""
_ASK: Final = "figures?"
_TELL: Final = "figures"
_ID_BYTES: Final = 8
UP: Final = "stt_process_up"


class Figures:
    """One process's. `own` renders its metrics, in Prometheus' text format."""

    def __init__(self, member: Member, own: Callable[[], bytes]) -> None:
        self._member = member
        self._own = own
        self._ids = itertools.count(1)
        self._asked: dict[int, _Question] = {}
        member.on(_ASK, self._answer)
        member.on(_TELL, self._told)

    async def all(self) -> bytes:
        """Everybody's metrics, each sample with the label `process`."""
        name = next(self._ids)
        question = self._asked[name] = _Question(self._member.siblings)
        self._member.post(_ASK, name.to_bytes(_ID_BYTES))
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await question.answered.wait()
        except TimeoutError:
            pass  # it hangs, or has just died
        finally:
            del self._asked[name]
        texts = question.texts | {self._member.number: self._labelled()}
        lines = [f"# HELP {UP} 1 for each process of the server that told its figures, else 0.", f"# TYPE {UP} gauge"]
        numbers = range(1, self._member.processes + 1)
        lines += [f'{UP}{{process="{number}"}} {int(number in texts)}' for number in numbers]
        return merged(texts[number] for number in sorted(texts)) + ("\n".join(lines) + "\n").encode()

    def _labelled(self) -> bytes:
        return labelled(self._own(), b"process", b"%d" % self._member.number)

    def _answer(self, sender: int, body: bytes) -> None:
        self._member.post(_TELL, body + self._labelled(), sender)

    def _told(self, sender: int, body: bytes) -> None:
        question = self._asked.get(int.from_bytes(body[:_ID_BYTES]))
        if question is not None:
            question.take(sender, body[_ID_BYTES:])


class _Question:
    """What one scrape waits for."""

    def __init__(self, expected: frozenset[int]) -> None:
        self.texts: dict[int, bytes] = {}
        self.answered = asyncio.Event()
        self._expected = expected
        if not expected:
            self.answered.set()

    def take(self, sender: int, text: bytes) -> None:
        """One has answered."""
        self.texts[sender] = text
        if self._expected <= self.texts.keys():
            self.answered.set()
