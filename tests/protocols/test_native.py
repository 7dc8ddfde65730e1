"""The native codec, without a socket: what is understood, what is refused, and that nothing else can happen."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.base import Word
from bridge.audio.formats import AudioFormat, Encoding
from bridge.errors import BridgeError
from bridge.protocols import events, native
from bridge.protocols.events import Audio, ClientEvent, Flush, Start, Stop
from bridge.protocols.native import TRANSITIONS, Kind, NativeCodec, State

T = TypeVar("T")

MESSAGES: Mapping[Kind, str] = {
    "start": '{"type":"start"}',
    "audio": '{"type":"audio","data":"AAAA"}',
    "flush": '{"type":"flush"}',
    "stop": '{"type":"stop"}',
}
EVENTS: Mapping[Kind, ClientEvent] = {"start": Start(), "audio": Audio(bytes(3)), "flush": Flush(), "stop": Stop()}
WAY_TO: Mapping[State, list[Kind]] = {"connected": [], "streaming": ["start"], "stopped": ["start", "stop"]}
KINDS = st.sampled_from(get_args(Kind))


def in_state(state: State) -> NativeCodec:
    codec = NativeCodec()
    for kind in WAY_TO[state]:
        codec.receive_text(MESSAGES[kind])
    return codec


def code_of(codec: NativeCodec, text: str) -> str:
    with pytest.raises(BridgeError) as caught:
        codec.receive_text(text)
    return caught.value.code


def outcome(action: Callable[[], T]) -> T | BridgeError:
    """What the action returns, or the refusal; nothing else may come out of it."""
    try:
        return action()
    except BridgeError as exc:
        return exc


def allowed(codec: NativeCodec) -> set[Kind]:
    """What the codec would take now, found out on copies of it."""
    taken = set()
    for kind in get_args(Kind):
        copy = NativeCodec()
        copy.__dict__.update(codec.__dict__)
        if not isinstance(outcome(lambda: copy.receive_text(MESSAGES[kind])), BridgeError):  # noqa: B023 - run at once
            taken.add(kind)
    return taken


# Order


@pytest.mark.parametrize("state", get_args(State))
@pytest.mark.parametrize("kind", get_args(Kind))
def test_each_message_in_each_state(state: State, kind: Kind) -> None:
    codec = in_state(state)
    before = allowed(codec)
    if (state, kind) in TRANSITIONS:
        assert codec.receive_text(MESSAGES[kind]) == [EVENTS[kind]]
        assert allowed(codec) == {k for s, k in TRANSITIONS if s == TRANSITIONS[state, kind]}
    else:
        assert code_of(codec, MESSAGES[kind]) == "bad_order"
        assert allowed(codec) == before


def test_binary_audio_needs_a_session() -> None:
    for state in ("connected", "stopped"):
        codec = in_state(state)
        with pytest.raises(BridgeError, match="audio") as caught:
            codec.receive_bytes(b"\0\0")
        assert caught.value.code == "bad_order"
    codec = in_state("streaming")
    assert codec.receive_bytes(b"\1\2\3") == Audio(b"\1\2\3")
    assert codec.receive_bytes(b"") == Audio(b"")


@given(st.lists(KINDS | st.just("binary"), max_size=12))
def test_any_order_follows_the_table(kinds: list[Any]) -> None:
    codec, state = NativeCodec(), "connected"
    for kind in kinds:
        row: Any = (state, "audio" if kind == "binary" else kind)
        if kind == "binary":
            got: Any = outcome(lambda: codec.receive_bytes(b"\0\0"))
        else:
            got = outcome(lambda: codec.receive_text(MESSAGES[kind]))  # noqa: B023 - run at once
        if isinstance(got, BridgeError):
            assert row not in TRANSITIONS
            assert got.code == "bad_order"
        else:
            state = TRANSITIONS[row]


# Garbage

ANY_TEXT = st.text(st.characters(), max_size=200)  # lone surrogates included
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
    max_leaves=12,
)
FIELD_NAMES = sorted(
    {name for message in get_args(native.ClientMessage) for name in message.__struct_fields__}
    | {"type", "content", "audio_id"}
)
ALMOST = st.dictionaries(
    st.sampled_from(FIELD_NAMES),
    st.sampled_from(["start", "audio", "flush", "stop", "AAAA", "pcm_s16le", 16_000, 0, 10**30, -1, 1e300]) | ANY_JSON,
    max_size=6,
)


@given(st.sampled_from(get_args(State)), ANY_TEXT | ANY_JSON.map(json.dumps) | ALMOST.map(json.dumps))
def test_nothing_but_coded_errors_comes_of_garbage(state: State, text: str) -> None:
    codec = in_state(state)
    before = allowed(codec)
    got = outcome(lambda: codec.receive_text(text))
    if isinstance(got, BridgeError):
        assert len(str(got)) < 400
        assert got.fatal or allowed(codec) == before
    else:
        assert got
        assert state != "stopped"


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_json_followed_by_junk(head: bytes, tail: bytes) -> None:
    """A fault of the first object must not hide what follows it."""
    for start in ('{"a":1}', '{"content":"AAAA"}', '{"type":"start"}'):
        text = head.decode("latin-1") + start + tail.decode("latin-1")
        got = outcome(lambda: NativeCodec().receive_text(text))  # noqa: B023 - run at once
        if isinstance(got, BridgeError):
            assert got.code in ("bad_message", "bad_start")
        else:
            assert not (head + tail).strip(b" \t\r\n")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "bad_message"),
        ("{", "bad_message"),
        ("null", "bad_message"),
        ("[]", "bad_message"),
        ("{}", "bad_message"),
        ('"\ud800"', "bad_message"),
        (r'{"type":"start","language":"\ud800"}', "bad_message"),
        ("[" * 100_000, "bad_message"),
        ('{"a":' * 100_000, "bad_message"),
        ('{"type":"flush","a":' + "[" * 100_000 + "]" * 100_000 + "}", "bad_message"),
        ('{"type":"start","phrases":' + "[" * 100_000, "bad_start"),
        ('{"type":"start","sample_rate":"16000"}', "bad_start"),
        ('{"type":"start","sample_rate":16000.0}', "bad_start"),
        ('{"type":"start","sample_rate":' + "9" * 5_000 + "}", "bad_start"),
        ('{"type":"start","sample_rate":1e999}', "bad_start"),
        ('{"type":"start","partials":1}', "bad_start"),
        ('{"type":"start","language":""}', "bad_start"),
        ('{"type":"start","language":"' + "x" * 36 + '"}', "bad_start"),
        ('{"type":"start","phrases":["' + "x" * 101 + '"]}', "bad_start"),
        ('{"type":"start","phrases":[""]}', "bad_start"),
        ('{"type":"start","phrases":' + json.dumps(["a"] * 501) + "}", "bad_start"),
        ('{"type":"start","sample_rate":7999}', "unsupported_audio"),
        ('{"type":"start","sample_rate":192001}', "unsupported_audio"),
        ('{"type":"start","sample_rate":-1}', "unsupported_audio"),
        ('{"type":"start","channels":0}', "unsupported_audio"),
        ('{"type":"start","channels":9}', "unsupported_audio"),
        ('{"type":"start","encoding":"mp5"}', "unsupported_audio"),
        ('{"type":"speak"}', "unknown_type"),
        ('{"type":7}', "unknown_type"),
        ('{"type":null}', "unknown_type"),
        ('{"content":7}', "bad_message"),
        ('{"content":"AAAA","audio_id":1.5}', "bad_message"),
        ('{"content":"AAAA","audio_id":' + "9" * 30 + "}", "bad_message"),
        ('{"content":"AAAA","audio_id":"' + "x" * 201 + '"}', "bad_message"),
        ('{"content":"!"}', "bad_audio"),
    ],
)
def test_refusal(text: str, code: str) -> None:
    codec = NativeCodec()
    assert code_of(codec, text) == code
    if code not in ("bad_start", "unsupported_audio"):
        assert codec.receive_text(MESSAGES["start"]) == [Start()]


@pytest.mark.parametrize("data", ["A", "AAA", "AA==A", "A A=", "AAAA\\n", "é", "-_-_", "====", "\\u0000"])
def test_not_base64(data: str) -> None:
    codec = in_state("streaming")
    assert code_of(codec, f'{{"type":"audio","data":"{data}"}}') == "bad_audio"
    assert codec.receive_text(MESSAGES["audio"]) == [Audio(bytes(3))]


@given(st.binary(max_size=300))
def test_base64_round_trip(data: bytes) -> None:
    text = json.dumps({"type": "audio", "data": b64encode(data).decode()})
    assert in_state("streaming").receive_text(text) == [Audio(data)]


def test_unknown_fields_are_ignored() -> None:
    text = '{"x":[1,{"type":"stop"}],"type":"start","sample_rate":8000,"model":null}'
    assert NativeCodec().receive_text(text) == [Start(AudioFormat(sample_rate=8_000))]


def test_unknown_type_hurts_nothing() -> None:
    codec = in_state("streaming")
    with pytest.raises(BridgeError, match="keepalive") as caught:
        codec.receive_text('{"type":"keepalive"}')
    assert caught.value.code == "unknown_type"
    assert not caught.value.fatal
    assert codec.receive_text(MESSAGES["flush"]) == [Flush()]


# Start


def test_start_in_full() -> None:
    text = json.dumps(
        {
            "type": "start",
            "encoding": "MuLaw",
            "sample_rate": 8_000,
            "channels": 2,
            "language": "de-DE",
            "partials": False,
            "words": False,
            "phrases": ["ten of clubs", "ace"],
        }
    )
    assert NativeCodec().receive_text(text) == [
        Start(AudioFormat(Encoding.MULAW, 8_000, 2), "de-DE", False, False, ("ten of clubs", "ace"))
    ]


@pytest.mark.parametrize(
    ("query", "start"),
    [
        ({}, None),
        ({"token": "secret", "type": "stop", "x": "1"}, None),
        ({"sample_rate": "8000"}, Start(AudioFormat(sample_rate=8_000))),
        ({"encoding": "pcmu", "channels": "2"}, Start(AudioFormat(Encoding.MULAW, channels=2))),
        ({"partials": "false", "words": "0"}, Start(partials=False, words=False)),
        ({"partials": "true", "words": "1"}, Start()),
        ({"language": "en-GB", "token": "secret"}, Start(language="en-GB")),
        ({"phrases": " ten of clubs, ace,,"}, Start(phrases=("ten of clubs", "ace"))),
        ({"phrases": ""}, Start()),
    ],
)
def test_query(query: dict[str, str], start: Start | None) -> None:
    codec = NativeCodec(query)
    assert codec.opening() == start
    assert allowed(codec) == ({"start"} if start is None else {"audio", "flush", "stop"})


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"sample_rate": "fast"}, "bad_start"),
        ({"sample_rate": ""}, "bad_start"),
        ({"sample_rate": "9" * 5_000}, "bad_start"),
        ({"partials": "maybe"}, "bad_start"),
        ({"language": ""}, "bad_start"),
        ({"phrases": "x" * 101}, "bad_start"),
        ({"sample_rate": "192001"}, "unsupported_audio"),
        ({"endpoint_silence_ms": "50"}, "bad_start"),
        ({"speech_threshold": "nan"}, "bad_start"),
        ({"channel_mode": "both"}, "bad_start"),
        ({"encoding": "speex"}, "unsupported_audio"),
    ],
)
def test_bad_query(query: dict[str, str], code: str) -> None:
    with pytest.raises(BridgeError) as caught:
        NativeCodec(query).opening()
    assert caught.value.code == code


@given(st.dictionaries(st.sampled_from(FIELD_NAMES), st.text(max_size=50), max_size=4))
def test_any_query_is_understood_or_refused(query: dict[str, str]) -> None:
    got = outcome(lambda: NativeCodec(query).opening())
    if isinstance(got, BridgeError):
        assert got.code in ("bad_start", "unsupported_audio")


# The legacy shape


def test_legacy_client() -> None:
    codec = NativeCodec()
    assert codec.receive_text('{"content":"AAAA","audio_id":"a1"}') == [Start(), Audio(bytes(3))]
    assert codec.receive_text('{"content":"AAAA","audio_id":7}') == [Audio(bytes(3))]
    assert json.loads(codec.encode(events.Partial("a", 0, 1)))["audio_id"] == 7
    assert json.loads(codec.encode(events.Final(1, "a", 0, 1)))["audio_id"] == 7
    assert codec.receive_text(MESSAGES["stop"]) == [Stop()]
    assert code_of(codec, '{"content":"AAAA"}') == "bad_order"


def test_legacy_audio_that_is_refused_starts_nothing() -> None:
    codec = NativeCodec()
    assert code_of(codec, '{"content":"not base64"}') == "bad_audio"
    assert codec.receive_text('{"content":"AAAA"}') == [Start(), Audio(bytes(3))]


@given(st.text(st.characters(codec="utf-8"), max_size=200) | st.integers(-(2**63), 2**63 - 1))
def test_every_audio_id_that_is_taken_comes_back(audio_id: str | int) -> None:
    codec = NativeCodec()
    codec.receive_text(json.dumps({"content": "AAAA", "audio_id": audio_id}))
    assert json.loads(codec.encode(events.Partial("", 0, 0)))["audio_id"] == audio_id


# What the server says

WORDS = (Word("hello", 0.5, 0.9, 0.75, "A"), Word("you", 0.9, 1.0))
WORD_OBJECTS = [
    {"text": "hello", "start": 0.5, "end": 0.9, "confidence": 0.75, "speaker": "A"},
    {"text": "you", "start": 0.9, "end": 1.0},
]


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (
            events.Ready("id", "scripted", "en-US", AudioFormat(Encoding.ALAW, 8_000, 2), True, 3600.0, 60.0, 1024),
            {
                "type": "ready",
                "protocol": 1,
                "session_id": "id",
                "backend": "scripted",
                "language": "en-US",
                "encoding": "alaw",
                "sample_rate": 8_000,
                "channels": 2,
                "partials": True,
                "limits": {"session_seconds": 3600.0, "idle_seconds": 60.0, "message_bytes": 1024},
                "resume_token": None,
                "resume_seconds": 0,
                "resumed": False,
                "last_seq": 0,
                "received": 0,
                "received_bytes": 0,
                "finalized": 0,
                "trace_id": None,
            },
        ),
        (
            events.Joined("id", "held", 7),
            {"type": "joined", "protocol": 1, "session_id": "id", "state": "held", "last_seq": 7},
        ),
        (
            events.Closed(None, "shutting_down", 16_000, 8_000, 1.0),
            {"type": "closed", "code": "shutting_down", "received": 16_000, "finalized": 8_000, "duration": 1.0},
        ),
        (events.SpeechStarted(1, 0.5), {"type": "speech_started", "seq": 1, "start": 0.5}),
        (events.Partial("hello", 0.5, 1.0), {"type": "partial", "text": "hello", "start": 0.5, "end": 1.0}),
        (
            events.Partial("hello you", 0.5, 1.0, 0.25, WORDS),
            {
                "type": "partial",
                "text": "hello you",
                "start": 0.5,
                "end": 1.0,
                "stability": 0.25,
                "words": WORD_OBJECTS,
            },
        ),
        (
            events.Partial("hello you", 0.5, 1.0, committed=5),
            {"type": "partial", "text": "hello you", "start": 0.5, "end": 1.0, "committed": 5},
        ),
        (
            events.Partial("hello you", 0.5, 1.0, committed=0),
            {"type": "partial", "text": "hello you", "start": 0.5, "end": 1.0, "committed": 0},
        ),
        (events.Final(2, "", 0.5, 1.0), {"type": "final", "seq": 2, "text": "", "start": 0.5, "end": 1.0}),
        (
            events.Final(2, "hello you", 0.5, 1.0, WORDS, 0.5, "en-GB"),
            {
                "type": "final",
                "seq": 2,
                "text": "hello you",
                "start": 0.5,
                "end": 1.0,
                "words": WORD_OBJECTS,
                "confidence": 0.5,
                "language": "en-GB",
            },
        ),
        (events.Ack(16_000, 8_000), {"type": "ack", "received": 16_000, "finalized": 8_000}),
        (
            events.Warning(3, "wav_header", "skipped"),
            {"type": "warning", "seq": 3, "code": "wav_header", "message": "skipped"},
        ),
        (
            events.Error(None, "bad_message", "no", False, False),
            {"type": "error", "code": "bad_message", "message": "no", "fatal": False, "retryable": False},
        ),
        (
            events.Error(4, "internal", "no", True, True),
            {"type": "error", "code": "internal", "message": "no", "fatal": True, "retryable": True, "seq": 4},
        ),
        (
            events.Closed(5, "stopped", 16_000, 16_000, 1.0),
            {
                "type": "closed",
                "seq": 5,
                "code": "stopped",
                "received": 16_000,
                "finalized": 16_000,
                "duration": 1.0,
            },
        ),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, dict) else "",
)
def test_encode(event: events.ServerEvent, message: dict[str, Any]) -> None:
    text = NativeCodec().encode(event)
    assert json.loads(text) == message
    msgspec.json.decode(text, type=native.ServerMessage)


@given(
    st.builds(
        events.Final,
        st.integers(1, 2**53),
        st.text(st.characters(codec="utf-8")),
        st.floats(0, 1e6),
        st.floats(0, 1e6),
        st.lists(st.builds(Word, st.text(st.characters(codec="utf-8")), st.floats(0, 1e6), st.floats(0, 1e6))).map(
            tuple
        ),
        st.none() | st.floats(0, 1),
    )
)
def test_finals_survive_the_wire(event: events.Final) -> None:
    decoded = msgspec.json.decode(NativeCodec().encode(event), type=native.ServerMessage)
    assert isinstance(decoded, native.FinalMessage)
    assert (decoded.seq, decoded.text, decoded.start, decoded.end) == (event.seq, event.text, event.start, event.end)
    assert decoded.confidence == event.confidence
    assert [(w.text, w.start, w.end) for w in decoded.words] == [(w.text, w.start, w.end) for w in event.words]
