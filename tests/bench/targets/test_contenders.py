"""What can be put under load."""

from __future__ import annotations

import argparse
import asyncio

import pytest

from bench.load.dialects import DIALECTS
from bench.load.fleet import play
from bench.load.plan import Plan
from bench.process import cpu_seconds
from bench.targets.contenders import CONTENDERS, chosen
from bench.targets.peers import PEERS


def test_all_speak_what_the_load_generator_speaks() -> None:
    assert {contender.dialect for contender in CONTENDERS.values()} == set(DIALECTS)
    assert {name for name, contender in CONTENDERS.items() if not contender.module} == set(PEERS)


def test_they_are_chosen_by_name() -> None:
    assert [contender.name for contender in chosen("naive, bridge,naive")] == ["naive", "bridge"]
    with pytest.raises(argparse.ArgumentTypeError, match="no contender nobody; there are bridge, "):
        chosen("bridge,nobody")


@pytest.mark.parametrize("name", [name for name, contender in CONTENDERS.items() if contender.module])
def test_ours_take_a_session(name: str) -> None:
    contender = CONTENDERS[name]
    with contender.started() as server:
        plan = Plan(url=server.url, dialect=contender.dialect, sessions=2, seconds=1.0, ramp=0)
        seen = asyncio.run(play(plan))
        assert (seen.completed, seen.failures) == (2, {})
        assert [cpu_seconds(pid) > 0 for pid in server.pids] == [True]


def test_the_bridge_alone_has_several_processes() -> None:
    with CONTENDERS["bridge"].started(2) as server:
        assert len(server.pids) == 3
    with CONTENDERS["bare"].started(2) as server:
        assert len(server.pids) == 1
