"""Garbage of every kind against a real server while a well-behaved session goes on beside it.

Each input must meet a coded error, a close frame with a code, an HTTP refusal or the end of the connection, within a
limit. Afterwards the server is as before: it answers, takes sessions, holds no connection and no memory, and its log
shows no traceback. The witness's transcript is complete.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
import struct
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import pytest

from backends.scripted import marker_audio
from bridge.audio.formats import Encoding
from tests.conftest import Spawn
from tests.wire import (
    BINARY,
    CLOSE,
    CONT,
    PATH,
    PING,
    PONG,
    TEXT,
    Outcome,
    Process,
    Wire,
    eventually,
    frame,
    get,
    http_get,
    markers,
    metric,
    text,
    upgrade,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads memory and descriptors from /proc")

SEED: Final = 20_261_104
AT_ONCE: Final = 12
LIMIT: Final = 40.0
"""Seconds for one input: the longest clock that it can meet is the server's ten seconds for a request's head."""
MEMORY: Final = 30 * 2**20
"""Bytes that the process may have grown by in the end: the allocator gives pages back late."""
LARGE: Final = 100 * 2**20

ENV: Final = {
    "STT_SCRIPTED_MODE": "markers",
    "STT_START_SECONDS": "1",
    "STT_IDLE_SECONDS": "2",
    "STT_RESUME_SECONDS": "0.5",
    "STT_SEND_SECONDS": "2",
    "STT_PING_SECONDS": "1",
    "STT_PING_TIMEOUT_SECONDS": "2",
}

Stage = Literal["tcp", "upgraded", "session"]
STOP: Final = text({"type": "stop"})


@dataclass(frozen=True)
class Input:
    """One piece of garbage: how far the connection goes before it, what is sent, how the sending ends, what may follow.

    `expect` holds codes of error messages, codes of close frames and HTTP statuses; the first that the client saw must
    be among them. `"end"` is the end of the connection without a word. `reads` False: the client does not read until
    the server has given up.
    """

    name: str
    stage: Stage
    data: tuple[bytes, ...]
    expect: frozenset[str | int]
    start: tuple[tuple[str, Any], ...] = ()
    end: Literal["wait", "half", "reset"] = "wait"
    reads: bool = True


def inputs(rng: random.Random) -> Iterator[Input]:
    """All of them."""
    yield from messages(rng)
    yield from audio(rng)
    yield from wav_headers(rng)
    yield from wrong_order()
    yield from frames(rng)
    yield from floods()
    yield from requests(rng)
    yield from half_things()
    yield from cut_connections(rng)


def messages(rng: random.Random) -> Iterator[Input]:
    """Text messages that are no messages. The session goes on: `stop` follows, and is obeyed."""
    wrong: list[tuple[str, str]] = [
        ("empty", ""),
        ("blank", " \n\t"),
        ("nul", "\0" * 100),
        ("bom", '\ufeff{"type":"flush"}'),
        ("half", '{"type":"flu'),
        ("twice", '{"type":"flush"}{"type":"flush"}'),
        ("nan", '{"type":NaN}'),
        ("number", "1e999"),
        ("digits", "9" * 100_000),
        ("null", "null"),
        ("string", '"stop"'),
        ("array", '["stop"]'),
        ("object", "{}"),
        ("deep-array", "[" * 100_000),
        ("deep-array-closed", "[" * 100_000 + "]" * 100_000),
        ("deep-object", '{"a":' * 100_000),
        ("deep-in-field", '{"type":"flush","x":' + "[" * 50_000 + "]" * 50_000 + "}"),
        ("deep-legacy", '{"content":"","x":' + '{"y":' * 50_000 + "1" + "}" * 50_000 + "}"),
        ("surrogate", '{"type":"\\ud800"}'),
        ("surrogate-data", '{"type":"audio","data":"\\udfff"}'),
        ("key-number", '{1:"stop"}'),
        ("type-number", '{"type":5}'),
        ("type-null", '{"type":null}'),
        ("type-array", '{"type":["stop"]}'),
        ("type-case", '{"type":"Stop"}'),
        ("type-long", '{"type":"' + "x" * 500_000 + '"}'),
        ("type-server", '{"type":"closed","seq":1}'),
        ("data-missing", '{"type":"audio"}'),
        ("data-number", '{"type":"audio","data":12}'),
        ("data-array", '{"type":"audio","data":[0,0]}'),
        ("data-object", '{"type":"audio","data":{"0":0}}'),
        ("legacy-number", '{"content":1}'),
        ("legacy-id", '{"content":"AAAA","audio_id":{"a":1}}'),
        ("legacy-id-float", '{"content":"AAAA","audio_id":1.5}'),
        ("no-base64", '{"type":"audio","data":"***"}'),
        ("base64-cut", '{"type":"audio","data":"AAAAA"}'),
        ("base64-url", '{"type":"audio","data":"-_-_"}'),
        ("base64-space", '{"type":"audio","data":"AA AA"}'),
        ("base64-padding", '{"type":"audio","data":"=AAA"}'),
        ("base64-unicode", '{"type":"audio","data":"ÄÖÜß"}'),
        ("legacy-no-base64", '{"content":"%%%%","audio_id":"a"}'),
        ("start-again", '{"type":"start"}'),
        ("start-wrong", '{"type":"start","sample_rate":[]}'),
        ("start-rate", '{"type":"start","sample_rate":1e400}'),
    ]
    wrong += [(f"random-{i}", _random_text(rng)) for i in range(15)]
    wrong += [(f"mutated-{i}", _mutated(rng)) for i in range(15)]
    codes = frozenset({"bad_message", "unknown_type", "bad_audio", "bad_order"})
    for name, message in wrong:
        yield Input(f"message-{name}", "session", (text(message), STOP), codes)
    # What is odd, and allowed: it must not break anything later on either.
    for name, message in [
        ("unknown-field", '{"type":"flush","when":"now","type2":[1,{"a":2}]}'),
        ("double-key", '{"type":"stop","type":"flush"}'),
        ("legacy-id-huge", '{"content":"AAAA","audio_id":' + "9" * 400 + "}"),
        ("legacy-id-surrogate", '{"content":"AAAA","audio_id":"\\ud83d"}'),
        ("legacy-id-long", json.dumps({"content": "AAAA", "audio_id": "x" * 10_000})),
    ]:
        speech = frame(BINARY, marker_audio(2))
        yield Input(f"odd-{name}", "session", (text(message), speech, STOP), codes | {1000})


def _random_text(rng: random.Random) -> str:
    return "".join(
        chr(rng.choice([rng.randrange(32, 127), rng.randrange(160, 0xD7FF)])) for _ in range(rng.randrange(300))
    )


def _mutated(rng: random.Random) -> str:
    """A right message with a few characters changed so that it is no JSON any more."""
    chars = list('{"type":"audio","data":"AAAAAAAAAAAAAAAA"}')
    for _ in range(rng.randrange(1, 4)):
        chars[rng.randrange(1, len(chars) - 1)] = rng.choice('{}[]",:\\\0é')
    return "}" + "".join(chars)


UNDECODABLE: Final[frozenset[str | int]] = frozenset({"undecodable_audio", "unsupported_audio", 1000})
"""How a session may end whose coded audio is garbage."""


def audio(rng: random.Random) -> Iterator[Input]:
    """Random bytes are audio, whatever they were meant to be; and formats that are none."""
    start: dict[str, Any]
    for index, encoding in enumerate([*Encoding, *Encoding]):
        ends = frozenset({1000}) if encoding.width else UNDECODABLE
        start = {
            "encoding": encoding.value,
            "sample_rate": rng.choice([8_000, 11_025, 22_050, 44_100, 48_000, 16_001]),
            "channels": rng.randrange(1, 9),
        }
        pieces = tuple(frame(BINARY, rng.randbytes(rng.randrange(5_000))) for _ in range(8))
        yield Input(f"audio-{encoding.value}-{index}", "session", (*pieces, STOP), ends, tuple(start.items()))
    for magic in (b"OggS\0\2", b"\x1aE\xdf\xa3", b"fLaC\0\0\0\x22", b"ID3\4\0\0", b"\0\0\0\x18ftypiso5", b"#!AMR-WB\n"):
        piece = frame(BINARY, magic + rng.randbytes(20_000))
        yield Input(f"audio-{magic[:4].hex()}", "session", (piece, piece, STOP), UNDECODABLE)
    odd_floats = struct.pack("<6f", float("nan"), float("inf"), float("-inf"), 3e38, -3e38, 1e-45) * 1_000
    floats = (("encoding", "pcm_f32le"), ("sample_rate", 44_100))
    yield Input("audio-floats", "session", (frame(BINARY, odd_floats), STOP), frozenset({1000}), floats)
    for start in (
        {"sample_rate": 0},
        {"sample_rate": 2**63},
        {"sample_rate": -(2**70)},
        {"sample_rate": 16_000.5},
        {"channels": 2**31},
        {"encoding": "\0"},
        {"encoding": "x" * 1_000},
        {"encoding": None},
        {"language": "x" * 36},
        {"language": 5},
        {"phrases": [""]},
        {"phrases": ["a"] * 501},
        {"phrases": [["a"]]},
        {"partials": "yes"},
    ):
        allowed: frozenset[str | int] = frozenset({"bad_start", "unsupported_audio", "bad_message"})
        yield Input(f"start-{start}"[:60], "upgraded", (text({"type": "start"} | start),), allowed)
        query = "&".join(f"{k}={v}" for k, v in start.items() if k in {"sample_rate", "channels"})
        if query:
            yield Input(f"query-{query}", "tcp", (upgrade(f"{PATH}?{query}"),), allowed)


def wav_headers(rng: random.Random) -> Iterator[Input]:
    """Headers that lie, contradict or break off."""
    answers = UNDECODABLE | {"bad_audio"}
    fields = (1, 1, 16_000, 32_000, 2, 16)
    for index in range(16):
        changed = list(fields)
        at = rng.randrange(len(fields))
        changed[at] = rng.choice([0, 1, 2, 3, 8, 255, 8_000, 44_100, 65_535])
        sizes = [rng.choice([0, 1, 15, 16, 2**31, 2**32 - 1]) for _ in range(3)]
        body = struct.pack("<4sI4s4sI", b"RIFF", sizes[0], b"WAVE", b"fmt ", sizes[1] if index % 2 else 16)
        body += struct.pack("<HHIIHH", *changed) + struct.pack("<4sI", b"data", sizes[2])
        body = body[: rng.choice([len(body), rng.randrange(12, len(body))])]
        for start in ((), (("encoding", "pcm_s16le"),)):
            messages = (frame(BINARY, body + bytes(2_000)), STOP)
            yield Input(f"wav-{index}-{len(start)}", "session", messages, answers, start)
    chunks = b"RIFF\xff\xff\xff\xffWAVE" + b"junk\0\0\0\0" * 60_000  # as many chunks as a message holds
    yield Input("wav-chunks", "session", (frame(BINARY, chunks), STOP), answers)
    legacy = {"content": base64.b64encode(b"RIFF\0\0\0\0WAVEfmt ").decode(), "audio_id": 1}
    yield Input("wav-legacy-first", "upgraded", (text(legacy), STOP), answers)


def wrong_order() -> Iterator[Input]:
    """Right messages at the wrong time."""
    order: frozenset[str | int] = frozenset({"bad_order"})
    sound = frame(BINARY, bytes(3_200))
    for name, data in [
        ("flush-first", text({"type": "flush"})),
        ("stop-first", STOP),
        ("audio-first", sound),
        ("audio-json-first", text({"type": "audio", "data": "AAAA"})),
    ]:
        yield Input(f"order-{name}", "upgraded", (data,), order)
    yield Input("order-many", "upgraded", (sound * 25,), order)
    yield Input("order-start-twice", "session", (text({"type": "start"}), STOP), order)
    for name, data in [("stop", STOP), ("audio", sound), ("flush", text({"type": "flush"}))]:
        yield Input(f"order-{name}-after-stop", "session", (STOP + data * 30,), order | {1000})


def frames(rng: random.Random) -> Iterator[Input]:
    """Frames that RFC 6455 forbids, before and during a session."""
    protocol: frozenset[str | int] = frozenset({1002})
    invalid: frozenset[str | int] = frozenset({1007})
    bad_text = b"caf\xe9 \xff\xfe"
    broken: list[tuple[str, bytes, frozenset[str | int]]] = [
        ("unmasked", frame(BINARY, bytes(10), masked=False), protocol),
        ("unmasked-text", frame(TEXT, b'{"type":"flush"}', masked=False), protocol),
        *((f"rsv-{rsv}", frame(BINARY, bytes(10), rsv=rsv), protocol) for rsv in (1, 2, 4, 7)),
        *((f"opcode-{op}", frame(op, b"x"), protocol) for op in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)),
        ("long-ping", frame(PING, bytes(126)), protocol),
        ("long-close", frame(CLOSE, b"\x03\xe8" + b"x" * 200), protocol),
        ("split-ping", frame(PING, b"x", fin=False), protocol),
        ("split-close", frame(CLOSE, b"\x03\xe8", fin=False), protocol),
        ("continuation-alone", frame(CONT, b"x"), protocol),
        ("message-in-message", frame(BINARY, b"x", fin=False) + frame(BINARY, b"y"), protocol),
        ("close-in-message", frame(BINARY, b"x", fin=False) + frame(CLOSE, b"\x03\xe8"), protocol),
        ("close-byte", frame(CLOSE, b"\x03"), protocol),
        ("close-utf8", frame(CLOSE, b"\x03\xe8\xff\xff"), protocol | invalid),
        *(
            (f"close-{code}", frame(CLOSE, code.to_bytes(2)), protocol)
            for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535)
        ),
        ("length-2-63", b"\x82\xff" + b"\xff" * 8 + bytes(4), protocol | {1009}),
        ("length-2-62", b"\x82\xff" + b"\x3f" + b"\xff" * 7 + bytes(4), frozenset({1009})),
        ("bad-utf8", frame(TEXT, bad_text), invalid),
        ("bad-utf8-split", frame(TEXT, b"\xc3", fin=False) + frame(CONT, b"("), invalid),
        ("bad-utf8-then-close", frame(TEXT, bad_text) + frame(CLOSE, b"\x03\xe8"), invalid | {1000}),
        ("bad-utf8-then-frames", frame(TEXT, bad_text) + frame(BINARY, bytes(100)) * 50, invalid),
        ("bad-utf8-in-type", frame(TEXT, b'{"type":"\xff"}'), invalid),
        ("bad-frame-then-more", frame(3, b"") + frame(BINARY, bytes(1_000)) * 50, protocol),
    ]
    for name, data, expect in broken:
        yield Input(f"frame-{name}", "session", (data,), expect)
    for name, data, expect in rng.sample(broken, 8):
        yield Input(f"frame-{name}-early", "upgraded", (data,), expect)
    for index in range(12):
        junk = rng.randbytes(rng.randrange(20, 2_000))
        codes: frozenset[str | int] = frozenset(
            {"bad_order", "bad_message", "start_timeout", 1002, 1007, 1009, 1000, 1005, "end"}
        )
        yield Input(f"frame-random-{index}", "upgraded", (junk,), codes)
    for code in (1000, 1001, 1003, 3000, 4999):
        yield Input(f"close-fine-{code}", "session", (frame(CLOSE, code.to_bytes(2) + b"bye"),), frozenset({code}))
    yield Input("close-empty", "session", (frame(CLOSE),), frozenset({1005}))


def floods() -> Iterator[Input]:
    """Much of what is small, and what is too much."""
    piece = bytes(2**20)
    too_large: frozenset[str | int] = frozenset({1009})
    head = b"\x82\xff" + LARGE.to_bytes(8) + bytes(4)
    yield Input("large-frame", "session", (head, *[piece] * (LARGE // len(piece))), too_large)
    yield Input("large-frame-early", "upgraded", (head, *[piece] * (LARGE // len(piece))), too_large)
    parts = [frame(BINARY, piece[:65_536], fin=False), *[frame(CONT, piece[:65_536], fin=False)] * (LARGE // 65_536)]
    yield Input("large-fragments", "session", tuple(parts), too_large)
    head_text = b"\x81\xff" + LARGE.to_bytes(8) + bytes(4)
    yield Input("large-json", "session", (head_text, *[b"[" * 2**20] * (LARGE // 2**20)), too_large)
    nothing = frame(CONT, fin=False) * 10_000
    opened = frame(BINARY, fin=False)
    idle: frozenset[str | int] = frozenset({"idle_timeout"})
    yield Input("continuations-empty", "session", (opened, *[nothing] * 20), idle)
    byte = frame(CONT, b"x", fin=False) * 10_000
    yield Input("continuations-byte", "session", (opened, *[byte] * 20, frame(CONT), STOP), idle | {1000})
    yield Input("continuations-endless", "session", (opened, *[byte] * 110), too_large | idle)
    yield Input("messages-empty", "session", (*[frame(BINARY) * 5_000] * 4, STOP), frozenset({1000}))
    yield Input("messages-text-empty", "session", (frame(TEXT) * 20_000,), frozenset({"bad_message"}))
    yield Input("messages-byte", "session", (*[frame(BINARY, b"\1") * 5_000] * 4, STOP), frozenset({1000}))
    yield Input("flushes", "session", (*[text({"type": "flush"}) * 1_000] * 10, STOP), frozenset({1000}))
    yield Input("pings", "session", (*[frame(PING, bytes(125)) * 1_000] * 10, STOP), idle | {1000})
    yield Input("pongs", "session", (*[frame(PONG, bytes(125)) * 1_000] * 10, STOP), idle | {1000})
    # These do not read: their pongs and errors fill every buffer on the way. The clocks of start and idle end them.
    gone: frozenset[str | int] = frozenset({"end"})
    yield Input("pings-unread", "session", tuple([frame(PING, bytes(125)) * 1_000] * 200), gone, reads=False)
    yield Input("pings-unread-early", "upgraded", tuple([frame(PING, bytes(125)) * 1_000] * 200), gone, reads=False)


def requests(rng: random.Random) -> Iterator[Input]:
    """Things that are no upgrade, or no HTTP at all."""
    client_error: frozenset[str | int] = frozenset({400, 404, 405, 408, 414, 426, 431, 501, 505})
    refused: frozenset[str | int] = frozenset({400, 408, "end"})
    yield from (
        Input(f"bytes-{i}", "tcp", (rng.randbytes(rng.randrange(1, 3_000)) + b"\r\n\r\n",), refused) for i in range(12)
    )
    host = "Host: x\r\n"
    for name, head in [
        ("tls", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + "\0" * 500),
        ("http2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("http9", f"GET / HTTP/9.9\r\n{host}\r\n"),
        ("no-version", f"GET /nowhere\r\n{host}\r\n"),
        ("lower", f"get / http/1.1\r\n{host}\r\n"),
        ("connect", "CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("no-path", f"GET  HTTP/1.1\r\n{host}\r\n"),
        ("absolute", f"GET http://evil.example/v1/x HTTP/1.1\r\n{host}\r\n"),
        ("path-bytes", f"GET /\xff\xfe HTTP/1.1\r\n{host}\r\n"),
        ("path-escapes", f"GET /%00%ff%2e%2e%2f HTTP/1.1\r\n{host}\r\n"),
        ("path-up", f"GET /../../etc/passwd HTTP/1.1\r\n{host}\r\n"),
        ("nul-header", "GET /x HTTP/1.1\r\nHost: x\0y\r\n\r\n"),
        ("no-colon", "GET /x HTTP/1.1\r\nHost\r\n\r\n"),
        ("folded", "GET /x HTTP/1.1\r\nHost: x\r\n  y\r\n\r\n"),
        ("bare-cr", "GET /x HTTP/1.1\rHost: x\r\r"),
        ("two-lengths", "POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
        ("negative-length", "POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n"),
        ("huge-length", f"POST /healthz HTTP/1.1\r\n{host}Content-Length: {10**30}\r\n\r\n"),
        (
            "smuggle-cl-te",
            f"POST /x HTTP/1.1\r\n{host}Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /",
        ),
        ("smuggle-te", f"POST /x HTTP/1.1\r\n{host}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        ("bad-chunk", f"POST /x HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
        ("lying-length", f"POST /healthz HTTP/1.1\r\n{host}Content-Length: 1000000\r\n\r\nshort"),
        ("delete", f"DELETE /metrics HTTP/1.1\r\n{host}Connection: close\r\n\r\n"),
        ("trace", f"TRACE / HTTP/1.1\r\n{host}Connection: close\r\n\r\n"),
        ("blank-lines", "\r\n" * 40_000),
    ]:
        yield Input(f"http-{name}", "tcp", (head.encode("latin-1"),), client_error | {"end"})
    for name, data in [
        ("one-header", (b"GET /x HTTP/1.1\r\nX: ", *[b"x" * 2**20] * 30)),
        ("header-name", (b"GET /x HTTP/1.1\r\n", *[b"x" * 2**20] * 30)),
        ("many-headers", (b"GET /x HTTP/1.1\r\n", *[b"X: y\r\n" * 10_000] * 100)),
        ("path", (b"GET /", *[b"x" * 2**20] * 30)),
        ("trailers", (b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", *[b"X: y\r\n" * 10_000] * 100)),
        (
            "body",
            (
                b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
                *[b"fffff\r\n" + bytes(0xFFFFF) + b"\r\n"] * 60,
            ),
        ),
    ]:
        yield Input(f"huge-{name}", "tcp", data, client_error)
    pipelined = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 1_000
    yield Input("pipelined-unread", "tcp", (pipelined,) * 10, frozenset({200, 400}), reads=False)
    for name, path, headers in [
        ("version", PATH, {"Sec-WebSocket-Version": "12"}),
        ("no-key", PATH, {"Sec-WebSocket-Key": ""}),
        ("short-key", PATH, {"Sec-WebSocket-Key": "AAAA"}),
        ("bad-key", PATH, {"Sec-WebSocket-Key": "*" * 24}),
        ("connection", PATH, {"Connection": "close"}),
        ("upgrade-h2c", PATH, {"Upgrade": "h2c"}),
        ("upgrade-list", PATH, {"Upgrade": "websocket, h2c"}),
        ("body", PATH, {"Content-Length": "10"}),
        ("chunked", PATH, {"Transfer-Encoding": "chunked"}),
        ("long-path", PATH + "?" + "x" * 20_000, {}),
        ("path-bytes", PATH + "/\xe9", {}),
        ("long-header", PATH, {"X-Long": "x" * 20_000}),
        ("many-headers", PATH, {f"X-{i}": "y" for i in range(200)}),
        ("extension-junk", "/nowhere", {"Sec-WebSocket-Extensions": "permessage-deflate; ;;=,,"}),
        ("protocol-junk", PATH, {"Sec-WebSocket-Protocol": ",,\x7f,("}),
        ("header-bytes", "/nowhere", {"X-Bytes": "\xff\xfe\x80"}),
    ]:
        yield Input(f"upgrade-{name}", "tcp", (upgrade(path, headers),), client_error)
    post = upgrade().replace(b"GET", b"POST", 1)
    yield Input("upgrade-post", "tcp", (post,), client_error)
    yield Input("upgrade-http10", "tcp", (upgrade().replace(b"HTTP/1.1", b"HTTP/1.0"),), client_error)
    yield Input("upgrade-no-host", "tcp", (upgrade("/nowhere").replace(b"Host: 127.0.0.1\r\n", b""),), client_error)


def half_things() -> Iterator[Input]:
    """What begins and never goes on: a clock ends it."""
    slow: frozenset[str | int] = frozenset({408})
    yield Input("half-nothing", "tcp", (), slow)
    yield Input("half-line", "tcp", (b"GET /v1/str",), slow)
    yield Input("half-headers", "tcp", (b"GET / HTTP/1.1\r\nHost: x\r\nX-A",), slow)
    yield Input("half-upgrade", "tcp", (upgrade()[:-2],), slow)
    late: frozenset[str | int] = frozenset({"start_timeout"})
    yield Input("half-no-start", "upgraded", (), late)
    yield Input("half-frame-head", "upgraded", (b"\x82",), late)
    idle: frozenset[str | int] = frozenset({"idle_timeout"})
    yield Input("half-idle", "session", (), idle)
    yield Input("half-frame", "session", (frame(BINARY, bytes(1_000))[:500],), idle)
    yield Input("half-message", "session", (frame(BINARY, bytes(1_000), fin=False),), idle)


def cut_connections(rng: random.Random) -> Iterator[Input]:
    """Ends at every stage: in order, by half and by reset."""
    cut: frozenset[str | int] = frozenset({"end", 101, 408, 1000, 1002, 1005, "bad_order"})
    whole = upgrade() + text({"type": "start"}) + frame(BINARY, marker_audio(2))
    for end in ("half", "reset"):
        for name, data in [
            ("nothing", b""),
            ("upgrade", upgrade()),
            ("all", whole),
            ("random", whole[: rng.randrange(len(whole))]),
        ]:
            yield Input(f"{end}-after-{name}", "tcp", (data,), cut, end=end)
        for stage in ("upgraded", "session"):
            for name, data in [
                ("nothing", b""),
                ("audio", frame(BINARY, marker_audio(3))),
                ("half-frame", frame(BINARY, marker_audio(3))[:7_000]),
                ("stop", frame(BINARY, marker_audio(3)) + STOP),
            ]:
                yield Input(f"{end}-{stage}-{name}", stage, (data,), cut, end=end)


# What happens to each


async def inflict(url: str, given: Input) -> tuple[Outcome, bool]:
    """Send one input. What came of it, and whether the server ended the connection by itself."""
    async with asyncio.timeout(LIMIT), Wire.open(url, **({} if given.reads else {"rcvbuf": 4_096})) as wire:
        if given.stage != "tcp":
            await wire.send(upgrade())
            await wire.response()
        if given.stage == "session":
            await wire.say({"type": "start"} | dict(given.start))
            await wire.until("ready")
        sending = asyncio.create_task(_send(wire, given))
        if given.end == "reset":
            await sending
            return wire.outcome, True
        if not given.reads:
            await wire.dropped(LIMIT)
        if given.stage == "tcp":
            await wire.response(LIMIT)
        await wire.finish(LIMIT)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        return wire.outcome, wire.outcome.ended


async def _send(wire: Wire, given: Input) -> None:
    with contextlib.suppress(OSError):
        for data in given.data:
            await wire.send(data)
        if given.end == "half":
            wire.half_close()
        elif given.end == "reset":
            wire.reset()


def verdict(outcome: Outcome) -> str | int:
    """The first thing that the server said about the input."""
    if outcome.status is not None and outcome.status != 101:
        return outcome.status
    if outcome.codes:
        return str(outcome.codes[0])
    closed = outcome.of("closed")
    if closed and closed[0]["code"] != "stopped":
        return str(closed[0]["code"])
    return outcome.close if outcome.close is not None else "end"


@contextlib.asynccontextmanager
async def witness(url: str) -> AsyncIterator[None]:
    """A session that streams marker audio all the while; its transcript must be whole."""
    over = asyncio.Event()
    async with Wire.stream(url, start={"partials": False}) as wire:
        reading = asyncio.create_task(wire.finish(300))

        async def stream() -> int:
            words = 0
            while not over.is_set():
                await wire.audio(marker_audio(1, first=words))
                words += 1
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(over.wait(), 0.02)
            await wire.say({"type": "stop"})
            return words

        streaming = asyncio.create_task(stream())
        try:
            yield
        finally:
            over.set()
            outcome = await reading
            assert outcome.close == 1000, outcome
            words = await streaming
        assert outcome.words == markers(words)
        assert words > 20
        assert outcome.codes == []
        assert outcome.messages[-1]["code"] == "stopped"


@pytest.fixture
def server(spawn: Spawn) -> Process:
    return spawn(ENV)


async def settled(server: Process, rss: int, fds: int, memory: int = MEMORY) -> None:
    """The server answers, and nothing is left of what it went through."""
    assert (await get(f"{server.url}/healthz")).status == 200
    await eventually(lambda: metric(http_get(f"{server.url}/metrics").body, "stt_sessions_open") == 0)
    await eventually(lambda: server.fds() <= fds)
    await eventually(lambda: server.rss() <= rss + memory)
    async with Wire.stream(server.url, start={}) as wire:
        await wire.audio(marker_audio(3))
        await wire.say({"type": "stop"})
        outcome = await wire.finish()
    assert outcome.words == markers(3)
    assert outcome.close == 1000
    server.assert_no_traceback()


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_garbage(server: Process) -> None:
    rng = random.Random(SEED)
    everything = list(inputs(rng))
    assert len(everything) >= 200
    assert len({given.name for given in everything}) == len(everything)
    rng.shuffle(everything)
    for given in audio(random.Random(SEED + 1)):  # every decoder has been loaded once: 35 MiB, not more the next time
        await inflict(server.url, given)
    await settled(server, 2**40, 10**6)  # what is imported late is there
    rss, fds = server.rss(), server.fds()
    gate = asyncio.Semaphore(AT_ONCE)
    wrong: list[str] = []
    peak = 0

    async def one(given: Input) -> None:
        nonlocal peak
        async with gate:
            try:
                outcome, ended = await inflict(server.url, given)
            except (AssertionError, OSError, TimeoutError, ValueError) as exc:
                wrong.append(f"{given.name}: {exc!r}"[:400])
                return
            peak = max(peak, server.rss())
            if verdict(outcome) not in given.expect or not ended:
                wrong.append(f"{given.name}: {verdict(outcome)} {'ended' if ended else 'open'}: {outcome}"[:400])

    async with witness(server.url):
        await asyncio.gather(*(one(given) for given in everything))
    print(f"{len(everything)} inputs; RSS {rss >> 20} MiB, at most {peak >> 20} MiB, ")  # noqa: T201 - a figure to read
    assert not wrong, "\n".join(wrong)
    await settled(server, rss, fds)
    print(f"in the end {server.rss() >> 20} MiB")  # noqa: T201
