"""resolve: URLs to objects. One HEAD per URL at the origin, remembered for limits.RESOLVE_FRESH_S.

A client that knows size and version already (from a listing, or because the node forgot) says so and costs no HEAD.
Its claim can harm nobody: the fingerprint is derived from the claim, and every fill carries If-Match.
"""

from __future__ import annotations

import msgspec

KIND = 2


class Wanted(msgspec.Struct, array_like=True, frozen=True):
    url: str
    size: int | None = None
    etag: str | None = None
    space: str | None = None
    """Name of the space that the URL, then one at the origin, is to be read in: a node says it that asks another."""


class Object(msgspec.Struct, array_like=True, frozen=True, tag=0):
    url: str
    size: int
    etag: str
    fingerprint: bytes
    block_size_bytes: int
    origin: str
    """Its URL at the origin; differs from `url` for shoal:// names."""
    stale: bool = False
    """The origin could not be asked; this is what it said last time."""
    replica_count: int | None = None
    """Owners of each of its blocks; None: as the view says."""


class Failed(msgspec.Struct, array_like=True, frozen=True, tag=1):
    code: int
    text: str


class Request(msgspec.Struct, array_like=True, frozen=True):
    wanted: list[Wanted]
    deadline_ms: int


class Reply(msgspec.Struct, array_like=True, frozen=True):
    objects: list[Object | Failed]
    """One for each wanted, in order."""
