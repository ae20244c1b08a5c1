"""A simulated node among the others: fills from peers, what is pulled, the view, pings, walks and offers.

Classes derive from the real ones: what they decide inside a step is the real code. Only what waits, for the network or
for time, is written anew here, in the same order.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from shoal_core import placement, view
from shoal_core.errors import DeadlineExceeded, NodeGone, NoSpace, ShoalError
from shoal_core.gather import Gather
from shoal_core.router import Router
from shoal_core.verbs import offer
from shoal_core.verbs import view as view_verb
from shoal_node.cluster import Cluster
from shoal_node.fill import Flight
from shoal_node.handover import Handover, Offer
from shoal_node.heat import Heat
from shoal_node.near import NearCopies
from shoal_node.peers import _BRINGS, _LOOKS, Peers, _brings
from shoal_node.pulling import Pulling
from shoal_node.upkeep import Upkeep
from tests.simulation.reader import Reader
from tests.simulation.sim_fill import SimTurns
from tests.simulation.world import MS, Future, S, Work

if TYPE_CHECKING:
    from tests.simulation.sim_node import SimNode

_TICK_NS = 100 * MS
_PING_NS = 1 * S
_OFFER_NS = 5 * S
_SLICE = 500
_OFFERS_AT_ONCE = 4
_WALK_AGAIN_NS = 5 * S
_UNDER_WAY_MAX = 64
_LOOK_NS = 50 * MS

Placements = dict[int, placement.Placement]
"""By epoch. Placement is a function of the view, so all readers of a world may share what was computed."""


class SharedRouter(Router):
    """A router whose placements are shared with all others, for the sake of memory and time."""

    placements: Placements

    def adopt(self, offered: view.View) -> bool:
        if not super().adopt(offered):
            return False
        self._placement = self.placements.setdefault(offered.epoch, self.placement)
        return True


def shared_router(router: Router, placements: Placements) -> SharedRouter:
    """As the one given, which has no view yet."""
    made = SharedRouter(router.here, router._chance)
    made.placements = placements
    return made


class _Signal:
    """Stands for an asyncio.Event."""

    def __init__(self) -> None:
        self.future = Future()

    def set(self) -> None:
        self.future.set()

    def clear(self) -> None:
        self.future = Future()


class SimPeers(Peers):
    """One for the whole node."""

    def __init__(self, node: SimNode, placements: Placements) -> None:
        config = node.config.cluster
        assert config is not None
        self.clock_ns = lambda: node.world.now_ns  # type: ignore[method-assign]
        self._node = node  # type: ignore[assignment]
        self._world = node.world
        self.config = config
        self.lock = threading.Lock()
        self.cluster = Cluster(node.config.node_name, node.world.chance, int(config.repair_after_s * S))
        self.cluster.router = shared_router(self.cluster.router, placements)
        identity = node.config.node_name.encode().ljust(16, b"n")[:16]
        self.reader = Reader(node.network, node.process, node.machine, self.cluster.router, identity, node.run_of_peers)
        self._bring_turns = SimTurns(_BRINGS)  # type: ignore[assignment]
        self._look_turns = SimTurns(_LOOKS)  # type: ignore[assignment]
        self.near = NearCopies(node.state.index, int(config.near_fraction * node.config.dram.budget_bytes))
        self.heat = Heat()
        self.handover = Handover()
        self.pulling = SimPulling(node, self)
        self.upkeep = SimUpkeep(node, self)

    @property
    def turns_taken(self) -> int:
        both: tuple[Any, Any] = self._bring_turns, self._look_turns
        return sum(turns.count - turns.free for turns in both)

    def adopt(self, offered: view.View) -> bool:
        if not self.cluster.adopt(offered, self._world.now_ns):
            return False
        self._world.note("view", self._node.config.node_name, None, offered.epoch)
        with self._node.step():
            self.heat.view_changed()
        self.reader.keep_only(offered)
        self.upkeep.view_changed()
        return True

    def fill(self, flights: list[Flight], origin: Callable[[list[Flight]], None]) -> Work:  # type: ignore[override]
        filler = self._node.filler
        turns = self._bring_turns if _brings(flights[0]) else self._look_turns
        ticket: Any = filler.turn(turns, flights)  # type: ignore[arg-type]
        yield from ticket.enter()
        rest: list[Flight] = []
        try:
            placed: list[Flight] = []
            for flight in flights:
                try:
                    flight.slot = yield from filler.reserve(flight.record.space, flight.size, [flight])  # type: ignore[misc]
                    placed.append(flight)
                except NoSpace as error:
                    filler.failed([flight], error)
            if placed:
                rest = yield from self._gathered(placed)
        finally:
            ticket.leave()
        if rest:
            origin(rest)

    def _gathered(self, flights: list[Flight]) -> Generator[Any, Any, list[Flight]]:
        items = [self._item(flight) for flight in flights]
        until_ns = self._world.now_ns + int(self._node.config.fill.timeout_s * S)
        gather = Gather(self.cluster.router, [flight.size for flight in flights], self._ways(flights))
        hops = max(flight.hops for flight in flights) + 1
        try:
            left = yield from self.reader.run(
                gather, items, until_ns, hops, lambda numbers: self._land(flights, items, numbers)
            )
        except (DeadlineExceeded, NodeGone):
            left = [number for number, flight in enumerate(flights) if not flight.landed]
        left_set = set(left)
        for number, flight in enumerate(flights):
            if not flight.landed and number not in left_set:
                self._node.filler.failed([flight], items[number].error or NodeGone("no peer gave it"))
        return [flights[number] for number in left]


class SimPulling(Pulling):
    """Offers are answered by the real one; here is its loop."""

    def __init__(self, node: SimNode, peers: SimPeers) -> None:
        self._node = node  # type: ignore[assignment]
        self._peers = peers
        self._queue = deque()
        self._queued = set()
        self._under_way = set()
        self._more = _Signal()  # type: ignore[assignment]
        self.pulled_bytes = 0
        node.world.spawn(node.process, self._run(node))

    def _run(self, node: SimNode) -> Work:
        rate = self._peers.config.repair_bytes_per_s
        more: Any = self._more
        while True:
            yield more.future
            more.clear()
            while batch := self._next():
                began_ns = node.world.now_ns
                size = sum(block.size for block in batch)
                self._start(batch)
                self.pulled_bytes += size
                while len(self._landing()) > _UNDER_WAY_MAX:
                    yield _LOOK_NS
                yield max(0, int(size / rate * S) - (node.world.now_ns - began_ns))


class SimUpkeep(Upkeep):
    """Walks are sliced by the real one; here are its loops."""

    def __init__(self, node: SimNode, peers: SimPeers) -> None:
        self._node = node  # type: ignore[assignment]
        self._sim = node
        self._world = node.world
        self._peers = peers
        self._pinged: set[str] = set()
        self._walk_reason: str | None = None
        self._walked_ns = self._scrubbed_ns = node.world.now_ns
        self.walking = False
        for work in (self._watching(), self._walking(), self._offering()):
            node.world.spawn(node.process, work)

    @property
    def idle(self) -> bool:
        """Whether nothing is to be said to anybody."""
        return not self.walking and self._walk_reason is None and not self._peers.handover.queued

    def _watching(self) -> Work:
        world, peers = self._world, self._peers
        yield int(world.chance.random() * S)
        while True:
            for node in peers.cluster.others():
                if node.id not in self._pinged:
                    self._pinged.add(node.id)
                    world.spawn_now(self._sim.process, self._ask_view(node.id))
            if peers.cluster.look(world.now_ns):
                world.note("dead", self._sim.config.node_name, None, sorted(peers.cluster.dead))
                self._want_walk("repair")
            if world.now_ns - self._scrubbed_ns > peers.config.scrub_s * S:
                self._scrubbed_ns = world.now_ns
                self._want_walk("scrub")
            self._heat()
            yield _PING_NS

    def _ask_view(self, node_id: str) -> Work:
        peers = self._peers
        try:
            request = view_verb.Request(peers.epoch)
            reply = yield from peers.reader.call(node_id, view_verb.KIND, request, self._world.now_ns + _PING_NS)
        except ShoalError:
            return
        finally:
            self._pinged.discard(node_id)
        peers.cluster.heard(node_id, self._world.now_ns)
        if reply.view is not None:
            peers.adopt(reply.view)

    def _walking(self) -> Work:
        node, peers, world = self._sim, self._peers, self._world
        while True:
            reason, self._walk_reason = self._walk_reason, None
            if reason is None or peers.cluster.alone:
                self._end_drain()
                yield _TICK_NS
                continue
            self._walked_ns = world.now_ns
            self.walking = True
            with node.step() as state:
                peers.handover.begin_walk(reason)
                entries = state.index.linked()
            for start in range(0, len(entries), _SLICE):
                while not self._has_room() and self._walk_reason is None:
                    yield _TICK_NS
                if self._walk_reason is not None:
                    break
                self._slice(entries[start : start + _SLICE])
                yield 1 * MS
            else:
                with node.step():
                    peers.handover.walk_ended()
            self.walking = False

    def _end_drain(self) -> None:
        node = self._sim
        if node.draining and not node.refusing:
            if self._peers.handover.is_done:
                self._world.note("drained", node.config.node_name)
                node.refuse()
            elif self._peers.handover.needs_walk and self._world.now_ns - self._walked_ns > _WALK_AGAIN_NS:
                self._walk_reason = "drain"

    def _offering(self) -> Work:
        node, peers, world = self._sim, self._peers, self._world
        while True:
            offers: list[Offer] = []
            while len(offers) < _OFFERS_AT_ONCE and (found := peers.handover.next_offer(world.now_ns)) is not None:
                offers.append(found)
            if not offers:
                yield _TICK_NS
                continue
            for task in [world.spawn(node.process, self._sent(each)) for each in offers]:
                yield task.ended

    def _sent(self, offered: Offer) -> Work:
        node, peers, world = self._sim, self._peers, self._world
        try:
            target = self._find(offered.target)
            request = offer.Request(
                node.config.node_name, peers.epoch, offered.reason, [offer.Block(*block) for block in offered.blocks]
            )
            reply = yield from peers.reader.call(target.id, offer.KIND, request, world.now_ns + _OFFER_NS)
        except ShoalError:
            with node.step():
                peers.handover.failed(offered, world.now_ns)
            return
        with node.step():
            for complete in peers.handover.answered(offered, reply.states, world.now_ns):
                peers.complete(complete)
