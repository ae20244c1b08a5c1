"""What a preload counts and how it paces itself. Pure.

Every node brings the blocks that it is to hold itself, so what nodes count adds up: an object counts at the node that
leads its first block, a block's bytes at each node that is to hold it. Sums over all nodes of one epoch are therefore
exactly the objects, and replicas times their bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from shoal_core import view


class Preload(msgspec.Struct, frozen=True):
    """A part of a data set that is to be here, and to be shown to be here."""

    dataset: str
    paths: tuple[str, ...] = ()
    """Objects or prefixes below the data set's URL; empty: all of it."""
    bytes_per_s: float | None = None
    """Of the whole pool; a node takes its share."""
    verify: bool = True


State = Literal["listing", "filling", "verifying", "done", "failed"]
ERRORS_MAX = 5


class Progress(msgspec.Struct):
    """Of one node, in one run, under the view of one epoch; as /status shows it."""

    state: State = "listing"
    epoch: int = 0
    objects_scanned: int = 0
    objects_done: int = 0
    objects_failed: int = 0
    bytes_scanned: int = 0
    bytes_done: int = 0
    bytes_verified: int = 0
    bytes_owned: int = 0
    """Known when all is listed; 0 before."""
    errors: list[str] = []

    def note(self, error: str) -> None:
        """Keep it, if it is one of the first that differ."""
        if error not in self.errors and len(self.errors) < ERRORS_MAX:
            self.errors.append(error)

    def fail(self, reason: str) -> None:
        """It ends here; the reason goes first."""
        self.state = "failed"
        self.errors = [reason, *(error for error in self.errors if error != reason)][:ERRORS_MAX]


Placement = tuple[object, ...]


def placement_of(known: view.View) -> Placement:
    """What of a view decides who holds what: another one, and the run begins anew; else addresses changed, no more."""
    return (
        known.replica_count,
        tuple((node.id, node.capacity_bytes, node.zone, node.rack) for node in known.nodes if node.status == "ready"),
    )


def share(known: view.View, node_id: str) -> float:
    """This node's part of what the whole pool may bring, by capacity."""
    ready = {node.id: node.capacity_bytes for node in known.nodes if node.status == "ready"}
    total = sum(ready.values())
    return ready.get(node_id, 0) / total if total else 0.0


def roots(paths: Sequence[str]) -> list[str]:
    """The paths that no other one covers; '' is all of it."""
    kept: list[str] = []
    for path in sorted({path.strip("/") for path in paths}) or [""]:
        if not any(root == "" or path.startswith(f"{root}/") for root in kept):
            kept.append(path)
    return kept


class Throttle:
    """Bytes a second; what was not used in the last second is lost."""

    _SAVED_S = 1.0

    def __init__(self, bytes_per_s: float | None) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_s: float | None = None
        """When everything so far is paid for."""

    def delay_s(self, size: int, now_s: float) -> float:
        """How long to wait before `size` bytes more may be asked for, which are taken as asked for then."""
        if self._bytes_per_s is None:
            return 0.0
        begin_s = now_s if self._free_s is None else max(self._free_s, now_s - self._SAVED_S)
        self._free_s = begin_s + size / self._bytes_per_s
        return max(0.0, begin_s - now_s)
