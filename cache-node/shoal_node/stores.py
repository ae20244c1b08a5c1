"""Stores: blocks of derived objects come in from a client and are published like fills.

The block is copied into a reserved slot piece by piece and hashed there as it is copied, on the loop, which other work
may use between two pieces. It is listed when its last digest is known; whatever ends the store before that gives the
slot back. Of two that store one block at a time, the second finds it there and changes nothing.
"""

from __future__ import annotations

import asyncio

from shoal_core import digests, index, keys
from shoal_core.errors import BadRequest, NodeGone, NoSpace
from shoal_core.verbs import store
from shoal_node.runtime import Node

_PIECE_BYTES = 512 << 10
"""Copied and hashed in one go: some 50 us, and the second finds it in the CPU's cache."""


async def put(node: Node, request: store.Request) -> store.Reply:
    """BadRequest for what is no block of a derived object, NoSpace when nothing can make room."""
    if node.refusing:
        raise NodeGone(f"node {node.config.node_name} is draining")
    (record,) = node.records([request.fingerprint])
    if not record.url.startswith(keys.DERIVED):
        raise BadRequest(f"store: {record.url} has an origin; only derived objects are stored")
    size = len(request.data)
    if not 0 <= request.block < record.block_count or size != record.block_bytes(request.block):
        raise BadRequest(f"store: {size} bytes are not block {request.block} of {record.url} ({record.size} bytes)")
    key = keys.block_key(record.fingerprint, request.block)
    with node.step() as state:
        if state.index.find(key) != index.NONE:
            return store.Reply(False)
    try:
        slot = await node.filler.reserve(record.space, size)
    except NoSpace:
        node.counters.fills["derived", "NoSpace"] += 1
        raise
    try:
        table = await _copied(memoryview(request.data), node.slot_memory(slot, size))
    except BaseException:
        with node.step() as state:
            state.give_back(slot)
        raise
    with node.step() as state:
        stored = state.index.find(key) == index.NONE
        if stored:
            state.unhold(state.publish(key, record.space, size, slot, table, node.now_s()))
            node.counters.fills["derived", "ok"] += 1
        else:
            state.give_back(slot)
    return store.Reply(stored)


async def _copied(data: memoryview, slot: memoryview) -> bytes:
    """The slot's digest table, taken of what the slot holds."""
    tables: list[bytes] = []
    for start in range(0, len(data), _PIECE_BYTES):
        piece = slot[start : start + _PIECE_BYTES]
        piece[:] = data[start : start + _PIECE_BYTES]
        tables.append(digests.page_digests(piece))
        await asyncio.sleep(0)
    return b"".join(tables)
