"""The peers' servers, where they are installed: they answer, by the audio's clock. No test installs one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from bench.load.dialects.base import Dialect, Ended, Opened, Say, Text
from bench.load.dialects.whisper_live import WhisperLive
from bench.load.dialects.whisperlivekit import WhisperLiveKit
from bench.load.dialects.wyoming import Wyoming
from bench.targets.peers import PEERS, Peer, PeerUnavailableError, started_peer

SECOND = bytes(32_000)


def installed(name: str) -> pytest.MarkDecorator:
    """Skips where a peer is not."""
    reason = f"{name} is not installed: the overhead benchmark does that"
    return pytest.mark.skipif(not PEERS[name].installed, reason=reason)


async def heard(dialect: Dialect, address: str, until: float) -> tuple[list[Text], Ended]:
    """One session of four seconds, its end sent when text up to the second `until` has come."""
    url = urlsplit(address)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    writer.write(dialect.hello("127.0.0.1", url.port or 0, url.path or "/"))
    texts: list[Text] = []
    finished = False
    while data := await reader.read(65_536):
        for item in dialect.receive(data):
            match item:
                case Say(reply):
                    writer.write(reply)
                case Opened():
                    writer.write(dialect.audio(SECOND) * 4)
                case Text(text, end, _):
                    texts.append(item)
                    if not finished and (end or len(text.split()) / 2) >= until:
                        finished = True
                        writer.write(dialect.finish())
                case Ended():
                    writer.close()
                    return texts, item
    raise AssertionError("the server hung up without an end")


@installed("whisper-live")
async def test_whisper_live_counts_by_the_audio() -> None:
    with started_peer("whisper-live") as (_, address):
        texts, ended = await asyncio.wait_for(heard(WhisperLive(), address, 4.0), 30)
    assert [t for t in texts if t.final] == [Text("one two three four five six", 3.0, True)]
    assert texts[-1] == Text("one two", 4.0, False)
    assert ended.ok


@installed("wyoming")
async def test_wyoming_tells_each_word_and_then_all() -> None:
    with started_peer("wyoming") as (_, address):
        texts, ended = await asyncio.wait_for(heard(Wyoming(), address, 4.0), 30)
    said = ["one", "two", "three", "four", "five", "six", "one", "two"]
    assert texts == [
        *(Text(" ".join(said[:count]), None, False) for count in range(1, 9)),
        Text(" ".join(said), None, True),
    ]
    assert ended.ok


@installed("whisperlivekit")
async def test_whisperlivekit_finalizes_what_it_has_heard_twice() -> None:
    with started_peer("whisperlivekit") as (_, address):
        texts, ended = await asyncio.wait_for(heard(WhisperLiveKit(), address, 4.0), 30)
    finals = [t for t in texts if t.final]
    assert " ".join(t.text for t in finals) == "one two three four five six one two"
    assert finals[-1].end == 4.0
    assert ended.ok


@pytest.mark.slow
def test_what_cannot_be_installed_is_named_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # so that nobody is asked
    peer = Peer("absent", "1", ("stt-bridge-no-such-package==1",), "absent.py")
    with pytest.raises(PeerUnavailableError, match=r"pip install .*stt-bridge-no-such-package==1: exit code 1\n"):
        peer.install()
    assert not peer.installed
    assert not peer.folder.exists()


def test_a_server_that_does_not_start_shows_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    peer = Peer("broken", "1", (), "broken.py")
    peer.python.parent.mkdir(parents=True)
    peer.python.write_text("#!/bin/sh\necho no engine here >&2\nexit 3\n")
    peer.python.chmod(0o755)
    (peer.folder / "installed.txt").write_text("")
    monkeypatch.setitem(PEERS, "broken", peer)
    with pytest.raises(RuntimeError, match="no engine here"), started_peer("broken"):
        pytest.fail("it has started")
