"""Log lines: what every one holds, and that none can break the line."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from bridge.observe import logs, trace
from bridge.observe.trace import Tracing


@pytest.fixture(autouse=True)
def nowhere() -> Iterator[None]:
    """Neither a request nor a session goes on."""
    trace.enter(None)
    yield
    trace.enter(None)


def record(message: str = "session opened", *args: Any, **extra: Any) -> logging.LogRecord:
    made = logging.makeLogRecord({"msg": message, "args": args, "levelname": "INFO", "name": "bridge.x"} | extra)
    assert logs.place(made)
    return made


def line(made: logging.LogRecord) -> dict[str, Any]:
    text = logs.JsonFormatter().format(made)
    assert text.isascii()
    assert "\n" not in text
    read: dict[str, Any] = json.loads(text)
    return read


def test_lines_of_one_process_among_several() -> None:
    made = record("one")
    assert json.loads(logs.JsonFormatter(process=2).format(made))["process"] == 2
    assert " 2: one" in logs.TextFormatter(process=2).format(made)
    assert "process" not in line(made)


def test_what_a_line_holds() -> None:
    read = line(record("%s of %d", "one", 2, session="s", seconds=1.5, created=0.25, msecs=250.0))
    assert read.pop("time").endswith(":00,250")
    assert read == {
        "level": "INFO",
        "logger": "bridge.x",
        "message": "one of 2",
        "session": "s",
        "seconds": 1.5,
    }


def test_times_of_one_formatter() -> None:
    formatter = logs.JsonFormatter()
    stamps = [
        json.loads(formatter.format(record(created=second + 0.9996, msecs=999.6)))["time"] for second in (0, 0, 1, 0)
    ]
    assert stamps[0] == stamps[1] == stamps[3] != stamps[2]
    assert all(stamp.endswith(",999") for stamp in stamps)


@pytest.mark.parametrize("text", ["ü", "\ud800", "a\nb", '"', "\x00", "😀", "a\u2028b"])
def test_no_text_breaks_a_line(text: str) -> None:
    read = line(record("%s", text, session=text))
    assert (read["message"], read["session"]) == (text, text)


@pytest.mark.parametrize("value", [2**70, object(), {1, 2}, b"x", float("inf"), [ValueError("x")]])
def test_no_value_breaks_a_line(value: Any) -> None:
    assert line(record(value=value))["message"] == "session opened"


def test_a_fault_has_its_traceback() -> None:
    try:
        raise ValueError("of mine")
    except ValueError:
        made = record("failed", exc_info=sys.exc_info())
    assert "of mine" in line(made)["exc_info"]
    assert "Traceback" in line(made)["exc_info"]


async def test_a_line_says_where_it_belongs() -> None:
    here = Tracing().begin("http", None)
    assert line(record())["trace"] == here.trace_id
    assert {"session", "subject", "sender_trace"}.isdisjoint(line(record()))
    here.session, here.subject, here.sender_trace = "s1", "key-1", "f" * 32
    read = line(record())
    assert (read["session"], read["subject"], read["sender_trace"]) == ("s1", "key-1", "f" * 32)
    assert line(record(session="another"))["session"] == "another"  # what it says itself counts


def test_people_are_told_too() -> None:
    made = record("session closed", session="s1", code="stopped")
    assert logs.TextFormatter().format(made).endswith("INFO    session closed (session=s1, code=stopped)")
