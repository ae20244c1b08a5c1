"""release: the client holds no view of these grants any more and forgets them. Also carries counts of touches."""

from __future__ import annotations

import msgspec

KIND = 4


class Request(msgspec.Struct, array_like=True, frozen=True):
    grants: list[tuple[int, int]]
    """(entry, generation) of each."""
    touches: list[tuple[int, int, int]]
    """(entry, generation, hits) under held grants since the last report, so that eviction sees them."""


class Reply(msgspec.Struct, array_like=True, frozen=True):
    released: int
