"""A checkpoint to a folder that faster-whisper opens: through transformers and CTranslate2's own converter."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Final

import torch
from ctranslate2.converters import TransformersConverter
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

from .network import FRAMES, Shape, Whisper
from .tokens import LANGUAGES, Tokens, write

ALIGNMENT_HEADS: Final = [[1, 0], [1, 1]]
"""Layer and head of the decoder's looks that give word times; training guides them."""
_TEXT: Final = 448
"""faster-whisper counts on this many positions, whatever a model has."""


def export(checkpoint: Path, out: Path, *, quantization: str = "int8", averaged: bool = True) -> None:
    """Convert a checkpoint into the folder `out`, made anew."""
    tokens = Tokens()
    model = Whisper(Shape(len(tokens.ids)), len(tokens.classes) + 1)
    model.load_state_dict(torch.load(checkpoint)["average" if averaged else "model"])
    shape, blank = model.shape, tokens.ids["Ġ"]
    configuration = WhisperConfig(
        vocab_size=shape.vocabulary,
        num_mel_bins=shape.mels,
        d_model=shape.width,
        encoder_layers=shape.encoder_layers,
        decoder_layers=shape.decoder_layers,
        encoder_attention_heads=shape.heads,
        decoder_attention_heads=shape.heads,
        encoder_ffn_dim=4 * shape.width,
        decoder_ffn_dim=4 * shape.width,
        max_source_positions=FRAMES,
        max_target_positions=_TEXT,
        decoder_start_token_id=tokens.start,
        bos_token_id=tokens.end,
        eos_token_id=tokens.end,
        pad_token_id=tokens.end,
        suppress_tokens=[],
        begin_suppress_tokens=[blank],
    )
    converted = WhisperForConditionalGeneration(configuration)
    missing, unknown = converted.load_state_dict(model.exported(), strict=False)
    if unknown or set(missing) > {"proj_out.weight"}:
        raise ValueError(f"transformers' Whisper is another: missing {missing}, unknown {unknown}")
    converted.tie_weights()
    generation = GenerationConfig(
        decoder_start_token_id=tokens.start,
        bos_token_id=tokens.end,
        eos_token_id=tokens.end,
        pad_token_id=tokens.end,
        max_length=_TEXT,
    )
    # Without any of these faster-whisper or CTranslate2 fails: on word times, on language detection, on the prompt.
    generation.suppress_tokens = []
    generation.begin_suppress_tokens = [blank]
    generation.alignment_heads = ALIGNMENT_HEADS
    generation.lang_to_id = {f"<|{language}|>": tokens.ids[f"<|{language}|>"] for language in LANGUAGES}
    generation.task_to_id = {"transcribe": tokens.transcribe, "translate": tokens.ids["<|translate|>"]}
    generation.no_timestamps_token_id = tokens.no_timestamps
    generation.is_multilingual = True
    converted.generation_config = generation
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        converted.save_pretrained(folder)
        converter = TransformersConverter(folder, copy_files=["tokenizer.json", "preprocessor_config.json"])
        converter.convert(str(out), quantization=quantization, force=True)
    for name in ("config.json", "vocabulary.json"):  # one line each: numbers on lines of their own help nobody
        file = out / name
        file.write_text(json.dumps(json.loads(file.read_text()), ensure_ascii=False) + "\n")
