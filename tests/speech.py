"""Speech for tests: where the samples and recordings lie, what is said in them, and their audio."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest

from bridge.audio.files import open_audio
from bridge.transcript import word_errors

ROOT: Final = Path(__file__).resolve().parent.parent
SAMPLES: Final = ROOT / "samples"
RECORDINGS: Final = ROOT.parent / "shared" / "recordings"
"""Real recordings beside the project; absent on most machines."""

CARDS: Final = ("eight of spades", "four of clubs", "seven of hearts", "ten of clubs")
"""What is said in the recordings `cards-*.wav`."""
SECOND: Final = 32_000
"""Bytes of a second of PCM16 mono at 16 kHz."""


def manifest() -> dict[str, dict[str, Any]]:
    """What is known of each sample, by file name."""
    return {entry["file"]: entry for entry in json.loads((SAMPLES / "manifest.json").read_text())["samples"]}


def pcm(path: Path) -> bytes:
    """A file's audio as PCM16, mono, at its own rate."""
    with open_audio(str(path)) as source:
        return b"".join(source.chunks(1_000))


def recording(name: str) -> bytes:
    """The audio of a real recording; skips the test where there is none."""
    path = RECORDINGS / name
    if not path.exists():
        pytest.skip(f"needs the recording {name} beside the project")
    return pcm(path)


def word_error_rate(reference: str, hypothesis: str) -> float:
    """Errors divided by the reference's words."""
    errors, words = word_errors(reference, hypothesis)
    return errors / max(1, words)
