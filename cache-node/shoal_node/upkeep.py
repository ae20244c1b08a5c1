"""What a node does about the others without being asked: it follows the view, pings, hands blocks over, and repairs.

Once a second every other node is asked for its view: that tells who lives and spreads a later view. When the view or
the set of dead nodes changes, and every `cluster.scrub_s`, the node walks through its blocks and offers to others what
they are to hold (`handover` decides; `pulling` brings it, on their side, no faster than they wish). Fresh blocks are
offered to their other owners, hot ones to more nodes, and a draining node offers all it has. One task on the node's
loop; what blocks runs in a few threads of its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from shoal_core import index, view
from shoal_core.errors import NodeGone, ShoalError
from shoal_core.verbs import dataset, offer
from shoal_core.verbs import view as view_verb
from shoal_node.handover import Offer

if TYPE_CHECKING:
    from shoal_node.peers import Peers
    from shoal_node.runtime import Node

log = logging.getLogger("shoal.node")

_TICK_S = 0.1
_PING_S = 1.0
"""How often each other node is pinged, and how long it has to answer."""
_OFFER_S = 5.0
_THREADS = 8
_SLICE = 500
"""Blocks looked at under one hold of the lock: a few milliseconds, as owners are looked up."""
_OFFERS_AT_ONCE = 4
_WALK_AGAIN_S = 5.0
"""A drain that left blocks out, because they were refused, tries again."""


class Upkeep:
    """One for the whole node."""

    def __init__(self, node: Node, peers: Peers) -> None:
        self._node = node
        self._peers = peers
        self._pool = ThreadPoolExecutor(_THREADS, "shoal-upkeep")
        self._pinged: set[str] = set()
        """Nodes whose answer is awaited."""
        self._walk_reason: str | None = None
        """A walk that is to begin."""
        self._walked_s = self._scrubbed_s = time.monotonic()

    def view_changed(self) -> None:
        """A later view was adopted; from any thread."""
        self._want_walk("view")

    def start_drain(self) -> None:
        """Offer everything to those who own it when this node does not; from any thread."""
        with self._peers.lock:
            self._peers.cluster.leaving = True
        self._want_walk("drain")

    def cancel_drain(self) -> None:
        with self._peers.lock:
            self._peers.cluster.leaving = False
        self._want_walk("view")

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    async def run(self) -> None:
        """Until cancelled."""
        tasks = [asyncio.create_task(work()) for work in (self._watch, self._walk, self._offer)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _want_walk(self, reason: str) -> None:
        if self._peers.cluster.leaving:
            reason = "drain"
        self._walk_reason = reason

    # Who lives

    async def _watch(self) -> None:
        while True:
            self._ping()
            with self._peers.lock:
                changed = self._peers.cluster.look(time.monotonic_ns())
                dead = sorted(self._peers.cluster.dead)
            if changed:
                log.warning("nodes that do not answer: %s", ", ".join(dead) or "none")
                self._want_walk("repair")
            if time.monotonic() - self._scrubbed_s > self._peers.config.scrub_s:
                self._scrubbed_s = time.monotonic()
                self._want_walk("scrub")
            self._heat()
            await asyncio.sleep(_PING_S)

    def _ping(self) -> None:
        with self._peers.lock:
            others = self._peers.cluster.others()
        for node in others:
            if node.id not in self._pinged:
                self._pinged.add(node.id)
                future = self._node.loop.run_in_executor(self._pool, self._ask, node)
                future.add_done_callback(lambda _, node_id=node.id: self._pinged.discard(node_id))

    def _ask(self, node: view.Node) -> None:
        peers = self._peers
        try:
            deadline = time.monotonic() + _PING_S
            reply = peers.links.call(node, view_verb.KIND, view_verb.Request(peers.epoch, True), deadline)
        except ShoalError:
            return
        self._learn_datasets(reply.datasets)
        with peers.lock:
            peers.cluster.heard(node.id, time.monotonic_ns())
        if reply.view is not None:
            peers.adopt(reply.view)

    def _learn_datasets(self, datasets: list[dataset.Request]) -> None:
        """Those that were declared while this node was away. One that it knows stays as it is here."""
        if self._node.datasets.are_followed:
            return  # one of these may just have been removed
        known = set(self._node.datasets.names)
        for each in datasets:
            if each.name not in known:
                try:
                    self._node.datasets.declare(each)
                except ShoalError as error:
                    log.warning("data set %s, which others know, cannot be held here: %s", each.name, error)

    # What is to be held by whom

    async def _walk(self) -> None:
        """One walk at a time; one that is wanted meanwhile begins anew."""
        node, peers = self._node, self._peers
        while True:
            reason, self._walk_reason = self._walk_reason, None
            if reason is None or peers.cluster.alone:
                self._end_drain()
                await asyncio.sleep(_TICK_S)
                continue
            self._walked_s = time.monotonic()
            with node.step() as state:
                peers.handover.begin_walk(reason)
                entries = state.index.linked()
            for start in range(0, len(entries), _SLICE):
                while not self._has_room() and self._walk_reason is None:  # noqa: ASYNC110
                    await asyncio.sleep(_TICK_S)
                if self._walk_reason is not None:
                    break
                self._slice(entries[start : start + _SLICE])
                await asyncio.sleep(0)
            else:
                with node.step():
                    peers.handover.walk_ended()

    def _has_room(self) -> bool:
        with self._node.step():
            return self._peers.handover.has_room(_SLICE)

    def _slice(self, entries: list[int]) -> None:
        """Look at some entries that were there when the walk began; who was recycled since is another, and as good."""
        node, peers = self._node, self._peers
        with node.step() as state:
            spaces = [(space.uid, space.replicas) for space in state.spaces]
            known = [
                (entry, state.index.key(entry), state.index.space[entry], state.index.size[entry])
                for entry in entries
                if not state.is_dropped(entry) and state.index.find(state.index.key(entry)) == entry
            ]
        with peers.lock:
            owners = [peers.cluster.owners(key, spaces[space][1]) for _, key, space, _ in known]
        with node.step() as state:
            for (entry, key, _, _), of in zip(known, owners, strict=True):
                if node.config.node_name in of and state.index.find(key) == entry:
                    peers.near.discard(entry)
            peers.handover.walk_slice(
                [
                    (key, spaces[space][0], size, of)
                    for (entry, key, space, size), of in zip(known, owners, strict=True)
                    if entry not in peers.near or peers.cluster.leaving
                ],
                node.config.node_name,
            )

    def _end_drain(self) -> None:
        node = self._node
        if node.draining and not node.refusing and self._peers.cluster.alone:
            node.refuse()  # nobody is left to hand over to
        elif node.draining and not node.refusing:
            with node.step():
                done, again = self._peers.handover.is_done, self._peers.handover.needs_walk
            if done:
                log.info("node %s: every block is handed over", node.config.node_name)
                node.refuse()
            elif again and time.monotonic() - self._walked_s > _WALK_AGAIN_S:
                self._walk_reason = "drain"

    def _heat(self) -> None:
        """Blocks that became hot are offered to more nodes."""
        node, peers = self._node, self._peers
        now_s = peers.clock_ns() / 1e9
        with node.step() as state:
            due = [(key, count, state.lookup(key)) for key, count in peers.heat.due(now_s, self._replicas)]
            known = [
                (key, count, state.spaces[state.index.space[entry]].uid, state.index.size[entry])
                for key, count, entry in due
                if entry != index.NONE
            ]
        for key, count, uid, size in known:
            with peers.lock:
                line = peers.cluster.in_line(key, count)
            with node.step():
                peers.handover.hot(key, uid, size, line, node.config.node_name)

    def _replicas(self, key: bytes) -> int:
        """Owners that a block here has. Inside a step."""
        state = self._node.state
        entry = state.index.find(key)
        count = None if entry == index.NONE else state.spaces[state.index.space[entry]].replicas
        return self._peers.cluster.router.replicas(count)

    # Offers

    async def _offer(self) -> None:
        node, peers = self._node, self._peers
        while True:
            with node.step():
                offers: list[Offer] = []
                while len(offers) < _OFFERS_AT_ONCE:
                    found = peers.handover.next_offer(time.monotonic_ns())
                    if found is None:
                        break
                    offers.append(found)
            if not offers:
                await asyncio.sleep(_TICK_S)
                continue
            await asyncio.gather(*(node.loop.run_in_executor(self._pool, self._send, each) for each in offers))

    def _send(self, offered: Offer) -> None:
        node, peers = self._node, self._peers
        try:
            target = self._find(offered.target)
            request = offer.Request(
                node.config.node_name, peers.epoch, offered.reason, [offer.Block(*block) for block in offered.blocks]
            )
            reply = peers.links.call(target, offer.KIND, request, time.monotonic() + _OFFER_S)
        except ShoalError:
            with node.step():
                node.counters.offered["failed"] += len(offered.blocks)
                peers.handover.failed(offered, time.monotonic_ns())
            return
        with node.step():
            for answer, name in ((offer.HELD, "held"), (offer.QUEUED, "queued"), (offer.REFUSED, "refused")):
                node.counters.offered[name] += reply.states.count(answer)
            for complete in peers.handover.answered(offered, reply.states, time.monotonic_ns()):
                peers.complete(complete)

    def _find(self, node_id: str) -> view.Node:
        known = self._peers.cluster.router.view
        place = known.position(node_id) if known is not None else None
        if known is None or place is None:
            raise NodeGone(f"{node_id} is in the view no more")
        return known.nodes[place]
