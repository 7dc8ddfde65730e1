"""Warnings about the signal: each trouble of a microphone is told once, and good audio is left in peace."""

from __future__ import annotations

import time

import numpy as np
import pytest

from bench.noises import NOISES
from bridge.audio.formats import AudioFormat, Encoding
from bridge.audio.levels import SignalMonitor
from tests.audio.encoding import CONTAINERS, contained
from tests.audio.raw import RAW, Signal, encoded, interleaved, spoken
from tests.speech import RECORDINGS, manifest

RATE = 16_000


def warned(
    data: bytes, audio: AudioFormat, milliseconds: int = 100, notices: list[tuple[str, str]] | None = None
) -> list[str]:
    """Codes told, in order, when the bytes come in real time."""
    told = [] if notices is None else notices
    monitor = SignalMonitor(audio, RATE, lambda code, sentence: told.append((code, sentence)))
    size = max(1, round(audio.frame_bytes * audio.sample_rate * milliseconds / 1_000))
    for n, at in enumerate(range(0, len(data), size)):
        monitor.received(data[at : at + size], n * milliseconds / 1_000)
    return [code for code, _ in told]


def warned_of(signal: Signal, encoding: Encoding = Encoding.PCM_S16LE, milliseconds: int = 100) -> list[str]:
    return warned(encoded(signal, encoding), AudioFormat(encoding, RATE), milliseconds)


def room(seconds: float, level: float = 8e-4) -> Signal:
    """A quiet room, at -62 dBFS."""
    return level * np.random.default_rng(3).standard_normal(round(seconds * RATE))


@pytest.mark.parametrize("encoding", RAW, ids=lambda e: e.value)
def test_speech_is_left_in_peace(encoding: Encoding) -> None:
    for name in ("meeting.flac", "noisy.flac", "voice-slt.flac"):
        assert warned_of(spoken(name), encoding) == []


def test_every_sample_and_recording_is_left_in_peace() -> None:
    entries = manifest()
    for name in [*entries, *(path.name for path in RECORDINGS.glob("[!m]*.wav"))]:
        rate = entries[name]["sample_rate"] if name in entries else 8_000 if "8k" in name else RATE
        for encoding in (Encoding.PCM_S16LE, Encoding.AUTO):
            data = encoded(spoken(name, fine=False)[: 20 * RATE], Encoding.PCM_S16LE)
            assert warned(data, AudioFormat(encoding, rate), 60) == [], name


@pytest.mark.parametrize("encoding", RAW, ids=lambda e: e.value)
@pytest.mark.parametrize("milliseconds", [20, 1_000])
def test_clipping(encoding: Encoding, milliseconds: int) -> None:
    overdriven = np.clip(spoken("meeting.flac") * 12, -1, 1)
    assert warned_of(overdriven, encoding, milliseconds) == ["clipping"]


def test_clipping_of_one_channel_of_two() -> None:
    voice = spoken("meeting.flac")
    data = encoded(interleaved(np.clip(voice * 12, -1, 1), 0.3 * voice), Encoding.PCM_S16LE)
    assert warned(data, AudioFormat(Encoding.PCM_S16LE, RATE, 2)) == ["clipping"]


@pytest.mark.parametrize("hertz", [50, 1_000, 4_000])
def test_a_tone_that_just_reaches_full_scale_is_not_clipped(hertz: int) -> None:
    tone = np.sin(2 * np.pi * hertz * np.arange(8 * RATE) / RATE + 0.3)
    assert warned_of(tone * 32_767 / 32_768) == []


def test_a_door_that_slams_is_not_clipping() -> None:
    voice = spoken("meeting.flac").copy()
    voice[RATE : RATE + 150] = 1
    assert warned_of(voice) == []


@pytest.mark.parametrize("encoding", RAW, ids=lambda e: e.value)
def test_nothing_but_digital_silence(encoding: Encoding) -> None:
    assert warned_of(np.zeros(9 * RATE), encoding) == []
    assert warned_of(np.zeros(60 * RATE), encoding) == ["silence"]


def test_a_constant_is_silence_too() -> None:
    assert warned_of(np.full(11 * RATE, 0.25)) == ["silence"]


def test_a_microphone_that_is_muted_later_is_given_more_time() -> None:
    voice = spoken("meeting.flac")
    assert warned_of(np.concatenate((voice, np.zeros(25 * RATE), voice))) == []
    assert warned_of(np.concatenate((voice, np.zeros(31 * RATE)))) == ["silence"]


def test_a_quiet_room_is_no_trouble() -> None:
    assert warned_of(room(120)) == []


@pytest.mark.parametrize("name", list(NOISES))
def test_noise_is_no_trouble(name: str) -> None:
    noise = NOISES[name](np.random.default_rng(2), 20 * RATE)
    for level in (1e-3, 0.05) if name != "swelling" else (0.05,):  # far away, it comes and goes like speech
        assert warned_of(np.clip(noise * level, -1, 1)) == []


@pytest.mark.parametrize(
    "encoding", [Encoding.PCM_S16LE, Encoding.PCM_S24BE, Encoding.PCM_F32LE], ids=lambda e: e.value
)
def test_speech_that_is_hardly_there(encoding: Encoding) -> None:
    faint = spoken("demo.flac") / np.abs(spoken("demo.flac")).max() / 500
    assert warned_of(faint, encoding) == ["low_level"]


def test_a_wrong_format_is_told_once_and_its_pace_not_as_well() -> None:
    notices: list[tuple[str, str]] = []
    floats = encoded(np.tile(spoken("meeting.flac"), 3), Encoding.PCM_F32LE)
    monitor = SignalMonitor(
        AudioFormat(Encoding.PCM_S16LE, RATE), RATE, lambda code, sentence: notices.append((code, sentence))
    )
    for n, at in enumerate(range(0, len(floats), 6_400)):  # live: twice the bytes that were declared
        monitor.received(floats[at : at + 6_400], n / 10)
    codes = [code for code, _ in notices]
    assert codes.count("wrong_encoding") == 1
    assert "wrong_rate" not in codes


def test_a_wrong_rate() -> None:
    codes: list[str] = []
    monitor = SignalMonitor(AudioFormat(Encoding.PCM_S16LE, RATE), RATE, lambda code, _: codes.append(code))
    data = encoded(np.tile(spoken("meeting.flac"), 5), Encoding.PCM_S16LE)
    for n, at in enumerate(range(0, len(data), 9_600)):
        monitor.received(data[at : at + 9_600], n / 10)
    assert codes == ["wrong_rate"]


@pytest.mark.parametrize("kind", [Encoding.OGG, Encoding.WEBM, Encoding.FLAC, Encoding.MP3, Encoding.MP4])
def test_a_container_declared_as_samples(kind: Encoding) -> None:
    notices: list[tuple[str, str]] = []
    codes = warned(contained(kind, RATE), AudioFormat(Encoding.PCM_S16LE, RATE), notices=notices)
    assert codes[0] == "wrong_encoding"
    assert f"declare encoding {kind.value}" in notices[0][1]
    assert codes.count("wrong_encoding") == 1


@pytest.mark.parametrize("declared", [Encoding.AUTO, Encoding.OGG])
def test_of_coded_audio_only_what_was_decoded_is_looked_at(declared: Encoding) -> None:
    codes: list[str] = []
    monitor = SignalMonitor(AudioFormat(declared, RATE), RATE, lambda code, _: codes.append(code))
    for n in range(600):
        monitor.received(contained(Encoding.OGG, RATE)[n * 100 : n * 100 + 100], n / 10)
        monitor.heard(bytes(3_200))
    assert codes == ["silence"]


@pytest.mark.parametrize("kind", CONTAINERS, ids=lambda e: e.value)
def test_what_is_sniffed_is_no_samples_however_little_the_first_message_holds(kind: Encoding) -> None:
    data = contained(kind)
    for size in (1, 7, 300):
        told: list[str] = []
        monitor = SignalMonitor(AudioFormat(), RATE, lambda code, _, told=told: told.append(code))  # type: ignore[misc]
        for n, at in enumerate(range(0, min(len(data), 300 * size), size)):
            monitor.received(data[at : at + size], n / 10)
        assert told == []


def test_of_raw_audio_what_was_decoded_is_not_looked_at_again() -> None:
    codes: list[str] = []
    monitor = SignalMonitor(AudioFormat(Encoding.PCM_S16LE, RATE), RATE, lambda code, _: codes.append(code))
    monitor.received(encoded(room(1), Encoding.PCM_S16LE), 0.0)
    for _ in range(600):
        monitor.heard(bytes(3_200))
    assert codes == []


@pytest.mark.parametrize("encoding", RAW, ids=lambda e: e.value)
@pytest.mark.parametrize("size", [1, 7, 1_001])
def test_messages_may_be_cut_inside_samples(encoding: Encoding, size: int) -> None:
    data = encoded(spoken("meeting.flac")[RATE : RATE + 4_000], encoding)
    codes: list[str] = []
    monitor = SignalMonitor(AudioFormat(encoding, RATE, 2), RATE, lambda code, _: codes.append(code))
    for at in range(0, len(data), size):
        monitor.received(data[at : at + size], 0.0)
    assert codes == []


def test_random_bytes_are_survived_in_every_encoding() -> None:
    chance = np.random.default_rng(4)
    for encoding in RAW:
        warned(chance.bytes(100_000), AudioFormat(encoding, 48_000, 3), 7)


def test_it_is_cheap_after_the_first_seconds() -> None:
    monitor = SignalMonitor(AudioFormat(Encoding.PCM_S16LE, RATE), RATE, lambda code, sentence: None)
    data = encoded(spoken("demo.flac"), Encoding.PCM_S16LE)
    messages = [data[at : at + 3_200] for at in range(0, len(data), 3_200)]
    costs = []
    for n, message in enumerate(messages):
        begun = time.perf_counter()
        monitor.received(message, n / 10)
        costs.append(time.perf_counter() - begun)
    assert float(np.median(costs[100:])) < 100e-6  # 5 us; a busy machine must not fail the test


def test_what_was_not_looked_at_when_the_audio_ends_is_looked_at_then() -> None:
    codes: list[str] = []
    monitor = SignalMonitor(AudioFormat(Encoding.PCM_S16LE, RATE), RATE, lambda code, _: codes.append(code))
    for n in range(33):
        monitor.received(bytes(9_600), 0.3 * n)
    monitor.received(bytes(4_800), 9.9)
    assert codes == []  # 9.6 s were looked at
    monitor.finish(10.05)
    assert codes == ["silence"]
    monitor.finish(10.05)
    assert codes == ["silence"]
