"""What must hold of a node's state between two steps. Reads everything: for tests and simulation.

Each part checks itself (tiers, layout, leases); here is what only their owner can see. A broken invariant is a bug of
ours, so these are assertions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal_core import index

if TYPE_CHECKING:
    from shoal_node.state import NodeState


def check(state: NodeState) -> None:
    """AssertionError when tables that must agree do not, or a cap is exceeded."""
    linked = state.index.linked()
    assert len(linked) == len(set(linked)) == len(state.index), "the table and its count differ"
    for entry in linked:
        assert not state.is_dropped(entry), "the table holds an entry that was dropped"
        nowhere = state.index.dram_slot[entry] == state.index.disk_slot[entry] == index.NO_SLOT
        assert not nowhere, "a block is listed and lies nowhere"
    for tier in state.tiers:
        tier.check(state.index)
        for number, space in enumerate(state.spaces):
            if space.quota_bytes is not None and number not in state.over_quota:
                assert tier.slabs.space_used_bytes(number) <= space.quota_bytes
    state.layout.check(state.dram.slabs, state.disk.slabs if state.disk is not None else None)
    state.leases.check()
