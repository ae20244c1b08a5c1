"""What a run found: rows as they come, and one table at the end.

A row has our figure, the reference's, their ratio and, where there is one, a target: either the ratio must reach it
(`at_least`) or our figure must not exceed it (`at_most`). The ratio says how many times as fast ours is, whatever the
unit. Rows without a target inform.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

_DURATIONS = ("us", "ms", "s")


class Row(msgspec.Struct, frozen=True):
    """One line of the table."""

    question: str
    ours: float
    unit: str
    reference: float | None = None
    reference_name: str = ""
    ratio: float | None = None
    at_least: float | None = None
    """The ratio must reach this."""
    at_most: float | None = None
    """Our figure must not exceed this."""

    @property
    def met(self) -> bool | None:
        """None without a target."""
        if self.at_least is not None:
            return self.ratio is not None and self.ratio >= self.at_least
        return None if self.at_most is None else self.ours <= self.at_most

    @property
    def target(self) -> str:
        if self.at_least is not None:
            return f"ratio >= {self.at_least:g}"
        return "" if self.at_most is None else f"<= {self.at_most:g} {self.unit}"


class Report:
    """Rows in the order measured. Progress goes to stderr while a module runs."""

    def __init__(self, *, quick: bool = False) -> None:
        self.quick = quick
        self.rows: list[Row] = []
        self.skipped: list[str] = []
        self.notes: list[str] = []
        self._console = Console(file=sys.stderr, highlight=False)
        self._begin = time.monotonic()

    def rounds(self, count: int) -> int:
        """How many rounds to take for one that would like `count`."""
        return max(3, count // 5) if self.quick else count

    def row(
        self,
        question: str,
        ours: float,
        reference: float | None,
        unit: str,
        *,
        ratio: float | None = None,
        reference_name: str = "",
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> None:
        """One result. Without `ratio` it is taken from the two figures."""
        if ratio is None and reference:
            ratio = reference / ours if unit in _DURATIONS else ours / reference
        row = Row(question, ours, unit, reference, reference_name, ratio, at_least, at_most)
        self.rows.append(row)
        found = "" if row.met is None else "  met" if row.met else "  MISSED"
        beside = "" if reference is None else f"  against {_number(reference)}"
        times = "" if ratio is None else f"  ({ratio:.2f})"
        self.say(f"{question}: {_number(ours)} {unit}{beside}{times}{found}")

    def skip(self, question: str, reason: str) -> None:
        self.skipped.append(f"{question}: {reason}")
        self.say(f"{question}: skipped, {reason}")

    def note(self, text: str) -> None:
        """Printed below the table."""
        self.notes.append(text)

    def say(self, text: str) -> None:
        """Progress."""
        self._console.print(f"[dim]{time.monotonic() - self._begin:6.1f} s[/dim]  {text}", soft_wrap=True)

    def print(self, heading: str) -> None:
        """The table, on stdout, as wide as it needs to be."""
        console = Console(width=None if sys.stdout.isatty() else 170, highlight=False)
        table = Table(title=heading, title_justify="left", title_style="bold")
        for name, side in (
            ("question", "left"), ("ours", "right"), ("reference", "right"), ("unit", "left"),
            ("ratio", "right"), ("target", "left"), ("", "left"),
        ):  # fmt: skip
            table.add_column(name, justify=side)  # type: ignore[arg-type]
        for row in self.rows:
            met = "" if row.met is None else "[green]met[/green]" if row.met else "[red]missed[/red]"
            question = f"{row.question}, against {row.reference_name}" if row.reference_name else row.question
            table.add_row(
                question, _number(row.ours), "" if row.reference is None else _number(row.reference), row.unit,
                "" if row.ratio is None else f"{row.ratio:.2f}", row.target, met,
            )  # fmt: skip
        console.print(table)
        for line in [*self.notes, *(f"skipped: {text}" for text in self.skipped)]:
            console.print(line)

    def as_dict(self) -> dict[str, Any]:
        rows = [msgspec.to_builtins(row) | {"met": row.met} for row in self.rows]
        return {"rows": rows, "skipped": self.skipped, "notes": self.notes}

    @property
    def missed(self) -> list[Row]:
        return [row for row in self.rows if row.met is False]


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
