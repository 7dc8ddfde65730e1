"""Trace ids: what is taken for one, and that each task has the right one."""

from __future__ import annotations

import asyncio
import re

import pytest

from bridge.observe import trace
from bridge.observe.trace import Tracing

GIVEN = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("header", "flags"),
    [
        (f"00-{GIVEN}-{CALLER}-01", "01"),
        (f"00-{GIVEN}-{CALLER}-00", "00"),
        (f"00-{GIVEN}-{CALLER}-ff", "01"),  # of the flags, one is known
        (f"01-{GIVEN}-{CALLER}-01", "01"),  # a later version, read as this one
        (f"fe-{GIVEN}-{CALLER}-01-what-will-be", "01"),
    ],
)
def test_what_is_a_traceparent(header: str, flags: str) -> None:
    parent = trace.parse(header)
    assert parent is not None
    assert (parent.trace_id, parent.span_id, parent.flags) == (GIVEN, CALLER, flags)


@pytest.mark.parametrize(
    "header",
    [
        "",
        GIVEN,
        f"00-{GIVEN}-{CALLER}",
        f"00-{GIVEN}-{CALLER}-1",
        f"00-{GIVEN}-{CALLER}-01-more",  # version 00 has no more
        f"00-{GIVEN}-{CALLER}-01-",
        f"ff-{GIVEN}-{CALLER}-01",
        f"0-{GIVEN}-{CALLER}-01",
        f"00-{'0' * 32}-{CALLER}-01",
        f"00-{GIVEN}-{'0' * 16}-01",
        f"00-{GIVEN.upper()}-{CALLER}-01",
        f"00-{GIVEN[:-1]}g-{CALLER}-01",
        f"00-{GIVEN[:-1]}-{CALLER}-01",
        f"00_{GIVEN}_{CALLER}_01",
        f"01-{GIVEN}-{CALLER}-01more",
        f"01-{GIVEN}-{CALLER}-01-a\nsecond line",
        f"01-{GIVEN}-{CALLER}-01-" + "x" * 500,
        f"00-{chr(0x661) * 32}-{CALLER}-01",  # digits, of another script
    ],
)
def test_what_is_none(header: str) -> None:
    assert trace.parse(header) is None


def test_two_headers_are_none() -> None:
    header = (b"traceparent", f"00-{GIVEN}-{CALLER}-01".encode())
    assert trace.parent_of([(b"host", b"here"), header]) is not None
    assert trace.parent_of([header, header]) is None
    assert trace.parent_of([(b"host", b"here")]) is None


async def test_a_trace_that_was_begun_elsewhere_goes_on() -> None:
    here = Tracing().begin("http", trace.parse(f"00-{GIVEN}-{CALLER}-01"))
    assert here is trace.current()
    assert re.fullmatch(rf"00-{GIVEN}-[0-9a-f]{{16}}-01", here.traceparent)
    assert here.span_id != CALLER
    assert dict(here.headers) == {b"traceparent": here.traceparent.encode(), b"x-request-id": GIVEN.encode()}


async def test_new_ones_are_all_different_and_correct() -> None:
    begun = [Tracing().begin("http", None) for _ in range(100)]
    assert len({here.trace_id for here in begun}) == len({here.span_id for here in begun}) == 100
    assert all(trace.parse(here.traceparent) for here in begun)
    assert {here.flags for here in begun} == {"00"}  # nobody records it


async def test_tasks_inherit_it_and_keep_it() -> None:
    """What a connection begins goes on under its id, whatever the connection's own task does next."""
    tracing = Tracing()
    first = tracing.begin("websocket", None)
    go_on = asyncio.Event()

    async def session() -> tuple[str | None, str | None]:
        with trace.scope("session", {}, session="s1"):
            trace.identify("somebody")  # of the session; its connection had no name yet
            await go_on.wait()
            here = trace.current()
            assert here is not None
            return here.trace_id, here.session

    task = asyncio.create_task(session())
    await asyncio.sleep(0)
    second = tracing.begin("websocket", None)
    go_on.set()
    assert await task == (first.trace_id, "s1")
    assert trace.current() is second
    assert (first.session, first.subject) == ("s1", None)
    assert (second.session, second.subject) == (None, None)


async def test_a_session_knows_who_began_it() -> None:
    Tracing().begin("websocket", None)
    trace.identify("key-1")
    trace.attend("before")
    with trace.scope("session", {}, session="s1") as here:
        assert here is not None
        assert (here.subject, here.session) == ("key-1", "s1")
    here = trace.current()
    assert here is not None
    assert here.session == "before"


async def test_where_nothing_goes_on_nothing_is_said() -> None:
    trace.enter(None)
    trace.identify("nobody")
    trace.attend("none")
    trace.say({"a": 1})
    with trace.scope("session", {}, session="s1") as here, trace.span("backend stream", {}) as inner:
        assert here is inner is None
    assert trace.current() is None
    assert trace.traceparent() is None
    assert trace.trace_id() is None


async def test_work_for_somebody_who_is_gone_goes_on_under_its_id() -> None:
    trace.enter(None)
    with Tracing().scope("job", parent=f"00-{GIVEN}-{CALLER}-00", subject="user-1") as here:
        assert (here.trace_id, here.subject) == (GIVEN, "user-1")
        assert trace.trace_id() == GIVEN
    assert trace.current() is None
    with Tracing().scope("job", parent="nonsense") as here:
        assert here.trace_id != GIVEN
