"""Which languages a session may name."""

from __future__ import annotations

import pytest

from backends.base import DETECT, Capabilities
from bridge.session import languages


@pytest.mark.parametrize(
    ("listed", "wanted", "spoken"),
    [
        ((), "tlh", True),
        (("en-US",), "EN-us", True),
        (("en",), "en-GB", True),
        (("en-US", "de-DE"), "de", True),
        (("en-US",), "en-GB", False),
        (("en",), "eng", False),
        (("eng",), "en", False),
    ],
)
def test_a_bare_language_covers_all_of_its_regions(listed: tuple[str, ...], wanted: str, spoken: bool) -> None:
    assert languages.speaks(listed, wanted) is spoken
    assert languages.takes(Capabilities(languages=listed), wanted) is spoken


@pytest.mark.parametrize("said", ["auto", "Auto", "und", "UND"])
def test_detection_has_two_names(said: str) -> None:
    assert languages.asked(said) == DETECT
    assert languages.takes(Capabilities(languages=("en",), detects_language=True), languages.asked(said))
    assert not languages.takes(Capabilities(), languages.asked(said))


def test_a_tag_is_handed_on_as_it_was() -> None:
    assert languages.asked("de-CH") == "de-CH"


def test_a_refusal_says_what_each_backend_takes() -> None:
    backends = {"a": Capabilities(languages=("en",)), "b": Capabilities(languages=("de",), detects_language=True)}
    error = languages.refused("fr", backends)
    assert (error.code, str(error)) == ("unsupported_language", "the backend a knows en; the backend b knows de, auto")
