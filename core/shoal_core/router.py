"""Whom one reader asks for a block: the view it holds, what it remembers of each node, and when waiting is enough.

A router belongs to one reader: a client, or a node that looks for blocks at its peers. It answers three questions.
Which nodes own a key (by placement, without those that do not answer: then the next in line stands in, the same one for
every reader that noticed). In which order to try them (`routing.attempts`: distance, then load and failures). How long
to wait before somebody else is asked as well: the 95th percentile of the first answers at that distance, and at most
HEDGE_NS_MAX; of all requests one in ten may be asked twice, so that a slow cluster is not made slower. Pure: time and
chance come from outside.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from shoal_core import placement, routing, view
from shoal_core.latency import Recent
from shoal_core.routing import Attempt, Chance, Distance, Here, Peer

STAND_INS = 2
"""Owners looked up beyond the replicas: who stands in while owners do not answer."""

HEDGE_NS_FIRST = 100_000_000
"""While nothing is known of a distance."""
HEDGE_NS_MIN = 2_000_000
HEDGE_NS_MAX = 250_000_000
"""So that three requests to a node that stopped, after which it is left alone, cost less than a second."""

HEDGES_PER_REQUEST = 0.1
HEDGES_MAX = 10.0
"""Saved up at most: a node that stops in mid-flight has this many requests asked again at once."""

SLOW_FACTOR = 8
"""A transfer that takes this many times the 95th percentile of its distance is given up, if another node may help."""
SLOW_NS_MIN = 400_000_000
SLOW_BYTES_MIN = 32_768
"""Of an answer that tells how fast a node sends: of fewer the time is that of one packet."""

HOT_KEYS_MAX = 1 << 14
HOT_NS = 60_000_000_000
"""How long a reader remembers that a block has more holders than owners."""


class Router:
    """One reader's knowledge of the cluster. Not thread-safe."""

    def __init__(self, here: Here, chance: Chance) -> None:
        self.here = here
        self.view: view.View | None = None
        self.before: placement.Placement | None = None
        """Of the view before this one: its owners may still have what the present owners do not have yet."""
        self.peers: dict[str, Peer] = {}
        """By node id, over views."""
        self.without = ""
        """Id of a node that is known not to answer at present: the one on this reader's machine, when it was lost."""
        self.hedges = 0
        """Requests that were asked of somebody else as well."""
        self._chance = chance
        self._placement: placement.Placement | None = None
        self._first = {distance: Recent() for distance in Distance}
        self._per_byte = {distance: Recent() for distance in Distance}
        self._tokens = HEDGES_MAX
        self._hot: OrderedDict[bytes, tuple[int, int]] = OrderedDict()

    @property
    def epoch(self) -> int:
        """Of the view held; 0: none."""
        return self.view.epoch if self.view is not None else 0

    @property
    def placement(self) -> placement.Placement:
        """Of the present view. Only while there is one."""
        assert self._placement is not None
        return self._placement

    def adopt(self, offered: view.View) -> bool:
        """Whether the offered view is later than the one held; then it is the one from now on."""
        if view.newer(self.view, offered) is self.view:
            return False
        offered_placement = placement.Placement(offered, view.REPLICA_COUNT_MAX)  # first: it may refuse
        if self._placement is not None:
            self.before = self._placement
        known = {node.id: node.addresses for node in self.view.nodes} if self.view is not None else {}
        same = {node.id for node in offered.nodes if known.get(node.id) == node.addresses}
        self.view = offered
        self._placement = offered_placement
        for other in self.peers.keys() - same:  # gone, or at a place where it never failed
            if not self.peers[other].in_flight:  # else its requests end first
                del self.peers[other]
        return True

    def node(self, place: int) -> view.Node:
        assert self.view is not None
        return self.view.nodes[place]

    def peer(self, node_id: str) -> Peer:
        peer = self.peers.get(node_id)
        if peer is None:
            peer = self.peers[node_id] = Peer()
        return peer

    def is_down(self, node: view.Node, now_ns: int) -> bool:
        """Whether this reader leaves the node alone at present."""
        peer = self.peers.get(node.id)
        return node.status == "gone" or node.id == self.without or (peer is not None and peer.is_open(now_ns))

    def replicas(self, replica_count: int | None) -> int:
        """Owners a block has: its data set's number, else the view's."""
        assert self.view is not None
        return self.view.replica_count if replica_count is None else replica_count

    def owners(self, key: bytes, replica_count: int | None, now_ns: int) -> list[int]:
        """Places of the owners that answer, first owner first; the next in line where one does not."""
        count = self.replicas(replica_count)
        return self._answering(self.placement.owners_of(key)[: count + STAND_INS], count, now_ns)

    def candidates(self, key: bytes, replica_count: int | None, now_ns: int) -> list[Attempt]:
        """Whom to ask, in order, the origin last."""
        return self.ways([(key, replica_count)], now_ns)[0]

    def ways(self, wanted: Iterable[tuple[bytes, int | None]], now_ns: int) -> list[list[Attempt]]:
        """The `candidates` of many keys, each with its number of replicas. Those with the same line share one list."""
        assert self.view is not None
        owners_of = self.placement.owners_of
        found: list[list[Attempt]] = []
        by_line: dict[tuple[int, tuple[int, ...]], list[Attempt]] = {}
        for key, replica_count in wanted:
            count = self.replicas(replica_count)
            known = self._hot.get(key)
            if known is not None and known[1] > now_ns:
                count = max(count, known[0])
            line = owners_of(key)[: count + STAND_INS]
            order = by_line.get((count, line))
            if order is None:
                order = by_line[count, line] = self._ranked(line, count, now_ns)
            found.append(order)
        return found

    def _ranked(self, line: tuple[int, ...], count: int, now_ns: int) -> list[Attempt]:
        """Those who are to hold the block, and then those who stand in, who must bring it themselves."""
        assert self.view is not None
        holders, stand_ins = line[:count], line[count:]
        tried = [place for place in holders if not self.is_down(self.node(place), now_ns)]
        ranked = routing.attempts(self.here, self.view, tried, self.peers, now_ns)
        if len(tried) < count:
            others = self._answering(stand_ins, count - len(tried), now_ns)
            ranked[-1:] = routing.attempts(self.here, self.view, others, self.peers, now_ns)
        return ranked

    def order(self, places: Sequence[int], now_ns: int) -> list[Attempt]:
        """The same for given nodes, without the origin."""
        assert self.view is not None
        return routing.attempts(self.here, self.view, places, self.peers, now_ns)[:-1]

    def is_hot(self, key: bytes, holder_count: int, now_ns: int) -> None:
        """A node said that so many of a block's owners in line hold it."""
        self._hot[key] = min(holder_count, view.REPLICA_COUNT_MAX), now_ns + HOT_NS
        self._hot.move_to_end(key)
        if len(self._hot) > HOT_KEYS_MAX:
            self._hot.popitem(last=False)

    def _answering(self, line: Sequence[int], count: int, now_ns: int) -> list[int]:
        """The first so many in a line that are not left alone."""
        return [place for place in line if not self.is_down(self.node(place), now_ns)][:count]

    # What happens to requests; nodes are named as they stood in the view of then

    def began(self, node: view.Node, now_ns: int) -> None:
        """A request was sent; each is followed by `answered`, `failed` or `cancelled`."""
        self._tokens = min(HEDGES_MAX, self._tokens + HEDGES_PER_REQUEST)
        self.peer(node.id).begin(now_ns)

    def answered(
        self,
        node: view.Node,
        first_ns: int,
        size: int = 0,
        transfer_ns: int = 0,
        load: float | None = None,
        now_ns: int = 0,
    ) -> None:
        """The answer began `first_ns` after it was asked for, and its `size` bytes took `transfer_ns` more."""
        peer = self.peer(node.id)
        peer.succeeded(load, now_ns)
        distance = routing.distance(self.here, node)
        self._first[distance].add(first_ns)
        if size:
            self._per_byte[distance].add(transfer_ns / size)
        if size >= SLOW_BYTES_MIN:
            usual = min(
                (known for each in self._per_byte.values() if (known := each.median()) is not None), default=0.0
            )
            peer.took(transfer_ns, SLOW_FACTOR * usual * size, now_ns, self._chance)

    def failed(self, node: view.Node, now_ns: int) -> None:
        self.peer(node.id).failed(now_ns, self._chance)

    def cancelled(self, node: view.Node) -> None:
        self.peer(node.id).cancelled()

    # Patience

    def hedge_ns(self, node: view.Node) -> int:
        """How long to wait for the first byte before somebody else is asked as well."""
        p95 = self._first[routing.distance(self.here, node)].p95()
        return HEDGE_NS_FIRST if p95 is None else min(max(int(p95), HEDGE_NS_MIN), HEDGE_NS_MAX)

    def slow_ns(self, node: view.Node, size: int) -> int:
        """How long the bytes of an answer may take before the request is given up, where others may help."""
        p95 = self._per_byte[routing.distance(self.here, node)].p95()
        return SLOW_NS_MIN if p95 is None else max(SLOW_NS_MIN, int(SLOW_FACTOR * p95 * size))

    def may_hedge(self) -> bool:
        """Takes one from what is saved up."""
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        self.hedges += 1
        return True
