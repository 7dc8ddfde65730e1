"""Whisper models of true size with weights of chance: as fast as the real ones, and there without a download.

`python -m bench.whisper_models small FOLDER` makes one, in CTranslate2's format, float16, with numpy and tokenizers
alone. It hears nothing. The decoder's words come from its positions, nearly whatever the audio: every text is the
beginning of one long one, so that partials agree with each other and with their final as they do when somebody is
understood, and no guard rejects it. It never ends by itself: `bench.whisper_spoken` ends it where speech would.
"""

from __future__ import annotations

import argparse
import itertools
import json
import string
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ctranslate2
import numpy as np
import numpy.typing as npt
from ctranslate2.specs.whisper_spec import WhisperSpec
from faster_whisper.tokenizer import _LANGUAGE_CODES
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

Float16 = npt.NDArray[np.float16]

SECONDS: Final = 30
TEXT_TOKENS: Final = 50_257
"""Of all multilingual models: GPT-2's, and the empty one, by which CTranslate2 tells that a model is multilingual."""
TIMESTAMPS: Final = 1_501
TEXT_POSITIONS: Final = 448

_SPREAD: Final = 0.02  # of weights, as Whisper's
_POSITION_SPREAD: Final = 1.0  # far above what tokens and layers add: positions decide
_QUIET: Final = 0.1  # factor on what the layers add
_SURE: Final = 30.0  # factor on the logits: one token is far likelier than all others


@dataclass(frozen=True, slots=True)
class Size:
    """A model's dimensions. `alignment_heads` are pairs of decoder layer and head."""

    width: int
    encoder_layers: int
    decoder_layers: int
    heads: int
    mels: int = 80
    languages: int = 99
    text_tokens: int = TEXT_TOKENS
    alignment_heads: tuple[tuple[int, int], ...] = ((1, 0), (1, 1))

    @property
    def tokens(self) -> int:
        """The whole vocabulary: text, end, start, languages, six marks, times."""
        return self.text_tokens + 2 + self.languages + 6 + TIMESTAMPS


SIZES: Final = {
    "tiny": Size(384, 4, 4, 6, alignment_heads=((2, 2), (3, 0), (3, 2), (3, 3), (3, 4), (3, 5))),
    "base": Size(
        512, 6, 6, 8, alignment_heads=((3, 1), (4, 2), (4, 3), (4, 7), (5, 1), (5, 2), (5, 4), (5, 6))
    ),
    "small": Size(
        768,
        12,
        12,
        12,
        alignment_heads=(
            (5, 3), (5, 9), (8, 0), (8, 4), (8, 7), (8, 8), (9, 0), (9, 7), (9, 9), (10, 5),
        ),
    ),
    "large-v3-turbo": Size(
        1_280,
        32,
        4,
        20,
        mels=128,
        languages=100,
        alignment_heads=((2, 4), (2, 11), (3, 3), (3, 6), (3, 11), (3, 14)),
    ),
}  # fmt: skip
"""As OpenAI published them."""


def make(size: Size, folder: Path, seed: int = 0) -> None:
    """Write a model of this size into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(size)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "feature_extractor_type": "WhisperFeatureExtractor",
                "feature_size": size.mels,
                "sampling_rate": 16_000,
                "hop_length": 160,
                "chunk_length": SECONDS,
                "n_fft": 400,
            }
        )
    )
    vocabulary = tokenizer.get_vocab()
    spec = _spec(size, _Chance(seed))
    spec.register_vocabulary(sorted(vocabulary, key=vocabulary.__getitem__))
    spec.config.suppress_ids = []
    spec.config.suppress_ids_begin = [vocabulary["Ġ"], vocabulary["<|endoftext|>"]]
    spec.config.lang_ids = [vocabulary[f"<|{code}|>"] for code in _LANGUAGE_CODES[: size.languages]]
    spec.config.alignment_heads = [list(pair) for pair in size.alignment_heads]
    spec.validate()
    spec.decoder.projection.weight = "decoder/embeddings/weight"  # one table for both, as in all Whispers
    spec.save(str(folder))


def make_tokenizer(size: Size) -> Tokenizer:
    """Byte-level BPE in Whisper's order, whose tokens are words of up to four letters with their space."""
    vocabulary = {character: number for number, character in enumerate(_characters())}
    merges = []
    words = itertools.chain.from_iterable(itertools.product(string.ascii_lowercase, repeat=n) for n in (1, 2, 3, 4))
    for letters in itertools.islice(words, size.text_tokens - 1 - len(vocabulary)):
        stem = "Ġ" + "".join(letters[:-1])
        merges.append((stem, letters[-1]))
        vocabulary[stem + letters[-1]] = len(vocabulary)
    vocabulary[""] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = ["endoftext", "startoftranscript", *_LANGUAGE_CODES[: size.languages], "translate", "transcribe"]
    marks += ["startoflm", "startofprev", "nospeech", "notimestamps"]
    tokenizer.add_special_tokens([AddedToken(f"<|{mark}|>", special=True, normalized=False) for mark in marks])
    times = (f"<|{number * 0.02:.2f}|>" for number in range(TIMESTAMPS))
    tokenizer.add_tokens([AddedToken(stamp, special=False, normalized=False) for stamp in times])
    return tokenizer


def _characters() -> list[str]:
    """How GPT-2 writes each byte, in the order of its vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]


class _Chance:
    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def numbers(self, *shape: int, spread: float = _SPREAD) -> Float16:
        numbers = self._generator.standard_normal(shape, np.float32)
        numbers *= np.float32(spread)
        return numbers.astype(np.float16)


def _spec(size: Size, chance: _Chance) -> Any:
    spec = WhisperSpec(size.encoder_layers, size.heads, size.decoder_layers, size.heads)
    width, encoder, decoder = size.width, spec.encoder, spec.decoder
    for conv, inputs in ((encoder.conv1, size.mels), (encoder.conv2, width)):
        conv.weight, conv.bias = chance.numbers(width, inputs, 3), chance.numbers(width)
    encoder.position_encodings.encodings = chance.numbers(SECONDS * 50, width)
    decoder.position_encodings.encodings = chance.numbers(TEXT_POSITIONS, width, spread=_POSITION_SPREAD)
    _norm(encoder.layer_norm, width)
    _norm(decoder.layer_norm, width, _SURE)
    for layer in encoder.layer:
        _attention(layer.self_attention, width, chance)
        _feed_forward(layer.ffn, width, chance)
    for layer in decoder.layer:
        _attention(layer.self_attention, width, chance)
        _attention(layer.attention, width, chance)
        _feed_forward(layer.ffn, width, chance)
    table = chance.numbers(size.tokens, width)
    table[:256] = 0  # bytes, and
    table[size.text_tokens - 1 :] = 0  # marks and times, are never the likeliest: only words are
    decoder.embeddings.weight = table
    decoder.projection.weight = table
    return spec


def _norm(norm: Any, width: int, gain: float = 1.0) -> None:
    norm.gamma, norm.beta = np.full(width, gain, np.float16), np.zeros(width, np.float16)


def _attention(attention: Any, width: int, chance: _Chance) -> None:
    """With the projections of queries, keys and values fused, as CTranslate2 wants them."""
    _norm(attention.layer_norm, width)
    *inputs, output = attention.linear
    for linear, parts in zip(inputs, (3,) if len(inputs) == 1 else (1, 2), strict=True):
        linear.weight, linear.bias = chance.numbers(parts * width, width), chance.numbers(parts * width)
    output.weight, output.bias = chance.numbers(width, width, spread=_QUIET * _SPREAD), np.zeros(width, np.float16)


def _feed_forward(block: Any, width: int, chance: _Chance) -> None:
    _norm(block.layer_norm, width)
    block.linear_0.weight, block.linear_0.bias = chance.numbers(4 * width, width), chance.numbers(4 * width)
    block.linear_1.weight = chance.numbers(width, 4 * width, spread=_QUIET * _SPREAD)
    block.linear_1.bias = np.zeros(width, np.float16)


def main() -> int:
    """Make one and say how large it is."""
    parser = argparse.ArgumentParser(prog="python -m bench.whisper_models", description=__doc__)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    began = time.monotonic()
    make(SIZES[args.size], args.folder)
    megabytes = (args.folder / "model.bin").stat().st_size / 1e6
    print(
        f"{args.folder}: {megabytes:.0f} MB in {time.monotonic() - began:.1f} s, CTranslate2 {ctranslate2.__version__}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
