from __future__ import annotations

import json
from typing import Any

import pytest

from backends import registry
from backends.base import Capabilities
from bridge.cli import main
from bridge.commands.backends import abilities


def listing(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["backends", "--json"]) == 0
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)}


def test_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STT_BACKEND", "scripted")
    rows = listing(capsys)
    assert list(rows) == registry.names()
    assert [name for name, row in rows.items() if row["selected"]] == ["scripted"]
    scripted = rows["scripted"]
    assert (scripted["available"], scripted["reason"], scripted["install"]) == (True, None, None)
    assert scripted["capabilities"]["partials"] is True


def test_several_are_selected_in_their_order(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STT_BACKEND", "scripted, pocketsphinx")
    rows = listing(capsys)
    chosen = {name: row["preference"] for name, row in rows.items() if row["selected"]}
    assert chosen == {"scripted": 1, "pocketsphinx": 2}
    assert rows["google"]["preference"] is None
    assert main(["backends"]) == 0
    table = capsys.readouterr().out
    assert "1, 2 … selected" in table
    assert [line.split()[0] for line in table.splitlines() if "available" in line and line[0] != " "] == ["2", "1"]


def test_default_is_selected(capsys: pytest.CaptureFixture[str]) -> None:
    assert listing(capsys)["pocketsphinx"]["selected"]


def test_what_is_not_installed_says_how(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    absent = registry.Availability("scripted", False, "the package x is not installed", "pip install 'stt-bridge[x]'")
    probe = registry.probe
    monkeypatch.setattr(registry, "probe", lambda name: absent if name == "scripted" else probe(name))
    assert listing(capsys)["scripted"]["install"] == "pip install 'stt-bridge[x]'"
    monkeypatch.setenv("COLUMNS", "140")
    assert main(["backends"]) == 0
    table = capsys.readouterr().out
    assert "the package x is not installed" in table
    assert "pip install 'stt-bridge[x]'" in table
    assert "* selected (STT_BACKEND)" in table


def test_engine_with_a_bad_setting_is_listed_with_the_reason(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STT_SCRIPTED_MODE", "loud")
    row = listing(capsys)["scripted"]
    assert row["available"] is False
    assert "STT_SCRIPTED_MODE" in row["reason"]
    assert row["capabilities"] is None


def test_unknown_selection(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STT_BACKEND", "nonsense")
    assert main(["backends"]) == 0
    assert "selects none of these" in capsys.readouterr().out


def test_abilities() -> None:
    assert abilities(Capabilities(partials=False)) == []
    everything = Capabilities(True, True, True, True, True, ("en", "de"), (8000,), 300.0, 4)
    assert abilities(everything) == [
        "live partials",
        "word times",
        "confidences",
        "phrases",
        "languages: en de",
        "4 streams",
        "300 s a stream",
    ]
