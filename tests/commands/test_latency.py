"""How long after its end a word was shown."""

from __future__ import annotations

import pytest

from bridge.commands.latency import Latencies
from bridge.protocols.native import FinalMessage, PartialMessage, WordObject

WORDS = (WordObject("one", 0.0, 0.5), WordObject("two", 0.5, 1.0), WordObject("three", 1.0, 1.5))


def test_a_word_counts_from_the_first_partial_that_has_it_and_all_before_it_right() -> None:
    latencies = Latencies()
    latencies.take(PartialMessage("won", 0.0, 0.5), 0.6)
    latencies.take(PartialMessage("one", 0.0, 0.6), 0.75)
    latencies.take(PartialMessage("won two", 0.0, 1.1), 1.25)
    latencies.take(PartialMessage("one two", 0.0, 1.2), 1.5)
    latencies.take(FinalMessage(1, "one two three", 0.0, 2.0, WORDS), 2.25)
    assert latencies.partials == pytest.approx([0.25, 0.5])
    assert latencies.unseen == 1
    assert latencies.finals == pytest.approx([0.75])


def test_partials_of_one_utterance_say_nothing_of_the_next() -> None:
    latencies = Latencies()
    latencies.take(PartialMessage("one", 0.0, 0.6), 0.75)
    latencies.take(FinalMessage(1, "", 0.0, 1.0), 1.0)
    latencies.take(FinalMessage(2, "one", 0.0, 2.0, WORDS[:1]), 2.0)
    latencies.take(FinalMessage(3, "one", 3.0, 4.0, WORDS[:1]), 4.0)
    assert len(latencies.partials) == 1
    assert len(latencies.finals) == 2
