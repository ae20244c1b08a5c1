"""A read as pieces: one per block it touches, each with the place its bytes go to.

A piece either has a target, a part of the caller's own memory into which its bytes are copied or received once, or it
wants a view, and then gets one under a lease where it can, else over memory of its own.
"""

from __future__ import annotations

from shoal.objects import ObjectInfo


class Piece:
    """`length` bytes from `offset` of one block."""

    __slots__ = ("block", "copied", "done", "info", "length", "offset", "part", "request", "target", "tries")

    def __init__(
        self, info: ObjectInfo, block: int, offset: int, length: int, target: memoryview | None, request: int
    ) -> None:
        self.info = info
        self.block = block
        self.offset = offset
        self.length = length
        self.target = target
        self.request = request
        """Position of the read this belongs to among those asked for together."""
        self.part: memoryview | None = None
        """The view, for a piece without a target."""
        self.copied = False
        """Whether `part` is a copy after all."""
        self.done = False
        self.tries = 0
        """Times its bytes did not match their digests."""

    @property
    def key(self) -> tuple[bytes, int]:
        return self.info.fingerprint, self.block

    @property
    def object_offset(self) -> int:
        return self.block * self.info.block_size_bytes + self.offset


def split(info: ObjectInfo, offset: int, length: int, target: memoryview | None, request: int) -> list[Piece]:
    """The pieces of a range, which must lie inside the object."""
    size = info.block_size_bytes
    block, inside = divmod(offset, size)
    if 0 < length <= size - inside:
        return [Piece(info, block, inside, length, target, request)]
    found: list[Piece] = []
    position = 0
    while position < length:
        block, inside = divmod(offset + position, size)
        count = min(size - inside, length - position)
        part = target[position : position + count] if target is not None else None
        found.append(Piece(info, block, inside, count, part, request))
        position += count
    return found


def clip(info: ObjectInfo, offset: int, length: int | None) -> int:
    """Bytes that a read from `offset` gets: like a file, what lies beyond the end is not there."""
    rest = max(0, info.size - offset)
    return rest if length is None else min(length, rest)
