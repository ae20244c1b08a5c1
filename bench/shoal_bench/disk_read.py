"""How close does a client's read of blocks that are only on disk come to the disk?

A node is started on a filled disk tier and every block is read once, so each comes from there and none from the origin.
The first blocks grow the node's memory to its budget and are not measured; the next lap begins with a fresh node. The
reference is a loop of O_DIRECT preadv calls for blocks of the same size, with as many at once as the node makes, on the
same file system.
"""

from __future__ import annotations

import mmap
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import shoal
from shoal_bench import pairs, places
from shoal_bench.places import BLOCK_BYTES
from shoal_bench.report import Report
from shoal_core.errors import DeadlineExceeded
from shoal_core.limits import MIB

WARM_UP_BLOCKS = 128
ROUND_BLOCKS = 32
ROUNDS_A_LAP = 8
BLOCK_COUNT = WARM_UP_BLOCKS + ROUNDS_A_LAP * ROUND_BLOCKS
DEPTH = 4
_BUDGET_BYTES = 512 * MIB
_WRITTEN_S = 120.0


def run(report: Report) -> None:
    """One row through shared memory, one through TCP."""
    with places.directory() as place, places.directory(on_disk=True) as disk:
        budget = (BLOCK_COUNT + 16) * BLOCK_BYTES
        sections = {"nvme": [{"directory": str(disk / "tier"), "budget_bytes": budget}]}
        url = places.write_object(place / "objects" / "large", BLOCK_COUNT * BLOCK_BYTES)
        with places.node(place, _BUDGET_BYTES, **sections) as node, shoal.connect(node.unix) as client:
            _write_all(client, url)
        bare = _Bare(disk / "bare")
        for door in ("unix", "tcp"):
            _row(report, place, sections, door, url, bare)
        bare.close()


def _row(report: Report, place: Path, sections: dict[str, Any], door: str, url: str, bare: _Bare) -> None:
    target = memoryview(mmap.mmap(-1, ROUND_BLOCKS * BLOCK_BYTES))
    target[:] = bytes(len(target))
    mine: list[float] = []
    theirs: list[float] = []
    for _ in range(1 if report.quick else 3):
        with places.node(place, _BUDGET_BYTES, **sections) as node, shoal.connect(getattr(node, door)) as client:
            for first in range(0, WARM_UP_BLOCKS, ROUND_BLOCKS):
                client.read_into(url, target, first * BLOCK_BYTES)
            position = WARM_UP_BLOCKS

            def ours(client: shoal.Client = client) -> None:
                nonlocal position
                assert client.read_into(url, target, position * BLOCK_BYTES) == len(target)
                position += ROUND_BLOCKS

            sides = pairs.timed(ours), pairs.timed(lambda: bare.read(target))
            (more,), (others,) = pairs.alternate(sides[:1], sides[1:], ROUNDS_A_LAP, 0)
            if client.stats().hits["origin"] or client.stats().fallbacks:
                raise RuntimeError(f"not every block was on disk: {client.stats().as_dict()}")
        mine += more
        theirs += others
    pair = pairs.of(mine, theirs)
    gigabytes = ROUND_BLOCKS * BLOCK_BYTES / 1e9
    report.row(
        f"on disk only, 4 MiB blocks: read_into over {'TCP' if door == 'tcp' else 'shared memory'}",
        gigabytes / pair.ours_s, gigabytes / pair.reference_s, "GB/s",
        ratio=pair.speed, reference_name=f"O_DIRECT preadv, depth {DEPTH}", at_least=0.9,
    )  # fmt: skip


def _write_all(client: shoal.Client, url: str) -> None:
    """Read until every block is on disk: what left memory before its turn to be written is read again."""
    block = memoryview(bytearray(BLOCK_BYTES))
    deadline = time.monotonic() + _WRITTEN_S
    while client.inspect([url])[0].disk_bytes < BLOCK_COUNT * BLOCK_BYTES:
        if time.monotonic() > deadline:
            raise DeadlineExceeded(f"the disk tier took in only {client.inspect([url])}")
        for number in range(BLOCK_COUNT):
            client.read_into(url, block, number * BLOCK_BYTES)


class _Bare:
    """One written file, read round and round by DEPTH threads."""

    def __init__(self, path: Path) -> None:
        with path.open("wb") as file:
            for _ in range(BLOCK_COUNT):
                file.write(os.urandom(BLOCK_BYTES))
            os.fsync(file.fileno())
        self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        self._pool = ThreadPoolExecutor(DEPTH)
        self._first = 0

    def read(self, target: memoryview) -> None:
        first = self._first
        self._first = (first + ROUND_BLOCKS) % BLOCK_COUNT

        def work(worker: int) -> None:
            for number in range(worker, ROUND_BLOCKS, DEPTH):
                block = target[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]
                assert os.preadv(self._descriptor, [block], (first + number) * BLOCK_BYTES) == BLOCK_BYTES

        list(self._pool.map(work, range(DEPTH)))

    def close(self) -> None:
        self._pool.shutdown()
        os.close(self._descriptor)
