"""Which log a URL means, and that no sentence shows a password."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bridge.session.eventlog.sqlite import SqliteLog
from bridge.session.eventlog.urls import MissingPackageError, check_url, open_log, sqlite_path


@pytest.mark.parametrize(
    "url",
    [
        "",
        "on",
        "OFF",
        "sqlite",
        "sqlite://server/file",
        "/var/lib/sessions.db",
        "redis:",
        "redis:6379",
        "redis://",
        "redis:///0",
        "unix://",
        "rediss://:hunter2@",
        "redis://user:hunter2@host:hunter2",
        "redis://host:99999",
        "redis://[::1",
        "http://hunter2@host",
        "postgres://user:hunter2@host",
    ],
)
def test_what_means_no_log(url: str) -> None:
    with pytest.raises(ValueError, match="should ") as caught:
        open_log(url, "node", 60)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("url", ["off", "sqlite:", "sqlite:x.db", "redis://h", "rediss://u:p@h:1/2", "unix:///run/r"])
def test_what_means_one(url: str) -> None:
    assert check_url(url) == url


def test_off() -> None:
    assert open_log("off", "node", 60) is None


async def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log = open_log("sqlite:some folder/log.db", "node", 60)
    assert isinstance(log, SqliteLog)
    await log.open()
    await log.close()
    assert (tmp_path / "some folder" / "log.db").is_file()


async def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    log = open_log("sqlite:~/log.db", "node", 60)
    assert log is not None
    await log.open()
    await log.close()
    assert (tmp_path / "log.db").is_file()


def test_the_default_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    at_home = tmp_path / ".local" / "state" / "stt-bridge" / "sessions.db"
    assert sqlite_path("", "sessions.db", {}) == at_home
    assert sqlite_path("", "sessions.db", {"XDG_STATE_HOME": ""}) == at_home
    assert sqlite_path("", "sessions.db", {"XDG_STATE_HOME": "relative"}) == at_home
    assert sqlite_path("", "sessions.db", {"XDG_STATE_HOME": "/state"}) == Path("/state/stt-bridge/sessions.db")


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(ValueError, match="no home folder"):
        sqlite_path("", "sessions.db", {})


def test_the_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "bridge.session.eventlog.redis", raising=False)
    monkeypatch.setitem(sys.modules, "bridge.session.eventlog.redis", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'stt-bridge\[cluster\]'"):
        open_log("redis://localhost", "node", 60)
