"""A bar of bytes on stderr, for what takes its time. Where that is no terminal there is none."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator
from typing import TYPE_CHECKING

from shoal.cli import output

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Bar:
    """Moved by its owner's threads."""

    def __init__(self, progress: Progress | None, task: TaskID | None) -> None:
        self._progress = progress
        self._task = task

    def advance(self, size_bytes: int) -> None:
        """So many more are done."""
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task, size_bytes)

    def show(self, done_bytes: int, total_bytes: int) -> None:
        """So many are done, of a total that may have changed."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done_bytes, total=total_bytes)


@contextlib.contextmanager
def bar(what: str, total_bytes: int, *, shown: bool) -> Generator[Bar]:
    if not shown or not sys.stderr.isatty():
        yield Bar(None, None)
        return
    from rich import progress

    with progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.DownloadColumn(binary_units=True),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
        console=output.console(stderr=True),
        transient=True,
    ) as shown_bar:
        yield Bar(shown_bar, shown_bar.add_task(what, total=total_bytes))
