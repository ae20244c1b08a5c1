"""A disk that fails when told: what `NvmeTier` takes instead of the operating system, and a node over it."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Sequence

from shoal_core.config import NodeConfig
from shoal_node import assembly
from shoal_node.tiers.nvme import FileIo
from tests.support.running_node import InProcessNode


class FaultyIo(FileIo):
    """Passes everything on, but for the operations in `failing`, which raise that errno."""

    def __init__(self) -> None:
        self.failing: dict[str, int] = {}
        """By operation: read, write or allocate."""
        self.flip_bits = False
        """Every read of a payload brings its first byte wrong."""

    def read(self, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        self._maybe("read")
        count = super().read(descriptor, buffers, offset)
        if self.flip_bits and count:
            buffers[0][0] ^= 1
        return count

    def write(self, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        self._maybe("write")
        return super().write(descriptor, buffers, offset)

    def allocate(self, descriptor: int, offset: int, length: int) -> None:
        self._maybe("allocate")
        super().allocate(descriptor, offset, length)

    def fail(self, *operations: str, number: int = errno.EIO) -> None:
        self.failing = dict.fromkeys(operations, number)

    def _maybe(self, operation: str) -> None:
        if operation in self.failing:
            number = self.failing[operation]
            raise OSError(number, os.strerror(number))


class NodeOverDisk(InProcessNode):
    """A node whose disk tier goes through `io`."""

    def __init__(self, config: NodeConfig, io: FileIo) -> None:
        super().__init__(config)
        self.io = io

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        async with assembly.running(self.config, self.io) as running:
            self.node, self.server, self.memory = running.node, running.server, running.memory
            self._ready.set()
            await self._stop.wait()
