"""What the decoder is given and what it is to answer, for a window: in both modes, with and without a prompt."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from .compose import Window
from .tokens import Tokens

IGNORED: Final = -100
"""A target that no loss is taken of."""
_PROMPT: Final = 222
"""Tokens of previous text that faster-whisper gives at most, less one."""
Span = tuple[float, float]


@dataclass(frozen=True)
class Answer:
    """A decoder's input with the target of each position, and where in the audio each position is."""

    inputs: list[int]
    targets: list[int]
    heard: dict[int, Span]
    """By position: where the input's own token was heard."""
    next: dict[int, Span]
    """By position: where the target is heard."""


def _prompt(tokens: Tokens, chance: random.Random, language: str) -> list[int]:
    """Previous text: bare words, or segments with timestamps as faster-whisper keeps them; mostly of the language."""
    if chance.random() < 0.15:
        language = "en" if language == "de" else "de"
    draw = chance.random()
    count = chance.randint(1, 60) if draw < 0.9 else chance.randint(60, 200)
    words = [chance.choice(tokens.words[language]) for _ in range(count)]
    if draw < 0.55:
        return words
    made, at, used = [], 0.0, 0
    while used < count:
        size = chance.randint(1, 8)
        begin = at + chance.uniform(0, 2)
        at = begin + 0.35 * size
        made += [tokens.stamp(min(begin, 30)), *words[used : used + size], tokens.stamp(min(at, 30))]
        used += size
        if at > 28:
            at = 0.0
    return made[-_PROMPT:]


def _around(at: float) -> Span:
    return at - 0.04, at + 0.04


def _body(tokens: Tokens, chance: random.Random, window: Window, *, timestamps: bool) -> list[tuple[int, Span | None]]:
    """The answer's tokens up to the end of text, each with its place."""
    body: list[tuple[int, Span | None]] = []
    for number, words in enumerate(window.segments):
        begin, end = words[0].start, words[-1].end
        if timestamps:
            stamp = tokens.stamp(begin)
            if number == 0 and begin > 1 and chance.random() < 0.5:
                stamp = tokens.stamp(1.0)  # faster-whisper allows no later first timestamp
            body.append((stamp, _around(begin)))
        body += [(tokens.word[word.word], (word.start, word.end)) for word in words]
        if timestamps:
            body.append((tokens.stamp(end), _around(end)))
    if timestamps and window.crossing is not None:
        body.append((tokens.stamp(window.crossing), _around(window.crossing)))
    if timestamps and not body:
        body.append((tokens.stamp(0.0), None))
    ending = None
    if window.segments and window.crossing is None:
        end = window.segments[-1][-1].end
        ending = (min(end, window.seconds - 0.06), max(min(end + 0.3, window.seconds), end + 0.04))
    body.append((tokens.end, ending))
    return body


def answer(
    tokens: Tokens,
    chance: random.Random,
    window: Window,
    *,
    timestamps: bool | None = None,
    prompt: bool | None = None,
) -> Answer:
    """An answer to a window. None: mode and prompt by chance."""
    if timestamps is None:
        timestamps = chance.random() < 0.5
    inputs, targets = [], []
    if chance.random() < 0.4 if prompt is None else prompt:
        inputs = [tokens.previous, *_prompt(tokens, chance, window.language)]
        targets = [IGNORED] * len(inputs)
    language = tokens.language[window.language]
    inputs += [tokens.start, language, tokens.transcribe]
    # Of a fragment nothing can be asked but that it ends: whether it is speech is a matter of taste.
    known = IGNORED if window.fragment else language
    targets += [tokens.no_speech if window.empty else known, IGNORED, IGNORED]
    if not timestamps:
        inputs.append(tokens.no_timestamps)
        targets.append(IGNORED)
    heard, following = {}, {}
    for token, span in _body(tokens, chance, window, timestamps=timestamps):
        position = len(inputs) - 1
        targets[position] = token
        if span is not None:
            following[position] = span
        if token != tokens.end:
            inputs.append(token)
            targets.append(IGNORED)
            if span is not None:
                heard[position + 1] = span
    return Answer(inputs, targets, heard, following)
