"""Which store of files `STT_UPLOADS` means."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bridge.state import state_folder
from bridge.uploads.blobs import BlobStore
from bridge.uploads.folder import FolderStore

INSTALL: Final = "pip install 'stt-bridge[cluster]'"


class MissingPackageError(Exception):
    """The store needs a package that is not installed; the text says how to get it."""


def open_blobs(url: str | None = None, env: Mapping[str, str] | None = None) -> BlobStore:
    """The store, to be opened by `BlobStore.open`. `env`: where the state folder is named.

    Raises:
        ValueError: it means none. The sentence does not repeat it: it may hold a password.
        MissingPackageError: it needs a package that is not installed.
    """
    if url is None:
        try:
            return FolderStore(state_folder(env) / "uploads")
        except ValueError as exc:
            raise ValueError(f"it should name a folder: {exc}") from None
    scheme, separator, rest = url.partition("://")
    if not separator or scheme == "file":
        return FolderStore(Path(rest if separator else url).expanduser().absolute())
    try:
        from bridge.uploads.remote import RemoteStore  # noqa: PLC0415 - an extra

        return RemoteStore(url)
    except ImportError as exc:  # of fsspec, or of what it needs for this kind of address: its sentence names that
        raise MissingPackageError(f"this store needs a package that is not installed ({exc}): {INSTALL}") from exc
