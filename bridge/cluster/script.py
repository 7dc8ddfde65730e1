"""What Redis does in one step: Lua, atomic, told apart by its SHA-1."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True, slots=True)
class Script:
    """Lua, and what EVALSHA calls it."""

    text: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha", hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest())


NOW: Final = """
local t = redis.call('TIME')
local now = string.format('%d.%06d', t[1], t[2])
"""
"""The begin of a script that goes by Redis' clock: `now` is in seconds, as text."""
