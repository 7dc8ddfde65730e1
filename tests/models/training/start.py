"""Where training starts: from nothing, with a few hints, or from a converted model's weights."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from .network import Attention, Tensor, Whisper, sinusoids
from .tokens import TIMESTAMPS, Tokens

_OFFSETS: Final[tuple[tuple[int | None, ...], ...]] = ((-6, -2, 2, 6), (-12, -4, 4, 12), (-8, None, None, 8))
"""Frames that each head of each encoder layer first looks away by; None: nowhere in particular."""
CLOCK: Final = 3
"""The head of the last decoder layer that reads the time."""


def _look_aside(attention: Attention, offsets: tuple[int | None, ...], width: int, gain: float = 1.8) -> None:
    """Make heads attend to a fixed offset, as a convolution does: it spares the slow discovery of neighbourhood."""
    size, half = width // attention.heads, width // 2
    speed = torch.exp(-math.log(10_000) / (half - 1) * torch.arange(half))
    for head, offset in enumerate(offsets):
        if offset is None:
            continue
        query, key = torch.zeros(size, width), torch.zeros(size, width)
        for row, channel in enumerate(torch.linspace(0, half // 2, size // 2).round().long().tolist()):
            cosine, sine = math.cos(speed[channel] * offset), math.sin(speed[channel] * offset)
            key[2 * row, channel] = key[2 * row + 1, half + channel] = 1
            query[2 * row, channel], query[2 * row, half + channel] = cosine, sine
            query[2 * row + 1, half + channel], query[2 * row + 1, channel] = cosine, -sine
        rows = slice(head * size, (head + 1) * size)
        attention.q_proj.weight[rows] = query * gain
        attention.k_proj.weight[rows] = key * gain
        attention.q_proj.bias[rows] = 0


def from_nothing(model: Whisper, tokens: Tokens) -> None:
    """Random weights with three hints: heads that look to neighbours, similar neighbouring timestamps, and a clock.

    The clock is a decoder head that copies the position it looks at into the space where timestamps are the same
    sinusoids: without it they take most of the training.
    """
    width, heads = model.shape.width, model.shape.heads
    with torch.no_grad():
        model.encoder.conv1.weight *= 1.5
        model.encoder.conv2.weight *= 3.0
        for layer, offsets in zip(model.encoder.layers, _OFFSETS, strict=False):
            _look_aside(layer.self_attn, offsets, width)
        size = width // heads
        channels = torch.linspace(0, 38, size // 2).round().long()
        channels = torch.cat([channels, width // 2 + channels])
        space, _ = torch.linalg.qr(torch.randn(width, size))
        stamps = slice(tokens.first_stamp, tokens.first_stamp + TIMESTAMPS)
        model.decoder.embed_tokens.weight[stamps] = 0.2 * sinusoids(TIMESTAMPS, width)[:, channels] @ space.T
        attention = model.decoder.layers[-1].encoder_attn
        rows = slice(CLOCK * size, (CLOCK + 1) * size)
        attention.v_proj.weight[rows] = 0
        attention.v_proj.weight[torch.arange(rows.start, rows.stop), channels] = 1.0
        attention.out_proj.weight[:, rows] = 2.0 * space


_TYPES: Final = (np.float32, np.int8, np.int16, np.int32, np.float16)


def read_converted(file: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a CTranslate2 `model.bin`, int8 weights made float again. ValueError: not version 6."""
    data, at = file.read_bytes(), 0

    def number(code: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(f"<{code}", data, at)
        at += struct.calcsize(f"<{code}")
        return int(value)

    def text() -> str:
        nonlocal at
        size = number("H")
        at += size
        return data[at - size : at - 1].decode()

    version = number("I")
    if version != 6:
        raise ValueError(f"{file} has the binary version {version}, not 6")
    text()
    number("I")
    arrays: dict[str, NDArray[Any]] = {}
    for _ in range(number("I")):
        name = text()
        dimensions = [number("I") for _ in range(number("B"))]
        kind = np.dtype(_TYPES[number("B")])
        size = number("I")
        arrays[name] = np.frombuffer(data, kind, size // kind.itemsize, at).reshape(dimensions)
        at += size
    for name in list(arrays):
        if name.endswith("_scale"):
            weight = name.removesuffix("_scale")
            scale = arrays.pop(name)
            arrays[weight] = arrays[weight].astype(np.float32) / scale.reshape(-1, *[1] * (arrays[weight].ndim - 1))
    return arrays


_NAMES: Final = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
    "self_attention/linear_1": "self_attn.out_proj",
    "attention/linear_0": "encoder_attn.q_proj",
    "attention/linear_2": "encoder_attn.out_proj",
}
_PARTS: Final = {
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
}


def from_converted(model: Whisper, file: Path) -> None:
    """Load a converted model of the same shape. KeyError or RuntimeError: it is of another."""
    state: dict[str, Tensor] = {}
    for name, array in read_converted(file).items():
        place, _, kind = name.rpartition("/")
        value = torch.from_numpy(np.array(array, np.float32))
        kind = {"gamma": "weight", "beta": "bias", "encodings": "weight"}.get(kind, kind)
        side, _, rest = place.partition("/")
        if side not in {"encoder", "decoder"} or kind not in {"weight", "bias"} or value.ndim == 0:
            continue
        if not rest.startswith("layer_") or rest == "layer_norm":
            plain = {"embeddings": "embed_tokens", "position_encodings": "embed_positions"}.get(rest, rest)
            if plain != "projection":
                state[f"{side}.{plain}.{kind}"] = value
            continue
        layer, _, part = rest.partition("/")
        prefix = f"{side}.layers.{layer.removeprefix('layer_')}"
        if part in _PARTS:
            for target, piece in zip(_PARTS[part], value.chunk(len(_PARTS[part])), strict=True):
                state[f"{prefix}.{target}.{kind}"] = piece
        else:
            state[f"{prefix}.{_NAMES[part]}.{kind}"] = value
    wanted = model.state_dict()
    missing = [name for name in wanted if name.startswith(("encoder.", "decoder.")) and name not in state]
    if missing:
        raise KeyError(f"{file} lacks {missing}")
    # transformers' keys have no bias; CTranslate2 fills zeros.
    model.load_state_dict({name: value for name, value in state.items() if name in wanted}, strict=False)
