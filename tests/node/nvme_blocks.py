"""Blocks, records and tiers as the tests of the NVMe tier use them."""

from __future__ import annotations

import mmap
from pathlib import Path

from shoal_core import digests
from shoal_core.limits import MIB, SLAB_SLOTS_MAX
from shoal_node.tiers.nvme import FileIo, NvmeTier, Record

SLAB = 1 * MIB
CLASSES = (512, 4096, 65536, 262144)
LARGE = 3  # index of the class that most tests use: four slots to a slab


def slot(slab: int, index: int) -> int:
    return slab * SLAB_SLOTS_MAX + index


def aligned(size: int, content: bytes = b"") -> memoryview:
    view = memoryview(mmap.mmap(-1, max(size, 1)))[:size]
    view[: len(content)] = content
    return view


def record_of(slot_number: int, payload: memoryview | bytes, seed: int = 1) -> Record:
    checksum = digests.checksum(digests.page_digests(memoryview(payload)))
    return Record(slot_number, seed.to_bytes(16, "little"), b"space678", len(payload), checksum, 1_700_000_000 + seed)


def open_tier(directory: Path, *, slabs: int = 8, io: FileIo | None = None) -> NvmeTier:
    return NvmeTier(str(directory), slabs * 2 * SLAB, SLAB, CLASSES, io)


def store(tier: NvmeTier, slot_number: int, payload: bytes, seed: int = 1) -> Record:
    record = record_of(slot_number, payload, seed)
    tier.write(record, aligned(len(payload), payload))
    return record


def load(tier: NvmeTier, record: Record) -> bytes:
    into = aligned(record.size)
    tier.read(record.slot, record.size, into)
    return bytes(into)


def recovered(tier: NvmeTier) -> tuple[dict[int, int], dict[int, Record]]:
    """({slab: class index}, {slot: record})"""
    slabs: dict[int, int] = {}
    records: dict[int, Record] = {}
    for found in tier.recover():
        if isinstance(found, Record):
            assert found.slot // SLAB_SLOTS_MAX in slabs, "a record came before its slab"
            records[found.slot] = found
        else:
            slabs[found[1]] = found[2]
    return slabs, records
