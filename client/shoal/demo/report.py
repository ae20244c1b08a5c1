"""What the demonstration shows: a bar for long work on a terminal (a line elsewhere), and one table at the end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

FILE_WIDTH = 120

DOORS = {
    "shared\nmemory": ("shared memory",),
    "TCP": ("tcp",),
    "disk": ("disk",),
    "origin": ("origin",),
    "other": ("unix", "memory", "direct"),
}
"""The table's columns, and the client's words for what they count. 'other' (copies through the Unix socket, reads past
a node that is gone) is shown only when there is some."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """One row."""

    name: str
    sample_count: int
    byte_count: int
    elapsed_s: float
    loader_wait_s: float
    """The training loop waited for the loader: reading, decoding, collating."""
    cache_wait_s: float
    """Of it, waiting for the node."""
    hits: dict[str, int]
    """Reads, by the client's words for where the bytes came from."""
    fetched_count: int
    """Blocks that the node fetched from the origin meanwhile, ahead of the reads or for them."""


class Report:
    """Everything goes through one rich console."""

    def __init__(self, console: Console | None = None) -> None:
        # A file has no width of its own; rich would take 80.
        self._console = console or Console(highlight=False, width=None if sys.stdout.isatty() else FILE_WIDTH)

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, emoji=False, soft_wrap=True)

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """Yields what is to be called with each step's size. Without a terminal, one line at the end."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(
            *columns, console=self._console, transient=True, disable=not self._console.is_terminal
        ) as progress:
            task = progress.add_task(title, total=total)
            yield lambda step: progress.advance(task, step)
        if not self._console.is_terminal:
            self.say(f"{title}: {total:,} done")

    def table(self, epochs: Sequence[Epoch]) -> None:
        self._console.print(_table(epochs))
        self.say(
            "Reads by where the node had their bytes by then; what it fetched from the origin, mostly ahead of them. "
            "Waiting for data is reading (the cache's part) and decoding."
        )


def _table(epochs: Sequence[Epoch]) -> Table:
    doors = [door for door in DOORS if door != "other" or any(_count(epoch, door) for epoch in epochs)]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for title in ("epoch", "samples/s", "GB/s", *doors, "node\nfetched", "waiting\nfor data", "cache's\npart"):
        table.add_column(title, justify="right", overflow="fold", vertical="bottom")
    for epoch in epochs:
        table.add_row(*_cells(epoch, doors))
    return table


def _cells(epoch: Epoch, doors: Sequence[str]) -> list[str]:
    elapsed_s = max(epoch.elapsed_s, 1e-9)
    return [
        epoch.name,
        f"{epoch.sample_count / elapsed_s:,.0f}",
        f"{epoch.byte_count / elapsed_s / 1e9:.2g}",
        *(f"{_count(epoch, door):,}" for door in doors),
        f"{epoch.fetched_count:,}",
        f"{epoch.loader_wait_s:.2f} s {100 * epoch.loader_wait_s / elapsed_s:3.0f} %",
        f"{epoch.cache_wait_s:.2f} s",
    ]


def _count(epoch: Epoch, door: str) -> int:
    return sum(epoch.hits.get(name, 0) for name in DOORS[door])
