"""Captions on a terminal: what is certain to stay stands out."""

from __future__ import annotations

import re

import pytest

from bridge.commands.display import PARTIAL_LINES, Captions

DIM = "\x1b[2;3m"


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard error looks like a terminal of 20 columns."""
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "20"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)


def shown(capsys: pytest.CaptureFixture[str], text: str, committed: int = 0) -> list[tuple[str, bool]]:
    """The stretches of what is shown as a partial, and whether each is dim."""
    capsys.readouterr()
    with Captions(live=True) as captions:
        captions.partial(text, committed)
        drawn = capsys.readouterr().err
    # What is drawn stands between codes that set a style and those that end it.
    found = []
    dim = False
    for part in re.split(r"(\x1b\[[\d;?]*[A-Za-z])|[\r\n]+", drawn):
        if part is None:
            continue
        if part.startswith("\x1b"):
            dim = part == DIM
        elif part.strip():
            found.append((part, dim))
    return found


def test_a_partial_without_a_promise_is_dim(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, "turn on the") == [("turn on the", True)]


def test_what_is_committed_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, "turn on the", 4) == [("turn", False), (" on the", True)]
    assert shown(capsys, "turn on the", 11) == [("turn on the", False)]


def test_of_a_long_partial_the_end_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    text = "x" * 100 + "y" * 50
    room = 20 * PARTIAL_LINES - 2
    for committed, dim in ((0, room), (100, 50), (120, 30), (150, 0)):
        parts = shown(capsys, text, committed)
        assert "".join(part for part, _ in parts) == "…" + text[-room:]
        assert sum(len(part.strip("…")) for part, quiet in parts if quiet) == dim
