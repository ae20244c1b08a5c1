"""The memory door with a test looking on: which replies the node sends, which of them are spoiled, which wait.

`WatchedDoor` stands in the place of a node's memory listener, as the address of a client. Every reply of the node is
counted by its verb; `fault` spoils the next one of a verb (see shoal_transport.memory.FaultPlan), `hold` keeps the next
one back until the test lets it go, and says when it is there.
"""

from __future__ import annotations

import threading
from collections import Counter
from types import ModuleType
from typing import TypeVar

from shoal_core import frame
from shoal_transport.memory import FaultPlan, MemoryChannel, MemoryListener

T = TypeVar("T")
HELD_MAX_S = 20.0


class Held:
    """One reply that is kept back."""

    def __init__(self) -> None:
        self.arrived = threading.Event()
        self.released = threading.Event()

    def await_arrival(self) -> None:
        assert self.arrived.wait(HELD_MAX_S), "no such reply was sent"

    def let_go(self) -> None:
        self.released.set()


class WatchedDoor(MemoryListener):
    """A listener that connects to another one, under this plan."""

    def __init__(self, node: MemoryListener) -> None:
        super().__init__()
        self._node = node
        self._lock = threading.Lock()
        self._faults: list[tuple[int, str]] = []
        self._held: list[tuple[int, Held]] = []
        self.replies: Counter[int] = Counter()
        """By verb, failures as frame.FAILURE; what the node asks for by itself under its verb too."""

    def connect(self, plan: FaultPlan | None = None) -> MemoryChannel:
        assert plan is None
        return self._node.connect(self._plan)

    def fault(self, verb: ModuleType, *faults: str) -> None:
        """The next replies to this verb suffer these, in this order."""
        with self._lock:
            self._faults += [(verb.KIND, fault) for fault in faults]

    def hold(self, verb: ModuleType) -> Held:
        """The next reply to this verb waits."""
        held = Held()
        with self._lock:
            self._held.append((verb.KIND, held))
        return held

    def count(self, *verbs: ModuleType) -> int:
        """Replies to these verbs, or to all."""
        kinds = [verb.KIND for verb in verbs] or list(self.replies)
        return sum(self.replies[kind] for kind in kinds)

    def _plan(self, number: int, kind: int) -> str | None:
        verb = kind if kind == frame.FAILURE else kind & ~frame.REPLY
        with self._lock:
            self.replies[verb] += 1
            held = _taken(self._held, verb)
            fault = _taken(self._faults, verb)
        if held is not None:
            held.arrived.set()
            held.released.wait(HELD_MAX_S)
        return fault


def _taken(waiting: list[tuple[int, T]], verb: int) -> T | None:
    for position, (kind, value) in enumerate(waiting):
        if kind == verb:
            del waiting[position]
            return value
    return None
