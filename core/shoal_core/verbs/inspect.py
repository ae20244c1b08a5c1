"""inspect: how much of each object is cached, by tier."""

from __future__ import annotations

import msgspec

KIND = 8


class Residency(msgspec.Struct, array_like=True, frozen=True):
    dram_bytes: int
    disk_bytes: int
    blocks: int
    """Blocks held in any tier."""


class Request(msgspec.Struct, array_like=True, frozen=True):
    fingerprints: list[bytes]


class Reply(msgspec.Struct, array_like=True, frozen=True):
    objects: list[Residency | None]
    """None: the node does not remember the fingerprint."""
