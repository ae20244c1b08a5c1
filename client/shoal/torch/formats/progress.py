"""A bar on the terminal for work that takes long. Nothing where nobody looks, and nothing for what is soon done."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Any

_SHOWN_AFTER_S = 1.0


class Progress:
    """`with Progress("reading headers", 1000) as progress: progress.done(1)`. Any thread may say `done`."""

    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._total = total
        self._count = 0
        self._lock = threading.Lock()
        self._begun_s = time.monotonic()
        self._bar: Any = None
        self._task: Any = None
        self._looked_at = sys.stderr.isatty()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def done(self, count: int) -> None:
        """So much more of the total."""
        with self._lock:
            self._count += count
            if self._bar is None and self._looked_at and time.monotonic() - self._begun_s > _SHOWN_AFTER_S:
                self._show()
            if self._bar is not None:
                self._bar.update(self._task, completed=self._count)

    def _show(self) -> None:
        # Imported here: most data sets are made without ever showing one.
        from rich.console import Console
        from rich.progress import Progress as Bar

        self._bar = Bar(console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task(self._what, total=self._total, completed=self._count)
        self._bar.start()
