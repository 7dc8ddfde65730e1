"""Imports run downwards only. The table below is the architecture; what is not in it is not allowed.

Imports inside of functions count too: late is not allowed where early is not.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parent.parent

# Each room and what it may import of the project; its own modules besides. A room is the longest name that fits.
ALLOWED: Final[Mapping[str, AbstractSet[str]]] = {
    "bridge": set(),
    "bridge.__main__": {"bridge.cli"},
    "bridge.cli": {"bridge", "bridge.commands"},
    # The commands: what a user starts. They run the client, or the application, or sessions without a server.
    "bridge.commands": {
        "backends.base",
        "backends.registry",
        "bridge.app",
        "bridge.audio",
        "bridge.client",
        "bridge.emulator",
        "bridge.errors",
        "bridge.jobs",
        "bridge.observe",
        "bridge.processes",
        "bridge.protocols",
        "bridge.security",
        "bridge.session",
        "bridge.settings",
        "bridge.transcript",
        "bridge.transports",
        "bridge.workshop",
    },
    # The composition root: the only room that may know every other below it.
    "bridge.app": {
        "backends.base",
        "backends.registry",
        "bridge",
        "bridge.api",
        "bridge.audio",
        "bridge.errors",
        "bridge.guarding",
        "bridge.jobs",
        "bridge.observe",
        "bridge.processes",
        "bridge.protocols",
        "bridge.routes",
        "bridge.security",
        "bridge.session",
        "bridge.settings",
        "bridge.transports",
        "bridge.uploads",
        "bridge.working",
    },
    # Another one, for workers.
    "bridge.workshop": {
        "bridge.api",
        "bridge.app",
        "bridge.audio",
        "bridge.guarding",
        "bridge.jobs",
        "bridge.observe",
        "bridge.routes",
        "bridge.session",
        "bridge.settings",
        "bridge.transports",
        "bridge.uploads",
        "bridge.working",
    },
    # Several processes on one port: the parent, which knows nothing of what is served, and the children's side of it.
    "bridge.processes": {"bridge.observe", "bridge.settings"},
    # Its other parts: who may connect, jobs, and the HTTP routes.
    "bridge.guarding": {"bridge.observe", "bridge.security", "bridge.settings"},
    "bridge.working": {"bridge.jobs", "bridge.observe", "bridge.session", "bridge.settings", "bridge.uploads"},
    "bridge.routes": {
        "bridge",
        "bridge.api",
        "bridge.audio",
        "bridge.errors",
        "bridge.jobs",
        "bridge.observe",
        "bridge.session",
        "bridge.uploads",
    },
    # A stand-in for somebody else's service, with the bridge's own engines inside.
    "bridge.emulator": {
        "backends.base",
        "backends.registry",
        "backends.scripted",
        "bridge.audio",
        "bridge.security",
        "bridge.session",
        "bridge.settings",
    },
    "bridge.transports": {"bridge.errors", "bridge.observe", "bridge.protocols", "bridge.security", "bridge.session"},
    "bridge.api": {
        "bridge.audio",
        "bridge.errors",
        "bridge.jobs",
        "bridge.observe",
        "bridge.protocols",
        "bridge.security",
        "bridge.session",
        "bridge.transcript",
        "bridge.uploads",
    },
    "bridge.session": {
        "backends.base",
        "bridge.audio",
        "bridge.cluster",
        "bridge.errors",
        "bridge.observe",
        "bridge.protocols",
        "bridge.sqlite",
        "bridge.state",
    },
    "bridge.jobs": {
        "bridge.background",
        "bridge",
        "bridge.audio",
        "bridge.cluster",
        "bridge.errors",
        "bridge.observe",
        "bridge.protocols",
        "bridge.session",
        "bridge.sqlite",
        "bridge.transcript",
        "bridge.uploads",
    },
    "bridge.protocols": {"backends.base", "bridge.audio", "bridge.errors"},
    # Below: each of these knows next to nothing.
    "bridge.client": {"bridge.audio", "bridge.errors", "bridge.protocols"},
    "bridge.transcript": {"backends.base"},
    "bridge.audio": {"bridge.errors"},
    "bridge.security": {"bridge.errors"},
    "bridge.observe": set(),
    "bridge.sqlite": set(),
    "bridge.cluster": set(),
    "bridge.state": set(),
    "bridge.uploads": {"bridge.errors", "bridge.state"},
    "bridge.settings": {"bridge.security"},
    "bridge.errors": set(),
    "backends": set(),
    # An engine that is another server of this kind: it speaks to it as any program does, by the client library.
    "backends.relay": {"backends.base", "bridge.client", "bridge.protocols.native"},
}

# Narrower than the room: these modules alone.
WHO_MAY: Final[Mapping[str, AbstractSet[str]]] = {
    "backends.registry": {
        "bridge.app",
        "bridge.commands.backends",
        "bridge.commands.demo",
        "bridge.commands.transcribe",
        "bridge.emulator.server",
        "backends.registry",
    },
    "bridge.app": {
        "bridge.workshop",
        "bridge.commands.worker",
        "bridge.commands.serve",
        "bridge.commands.demo",
        "bridge.commands.transcribe",
    },
}
# Of the session's neighbours, each may know the events of protocols, not a codec.
EVENTS_ONLY: Final = ("bridge.session", "bridge.transports")
SANS_IO: Final = ("asyncio", "socket", "threading", "selectors", "ssl", "websockets", "uvicorn", "fastapi", "starlette")
# A room's third-party packages that no other room may touch.
KEPT_TO: Final[Mapping[str, tuple[str, ...]]] = {
    "fastapi": ("bridge.app", "bridge.api", "bridge.routes"),
    "python_multipart": ("bridge.api.forms",),
    "starlette": ("bridge.api", "bridge.routes"),
    "uvicorn": ("bridge.transports",),
    "websockets": ("bridge.transports", "bridge.client"),
    "opentelemetry": ("bridge.observe.otel",),
    "prometheus_client": ("bridge.observe", "bridge.api", "backends.relay", "backends.whisper"),
    "pydantic": ("bridge.settings", "bridge.api"),
    "dotenv": ("bridge.settings",),
    "jwt": ("bridge.security",),
    "httpx": ("backends.relay", "bridge.jobs", "bridge.security.jwks"),
    "limits": ("bridge.security.rates",),
    "cryptography": ("bridge.security",),
    "av": ("bridge.audio",),
    "greenlet": ("bridge.audio.containers",),
    "onnx": ("bridge.audio.vad",),
    "onnxruntime": ("bridge.audio.vad", "backends.whisper"),
    "faster_whisper": ("backends.whisper",),
    "ctranslate2": ("backends.whisper",),
    "tokenizers": ("backends.whisper",),
    "huggingface_hub": ("backends.whisper",),
    "pynvml": ("backends.whisper",),
    "threadpoolctl": ("backends.whisper",),
    "webrtc_noise_gain": ("bridge.audio.denoise",),
    "soxr": ("bridge.audio",),
    "rich": ("bridge.commands",),
    "fsspec": ("bridge.uploads.remote",),
    "taskiq": ("bridge.jobs.delivery",),
    "taskiq_redis": ("bridge.jobs.delivery",),
    "redis": ("bridge.cluster", "bridge.session.eventlog", "bridge.jobs", "bridge.security.rates"),
    "sqlite3": ("bridge.sqlite", "bridge.session.eventlog", "bridge.jobs"),
    "pocketsphinx": (
        "backends.pocketsphinx_backend",
        "backends.pocketsphinx_recognizer",
        "bridge.audio.vad.webrtc",  # its detector is WebRTC's
    ),
    "google": ("backends.google", "bridge.emulator"),
    "grpc": ("backends.google", "bridge.emulator"),
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Every module of both packages."""
    for package in ("bridge", "backends"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            yield name, ast.parse(path.read_text())


MODULES: Final = dict(modules())


def imports(tree: ast.AST) -> Iterator[str]:
    """The modules that it imports, also inside of functions and for type checkers."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they go"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else str(node.module)


def ours(name: str) -> bool:
    return name.partition(".")[0] in ("bridge", "backends")


def room(module: str) -> str:
    return max((name for name in ALLOWED if within(module, name)), key=len)


def within(module: str, name: str) -> bool:
    return module == name or module.startswith(name + ".")


def permitted(module: str, wanted: str) -> bool:
    home = room(module)
    if room(wanted) == home and home != "bridge":
        return True
    # `bridge` itself means the version in bridge/__init__.py, not everything below it
    return any(wanted == name or (name != "bridge" and within(wanted, name)) for name in ALLOWED[home])


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downwards(module: str) -> None:
    wanted = {name for name in imports(MODULES[module]) if ours(name)}
    assert {name for name in wanted if not permitted(module, name)} == set()


@pytest.mark.parametrize("target", WHO_MAY)
def test_only_these_may_import(target: str) -> None:
    importers = {module for module, tree in MODULES.items() if target in set(imports(tree))}
    assert importers <= WHO_MAY[target]


def test_sessions_and_transports_know_no_codec() -> None:
    for module, tree in MODULES.items():
        if module.startswith(EVENTS_ONLY):
            wanted = {name for name in imports(tree) if within(name, "bridge.protocols")}
            assert wanted <= {"bridge.protocols.events"}, module


def test_protocols_do_no_io() -> None:
    for module, tree in MODULES.items():
        if within(module, "bridge.protocols"):
            assert {name.partition(".")[0] for name in imports(tree)}.isdisjoint(SANS_IO), module


@pytest.mark.parametrize("package", KEPT_TO)
def test_packages_stay_in_their_rooms(package: str) -> None:
    for module, tree in MODULES.items():
        if package in {name.partition(".")[0] for name in imports(tree)}:
            assert any(within(module, home) for home in KEPT_TO[package]), module


def test_backends_need_only_what_their_file_names() -> None:
    """An engine imports the contract, its SDK and numpy; nothing of the bridge, and no engine another's."""
    engines = {module for module in MODULES if module.endswith("_backend") or module == "backends.scripted"}
    assert engines
    for module in engines:
        for name in imports(MODULES[module]):
            top = name.partition(".")[0]
            assert top in sys.stdlib_module_names or top in ("numpy", "backends", *KEPT_TO), (module, name)
            assert name not in engines - {module}, (module, name)


def test_the_table_has_no_dead_rows() -> None:
    """What nobody uses any more is taken out: an allowance that is left over is a door that is left open."""
    used: dict[str, set[str]] = {name: set() for name in ALLOWED}
    for module, tree in MODULES.items():
        used[room(module)] |= {name for name in imports(tree) if ours(name)}
    for home, names in ALLOWED.items():
        for name in names:
            assert any(within(wanted, name) for wanted in used[home]), f"{home} no longer imports {name}"
