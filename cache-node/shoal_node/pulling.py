"""Blocks that other nodes offered and that this one brings when it may: replicas, repair, hand-over, hot blocks.

An offer is answered at once; what it names and is not here waits in a queue of bounded length, and is fetched from who
offered it, a batch at a time, no faster than `cluster.repair_bytes_per_s`, after all that anybody waits for. A reader
who asks for such a block meanwhile is served by the same flight. Runs on the node's loop; offers come in from other
threads.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from shoal_core import index, limits
from shoal_core.routing import Attempt, Distance
from shoal_core.verbs import offer
from shoal_node.fill import Flight
from shoal_node.objects import whole_record

if TYPE_CHECKING:
    from shoal_node.peers import Peers
    from shoal_node.runtime import Node

_QUEUE_MAX = 1 << 16
_BATCH_BYTES = limits.PART_BYTES // 4
"""Pulled at once: little enough that a reader's turn comes soon."""
_UNDER_WAY_MAX = 64
_LOOK_S = 0.05


class _Block(NamedTuple):
    key: bytes
    space: int
    size: int
    node_id: str
    is_kept: bool
    """Who offers it says that this node is to hold it; else it becomes a near copy, for as long as there is room."""


class Pulling:
    """One for the whole node."""

    def __init__(self, node: Node, peers: Peers) -> None:
        self._node = node
        self._peers = peers
        self._queue: deque[_Block] = deque()
        self._queued: set[bytes] = set()
        """Keys in the queue. Both are guarded by the node's lock."""
        self._under_way: set[bytes] = set()
        self._more = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Blocks in the queue."""
        return len(self._queue)

    def offered(self, request: offer.Request) -> bytes:
        """For each block whether it is here, queued, or refused. In the thread of whoever's connection it came over."""
        node = self._node
        states = bytearray(len(request.blocks))
        is_kept = request.reason != "hot"
        with node.step() as state:
            spaces = {space.uid: number for number, space in enumerate(state.spaces) if not space.is_removed}
            for position, block in enumerate(request.blocks):
                entry = state.index.find(block.key)
                space = spaces.get(block.space)
                if entry != index.NONE:
                    states[position] = offer.HELD
                    if is_kept:
                        self._peers.near.discard(entry)
                elif block.key in self._queued or node.arrivals.flight(block.key) is not None:
                    states[position] = offer.QUEUED
                elif (
                    space is not None
                    and 0 < block.size <= node.config.fill.block_size_bytes
                    and len(self._queue) < _QUEUE_MAX
                ):
                    states[position] = offer.QUEUED
                    self._queued.add(block.key)
                    self._queue.append(_Block(block.key, space, block.size, request.node, is_kept))
        node.loop.call_soon_threadsafe(self._more.set)
        return bytes(states)

    async def run(self) -> None:
        """Until cancelled."""
        rate = self._peers.config.repair_bytes_per_s
        while True:
            await self._more.wait()
            self._more.clear()
            while batch := self._next():
                started = time.monotonic()
                size = sum(block.size for block in batch)
                self._start(batch)
                self._node.counters.pulled_bytes += size
                # Looked at, not signalled: flights end in many ways and threads.
                while len(self._landing()) > _UNDER_WAY_MAX:  # noqa: ASYNC110
                    await asyncio.sleep(_LOOK_S)
                await asyncio.sleep(max(0.0, size / rate - (time.monotonic() - started)))

    def _next(self) -> list[_Block]:
        """Blocks of one node, in the order offered."""
        batch: list[_Block] = []
        size = 0
        with self._node.step():
            while self._queue and len(batch) < limits.PART_ITEMS:
                block = self._queue[0]
                if batch and (block.node_id != batch[0].node_id or size + block.size > _BATCH_BYTES):
                    break
                batch.append(self._queue.popleft())
                self._queued.discard(block.key)
                size += block.size
        return batch

    def _start(self, batch: list[_Block]) -> None:
        view = self._peers.cluster.router.view
        place = view.position(batch[0].node_id) if view is not None else None
        if place is None:
            return  # it has left the view since; who holds the blocks offers them again
        ways = [Attempt(place, Distance.FAR, True)]
        new: list[Flight] = []
        arrivals = self._node.arrivals
        with self._node.step() as state:
            for block in batch:
                if state.index.find(block.key) == index.NONE and arrivals.flight(block.key) is None:
                    arrivals.pull(whole_record(block.key, block.space, block.size), block.key, list(ways), new)
                    new[-1].kept, new[-1].view = block.is_kept, view
                    self._under_way.add(block.key)
        self._node.filler.start(new)

    def _landing(self) -> set[bytes]:
        """Keys that are still under way."""
        with self._node.step():
            self._under_way = {key for key in self._under_way if self._node.arrivals.flight(key) is not None}
        return self._under_way
