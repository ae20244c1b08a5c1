"""Blocks that are in memory only and should be on disk as well: told to the writer. Part of the state.

A block is written when it is published, unless others own it. It may be here alone all the same: it was a near copy
and is this node's own now, or the disk had no room for it then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal_core import index
from shoal_node import actions

if TYPE_CHECKING:
    from shoal_node.state import NodeState


def want_on_disk(state: NodeState, entry: int) -> bool:
    """Whether the block is to be written now; not if it is on disk, or nowhere. Writing one twice is no harm."""
    in_memory = state.index.dram_slot[entry] != index.NO_SLOT
    if state.disk is None or not in_memory or state.index.disk_slot[entry] != index.NO_SLOT:
        return False
    state._to_disk.append((entry, state.index.generation[entry]))
    state.actions.append(actions.WriteDisk())
    return True
