"""From what the user typed to objects: a URL is an object or everything below it, asked for as one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

from shoal_core.errors import NotFound

if TYPE_CHECKING:
    from shoal.client import Client, Residency
    from shoal.objects import ObjectInfo

INSPECTED_AT_ONCE = 1000


def below(client: Client, url: str) -> list[ObjectInfo]:
    """The object at `url`, or all below it; NotFound when there is neither."""
    try:
        return [client.info(url)]
    except NotFound:
        found = client.list(url)
        if not found:
            raise NotFound(f"{url}: no such object, and none below it") from None
        return found


def all_below(client: Client, urls: list[str]) -> list[ObjectInfo]:
    """The same for several URLs, each object once."""
    found: dict[str, ObjectInfo] = {}
    for url in urls:
        for info in below(client, url):
            found.setdefault(info.url, info)
    return list(found.values())


def block_count(info: ObjectInfo) -> int:
    return -(-info.size // info.block_size_bytes)


def is_resident(info: ObjectInfo, found: Residency) -> bool:
    """Whether every block is in some tier. A zero-byte object has none."""
    return found.block_count >= block_count(info)


def cached_bytes(info: ObjectInfo, found: Residency) -> int:
    """Bytes in any tier, each counted once; at most one block too high where tiers hold different parts."""
    if is_resident(info, found):
        return info.size
    return min(found.block_count * info.block_size_bytes, found.dram_bytes + found.disk_bytes)


def residency(client: Client, infos: Sequence[ObjectInfo]) -> Iterator[tuple[ObjectInfo, Residency]]:
    """What is cached of each, a part at a time, in exactly the versions that were listed: no HEAD, however long ago."""
    for start in range(0, len(infos), INSPECTED_AT_ONCE):
        part = infos[start : start + INSPECTED_AT_ONCE]
        yield from zip(part, client.inspect(cast("list[str]", part)), strict=True)
