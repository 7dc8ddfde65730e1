"""Readings: the right one explains audio in the fewest bits."""

from __future__ import annotations

import numpy as np
import pytest

from bridge.audio.formats import Encoding
from bridge.audio.readings import ALIGNMENT, READABLE, bits_per_byte, read
from tests.audio.raw import FLOATS, RAW, encoded, interleaved, spoken


def speech(seconds: float = 0.3) -> np.ndarray:
    return spoken("meeting.flac")[16_000 : 16_000 + round(seconds * 16_000)]


def test_every_raw_encoding_can_be_read_and_begins_anew_at_each_alignment() -> None:
    assert list(READABLE) == RAW
    assert all(ALIGNMENT % (encoding.width or 1) == 0 for encoding in READABLE)


@pytest.mark.parametrize("truth", RAW, ids=lambda e: e.value)
def test_speech_costs_least_when_it_is_read_rightly(truth: Encoding) -> None:
    data = encoded(speech(), truth)
    costs = {e: bits_per_byte(r, [1]) for e in READABLE if (r := read(e, data)) is not None}
    assert min(costs, key=lambda e: costs[e]) is truth
    assert min(cost for e, cost in costs.items() if e is not truth) - costs[truth] > 0.4


@pytest.mark.parametrize("truth", [e for e in RAW if e not in {Encoding.MULAW, Encoding.ALAW}], ids=lambda e: e.value)
def test_level_is_relative_to_full_scale(truth: Encoding) -> None:
    reading = read(truth, encoded(speech(), truth))
    assert reading is not None
    assert reading.level == pytest.approx(speech().std(), rel=0.01)


@pytest.mark.parametrize("truth", [Encoding.PCM_S32LE, Encoding.PCM_F32LE, Encoding.PCM_F64BE], ids=lambda e: e.value)
def test_a_wide_container_of_narrow_samples_costs_what_the_samples_cost(truth: Encoding) -> None:
    coarse = spoken("meeting.flac", fine=False)[16_000:24_000]
    narrow, wide = (read(e, encoded(coarse, e)) for e in (Encoding.PCM_S16LE, truth))
    assert narrow is not None
    assert wide is not None
    assert wide.level == pytest.approx(narrow.level)
    ratio = (truth.width or 1) / 2
    assert bits_per_byte(wide, [1]) * ratio == pytest.approx(bits_per_byte(narrow, [1]), abs=0.01)


@pytest.mark.parametrize("floats", list(FLOATS), ids=lambda e: e.value)
def test_what_is_not_a_number_is_no_audio(floats: Encoding) -> None:
    assert read(floats, np.random.default_rng(1).bytes(4_800)) is None
    holes = speech().copy()
    holes[::200] = np.nan  # a few are a fault of the sender, not of the format
    assert read(floats, encoded(holes, floats)) is not None


def test_integers_cast_to_floats_are_seen_through() -> None:
    reading = read(Encoding.PCM_F32LE, encoded(speech() * 32_768, Encoding.PCM_F32LE))
    assert reading is not None
    assert reading.disguised
    assert reading.level == pytest.approx(speech().std(), rel=0.01)


def test_a_channel_of_pure_chance_is_none() -> None:
    chance = np.random.default_rng(1).uniform(-1, 1, 4_800)
    both = read(Encoding.PCM_S16LE, encoded(interleaved(speech(), chance), Encoding.PCM_S16LE))
    assert both is not None
    assert bits_per_byte(both, [2]) > bits_per_byte(both, [2], channels=2)


def test_a_machine_s_tone_repeats_and_speech_does_not() -> None:
    tone = 0.5 * np.sin(2 * np.pi * 1_000 * np.arange(4_800) / 16_000)
    for encoding in RAW:
        played, said = (read(encoding, encoded(signal, encoding)) for signal in (tone, speech()))
        assert played is not None
        assert said is not None
        assert played.repeats
        assert not said.repeats


@pytest.mark.parametrize("encoding", RAW, ids=lambda e: e.value)
@pytest.mark.parametrize("size", [0, 1, 7, 100])
def test_few_bytes_are_read_as_well(encoding: Encoding, size: int) -> None:
    reading = read(encoding, bytes(range(size)))
    if reading is not None:
        assert len(reading.values) == size // (encoding.width or 1)
        assert bits_per_byte(reading, [1, 2]) <= 8.3
        assert reading.level >= 0


def test_coded_audio_has_no_reading() -> None:
    with pytest.raises(ValueError, match="ogg"):
        read(Encoding.OGG, b"OggS")
