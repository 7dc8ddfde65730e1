"""Models on this machine: a folder, the cache of huggingface_hub, or a download with progress."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import huggingface_hub
from faster_whisper.utils import _MODELS as REPOSITORIES
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from tqdm.std import tqdm

from backends.base import BackendError, Fault

log = logging.getLogger(__name__)

FILES: Final = ["config.json", "preprocessor_config.json", "model.bin", "tokenizer.json", "vocabulary.*"]
NEEDED: Final = ("config.json", "model.bin", "tokenizer.json")

LEAST_BYTES: Final = 1_000_000
"""A total that is less is that of a model's small files, which come first."""

Progress = Callable[[str], None]
"""Told a sentence for people, at most once per percent, from any thread."""


def find(name: str, folder: Path | None, progress: Progress, *, offline: bool = False) -> Path:
    """The folder of a model; downloads it if it is not here. Blocks.

    Raises:
        BackendError: `unknown_model`, `bad_model` (a folder that holds none), `model_unavailable` (it cannot be had).
    """
    local = Path(name).expanduser()
    if local.is_dir():
        check(local)
        return local
    repository = REPOSITORIES.get(name, name)
    if "/" not in repository or local.is_absolute() or name.startswith("."):
        raise BackendError(
            f"there is no Whisper model {name!r}: it may be a folder, a repository (owner/name), or one of "
            + ", ".join(REPOSITORIES),
            code="unknown_model",
            fault=Fault.CLIENT,
        )
    try:
        found = _snapshot(repository, folder, local_files_only=True)
    except LocalEntryNotFoundError:
        if offline:
            raise _unavailable(
                name, "it is not on this machine, and STT_WHISPER_OFFLINE forbids the download"
            ) from None
        found = _download(name, repository, folder, progress)
    except HFValidationError as exc:
        raise BackendError(f"{name!r} is no name of a repository", code="unknown_model", fault=Fault.CLIENT) from exc
    check(found)
    return found


def check(folder: Path) -> None:
    """That a folder holds a model.

    Raises:
        BackendError: `bad_model`, naming what is missing.
    """
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if missing:
        raise BackendError(
            f"the folder {folder} is no Whisper model of CTranslate2: {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing",
            code="bad_model",
            fault=Fault.OPERATOR,
        )


def size(folder: Path) -> int:
    """Bytes of the model's numbers."""
    return (folder / "model.bin").stat().st_size


def _snapshot(repository: str, folder: Path | None, **options: Any) -> Path:
    return Path(
        huggingface_hub.snapshot_download(
            repository, cache_dir=None if folder is None else str(folder), allow_patterns=FILES, **options
        )
    )


def _download(name: str, repository: str, folder: Path | None, progress: Progress) -> Path:
    log.info("whisper: downloading the model %s", name)
    meter = _Meter(name, progress)
    try:
        return _snapshot(repository, folder, tqdm_class=meter.bar())
    except HfHubHTTPError as exc:
        status = exc.response.status_code if exc.response is not None else None
        if status in {401, 403, 404}:
            raise BackendError(
                f"there is no repository {repository} to download, or it is not public (HTTP {status})",
                code="unknown_model",
                fault=Fault.CLIENT,
            ) from exc
        raise _unavailable(name, f"the download failed with HTTP {status}") from exc
    except Exception as exc:  # the library by which it speaks HTTP, and so what that raises, depends on its version
        raise _unavailable(
            name,
            f"it is not on this machine and cannot be downloaded ({type(exc).__name__}); without a network, give "
            "STT_WHISPER_MODEL the folder of a model",
        ) from exc


def _unavailable(name: str, why: str) -> BackendError:
    return BackendError(f"the model {name} cannot be had: {why}", code="model_unavailable", fault=Fault.OPERATOR)


class _Meter:
    """Tells how far one download is, by the bars that huggingface_hub fills for it."""

    def __init__(self, name: str, progress: Progress) -> None:
        self._name = name
        self._progress = progress
        self._lock = threading.Lock()
        self._total = 0.0
        self._said = -1

    def bar(self) -> type[Any]:
        """A bar that draws nothing and reports here; of bytes only, for there are bars of files as well."""
        meter = self

        class Bar(tqdm):  # type: ignore[misc]
            def __init__(self, *args: Any, **options: Any) -> None:
                self._of_bytes = options.get("unit") == "B"
                super().__init__(*args, **(options | {"disable": True}))

            def update(self, n: float | None = 1) -> None:
                self.n += n or 0
                if self._of_bytes and self.total:
                    meter.tell(self.n, self.total)

        return Bar

    def tell(self, done: float, total: float) -> None:
        """So many bytes have come, of so many: the total grows while the sizes of files become known.

        Files come on several threads, so a bar's news may be old.
        """
        percent = int(100 * done / total)
        with self._lock:
            if total < LEAST_BYTES or (total, percent) <= (self._total, self._said):
                return
            self._total, self._said = total, percent
        self._progress(f"downloading the model {self._name}: {percent} % of {total / 1e6:.0f} MB")
