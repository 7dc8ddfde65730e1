"""Partials turning into finals: the part of a command that is looked at while it runs."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

PARTIAL_LINES: Final = 3
"""Of a long partial only the end is shown: what is above is on its way to being final."""


class Captions:
    """Writes finals to standard output, one line each, and shows the partial that is going on.

    With `live`, the partial stands dimmed on standard error, if that is a terminal, until its final replaces it.
    Where standard output goes elsewhere (a file, a pipe) the finals are shown on the terminal too.
    `to_stdout` False leaves standard output to somebody else.
    """

    def __init__(self, *, live: bool, to_stdout: bool = True) -> None:
        self._console = Console(stderr=True, highlight=False)
        shown = live and self._console.is_terminal and not self._console.is_dumb_terminal
        # Two writers on one terminal would overwrite each other.
        self.live = shown and (to_stdout or not sys.stdout.isatty())
        self._to_stdout = to_stdout
        self._echo = self.live and not (to_stdout and sys.stdout.isatty())
        self._region: Live | None = None

    def partial(self, text: str, committed: int = 0) -> None:
        """Show the newest hypothesis; so many of its characters stay, and stand out."""
        if not self.live:
            return
        if self._region is None:
            self._region = Live(
                console=self._console,
                transient=True,
                auto_refresh=False,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._region.start()
        room = self._console.width * PARTIAL_LINES - 2
        cut = max(0, len(text) - room)
        shown = Text("…" if cut else "", style="dim italic")
        shown.append(text[cut : max(cut, committed)], style="not dim not italic")
        shown.append(text[max(cut, committed) :])
        self._region.update(shown, refresh=True)

    def final(self, text: str) -> None:
        """Show and write the text that replaces the partial."""
        self.clear()
        if not text:
            return
        if self._to_stdout:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()
        if self._echo:
            self._console.print(Text(text))

    def note(self, text: str) -> None:
        """Say something on standard error."""
        self.clear()
        self._console.print(Text(text, style="yellow"), soft_wrap=True)

    def clear(self) -> None:
        """Take the partial away."""
        if self._region is not None:
            region, self._region = self._region, None
            region.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()
