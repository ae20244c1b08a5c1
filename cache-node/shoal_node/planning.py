"""The node's answer to `plan`: next uses are noted where the blocks are, and what is missing and used soon is filled.

A plan is gone through in its order, a part at a time under the node's lock. What is filled ahead comes after all that
somebody waits for, and never pushes out a block that is used sooner; where that or the number of fills stands in the
way, filling stops and the loader is told how far it went. Noting goes on to the end: it costs nothing and must not wait
for fills.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from shoal_core import index, keys, limits
from shoal_core.errors import BadRequest
from shoal_core.verbs import plan
from shoal_node.fill import Flight
from shoal_node.objects import ObjectRecord
from shoal_node.state import NodeState

if TYPE_CHECKING:
    from shoal_node.runtime import Node

_BLOCKS_A_STEP = 256
"""Blocks gone through under one hold of the lock: about a millisecond."""


def answer(node: Node, client: bytes, request: plan.Request) -> plan.Reply:
    """BadRequest for what is no plan, UnknownObject as for get."""
    records = node.records(request.fingerprints)
    blocks = _checked(request, records)
    name = client, request.stream
    with node.step() as state:
        known = state.leases.clients.get(client)
        if known is None or not known.standing:
            raise BadRequest("plan: only from a client whose events connection stands: with its end the stream ends")
        node.counters.loader_wait_seconds += request.waited_s
        node.counters.loader_steps += request.steps
        if request.ended:
            state.streams.ended(name)
            return plan.Reply(len(request.uses))
        spaces = {record.space for record in records}.union(state.streams.spaces(name))
        offsets = {space: _follow(state, space, name, request, node.now_s()) for space in spaces}
    accepted = len(request.uses)
    filling, missing = not node.draining, False
    for start in range(0, len(blocks), _BLOCKS_A_STEP):
        new: list[Flight] = []
        with node.step() as state:
            for place, record, block in blocks[start : start + _BLOCKS_A_STEP]:
                key = keys.block_key(record.fingerprint, block)
                use_at = request.uses[place].use_at
                use = use_at + offsets[record.space]
                missing = missing or state.lookup(key) == index.NONE
                now = request.position + offsets[record.space]
                if _noted(node, state, key, use, now) or use_at >= request.fill_until:
                    continue
                pending, size = node.arrivals.flight_count, record.block_bytes(block)
                filling = filling and pending < limits.FILLS_PLANNED_MAX
                filling = filling and has_room(state, record.space, size, use, pending, use_at < request.evict_until)
                if filling:
                    node.arrivals.fill_planned(record, block, key, use, new)
                else:
                    accepted = min(accepted, place)
        if new:
            node.loop.call_soon_threadsafe(node.filler.start, new)
        time.sleep(0)  # whoever waits for the lock gets it now: without that, this thread has it again before they wake
    return plan.Reply(accepted, not missing and not node.state.dram.evictions)


def has_room(state: NodeState, space: int, size: int, use: int, pending: int, may_evict: bool) -> bool:
    """Whether there is room for a block used at `use`, with so many others under way: free, or, with `may_evict`, held
    by what is used later."""
    slabs, quota, count = state.dram.slabs, state.spaces[space].quota_bytes, pending + 1
    class_index = slabs.class_of(size)
    within = quota is None or slabs.space_used_bytes(space) + count * slabs.classes[class_index] <= quota
    more = slabs.unassigned_count or state.layout.growing_bytes or state.layout.next_segment_bytes()
    if within and (more or slabs.free_count(space, class_index, count) >= count):
        return True
    return may_evict and state.dram.gives_way(space, class_index, use, count)


def _noted(node: Node, state: NodeState, key: bytes, use: int, now: int) -> bool:
    """Write the block's next use down; whether it is in memory or on its way there."""
    flight = node.arrivals.flight(key)
    if flight is not None and not (flight.use is not None and now <= flight.use <= use):
        flight.use = use
    entry = state.index.find(key)
    if entry == index.NONE:
        return flight is not None
    state.plan(entry, use)
    return flight is not None or state.index.dram_slot[entry] != index.NO_SLOT


def _follow(state: NodeState, space: int, name: tuple[bytes, bytes], request: plan.Request, now_s: int) -> int:
    """What puts the stream's positions on the space's clock."""
    while (offset := state.streams.tell(space, name, request.position, request.evict_until, now_s)) is None:
        for tier in state.tiers:
            tier.forget_uses(space)
    for tier in state.tiers:
        tier.follow(space, state.streams.clock(space))
    return offset


def _checked(request: plan.Request, records: list[ObjectRecord]) -> list[tuple[int, ObjectRecord, int]]:
    """(place in `uses`, object, block), in order."""
    if len(request.stream) != 16:
        raise BadRequest(f"plan: a stream id of {len(request.stream)} bytes, not 16")
    if len(request.uses) > limits.PLAN_USES_MAX:
        raise BadRequest(f"plan: {len(request.uses)} uses; at most {limits.PLAN_USES_MAX}")
    waited = math.isfinite(request.waited_s) and 0 <= request.waited_s <= limits.STREAM_WAIT_S_MAX
    if not waited or not 0 <= request.steps <= limits.STREAM_WAIT_S_MAX:
        raise BadRequest(f"plan: waited_s {request.waited_s} over {request.steps} steps")
    positions = (request.position, request.fill_until, request.evict_until, *(use.use_at for use in request.uses))
    if min(positions) < 0 or max(positions) > limits.STREAM_POSITION_MAX:
        raise BadRequest("plan: a position below 0 or beyond the limit")
    blocks: list[tuple[int, ObjectRecord, int]] = []
    for place, use in enumerate(request.uses):
        if not 0 <= use.object < len(records) or use.first_block < 0 or use.block_count < 0:
            raise BadRequest("plan: a use names no object or block")
        record = records[use.object]
        end = min(use.first_block + use.block_count, record.block_count)
        if len(blocks) + end - use.first_block > limits.PLAN_BLOCKS_MAX:
            raise BadRequest(f"plan: more than {limits.PLAN_BLOCKS_MAX} blocks")
        blocks += [(place, record, block) for block in range(use.first_block, end)]
    return blocks
