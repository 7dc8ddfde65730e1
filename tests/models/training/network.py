"""Whisper in plain PyTorch, with transformers' names, and what training needs beside it.

A window's zero padding is most of it and all alike. Here a few padded positions stand for all: they are drawn anew for
each batch and weigh in attention as much as those they stand for. So a window of 30 s costs little more than its audio.
"""

# mypy: disallow-subclassing-any=False

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional

Tensor = Any

FRAMES: Final = 1500
"""Encoder positions of 30 s."""
_TEXT: Final = 448


@dataclass(frozen=True)
class Shape:
    """Sizes of a model."""

    vocabulary: int
    width: int = 128
    encoder_layers: int = 3
    decoder_layers: int = 3
    heads: int = 4
    mels: int = 80


def sinusoids(length: int, channels: int) -> Tensor:
    """Whisper's position encoding (length, channels): sines, then cosines."""
    step = math.log(10_000) / (channels // 2 - 1)
    phase = torch.arange(length)[:, None] * torch.exp(-step * torch.arange(channels // 2))[None]
    return torch.cat([phase.sin(), phase.cos()], 1)


class Attention(nn.Module):
    """Multi-head attention; gives the log-weights of chosen heads too."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(
        self,
        x: Tensor,
        memory: Tensor = None,
        bias: Tensor = None,
        *,
        causal: bool = False,
        shown: list[int] | None = None,
    ) -> Tensor:
        """Output, and the attention logits of the heads `shown` (None without)."""
        source = x if memory is None else memory
        query, key, value = (
            self._split(self.q_proj(x)),
            self._split(self.k_proj(source)),
            self._split(self.v_proj(source)),
        )
        # Spelled out: with heads this small PyTorch's fused attention takes twice as long on a CPU.
        weights = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        if bias is not None:
            weights = weights + bias[:, None, None].to(weights.dtype)
        logits = None if shown is None else weights[:, shown].float()
        if causal:
            weights = weights + torch.full(weights.shape[-2:], -math.inf, dtype=weights.dtype).triu(1)
        mixed = torch.softmax(weights, -1, dtype=weights.dtype) @ value
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), logits


class EncoderLayer(nn.Module):
    """Self-attention, then a feed-forward net."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, bias: Tensor, shown: list[int] | None) -> Tensor:
        """Output for `x` with `bias` weighing the keys, and the attention logits of the heads `shown`."""
        seen, logits = self.self_attn(self.self_attn_layer_norm(x), bias=bias, shown=shown)
        x = x + seen
        return x + self.fc2(functional.gelu(self.fc1(self.final_layer_norm(x)))), logits


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the encoder, a feed-forward net."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.encoder_attn = Attention(width, heads)
        self.encoder_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, memory: Tensor, bias: Tensor, shown: list[int] | None) -> Tensor:
        """Output, and the attention logits of the heads `shown`."""
        x = x + self.self_attn(self.self_attn_layer_norm(x), causal=True)[0]
        seen, logits = self.encoder_attn(self.encoder_attn_layer_norm(x), memory, bias, shown=shown)
        x = x + seen
        return x + self.fc2(functional.gelu(self.fc1(self.final_layer_norm(x)))), logits


class Encoder(nn.Module):
    """Features to frames of 20 ms."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(shape.mels, shape.width, 3, padding=1)
        self.conv2 = nn.Conv1d(shape.width, shape.width, 3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(FRAMES, shape.width)
        self.embed_positions.weight.data = sinusoids(FRAMES, shape.width)
        self.embed_positions.weight.requires_grad_(False)
        self.layers = nn.ModuleList(EncoderLayer(shape.width, shape.heads) for _ in range(shape.encoder_layers))
        self.layer_norm = nn.LayerNorm(shape.width)

    def _convolve(self, mel: Tensor) -> Tensor:
        return functional.gelu(self.conv2(functional.gelu(self.conv1(mel)))).transpose(1, 2)

    def forward(
        self, mel: Tensor, padded: Tensor, bias: Tensor, offset: int, guided: dict[int, list[int]]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Encode `mel` (batch, mels, frames of 10 ms) and, behind it, the positions `padded` (batch, count).

        Gives by layer the attention logits of its `guided` heads too.
        """
        x = self._convolve(mel)
        x = x + self.embed_positions.weight[offset : offset + x.shape[1]]
        if padded is not None:
            nothing = self._convolve(mel.new_zeros(1, mel.shape[1], 8))[:, 1:2]
            x = torch.cat([x, nothing + self.embed_positions(padded)], 1)
        logits = {}
        for number, layer in enumerate(self.layers):
            x, logits[number] = layer(x, bias, guided.get(number))
        return self.layer_norm(x), logits


class Decoder(nn.Module):
    """Tokens so far to the next one's state."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.width)
        nn.init.normal_(self.embed_tokens.weight, std=0.05)
        self.embed_positions = nn.Embedding(_TEXT, shape.width)
        self.embed_positions.weight.data = sinusoids(_TEXT, shape.width) * 0.1
        self.layers = nn.ModuleList(DecoderLayer(shape.width, shape.heads) for _ in range(shape.decoder_layers))
        self.layer_norm = nn.LayerNorm(shape.width)

    def forward(self, ids: Tensor, memory: Tensor, bias: Tensor, guided: dict[int, list[int]]) -> Tensor:
        """States for `ids`, and by layer the attention logits of its `guided` heads."""
        x = self.embed_tokens(ids) + self.embed_positions.weight[: ids.shape[1]]
        logits = {}
        for number, layer in enumerate(self.layers):
            x, logits[number] = layer(x, memory, bias, guided.get(number))
        return self.layer_norm(x), logits


class Whisper(nn.Module):
    """The model, with two linear classifiers of frames that only training uses."""

    def __init__(self, shape: Shape, classes: int) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = Encoder(shape)
        self.decoder = Decoder(shape)
        self.now = nn.Linear(shape.width, classes)
        """Which word a frame is part of."""
        self.before = nn.Linear(shape.width, classes)
        """Which word was last before a frame's own: what the decoder finds its place by."""

    def exported(self) -> dict[str, Tensor]:
        """Weights by transformers' names, without what only training uses."""
        return {
            f"model.{name}": value.detach().float().clone()
            for name, value in self.state_dict().items()
            if name.startswith(("encoder.", "decoder."))
        }
