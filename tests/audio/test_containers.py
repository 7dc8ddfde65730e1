"""Containers and codecs as they stream: complete, at once, the same however they are cut; damage costs little."""

from __future__ import annotations

import functools
import gc
import io
import tracemalloc
import weakref

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.audio import containers
from bridge.audio.decode import StreamDecoder
from bridge.audio.formats import AudioFormat, Encoding
from bridge.errors import BridgeError
from tests.audio.decoding import RATE, cut, cut_evenly, decoded, decoded_lanes, drained
from tests.audio.encoding import CONTAINERS, Samples, contain, contained, ogg_flac, speech, whole

SECONDS = 3.0
DELAY = {Encoding.AAC: 1_024, Encoding.MP4: 1_024, Encoding.MP3: 1_105}
"""Samples at the coded rate before the first: encoders begin with silence, and live ones cannot say how much."""
LIKENESS = {Encoding.MP3: 0.98, Encoding.OGG: 0.99, Encoding.WEBM: 0.99}
"""Correlation with the original; others are nearly alike."""
CODED = [(encoding, rate) for encoding in CONTAINERS for rate in (8_000, 16_000, 44_100, 48_000)]
CODED = [(e, rate) for e, rate in CODED if rate != 44_100 or e not in {Encoding.OGG, Encoding.WEBM}]


def correlation(one: Samples, other: Samples) -> float:
    length = min(len(one), len(other))
    return float(np.corrcoef(one[:length].astype(float), other[:length].astype(float))[0, 1])


@functools.cache
def reference(rate: int) -> Samples:
    """The speech as it sounds where it was recorded at that rate: a low one has lost its upper half."""
    return decoded(AudioFormat(Encoding.PCM_S16LE, rate), speech(rate, SECONDS).tobytes())


@pytest.mark.parametrize(("encoding", "rate"), CODED)
def test_all_of_it_is_heard(encoding: Encoding, rate: int) -> None:
    """In messages of 20 ms, 100 ms and 1 s: what FFmpeg makes of the whole file, and the original."""
    data = contained(encoding, rate, SECONDS)
    expected = whole(data)
    for milliseconds in (20, 100, 1_000):
        size = max(1, round(len(data) * milliseconds / 1_000 / SECONDS))
        notices: list[str] = []
        got = decoded(AudioFormat(encoding), *cut_evenly(data, size), notices=notices)
        assert not notices
        # FFmpeg's writer says an Ogg is longer than it is, by its pre-skip; its reader does not believe it.
        assert len(got) == len(expected) + (104 if encoding is Encoding.OGG else 0)
        assert correlation(got, expected) > 0.9999
        delay = round(DELAY.get(encoding, 0) * RATE / rate)
        assert len(got) >= delay + SECONDS * RATE
        if rate > 8_000 or encoding is not Encoding.MP3:  # which gives 8 kbit/s to 8 kHz
            assert correlation(got[delay:], reference(rate)) > LIKENESS.get(encoding, 0.97 if delay else 0.9999)


@pytest.mark.parametrize("encoding", CONTAINERS)
def test_an_undeclared_container_is_known(encoding: Encoding) -> None:
    data = contained(encoding)
    pieces = cut(data, [1] * 40)
    assert np.array_equal(decoded(AudioFormat(), *pieces), decoded(AudioFormat(encoding), data))


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(list(CONTAINERS)), st.lists(st.integers(1, 5_000), max_size=30))
def test_cuts_change_nothing(encoding: Encoding, sizes: list[int]) -> None:
    data = contained(encoding)
    assert np.array_equal(decoded(AudioFormat(encoding), *cut(data, sizes)), undivided(encoding))


@functools.cache
def undivided(encoding: Encoding) -> Samples:
    return decoded(AudioFormat(encoding), contained(encoding))


@pytest.mark.parametrize(
    ("encoding", "longest"),
    [
        (Encoding.OGG, 0.05),
        (Encoding.WEBM, 0.05),
        (Encoding.WAV, 0.02),
        (Encoding.AAC, 0.1),
        (Encoding.MP4, 0.15),
        (Encoding.MP3, 0.25),
        (Encoding.FLAC, 0.6),  # two frames: where one ends is known when the next begins
    ],
)
def test_sound_comes_while_the_container_arrives(encoding: Encoding, longest: float) -> None:
    """How much of what has arrived cannot be heard yet, in seconds, at the worst."""
    data = contained(encoding, seconds=SECONDS)
    decoder = StreamDecoder(AudioFormat(encoding), RATE)
    total = len(decoded(AudioFormat(encoding), data))
    heard, behind = 0, []
    # What carries no sound comes at once: the header, FLAC's room for tags.
    head = 8_300 if encoding is Encoding.FLAC else min(1_500, len(data) // 20)
    for piece in [data[:head], *cut_evenly(data[head:], 50)]:
        decoder.push(piece)
        heard += sum(len(pcm) // 2 for (pcm,) in drained(decoder))
        behind.append(heard)
    arrived = np.linspace(0, total, len(behind))
    coded = np.array(behind)
    decoder.close()
    assert np.median(arrived - coded) / RATE < longest
    assert (arrived - coded).max() / RATE < 3 * longest + 0.1


@pytest.mark.parametrize("encoding", [Encoding.OGG, Encoding.WEBM, Encoding.FLAC, Encoding.MP4, Encoding.WAV])
def test_each_channel_of_a_container_is_a_lane(encoding: Encoding) -> None:
    data = contained(encoding, 48_000, channels=2)
    lanes = decoded_lanes(AudioFormat(encoding, channels=2), *cut_evenly(data, 700), lanes=2)
    delay = round(DELAY.get(encoding, 0) / 3)
    original = speech(48_000, channels=2)
    for lane, channel in zip(lanes, original.T, strict=True):
        alone = decoded(AudioFormat(Encoding.PCM_S16LE, 48_000), np.ascontiguousarray(channel).tobytes())
        assert correlation(lane[delay:], alone) > 0.95


def test_a_container_with_another_number_of_channels_than_lanes() -> None:
    with pytest.raises(BridgeError, match="1 channel") as caught:
        decoded_lanes(AudioFormat(Encoding.WEBM, channels=2), contained(Encoding.WEBM), lanes=2)
    assert caught.value.code == "unsupported_audio"


@pytest.mark.parametrize("encoding", [Encoding.FLAC, Encoding.WAV, Encoding.MP3, Encoding.WEBM, Encoding.OGG])
def test_one_file_after_another(encoding: Encoding) -> None:
    data = contained(encoding)
    once = len(undivided(encoding))
    assert len(decoded(AudioFormat(encoding), *cut_evenly(data + data, 900))) == pytest.approx(2 * once, abs=1_200)


@pytest.mark.parametrize("second", [(48_000, 2, None), (44_100, 2, "vorbis"), (8_000, 1, None), (16_000, 1, "flac")])
def test_a_chain_of_ogg_changes_codec_rate_and_channels(second: tuple[int, int, str | None]) -> None:
    rate, channels, codec = second
    first = contained(Encoding.OGG, 48_000)
    if codec == "flac":
        other = ogg_flac(speech(rate, 2.0, channels), rate)
    else:
        other = contained(Encoding.OGG, rate, 2.0, channels, codec)
    got = decoded(AudioFormat(Encoding.OGG), *cut_evenly(first + other, 500))
    assert len(got) == pytest.approx(5 * RATE, abs=0.05 * RATE)
    mono = speech(RATE, 2.0, channels).mean(axis=1)
    assert max(correlation(got[start:], mono) for start in range(3 * RATE - 20, 3 * RATE + 1_000, 4)) > 0.9


def test_rate_that_changes_in_mp3() -> None:
    data = contained(Encoding.MP3) + contained(Encoding.MP3, 44_100, 3.0, 2)
    assert len(decoded(AudioFormat(Encoding.MP3), *cut_evenly(data, 500))) == pytest.approx(6.2 * RATE, abs=1_000)


# Damage


@pytest.mark.parametrize("encoding", [Encoding.FLAC, Encoding.OGG, Encoding.AAC])
def test_a_damaged_piece_costs_that_piece(encoding: Encoding) -> None:
    data = bytearray(contained(encoding))
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    notices: list[str] = []
    got = decoded(AudioFormat(encoding), *cut_evenly(bytes(data), 800), notices=notices)
    good = undivided(encoding)
    assert "damaged_audio" in notices
    assert len(got) == pytest.approx(len(good), abs=2_100)
    assert np.array_equal(got[:RATE], good[:RATE])
    assert max(correlation(got[-RATE:], good[-RATE - lag : -lag or None]) for lag in range(0, 2_100, 64)) > 0.5 or (
        correlation(got[-RATE:], good[-RATE:]) > 0.99
    )


def test_a_lost_page_is_silence() -> None:
    data = contained(Encoding.OGG)
    starts = [at for at in range(len(data)) if data.startswith(b"OggS", at)]
    lost = data[: starts[3]] + data[starts[4] :]
    notices: list[str] = []
    got = decoded(AudioFormat(Encoding.OGG), *cut_evenly(lost, 800), notices=notices)
    assert notices == ["damaged_audio"]
    good = undivided(Encoding.OGG)
    assert len(got) == pytest.approx(len(good), abs=10)
    assert not got[RATE + 400 : 2 * RATE - 400].any()
    assert correlation(got[-RATE // 2 :], good[-RATE // 2 :]) > 0.95


@pytest.mark.parametrize("encoding", [Encoding.WEBM, Encoding.MP4])
def test_what_is_missing_by_the_container_s_clock_is_silence(encoding: Encoding) -> None:
    """A cluster or some fragments: what comes after them is heard where it was said."""
    data = contained(encoding, seconds=6.0)
    name = b"\x1fC\xb6u" if encoding is Encoding.WEBM else b"moof"
    starts = [at - 4 * (name == b"moof") for at in range(len(data)) if data.startswith(name, at)]
    first, after = (starts[len(starts) * part // 12] for part in (5, 7))
    notices: list[str] = []
    got = decoded(AudioFormat(encoding), *cut_evenly(data[:first] + data[after:], 800), notices=notices)
    good = decoded(AudioFormat(encoding), data)
    assert notices == ["damaged_audio"]
    assert len(got) == pytest.approx(len(good), abs=20)
    assert correlation(got[-2 * RATE :], good[-2 * RATE :]) > 0.95


@pytest.mark.parametrize("encoding", CONTAINERS)
def test_what_breaks_off_is_heard_up_to_there(encoding: Encoding) -> None:
    data = contained(encoding)
    got = decoded(AudioFormat(encoding), *cut_evenly(data[: len(data) * 2 // 3], 800))
    assert len(got) > 1.4 * RATE


@pytest.mark.parametrize("encoding", CONTAINERS)
@pytest.mark.parametrize("kind", ["head", "noise"])
def test_what_cannot_be_decoded(encoding: Encoding, kind: str) -> None:
    data = contained(encoding)[:30] if kind == "head" else np.random.default_rng(7).bytes(30_000)
    with pytest.raises(BridgeError) as caught:
        decoded(AudioFormat(encoding), *cut_evenly(data, 700))
    assert caught.value.code == "undecodable_audio"


def test_nothing_at_all_is_no_error() -> None:
    for encoding in Encoding:
        assert not len(decoded(AudioFormat(encoding)))


def test_another_container_than_declared() -> None:
    with pytest.raises(BridgeError, match="declared as webm, but begins like ogg"):
        decoded(AudioFormat(Encoding.WEBM), contained(Encoding.OGG))


def test_endless_data_without_sound_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A box that says it is huge."""
    monkeypatch.setattr("bridge.audio.codec.FRUITLESS_BYTES", 300_000)
    decoder = StreamDecoder(AudioFormat(Encoding.MP4), RATE)
    decoder.push(b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + b"\x7f\xff\xff\xff" + b"free")
    with pytest.raises(BridgeError, match="no sound in the last 3") as caught:
        for _ in range(40):
            decoder.push(bytes(10_000))
            list(drained(decoder))
    assert caught.value.code == "undecodable_audio"


def test_a_bomb_comes_out_in_small_turns() -> None:
    """Ten minutes of silence in a message of FLAC: each turn is short, and only the code is held."""
    bomb = contain(Encoding.FLAC, np.zeros((RATE * 600, 1), np.int16), RATE)
    assert len(bomb) < 120_000
    decoder = StreamDecoder(AudioFormat(Encoding.FLAC), RATE)
    decoder.push(bomb)
    decoder.finish()
    longest = max(len(pcm) // 2 for (pcm,) in drained(decoder))
    assert longest <= RATE
    assert decoder.frames == RATE * 600


# Life and death


@pytest.mark.parametrize("fed", [0, 10, 700, 5_000])
@pytest.mark.parametrize("encoding", [Encoding.WEBM, Encoding.MP4, Encoding.MP3])
@pytest.mark.parametrize("closed", [True, False])
def test_nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch, encoding: Encoding, fed: int, *, closed: bool) -> None:
    """Closed or only forgotten, before the demuxer has begun, while it waits and while it has more to give."""
    left: list[weakref.ref[object]] = []
    original = containers._Feed

    class Watched(original):  # type: ignore[valid-type,misc]
        def __init__(self) -> None:
            super().__init__()
            left.append(weakref.ref(self))

    monkeypatch.setattr(containers, "_Feed", Watched)
    decoder = StreamDecoder(AudioFormat(encoding), RATE)
    decoder.push(contained(encoding)[:fed])
    decoder.read()
    if closed:
        decoder.close()
        decoder.close()
        assert decoder.read() is None
    del decoder
    gc.collect()
    assert [ref for ref in left if ref() is not None] == []


def test_many_at_once() -> None:
    """Demuxers of many streams wait at the same time, and take turns."""
    data = {encoding: cut_evenly(contained(encoding), 1_000) for encoding in CONTAINERS}
    decoders = [(encoding, StreamDecoder(AudioFormat(encoding), RATE)) for encoding in CONTAINERS for _ in range(5)]
    heard = [b""] * len(decoders)
    for turn in range(max(map(len, data.values())) + 1):
        for index, (encoding, decoder) in enumerate(decoders):
            if turn < len(data[encoding]):
                decoder.push(data[encoding][turn])
            elif turn == len(data[encoding]):
                decoder.finish()
            heard[index] += b"".join(pcm for (pcm,) in drained(decoder))
    for (encoding, _), pcm in zip(decoders, heard, strict=True):
        assert np.array_equal(np.frombuffer(pcm, "<i2"), undivided(encoding))


# Hostile containers


def element(identity: str, body: bytes) -> bytes:
    """One of EBML's."""
    return bytes.fromhex(identity) + (len(body) | 1 << 56).to_bytes(8, "big") + body


def webm_of_tracks(count: int) -> bytes:
    def track(number: int) -> bytes:
        said = element("d7", number.to_bytes(4, "big")) + element("73c5", number.to_bytes(4, "big"))
        return element("ae", said + element("83", b"\2") + element("86", b"A_VORBIS"))

    header = element("1a45dfa3", element("4282", b"webm"))
    return header + element("18538067", element("1654ae6b", b"".join(track(number + 1) for number in range(count))))


def test_ten_thousand_tracks() -> None:
    data = webm_of_tracks(10_000)
    assert len(data) > 400_000
    decoder = StreamDecoder(AudioFormat(Encoding.WEBM), RATE)
    with pytest.raises(BridgeError) as caught:
        for piece in cut_evenly(data, 50_000):
            decoder.push(piece)
            list(drained(decoder))
        decoder.finish()
        list(drained(decoder))
    assert caught.value.code == "undecodable_audio"


def test_a_track_of_pictures_does_not_matter() -> None:
    target = io.BytesIO()
    tone = speech(48_000, 2.0)
    with av.open(target, "w", format="webm") as out:
        video = out.add_stream("libvpx", rate=5, options={"deadline": "realtime", "cpu-used": "8"})
        assert isinstance(video, av.VideoStream)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        audio = out.add_stream("libopus", rate=48_000, layout="mono")
        assert isinstance(audio, av.AudioStream)
        for number in range(10):
            picture = av.VideoFrame.from_ndarray(np.random.default_rng(number).integers(0, 255, (64, 64, 3), np.uint8))
            picture.pts = number
            out.mux(video.encode(picture))
            block = np.ascontiguousarray(tone[number * 9_600 : (number + 1) * 9_600]).reshape(1, -1)
            for start in range(0, 9_600, 960):
                frame = av.AudioFrame.from_ndarray(block[:, start : start + 960], format="s16", layout="mono")
                frame.sample_rate, frame.pts = 48_000, number * 9_600 + start
                out.mux(audio.encode(frame))
        out.mux(video.encode(None))
        out.mux(audio.encode(None))
    got = decoded(AudioFormat(), *cut_evenly(target.getvalue(), 900))
    assert len(got) == 2 * RATE
    assert correlation(got, reference_of(tone)) > 0.98


def reference_of(samples: Samples) -> Samples:
    return decoded(AudioFormat(Encoding.PCM_S16LE, 48_000), samples.tobytes())


@pytest.mark.parametrize("text", [b"#EXTM3U\n", b"ffconcat version 1.0\nfile /etc/passwd\n", b"v=0\r\no=- 0 0 IN IP4"])
@pytest.mark.parametrize("encoding", [Encoding.WEBM, Encoding.OGG, Encoding.MP4, Encoding.MP3, Encoding.AAC])
def test_text_that_names_other_files_is_no_audio(encoding: Encoding, text: bytes) -> None:
    with pytest.raises(BridgeError) as caught:
        decoded(AudioFormat(encoding), text * 40)
    assert caught.value.code == "undecodable_audio"
    assert len(decoded(AudioFormat(), text)) == len(text) // 2, "undeclared, it is samples as anything else"


def test_a_codec_that_is_not_listed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONTAINERS, Encoding.WEBM, ("matroska", "ac3", {}))
    data = contain(Encoding.WEBM, speech(48_000, 1.0), 48_000)
    with pytest.raises(BridgeError, match=r"holds no audio .*ac3") as caught:
        decoded(AudioFormat(Encoding.WEBM), data)
    assert caught.value.code == "undecodable_audio"


def test_a_long_container_costs_no_memory() -> None:
    """A minute and a half of WebM in many links, of which nothing stays behind."""
    data = contained(Encoding.WEBM, 16_000, 3.0)
    decoder = StreamDecoder(AudioFormat(Encoding.WEBM), RATE)
    tracemalloc.start()
    try:
        for _ in range(30):
            for piece in cut_evenly(data, 4_000):
                decoder.push(piece)
                list(drained(decoder))
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
        decoder.close()
    assert decoder.frames > 85 * RATE
