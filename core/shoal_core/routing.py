"""In which order a reader tries those who may have a block.

Nearer comes first: same process, same node, rack, zone, another zone, and last the origin. At equal distance the less
busy peer comes first, where each recent failure counts like twice the load; equals keep the order of placement.

A peer that failed several times in a row is not asked for a while (circuit breaker): the pause doubles with each
further failure and is jittered, so that its readers do not come back all at once. When the pause is over one attempt
may go; `begin` starts the next pause with it, so a probe whose outcome is never reported blocks nothing for ever, and
only a success closes the circuit. Time and chance are the caller's.
"""

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from shoal_core import view

FAILURES_TO_OPEN = 3
"""In a row. Fewer would shut out a peer for one slow moment, more would cost each reader a timeout more."""

PAUSE_NS_FIRST = 100_000_000
PAUSE_NS_MAX = 30_000_000_000
"""A peer that is back is noticed within this."""

FAILURE_MEMORY_NS = 60_000_000_000
"""A failure longer ago than this says nothing about now."""


class Chance(Protocol):
    """A seeded random.Random, as far as it is needed."""

    def random(self) -> float: ...


class Distance(enum.IntEnum):
    """How far bytes travel."""

    PROCESS = 0
    NODE = 1
    RACK = 2
    ZONE = 3
    FAR = 4
    ORIGIN = 5


class Here(msgspec.Struct, frozen=True):
    """Where the reader is."""

    node_id: str = ""
    """The cache node on the reader's own host; empty where there is none."""
    zone: str = ""
    rack: str = ""
    in_process: bool = False
    """The reader runs inside that node's process."""


class Attempt(msgspec.Struct, frozen=True):
    """One try: a node's position in the view, or None for the origin."""

    place: int | None
    distance: Distance


@dataclass(slots=True)
class Peer:
    """What a reader remembers of one node, over views."""

    load: float = 0.0
    """As the node last reported it: 0 idle, 1 busy."""
    in_flight: int = 0
    """This reader's own attempts that have begun and not ended."""
    failure_count: int = 0
    """In a row."""
    failed_at_ns: int = 0
    pause_ns: int = 0
    retry_at_ns: int = 0
    """Not to be asked before; counts only while the circuit is open."""

    def is_open(self, now_ns: int) -> bool:
        """Whether the peer is to be left alone at present."""
        return self.failure_count >= FAILURES_TO_OPEN and now_ns < self.retry_at_ns

    def begin(self, now_ns: int) -> None:
        """An attempt starts; each is followed by `succeeded`, `failed` or `cancelled`."""
        self.in_flight += 1
        if self.failure_count >= FAILURES_TO_OPEN:
            self.retry_at_ns = now_ns + self.pause_ns

    def succeeded(self, load: float | None = None) -> None:
        self.in_flight -= 1
        self.failure_count = 0
        self.pause_ns = 0
        if load is not None:
            self.load = load

    def cancelled(self) -> None:
        """The attempt ended without telling anything about the peer."""
        self.in_flight -= 1

    def failed(self, now_ns: int, chance: Chance) -> None:
        self.in_flight -= 1
        if now_ns - self.failed_at_ns > FAILURE_MEMORY_NS:
            self.failure_count = 0
            self.pause_ns = 0
        self.failure_count += 1
        self.failed_at_ns = now_ns
        if self.failure_count >= FAILURES_TO_OPEN:
            self.pause_ns = min(max(2 * self.pause_ns, PAUSE_NS_FIRST), PAUSE_NS_MAX)
            # From half of the pause to the whole: readers spread, and none comes back at once.
            self.retry_at_ns = now_ns + int(self.pause_ns * (0.5 + chance.random() / 2))

    def cost(self, now_ns: int) -> float:
        """For comparing peers at equal distance."""
        recent = self.failure_count if now_ns - self.failed_at_ns <= FAILURE_MEMORY_NS else 0
        return (1 + self.in_flight) * (1 + self.load) * 2**recent


def distance(here: Here, node: view.Node) -> Distance:
    """From the reader to a node; an unknown zone or rack is the same as no other."""
    if here.node_id and here.node_id == node.id:
        return Distance.PROCESS if here.in_process else Distance.NODE
    if not here.zone or here.zone != node.zone:
        return Distance.FAR
    return Distance.RACK if here.rack and here.rack == node.rack else Distance.ZONE


def attempts(here: Here, of: view.View, holders: Iterable[int], peers: dict[str, Peer], now_ns: int) -> list[Attempt]:
    """Whom to try, in order, the origin last. `holders` are positions in the view, in the order of placement."""
    ranked: list[tuple[Distance, float, int, Attempt]] = []
    for order, place in enumerate(dict.fromkeys(holders)):
        node = of.nodes[place]
        peer = peers.get(node.id)
        if node.status == "gone" or (peer is not None and peer.is_open(now_ns)):
            continue
        far = distance(here, node)
        ranked.append((far, 1.0 if peer is None else peer.cost(now_ns), order, Attempt(place, far)))
    ranked.sort(key=lambda row: row[:3])
    return [*(row[3] for row in ranked), Attempt(None, Distance.ORIGIN)]
