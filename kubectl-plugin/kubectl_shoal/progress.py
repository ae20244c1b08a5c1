"""How far something is: a bar on a terminal, elsewhere a line for every change that tells more than a few bytes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kubectl_shoal import output
from shoal_core import units

Show = Callable[[int, int, str], None]
"""(done, of how much (0: not known yet), what is done now)."""


@contextmanager
def bar(title: str, *, shown: bool) -> Iterator[Show]:
    """All of it goes to stderr: stdout is for results."""
    if not shown:
        yield lambda done, total, text: None
    elif sys.stderr.isatty():
        yield from _drawn(title)
    else:
        yield _Lines(title)


def _drawn(title: str) -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskProgressColumn, TextColumn

    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), DownloadColumn(binary_units=True)
    console = Console(stderr=True, markup=False, highlight=False)
    with Progress(*columns, TextColumn("{task.fields[text]}"), console=console, transient=True) as progress:
        task = progress.add_task(title, total=None, text="")
        yield lambda done, total, text: progress.update(task, completed=done, total=total or None, text=text)


class _Lines:
    """A log of a job should hold a few lines of progress, not thousands."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._said: tuple[str, int] | None = None

    def __call__(self, done: int, total: int, text: str) -> None:
        tenth = done * 10 // total if total else 0
        word = text.partition(",")[0]
        if (word, tenth) != self._said:
            self._said = word, tenth
            of = f" {units.percent(done, total)} of {units.size(total)}," if total else ""
            print(f"{self._title}:{of} {output.printable(text)}", file=sys.stderr, flush=True)
