"""What is cut out of the stream is what the library's own parser would have read, however the bytes come."""

from __future__ import annotations

import random

import pytest
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import SERVER, Protocol

from bridge.transports.frames import LARGEST, Frames, Kind, Piece

LIMIT = 70_000


def frame(opcode: int, data: bytes, *, fin: bool = True) -> bytes:
    return Frame(Opcode(opcode), data, fin=fin).serialize(mask=True)


def parser() -> Protocol:
    return Protocol(SERVER, max_size=LIMIT)


def read(protocol: Protocol) -> list[tuple[int, bytes, bool]]:
    """The frames that it has read since."""
    return [(e.opcode, bytes(e.data), e.fin) for e in protocol.events_received() if isinstance(e, Frame)]


def over(protocol: Protocol) -> bool:
    return protocol.parser_exc is not None or protocol.close_rcvd is not None


def through(frames: Frames, protocol: Protocol, data: bytes) -> list[tuple[int, bytes, bool]]:
    """What a connection reads that splits first."""
    found = []
    for kind, piece in frames.split(data):
        if kind is Kind.OTHER:
            protocol.receive_data(piece)
            found += read(protocol)
            if over(protocol):
                break
        else:
            found.append((kind.value, piece, True))
    return found


def conversation(rng: random.Random, *, valid: bool) -> bytes:
    """Frames of all kinds; what is not valid has its share of nonsense."""
    parts = []
    for _ in range(rng.randint(1, 30)):
        size = rng.choice((0, 1, 5, 125, 126, 127, 640, 3_200, 65_535, 65_536, LIMIT, rng.randint(0, 500)))
        data = rng.randbytes(size)
        match rng.randint(0, 7 if valid else 10):
            case 0:
                parts.append(frame(1, b"text" * (size // 8)))
            case 1:
                parts.append(frame(rng.choice((9, 10)), data[:125]))
            case 2:
                pieces = [data[:3], data[3:7], data[7:50]]
                kind = rng.choice((1, 2))
                parts.append(frame(kind, pieces[0], fin=False))
                if rng.random() < 0.5:
                    parts.append(frame(9, b"between"))
                parts.append(frame(0, pieces[1], fin=False))
                parts.append(frame(0, pieces[2]))
            case 8:
                parts.append(rng.randbytes(rng.randint(1, 20)))
            case 9:
                parts.append(Frame(Opcode.BINARY, data).serialize(mask=False))
            case 10:
                parts.append(frame(rng.choice((0, 2)), data[:50], fin=rng.random() < 0.5))
            case _:
                parts.append(frame(2, data))
    if rng.random() < 0.3:
        parts.append(frame(8, CloseCode.NORMAL_CLOSURE.to_bytes(2)) + frame(2, b"after the end"))
    return b"".join(parts)


def pieces_of(rng: random.Random, data: bytes) -> list[bytes]:
    """Cut as a network would."""
    sizes = rng.choice(((1, 20), (1_000, 4_000), (3_208, 3_208), (60_000, 200_000)))
    if sizes[1] == 20:
        data = data[:20_000]
    cut = []
    while data:
        size = rng.randint(*sizes)
        cut.append(data[:size])
        data = data[size:]
    return cut


@pytest.mark.parametrize("valid", [True, False])
@pytest.mark.parametrize("seed", range(150))
def test_nothing_is_read_otherwise(seed: int, valid: bool) -> None:
    rng = random.Random(seed)
    frames, mine, whole = Frames(), parser(), parser()
    expected, found = [], []
    for data in [*pieces_of(rng, conversation(rng, valid=valid)), frame(8, b"")]:
        if not over(whole):
            whole.receive_data(data)
            expected += read(whole)
        if not over(mine):  # it may hear a little later of what is wrong with a head
            found += through(frames, mine, data)
    assert found == expected
    assert over(mine) == over(whole)
    assert repr(mine.parser_exc) == repr(whole.parser_exc)
    assert (mine.close_sent, mine.data_to_send()) == (whole.close_sent, whole.data_to_send())


def test_a_frame_of_audio_is_one_piece() -> None:
    audio = bytes(range(256)) * 12
    assert Frames().split(frame(2, audio)) == [(Kind.BINARY, audio)]
    assert Frames().split(frame(1, b"{}") + frame(2, audio)) == [(Kind.TEXT, b"{}"), (Kind.BINARY, audio)]


def test_what_is_held_is_bounded() -> None:
    frames = Frames()
    largest = frame(2, bytes(LARGEST))
    for at in range(0, len(largest) - 1, 1_000):
        assert not frames.split(largest[at : min(at + 1_000, len(largest) - 1)])
        assert frames.held <= LARGEST + 8
    assert frames.split(largest[-1:]) == [(Kind.BINARY, bytes(LARGEST))]
    larger = frame(2, bytes(LARGEST + 1))
    pieces: list[Piece] = []
    for at in range(0, len(larger), 1_000):
        pieces += frames.split(larger[at : at + 1_000])
        assert not frames.held
    assert b"".join(piece for _, piece in pieces) == larger
    assert {kind for kind, _ in pieces} == {Kind.OTHER}


def test_a_server_that_takes_less_leaves_more_to_the_parser() -> None:
    assert Frames(100).split(frame(2, bytes(100)))[0][0] is Kind.BINARY
    assert Frames(100).split(frame(2, bytes(101)))[0][0] is Kind.OTHER
