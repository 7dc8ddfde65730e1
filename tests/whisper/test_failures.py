"""What goes wrong in the engine, through the whole server: no word is lost, and other sessions notice nothing."""

from __future__ import annotations

import asyncio
import ctypes
import threading
from collections.abc import Callable, Sequence

import pytest

from backends.whisper.model import Model, Prepared, Request
from backends.whisper.window import Kind
from tests.backends.whisper.harness import breaking, said, sound
from tests.google.harness import journal
from tests.models import fixture
from tests.whisper.harness import ENV, spoken
from tests.wire import serve

Fails = Callable[[Sequence[Prepared]], Exception | None]


@pytest.fixture(autouse=True)
def soon_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.session.channel.BACKOFF_BASE", 0.01)
    monkeypatch.setattr("bridge.session.channel.BACKOFF_CAP", 0.2)


def chosen(batch: Sequence[Prepared]) -> bool:
    return bool(batch[0].request.prompt)


def killing(times: int, kind: Kind) -> Fails:
    """Ends the thread that decodes, from outside, so many times: at its next instruction."""
    left = [None] * times

    def kill(batch: Sequence[Prepared]) -> None:
        if left and chosen(batch) and batch[0].request.kind is kind:
            left.pop()
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(threading.get_ident()), ctypes.py_object(SystemExit)
            )

    return kill


def raising(times: int, error: Exception) -> Fails:
    left = [error] * times
    return lambda batch: left.pop() if left and chosen(batch) else None


CASES: dict[str, Callable[[], Fails]] = {
    "a worker is killed over a final": lambda: killing(2, Kind.FINAL),
    "a worker is killed over a partial": lambda: killing(1, Kind.PARTIAL),
    "out of memory": lambda: raising(2, RuntimeError("CUDA failed with error out of memory")),
    "anything else": lambda: raising(2, ValueError("Invalid input features shape")),
}


@pytest.mark.parametrize("name", CASES)
async def test_what_passes_costs_no_word(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The bridge replays what was not final."""
    audio, text = said(fixture.certain(words=3)[:2])
    other, other_text = said(fixture.certain(words=2)[:2])
    breaking(monkeypatch, CASES[name]())
    with journal() as log:
        async with serve(ENV, backend="whisper") as url:
            hurt, unharmed, again = await asyncio.gather(
                # In real time: a machine that has much to do leaves out partials first.
                spoken(url, audio, speed=1, language="en", phrases=("stop",), reopened=True),
                spoken(url, other, speed=3, language="en"),
                spoken(url, other, language="en"),
            )
    assert [record.getMessage() for record in log.records if "backend stream failed" in record.getMessage()]
    assert (unharmed.text, again.text) == (other_text, other_text)
    assert hurt.text == text
    for heard in (hurt, unharmed, again):
        assert heard.codes == []
        assert heard.closed.code == "stopped"
    assert text not in "\n".join(record.getMessage() for record in log.records)


@pytest.mark.parametrize(
    ("error", "code"),
    [(RuntimeError("CUDA failed with error out of memory"), "at_capacity"), (ValueError("broken"), "backend_failed")],
)
async def test_what_lasts_is_told_with_a_code(monkeypatch: pytest.MonkeyPatch, error: Exception, code: str) -> None:
    one = fixture.certain(words=3)[0]
    breaking(monkeypatch, lambda batch: error if chosen(batch) else None)
    async with serve(ENV, backend="whisper", reopen_seconds=0.5) as url:
        hurt, unharmed = await asyncio.gather(
            spoken(url, sound(one.path), phrases=("stop",), reopened=True), spoken(url, sound(one.path))
        )
    assert unharmed.text == one.text
    assert hurt.text == ""
    assert hurt.codes == [code]
    assert hurt.closed.code == code


async def test_features_that_cannot_be_made_the_first_time(monkeypatch: pytest.MonkeyPatch) -> None:
    one = fixture.certain(words=3)[0]
    prepare = Model.prepare
    left = [ZeroDivisionError()]

    def broken(model: Model, request: Request) -> Prepared:
        if left and request.prompt:
            raise left.pop()
        return prepare(model, request)

    monkeypatch.setattr(Model, "prepare", broken)
    async with serve(ENV, backend="whisper") as url:
        heard = await spoken(url, sound(one.path), phrases=("stop",), reopened=True)
    assert heard.text == one.text
    assert not left
    assert heard.codes == []
