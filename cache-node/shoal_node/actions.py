"""What the state asks the runtime to do. It decides; these are carried out elsewhere."""

from __future__ import annotations

from typing import NamedTuple


class Grow(NamedTuple):
    """Make one more DRAM segment of this many bytes, then report `NodeState.segment_added`."""

    size: int


class Revoke(NamedTuple):
    """Ask a client to give these grants back."""

    client: bytes
    grants: list[tuple[int, int]]


class AssignDisk(NamedTuple):
    """Write the slab's header before anything is written into it."""

    slab: int
    class_index: int


class EraseDisk(NamedTuple):
    """Forget the record of this slot also over a restart."""

    slot: int


class WriteDisk(NamedTuple):
    """Blocks wait to be written behind: take them with `NodeState.next_disk_write`."""


class SpaceFreed(NamedTuple):
    """Whoever waits for a slot may try again."""


TableAction = AssignDisk | EraseDisk
"""Done in the order decided: a late erasure would forget what was written into the slot since."""

Action = Grow | Revoke | AssignDisk | EraseDisk | WriteDisk | SpaceFreed
