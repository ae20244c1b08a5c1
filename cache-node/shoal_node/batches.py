"""What a door's thread waits for: the outcome of every item of one `get`.

Blocks that are there are outcomes at once; the others are delivered by fills, from the loop's thread, under the node's
lock. A delivered block is held (a transfer lease) until the batch's owner has sent or granted it, so it cannot be
evicted in between. A batch whose owner stopped waiting takes no more deliveries.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

from shoal_core import limits
from shoal_core.errors import BadRequest
from shoal_core.verbs import get
from shoal_node.objects import ObjectRecord


class Delivered(NamedTuple):
    """The block is in DRAM, held once for the batch."""

    entry: int
    source: int


Outcome = Delivered | Exception


class Batch:
    """Outcomes by item, in the request's order. Methods are called under the node's lock; `wait` is not."""

    __slots__ = ("_done", "abandoned", "is_readers", "missing", "outcomes")

    def __init__(self, count: int) -> None:
        self.is_readers = False
        """A reader asks, not another node: it counts as hits and misses."""
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


def check_items(records: Sequence[ObjectRecord], request: get.Request) -> None:
    """BadRequest unless every item lies inside its block and every object named is one of those given."""
    if len(request.items) > limits.BATCH_ITEMS_MAX:
        raise BadRequest(f"{len(request.items)} items in one get; at most {limits.BATCH_ITEMS_MAX}")
    for item in request.items:
        if not 0 <= item.object < len(records) or item.block < 0:
            raise BadRequest("get: an item names no object or block")
        size = records[item.object].block_bytes(item.block)
        if item.offset < 0 or item.length <= 0 or item.offset + item.length > size:
            raise BadRequest(
                f"{records[item.object].url}: range {item.offset}+{item.length} of block {item.block} of {size} bytes"
            )
    for ahead in (*request.ahead, *request.likely):
        if not 0 <= ahead.object < len(records) or ahead.block < 0:
            raise BadRequest("get: a read ahead names no object or block")
