"""What a client asks besides reading: listings, what is cached, prefetch, evict, datasets, the node's numbers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from shoal.objects import ObjectInfo, from_wire
from shoal.session import Session
from shoal_core.errors import BadRequest, ShoalError
from shoal_core.verbs import dataset, get, listing, stat
from shoal_core.verbs import evict as evict_verb
from shoal_core.verbs import inspect as inspect_verb

if TYPE_CHECKING:
    from shoal.reading import Reading

_OBJECTS_A_CALL = 1000


class Residency(msgspec.Struct, frozen=True):
    """What is cached of one object. A block may be in both tiers; `block_count` counts it once."""

    url: str
    size: int
    dram_bytes: int
    disk_bytes: int
    block_count: int


def list_pages(session: Session, url: str, deadline_s: float) -> Iterator[list[ObjectInfo]]:
    """Everything below the URL, page by page; the time is for each page."""
    cursor = 0
    while True:
        deadline = time.monotonic() + deadline_s
        request = listing.Request(url, cursor, _milliseconds(deadline))
        reply: listing.Reply = session.call(listing.KIND, request, deadline)
        yield [from_wire(entry) for entry in reply.objects]
        cursor = reply.cursor
        if not cursor:
            return


def inspect(
    session: Session, reading: Reading, infos: Sequence[ObjectInfo | ShoalError], deadline: float
) -> list[Residency]:
    """In the order asked; the first error is raised."""
    residencies: list[Residency] = []
    for start in range(0, len(infos), _OBJECTS_A_CALL):
        part = _known(infos[start : start + _OBJECTS_A_CALL])
        fingerprints = [info.fingerprint for info in part]
        reply = session.call(inspect_verb.KIND, inspect_verb.Request(fingerprints), deadline)
        if any(found is None for found in reply.objects):
            reading.resolve_again(part, deadline)
            reply = session.call(inspect_verb.KIND, inspect_verb.Request(fingerprints), deadline)
        for info, found in zip(part, reply.objects, strict=True):
            held = found or inspect_verb.Residency(0, 0, 0)
            residencies.append(Residency(info.url, info.size, held.dram_bytes, held.disk_bytes, held.blocks))
    return residencies


def evict(session: Session, reading: Reading, infos: Sequence[ObjectInfo], deadline: float) -> int:
    """Blocks dropped."""
    count = 0
    for start in range(0, len(infos), _OBJECTS_A_CALL):
        part = list(infos[start : start + _OBJECTS_A_CALL])
        reading.resolve_again(part, deadline)
        request = evict_verb.Request([info.fingerprint for info in part])
        count += session.call(evict_verb.KIND, request, deadline).blocks
    return count


def prefetch(session: Session, info: ObjectInfo, block: int, count: int, deadline: float) -> None:
    """Start filling blocks."""
    request = get.Request([info.fingerprint], [], [get.Ahead(0, block, count)], _milliseconds(deadline), False)
    session.call(get.KIND, request, deadline)


def declare_dataset(
    session: Session,
    name: str,
    url: str,
    eviction: str,
    quota_bytes: int | None,
    ttl_s: float | None,
    deadline: float,
) -> None:
    """BadRequest or ConfigError names what the node did not take."""
    if eviction not in ("s3fifo", "epoch", "pin"):
        raise BadRequest(f"eviction: {eviction!r} is none of s3fifo, epoch, pin")
    session.call(dataset.KIND, dataset.Request(name, url, eviction, quota_bytes, ttl_s), deadline)


def node_stats(session: Session, deadline: float) -> dict[str, Any]:
    """The stat verb's values."""
    reply: stat.Reply = session.call(stat.KIND, stat.Request(), deadline)
    return reply.values


def _known(infos: Sequence[ObjectInfo | ShoalError]) -> list[ObjectInfo]:
    known: list[ObjectInfo] = []
    for info in infos:
        if isinstance(info, ShoalError):
            raise info
        known.append(info)
    return known


def _milliseconds(deadline: float) -> int:
    return max(1, int((deadline - time.monotonic()) * 1000))
