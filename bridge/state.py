"""Where the server keeps its files unless a setting says otherwise."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def state_folder(env: Mapping[str, str] | None = None) -> Path:
    """The folder for what programs keep (XDG Base Directory Specification, `$XDG_STATE_HOME`), and there our own.

    Raises:
        ValueError: there is no such folder; the rest of the sentence is for who knows the setting.
    """
    named = Path((os.environ if env is None else env).get("XDG_STATE_HOME", ""))
    # "All paths must be absolute. If an implementation encounters a relative path … it should … ignore it."
    if named.is_absolute():
        return named / "stt-bridge"
    try:
        return Path.home() / ".local" / "state" / "stt-bridge"
    except RuntimeError:  # a container's user without an entry in /etc/passwd
        raise ValueError("this user has no home folder") from None
