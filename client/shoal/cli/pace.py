"""How much is asked for at once while a cache is filled, so that in a small one batches do not push each other out.

A part of DRAM may be in flight, and a part may wait for the disk; batches are held back while more does. Of several
nodes the one with the least DRAM decides, and the one whose disk is furthest behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, TypeVar

from shoal.cli import objects
from shoal_core import limits
from shoal_core.errors import NodeGone

if TYPE_CHECKING:
    from shoal.objects import ObjectInfo

T = TypeVar("T")

Values = dict[str, Any]
"""What a node says of itself."""

BATCH_BYTES = 16 * limits.MIB
DRAM_FRACTION = 0.25
"""Of DRAM, that may be in flight, and as much again that may wait for the disk."""
QUEUE_STALL_S = 10.0
QUEUE_POLL_S = 0.02


class Pace:
    """`numbers` asks every node that takes part; `copies` says how many of them hold each block."""

    def __init__(
        self, numbers: Callable[[], list[Values]], infos: list[ObjectInfo], concurrency: int, copies: int = 1
    ) -> None:
        self._numbers = numbers
        nodes = numbers()
        if not nodes:
            raise NodeGone("no node answers")
        total, blocks = sum(info.size for info in infos), sum(objects.block_count(info) for info in infos)
        room = min(values["tiers"]["dram"]["budget_bytes"] for values in nodes)
        self.fits = total * copies <= sum(capacity(values) for values in nodes)
        """Whether all of it can be there at once: only then is another round worth anything."""
        self._needed = any("disk" in values["tiers"] for values in nodes) and total * copies > room * len(nodes) / 2
        self._blocks_max = int(room * DRAM_FRACTION / max(1, total // max(1, blocks)))
        self.batch_bytes = min(BATCH_BYTES, int(room * DRAM_FRACTION / concurrency))
        """For one node."""

    def wait(self) -> None:
        """Returns when the queues are short, or do not get shorter: a stuck disk is no reason to hang."""
        shortest, since = None, time.monotonic()
        while self._needed:
            queue = max((values["disk_queue"] for values in self._numbers() if not values["disk_failed"]), default=0)
            if queue <= self._blocks_max:
                return
            if shortest is None or queue < shortest:
                shortest, since = queue, time.monotonic()
            elif time.monotonic() - since > QUEUE_STALL_S:
                self._needed = False
            time.sleep(QUEUE_POLL_S)

    def work(self, batches: Iterable[T], touch: Callable[[T], None], concurrency: int) -> None:
        """Call `touch` with each batch, so many at once and as the queues allow. The first error ends it."""
        with ThreadPoolExecutor(concurrency, "shoal-warm") as pool:
            running: set[Future[None]] = set()
            try:
                for batch in batches:
                    self.wait()
                    running.add(pool.submit(touch, batch))
                    if len(running) >= concurrency:
                        done, running = wait(running, return_when=FIRST_COMPLETED)
                        for future in done:
                            future.result()
                for future in running:
                    future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def capacity(values: Values) -> int:
    """What one node can hold: a block may be in both tiers, so the larger one counts."""
    return max(tier["budget_bytes"] for tier in values["tiers"].values())
