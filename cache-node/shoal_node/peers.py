"""The other nodes, as this one reads from them: which ways there are to a missing block, and the fills that take them.

Blocks that are missed together are looked for together: one gather for a batch, in a thread of its own, each block
received straight into the slot it will be served from, its digests checked there, then published as any fill. What no
peer gives goes on to the origin, in its slot. Turns bound how many gathers run at once; what somebody waits for goes
before what is only pulled (replicas, repair, hand-over: see `pulling`).
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import msgspec

from shoal_core import index, limits, view
from shoal_core.config import in_kubernetes
from shoal_core.errors import DeadlineExceeded, NodeGone, NoSpace, ShoalError
from shoal_core.gather import Gather
from shoal_core.routing import Attempt
from shoal_core.verbs import get, resolve
from shoal_node.cluster import Cluster
from shoal_node.handover import Complete, Handover
from shoal_node.heat import Heat
from shoal_node.near import NearCopies
from shoal_node.pulling import Pulling
from shoal_node.turns import Turns, in_thread
from shoal_node.upkeep import Upkeep
from shoal_transport.asking import Item
from shoal_transport.gathering import Gathering
from shoal_transport.links import Links, process_name
from shoal_transport.view_source import Follower, ViewSource

if TYPE_CHECKING:
    from shoal_core.config import Cluster as ClusterConfig
    from shoal_node.fill import Flight
    from shoal_node.inline import HeldBlock
    from shoal_node.runtime import Node
    from shoal_node.state import NodeState

_BRINGS, _LOOKS = 14, 6
"""Gathers at once that have a peer bring blocks, and that only look who has them: threads that mostly wait for the
network. Neither takes the other's turns: who brings waits for peers, and they wait for those who look."""

_BATCH_BYTES = limits.PART_BYTES * limits.PARTS_AHEAD


class Peers:
    """One for the whole node. `lock` guards the cluster's picture and its router."""

    clock_ns = staticmethod(time.monotonic_ns)
    """The simulation has another."""

    def __init__(self, node: Node, config: ClusterConfig) -> None:
        self._node = node
        self.config = config
        self.lock = threading.Lock()
        # Chance spreads retries of many nodes; nothing that must be repeatable hangs on it here.
        self.cluster = Cluster(node.config.node_name, random.Random(), int(config.repair_after_s * 1e9))
        name = f"node {node.config.node_name}, {process_name()}"
        self.links = Links(name, give_token=node.admission.peer_token)
        self.gathering = Gathering(self.links, self.lock)
        self.pool = ThreadPoolExecutor(_BRINGS + _LOOKS, "shoal-peers")
        self._bring_turns, self._look_turns = Turns(_BRINGS), Turns(_LOOKS)
        # Guarded by the node's lock, as they speak of its blocks.
        self.near = NearCopies(node.state.index, int(config.near_fraction * node.config.dram.budget_bytes))
        self.heat = Heat()
        self.handover = Handover()
        self.pulling = Pulling(node, self)
        self.upkeep = Upkeep(node, self)
        self._follower: Follower | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Follow the view and do what it asks for; on the node's loop."""
        if not in_kubernetes(self.config.view):  # else the pool's state brings it
            self._follower = Follower(ViewSource(self.config.view), self.config.poll_s, self.adopt)
        self._tasks = [asyncio.create_task(self.pulling.run()), asyncio.create_task(self.upkeep.run())]

    def stop(self) -> None:
        """What runs ends soon; on the node's loop."""
        self.gathering.closed = True
        for task in self._tasks:
            task.cancel()

    def close(self) -> None:
        """Blocks until nothing runs any more."""
        if self._follower is not None:
            self._follower.close()
        self.links.close()
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.upkeep.close()

    # The view

    def adopt(self, offered: view.View) -> bool:
        """Whether the view offered is later than the one held."""
        with self.lock:
            changed = self.cluster.adopt(offered, time.monotonic_ns())
        if changed:
            with self._node.step():
                self.heat.view_changed()
            self.links.keep_only(offered)
            self.upkeep.view_changed()
        return changed

    @property
    def epoch(self) -> int:
        return self.cluster.epoch

    def replicas(self, space: int) -> int | None:
        """Owners that the blocks of a space are to have; None: as the view says."""
        return self._node.state.spaces[space].replicas

    # Blocks of this node, told of inside a step

    def published(self, landed: Flight, entry: int, near: bool) -> None:
        """A block is listed. Near copies beyond their share go at once; a leader's block goes to its other owners."""
        state = self._node.state
        if near:
            self.near.add(entry, state.dram.slot_bytes_for(landed.size))
            self._keep_share(state)
        elif landed.owners and landed.owners[0] == self._node.config.node_name:
            space = state.spaces[landed.record.space]
            self.handover.filled(landed.key, space.uid, landed.size, landed.owners, landed.owners[0])

    def complete(self, what: Complete) -> None:
        """All nodes that a block was offered to have it: what is not to be here may go, what is hot may be told."""
        state = self._node.state
        if what.reason == "hot":
            self.heat.granted(what.key, what.holder_count)
        elif not what.is_owned and not self.cluster.leaving:
            entry = state.lookup(what.key)
            if entry != index.NONE and entry not in self.near:
                self.near.add(entry, state.dram.slot_bytes_for(state.index.size[entry]))
                self._keep_share(state)

    def _keep_share(self, state: NodeState) -> None:
        for entry in self.near.over():
            state.drop(entry, reason="near")

    def ended(self, entry: int) -> bool:
        """A block is found by nobody any more. Whether it was a near copy."""
        self.handover.gone(self._node.state.index.key(entry))
        return self.near.discard(entry)

    def hot(self, held: Sequence[tuple[int, HeldBlock]]) -> list[tuple[int, int]]:
        """Count what is given to others; which of it more nodes hold than own it."""
        hot: list[tuple[int, int]] = []
        with self._node.step() as state:
            now_s = self.clock_ns() / 1e9
            for position, block in held:
                key = state.index.key(block.entry)
                self.heat.read(key, now_s)
                count = self.heat.told(key)
                if count:
                    hot.append((position, count))
        return hot

    @property
    def _view_error(self) -> str | None:
        if self._follower is not None:
            return self._follower.last_error
        return self._node.pool.view_error if self._node.pool is not None else None

    def status(self) -> dict[str, Any]:
        """The cluster as this node sees it, as plain data. Inside a step."""
        known = self.cluster.router.view
        now_ns = time.monotonic_ns()
        return {
            "view": self.config.view,
            "view_error": self._view_error,
            "epoch": self.epoch,
            "nodes": {} if known is None else {
                node.id: {
                    "status": node.status,
                    "zone": node.zone,
                    "rack": node.rack,
                    "capacity_bytes": node.capacity_bytes,
                    "addresses": list(node.addresses),
                    "dead": node.id in self.cluster.dead,
                    "circuit_open": self.cluster.router.peer(node.id).is_open(now_ns),
                }
                for node in known.nodes
            },
            "left_to_the_next_walk": self.handover.left_out,
            "hedges": self.cluster.router.hedges,
            "connections_opened": self.links.opened,
        }  # fmt: skip

    # Fills

    def divide(self, flights: Sequence[Flight]) -> tuple[list[Flight], list[list[Flight]]]:
        """Those that only the origin has, and batches of those that a peer may have; their ways are set.

        What this node leads is not in one batch with what it has others bring. They may wait for what it leads while
        it waits for them, and a batch goes on to the origin when all of it was answered.
        """
        alone: list[Flight] = []
        bring: list[Flight] = []
        look: list[Flight] = []
        with self.lock:
            now_ns = self.clock_ns()
            for flight in flights:
                replicas = self.replicas(flight.record.space)
                flight.owners = self.cluster.owners(flight.key, replicas)
                if not flight.ways:
                    hops = flight.hops if flight.record.url else limits.HOPS_MAX  # else nobody could bring it
                    flight.ways = self.cluster.ways(flight.key, replicas, hops, now_ns)
                    flight.view = self.cluster.router.view
                if not flight.ways:
                    alone.append(flight)
                elif _brings(flight):
                    bring.append(flight)
                else:
                    look.append(flight)
        return alone, [*_batches(bring), *_batches(look)]

    async def fill(self, flights: list[Flight], origin: Callable[[list[Flight]], None]) -> None:
        """Bring a batch; `origin` is called, on the loop, with those that no peer gives."""
        node = self._node
        filler = node.filler
        try:
            async with filler.turn(self._bring_turns if _brings(flights[0]) else self._look_turns, flights):
                placed: list[Flight] = []
                for flight in flights:
                    try:
                        flight.slot = await filler.reserve(flight.record.space, flight.size, [flight])
                        placed.append(flight)
                    except NoSpace as error:
                        filler.failed([flight], error)
                flights = placed
                if not flights:
                    return
                rest = await in_thread(node.loop.run_in_executor(self.pool, self._gather, flights))
        except BaseException as error:
            kind = error if isinstance(error, ShoalError) else NoSpace("the node is shutting down")
            filler.failed([flight for flight in flights if not flight.landed], kind)
            if not isinstance(error, ShoalError):
                raise
            return
        if rest:
            origin(rest)

    def _gather(self, flights: list[Flight]) -> list[Flight]:
        """In a thread of the pool. The flights that go on to the origin; the others have landed."""
        items = [self._item(flight) for flight in flights]
        deadline = time.monotonic() + self._node.config.fill.timeout_s
        with self.lock:
            sizes = [flight.size for flight in flights]
            gather = Gather(self.cluster.router, sizes, self._ways(flights), part_bytes=self.links.part_bytes)
        hops = max(flight.hops for flight in flights) + 1
        try:
            left = self.gathering.run(
                gather, items, deadline, hops, got=lambda numbers: self._land(flights, items, numbers)
            )
        except (DeadlineExceeded, NodeGone):
            left = [number for number, flight in enumerate(flights) if not flight.landed]
        final = [number for number, flight in enumerate(flights) if not flight.landed and number not in set(left)]
        for number in final:
            error = items[number].error or NodeGone("no peer gave it")
            self._count(flights[number], type(error).__name__)
            self._node.filler.failed([flights[number]], error)
        for number in left:
            self._count(flights[number], "absent")
        return [flights[number] for number in left]

    def _ways(self, flights: list[Flight]) -> list[list[Attempt]]:
        """The ways as they stand in the present view: it may have changed while the batch waited for its turn."""
        view = self.cluster.router.view
        assert view is not None
        found: list[list[Attempt]] = []
        for flight in flights:
            if flight.view is not view and flight.view is not None:
                ids = [(flight.view.nodes[way.place or 0].id, way) for way in flight.ways]
                places = [(view.position(node_id), way) for node_id, way in ids]
                flight.ways = [msgspec.structs.replace(way, place=at) for at, way in places if at is not None]
                flight.view = view
            found.append(flight.ways)
        return found

    def _item(self, flight: Flight) -> Item:
        record = flight.record
        claim = None
        if record.url:
            claim = resolve.Wanted(record.url, record.size, record.etag, self._node.state.spaces[record.space].name)
        memory = self._node.slot_memory(flight.slot, flight.size)
        return Item(flight.key, record.fingerprint, claim, flight.block, 0, flight.size, memory)

    def _land(self, flights: list[Flight], items: list[Item], numbers: list[int]) -> None:
        """These are in their slots, checked: list them."""
        node = self._node
        with node.step():
            for number in numbers:
                flight, item = flights[number], items[number]
                flight.landed, flight.from_origin = True, item.source == get.SOURCE_ORIGIN
                node.arrivals.publish(flight, item.table, get.SOURCE_PEER, near=flight.is_near(node.config.node_name))
                self._count(flight, "ok")
                node.counters.peer_bytes += flight.size

    def _count(self, flight: Flight, result: str) -> None:
        self._node.counters.peer_fills["pulled" if flight.pulled else "asked", result] += 1


def _brings(flight: Flight) -> bool:
    """Whether a peer is asked for it that may have to wait for somebody itself."""
    return any(not way.only_if_held for way in flight.ways)


def _batches(flights: list[Flight]) -> list[list[Flight]]:
    batches: list[list[Flight]] = []
    size = 0
    for flight in flights:
        size += flight.size
        if not batches or size > _BATCH_BYTES or len(batches[-1]) >= limits.PART_ITEMS * limits.PARTS_AHEAD:
            batches.append([])
            size = flight.size
        batches[-1].append(flight)
    return batches
