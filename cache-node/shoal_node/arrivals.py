"""Blocks on their way into DRAM: who waits for which, and what each is given when it lands. One flight per block.

Everything here runs inside a step, under the node's lock, unless it says otherwise. A flight leads itself: it runs in a
task of its own (`fill`), and no waiter's leaving ends it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal_core import flight, index, keys, limits
from shoal_core.errors import DeadlineExceeded, NodeGone
from shoal_core.routing import Attempt
from shoal_core.verbs import get
from shoal_node.batches import Batch, Delivered
from shoal_node.fill import Flight
from shoal_node.objects import ObjectRecord, whole_record
from shoal_node.state import NodeState

if TYPE_CHECKING:
    from shoal_node.runtime import Node


class Arrivals:
    """One for the whole node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._flights: flight.Flights[bytes, Flight | tuple[Batch, int]] = flight.Flights()

    def look_up(
        self, state: NodeState, records: list[ObjectRecord], request: get.Request, batch: Batch, new: list[Flight]
    ) -> None:
        outcomes = batch.outcomes
        seen: dict[tuple[int, int], Delivered] = {}
        for position, item in enumerate(request.items):
            place = item.object, item.block
            found = seen.get(place)
            if found is None:
                record = records[item.object]
                key = keys.block_key(record.fingerprint, item.block)
                entry = state.lookup(key)
                if entry == index.NONE:
                    if request.hops and self._is_looked_for(key):
                        outcomes[position] = NodeGone("on its way to this node from another")
                        continue
                    batch.expect()
                    self._want(record, item.block, key, (batch, position), new, request.hops)
                    continue
                state.hit(entry)
                if batch.is_readers:
                    self._node.counters.dataset_hits[state.spaces[record.space].name] += 1
                if self._node.peers is not None:
                    self._node.peers.near.touch(entry)
                found = seen[place] = Delivered(entry, get.SOURCE_DRAM)
            state.hold(found.entry)
            outcomes[position] = found
        for ahead in request.ahead:
            self._want_ahead(records[ahead.object], ahead, new)

    def in_memory(
        self, state: NodeState, records: list[ObjectRecord], likely: list[get.Ahead]
    ) -> list[tuple[int, int, int]]:
        """(object, block, entry) of blocks that were not asked for but are there, each run up to its first gap."""
        found: list[tuple[int, int, int]] = []
        for ahead in likely:
            record = records[ahead.object]
            for block in range(ahead.block, min(ahead.block + ahead.count, record.block_count)):
                entry = state.lookup(keys.block_key(record.fingerprint, block))
                if entry == index.NONE or len(found) >= limits.LIKELY_BLOCKS_MAX:
                    break
                found.append((ahead.object, block, entry))
        return found

    def _is_looked_for(self, key: bytes) -> bool:
        """Whether a peer was asked to bring it here: one that asks for it here in turn must not wait for us."""
        wanted = self.flight(key)
        return wanted is not None and any(not way.only_if_held for way in wanted.ways)

    def _want(
        self,
        record: ObjectRecord,
        block: int,
        key: bytes,
        waiter: tuple[Batch, int] | None,
        new: list[Flight],
        hops: int = 0,
    ) -> None:
        wanted = self.flight(key)
        if wanted is None:
            # The flight leads itself: it runs in a task of its own, and no waiter's leaving ends it.
            wanted = Flight(record, block, key, hops)
            self._flights.join(key, wanted)
            entry = self._node.state.index.find(key)
            if entry != index.NONE:
                wanted.entry = entry
                wanted.disk_slot = self._node.state.index.disk_slot[entry]
                self._node.state.hold(entry)
            new.append(wanted)
        elif waiter is not None:
            if not wanted.record.url:
                wanted.record, wanted.block = record, block  # wanted by its key alone so far: now its origin is known
            if not wanted.demanded:
                self._node.counters.prefetches["joined"] += wanted.planned
                self._node.loop.call_soon_threadsafe(self._node.filler.hurry, wanted)
        if waiter is not None:
            wanted.demanded = True
            self._flights.join(key, waiter)

    def _want_ahead(self, record: ObjectRecord, ahead: get.Ahead, new: list[Flight]) -> None:
        for block in range(ahead.block, min(ahead.block + ahead.count, record.block_count)):
            if len(self._flights) >= limits.FILLS_IN_FLIGHT_MAX:
                return
            key = keys.block_key(record.fingerprint, block)
            if self._node.state.lookup(key) == index.NONE and key not in self._flights:
                self._want(record, block, key, None, new)

    @property
    def flight_count(self) -> int:
        return len(self._flights)

    def flight(self, key: bytes) -> Flight | None:
        """The one that brings this block, if it is on its way. Inside a step."""
        leader = self._flights.leader(key)
        return leader if isinstance(leader, Flight) else None

    def fill_planned(self, record: ObjectRecord, block: int, key: bytes, use: int, new: list[Flight]) -> None:
        """A plan names a block that is neither in memory nor on its way. Inside a step."""
        self._want(record, block, key, None, new)
        new[-1].use, new[-1].planned = use, True

    def give_up(self, batch: Batch, records: list[ObjectRecord], request: get.Request) -> None:
        with self._node.step():
            batch.abandoned = True
            for position, outcome in enumerate(batch.outcomes):
                if outcome is None:
                    url = records[request.items[position].object].url
                    batch.outcomes[position] = DeadlineExceeded(f"{url}: not filled within the deadline")

    def pull(self, record: ObjectRecord, key: bytes, ways: list[Attempt], new: list[Flight]) -> None:
        """Another node offers a block that is neither here nor on its way. Inside a step."""
        self._want(record, 0, key, None, new)
        new[-1].ways, new[-1].pulled = ways, True

    def bring(self, record: ObjectRecord, block: int, key: bytes, waiter: tuple[Batch, int], new: list[Flight]) -> None:
        """A preload wants a block that is not here: it hears how that ends, and nobody comes after it. In a step."""
        count = len(new)
        self._want(record, block, key, None, new)
        if len(new) > count:
            new[-1].pulled = True
        self._flights.join(key, waiter)

    def held_batch(self, state_keys: list[bytes], batch: Batch, new: list[Flight]) -> None:
        """Look up whole blocks by key: what is on disk comes up, what is not here is refused. Inside a step."""
        state = self._node.state
        for position, key in enumerate(state_keys):
            entry = state.index.find(key)
            if entry == index.NONE:
                batch.outcomes[position] = NodeGone("not held here")
            elif state.index.dram_slot[entry] != index.NO_SLOT:
                state.hit(entry)
                state.hold(entry)
                batch.outcomes[position] = Delivered(entry, get.SOURCE_DRAM)
            else:
                batch.expect()
                record = whole_record(key, state.index.space[entry], state.index.size[entry])
                self._want(record, 0, key, (batch, position), new)

    def publish(self, landed: Flight, table: bytes, source: int, near: bool = False) -> None:
        """A flight's slot holds its block's verified bytes. Inside a step. `near`: other nodes own it."""
        slot, landed.slot = landed.slot, -1
        space, now_s = landed.record.space, self._node.now_s()
        entry = self._node.state.publish(landed.key, space, landed.size, slot, table, now_s, landed.use, keep=not near)
        if self._node.peers is not None:
            self._node.peers.published(landed, entry, near)
        self.deliver(landed, entry, source)

    def deliver(self, landed: Flight, entry: int, source: int) -> None:
        """A block is in DRAM, held once by its flight; every waiter gets a hold of its own. Inside a step."""
        self._node.counters.prefetches["filled"] += landed.planned and not landed.demanded
        readers = 0
        for waiter in self._flights.finish(landed.key, landed):
            if isinstance(waiter, tuple):
                readers += waiter[0].is_readers
                if waiter[0].deliver(waiter[1], Delivered(entry, source)):
                    self._node.state.hold(entry)
        self._count(landed, source, readers)
        self._node.state.unhold(entry)

    def _count(self, landed: Flight, source: int, readers: int) -> None:
        """Of those who waited for a block that the origin was asked for, one missed; the node that asked counts it."""
        counters, name = self._node.counters, self._node.state.spaces[landed.record.space].name
        brought = source == get.SOURCE_ORIGIN
        counters.dataset_misses[name] += brought and landed.demanded
        counters.dataset_hits[name] += max(0, readers - (brought or landed.from_origin))

    def deliver_error(self, failed: Flight, error: Exception) -> None:
        """A flight ended without its block. Inside a step."""
        members = self._flights.finish(failed.key, failed)
        self._node.counters.prefetches["dropped"] += bool(members) and failed.planned and not failed.demanded
        for waiter in members:
            if isinstance(waiter, tuple):
                waiter[0].deliver(waiter[1], error)
