"""WebSocket frames as the library `websockets` reads and writes them: the judge of ours."""

from __future__ import annotations

import pytest
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader


def server(opcode: Opcode, payload: bytes) -> bytes:
    """A frame that the server writes."""
    return Frame(opcode, payload).serialize(mask=False)


def sent(data: bytes) -> tuple[Opcode, bytes]:
    """A frame as the server reads it: it must be masked, and nothing may follow."""
    stream = StreamReader()
    stream.feed_data(data)
    reading = Frame.parse(stream.read_exact, mask=True)
    with pytest.raises(StopIteration) as done:
        next(reading)
    assert not stream.buffer
    frame: Frame = done.value.value
    return frame.opcode, bytes(frame.data)
