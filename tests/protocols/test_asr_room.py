"""The room protocol's codec, without a socket: who comes as what, what counts as `close`, what is told of events."""

from __future__ import annotations

import json
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.base import Word
from bridge.audio.decode import StreamDecoder
from bridge.audio.formats import AudioFormat, Encoding
from bridge.errors import BridgeError
from bridge.protocols import events
from bridge.protocols.asr_room import AsrRoomCodec, RoomEncoding
from bridge.protocols.events import Audio, Join, Start, Stop
from bridge.settings import Settings


def sender(**query: str) -> AsrRoomCodec:
    codec = AsrRoomCodec("room", {"mode": "sender"} | query)
    assert isinstance(codec.opening(), Start)
    return codec


def receiver(**query: str) -> AsrRoomCodec:
    codec = AsrRoomCodec("room", {"mode": "receiver"} | query)
    assert isinstance(codec.opening(), Join)
    return codec


def refusal(session_id: str, **query: str) -> BridgeError:
    with pytest.raises(BridgeError) as caught:
        AsrRoomCodec(session_id, query).opening()
    return caught.value


def said(codec: AsrRoomCodec, event: events.ServerEvent) -> Any:
    text = codec.encode(event)
    return None if text is None else json.loads(text)


# Who comes


def test_a_sender_opens_a_session_of_that_name() -> None:
    assert AsrRoomCodec("room-1", {"mode": "sender"}).opening() == Start(
        AudioFormat(Encoding.PCM_F32LE, 16_000, 1),
        partials=False,
        words=False,
        session_id="room-1",
        resume=False,
        reuse=True,
    )


@pytest.mark.parametrize(
    ("default", "query", "encoding"),
    [
        ("pcm_f32le", {}, Encoding.PCM_F32LE),
        ("pcm_s16le", {}, Encoding.PCM_S16LE),
        ("pcm_s16le", {"encoding": "pcm_f32le"}, Encoding.PCM_F32LE),
        ("pcm_f32le", {"encoding": "pcm_s16le"}, Encoding.PCM_S16LE),
    ],
)
def test_what_the_address_says_of_samples_wins(
    default: RoomEncoding, query: dict[str, str], encoding: Encoding
) -> None:
    start = AsrRoomCodec("room", {"mode": "sender"} | query, default).opening()
    assert isinstance(start, Start)
    assert start.audio == AudioFormat(encoding, 16_000, 1)


def test_the_setting_allows_what_the_codec_takes() -> None:
    allowed = get_args(Settings.model_fields["asr_room_encoding"].annotation)
    assert allowed == get_args(RoomEncoding)
    assert {Encoding(name).width for name in allowed} == {2, 4}


def test_language_and_partials_of_the_query() -> None:
    start = AsrRoomCodec("room", {"mode": "sender", "language": "de-DE", "partials": "true"}).opening()
    assert isinstance(start, Start)
    assert (start.language, start.partials) == ("de-DE", True)


def test_a_receiver_joins() -> None:
    assert AsrRoomCodec("room", {"mode": "receiver"}).opening() == Join("room", None, partials=False)
    query = {"mode": "receiver", "from_seq": "1", "partials": "1", "token": "k", "anything": "else"}
    assert AsrRoomCodec("room", query).opening() == Join("room", 1, partials=True)


@pytest.mark.parametrize("session_id", ["r", "1", "a.b_c~d-E", "x" * 128])
def test_names(session_id: str) -> None:
    AsrRoomCodec(session_id, {"mode": "sender"}).opening()


@pytest.mark.parametrize("session_id", ["", "x" * 129, "a b", "a/b", "ä", "a\n", "a*", "\x00", "..%2f"])
def test_what_cannot_be_a_name(session_id: str) -> None:
    error = refusal(session_id, mode="sender")
    assert (error.code, error.fatal) == ("bad_start", True)


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"mode": ""},
        {"mode": "Sender"},
        {"mode": "both"},
        {"mode": "sender", "encoding": "mp3"},
        {"mode": "sender", "language": ""},
        {"mode": "sender", "partials": "perhaps"},
        {"mode": "receiver", "from_seq": "0"},
        {"mode": "receiver", "from_seq": "x"},
    ],
)
def test_a_query_that_is_wrong(query: dict[str, str]) -> None:
    assert refusal("room", **query).code == "bad_start"


# What they say


def test_audio_comes_as_it_is() -> None:
    assert sender().receive_bytes(b"\x00\x01\x02") == Audio(b"\x00\x01\x02")


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=200), st.data())
def test_floats_may_be_cut_anywhere(values: list[float], data: st.DataObject) -> None:
    """The samples are the same however the sender's messages cut them."""
    whole = np.array(values, "<f4").tobytes()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    codec = AsrRoomCodec("room", {"mode": "sender"})
    start = codec.opening()
    assert isinstance(start, Start)
    assert decoded(start, codec, [whole]) == decoded(
        start, codec, [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    )


def decoded(start: Start, codec: AsrRoomCodec, messages: list[bytes]) -> bytes:
    decoder = StreamDecoder(start.audio, 16_000)
    heard = b""
    for message in messages:
        event = codec.receive_bytes(message)
        assert isinstance(event, Audio)
        decoder.push(event.data)
        while (lanes := decoder.read()) is not None:
            heard += lanes[0]
    decoder.finish()
    while (lanes := decoder.read()) is not None:
        heard += lanes[0]
    return heard


CLOSES = ["close", " Close\r\n", "CLOSE", '"close"', '{"type":"close"}', ' {"type": "Close", "reason": 1} ']


@pytest.mark.parametrize("text", CLOSES)
@pytest.mark.parametrize("make", [sender, receiver])
def test_close(make: Any, text: str) -> None:
    codec = make()
    assert codec.receive_text(text) == [Stop()]
    for _ in range(2):
        with pytest.raises(BridgeError) as caught:
            codec.receive_text("close")
        assert (caught.value.code, caught.value.fatal) == ("bad_order", False)
        with pytest.raises(BridgeError) as caught:
            codec.receive_bytes(b"")
        assert (caught.value.code, caught.value.fatal) == ("bad_order", False)


@pytest.mark.parametrize(
    "text",
    [
        *("", "closed", "close close", "stop", '{"type":"stop"}', '{"type":1}', "{}", '{"close"', "[1]", "null"),
        *('"clos\\ud800"', "{\ud800}", "[" * 10_000, "{" * 10_000, '{"type":' * 99, " " * 200 + "close", "c" * 10**6),
    ],
)
def test_other_text_hurts_nothing(text: str) -> None:
    codec = sender()
    with pytest.raises(BridgeError) as caught:
        codec.receive_text(text)
    assert (caught.value.code, caught.value.fatal) == ("bad_message", False)
    assert codec.receive_bytes(b"x") == Audio(b"x")
    assert codec.receive_text("close") == [Stop()]


@given(st.text() | st.text(" close\n", max_size=8))
def test_any_text_is_close_or_refused(text: str) -> None:
    if text.strip().lower() == "close":
        assert sender().receive_text(text) == [Stop()]
    else:
        with pytest.raises(BridgeError) as caught:
            sender().receive_text(text)
        assert caught.value.code == "bad_message"


def test_a_receiver_s_audio_is_refused() -> None:
    codec = receiver()
    with pytest.raises(BridgeError) as caught:
        codec.receive_bytes(bytes(4))
    assert (caught.value.code, caught.value.fatal) == ("bad_order", False)


# What they are told

FINAL = events.Final(3, "grüß dich", 0.0, 1.0, (Word("grüß", 0.0, 0.5), Word("dich", 0.5, 1.0)), 0.9)
PARTIAL = events.Partial("grüß", 0.0, 0.5)


@pytest.mark.parametrize("make", [sender, receiver])
def test_a_final(make: Any) -> None:
    assert said(make(), FINAL) == {"asr": "grüß dich", "spk": None}


@pytest.mark.parametrize("make", [sender, receiver])
def test_partials_are_asked_for(make: Any) -> None:
    assert said(make(), PARTIAL) is None
    assert said(make(partials="true"), PARTIAL) == {"asr": "grüß", "spk": None, "partial": True}
    assert said(make(partials="true"), FINAL) == {"asr": "grüß dich", "spk": None}


@pytest.mark.parametrize("fatal", [True, False])
def test_an_error(fatal: bool) -> None:
    error = events.Error(None, "bad_message", "no", fatal, False)
    assert said(sender(), error) == {"error": {"code": "bad_message", "message": "no"}}


@pytest.mark.parametrize(
    "event",
    [
        events.Final(1, " ", 0.0, 1.0),
        events.Partial("", 0.0, 1.0),
        events.SpeechStarted(1, 0.0),
        events.SpeechEnded(2, 1.0),
        events.Ack(1, 0),
        events.Warning(1, "clipping", "loud"),
        events.Joined("room", "waiting", 0),
        events.Ready("room", "x", "en", AudioFormat(), True, 1, 1, 1),
        events.Closed(9, "stopped", 1, 1, 1.0),
        events.Closed(None, "taken_over", 1, 1, 1.0),
    ],
)
def test_the_rest_is_not_said(event: events.ServerEvent) -> None:
    assert said(sender(partials="true"), event) is None
