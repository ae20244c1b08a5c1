"""How many reads a node has under way at one origin: fewer while it refuses, so that what recovers is left to recover.

`fill.concurrency` bounds all fills; this bounds those of one origin, by a gate that halves and pauses with refusals.
Runs on the node's loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncGenerator

from shoal_core.budget import Gate
from shoal_core.errors import DeadlineExceeded, OriginError

_LOOK_S = 0.01
_GATES_MAX = 256


class OriginBudget:
    """A gate for each origin: a bucket, a web server."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._gates: dict[str, Gate] = {}

    @contextlib.asynccontextmanager
    async def turn(self, url: str) -> AsyncGenerator[None]:
        """Waits until one more read may go; whoever waits is bounded by its fill's own time."""
        place = "/".join(url.split("/", 3)[:3])
        gate = self._gates.get(place)
        if gate is None:
            if len(self._gates) >= _GATES_MAX:
                self._gates.pop(next(iter(self._gates)))
            # Chance spreads what many nodes do at the same moment.
            gate = self._gates[place] = Gate(self._most, random.Random())
        while not gate.take(time.monotonic_ns()):  # noqa: ASYNC110 time opens it as well
            await asyncio.sleep(max(_LOOK_S, gate.wait_ns(time.monotonic_ns()) / 1e9))
        refused = False
        try:
            yield
        except (OriginError, DeadlineExceeded):
            refused = True
            raise
        finally:
            gate.ended(refused, time.monotonic_ns())
