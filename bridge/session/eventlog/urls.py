"""Which event log a URL means."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from bridge.session.eventlog.base import EventLog
from bridge.session.eventlog.siblings import Siblings, SiblingsLog
from bridge.session.eventlog.sqlite import SqliteLog
from bridge.state import state_folder

OFF: Final = "off"
INSTALL: Final = "pip install 'stt-bridge[cluster]'"
_REDIS: Final = ("redis", "rediss", "unix")
_ALLOWED: Final = (
    "the value given is not allowed: it should be `sqlite:` (a file in the state folder), `sqlite:PATH`, "
    "`sqlite::memory:`, `redis://HOST[:PORT][/NUMBER]`, `rediss://…`, `unix://PATH`"
)
_HALF: Final = "the value given is not allowed: it should have a number as its port, and `@` between password and host"


class MissingPackageError(Exception):
    """The log needs a package that is not installed; the text says how to get it."""


def check_url(url: str, *, off: bool = True) -> str:
    """The same. `off`: whether it may also say that there is to be none.

    Raises:
        ValueError: it means no store. The sentence does not repeat it: it may hold a password.
    """
    allowed = f"{_ALLOWED} or `{OFF}`" if off else _ALLOWED
    scheme, colon, rest = url.partition(":")
    if (off and url == OFF) or (colon and scheme == "sqlite" and not rest.startswith("//")):
        return url
    if scheme not in _REDIS or not rest.startswith("//") or rest == "//":
        raise ValueError(allowed)
    try:
        host = scheme == "unix" or urlsplit(url).hostname
        _ = urlsplit(url).port
    except ValueError:  # its sentence shows what stands there, maybe the end of a password
        raise ValueError(_HALF) from None
    if not host:
        raise ValueError(allowed)
    return url


def open_log(
    url: str,
    node: str,
    retention_seconds: float,
    env: Mapping[str, str] | None = None,
    siblings: Siblings | None = None,
) -> EventLog | None:
    """The log, to be opened by `EventLog.open`; None if there is to be none. `env`: where the state folder is named.

    `siblings`: other processes that share it, where it is a file.

    Raises:
        ValueError: the URL means no event log.
        MissingPackageError: it needs a package that is not installed.
    """
    scheme, _, rest = check_url(url).partition(":")
    if url == OFF:
        return None
    if scheme != "sqlite":
        try:
            from bridge.session.eventlog.redis import RedisLog  # noqa: PLC0415 - an extra
        except ImportError as exc:
            raise MissingPackageError(f"this event log needs the package redis ({exc}): {INSTALL}") from exc
        return RedisLog(url, node, retention_seconds)
    path = sqlite_path(rest, "sessions.db", env)
    if siblings is not None:
        return SiblingsLog(path, node, retention_seconds, siblings)
    return SqliteLog(path, node, retention_seconds)


def sqlite_path(named: str, default: str, env: Mapping[str, str] | None = None) -> Path | None:
    """The file that stands behind `sqlite:`; None: in memory. `default`: what it is called in the state folder.

    Raises:
        ValueError: there is no such folder.
    """
    if named == ":memory:":
        return None
    if named:
        return Path(named).expanduser().absolute()
    try:
        return state_folder(env) / default
    except ValueError as exc:
        raise ValueError(f"it should name a file (`sqlite:/PATH`): {exc}") from None
