"""Engines whose SDK is missing: told apart without an exception, with the command that installs it."""

from __future__ import annotations

import sys

import pytest

from backends import registry


@pytest.mark.parametrize("missing", ["google", "google.cloud", "google.cloud.speech"])
def test_google_without_its_sdk(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == missing or name.startswith(missing + ".")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    for name in ("google", "google-threads"):
        found = registry.probe(name)
        assert not found.available
        assert found.reason == "the package google.cloud.speech is not installed"
        assert found.install == "pip install 'stt-bridge[google]'"


def test_google_with_it() -> None:
    pytest.importorskip("google.cloud.speech")
    assert registry.probe("google").available
    assert registry.load_class("google-threads").settings_name() == "google"
