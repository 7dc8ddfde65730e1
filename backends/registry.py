"""Engines by name. Each is named by a string and imported only when it is wanted.

Other people's engines register an entry point in the group `stt_bridge.backends`, its name the engine's name, its
value `module:Class`; docs/backends.md has a complete example.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Final

from backends.base import AsyncBackend, BackendError, BlockingBackend, Fault

GROUP: Final = "stt_bridge.backends"


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where an engine stands, the SDK module it cannot do without, and the extra that installs it."""

    target: str
    needs: str | None = None
    extra: str | None = None


_BUILT_IN: Final = {
    "google": _Entry("backends.google.async_backend:GoogleBackend", needs="google.cloud.speech", extra="google"),
    "google-threads": _Entry(
        "backends.google.threads_backend:GoogleThreadsBackend", needs="google.cloud.speech", extra="google"
    ),
    "pocketsphinx": _Entry("backends.pocketsphinx_backend:PocketSphinxBackend", needs="pocketsphinx"),
    "whisper": _Entry("backends.whisper.backend:WhisperBackend", needs="faster_whisper", extra="whisper"),
    "relay": _Entry("backends.relay.backend:RelayBackend"),
    "scripted": _Entry("backends.scripted:ScriptedBackend"),
    "scripted-threads": _Entry("backends.scripted:ScriptedThreadsBackend"),
}


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether an engine can be used here; where not, why, and the command that helps."""

    name: str
    available: bool
    reason: str | None = None
    install: str | None = None


def names() -> list[str]:
    """Every engine that is registered, available or not; the built-in ones first."""
    return [*_BUILT_IN, *sorted(set(_plugins()) - set(_BUILT_IN))]


def probe(name: str) -> Availability:
    """Whether the engine's class can be loaded. Imports no engine whose SDK is missing."""
    entry = _BUILT_IN.get(name)
    if entry is not None and entry.needs and not _installed(entry.needs):
        return Availability(name, False, f"the package {entry.needs} is not installed", _install(entry))
    try:
        load_class(name)
    except BackendError as exc:
        return Availability(name, False, str(exc), _install(entry) if entry else None)
    return Availability(name, True)


def load_class(name: str) -> type[AsyncBackend | BlockingBackend]:
    """The engine's class.

    Raises:
        BackendError: `unknown_backend`, or `not_installed` with the install command.
    """
    entry = _BUILT_IN.get(name)
    target = entry.target if entry else _plugins().get(name)
    if target is None:
        raise BackendError(f"{name!r} is not one of {', '.join(names())}", code="unknown_backend", fault=Fault.OPERATOR)
    module, _, attribute = target.partition(":")
    try:
        loaded = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as exc:
        how = f"; install it with: {_install(entry)}" if entry else ""
        raise BackendError(
            f"backend {name} cannot be loaded: {exc}{how}", code="not_installed", fault=Fault.OPERATOR
        ) from exc
    if not (isinstance(loaded, type) and issubclass(loaded, (AsyncBackend, BlockingBackend))):
        raise BackendError(
            f"backend {name}: {target} is no AsyncBackend or BlockingBackend",
            code="not_installed",
            fault=Fault.OPERATOR,
        )
    return loaded


def _installed(module: str) -> bool:
    """Whether the module can be found; its parents are imported, it is not."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a parent is missing
        return False


def _plugins() -> dict[str, str]:
    return {point.name: point.value for point in entry_points(group=GROUP)}


def _install(entry: _Entry) -> str:
    wanted = f"stt-bridge[{entry.extra}]" if entry.extra else "stt-bridge"
    return f"pip install '{wanted}'"
