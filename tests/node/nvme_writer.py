"""A process that writes into an NVMe tier until it is killed, one byte to stdout per finished step.

`python -m tests.node.nvme_writer DIRECTORY SEED [CALL [BYTES]]`: with CALL it kills itself in that call to the disk's
write, after BYTES of it (none: before it).
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shoal_core import digests
from shoal_core.limits import MIB, SLAB_SLOTS_MAX
from shoal_node.tiers.nvme import FileIo, NvmeTier, Record

SLAB_BYTES = 1 * MIB
SLABS = 6
CLASSES = (4096, 65536, 262144)


class DyingIo(FileIo):
    """Kills its process in one write call."""

    def __init__(self, calls_left: int, part_bytes: int) -> None:
        self._calls_left = calls_left
        self._part_bytes = part_bytes

    def write(self, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        if self._calls_left == 0:
            if self._part_bytes:
                super().write(descriptor, [buffers[0][: self._part_bytes]], offset)
            os.kill(os.getpid(), signal.SIGKILL)
        self._calls_left -= 1
        return super().write(descriptor, buffers, offset)


def open_tier(directory: str, io: FileIo | None = None) -> NvmeTier:
    return NvmeTier(directory, SLABS * 2 * SLAB_BYTES, SLAB_BYTES, CLASSES, io)


def make(slot: int, size: int, seed: int) -> tuple[Record, memoryview]:
    payload = memoryview(random.Random(seed).randbytes(size))
    checksum = digests.checksum(digests.page_digests(payload))
    return Record(slot, seed.to_bytes(16, "little"), b"12345678", size, checksum, seed & 0xFFFF), payload


def churn(tier: NvmeTier, slab: int, seed: int, stop: threading.Event) -> None:
    """Assign, write, erase in one slab, for ever."""
    chance = random.Random(seed)
    class_index = 0
    for step in range(1 << 30):
        if step % 40 == 0:
            class_index = chance.randrange(len(CLASSES))
            tier.assign(slab, class_index)
        index = chance.randrange(min(8, SLAB_BYTES // CLASSES[class_index]))
        slot = slab * SLAB_SLOTS_MAX + index
        if chance.random() < 0.1:
            tier.erase(slot)
        else:
            tier.write(*make(slot, chance.randrange(1, CLASSES[class_index] + 1), chance.getrandbits(100)))
        os.write(1, b".")
        if stop.is_set():
            return


def main() -> None:
    directory, seed, *death = sys.argv[1:]
    if death:
        # One slot is written twice; the death comes in the second write.
        tier = open_tier(directory)
        tier.assign(0, 2)
        tier.write(*make(0, 200_000, 1))
        tier.close()
        tier = open_tier(directory, DyingIo(int(death[0]), int([*death, "0"][1])))
        list(tier.recover())
        tier.write(*make(0, 200_001, 2))
        Path(directory, "finished").touch()
        return
    tier = open_tier(directory)
    list(tier.recover())
    stop = threading.Event()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda slab: churn(tier, slab, int(seed) * 1000 + slab, stop), range(3)))


if __name__ == "__main__":
    main()
