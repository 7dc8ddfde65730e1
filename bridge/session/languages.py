"""Which languages a session may name, as BCP 47 writes them, and which backend takes them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from backends.base import DETECT, Capabilities
from bridge.errors import BridgeError

DETECTING: Final = (DETECT, "und")
"""What asks an engine to detect the language: our own word, and BCP 47's for an undetermined one."""


def asked(wanted: str) -> str:
    """What an engine is asked for: the tag as it was given, or `DETECT` however that was said."""
    return DETECT if wanted.lower() in DETECTING else wanted


def takes(can: Capabilities, language: str) -> bool:
    """Whether a backend takes a language that `asked` returned."""
    return can.detects_language if language == DETECT else speaks(can.languages, language)


def refused(language: str, backends: dict[str, Capabilities]) -> BridgeError:
    """`unsupported_language`, with what each of these would take."""
    if language == DETECT:
        return BridgeError(
            "unsupported_language",
            "; ".join(f"the backend {name} detects no language" for name in backends) + ": name one",
        )
    known = "; ".join(f"the backend {name} knows {', '.join(taken(can))}" for name, can in backends.items())
    return BridgeError("unsupported_language", known)


def taken(can: Capabilities) -> tuple[str, ...]:
    """The languages that a backend lists, as a session may name them; empty for any."""
    return (*can.languages, DETECT) if can.languages and can.detects_language else can.languages


def speaks(languages: Collection[str], wanted: str) -> bool:
    """Whether a backend that lists these BCP 47 tags takes the wanted one; a bare `en` covers every English."""
    if not languages:
        return True
    tag = wanted.lower()
    known = {language.lower() for language in languages}
    primary = tag.partition("-")[0]
    return tag in known or primary in known or (tag == primary and any(k.startswith(f"{tag}-") for k in known))
