"""A read as pieces: one per block it touches, each with the place its bytes go to.

A piece either has a target, a part of the caller's own memory into which its bytes are copied or received once, or it
wants a view, and then gets one under a lease where it can, else over memory of its own.
"""

from __future__ import annotations

from shoal.objects import ObjectInfo
from shoal_core.errors import BadRequest, ShoalError


class Piece:
    """`length` bytes from `offset` of one block."""

    __slots__ = (
        "block", "copied", "done", "error", "info", "length", "node_id", "nowhere", "offset", "part", "request",
        "target", "tries",
    )  # fmt: skip

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
        self.error: ShoalError | None = None
        """Why no node gave it, if one said."""
        self.node_id = ""
        """Who gave it, of those that were asked directly."""
        self.nowhere = False
        """The nodes did not give it, the origin would not, and that is its read's error: another try is worth while."""
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


def checked(info: ObjectInfo, offset: int, length: int | None) -> int:
    """Bytes that the range holds; BadRequest for what no file would take."""
    if offset < 0 or (length is not None and length < 0):
        raise BadRequest(f"{info.url}: offset {offset}, length {length}: neither can be negative")
    return clip(info, offset, length)


def clip(info: ObjectInfo, offset: int, length: int | None) -> int:
    """Bytes that a read from `offset` gets: like a file, what lies beyond the end is not there."""
    rest = max(0, info.size - offset)
    return rest if length is None else min(length, rest)


def block_bytes(piece: Piece) -> int:
    """Of the whole block that the piece lies in."""
    info = piece.info
    return min(info.block_size_bytes, info.size - piece.block * info.block_size_bytes)


def batch_end(pieces: list[Piece], start: int, size_max: int, payload_max: int, count_max: int) -> int:
    """Where a request from `start` on ends: blocks within `size_max`, ranges within `payload_max`, one at least."""
    size = payload = 0
    stop = min(len(pieces), start + count_max)
    for end in range(start, stop):
        piece = pieces[end]
        info = piece.info
        payload += piece.length
        size += min(info.block_size_bytes, info.size - piece.block * info.block_size_bytes)
        if end > start and (size > size_max or payload > payload_max):
            return end
    return stop
