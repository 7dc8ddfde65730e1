"""Where an address leads, and what is refused at start-up."""

from __future__ import annotations

import pytest

from backends.base import BackendError
from backends.relay.backend import RelayBackend
from backends.relay.options import Address, RelayOptions
from bridge.settings import SettingsError, read_options


@pytest.mark.parametrize(
    ("url", "stream", "readyz"),
    [
        ("ws://gpu:8000", "ws://gpu:8000/v1/stream", "http://gpu:8000/readyz"),
        ("http://gpu:8000/", "ws://gpu:8000/v1/stream", "http://gpu:8000/readyz"),
        ("wss://stt.example", "wss://stt.example/v1/stream", "https://stt.example/readyz"),
        ("https://stt.example/a/v1/stream", "wss://stt.example/a/v1/stream", "https://stt.example/a/readyz"),
        ("ws://[::1]:9/v1/stream", "ws://[::1]:9/v1/stream", "http://[::1]:9/readyz"),
        ("ws://gpu/other", "ws://gpu/other", None),
    ],
)
def test_where_it_leads(url: str, stream: str, readyz: str | None) -> None:
    address = Address.parse(url)
    assert (address.stream, address.readyz) == (stream, readyz)


def test_what_is_near_and_what_is_hidden() -> None:
    assert Address.parse("ws://127.0.0.1:1").loopback
    assert Address.parse("ws://localhost").loopback
    assert not Address.parse("ws://10.0.0.1").loopback
    assert Address.parse("https://a").encrypted
    assert not Address.parse("http://a").encrypted


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("", "have one of the schemes"),
        ("gpu:8000", "have one of the schemes"),
        ("ftp://gpu", "have one of the schemes"),
        ("ws://", "name a host"),
        ("ws://gpu:x", "be a URL"),
        ("ws://me:sesame@gpu", "hold no key"),
        ("ws://gpu/v1/stream?token=sesame", "have no query"),
        ("ws://gpu/v1/stream#sesame", "have no query"),
    ],
)
def test_refused(url: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"STT_RELAY_URL: .*should {sentence}") as caught:
        RelayOptions(url=url)
    assert "sesame" not in str(caught.value)


def test_the_variables() -> None:
    given = {"STT_RELAY_URL": "ws://gpu:8000", "STT_RELAY_API_KEY": "k", "STT_RELAY_PASS_AUTHORIZATION": "yes"}
    options = read_options("relay", RelayOptions, given)
    assert options is not None
    assert (options.address.host, options.api_key, options.pass_authorization) == ("gpu:8000", "k", True)
    with pytest.raises(BackendError, match="STT_RELAY_URL is needed"):
        RelayBackend(RelayOptions())
    with pytest.raises(SettingsError, match="STT_RELAY_RETRY_SECONDS"):
        read_options("relay", RelayOptions, given | {"STT_RELAY_RETRY_SECONDS": "-1"})
