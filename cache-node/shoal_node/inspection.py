"""Questions about what is cached, and the order to drop it: cold verbs over the index."""

from __future__ import annotations

import functools
import os
import time
from importlib import metadata
from typing import TYPE_CHECKING, Any

import msgspec

from shoal_core import digests, index, keys
from shoal_core.verbs import evict, inspect
from shoal_node import metrics
from shoal_node.objects import ObjectRecord
from shoal_node.state import NodeState

if TYPE_CHECKING:
    from shoal_node.runtime import Node

_BLOCKS_A_STEP = 1000
"""Blocks looked at under one hold of the lock: about a millisecond."""


def residency(node: Node, request: inspect.Request) -> inspect.Reply:
    """What of each object is cached, by tier."""
    found: list[inspect.Residency | None] = []
    for fingerprint in request.fingerprints:
        with node.step() as state:
            record = state.objects.get(fingerprint)
        found.append(None if record is None else _residency(node, record))
    return inspect.Reply(found)


def _residency(node: Node, record: ObjectRecord) -> inspect.Residency:
    dram = disk = blocks = 0
    for start in range(0, record.block_count, _BLOCKS_A_STEP):
        with node.step() as state:
            for block in range(start, min(start + _BLOCKS_A_STEP, record.block_count)):
                entry = state.index.find(keys.block_key(record.fingerprint, block))
                if entry == index.NONE:
                    continue
                size = state.index.size[entry]
                blocks += 1
                dram += size if state.index.dram_slot[entry] != index.NO_SLOT else 0
                disk += size if state.index.disk_slot[entry] != index.NO_SLOT else 0
    return inspect.Residency(dram, disk, blocks)


def evict_objects(node: Node, request: evict.Request) -> evict.Reply:
    """Drop every block of these objects, and what their URLs resolved to."""
    count = 0
    for fingerprint in request.fingerprints:
        with node.step() as state:
            record = state.objects.get(fingerprint)
            if record is not None:
                state.objects.forget_resolution(record)
        if record is not None:
            count += _evict(node, record)
    return evict.Reply(count)


def _evict(node: Node, record: ObjectRecord) -> int:
    count = 0
    for start in range(0, record.block_count, _BLOCKS_A_STEP):
        with node.step() as state:
            for block in range(start, min(start + _BLOCKS_A_STEP, record.block_count)):
                entry = state.index.find(keys.block_key(record.fingerprint, block))
                if entry != index.NONE:
                    state.drop(entry, erase=True)
                    count += 1
    return count


def complain(node: Node, entry: int, generation: int) -> bool:
    """Hash our own copy; whether it was bad and is now quarantined."""
    with node.step() as state:
        known = 0 <= entry < state.index.capacity and state.index.generation[entry] == generation
        if not known or state.index.dram_slot[entry] == index.NO_SLOT:
            return False
        state.hold(entry)
        memory, table = node.entry_memory(entry), bytes(state.digest_table(entry))
    good = digests.page_digests(memory) == table
    with node.step() as state:
        if not good:
            node.counters.corrupt_pages["dram"] += 1
            state.drop(entry, erase=True, quarantine=True, reason="corrupt")
        state.unhold(entry)
    return not good


def gauges(node: Node) -> metrics.Gauges:
    """What rises and falls, now. Inside a step. Brings the counters that the pure state keeps up to date as well."""
    state = node.state
    node.counters.fallbacks["disk_write_skipped"] = state.disk_writes_skipped
    node.counters.evictions["dram"] = state.dram.evictions
    if state.disk is not None and node.nvme is not None:
        node.counters.evictions["disk"] = state.disk.evictions
        node.counters.fallbacks["o_direct"] = int(not node.nvme.direct)
    tiers = {
        "dram": metrics.TierGauges(
            budget_bytes=state.layout.budget_bytes,
            used_bytes=state.dram.slabs.used_bytes,
            blocks=len(state.dram),
            index_bytes=state.layout.index_bytes,
        )
    }
    if state.disk is not None and node.nvme is not None:
        tiers["disk"] = metrics.TierGauges(
            budget_bytes=state.disk.slabs.slab_count * state.layout.slab_bytes,
            used_bytes=state.disk.slabs.used_bytes,
            blocks=len(state.disk),
        )
    return metrics.Gauges(
        tiers=tiers,
        spaces={
            space.name: metrics.SpaceGauges(_space_bytes(state, number), space.quota_bytes)
            for number, space in enumerate(state.spaces)
            if not space.is_removed
        },
        clients=len(state.leases.clients),
        volumes=node.volume_count,
        leases=state.leases.count,
        leased_bytes=state.leases.leased_bytes,
        fills_in_flight=node.filler.running,
        disk_queue=state.disk_queue,
        view_epoch=node.epoch,
        nodes_dead=len(node.peers.cluster.dead) if node.peers is not None else 0,
        near_bytes=node.peers.near.bytes if node.peers is not None else 0,
        pull_queue=node.peers.pulling.waiting if node.peers is not None else 0,
    )


def _space_bytes(state: NodeState, space: int) -> int:
    disk = state.disk.slabs.space_used_bytes(space) if state.disk is not None else 0
    return max(state.dram.slabs.space_used_bytes(space), disk)


@functools.cache
def version() -> str:
    """Of Shoal, as it is installed."""
    try:
        return metadata.version("shoal")
    except metadata.PackageNotFoundError:
        return "unknown"


def status(node: Node) -> dict[str, Any]:
    """Everything about the node, as plain data."""
    with node.step() as state:
        now = gauges(node)
        values: dict[str, Any] = {
            "node": node.config.node_name,
            "pid": os.getpid(),
            "addresses": node.addresses,
            "uptime_s": time.time() - node.started_s,
            "version": version(),
            "draining": node.draining,
            "cluster": node.peers.status() if node.peers is not None else None,
            "embedded": node.config.linger_s is not None,
            "config": msgspec.to_builtins(node.config) | {"origins": sorted(node.config.origins)},
            "nvme_direct": node.nvme.direct if node.nvme is not None else None,
            "disk_failed": node.writer.failed if node.writer is not None else False,
            "segments": [{"bytes": segment.size, "huge_pages": segment.huge} for segment in node.segments],
            "index_memory_bytes": state.index.memory_bytes + state.dram.memory_bytes,
            "quarantined_bytes": state.quarantined_bytes,
            "objects_remembered": len(state.objects),
            "processes": {
                identity.hex()[:8]: {"process": client.process, "leased_bytes": client.leased_bytes}
                for identity, client in state.leases.clients.items()
            },
        }
        datasets = node.datasets.numbers(state)
    values["datasets"] = datasets if node.pool is None else node.pool.complete(datasets)
    values["preloads"] = {} if node.pool is None else node.pool.preloads()
    return values | metrics.snapshot(node.counters, now)
