"""Does the NVMe tier cost anything beside the disk itself?

Blocks of 4 MiB are written to and read from the tier, and to a preallocated file beside it with bare O_DIRECT pwritev
and preadv, from and into the same page-aligned memory, with 1 and with 4 threads. Rounds are short and alternate
between the two, and each side's median counts, because a disk's speed changes from second to second. Both sides
overwrite files that were written through once.
"""

from __future__ import annotations

import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shoal_bench.report import Report
from shoal_core.limits import MIB, SLAB_SLOTS_MAX
from shoal_node.tiers.nvme import NvmeTier, Record

BLOCK_BYTES = 4 * MIB
BLOCK_COUNT = 64
ROUND_BLOCKS = 16
ROUNDS = 24
_SLAB_BYTES = 16 * MIB
_PER_SLAB = _SLAB_BYTES // BLOCK_BYTES
_Operation = Callable[[int, memoryview], None]


class _Tier:
    """Block n of the tier: slot n of its slabs."""

    def __init__(self, directory: Path) -> None:
        budget = (BLOCK_COUNT // _PER_SLAB + 1) * (_SLAB_BYTES + 64 * 1024)
        self._tier = NvmeTier(str(directory), budget, _SLAB_BYTES, (BLOCK_BYTES,))
        for slab in range(BLOCK_COUNT // _PER_SLAB):
            self._tier.assign(slab, 0)
        self._records = [Record(self._slot(n), bytes(16), bytes(8), BLOCK_BYTES, 0, 0) for n in range(BLOCK_COUNT)]

    def write(self, number: int, block: memoryview) -> None:
        self._tier.write(self._records[number], block)

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
                    ours, reference = _compare(getattr(tier, kind), getattr(bare, kind), depth, report.rounds(ROUNDS))
                    suffix = "" if direct else ", page cache"
                    report.row(
                        f"disk tier alone, {kind} 4 MiB, depth {depth}{suffix}", ours, reference, "GB/s",
                        reference_name="bare O_DIRECT", at_least=0.9 if kind == "read" else None,
                    )  # fmt: skip
        finally:
            bare.close()
            tier.close()


def _is_direct(tier: _Tier) -> bool:
    """Known once a payload was moved."""
    tier.write(0, _blocks(1)[0])
    return tier.direct


def _compare(ours: _Operation, reference: _Operation, depth: int, rounds: int) -> tuple[float, float]:
    """(ours, reference): medians of alternating rounds, after both files were gone through once."""
    blocks = _blocks(depth)
    speeds: dict[_Operation, list[float]] = {ours: [], reference: []}
    with ThreadPoolExecutor(depth) as pool:
        for operation in speeds:
            _round(operation, blocks, pool, range(BLOCK_COUNT))
        for round_number in range(rounds):
            first = round_number * ROUND_BLOCKS % BLOCK_COUNT
            for operation in (ours, reference) if round_number % 2 else (reference, ours):
                speeds[operation].append(_round(operation, blocks, pool, range(first, first + ROUND_BLOCKS)))
    return statistics.median(speeds[ours]), statistics.median(speeds[reference])


def _round(operation: _Operation, blocks: list[memoryview], pool: ThreadPoolExecutor, numbers: range) -> float:
    """GB/s over these blocks once, one thread for each piece of memory."""

    def work(worker: int) -> None:
        for number in numbers[worker :: len(blocks)]:
            operation(number, blocks[worker])

    start = time.perf_counter()
    list(pool.map(work, range(len(blocks))))
    return len(numbers) * BLOCK_BYTES / (time.perf_counter() - start) / 1e9


def _blocks(count: int) -> list[memoryview]:
    blocks = [memoryview(mmap.mmap(-1, BLOCK_BYTES)) for _ in range(count)]
    for block in blocks:
        block[:] = os.urandom(BLOCK_BYTES)
    return blocks
