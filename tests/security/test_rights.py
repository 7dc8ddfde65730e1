"""What a grant covers, what is refused and how, and how scoped keys are written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import BridgeError
from bridge.protocols.native import MAX_SESSION_ID_CHARS
from bridge.security.rights import EVERYTHING, SCOPES, Grant, Rights, Scope, parse_scoped_key

IDS = st.text("abc.-_~09", min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("pattern", "session_id", "covered"),
    [
        ("*", "anything", True),
        ("*", None, True),
        ("room-1", "room-1", True),
        ("room-1", "room-10", False),
        ("room-1", "room-", False),
        ("room-1", "Room-1", False),
        ("room-1", None, False),
        ("room-*", "room-1", True),
        ("room-*", "room-", True),
        ("room-*", "room", False),
        ("room-*", "my-room-1", False),
        ("room-*", None, False),
        ("room.*", "room-1", False),  # no regular expression
    ],
)
def test_patterns(pattern: str, session_id: str | None, covered: bool) -> None:
    assert Grant.of(["send"], [pattern]).covers(session_id) is covered


@given(IDS, IDS)
def test_a_name_covers_itself_only(name: str, other: str) -> None:
    assert Grant.of(["send"], [name]).covers(other) is (name == other)
    assert Grant.of(["send"], [name + "*"]).covers(name + other)


def test_one_of_several_sessions() -> None:
    grant = Grant.of(["send"], ["a", "b-*"])
    assert [name for name in ("a", "b", "b-1", "c") if grant.covers(name)] == ["a", "b-1"]
    assert not Grant.of(["send"], []).covers("a")


@pytest.mark.parametrize("pattern", ["", "a*b", "**", "a b", "a/b", "é", "a\n", "x" * (MAX_SESSION_ID_CHARS + 1)])
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(ValueError, match="should be the name of a session"):
        Grant.of(["send"], [pattern])


@pytest.mark.parametrize("scope", ["", "Send", "listen", "*"])
def test_what_is_no_scope(scope: str) -> None:
    with pytest.raises(ValueError, match="should be one of send, receive, admin"):
        Grant.of(["send", scope])


def test_rights_of_several_grants_do_not_mix() -> None:
    rights = Rights((Grant.of(["send"], ["a"]), Grant.of(["receive"])))
    held: list[tuple[Scope, str]] = [(scope, name) for scope in SCOPES for name in "ab" if rights.allows(scope, name)]
    assert held == [("send", "a"), ("receive", "a"), ("receive", "b")]


def test_everything_and_nothing() -> None:
    for scope in SCOPES:
        for name in ("a", None):
            EVERYTHING.require(scope, name)
            assert not Rights().allows(scope, name)


@pytest.mark.parametrize(
    ("scope", "session_id", "sentence"),
    [
        ("receive", "a", "this key may not receive sessions"),
        ("send", "b", "this key may not send audio to this session"),
        ("send", None, "this key may send audio to certain sessions only; name one of them"),
    ],
)
def test_a_refusal_says_what_is_missing(scope: Scope, session_id: str | None, sentence: str) -> None:
    with pytest.raises(BridgeError) as caught:
        Rights((Grant.of(["send"], ["a"]),)).require(scope, session_id)
    assert (caught.value.code, str(caught.value)) == ("forbidden", sentence)


# Scoped keys


@pytest.mark.parametrize(
    ("text", "key", "grant"),
    [
        ("receive=K", "K", Grant.of(["receive"])),
        ("send+receive@room-*=K", "K", Grant.of(["send", "receive"], ["room-*"])),
        ("admin@a=b64==", "b64==", Grant.of(["admin"], ["a"])),
        ("send=a@b=c", "a@b=c", Grant.of(["send"])),
    ],
)
def test_a_scoped_key(text: str, key: str, grant: Grant) -> None:
    assert parse_scoped_key(text) == (key, grant)


@pytest.mark.parametrize(
    "text", ["", "SECRET", "=SECRET", "send=", "send@=SECRET", "send,receive=SECRET", "send@a b=SECRET", "SECRET@=x"]
)
def test_what_is_no_scoped_key(text: str) -> None:
    with pytest.raises(ValueError, match="should") as caught:
        parse_scoped_key(text)
    # Settings show what follows "should" only: whoever swapped the two sides sees no key in a log.
    assert "SECRET" not in str(caught.value)[str(caught.value).index("should") :]
