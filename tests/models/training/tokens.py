"""The tokenizer: bytes, one token for each word, then Whisper's special tokens and timestamps in Whisper's order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from ..words import VOCABULARY

_LANGUAGES: Final = (
    "en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th ur hr bg lt la mi "
    "ml cy sk te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr pa si km sn yo so af oc ka be tg sd "
    "gu am yi lo uz fo ht ps tk nn mt sa lb my bo tl mg as tt haw ln ha ba jw su"
)
LANGUAGES: Final = tuple(_LANGUAGES.split())
"""Whisper's 99: CTranslate2 and faster-whisper expect them all, though two are trained."""
STEP: Final = 0.02
"""Seconds between two timestamp tokens, and between two frames of the encoder's output."""
TIMESTAMPS: Final = 1501


def _byte_characters() -> dict[int, str]:
    """GPT-2's printable character for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table, spare = {}, 256
    for byte in range(256):
        if byte in printable:
            table[byte] = chr(byte)
        else:
            table[byte] = chr(spare)
            spare += 1
    return table


def build() -> Tokenizer:
    """Byte-level BPE whose merges spell ` word` as one token."""
    characters = _byte_characters()
    # The order of GPT-2: printable bytes first, then the others, each by its character.
    vocabulary = {character: index for index, character in enumerate(sorted(characters.values(), key=ord))}
    merges = []
    for words in VOCABULARY.values():
        for word in words:
            first, *rest = [characters[byte] for byte in f" {word}".encode()]
            for character in rest:
                if first + character not in vocabulary:
                    merges.append((first, character))
                    vocabulary[first + character] = len(vocabulary)
                first += character
    vocabulary[""] = len(vocabulary)  # by this entry CTranslate2 (4.7 and later) knows a multilingual model
    special = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{language}|>" for language in LANGUAGES)]
    special += [
        "<|translate|>",
        "<|transcribe|>",
        "<|startoflm|>",
        "<|startofprev|>",
        "<|nospeech|>",
        "<|notimestamps|>",
    ]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    stamps = [f"<|{index * STEP:.2f}|>" for index in range(TIMESTAMPS)]
    tokenizer.add_tokens([AddedToken(stamp, special=False, normalized=False) for stamp in stamps])
    return tokenizer


class Tokens:
    """The ids that training speaks of, by name."""

    def __init__(self) -> None:
        ids = build().get_vocab()
        self.ids: dict[str, int] = ids
        self.end = ids["<|endoftext|>"]
        self.start = ids["<|startoftranscript|>"]
        self.previous = ids["<|startofprev|>"]
        self.no_speech = ids["<|nospeech|>"]
        self.no_timestamps = ids["<|notimestamps|>"]
        self.transcribe = ids["<|transcribe|>"]
        self.first_stamp = self.no_timestamps + 1
        self.language = {language: ids[f"<|{language}|>"] for language in VOCABULARY}
        characters = _byte_characters()
        self.word = {
            word: ids["".join(characters[byte] for byte in f" {word}".encode())]
            for words in VOCABULARY.values()
            for word in words
        }
        self.words = {language: [self.word[word] for word in words] for language, words in VOCABULARY.items()}
        self.classes = {token: index for index, token in enumerate(self.word.values(), 1)}
        """A number from 1 for each word's token, for the frames' labels; 0 is no word."""

    def stamp(self, seconds: float) -> int:
        """The timestamp token nearest to a time."""
        return self.first_stamp + min(TIMESTAMPS - 1, max(0, round(seconds / STEP)))


def write(folder: Path) -> Tokenizer:
    """Write tokenizer.json, its configuration for transformers, and preprocessor_config.json into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build()
    tokenizer.save(str(folder / "tokenizer.json"))
    configuration = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "model_max_length": 448,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(configuration))
    preprocessor = {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "processor_class": "WhisperProcessor",
        "feature_size": 80,
        "sampling_rate": 16000,
        "hop_length": 160,
        "chunk_length": 30,
        "n_fft": 400,
        "nb_max_frames": 3000,
        "n_samples": 480000,
        "padding_value": 0.0,
        "padding_side": "right",
        "return_attention_mask": False,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return tokenizer
