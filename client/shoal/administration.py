"""What a client asks besides reading: listings, what is cached, prefetch, evict, datasets, the node's numbers.

In a cluster, what is cached is asked of the blocks' owners, and of everybody where they have it not; evicting and
declaring reach every node, and it is an error if one could not be told: it would go on with what it has.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from shoal import members as cluster
from shoal import placing
from shoal.members import Members
from shoal.objects import ObjectInfo, from_wire
from shoal.routed import Routed
from shoal.session import Session
from shoal_core import view
from shoal_core.errors import BadRequest, NodeGone, ShoalError
from shoal_core.verbs import dataset, get, holding, listing, resolve, stat
from shoal_core.verbs import evict as evict_verb
from shoal_core.verbs import inspect as inspect_verb

if TYPE_CHECKING:
    from shoal.reading import Reading

_OBJECTS_A_CALL = 1000

_EVICTIONS_MAX = 4
"""Times that all nodes are told to evict: a copy may have been on its way from one to another."""


class Residency(msgspec.Struct, frozen=True):
    """What is cached of one object. A block may be in both tiers, and on several nodes; each number counts it once."""

    url: str
    size: int
    dram_bytes: int
    disk_bytes: int
    block_count: int
    resident: bool
    """Whether every block is there, in a cluster with one of its owners at least. A zero-byte object has none."""


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
    session: Session, routed: Routed, reading: Reading, infos: Sequence[ObjectInfo | ShoalError], deadline: float
) -> list[Residency]:
    """In the order asked; the first error is raised."""
    known = _known(infos)
    if cluster.has_others(session, routed, deadline):
        return _inspect_all(Members(session, routed, deadline), known, deadline)
    residencies: list[Residency] = []
    for start in range(0, len(known), _OBJECTS_A_CALL):
        part = known[start : start + _OBJECTS_A_CALL]
        fingerprints = [info.fingerprint for info in part]
        reply = session.call(inspect_verb.KIND, inspect_verb.Request(fingerprints), deadline)
        if any(found is None for found in reply.objects):
            reading.resolve_again(part, deadline)
            reply = session.call(inspect_verb.KIND, inspect_verb.Request(fingerprints), deadline)
        for info, found in zip(part, reply.objects, strict=True):
            held = found or inspect_verb.Residency(0, 0, 0)
            whole = held.blocks >= placing.block_count(info)
            residencies.append(Residency(info.url, info.size, held.dram_bytes, held.disk_bytes, held.blocks, whole))
    return residencies


def _inspect_all(members: Members, infos: Sequence[ObjectInfo], deadline: float) -> list[Residency]:
    dram, disk, held, owned = ([0] * len(infos) for _ in range(4))
    places = (place for place, info in enumerate(infos) for _ in range(placing.block_count(info)))
    for part in placing.parts(placing.all_blocks(infos)):
        blocks = placing.look(members, part, deadline)
        placing.ask_everybody(members, [block for block in blocks if not block.good_holders], deadline)
        for block, place in zip(blocks, places, strict=False):
            holders = block.good_holders
            states = [block.holders[node_id] for node_id in holders]
            dram[place] += block.size * any(state & holding.DRAM for state in states)
            disk[place] += block.size * any(state & holding.DISK for state in states)
            held[place] += bool(holders)
            owned[place] += any(node_id in block.acting for node_id in holders)
    return [
        Residency(
            info.url, info.size, dram[place], disk[place], held[place], owned[place] == placing.block_count(info)
        )
        for place, info in enumerate(infos)
    ]  # fmt: skip


def evict(
    session: Session, routed: Routed, reading: Reading, infos: Sequence[ObjectInfo], deadline: float
) -> tuple[int, dict[str, str]]:
    """Copies of blocks dropped, and the nodes that could not be asked, with the reason of each."""
    members = Members(session, routed, deadline) if cluster.has_others(session, routed, deadline) else None
    count = 0
    for start in range(0, len(infos), _OBJECTS_A_CALL):
        part = list(infos[start : start + _OBJECTS_A_CALL])
        if members is not None:
            count += _evict_everywhere(members, part, deadline)
            continue
        reading.resolve_again(part, deadline)
        request = evict_verb.Request([info.fingerprint for info in part])
        count += session.call(evict_verb.KIND, request, deadline).blocks
    return count, members.silent if members is not None else {}


def _evict_everywhere(members: Members, infos: Sequence[ObjectInfo], deadline: float) -> int:
    wanted = [resolve.Wanted(info.url, info.size, info.etag) for info in infos]
    request = evict_verb.Request([info.fingerprint for info in infos])

    def one(node: view.Node) -> int:
        members.call(node, resolve.KIND, resolve.Request(wanted, _milliseconds(deadline)), deadline)
        return members.call(node, evict_verb.KIND, request, deadline).blocks

    count = 0
    for _ in range(_EVICTIONS_MAX):
        dropped = sum(members.each(members.answering, one).values())
        count += dropped
        if not dropped:
            break
    return count


def prefetch(session: Session, info: ObjectInfo, block: int, count: int, deadline: float) -> None:
    """Start filling blocks."""
    request = get.Request([info.fingerprint], [], [get.Ahead(0, block, count)], _milliseconds(deadline), False)
    session.call(get.KIND, request, deadline)


def declare_dataset(
    session: Session,
    routed: Routed,
    name: str,
    url: str,
    eviction: str,
    quota_bytes: int | None,
    ttl_s: float | None,
    replicas: int | None,
    deadline: float,
) -> dict[str, str]:
    """BadRequest or ConfigError names what a node did not take. The nodes that could not be told, and why."""
    if eviction not in ("s3fifo", "epoch", "pin"):
        raise BadRequest(f"eviction: {eviction!r} is none of s3fifo, epoch, pin")
    request = dataset.Request(name, url, eviction, quota_bytes, ttl_s, replicas)
    if not cluster.has_others(session, routed, deadline):
        session.call(dataset.KIND, request, deadline)
        return {}
    members = Members(session, routed, deadline)
    # One first: what is wrong with it is said before any other has it.
    first = members.answering[:1]
    members.ask(dataset.KIND, dict.fromkeys(first, request), deadline)
    members.ask(dataset.KIND, dict.fromkeys(set(members.answering) - set(first), request), deadline)
    return members.silent


def expect_all(done: str, silent: dict[str, str]) -> None:
    """NodeGone when a node could not be told what the others were."""
    if silent:
        reasons = "; ".join(f"{node_id} ({reason})" for node_id, reason in sorted(silent.items()))
        raise NodeGone(f"{done}, but these nodes could not be asked: {reasons}")


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
