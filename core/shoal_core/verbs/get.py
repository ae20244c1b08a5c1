"""get: a batch of ranges of blocks. The only verb on the hot path.

Each item is answered by itself: a grant (shared memory: where the block lies, leased to this client), inline bytes
(the range or the whole pages around it: digests here, the bytes in the frame's payload, items in order), bypass (the
node cannot hold the block now: read the origin), or an error. `ahead` names blocks that will be wanted soon: the node
starts filling them and does not wait.
"""

from __future__ import annotations

import msgspec

from shoal_core.verbs.resolve import Wanted

KIND = 3

SOURCE_DRAM, SOURCE_DISK, SOURCE_ORIGIN, SOURCE_PEER = 0, 1, 2, 3
SOURCE_NAMES = ("dram", "disk", "origin", "peer")


class Item(msgspec.Struct, array_like=True, frozen=True, gc=False):
    object: int
    """Position in `fingerprints`."""
    block: int
    offset: int
    length: int
    """The range inside the block, bytes."""


class Ahead(msgspec.Struct, array_like=True, frozen=True, gc=False):
    object: int
    block: int
    count: int


class Request(msgspec.Struct, array_like=True, frozen=True):
    fingerprints: list[bytes]
    items: list[Item]
    ahead: list[Ahead]
    deadline_ms: int
    inline: bool
    """Bytes are wanted in the payload even where the door could grant."""
    released: list[tuple[int, int]] = []
    touches: list[tuple[int, int, int]] = []
    """As in `release`: they ride on the next message."""
    likely: list[Ahead] = []
    """Blocks that a reader who goes on like this wants next: granted as well if they are in memory, never filled."""
    hops: int = 0
    """Nodes that passed this on; limits.HOPS_MAX bounds it."""
    claims: list[Wanted | None] = []
    """What each fingerprint stands for, for a node that does not remember it; [] where it was told before."""


class Grant(msgspec.Struct, array_like=True, frozen=True, tag=0, gc=False):
    source: int
    segment: int
    offset: int
    """Of the whole block in the segment."""
    length: int
    """Of the whole block."""
    entry: int
    generation: int
    lease: int
    """Rises with each grant of this connection's client; names this one when it is given back."""
    keep: bool = True
    """Worth holding while it is idle. If not, it is to go back with the next message: the block is about to be evicted,
    and a lease on it would make others go in its place."""


class Inline(msgspec.Struct, array_like=True, frozen=True, tag=1, gc=False):
    source: int
    offset: int
    """Of the first byte sent, in the block. Whole pages are sent, or the range alone."""
    length: int
    """Bytes of this item in the payload."""
    digests: bytes
    """One for each started 64 KiB of what is sent."""
    entry: int
    generation: int


class Bypass(msgspec.Struct, array_like=True, frozen=True, tag=2, gc=False):
    reason: str


class Failed(msgspec.Struct, array_like=True, frozen=True, tag=3, gc=False):
    code: int
    text: str


Answer = Grant | Inline | Bypass | Failed


class Also(msgspec.Struct, array_like=True, frozen=True, gc=False):
    object: int
    block: int
    grant: Grant


class Reply(msgspec.Struct, array_like=True, frozen=True):
    items: list[Answer]
    also: list[Also] = []
    """Of what was likely: a message saved for each."""
    epoch: int = 0
    """Of the node's view."""
    load: float = 0.0
    """0 idle, 1 busy."""
    hot: list[tuple[int, int]] = []
    """(item, holders): so many of the first in the block's line of owners hold it, for a reader to choose from."""
