"""Reads that go around the cache, within a budget: at most so many at once of each origin, fewer while it refuses.

When the nodes are gone, every process that read through them comes to the origin; without a bound that is a stampede,
and an origin that breaks down under it serves nobody. Whoever finds the gate closed waits, within the deadline of its
read. One gate per origin and process.
"""

from __future__ import annotations

import random
import threading
import time

from shoal.objects import ObjectInfo
from shoal.origin_fallback import OriginReader
from shoal_core import limits
from shoal_core.budget import Gate
from shoal_core.errors import DeadlineExceeded, OriginError

_LOOK_S = 0.02


class Budget:
    """The gates of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._gates: dict[str, Gate] = {}

    def take(self, origin: str, deadline: float) -> Gate:
        """Wait for a turn. DeadlineExceeded says that there was none in time."""
        while True:
            with self._lock:
                gate = self._gates.get(origin)
                if gate is None:
                    gate = self._gates[origin] = Gate(limits.DIRECT_READS_MAX, random.Random())
                now_ns = time.monotonic_ns()
                if gate.take(now_ns):
                    return gate
                wait_s = max(_LOOK_S, gate.wait_ns(now_ns) / 1e9)
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise DeadlineExceeded(f"{origin}: no turn to read around the cache within the deadline")
            time.sleep(min(wait_s, left_s))

    def ended(self, gate: Gate, refused: bool) -> None:
        with self._lock:
            gate.ended(refused, time.monotonic_ns())

    def reset_after_fork(self) -> None:
        """Another thread of the parent may have held the lock, and its reads are not this process's."""
        self._lock = threading.Lock()
        self._gates = {}


_budget = Budget()


def read(origin: OriginReader, info: ObjectInfo, offset: int, into: memoryview, deadline: float) -> None:
    """Fill `into` from `offset` of exactly that version, when it is this read's turn."""
    if not info.origin.partition("://")[1]:
        origin.read(info, offset, into, deadline)  # a derived object: there is nobody to ask
        return
    place = info.origin.split("/", 3)
    gate = _budget.take("/".join(place[:3]), deadline)
    refused = False
    try:
        origin.read(info, offset, into, deadline)
    except (OriginError, DeadlineExceeded):
        refused = True
        raise
    finally:
        _budget.ended(gate, refused)


def reset_after_fork() -> None:
    _budget.reset_after_fork()
