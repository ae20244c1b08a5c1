"""What a node knows of the others, and what follows: where a missing block may come from, and who is to hold it.

A node that misses a block looks for it at its peers before the origin is asked, such that the origin is asked once for
the whole cluster: every block has one leader, the first owner in line that answers, and only the leader goes to the
origin. Whoever else misses it asks the nearest owner whether it has it, then the leader to bring it. The leader itself
asks who else may hold it, the other owners and those of the view before, and never waits for anybody who waits for it:
`only_if_held` requests are answered at once, and a request that was passed on HOPS_MAX times is passed on no more.
Where two nodes disagree on who leads (their views or their suspicions differ) the origin is asked twice, no worse.

Two kinds of doubt. The router's circuit opens after a few failures and makes reads go elsewhere for a moment; a node
that did not answer for `repair_after_ns` is dead, and then its blocks are brought to those who come after it in line.
Pure: time and chance come from outside.
"""

from __future__ import annotations

from shoal_core import limits, view
from shoal_core.router import STAND_INS, Router
from shoal_core.routing import Attempt, Chance, Here


class Cluster:
    """One node's picture of all. Not thread-safe: the runtime guards it with its lock."""

    def __init__(self, node_id: str, chance: Chance, repair_after_ns: int) -> None:
        self.node_id = node_id
        self.router = Router(Here(node_id), chance)
        self.me: int | None = None
        """This node's place in the view; None where the view does not name it."""
        self.leaving = False
        """This node hands its blocks over: it counts itself among the owners no more."""
        self.dead: frozenset[str] = frozenset()
        self._repair_after_ns = repair_after_ns
        self._heard_ns: dict[str, int] = {}
        self._moved: list[int | None] = []
        """By place in the view before: the same node's place now."""

    @property
    def epoch(self) -> int:
        return self.router.epoch

    @property
    def alone(self) -> bool:
        """Whether there is nobody to ask."""
        known = self.router.view
        return known is None or all(node.id == self.node_id or node.status == "gone" for node in known.nodes)

    def adopt(self, offered: view.View, now_ns: int) -> bool:
        """Whether the offered view is later than the one held."""
        if not self.router.adopt(offered):
            return False
        self.me = offered.position(self.node_id)
        if self.me is not None:
            own = offered.nodes[self.me]
            self.router.here = Here(self.node_id, own.zone, own.rack)
        places = {node.id: place for place, node in enumerate(offered.nodes)}
        before = self.router.before
        self._moved = [places.get(node.id) for node in before.view.nodes] if before is not None else []
        known = set(places)
        self._heard_ns = {node_id: self._heard_ns.get(node_id, now_ns) for node_id in known}
        self.dead = self.dead & known
        return True

    def others(self) -> list[view.Node]:
        """Nodes to keep in touch with."""
        known = self.router.view
        return [] if known is None else [
            node for node in known.nodes if node.id != self.node_id and node.status != "gone"
        ]  # fmt: skip

    # Where a missing block may come from

    def ways(self, key: bytes, replica_count: int | None, hops: int, now_ns: int) -> list[Attempt]:
        """Whom to ask, in order; after them the origin. Nobody where this node is alone."""
        if self.alone:
            return []
        router = self.router
        line = router.owners(key, replica_count, now_ns)
        others = [place for place in line if place != self.me]
        if not line or line[0] == self.me or hops >= limits.HOPS_MAX:
            places = others + self._owners_before(key, replica_count, line, now_ns)
            return [_only_if_held(attempt) for attempt in router.order(places, now_ns)]
        ordered = router.order(others, now_ns)
        by_place = {attempt.place: attempt for attempt in ordered}
        found: list[Attempt] = []
        if ordered and ordered[0].place != line[0]:
            found.append(_only_if_held(ordered[0]))
        for place in line[:2]:
            if place == self.me:
                break  # with the leader gone this node leads
            if place in by_place:
                found.append(by_place[place])
        return found

    def _owners_before(self, key: bytes, replica_count: int | None, line: list[int], now_ns: int) -> list[int]:
        """Present places of who owned the key under the view before, and may not have handed it over yet."""
        router, before = self.router, self.router.before
        if before is None:
            return []
        found: list[int] = []
        for old in before.owners_of(key)[: router.replicas(replica_count)]:
            place = self._moved[old]
            if place is None or place == self.me or place in line:
                continue
            if not router.is_down(router.node(place), now_ns):
                found.append(place)
        return found

    # Who is to hold a block

    def owners(self, key: bytes, replica_count: int | None) -> list[str]:
        """Ids of the nodes that are to hold the block now, the first in line first: those that are not dead."""
        router = self.router
        if router.view is None:
            return [self.node_id]
        count = router.replicas(replica_count)
        found: list[str] = []
        for place in router.placement.owners_of(key)[: count + STAND_INS]:
            node_id = router.view.nodes[place].id
            if node_id not in self.dead and not (self.leaving and node_id == self.node_id):
                found.append(node_id)
        return found[:count]

    def in_line(self, key: bytes, count: int) -> list[str]:
        """The first so many that are to hold it while it is hot."""
        return self.owners(key, min(count, view.REPLICA_COUNT_MAX))

    # Life and death

    def heard(self, node_id: str, now_ns: int) -> None:
        """A node answered something."""
        self._heard_ns[node_id] = now_ns

    def look(self, now_ns: int) -> bool:
        """Whether other nodes count as dead than did before: then what is to be held by whom has changed."""
        dead = frozenset(
            node.id for node in self.others() if now_ns - self._heard_ns.get(node.id, now_ns) > self._repair_after_ns
        )
        if dead == self.dead:
            return False
        self.dead = dead
        return True


def _only_if_held(attempt: Attempt) -> Attempt:
    return Attempt(attempt.place, attempt.distance, True)
