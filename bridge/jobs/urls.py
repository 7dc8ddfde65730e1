"""Which store of jobs a URL means."""

from __future__ import annotations

from collections.abc import Mapping

from bridge.jobs.sqlite_store import SqliteJobStore
from bridge.jobs.store import JobStore, Rules
from bridge.session.eventlog.urls import INSTALL, MissingPackageError, check_url, sqlite_path


def open_jobs(url: str, rules: Rules, env: Mapping[str, str] | None = None) -> JobStore:
    """The store, to be opened by `JobStore.open`. `env`: where the state folder is named.

    Raises:
        ValueError: the URL means no store.
        MissingPackageError: it needs a package that is not installed.
    """
    scheme, _, rest = check_url(url, off=False).partition(":")
    if scheme == "sqlite":
        return SqliteJobStore(sqlite_path(rest, "jobs.db", env), rules)
    try:
        from bridge.jobs.redis_store import RedisJobStore  # noqa: PLC0415 - an extra
    except ImportError as exc:
        raise MissingPackageError(f"this store needs the packages redis and taskiq-redis ({exc}): {INSTALL}") from exc
    return RedisJobStore(url, rules)
