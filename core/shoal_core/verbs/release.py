"""release: the client holds no view of these grants any more and forgets them. Also carries counts of touches.

Saying it twice is harmless, and so is a release that the node reads only after it granted the block anew: it names a
lease that has been succeeded by another.
"""

from __future__ import annotations

import msgspec

KIND = 4


class Request(msgspec.Struct, array_like=True, frozen=True):
    grants: list[tuple[int, int]]
    """(entry, lease) of each."""
    touches: list[tuple[int, int, int]]
    """(entry, generation, hits) under held grants since the last report, so that eviction sees them."""


class Reply(msgspec.Struct, array_like=True, frozen=True):
    released: int
