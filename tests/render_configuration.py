"""Renders docs/configuration.md and .env.example from the settings' types; `python -m tests.render_configuration`.

Edit the descriptions where the settings are (bridge/settings.py, each engine's `Options`), then run this.
tests/test_settings.py asserts that the committed files are what it renders.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from annotated_types import Ge, Gt, Le, MaxLen, MinLen
from pydantic_core import PydanticUndefined

from backends import registry
from bridge.settings import PREFIX, Settings, option_prefix

ROOT: Final = Path(__file__).parent.parent

# The first field of each section of `Settings`: a test compares them with the comments there.
SECTIONS: Final[Mapping[str, str]] = {
    "backend": "What serves",
    "vad": "What it hears",
    "host": "Where it listens",
    "api_keys": "Who may connect",
    "rate_limit": "How much each may use",
    "asr_room_encoding": "Other servers' protocols",
    "max_sessions": "Limits on clients",
    "queue_seconds": "The session",
    "event_log": "What it keeps",
    "log_level": "What operators see",
}

INTRODUCTION: Final = """\
<!-- Rendered by `python -m tests.render_configuration`; edit bridge/settings.py or the engine's Options instead. -->

# Configuration

Everything is set by environment variables that begin with `STT_`. They may also stand in a file `.env` in the
directory where the server is started; [.env.example](../.env.example) holds every one of them with its default.

- Options of the command line win over variables, variables win over `.env`.
- An empty value counts as unset; an empty variable hides the one in `.env`, too.
- All values are read once, when the server starts. If one is wrong, the server names the variable, what was given
  and what is allowed, and exits with code 2.
- A variable that begins with `STT_` and is no setting, nor an option of an engine, is named in a warning: it is
  probably misspelled. (The options of an engine that is not installed cannot be checked.)
- In `.env`, `${NAME}` stands for the value of the variable `NAME`, whatever the quotes around it.

Durations are in seconds, and may have a fraction. Yes or no is `true`, `false`, `1`, `0`, `yes`, `no`, `on` or `off`.
A list is separated by commas.
"""

ENGINES: Final = """\
## The engines' own options

The options of an engine are read only when `STT_BACKEND` selects it. A backend of your own gets its variables in the
same way: see [backends.md](backends.md).
"""

OTHERS: Final = """\
## Client commands

| Variable | Meaning |
|---|---|
| `STT_API_KEY` | API key that `stt-bridge stream` sends when `--api-key` is not given. |
"""

ENV_HEAD: Final = """\
# Every setting with its default. Copy this file to `.env` and remove the `#` of a line to change it.
# docs/configuration.md says more. Rendered by `python -m tests.render_configuration`.
"""

CLASSES: Final = ("google", "google-threads", "pocketsphinx", "whisper", "relay", "scripted", "scripted-threads")


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One setting, as both files show it."""

    variable: str
    kind: str
    default: str
    meaning: str


def settings_rows() -> Iterator[tuple[str, Row]]:
    """Every setting in its order, with the name of its field."""
    for name, field in Settings.model_fields.items():
        kind = _kind(field.annotation)
        bounds = _bounds(field.metadata)
        yield (
            name,
            Row(PREFIX + name.upper(), f"{kind}{bounds}", _value(field.default), field.description or ""),
        )


def option_rows(engine: str) -> list[Row]:
    """The options of one engine."""
    options: Any = registry.load_class(engine).Options
    hints = typing.get_type_hints(options)
    return [
        Row(
            option_prefix(engine) + field.name.upper(),
            _kind(hints[field.name]),
            _value(field.default),
            field.metadata["help"],
        )
        for field in dataclasses.fields(options)
    ]


def configuration() -> str:
    """docs/configuration.md."""
    parts = [INTRODUCTION]
    rows: list[Row] = []
    for name, row in settings_rows():
        if name in SECTIONS:
            parts.append(_table(rows) if rows else "")
            parts.append(f"## {SECTIONS[name]}\n")
            rows = []
        rows.append(row)
    parts += [_table(rows), ENGINES]
    for engine in CLASSES:
        shared = registry.load_class(engine).settings_name()
        body = _table(option_rows(engine)) if shared == engine else f"Reads the options of `{shared}`.\n"
        parts += [f"### `{engine}`\n", body]
    parts.append(OTHERS)
    return "\n".join(part for part in parts if part)


def env_example() -> str:
    """.env.example."""
    lines = [ENV_HEAD]
    for name, row in settings_rows():
        if name in SECTIONS:
            lines.append(f"# --- {SECTIONS[name]} ---\n")
        lines.append(_env_line(row))
    for engine in CLASSES:
        if registry.load_class(engine).settings_name() != engine:
            continue  # it reads those of another
        lines.append(f"# --- Options of the engine {engine} ---\n")
        lines += [_env_line(row) for row in option_rows(engine)]
    return "\n".join(lines)


def _table(rows: list[Row]) -> str:
    lines = ["| Variable | Type | Default | Meaning |", "|---|---|---|---|"]
    for row in rows:
        default = f"`{row.default}`" if row.default else "unset"
        lines.append(f"| `{row.variable}` | {row.kind} | {default} | {row.meaning} |".replace("<", "&lt;"))
    return "\n".join(lines) + "\n"


def _env_line(row: Row) -> str:
    return f"# {row.meaning}\n#{row.variable}={row.default}\n"


def _value(default: object) -> str:
    """As it would be written in the environment."""
    if default in (None, (), PydanticUndefined):
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return ",".join(map(_value, default))
    return f"{default:g}" if isinstance(default, float) else str(default)


def _kind(annotation: Any) -> str:
    """A type in words."""
    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in typing.get_args(annotation))
    if typing.get_origin(annotation) is tuple:
        return "list"
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return _kind(typing.get_args(annotation)[0])
    names = {str: "text", int: "whole number", float: "number", bool: "yes or no", Path: "path"}
    return names[annotation]


def _bounds(metadata: list[Any]) -> str:
    """The limits of a value."""
    least = most = ""
    for item in metadata:
        match item:
            case Ge(ge=bound):
                least = f", {bound} "
            case Gt(gt=bound):
                least = f" above {bound}, up "
            case Le(le=bound):
                most = f"to {bound}"
            case MaxLen(max_length=bound):
                most = f", up to {bound} characters"
            case MinLen():
                pass  # an empty value counts as unset anyway
    return least + most


def main() -> None:
    """Rewrite both files."""
    for path, text in files().items():
        path.write_text(text)


def files() -> dict[Path, str]:
    """Both files and what they should hold."""
    return {ROOT / "docs" / "configuration.md": configuration(), ROOT / ".env.example": env_example()}


if __name__ == "__main__":
    main()
