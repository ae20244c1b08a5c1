"""In which order a reader tries those who may have a block.

Nearer comes first: same process, same node, rack, zone, another zone, and last the origin. At equal distance the less
busy peer comes first, where each recent failure counts like twice the load; equals keep the order of placement. A peer
whose bytes took many times as long as others' do comes after all others for a while, however near it is.

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

SLOW_NS_LEAST = 10_000_000
"""Nobody is slow whose answer took less."""
SLOW_PAUSE_NS_FIRST = 1_000_000_000

LOAD_MEMORY_NS = 1_000_000_000
"""What a node said of its load longer ago than this says nothing about now: else one that was busy when last asked
would never be asked again, while others are less busy."""

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
    only_if_held: bool = False
    """The node gives the block if it has it, and does not bring it from elsewhere."""


@dataclass(slots=True)
class Peer:
    """What a reader remembers of one node, over views."""

    load: float = 0.0
    """As the node last reported it: 0 idle, 1 busy."""
    load_at_ns: int = 0
    in_flight: int = 0
    """This reader's own attempts that have begun and not ended."""
    failure_count: int = 0
    """In a row."""
    failed_at_ns: int = 0
    pause_ns: int = 0
    retry_at_ns: int = 0
    """Not to be asked before; counts only while the circuit is open."""
    slow_pause_ns: int = 0
    slow_until_ns: int = 0
    """Its last answers took many times as long as others': until then it comes after all that do not."""

    def is_open(self, now_ns: int) -> bool:
        """Whether the peer is to be left alone at present."""
        return self.failure_count >= FAILURES_TO_OPEN and now_ns < self.retry_at_ns

    def begin(self, now_ns: int) -> None:
        """An attempt starts; each is followed by `succeeded`, `failed` or `cancelled`."""
        self.in_flight += 1
        if self.failure_count >= FAILURES_TO_OPEN:
            self.retry_at_ns = now_ns + self.pause_ns

    def succeeded(self, load: float | None = None, now_ns: int = 0) -> None:
        self.in_flight -= 1
        self.failure_count = 0
        self.pause_ns = 0
        if load is not None:
            self.load, self.load_at_ns = load, now_ns

    def took(self, transfer_ns: int, slow_ns: float, now_ns: int, chance: Chance) -> None:
        """An answer's bytes took so long, where `slow_ns` would be slow."""
        if not slow_ns or transfer_ns <= max(slow_ns, SLOW_NS_LEAST):
            self.slow_pause_ns = self.slow_until_ns = 0
            return
        self.slow_pause_ns = min(max(2 * self.slow_pause_ns, SLOW_PAUSE_NS_FIRST), PAUSE_NS_MAX)
        self.slow_until_ns = now_ns + int(self.slow_pause_ns * (0.5 + chance.random() / 2))

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
        load = self.load if now_ns - self.load_at_ns <= LOAD_MEMORY_NS else 0.0
        return (1 + self.in_flight) * (1 + load) * 2**recent


def distance(here: Here, node: view.Node) -> Distance:
    """From the reader to a node; an unknown zone or rack is the same as no other."""
    if here.node_id and here.node_id == node.id:
        return Distance.PROCESS if here.in_process else Distance.NODE
    if not here.zone or here.zone != node.zone:
        return Distance.FAR
    return Distance.RACK if here.rack and here.rack == node.rack else Distance.ZONE


def attempts(here: Here, of: view.View, holders: Iterable[int], peers: dict[str, Peer], now_ns: int) -> list[Attempt]:
    """Whom to try, in order, the origin last. `holders` are positions in the view, in the order of placement."""
    ranked: list[tuple[bool, Distance, float, int, Attempt]] = []
    for order, place in enumerate(dict.fromkeys(holders)):
        node = of.nodes[place]
        peer = peers.get(node.id)
        if node.status == "gone" or (peer is not None and peer.is_open(now_ns)):
            continue
        far = distance(here, node)
        slow = peer is not None and now_ns < peer.slow_until_ns
        ranked.append((slow, far, 1.0 if peer is None else peer.cost(now_ns), order, Attempt(place, far)))
    ranked.sort(key=lambda row: row[:4])
    return [*(row[4] for row in ranked), Attempt(None, Distance.ORIGIN)]
