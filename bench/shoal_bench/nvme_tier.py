"""Does the NVMe tier cost anything beside the disk itself?

Blocks of 4 MiB are written to and read from the tier, and to a preallocated file beside it with bare O_DIRECT pwritev
and preadv, from and into the same page-aligned memory, with 1 and with 4 threads. Rounds alternate between the two, and
the best round of each counts, so that a disk that is throttled for a moment harms neither side alone. Both sides
overwrite files that were written through once.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from shoal_core.limits import MIB, SLAB_SLOTS_MAX
from shoal_node.tiers.nvme import NvmeTier, Record

BLOCK_BYTES = 4 * MIB
BLOCK_COUNT = 64
ROUNDS = 4
_SLAB_BYTES = 16 * MIB
_PER_SLAB = _SLAB_BYTES // BLOCK_BYTES
_Operation = Callable[[int, memoryview], None]


class Report(Protocol):
    def row(self, name: str, ours: float, reference: float, unit: str) -> None: ...


class _Tier:
    """Block n of the tier: slot n of its slabs."""

    def __init__(self, directory: Path) -> None:
        budget = (BLOCK_COUNT // _PER_SLAB + 1) * (_SLAB_BYTES + 64 * 1024)
        self._tier = NvmeTier(str(directory), budget, _SLAB_BYTES, (BLOCK_BYTES,))
        for slab in range(BLOCK_COUNT // _PER_SLAB):
            self._tier.assign(slab, 0)

    def write(self, number: int, block: memoryview) -> None:
        self._tier.write(Record(self._slot(number), bytes(16), bytes(8), BLOCK_BYTES, 0, 0), block)

    def read(self, number: int, block: memoryview) -> None:
        self._tier.read(self._slot(number), BLOCK_BYTES, block)

    @property
    def direct(self) -> bool:
        return self._tier.direct

    def close(self) -> None:
        self._tier.close()

    @staticmethod
    def _slot(number: int) -> int:
        return number // _PER_SLAB * SLAB_SLOTS_MAX + number % _PER_SLAB


class _Bare:
    """Block n of one file."""

    def __init__(self, path: Path, *, direct: bool) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | (os.O_DIRECT if direct else 0))
        os.posix_fallocate(self._descriptor, 0, BLOCK_COUNT * BLOCK_BYTES)

    def write(self, number: int, block: memoryview) -> None:
        assert os.pwritev(self._descriptor, [block], number * BLOCK_BYTES) == BLOCK_BYTES

    def read(self, number: int, block: memoryview) -> None:
        assert os.preadv(self._descriptor, [block], number * BLOCK_BYTES) == BLOCK_BYTES

    def close(self) -> None:
        os.close(self._descriptor)


def run(report: Report) -> None:
    """Four rows, in GB/s: write and read, with 1 and 4 calls at once."""
    where = os.environ.get("SHOAL_BENCH_DIRECTORY", ".")
    with tempfile.TemporaryDirectory(prefix=".bench-nvme-", dir=where) as name:
        tier = _Tier(Path(name, "tier"))
        direct = _is_direct(tier)
        bare = _Bare(Path(name, "bare"), direct=direct)
        try:
            for kind in ("write", "read"):
                for depth in (1, 4):
                    ours, reference = _compare(getattr(tier, kind), getattr(bare, kind), depth)
                    suffix = "" if direct else ", page cache"
                    report.row(f"disk tier, {kind} 4 MiB, depth {depth}{suffix}", ours, reference, "GB/s")
        finally:
            bare.close()
            tier.close()


def _is_direct(tier: _Tier) -> bool:
    """Known once a payload was moved."""
    tier.write(0, _blocks(1)[0])
    return tier.direct


def _compare(ours: _Operation, reference: _Operation, depth: int) -> tuple[float, float]:
    """(ours, reference), the best of alternating rounds, after one that does not count."""
    blocks = _blocks(depth)
    best = {ours: 0.0, reference: 0.0}
    for round_number in range(ROUNDS + 1):
        for operation in (ours, reference) if round_number % 2 else (reference, ours):
            speed = _round(operation, blocks)
            if round_number:
                best[operation] = max(best[operation], speed)
    return best[ours], best[reference]


def _round(operation: _Operation, blocks: list[memoryview]) -> float:
    """GB/s over all blocks once, one thread for each piece of memory."""

    def work(worker: int) -> None:
        for number in range(worker, BLOCK_COUNT, len(blocks)):
            operation(number, blocks[worker])

    with ThreadPoolExecutor(len(blocks)) as pool:
        start = time.perf_counter()
        list(pool.map(work, range(len(blocks))))
        return BLOCK_COUNT * BLOCK_BYTES / (time.perf_counter() - start) / 1e9


def _blocks(count: int) -> list[memoryview]:
    blocks = [memoryview(mmap.mmap(-1, BLOCK_BYTES)) for _ in range(count)]
    for block in blocks:
        block[:] = os.urandom(BLOCK_BYTES)
    return blocks
