"""Reads the documentation for the tests that hold it against the code: tables and blocks of code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent


def page(name: str) -> str:
    """A file of docs/."""
    return (ROOT / "docs" / name).read_text()


def section(text: str, title: str) -> str:
    """What stands under a heading, up to the next one of its level or above."""
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,6}} |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"no heading {title!r}"
    level = len(found[1])
    rest = text[found.end(1) + len(title) + 2 :]
    following = re.search(rf"^#{{1,{level}}} ", _without_code(rest), re.MULTILINE)
    return rest[: following.start()] if following else rest


def tables(text: str) -> list[list[dict[str, str]]]:
    """Every table: its rows, by the titles of their columns."""
    found = []
    for block in re.findall(r"(?:^\|.*\|\n)+", _without_code(text) + "\n", re.MULTILINE):
        head, rule, *body = [_cells(line) for line in block.splitlines()]
        assert all(re.fullmatch(":?-+:?", cell) for cell in rule)
        assert all(len(row) == len(head) for row in body), block
        found.append([dict(zip(head, row, strict=True)) for row in body])
    return found


def code(cell: str) -> str:
    """The one thing that a cell quotes."""
    found = re.fullmatch(r"`([^`]+)`", cell)
    assert found, f"{cell!r} is no code"
    return found[1]


def blocks(text: str, language: str) -> list[str]:
    """The code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _without_code(text: str) -> str:
    """Comments in code look like headings; the length stays."""
    return re.sub(r"^```.*?^```$", lambda m: re.sub(r"[^\n]", " ", m[0]), text, flags=re.MULTILINE | re.DOTALL)
