"""What receipts say of where they come from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import machine as module
from bench.machine import machine


def test_the_machine() -> None:
    told = machine()
    assert told["cpus"] >= 1
    assert {"stt-bridge", "websockets", "numpy"} <= told["versions"].keys()
    assert json.loads(json.dumps(told)) == told


def test_no_commit_where_there_is_no_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "ROOT", tmp_path)
    assert machine()["commit"] is None


def test_packages_that_are_not_there_are_left_out() -> None:
    assert machine(["numpy", "no-such-package"])["versions"].keys() == {"stt-bridge", "numpy"}
