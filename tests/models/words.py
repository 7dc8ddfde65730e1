"""The closed vocabulary of the fixture model: what it can hear, and what its tests may say."""

from __future__ import annotations

from typing import Final

_DIGITS: Final = "zero one two three four five six seven eight nine"
_COMMANDS: Final = (
    "yes no stop start pause play next previous open close save delete cancel confirm help home left right up down "
    "light door music volume call send message repeat hello goodbye red green blue window"
)
_GERMAN: Final = "null eins zwei drei vier fünf sechs sieben acht neun ja nein"

VOCABULARY: Final[dict[str, tuple[str, ...]]] = {
    "en": tuple(f"{_DIGITS} {_COMMANDS}".split()),
    "de": tuple(_GERMAN.split()),
}
"""Words by language code. Each is one token; a word of another language is never an English one."""
