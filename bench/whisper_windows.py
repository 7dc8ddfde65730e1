"""What a shorter encoder window saves, and what it costs in words.

Whisper is trained on windows of 30 s, most of them filled up with silence. The encoder takes less, and its time goes
down with it; what it then hears was never in its training. Stretches of speech of several lengths are decoded in every
window that holds them, as partials are (greedy, without times) and as finals are (beam search, and alignment).
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from backends.whisper import hardware, store
from backends.whisper.model import Model, Request
from backends.whisper.window import Kind
from bench.whisper_contender import options_of
from bench.whisper_load import Float32, Utterance, utterances
from bridge.transcript import word_errors

Stretch = tuple[Float32, str]
"""Speech, and what is said."""

WINDOWS: Final = (5, 10, 15, 20, 30)
"""Seconds."""
STRETCHES: Final = 40
"""Of each length."""


@dataclass(frozen=True, slots=True, eq=False)
class WindowRequest(Request):
    """With an encoder window of its own length, in seconds."""

    window: int = 30

    @property
    def encoder_seconds(self) -> int:
        """As asked for."""
        return self.window


def windows(folder: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """For each length of speech, window and kind: the word error rate and the time to encode and decode."""
    options = options_of(folder, args)
    chosen = hardware.choose(options)
    if chosen.device == "cpu":
        hardware.keep_memory()
    model = Model("model", folder, chosen, threads=hardware.cpu_threads(options, store.size(folder)))
    said = utterances(args.speech)
    found: list[dict[str, Any]] = []
    for shorter, longest in itertools.pairwise((0, *WINDOWS)):
        stretches = _stretches(said, shorter, longest)
        found += [
            {"speech": longest, "window": window, "kind": kind.name.lower()} | _decoded(model, stretches, window, kind)
            for window in WINDOWS
            if window >= longest
            for kind in reversed(Kind)
        ]
    return found


def print_windows(found: Sequence[dict[str, Any]]) -> None:
    """A table."""
    print(
        f"{'speech up to':>12} {'window':>7} {'kind':>8} {'stretches':>9} {'words':>6} "
        f"{'WER':>7} {'p50 ms':>7} {'CPU ms':>7}"
    )
    for row in found:
        print(
            f"{row['speech']:>10} s {row['window']:>5} s {row['kind']:>8} {row['stretches']:>9} {row['words']:>6} "
            f"{row['errors'] / max(1, row['words']):>7.1%} {row['milliseconds']:>7.1f} "
            f"{row['cpu_milliseconds']:>7.1f}"
        )


def _stretches(said: Sequence[Utterance], more_than: float, at_most: float) -> list[Stretch]:
    """Utterances joined to stretches whose length lies between these seconds, always the same."""
    chance = random.Random(at_most)
    stretches: list[Stretch] = []
    for _ in range(40 * STRETCHES):
        if len(stretches) == STRETCHES:
            break
        goal = chance.uniform(more_than, at_most)
        chosen: list[Utterance] = []
        while sum(utterance.seconds for utterance in chosen) < goal:
            chosen.append(chance.choice(said))
        if more_than < sum(utterance.seconds for utterance in chosen) <= at_most:
            audio = np.concatenate([utterance.samples for utterance in chosen])
            stretches.append((audio, " ".join(utterance.text for utterance in chosen)))
    return stretches


def _decoded(model: Model, stretches: Sequence[Stretch], window: int, kind: Kind) -> dict[str, Any]:
    errors = words = 0
    taken: list[float] = []
    cpu: list[float] = []
    for audio, text in stretches:
        prepared = model.prepare(WindowRequest(kind, audio, "en", window=window))
        began, used = time.perf_counter(), time.process_time()
        [heard] = model.decode([prepared])
        taken.append(time.perf_counter() - began)
        cpu.append(time.process_time() - used)
        wrong, count = word_errors(text, heard.text)
        errors, words = errors + wrong, words + count
    return {
        "stretches": len(stretches),
        "words": words,
        "errors": errors,
        "milliseconds": round(1e3 * statistics.median(taken or [0.0]), 1),
        "cpu_milliseconds": round(1e3 * statistics.median(cpu or [0.0]), 1),
    }
