"""`stt-bridge backends`: every engine, whether it can be used here, and what would help."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any

from bridge.commands.exits import Exit

if TYPE_CHECKING:
    from backends.base import Capabilities


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = subparsers.add_parser(
        "backends",
        help="list the engines and whether they can be used here",
        description="List every engine: available or why not, how to install it, what it can do.",
    )
    parser.add_argument("--json", action="store_true", help="write JSON instead of a table")
    parser.set_defaults(run=run)


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One engine. `capabilities` is None where they cannot be told before it is installed and set up.

    `preference`: its place in STT_BACKEND, from 1 on; None if it is not `selected`.
    """

    name: str
    selected: bool
    preference: int | None
    available: bool
    reason: str | None
    install: str | None
    capabilities: Capabilities | None


def run(args: argparse.Namespace) -> int:
    """List them. Returns the exit code, which is 0 even if none is available."""
    rows = survey()
    if args.json:
        sys.stdout.write(json.dumps([dataclasses.asdict(row) for row in rows], indent=2) + "\n")
    else:
        _print_table(rows)
    return Exit.OK


def survey() -> list[Row]:
    """Every engine of the registry, the built-in ones first."""
    from backends import registry
    from bridge.settings import Settings, environment, names

    # Not `Settings.load`: a mistake in another setting is no reason to withhold the list.
    env = environment()
    selected = names(env.get("STT_BACKEND", Settings.model_fields["backend"].default))
    rows = []
    for name in registry.names():
        found = registry.probe(name)
        reason, capabilities = _describe(name, env) if found.available else (found.reason, None)
        usable = found.available and reason is None
        preference = selected.index(name) + 1 if name in selected else None
        rows.append(Row(name, name in selected, preference, usable, reason, found.install, capabilities))
    return rows


def _describe(name: str, env: dict[str, str]) -> tuple[str | None, Capabilities | None]:
    """What keeps an installed engine from being used, and what it can do as it is set up."""
    from backends import registry
    from backends.base import BackendError
    from bridge.settings import SettingsError, read_options

    try:
        backend = registry.load_class(name)
        return None, backend(read_options(backend.settings_name(), backend.Options, env)).capabilities
    except (SettingsError, BackendError) as exc:
        return str(exc), None
    except Exception as exc:  # noqa: BLE001 - somebody else's code: it must not take the list with it
        return f"{type(exc).__name__}: {exc}", None


def _print_table(rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("", "backend", "status", "can do", "install"):
        table.add_column(title, overflow="fold")
    several = sum(row.selected for row in rows) > 1
    for row in rows:
        status = Text("available" if row.available else row.reason or "", style="green" if row.available else "yellow")
        table.add_row(
            (str(row.preference) if several else "*") if row.selected else "",
            Text(row.name, style="bold"),
            status,
            ", ".join(abilities(row.capabilities)) if row.capabilities else "",
            Text(row.install or ""),
        )
    console = Console(highlight=False)
    console.print(table)
    if several:
        console.print("\n1, 2 … selected (STT_BACKEND): the next one takes over where one fails")
    elif any(row.selected for row in rows):
        console.print("\n* selected (STT_BACKEND)")
    else:
        console.print("\nSTT_BACKEND selects none of these")


def abilities(can: Capabilities) -> list[str]:
    """The capabilities in words."""
    named: list[tuple[Any, str]] = [
        (can.partials, "live partials"),
        (can.word_times, "word times"),
        (can.confidences, "confidences"),
        (can.phrases, "phrases"),
        (can.languages, "languages: " + " ".join(can.languages)),
        (can.detects_language, "detects the language"),
        (can.max_streams is not None, f"{can.max_streams} streams"),
        (
            can.max_stream_seconds is not None,
            f"{can.max_stream_seconds:g} s a stream" if can.max_stream_seconds else "",
        ),
    ]
    return [text for condition, text in named if condition]
