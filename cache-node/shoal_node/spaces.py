"""Spaces: what shares a quota, an eviction policy and a TTL; and the slot sizes that their blocks lie in."""

from __future__ import annotations

import msgspec

from shoal_core import eviction, keys, limits, selection, slabs

DEFAULT_SPACE = "default"
"""Of what is read by its URL at the origin."""

DERIVED_SPACE = "(derived)"
"""Of derived objects, so that a loader's plan for files of the default space does not push out their indexes."""


class Space(msgspec.Struct):
    """A dataset with all its versions, or the space of bare URLs."""

    name: str
    uid: bytes
    url: str | None = None
    eviction: eviction.PolicyName = "s3fifo"
    quota_bytes: int | None = None
    ttl_s: int | None = None
    replicas: int | None = None
    """Nodes that hold each block; None: as the view says."""
    endpoint: str | None = None
    region: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    refresh_s: float | None = None
    is_removed: bool = False
    """Nobody finds it any more; it has no `url` then."""


def space_of(tenant: str, name: str, **settings: object) -> Space:
    """A space with the uid that its tenant and name give."""
    return Space(name=name, uid=keys.space_uid(tenant, name), **settings)  # type: ignore[arg-type]


def refusal_of(space: Space, url: str) -> str:
    """Why what is at this URL at the origin is no object of the data set; '' when it is one, and for other spaces."""
    if space.url is None:
        return ""
    above, slash, path = url.partition(space.url.rstrip("/") + "/")
    if above or not slash:
        return f"it is not below {space.url}"
    if ".." in path.split("/"):
        return "'..' leads out of the data set"
    return selection.of(space.include, space.exclude).refusal(path)


def tier_classes(slab_bytes: int, block_size_bytes: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Slot sizes of the DRAM and of the disk tier."""
    return (
        slabs.slot_classes(slab_bytes, block_size_bytes, limits.SLOT_BYTES_MIN, 4096, 64),
        slabs.slot_classes(slab_bytes, max(block_size_bytes, 4096), 4096, 4096),
    )
