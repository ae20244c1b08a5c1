"""Spaces: what shares a quota, an eviction policy and a TTL; and the slot sizes that their blocks lie in."""

from __future__ import annotations

import msgspec

from shoal_core import eviction, keys, limits, slabs


class Space(msgspec.Struct):
    """A dataset with all its versions, or the space of bare URLs."""

    name: str
    uid: bytes
    url: str | None = None
    eviction: eviction.PolicyName = "s3fifo"
    quota_bytes: int | None = None
    ttl_s: int | None = None


def space_of(tenant: str, name: str, **settings: object) -> Space:
    """A space with the uid that its tenant and name give."""
    return Space(name=name, uid=keys.space_uid(tenant, name), **settings)  # type: ignore[arg-type]


def tier_classes(slab_bytes: int, block_size_bytes: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Slot sizes of the DRAM and of the disk tier."""
    return (
        slabs.slot_classes(slab_bytes, block_size_bytes, limits.SLOT_BYTES_MIN, 4096, 64),
        slabs.slot_classes(slab_bytes, max(block_size_bytes, 4096), 4096, 4096),
    )
