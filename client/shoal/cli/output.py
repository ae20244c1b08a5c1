"""What all commands print with: aligned columns, JSON lines, and names that cannot command the terminal.

Listings may have a million lines and often go into a pipe, so they are formatted here, without rich: one pass for the
widths, nothing wrapped or cut. Only live displays and reports use rich (`console`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

WIDTH_ELSEWHERE = 240
"""Columns where there is no terminal: a file or a pipe wraps nothing."""

BOLD, DIM, PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[0m"


def printable(text: str) -> str:
    """Object names may hold newlines and escape sequences; a terminal gets to see, not to obey them."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def json_line(values: Any) -> None:
    """One JSON document on one line."""
    import msgspec

    sys.stdout.write(msgspec.json.encode(values).decode())
    sys.stdout.write("\n")


def columns(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: frozenset[str] = frozenset()) -> None:
    """Aligned columns; numbers to the right, those named in `left` and the last one to the left."""
    widths = [len(title) for title in header]
    for row in rows:
        for place, cell in enumerate(row):
            if len(cell) > widths[place]:
                widths[place] = len(cell)
    to_left = [title in left for title in header[:-1]]

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.ljust(width) if flush else cell.rjust(width)
            for cell, width, flush in zip(row[:-1], widths, to_left, strict=False)
        )  # fmt: skip
        return "  ".join((*cells, row[-1]))

    title = line(header)
    sys.stdout.write(f"{BOLD}{title}{PLAIN}\n" if sys.stdout.isatty() else f"{title}\n")
    for row in rows:
        sys.stdout.write(line(row) + "\n")


def fields(rows: Sequence[tuple[str, str]]) -> None:
    """Name and value of one thing, a line each."""
    width = max((len(name) for name, _ in rows), default=0)
    terminal = sys.stdout.isatty()
    for name, value in rows:
        label = f"{name:<{width}}"
        sys.stdout.write(f"{DIM}{label}{PLAIN}  {value}\n" if terminal else f"{label}  {value}\n")


def note(text: str) -> None:
    """A remark for the person, out of the way of the output."""
    print(text, file=sys.stderr)


def console(*, stderr: bool = False) -> Console:
    """rich's console, which must not turn names into markup, emoji or links."""
    from rich.console import Console

    wide = None if (sys.stderr if stderr else sys.stdout).isatty() else WIDTH_ELSEWHERE
    return Console(stderr=stderr, width=wide, markup=False, emoji=False, highlight=False)
