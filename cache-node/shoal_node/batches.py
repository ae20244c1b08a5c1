"""What a door's thread waits for: the outcome of every item of one `get`.

Blocks that are there are outcomes at once; the others are delivered by fills, from the loop's thread, under the node's
lock. A delivered block is held (a transfer lease) until the batch's owner has sent or granted it, so it cannot be
evicted in between. A batch whose owner stopped waiting takes no more deliveries.
"""

from __future__ import annotations

import threading
from typing import NamedTuple


class Delivered(NamedTuple):
    """The block is in DRAM, held once for the batch."""

    entry: int
    source: int


Outcome = Delivered | Exception


class Batch:
    """Outcomes by item, in the request's order. Methods are called under the node's lock; `wait` is not."""

    __slots__ = ("_done", "abandoned", "missing", "outcomes")

    def __init__(self, count: int) -> None:
        self.outcomes: list[Outcome | None] = [None] * count
        self.missing = 0
        self.abandoned = False
        self._done: threading.Event | None = None

    def expect(self) -> None:
        """One more item will be delivered later."""
        self.missing += 1
        if self._done is None:
            self._done = threading.Event()

    def deliver(self, item: int, outcome: Outcome) -> bool:
        """False when nobody waits any more: the block need not be held for this batch."""
        if self.abandoned:
            return False
        self.outcomes[item] = outcome
        self.missing -= 1
        if not self.missing and self._done is not None:
            self._done.set()
        return True

    def wait(self, seconds: float) -> bool:
        """Whether everything was delivered within that time."""
        return self._done is None or self._done.wait(seconds)
