"""Room on disk for a block that is written behind: a free slot, else what may go makes room. Part of the state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal_core import limits
from shoal_node import actions
from shoal_node.tier import VICTIM_TRIES

if TYPE_CHECKING:
    from shoal_node.state import NodeState

_SLAB_SHIFT = limits.SLAB_SLOTS_MAX.bit_length() - 1


def reserve(state: NodeState, space: int, size: int, now_s: int) -> int | None:
    """A disk slot, or None: nothing can go now, and the block stays in DRAM only."""
    tier, quota = state.disk, state.spaces[space].quota_bytes
    assert tier is not None
    for _ in range(VICTIM_TRIES):
        before = tier.slabs.unassigned_count
        fits = quota is None or tier.slabs.space_used_bytes(space) + tier.slot_bytes_for(size) <= quota
        if fits and (slot := tier.take(space, size)) is not None:
            if tier.slabs.unassigned_count != before:
                state.actions.append(actions.AssignDisk(slot >> _SLAB_SHIFT, tier.slabs.class_of(size)))
            return slot
        for entry in tier.victims(space, size, now_s, quota, state.leased):
            state.evict(tier, entry, "evicted" if fits else "quota")
        tier.release_empty((space, tier.slabs.class_of(size)))
    return None
