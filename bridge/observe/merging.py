"""Several processes' metrics as one answer, in Prometheus' text format (0.0.4) as the client library writes it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_HELP: Final = b"# HELP "


def labelled(text: bytes, name: bytes, value: bytes) -> bytes:
    """Every sample of it with one label more. `value` holds nothing that would have to be escaped."""
    pair = name + b'="' + value + b'"'
    lines = []
    for line in text.splitlines(keepends=True):
        if line.startswith(b"#"):
            lines.append(line)
            continue
        # A sample is NAME{LABELS} VALUE or NAME VALUE; no name holds a brace or a space.
        brace, space = line.find(b"{"), line.find(b" ")
        if 0 <= brace < space:
            lines.append(line[: brace + 1] + pair + b"," + line[brace + 1 :])
        else:
            lines.append(line[:space] + b"{" + pair + b"}" + line[space:])
    return b"".join(lines)


def merged(texts: Iterable[bytes]) -> bytes:
    """All of them, the samples of each metric together, as the format demands; its description is the first one's."""
    families: dict[bytes, list[bytes]] = {}
    for text in texts:
        for family in text.split(b"\n" + _HELP) if text else ():
            head, kind, samples = (family.removeprefix(_HELP).rstrip(b"\n") + b"\n").split(b"\n", 2)
            name = head.partition(b" ")[0]
            if name not in families:
                families[name] = [_HELP + head + b"\n" + kind + b"\n"]
            families[name].append(samples)
    return b"".join(part for parts in families.values() for part in parts)
