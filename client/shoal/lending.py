"""Many ranges lent at once: what `Client.view` is for one, with one request for all that no held grant covers.

Ranges under held grants are viewed in one pass under one lock; the rest goes to the node together, with the ways out
that every read has. A range names an exact version and must lie inside it, so that its length is known before it is
read. Knows nothing of what the bytes are for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from shoal import pieces
from shoal.objects import ObjectInfo
from shoal.pieces import Piece
from shoal.view import View
from shoal_core.errors import BadRequest

if TYPE_CHECKING:
    from shoal.client import Client

Range = tuple[ObjectInfo, int, int]
"""(object, offset, length), in bytes."""


def lend(client: Client, ranges: Sequence[Range], deadline_s: float | None = None) -> list[View]:
    """A view per range, in order. The first error is raised, as by `Client.view`; BadRequest names a range outside."""
    check(ranges)
    deadline = client._deadline(deadline_s)
    views: list[View | None] = [None] * len(ranges)
    missing = _lend_held(client, ranges, views)
    wanted: list[Piece] = []
    for position in missing:
        info, offset, length = ranges[position]
        wanted.extend(pieces.split(info, offset, length, None, position))
    for position, error in sorted(client._reading.read(wanted, deadline).items()):
        client._resolution.doubt(ranges[position][0], error)
        raise error
    parts: dict[int, list[memoryview]] = {position: [] for position in missing}
    copied: set[int] = set()
    for piece in wanted:
        assert piece.part is not None, "a piece without a target is done when it has a part"
        parts[piece.request].append(piece.part)
        if piece.copied:
            copied.add(piece.request)
    for position in missing:
        views[position] = View(ranges[position][0].url, parts[position], position not in copied)
    client._stats.reads += len(ranges)
    client._stats.bytes += sum(length for _, _, length in ranges)
    return [view for view in views if view is not None]


def check(ranges: Sequence[Range]) -> None:
    """BadRequest for the first range that does not lie inside its object."""
    for info, offset, length in ranges:
        if offset < 0 or length < 0 or offset + length > info.size:
            raise BadRequest(f"{info.url}: offset {offset}, length {length} lies outside an object of {info.size}")


def _lend_held(client: Client, ranges: Sequence[Range], views: list[View | None]) -> list[int]:
    """Put in the views that held grants give; the positions of the rest."""
    missing: list[int] = []
    grants = client._grants
    with grants.lock:
        for position, (info, offset, length) in enumerate(ranges):
            block, inside = divmod(offset, info.block_size_bytes)
            grant = grants.by_key.get((info.fingerprint, block))
            if grant is None or not length or inside + length > info.block_size_bytes:
                missing.append(position)
                continue
            grants.touch(grant)
            views[position] = View(info.url, [grant.view()[inside : inside + length]], True)
    client._stats.hits["shared memory"] += len(ranges) - len(missing)
    return missing
